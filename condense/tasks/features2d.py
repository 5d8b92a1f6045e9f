"""How steady 2D features are across views: the trained network against the frozen one, without labels.

Correspondences come from the fitted geometry of a capture: where the rays of a test view's image points end, as
seen from any other view, and only where both views agree on it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, normalize

from condense.links import LinkedView, Links, load_links
from condense.metrics import consistency_margin, interval
from condense.model import Model, load_model, student_cells, voxel_features
from condense.rayoperator import build_operator
from condense.voxels import VoxelScene

FINER = 2  # points tried per cell side
OPAQUE = 0.9  # opacity of rays that end on a surface
SAME = 1.0  # voxels between the surface points of two views that count as one
PAIRS, POINTS, FEWEST = 8, 200, 10  # pairs of views a capture; points a pair, at most and at least


@dataclass(frozen=True)
class Matches:
    """Image points of one surface in two views.

    Args:
        first: number of the first view,
        second: and of the second.
        a: [M, 2] image points (x, y) in pixels of the first,
        b: [M, 2] and of the second.
    """

    first: int
    second: int
    a: Tensor
    b: Tensor


def surface(scene: VoxelScene, view: LinkedView) -> tuple[Tensor, Tensor]:
    """Where rays through a grid of image points end.

    Returns:
        [h, w, 3] grid coordinates, and [h, w] opacity, with FINER points along each cell's side.
    """
    h, w = (FINER * side for side in view.cells)
    operator = build_operator(scene, view.camera, 0, h, w, subrays=1)
    opacity = operator.opacity
    position = operator.render(scene.coords.float() + 0.5) / opacity.clamp_min(1e-6)[:, None]
    return position.reshape(h, w, 3), opacity.reshape(h, w)


@torch.no_grad()
def find_matches(links: Links, seed: int) -> list[Matches]:
    """Matches in up to PAIRS pairs of views of `links` (both splits), drawn by `seed`."""
    rng = np.random.default_rng(seed)
    test = [i for i, view in enumerate(links.views) if view.split == "test"]
    every = [(i, j) for i in test for j in range(len(links.views)) if i != j]
    pairs = [every[k] for k in rng.permutation(len(every))[:PAIRS]]
    surfaces = {i: surface(links.scene, links.views[i]) for i in sorted({i for pair in pairs for i in pair})}
    result = []
    for first, second in pairs:
        a, b = _match(links, (first, second), surfaces)
        if len(a) >= FEWEST:
            kept = torch.from_numpy(rng.permutation(len(a))[:POINTS])
            result.append(Matches(first, second, a[kept], b[kept]))
    return result


def _match(links: Links, pair: tuple[int, int], surfaces: Mapping[int, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    (position, opacity), (other, other_opacity) = (surfaces[i] for i in pair)
    view, second = (links.views[i] for i in pair)
    h, w = opacity.shape
    rows, columns = torch.nonzero(opacity > OPAQUE, as_tuple=True)
    width, height = view.camera.sizes[0].tolist()
    a = torch.stack([(columns + 0.5) * width / w, (rows + 0.5) * height / h], dim=1)
    points = position[rows, columns]  # [M, 3] grid coordinates
    b, depth = second.camera.project(0, links.scene.grid.to_world(points))
    size = second.camera.sizes[0]
    inside = (depth > 0) & (b >= 0).all(1) & (b < size).all(1)
    a, b, points = a[inside], b[inside], points[inside]
    h, w = other_opacity.shape
    column, row = (b / size * torch.tensor([w, h])).long().unbind(1)
    apart = (other[row, column] - points).norm(dim=1)
    same = (apart < SAME) & (other_opacity[row, column] > OPAQUE)
    return a[same], b[same]


def sample_map(cells: Tensor, points: Tensor, size: Tensor) -> Tensor:
    """Unit features [M, D] at image points, bilinear between the centres of cells.

    Args:
        cells: [D, h, w].
        points: [M, 2] (x, y) in pixels.
        size: [2] (width, height) of the image.
    """
    grid = (points / size * 2 - 1).to(cells)[None, None]  # [1, 1, M, 2]
    sampled = grid_sample(cells[None], grid, padding_mode="border", align_corners=False)
    return normalize(sampled[0, :, 0].T, dim=1)


def measure(
    links: Links, matches: Sequence[Matches], maps: Sequence[Tensor], stride: int, seed: int
) -> dict[str, float]:
    """The metrics of one capture under one kind of features.

    `consistency_margin`: mean cosine of matched points minus that of random pairs. `match_at_2px` and
    `match_at_1_cell`: share of points whose most similar point in all of the other image lies within two
    pixels, or one stride, of the true one. NaN where there are no matches.

    Args:
        links: the capture.
        matches: of its views.
        maps: of its views, [D, h, w] each.
        stride: pixels a cell.
        seed: of the random pairs.
    """
    rng = np.random.default_rng(seed)
    same, random, errors = [], [], []
    step = max(1, stride // 8)
    for pair in matches:
        sizes = [links.views[i].camera.sizes[0] for i in (pair.first, pair.second)]
        f = sample_map(maps[pair.first], pair.a, sizes[0])
        g = sample_map(maps[pair.second], pair.b, sizes[1])
        same.append((f * g).sum(1))
        random.append((f * g[torch.from_numpy(rng.permutation(len(g)))]).sum(1))
        w, h = (int(side) // step for side in sizes[1])
        dense = interpolate(maps[pair.second][None], (h, w), mode="bilinear")[0]  # [D, h, w]
        best = (f @ normalize(dense.flatten(1), dim=0)).argmax(1)
        found = torch.stack([(best % w + 0.5) / w, (best // w + 0.5) / h], dim=1) * sizes[1]
        errors.append((found - pair.b).norm(dim=1))
    if not matches:
        return dict.fromkeys(("consistency_margin", "match_at_2px", "match_at_1_cell"), float("nan"))
    error = torch.cat(errors)
    return {
        "consistency_margin": consistency_margin(torch.cat(same).numpy(), torch.cat(random).numpy()),
        "match_at_2px": float((error <= 2).float().mean()),
        "match_at_1_cell": float((error <= stride).float().mean()),
    }


@torch.no_grad()
def feature_maps(links: Links, model: Model | None) -> dict[str, list[Tensor]]:
    """{kind: [D, h, w] of each view}: `teacher` and `lifted`; with a model, `student` and `rendered` instead.

    `lifted` and `rendered` show, in 2D, what the geometry alone and the 3D network make of the capture: the
    steadiness a single image could at best reach.
    """
    if model is None:
        flat = {
            "teacher": [view.teacher.float() for view in links.views],
            "lifted": [view.operator.render(links.lifted) for view in links.views],
        }
    else:
        voxels = voxel_features(model.net3d, [links.scene])[0]
        flat = {
            "student": [student_cells(model.student, [view.image]) for view in links.views],
            "rendered": [view.operator.render(voxels) for view in links.views],
        }
    return {kind: [_as_map(c, v) for c, v in zip(maps, links.views, strict=True)] for kind, maps in flat.items()}


def _as_map(cells: Tensor, view: LinkedView) -> Tensor:
    return cells.T.reshape(-1, *view.cells)


def measure_capture(path: Path, models: Sequence[Path], stride: int, seed: int) -> dict[str, list[dict[str, float]]]:
    """{kind: `measure` of one capture, by model}. One job of `parallel_map`.

    Args:
        path: the capture's links.
        models: folders of trained seeds.
        stride: of the 2D network.
        seed: of the pairs of views and points.
    """
    links = load_links(path, ("train", "test"))
    matches = find_matches(links, seed)
    rows: dict[str, list[dict[str, float]]] = {}
    for model in (None, *(load_model(folder) for folder in models)):
        for kind, maps in feature_maps(links, model).items():
            rows.setdefault(kind, []).append(measure(links, matches, maps, stride, seed))
    return rows


def by_seed(captures: Sequence[Mapping[str, list[dict[str, float]]]]) -> dict[str, list[list[dict[str, float]]]]:
    """{kind: [seeds][captures]} from one `measure_capture` a capture."""
    kinds = captures[0] if captures else ()
    return {kind: [list(seed) for seed in zip(*(rows[kind] for rows in captures), strict=True)] for kind in kinds}


def tabulate(
    rows: Mapping[str, Sequence[Sequence[dict[str, float]]]],
) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """The metric file from {kind: [seeds][captures] of `measure`}; {} for a kind nothing could be measured of."""
    metrics: dict[str, dict[str, dict[str, float | int | None]]] = {}
    for kind, seeds in rows.items():
        for name in seeds[0][0] if seeds and len(seeds[0]) else ():
            values = np.array([[capture[name] for capture in captures] for captures in seeds])
            if np.isfinite(values).any():
                metrics.setdefault(kind, {})[name] = interval(values)
    return metrics


@torch.no_grad()
def shared_colours(links: Links, model: Model, views: Sequence[int]) -> dict[str, list[NDArray]]:
    """Images and features of several views, all features in one PCA colour space.

    The three components are those of the student's, the teacher's and the rendered cells together, each cell of
    unit length, where the capture is solid; so one colour means one feature in every picture.

    Args:
        links: the capture with the views to show.
        model: both networks.
        views: numbers of views.

    Returns:
        {"image", "teacher", "student", "rendered": [H, W, 3] of each view, in [0, 1]}; feature maps have one
        pixel a cell, and "rendered" is white where nothing is.
    """
    some = dataclasses.replace(links, views=tuple(links.views[i] for i in views))
    maps = {**feature_maps(some, None), **feature_maps(some, model)}
    opacity = [view.operator.opacity for view in some.views]
    solid = [o >= 0.5 for o in opacity]
    kinds = ("teacher", "student", "rendered")
    unit = {kind: [normalize(m.flatten(1).T, dim=1) for m in maps[kind]] for kind in kinds}
    every = torch.cat([cells[s] for kind in kinds for cells, s in zip(unit[kind], solid, strict=True)])
    centre = every.mean(0)
    _, axes = torch.linalg.eigh((every - centre).T @ (every - centre))
    axes = axes[:, -3:].flip(1)  # [D, 3], the largest first
    axes = axes * torch.where(axes.sum(0) < 0, -1, 1)  # an eigenvector's sign is arbitrary
    low, high = torch.quantile((every - centre) @ axes, torch.tensor([0.02, 0.98]), dim=0)
    pictures: dict[str, list[NDArray]] = {"image": [v.image.float().numpy() / 255 for v in some.views]}
    for kind in kinds:
        pictures[kind] = []
        for cells, view, o in zip(unit[kind], some.views, opacity, strict=True):
            colour = (((cells - centre) @ axes - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
            if kind == "rendered":
                colour = torch.where(o[:, None] >= 0.5, colour, 1.0)
            pictures[kind].append(colour.reshape(*view.cells, 3).numpy())
    return pictures
