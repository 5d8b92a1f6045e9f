"""Other ways of pre-training the same 3D network on the same captures, in the same loop.

Each is a function like `joint.losses`; none trains a 2D network. Every one is reduced to its idea, so that what
differs is the idea and not the network, the data or the schedule.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from condense.batches import Batch
from condense.joint import SOLID, Terms, agreement, some_rows
from condense.model import Model, batch_features
from condense.params import BaselinesParams, PretrainParams
from condense.rayoperator import heaviest


def distill(model: Model, batch: Batch, params: PretrainParams, generator: torch.Generator) -> Terms:
    """Rendered distillation: rendered cells against the frozen network's features of the same view.

    As the feature fields of Kobayashi et al. (NeurIPS 2022), but by a network across scenes, and contrasted, which
    did better than a cosine here. Every view has its own targets: nothing is lifted.
    """
    features = batch_features(model.net3d, batch.voxels, batch.visible)
    cells = some_rows(batch.operator.opacity >= SOLID, params.cells, generator)
    return _contrast(batch.operator.render(features)[cells], batch.teacher[cells], params)


def pixel_voxel(model: Model, batch: Batch, params: PretrainParams, generator: torch.Generator) -> Terms:
    """Pixel-to-voxel contrast: each cell's feature against that of the one voxel it mostly sees.

    As PPKT (Liu et al. 2021) and SLidR (Sautier et al., CVPR 2022) do with points; no rendering.
    """
    features = batch_features(model.net3d, batch.voxels, batch.visible)
    operator = heaviest(batch.operator)
    cells = some_rows(operator.opacity >= SOLID, params.cells, generator)
    return _contrast(features[operator.col[operator.crow[cells].long()].long()], batch.teacher[cells], params)


def _contrast(features: Tensor, teacher: Tensor, params: PretrainParams) -> Terms:
    terms = {"cells": agreement(features, teacher, teacher, params)}
    return terms, {"rendered": features.detach(), "target": teacher}


def render_rgbd(model: Model, batch: Batch, params: PretrainParams, generator: torch.Generator) -> Terms:
    """Rendered colour and depth: rendered cells, decoded, must give the cell's colour and the surface's depth.

    As Ponder (Huang et al., ICCV 2023), with the densities of the fitted field. The network sees the colours of
    some voxels only (`params.hide_colour`), else colour would be a matter of copying. Depth is measured from the
    middle of the scene, along the ray, in grid sides.
    """
    assert model.decoder is not None
    features = batch_features(model.net3d, batch.voxels, batch.visible)
    opacity = batch.operator.opacity
    cells = some_rows(opacity >= SOLID, params.cells, generator)
    rendered = batch.operator.render(features)[cells] / opacity[cells, None]
    directions, depth = (part.to(rendered) for part in _depths(batch))
    decoded = model.decoder(torch.cat([rendered, directions[cells]], dim=1))  # [M, 4]
    terms = {
        "colour": (decoded[:, :3] - _cell_colours(batch).to(decoded)[cells]).abs().mean(),
        "depth": (decoded[:, 3] - depth[cells]).abs().mean(),
    }
    return terms, {"rendered": rendered.detach()}


def make_decoder(dim: int, seed: int, width: int = 64) -> nn.Module:
    """From a rendered feature [dim] and the ray's direction [3] to RGB and depth [4], for `render_rgbd`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(dim + 3, width), nn.ReLU(), nn.Linear(width, 4))


def _cell_colours(batch: Batch) -> Tensor:
    """[rows, 3] mean colour of the capture's pixels in each cell."""
    parts = []
    for view in (view for views in batch.views for view in views):
        share = view.mask[None].float() / 255  # [1, H, W]
        light = view.image.permute(2, 0, 1).float() / 255 * share
        mean = adaptive_avg_pool2d(torch.cat([light, share]), view.cells).flatten(1)  # [4, cells]
        parts.append((mean[:3] / mean[3:].clamp_min(1e-6)).T)
    return torch.cat(parts)


def _depths(batch: Batch) -> tuple[Tensor, Tensor]:
    """Directions [rows, 3] of the cells' rays in the turned scenes, and the depth [rows] of what they see."""
    directions, depths = [], []
    for links, views, turn in zip(batch.captures, batch.views, batch.turns, strict=True):
        centres = links.scene.coords.float() + 0.5
        for view in views:
            ray = view.camera.grid_rays(0, *view.cells)[1]  # [cells, 3]
            seen = view.operator.render(centres - centres.mean(0)) / view.operator.opacity.clamp_min(1e-6)[:, None]
            depths.append((seen * ray).sum(1) / max(links.scene.grid.shape))  # the same before and after the turn
            directions.append(ray @ turn.matrix.to(ray).T)
    return torch.cat(directions), torch.cat(depths)


def settings_of(method: str, params: PretrainParams, baselines: BaselinesParams) -> PretrainParams:
    """The settings of a method: those of joint training, but for what `baselines` names."""
    return dataclasses.replace(params, **dataclasses.asdict(getattr(baselines, method)))
