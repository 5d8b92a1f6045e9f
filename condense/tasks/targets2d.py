"""What single images are asked to tell, cell by cell: labels, depth and surface normals of a capture's views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize, one_hot

from condense.captures.capture import Capture
from condense.joint import SOLID
from condense.links import LinkedView, Links, load_links
from condense.tasks.pointclouds import SurfacePoints, read_points

KINDS = {"part": "object", "semantic": "room"}  # benchmark: kind of capture
REACH = 1.5  # voxels from a surface point within which a voxel has its normal
CLEAR = 0.5  # shorter mean normals belong to cells in which surfaces of several directions meet


@dataclass(frozen=True)
class CellTargets:
    """One view and what is true of its cells; arrays, since every tensor sent between processes holds a file open.

    Args:
        image: [H, W, 3] uint8 RGB.
        cells: (h, w) of the feature map.
        labels: [h w] int64, places in the names of the benchmark; 0 = none.
        depth: [h w] z in the camera divided by the view's median; NaN behind the capture.
        normals: [h w, 3] unit, camera frame (OpenCV axes), facing the camera; NaN where unknown.
    """

    image: NDArray[np.uint8]
    cells: tuple[int, int]
    labels: NDArray[np.int64]
    depth: NDArray[np.float32]
    normals: NDArray[np.float32]


def part_names(captures: Sequence[Capture], kind: str) -> tuple[str, ...]:
    """The labels of all captures of a kind; labels of one name are one. The first stands for "no label"."""
    metas = [capture.meta for capture in captures if capture.meta.get("kind") == kind]
    return ("none", *sorted({part for meta in metas for part in meta.get("parts", {}).values()}))


def cell_labels(pixels: np.ndarray, parts: dict[str, str], names: Sequence[str], cells: tuple[int, int]) -> Tensor:
    """[h w] int64 the commonest label of each cell's pixels, as a place in `names`.

    Args:
        pixels: [H, W, C] uint8, the label's number in the first channel.
        parts: {number: name} of the capture's labels.
        names: of the benchmark, the first for pixels without a label.
        cells: (h, w) of the feature map.
    """
    place = np.zeros(256, np.int64)
    place[[int(number) for number in parts]] = [names.index(name) for name in parts.values()]
    present, at = np.unique(place[pixels[:, :, 0]], return_inverse=True)
    votes = one_hot(torch.from_numpy(at.reshape(pixels.shape[:2])), len(present)).permute(2, 0, 1).float()
    return torch.from_numpy(present)[adaptive_avg_pool2d(votes, cells).flatten(1).argmax(0)]


def cell_depth(links: Links, view: LinkedView) -> Tensor:
    """[h w] z of what each cell sees, by the rendered field, divided by the view's median; NaN behind the capture.

    One image does not tell how far its camera was: what remains is the shape of the depth.
    """
    opacity = view.operator.opacity
    point = view.operator.render(links.scene.centres) / opacity.clamp_min(1e-6)[:, None]
    depth = view.camera.project(0, point)[1].where(opacity >= SOLID, torch.nan)
    return depth / depth.nanmedian()


def voxel_normals(links: Links, surface: SurfacePoints) -> Tensor:
    """[N, 3] unit normals of the nearest surface point, capture frame; 0 where none is within REACH voxels."""
    limit = REACH * links.scene.grid.voxel_size
    _, nearest = cKDTree(surface.points.numpy()).query(links.scene.centres.numpy(), distance_upper_bound=limit)
    return torch.cat([surface.normals, torch.zeros(1, 3)])[torch.from_numpy(nearest)]


def cell_normals(links: Links, view: LinkedView, normals: Tensor) -> Tensor:
    """[h w, 3] unit normals that each cell sees, camera frame; NaN where there are none or they disagree.

    Args:
        links: the capture.
        view: one of its views.
        normals: [N, 3] of its voxels; those of thin parts may point to either side, so all are turned to the camera.
    """
    T = view.camera.T_world_from_camera[0]
    away = (normals * (links.scene.centres - T[:3, 3])).sum(1, keepdim=True) > 0
    seen = view.operator.render(torch.where(away, -normals, normals)) @ T[:3, :3]  # rows: R^T n
    return normalize(seen, dim=1).where(seen.norm(dim=1, keepdim=True) >= CLEAR, torch.nan)


def read_targets(
    capture: Capture, path: Path, names: Sequence[str], split: str, count: int, max_side: int
) -> list[CellTargets]:
    """Up to `count` views of a split, spread evenly. One job of `parallel_map`.

    Args:
        capture: with labels of its views, and surface points.
        path: of its links.
        names: of the benchmark's labels.
        split: "train" or "test" views.
        count: of views.
        max_side: as images were shrunk for the links.
    """
    links, views = load_links(path, (split,)), capture.views(split)
    chosen = np.unique(np.linspace(0, len(views) - 1, min(count, len(views))).round().astype(int))
    labels = capture.load([views[i] for i in chosen], max_side).labels
    surface = read_points(capture.folder)
    normals = torch.zeros(len(links.scene), 3) if surface is None else voxel_normals(links, surface)
    result = []
    for number, i in enumerate(chosen):
        view = links.views[i]
        label = torch.zeros(view.cells[0] * view.cells[1], dtype=torch.int64)
        if labels is not None:
            label = cell_labels(labels[number], capture.meta["parts"], names, view.cells)
        targets = (label, cell_depth(links, view), cell_normals(links, view, normals))
        result.append(CellTargets(view.image.numpy(), view.cells, *(each.numpy() for each in targets)))
    return result
