"""The losses of joint training.

The 3D network's voxel features are volume-rendered into the cells of the views through ray operators, and must
agree there with the features of the 2D network. Five terms (weights in `PretrainParams`):

- `cells`: rendered cells against multi-view-lifted teacher cells;
- `voxels`: the same before rendering, voxel by voxel;
- `agree`: the student's cells against the rendered cells, end to end through both networks;
- `views`: the student's cells against the lifted teacher cells, which hold what all views say of a place;
- `prior`: ties the student to the frozen network, so that agreement cannot be had by a constant.

All but the last are InfoNCE. Switches in `PretrainParams` make the ablations: other targets, another form of
agreement, another link between cells and voxels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from condense.batches import Batch
from condense.losses import false_negatives, info_nce, prior_loss
from condense.model import Model, batch_features, student_cells
from condense.params import PretrainParams
from condense.rayoperator import heaviest

SOLID = 0.5  # cells of at least this opacity show the capture, not what is behind it

Terms = tuple[dict[str, Tensor], dict[str, Tensor]]


def losses(model: Model, batch: Batch, params: PretrainParams, generator: torch.Generator) -> Terms:
    """The terms of one step, and the matched features they were computed from.

    Args:
        model: both networks, in training mode.
        batch: of `draw_batch`.
        params: temperature, sample sizes and switches.
        generator: draws the rows that are contrasted.

    Returns:
        {"cells", "voxels", "agree", "views", "prior"}, each a scalar, differentiable in one network or, "agree"
        without `params.detach_render`, in both; and {"student", "rendered", "target"}, the rows
        [M, D] of "agree", detached. Terms of weight 0 are left out, and the student does not run without
        the last three.
    """
    features = batch_features(model.net3d, batch.voxels, batch.visible)  # [N, D]
    operator = batch.operator if params.link == "render" else heaviest(batch.operator)
    rendered, opacity = operator.render(features), operator.opacity  # [rows, D], [rows]
    solid = opacity >= SOLID
    target = operator.render(batch.lifted) / opacity.clamp_min(1e-6)[:, None] if params.lifted else batch.teacher
    cells = some_rows(solid, params.cells, generator)
    inside = some_rows(batch.seen > params.seen_at_least, params.cells, generator)
    terms = {
        "cells": agreement(rendered[cells], target[cells], target[cells], params),
        "voxels": agreement(features[inside], batch.lifted[inside], batch.lifted[inside], params),
    }
    matched = {"rendered": rendered[cells], "target": target[cells]}
    if params.agree_weight or params.views_weight or params.prior_weight:
        here = solid[batch.student_rows]
        own = some_rows(here, params.cells, generator)  # among the student's cells
        rows = batch.student_rows[own]
        student = student_cells(model.student, batch.images, batch.recolour)  # [K, D]
        render = rendered[rows].detach() if params.detach_render else rendered[rows]
        tied = torch.where(here[:, None], target[batch.student_rows], batch.teacher[batch.student_rows])
        outside = prior_loss(student[~here], tied[~here])
        terms["agree"] = agreement(student[own], render, target[rows], params)
        terms["views"] = agreement(student[own], target[rows], target[rows], params)
        terms["prior"] = prior_loss(student[here], tied[here]) + params.background * outside
        matched = {"student": student[own], "rendered": rendered[rows], "target": target[rows]}
    weighed = {name: term for name, term in terms.items() if getattr(params, f"{name}_weight")}
    return weighed, {name: values.detach() for name, values in matched.items()}


def agreement(a: Tensor, b: Tensor, teacher: Tensor, params: PretrainParams) -> Tensor:
    """How far matched rows [M, D] are from each other: InfoNCE, or 1 - cosine (`params.consistency`).

    Pairs of other rows that look alike to the `teacher` [M, D] do not repel each other.
    """
    if params.consistency == "cosine":
        return (1 - cosine_similarity(a, b, dim=1)).mean()
    return info_nce(a, b, params.temperature, false_negatives(teacher, params.drop_above))


def some_rows(wanted: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Up to `most` of the rows where `wanted` [R] is True, drawn without replacement."""
    rows = torch.nonzero(wanted)[:, 0]
    return rows[torch.randperm(len(rows), generator=generator)[:most]]


def total_loss(terms: dict[str, Tensor], params: PretrainParams) -> Tensor:
    """The sum of the terms, each times its weight in `params`."""
    return torch.stack([getattr(params, f"{name}_weight") * term for name, term in terms.items()]).sum()
