"""Matched image points of a capture's views, and how well dense features find them again; no labels needed.

Correspondences come from the fitted geometry of a capture: where the rays of a test view's image points end, as
seen from any other view, and only where both views agree on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, normalize

from condense.links import LinkedView, Links
from condense.metrics import consistency_margin
from condense.rayoperator import build_operator
from condense.voxels import VoxelScene

FINER = 2  # points tried per cell side
OPAQUE = 0.9  # opacity of rays that end on a surface
SAME = 1.0  # voxels between the surface points of two views that count as one
PIXELS = (1, 2, 4)  # distances within which a point counts as found
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


def match_scores(
    links: Links,
    matches: Sequence[Matches],
    maps: Sequence[Tensor],
    stride: int,
    seed: int,
    second: Sequence[Tensor] | None = None,
) -> dict[str, float]:
    """How features of one kind match between the views of one capture.

    `consistency_margin`: mean cosine of matched points minus that of random pairs. `match_at_1px`, 2, 4, and
    `match_at_1_cell`: share of points whose most similar point in all of the other image lies within so many
    pixels, or one stride, of the true one. NaN where there are no matches.

    Args:
        links: the capture.
        matches: of its views.
        maps: of its views, [D, h, w] each.
        stride: pixels a cell.
        seed: of the random pairs.
        second: of the second view of each pair, where it is to be described by other features than the first.
    """
    second = maps if second is None else second
    within = {f"match_at_{pixels}px": pixels for pixels in PIXELS} | {"match_at_1_cell": stride}
    if not matches:
        return dict.fromkeys(("consistency_margin", *within), float("nan"))
    rng = np.random.default_rng(seed)
    sizes = [view.camera.sizes[0] for view in links.views]
    dense = {i: _dense(second[i], sizes[i], max(1, stride // 8)) for i in {pair.second for pair in matches}}
    same, random, errors = [], [], []
    for pair in matches:
        f = sample_map(maps[pair.first], pair.a, sizes[pair.first])
        g = sample_map(second[pair.second], pair.b, sizes[pair.second])
        same.append((f * g).sum(1))
        random.append((f * g[torch.from_numpy(rng.permutation(len(g)))]).sum(1))
        h, w = dense[pair.second].shape[1:]
        best = (f @ dense[pair.second].flatten(1)).argmax(1)
        found = torch.stack([(best % w + 0.5) / w, (best // w + 0.5) / h], dim=1) * sizes[pair.second]
        errors.append((found - pair.b).norm(dim=1))
    error = torch.cat(errors)
    margin = consistency_margin(torch.cat(same).numpy(), torch.cat(random).numpy())
    return {"consistency_margin": margin} | {k: float((error <= far).float().mean()) for k, far in within.items()}


def _dense(cells: Tensor, size: Tensor, step: int) -> Tensor:
    """[D, h, w] unit features of every `step`-th pixel of an image of `size` (width, height)."""
    width, height = (int(side) // step for side in size)
    return normalize(interpolate(cells[None], (height, width), mode="bilinear")[0], dim=0)
