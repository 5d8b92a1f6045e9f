"""The links between a capture's views and its voxels: ray operators, teacher features, lifted features.

All that joint training and the tasks need of a capture, computed once. Cells are a feature map's, row-major;
row r of a view's operator, of its teacher features and of its rendered features is the same cell.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from condense.backbone2d import ImageBackbone, load_backbone, precision_of
from condense.cameras import Cameras
from condense.captures.capture import Capture, Views
from condense.devices import device_of, open_device
from condense.field import load_field
from condense.grid import Grid
from condense.params import LinksParams, parse
from condense.paths import write_atomically
from condense.pooling import voxel_scene
from condense.rayoperator import RayOperator, build_operator, on_columns, stack_operators
from condense.voxels import VoxelScene


@dataclass(frozen=True)
class LinkedView:
    """One view of a capture.

    Args:
        name: its image file.
        split: "train" or "test".
        camera: its row of the capture's cameras, for the image at this size.
        image: [H, W, 3] uint8 RGB.
        mask: [H, W] uint8, 255 = object; 255 everywhere where the image has no mask.
        cells: (h, w) of the feature map.
        teacher: [h w, D] float16, the frozen network's standardised features.
        operator: [h w, N], renders voxel values into cells.
    """

    name: str
    split: str
    camera: Cameras
    image: Tensor
    mask: Tensor
    cells: tuple[int, int]
    teacher: Tensor
    operator: RayOperator

    @property
    def foreground(self) -> Tensor:
        """[h w] bool, cells at least half covered by the image's own mask."""
        return adaptive_avg_pool2d(self.mask[None, None].float(), self.cells).flatten() >= 127.5


@dataclass(frozen=True)
class Links:
    """A capture, linked.

    Args:
        name: of the capture.
        meta: of the capture.
        scene: its voxels.
        views: those asked for.
        lifted: [N, D] float32, mean over the cells of the *training* views of the teacher's features, weighted
            by how much of the cell the voxel makes up: (A^T T) / (A^T 1).
        seen: [N] the sum of those weights, A^T 1; 0 for a voxel that no training view sees.
    """

    name: str
    meta: dict[str, Any]
    scene: VoxelScene
    views: tuple[LinkedView, ...]
    lifted: Tensor
    seen: Tensor


def lift(features: Sequence[Tensor], operators: Sequence[RayOperator]) -> tuple[Tensor, Tensor]:
    """Cell features carried to the voxels and averaged there.

    Args:
        features: of each view, [cells, D].
        operators: of each view, [cells, N].

    Returns:
        [N, D] means (0 where no cell sees the voxel) and [N] summed weights.
    """
    stacked = stack_operators(operators, block_diagonal=False)
    return stacked.lift_mean(torch.cat([values.float() for values in features]))


def well_seen(operators: Sequence[RayOperator], keep: float) -> Tensor:
    """[N] bool: the voxels that make up the share `keep` of all that the views see, those seen most first.

    The others are fog inside closed things and behind surfaces: a third to a half of a pooled field's voxels, which
    add next to nothing to any cell, but hide the shape and cost as much as the others.

    Args:
        operators: of the training views.
        keep: in (0, 1].
    """
    seen = sum((operator.transpose.opacity.double() for operator in operators), torch.zeros(1).double())
    order = seen.argsort(descending=True, stable=True)
    before = seen[order].cumsum(0) - seen[order]
    kept = torch.zeros_like(seen, dtype=torch.bool)
    kept[order] = (before < keep * seen.sum()) & (seen[order] > 0)
    return kept


