"""Both networks, what one step of joint training sees, and its losses.

The 3D network's voxel features are volume-rendered into the cells of the views through ray operators, and must
agree there with the features of the 2D network. Four terms (weights in `PretrainParams`):

- `cells`: InfoNCE between rendered cells and multi-view-lifted teacher cells;
- `voxels`: the same before rendering, voxel by voxel;
- `agree`: InfoNCE between the student's cells and the rendered cells, end to end through both networks;
- `prior`: ties the student to the frozen network, so that agreement cannot be had by a constant.
"""

from __future__ import annotations

import torch
from torch import Tensor

from condense.batches import Batch
from condense.losses import false_negatives, info_nce, prior_loss
from condense.model import Model, student_cells
from condense.params import PretrainParams
from condense.voxels import input_features

SOLID = 0.5  # cells of at least this opacity show the capture, not what is behind it


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
