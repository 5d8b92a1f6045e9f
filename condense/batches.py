"""What one step of pre-training sees: some captures, turned and recoloured, and some of their views."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from condense.links import LinkedView, Links
from condense.linkset import voxels_of
from condense.params import PretrainParams
from condense.rayoperator import RayOperator, stack_operators
from condense.voxels import Turn, VoxelBatch, batch_scenes, cell_means, random_turn


@dataclass(frozen=True)
class Batch:
    """What one step sees: captures x views, rows of `operator` in that order.

    Args:
        voxels: the captures' scenes, turned and recoloured.
        visible: [M] 1 where the 3D network sees the colour.
        captures: the captures, in the order of `voxels`,
        turns: and how each was turned.
        views: of each capture, in the order of the rows.
        operator: [rows, N] of all views of all captures.
        images: of the views the student sees, each [H, W, 3] uint8.
        recolour: of each such image, an affine map of colours [3, 4].
        student_rows: [K] rows of `operator` that the student's cells are, in the order of `images`.
        teacher: [rows, D] the frozen network's features.
        lifted: [N, D] and
        seen: [N]: see `Links`.
    """

    voxels: VoxelBatch
    visible: Tensor
    captures: list[Links]
    turns: list[Turn]
    views: list[list[LinkedView]]
    operator: RayOperator
    images: list[Tensor]
    recolour: list[Tensor]
    student_rows: Tensor
    teacher: Tensor
    lifted: Tensor
    seen: Tensor

    def to(self, target: Any) -> Batch:
        """All that the networks and losses compute with on another device; captures, views and images stay."""
        moved = ("voxels", "visible", "operator", "student_rows", "teacher", "lifted", "seen")
        return dataclasses.replace(self, **{name: getattr(self, name).to(target) for name in moved})


def draw_recolour(rng: np.random.Generator, strength: float) -> Tensor:
    """A random affine map of colours [3, 4]: hue turned, saturation, contrast and brightness changed.

    0 leaves colours alone; at 1 the hue may turn all the way round.
    """
    angle, saturation = rng.uniform(-math.pi, math.pi) * strength, 1 + rng.uniform(-0.6, 0.6) * strength
    contrast, brightness = 1 + rng.uniform(-0.4, 0.4) * strength, rng.uniform(-0.2, 0.2, 3) * strength
    grey = np.full((3, 3), 1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    turn = grey + saturation * (math.cos(angle) * (np.eye(3) - grey) + math.sin(angle) * cross)  # about grey
    linear = contrast * turn
    offset = 0.5 - linear @ np.full(3, 0.5) + brightness  # mid-grey moves by the brightness only
    return torch.from_numpy(np.concatenate([linear, offset[:, None]], axis=1)).float()


def recoloured(colour: Tensor, recolour: Tensor) -> Tensor:
    """Colours [..., 3] in [0, 1] through an affine map [3, 4]."""
    return (colour @ recolour[:, :3].T + recolour[:, 3]).clamp(0, 1)


def draw_batch(captures: Sequence[Links], params: PretrainParams, seed: int, step: int) -> Batch:
    """The batch of a step: captures in random order, while they fit; fewer than wanted are all taken."""
    rng = np.random.default_rng([seed, step])
    order = rng.permutation(len(captures)).tolist()
    chosen = [captures[place] for place in _that_fit(captures, order, params.captures, params.voxels)]
    operators, views, images, rows, colours = [], [], [], [], []
    first = 0
    for links in chosen:
        some = [links.views[i] for i in rng.permutation(len(links.views))[: params.views]]
        operators.append(stack_operators([view.operator for view in some], block_diagonal=False))
        for place, view in enumerate(some):
            cells = len(view.teacher)
            if place < params.student_views:
                images.append(view.image)
                rows.append(torch.arange(first, first + cells))
            first += cells
        views.append(some)
        colours.append(recoloured(links.scene.colour, draw_recolour(rng, params.recolour)))
    turns = [random_turn(rng, params.any_angle) for _ in chosen]
    voxels = batch_scenes([links.scene for links in chosen], turns)
    return Batch(
        voxels=dataclasses.replace(voxels, colour=cell_means(torch.cat(colours), voxels.rows, len(voxels.coords))),
        visible=draw_visible(rng, voxels, params),
        captures=chosen,
        turns=turns,
        views=views,
        operator=stack_operators(operators),
        images=images,
        recolour=[draw_recolour(rng, params.recolour_images) for _ in images],
        student_rows=torch.cat(rows),
        teacher=torch.cat([view.teacher for some in views for view in some]).float(),
        lifted=torch.cat([links.lifted for links in chosen]),
        seen=torch.cat([links.seen for links in chosen]),
    )


def draw_visible(rng: np.random.Generator, voxels: VoxelBatch, params: PretrainParams) -> Tensor:
    """[M] 0 where a voxel's colour is hidden: in a share `hide_colour` of the scenes, some share of their voxels."""
    hidden = [rng.uniform() if rng.uniform() < params.hide_colour else 0.0 for _ in voxels.sizes]
    share = torch.tensor(hidden)[voxels.coords[:, 0].long()]
    return (torch.from_numpy(rng.uniform(size=len(share))) >= share).float()


def _that_fit(captures: Sequence[Links], order: Sequence[int], most: int, voxels: int) -> list[int]:
    """The first `most` captures that have `voxels` together; the very first in any case."""
    chosen: list[int] = []
    for place in order:
        if len(chosen) == most:
            break
        size = voxels_of(captures, place)
        if size <= voxels or not chosen:
            chosen.append(place)
            voxels -= size
    return chosen