@torch.no_grad()
def link_views(
    name: str,
    meta: dict[str, Any],
    views: Views,
    splits: Sequence[str],
    scene: VoxelScene,
    teacher: ImageBackbone,
    keep: float = 1.0,
) -> Links:
    """Builds the links of one capture.

    Args:
        name: of the capture.
        meta: of the capture.
        views: all its images and cameras.
        splits: "train" or "test" of each view.
        scene: its voxels.
        teacher: the frozen network; its feature map sets the cells. The operators are built where its weights are.
        keep: see `well_seen`; voxels that it leaves out are dropped from the scene.
    """
    teacher.eval()
    images = [torch.from_numpy(pixels) for pixels in views.images]
    device = device_of(teacher)
    maps = [teacher(as_batch([image]).to(device))[0].cpu() for image in images]  # each [D, h, w]
    there = scene.to(device)
    sizes = [features.shape[1:] for features in maps]
    operators = [build_operator(there, views.cameras, i, h, w).to("cpu") for i, (h, w) in enumerate(sizes)]
    kept = well_seen([operator for operator, split in zip(operators, splits, strict=True) if split == "train"], keep)
    scene = VoxelScene(scene.coords[kept], scene.density[kept], scene.colour[kept], scene.grid)
    linked = []
    for i, features in enumerate(maps):
        h, w = features.shape[1:]
        mask = torch.full(images[i].shape[:2], 255, dtype=torch.uint8)
        if views.masks is not None:
            mask = (torch.from_numpy(views.masks[i]) * 255).round().to(torch.uint8)
        cells = features.flatten(1).T.half().contiguous()
        operator = on_columns(operators[i], kept)
        camera = views.cameras[[i]]
        linked.append(LinkedView(views.names[i], splits[i], camera, images[i], mask, (h, w), cells, operator))
    training = [view for view in linked if view.split == "train"]
    lifted, seen = lift([view.teacher for view in training], [view.operator for view in training])
    return Links(name, meta, scene, tuple(linked), lifted, seen)


def as_batch(images: Sequence[Tensor]) -> Tensor:
    """[B, 3, H, W] float in [0, 1] from uint8 [H, W, 3] of one size."""
    return torch.stack(list(images)).permute(0, 3, 1, 2).float() / 255


def save_links(links: Links, path: Path) -> None:
    """Writes one safetensors file; what is not a tensor goes into its header as JSON."""
    tensors = {
        **{f"scene.{key}": getattr(links.scene, key) for key in ("coords", "density", "colour")},
        **{"lifted": links.lifted.half(), "seen": links.seen},
    }
    for number, view in enumerate(links.views):
        parts = {"image": view.image, "mask": view.mask, "teacher": view.teacher, "K": view.camera.K}
        parts |= {"T": view.camera.T_world_from_camera, "size": view.camera.sizes}
        parts |= {key: getattr(view.operator, key) for key in ("crow", "col", "value")}
        tensors |= {f"view.{number}.{key}": tensor for key, tensor in parts.items()}
    header = {
        "name": links.name,
        "meta": links.meta,
        "grid": dataclasses.asdict(links.scene.grid),
        "views": [{"name": v.name, "split": v.split, "cells": v.cells} for v in links.views],
    }
    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(contiguous, temporary, {"links": json.dumps(header)}))


def load_links(path: Path, splits: Sequence[str] = ("train",)) -> Links:
    """Reads the links of one capture; views of other splits than `splits` are not even read."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["links"])
        scene = VoxelScene(
            **{key: file.get_tensor(f"scene.{key}") for key in ("coords", "density", "colour")},
            grid=parse(Grid, header["grid"], str(path)),
        )
        views = []
        for number, view in enumerate(header["views"]):
            if view["split"] in splits:
                views.append(_load_view(file, f"view.{number}.", view, len(scene)))
        lifted = file.get_tensor("lifted").float()
        return Links(header["name"], header["meta"], scene, tuple(views), lifted, file.get_tensor("seen"))


def _load_view(file: Any, prefix: str, view: dict[str, Any], voxels: int) -> LinkedView:
    def part(key: str) -> Tensor:
        return file.get_tensor(prefix + key)

    h, w = view["cells"]
    operator = RayOperator(part("crow"), part("col"), part("value"), voxels)
    camera = Cameras(part("K"), part("T"), part("size"))
    cells = {key: part(key) for key in ("image", "mask", "teacher")}
    return LinkedView(view["name"], view["split"], camera, cells=(h, w), operator=operator, **cells)


def write_links(capture: Capture, field: Path, teacher: Path, target: Path, params: LinksParams) -> Path:
    """Links one capture from files to a file; does nothing if `target` is there. One job of `parallel_map`.

    Args:
        capture: whose images to read.
        field: its fitted field.
        teacher: the frozen network's .safetensors, standardised.
        target: the file to write.
        params: resolution and image size.
    """
    if not target.is_file():
        views = capture.load(max_side=params.max_side)
        scene = voxel_scene(load_field(field)[0], params.resolution)
        splits = [frame.split for frame in capture.frames]
        network = load_backbone(teacher).to(open_device(params.device))
        network.precision = precision_of(params.precision)
        links = link_views(capture.name, capture.meta, views, splits, scene, network, params.keep)
        save_links(links, target)
    return target
