"""What one step of key-point training sees: a few views of each capture, voxels seen in them, scenes twice.

The geometry alone says what belongs together: a voxel that weighs in the ray operators of several views shows at its
projection in each. No label is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from condense.batches import draw_recolour, recoloured
from condense.links import LinkedView, Links
from condense.params import SparseParams
from condense.rayoperator import RayOperator, stack_operators
from condense.sparse import view_weights
from condense.voxels import Turn, VoxelBatch, VoxelScene, batch_scenes, cell_means, random_turn
from condense.warps import draw_map, warped


@dataclass(frozen=True)
class SparseBatch:
    """Captures x V views, and the scenes of some captures, twice.

    Args:
        images: [captures V] each [3, H, W] float in [0, 1]; light and background changed.
        copies: [captures] each capture's first image once more, in another light and before another background, under
        warps: [captures, 2, 3], affine maps.
        covers: [captures] each [H, W] in [0, 1], what of the first image shows the capture.
        inside: of each image, [h w] bool, the cells within its own mask; None for captures without a scene here.
        cells: (h, w) of each image's feature map.
        pixels: [S, V, 2] where each sampled voxel shows in its capture's views (x, y).
        weights: [S, V] how much of each view it makes up; 0 where it is hidden or outside.
        owner: [S] the number of each sample's capture.
        places: [S, 3] the samples' grid coordinates, in voxels.
        voxels: the scenes of the first captures, turned and recoloured, then their second copies, turned, recoloured
            and cropped otherwise.
        visible: [M] 1 where the 3D network sees the colour.
        operator: [rows, N] of all views of the captures with scenes, over the voxels of the first copies.
        samples: [S] the samples' rows in the first copies; -1 for captures without a scene here,
        twins: and in the second ones; -1 also for a voxel that was cropped away.
        target: [N, D] lifted features of the first copies.
        seen: [N] see `Links`.
    """

    images: list[Tensor]
    copies: list[Tensor]
    warps: Tensor
    covers: list[Tensor]
    inside: list[Tensor]
    cells: list[tuple[int, int]]
    pixels: Tensor
    weights: Tensor
    owner: Tensor
    places: Tensor
    voxels: VoxelBatch
    visible: Tensor
    operator: RayOperator
    samples: Tensor
    twins: Tensor
    target: Tensor
    seen: Tensor

    def to(self, target: Any) -> SparseBatch:
        """The same batch on another device."""
        moved = ("warps", "pixels", "weights", "owner", "places", "voxels", "visible", "operator", "samples", "twins")
        return dataclasses.replace(
            self,
            images=[image.to(target) for image in self.images],
            copies=[image.to(target) for image in self.copies],
            covers=[cover.to(target) for cover in self.covers],
            inside=[cells.to(target) for cells in self.inside],
            **{name: getattr(self, name).to(target) for name in (*moved, "target", "seen")},
        )


def draw_sparse(captures: Sequence[Links], params: SparseParams, seed: int, step: int) -> SparseBatch:
    """The batch of a step; what is drawn depends on (seed, step) alone."""
    rng = np.random.default_rng([seed, step, 3])
    chosen = [captures[i] for i in rng.permutation(len(captures))[: params.captures]]
    views = [draw_views(links, params.views, rng) for links in chosen]
    solid = _that_fit(chosen, params.voxels)
    copies = [cropped(links.scene, rng, params.crop) for links in solid]
    scenes = [links.scene for links in solid] + [scene for scene, _ in copies]
    # never mirrored: an image shows which side is left
    voxels = batch_scenes(scenes, [Turn(random_turn(rng, params.any_angle).angle) for _ in scenes])
    colours = [_repainted(scene, rng, params) for scene in scenes]
    first = np.cumsum([0, *(len(scene) for scene in scenes)])
    parts: list[tuple[Tensor, ...]] = []
    for number, (links, some) in enumerate(zip(chosen, views, strict=True)):
        rows, pixels, weights = co_visible(links, some, params.samples, rng)
        samples = twins = torch.full((len(rows),), -1)
        if number < len(solid):
            kept = copies[number][1]
            samples = rows + int(first[number])
            place = torch.cumsum(kept, 0)[rows] - 1 + int(first[len(solid) + number])
            twins = torch.where(kept[rows], place, -1)
        owner = torch.full((len(rows),), number)
        parts.append((pixels, weights, owner, links.scene.coords[rows].float(), samples, twins))
    pixels, weights, owner, places, samples, twins = (torch.cat(part) for part in zip(*parts, strict=True))
    stacked = [stack_operators([v.operator for v in some], block_diagonal=False) for some in views[: len(solid)]]
    images = [relit(view, rng, params) for some in views for view in some]
    warps, firsts = [draw_map(rng) for _ in views], [some[0] for some in views]
    return SparseBatch(
        images=images,
        copies=[warped(relit(view, rng, params), by, "border") for view, by in zip(firsts, warps, strict=True)],
        warps=torch.stack(warps),
        covers=[view.mask.float() / 255 for view in firsts],
        inside=[view.foreground for some in views for view in some],
        cells=[view.cells for some in views for view in some],
        pixels=pixels,
        weights=weights,
        owner=owner,
        places=places,
        voxels=dataclasses.replace(voxels, colour=cell_means(torch.cat(colours), voxels.rows, len(voxels.coords))),
        visible=_visible(voxels, rng, params.hide_colour),
        operator=stack_operators(stacked),
        samples=samples,
        twins=twins,
        target=torch.cat([links.lifted for links in solid]),
        seen=torch.cat([links.seen for links in solid]),
    )


def _that_fit(chosen: Sequence[Links], voxels: int) -> list[Links]:
    """The first captures that have `voxels` together; the very first in any case."""
    total = np.cumsum([len(links.scene) for links in chosen])
    return list(chosen[: max(1, int((total <= voxels).sum()))])


def draw_views(links: Links, count: int, rng: np.random.Generator) -> list[LinkedView]:
    """`count` views in random order, some of them again where a capture has fewer."""
    order = rng.permutation(len(links.views))
    return [links.views[i] for i in np.resize(order, count)]


def co_visible(
    links: Links, views: Sequence[LinkedView], count: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Up to `count` voxels that at least two views see, more likely the more they weigh in the second of them.

    Returns:
        rows [S] of the scene's voxels; pixels [S, V, 2] where they show; weights [S, V], see `view_weights`.
    """
    pixels, weights = view_weights(links.scene, views)
    shared = weights.topk(2, dim=1).values[:, 1]
    possible = torch.nonzero(shared > 0)[:, 0].numpy()
    share = shared[possible].double().numpy()
    number = min(count, len(possible))
    picked = rng.choice(possible, number, replace=False, p=share / share.sum()) if number else possible
    rows = torch.from_numpy(np.sort(picked))
    return rows, pixels[rows], weights[rows]


