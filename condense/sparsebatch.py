"""What one step of key-point training sees: pairs of views, the voxels seen in both, and a second copy of each scene.

The geometry alone says what belongs together: a voxel that weighs in the ray operators of two views shows at its
projection in both. No label is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from condense.batches import draw_recolour, recoloured
from condense.links import LinkedView, Links
from condense.params import SparseParams
from condense.rayoperator import RayOperator, stack_operators
from condense.voxels import Turn, VoxelBatch, VoxelScene, batch_scenes, cell_means, random_turn


@dataclass(frozen=True)
class SparseBatch:
    """Captures x two views, and the captures' scenes twice.

    Args:
        voxels: the scenes, turned and recoloured, then their second copies, turned, recoloured and cropped otherwise.
        visible: [M] 1 where the 3D network sees the colour.
        operator: [rows, N] of both views of all captures, over the voxels of the first copies.
        images: [2 captures] each [3, H, W] float in [0, 1], in the order of the rows; light and background changed.
        cells: (h, w) of each image's feature map.
        inside: [rows] bool, cells within the image's own mask.
        pixels: [S, 2, 2] where each sampled voxel shows in each of its capture's two views (x, y).
        samples: [S] the sampled voxels' rows in the first copies,
        twins: and in the second ones; -1 for a voxel that was cropped away.
        owner: [S] the number of each sample's capture.
        places: [S, 3] the samples' grid coordinates, in voxels.
        target: [N, D] lifted features of the first copies.
        seen: [N] see `Links`.
    """

    voxels: VoxelBatch
    visible: Tensor
    operator: RayOperator
    images: list[Tensor]
    cells: list[tuple[int, int]]
    inside: Tensor
    pixels: Tensor
    samples: Tensor
    twins: Tensor
    owner: Tensor
    places: Tensor
    target: Tensor
    seen: Tensor


def draw_sparse(captures: Sequence[Links], params: SparseParams, seed: int, step: int) -> SparseBatch:
    """The batch of a step; what is drawn depends on (seed, step) alone."""
    rng = np.random.default_rng([seed, step, 3])
    chosen = _that_fit([captures[i] for i in rng.permutation(len(captures))], params)
    pairs = [view_pair(links, rng) for links in chosen]
    scenes, kept = zip(*(cropped(links.scene, rng, params.crop) for links in chosen), strict=True)
    copies = [links.scene for links in chosen] + list(scenes)
    # never mirrored: an image shows which side is left
    turns = [Turn(random_turn(rng, params.any_angle).angle) for _ in copies]
    voxels = batch_scenes(copies, turns)
    colours = [_repainted(scene, rng, params) for scene in copies]
    first = np.cumsum([0, *(len(scene) for scene in copies)])
    samples, twins, pixels, owner, places = [], [], [], [], []
    for number, (links, pair) in enumerate(zip(chosen, pairs, strict=True)):
        picked, at = co_visible(links, pair, params.samples, rng)
        samples.append(picked + int(first[number]))
        place = torch.cumsum(kept[number], 0)[picked] - 1 + int(first[len(chosen) + number])
        twins.append(torch.where(kept[number][picked], place, -1))
        pixels.append(at)
        owner.append(torch.full((len(picked),), number))
        places.append(links.scene.coords[picked].float())
    views = [view for pair in pairs for view in pair]
    operators = [stack_operators([v.operator for v in pair], block_diagonal=False) for pair in pairs]
    return SparseBatch(
        voxels=dataclasses.replace(voxels, colour=cell_means(torch.cat(colours), voxels.rows, len(voxels.coords))),
        visible=_visible(voxels, rng, params.hide_colour),
        operator=stack_operators(operators),
        images=[relit(view, rng, params) for view in views],
        cells=[view.cells for view in views],
        inside=torch.cat([view.foreground for view in views]),
        pixels=torch.cat(pixels),
        samples=torch.cat(samples),
        twins=torch.cat(twins),
        owner=torch.cat(owner),
        places=torch.cat(places),
        target=torch.cat([links.lifted for links in chosen]),
        seen=torch.cat([links.seen for links in chosen]),
    )


def _that_fit(captures: Sequence[Links], params: SparseParams) -> list[Links]:
    """The first captures that have `params.voxels` together, at most `params.captures`; the very first in any case."""
    chosen, left = [captures[0]], params.voxels - len(captures[0].scene)
    for links in captures[1:]:
        if len(chosen) < params.captures and len(links.scene) <= left:
            chosen.append(links)
            left -= len(links.scene)
    return chosen


def view_pair(links: Links, rng: np.random.Generator) -> tuple[LinkedView, LinkedView]:
    """A random view, and a random one of the half of the others that look most alike in direction."""
    views = links.views
    one = int(rng.integers(len(views)))
    axes = torch.stack([view.camera.T_world_from_camera[0, :3, 2] for view in views])
    near = (axes @ axes[one]).argsort(descending=True, stable=True)
    near = near[near != one][: max(1, len(views) // 2)]
    return views[one], views[int(near[rng.integers(len(near))])] if len(near) else views[one]


def co_visible(
    links: Links, pair: tuple[LinkedView, LinkedView], count: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Up to `count` voxels that both views see, more likely the more they weigh there, and where they show.

    Returns:
        rows [S] of the scene's voxels, and pixels [S, 2 views, 2].
    """
    weight = torch.minimum(*(view.operator.transpose.opacity for view in pair))
    shown = [view.camera.project(0, links.scene.centres) for view in pair]
    for view, (at, depth) in zip(pair, shown, strict=True):
        inside = (at > 0).all(1) & (at < view.camera.sizes[0]).all(1) & (depth > 0)
        weight = weight * inside
    possible = torch.nonzero(weight > 0)[:, 0].numpy()
    share = weight[possible].double().numpy()
    number = min(count, len(possible))
    picked = rng.choice(possible, number, replace=False, p=share / share.sum()) if number else possible
    rows = torch.from_numpy(np.sort(picked))
    return rows, torch.stack([at[rows] for at, _ in shown], dim=1)


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
    """The image [3, H, W] in [0, 1] under another light, and half of the time before another background.

    The light is a brightness that changes linearly across the image, and an affine map of colours.
    """
    image = recoloured(view.image.float() / 255, draw_recolour(rng, params.recolour))
    height, width = image.shape[:2]
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    slope = rng.uniform(-params.light, params.light, 2)
    image = (image * (1 + slope[0] * x + slope[1] * y)[:, :, None]).clamp(0, 1)
    other = torch.from_numpy(rng.uniform(0, 1, (3, 3, 3))).float()  # a smooth random background
    if rng.uniform() < params.replace_background:
        cover = view.mask[:, :, None].float() / 255
        behind = interpolate(other[None], (height, width), mode="bilinear")[0].permute(1, 2, 0)
        image = cover * image + (1 - cover) * behind
    return image.permute(2, 0, 1)
