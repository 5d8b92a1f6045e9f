"""Both networks, what one step of joint training sees, and its losses.

The 3D network's voxel features are volume-rendered into the cells of the views through ray operators, and must
agree there with the features of the 2D network. Four terms (weights in `PretrainParams`):

- `cells`: InfoNCE between rendered cells and multi-view-lifted teacher cells;
- `voxels`: the same before rendering, voxel by voxel;
- `agree`: InfoNCE between the student's cells and the rendered cells, end to end through both networks;
- `prior`: ties the student to the frozen network, so that agreement cannot be had by a constant.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from condense.backbone2d import ImageBackbone, load_backbone, save_backbone
from condense.backbone3d import SparseUNet, load_net3d, recalibrate_batch_norm, save_net3d
from condense.links import Links, as_batch
from condense.losses import false_negatives, info_nce, prior_loss
from condense.params import PretrainParams
from condense.rayoperator import RayOperator, stack_operators
from condense.voxels import VoxelBatch, VoxelScene, batch_scenes, input_features, random_turn

SOLID = 0.5  # cells of at least this opacity show the capture, not what is behind it


class Model(nn.Module):
    """The two networks, one embedding space.

    Args:
        student: images -> cells; starts as a copy of the frozen network.
        net3d: voxels -> features of the same length.
    """

    def __init__(self, student: ImageBackbone, net3d: SparseUNet) -> None:
        super().__init__()
        self.student, self.net3d = student, net3d


def new_model(teacher: ImageBackbone, seed: int) -> Model:
    """The model before training: the student a copy of `teacher`, the 3D network with random weights."""
    return Model(copy.deepcopy(teacher), SparseUNet(out_channels=teacher.dim, seed=seed))


@dataclass(frozen=True)
class Batch:
    """What one step sees: captures x views, rows of `operator` in that order.

    Args:
        voxels: the captures' scenes, turned and recoloured.
        visible: [N] 1 where the 3D network sees the colour.
        operator: [rows, N] of all views of all captures.
        images: of the views the student sees, each [H, W, 3] uint8.
        recolour: of each such image, an affine map of colours [3, 4].
        student_rows: [K] rows of `operator` that the student's cells are, in the order of `images`.
        teacher: [K, D] the frozen network's features there.
        lifted: [N, D] and
        seen: [N]: see `Links`.
    """

    voxels: VoxelBatch
    visible: Tensor
    operator: RayOperator
    images: list[Tensor]
    recolour: list[Tensor]
    student_rows: Tensor
    teacher: Tensor
    lifted: Tensor
    seen: Tensor


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
    chosen = _that_fit([captures[i] for i in rng.permutation(len(captures))], params.captures, params.voxels)
    operators, images, rows, teacher, colours, visible = [], [], [], [], [], []
    first = 0
    for links in chosen:
        views = [links.views[i] for i in rng.permutation(len(links.views))[: params.views]]
        operators.append(stack_operators([view.operator for view in views], block_diagonal=False))
        for place, view in enumerate(views):
            cells = view.cells[0] * view.cells[1]
            if place < params.student_views:
                images.append(view.image)
                teacher.append(view.teacher)
                rows.append(torch.arange(first, first + cells))
            first += cells
        colours.append(recoloured(links.scene.colour, draw_recolour(rng, params.recolour)))
        hidden = rng.uniform() if rng.uniform() < params.hide_colour else 0.0  # share of voxels without colour
        visible.append(torch.from_numpy(rng.uniform(size=len(links.scene)) >= hidden).float())
    voxels = batch_scenes([links.scene for links in chosen], [random_turn(rng) for _ in chosen])
    return Batch(
        voxels=dataclasses.replace(voxels, colour=torch.cat(colours)),
        visible=torch.cat(visible),
        operator=stack_operators(operators),
        images=images,
        recolour=[draw_recolour(rng, params.recolour_images) for _ in images],
        student_rows=torch.cat(rows),
        teacher=torch.cat(teacher).float(),
        lifted=torch.cat([links.lifted for links in chosen]),
        seen=torch.cat([links.seen for links in chosen]),
    )


def _that_fit(captures: Sequence[Links], most: int, voxels: int) -> list[Links]:
    """The first `most` captures that have `voxels` together; the very first in any case."""
    chosen: list[Links] = []
    for links in captures:
        voxels -= len(links.scene)
        if len(chosen) < most and (voxels >= 0 or not chosen):
            chosen.append(links)
        else:
            voxels += len(links.scene)
    return chosen


def student_cells(student: nn.Module, images: Sequence[Tensor], recolour: Sequence[Tensor] | None = None) -> Tensor:
    """Features [cells of all images, D], image by image, row-major; images of one size run together.

    Args:
        student: an `ImageBackbone`.
        images: each [H, W, 3] uint8.
        recolour: of each image, or None.
    """
    parts: dict[int, Tensor] = {}
    for size in sorted({tuple(image.shape) for image in images}):
        group = [i for i, image in enumerate(images) if tuple(image.shape) == size]
        batch = as_batch([images[i] for i in group])
        if recolour is not None:
            maps = torch.stack([recolour[i] for i in group])  # [B, 3, 4]
            batch = torch.einsum("bij,bjhw->bihw", maps[:, :, :3], batch) + maps[:, :, 3, None, None]
            batch = batch.clamp(0, 1)
        features = student(batch).flatten(2).transpose(1, 2)  # [B, h w, D]
        parts |= dict(zip(group, features, strict=True))
    return torch.cat([parts[i] for i in range(len(images))])


def losses(
    model: Model, batch: Batch, params: PretrainParams, generator: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The terms of one step, and the matched features they were computed from.

    Args:
        model: both networks, in training mode.
        batch: of `draw_batch`.
        params: temperature, sample sizes and switches.
        generator: draws the rows that are contrasted.

    Returns:
        {"cells", "voxels", "agree", "prior"}, each a scalar, differentiable in both networks ("agree" in the
        3D network only without `params.detach_render`); and {"student", "rendered", "target"}, the rows
        [M, D] of "agree", detached.
    """
    voxels = batch.voxels
    features = model.net3d(voxels.coords, input_features(voxels, batch.visible), voxels.shape, len(voxels.sizes))
    rendered = batch.operator.render(features)  # [rows, D]
    opacity = batch.operator.opacity
    solid = opacity >= SOLID
    target = batch.operator.render(batch.lifted) / opacity.clamp_min(1e-6)[:, None]  # [rows, D]
    student = student_cells(model.student, batch.images, batch.recolour)  # [K, D]

    def contrast(a: Tensor, b: Tensor, teacher: Tensor) -> Tensor:
        return info_nce(a, b, params.temperature, false_negatives(teacher, params.drop_above))

    cells = _some(solid, params.cells, generator)
    inside = _some(batch.seen > params.seen_at_least, params.cells, generator)
    here = solid[batch.student_rows]
    own = _some(here, params.cells, generator)  # among the student's cells
    rows = batch.student_rows[own]
    render = rendered[rows].detach() if params.detach_render else rendered[rows]
    tied = torch.where(here[:, None], target[batch.student_rows], batch.teacher)
    terms = {
        "cells": contrast(rendered[cells], target[cells], target[cells]),
        "voxels": contrast(features[inside], batch.lifted[inside], batch.lifted[inside]),
        "agree": contrast(student[own], render, target[rows]),
        "prior": prior_loss(student[here], tied[here]) + params.background * prior_loss(student[~here], tied[~here]),
    }
    matched = {"student": student[own], "rendered": rendered[rows], "target": target[rows]}
    return terms, {name: values.detach() for name, values in matched.items()}