def cropped(scene: VoxelScene, rng: np.random.Generator, share: float) -> tuple[VoxelScene, Tensor]:
    """With probability `share` the part of a scene on one side of a random upright plane, else all of it.

    Returns:
        The scene, at least 4 in 10 of its voxels, and [N] bool, which they are.
    """
    angle, keep = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 0.9)
    along = scene.coords[:, :2].float() @ torch.tensor([np.cos(angle), np.sin(angle)]).float()
    kept = torch.ones(len(scene), dtype=torch.bool)
    if rng.uniform() < share:
        kept = along <= along.quantile(keep)
    return VoxelScene(scene.coords[kept], scene.density[kept], scene.colour[kept], scene.grid), kept


def _repainted(scene: VoxelScene, rng: np.random.Generator, params: SparseParams) -> Tensor:
    strength = params.recolour_strong if rng.uniform() < params.repaint else params.recolour
    return recoloured(scene.colour, draw_recolour(rng, strength))


def _visible(voxels: VoxelBatch, rng: np.random.Generator, share: float) -> Tensor:
    hidden = torch.from_numpy(rng.uniform(size=len(voxels.sizes)) < share)
    return (~hidden[voxels.coords[:, 0].long()]).float()


def relit(view: LinkedView, rng: np.random.Generator, params: SparseParams) -> Tensor:
    """The image [3, H, W] in [0, 1] under another light, and in a share of draws before another background.

    The light has another brightness, which changes linearly across the image, and another colour.
    """
    image = view.image.float() / 255
    height, width = image.shape[:2]
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    bright, slope = rng.uniform(-params.light, params.light), rng.uniform(-params.light, params.light, 2)
    colour = 1 + torch.from_numpy(rng.uniform(-params.white_balance, params.white_balance, 3)).float()
    image = (image * (1 + bright + slope[0] * x + slope[1] * y)[:, :, None] * colour).clamp(0, 1)
    other = torch.from_numpy(rng.uniform(0, 1, (3, 3, 3))).float()  # a smooth random background
    if rng.uniform() < params.replace_background:
        cover = view.mask[:, :, None].float() / 255
        behind = interpolate(other[None], (height, width), mode="bilinear")[0].permute(1, 2, 0)
        image = cover * image + (1 - cover) * behind
    return image.permute(2, 0, 1)