def _some(wanted: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Up to `most` of the rows where `wanted` [R] is True, drawn without replacement."""
    rows = torch.nonzero(wanted)[:, 0]
    return rows[torch.randperm(len(rows), generator=generator)[:most]]


def total_loss(terms: dict[str, Tensor], params: PretrainParams) -> Tensor:
    """The weighted sum of the terms."""
    weights = {
        "cells": params.cells_weight,
        "voxels": params.voxels_weight,
        "agree": params.agree_weight,
        "prior": params.prior_weight,
    }
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def save_model(folder: Path, model: Model) -> None:
    """Writes both networks."""
    save_backbone(model.student, folder / "student.safetensors")
    save_net3d(model.net3d, folder)


def load_model(folder: Path) -> Model:
    """Reads what `save_model` wrote, in evaluation mode."""
    return Model(load_backbone(folder / "student.safetensors"), load_net3d(folder)).eval()


def network_inputs(scenes: Sequence[VoxelScene]) -> tuple[Tensor, Tensor, tuple[int, int, int], int]:
    """The arguments of the 3D network for whole scenes, as captured."""
    batch = batch_scenes(scenes)
    return batch.coords, input_features(batch), batch.shape, len(scenes)


def recalibrate(net3d: SparseUNet, scenes: Sequence[VoxelScene], size: int) -> None:
    """Batch-norm statistics from these scenes without augmentation, `size` at a time."""
    recalibrate_batch_norm(net3d, (network_inputs(scenes[i : i + size]) for i in range(0, len(scenes), size)))


@torch.no_grad()
def voxel_features(net3d: SparseUNet, scenes: Sequence[VoxelScene], size: int = 8) -> list[Tensor]:
    """Features [N, D] of each scene, evaluation mode, `size` scenes at a time."""
    net3d.eval()
    result: list[Tensor] = []
    for start in range(0, len(scenes), size):
        some = scenes[start : start + size]
        result += net3d(*network_inputs(some)).split([len(scene) for scene in some])
    return result
