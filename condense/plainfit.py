"""The plain way to fit a field, for benchmarks: a dense grid at full resolution, and autograd through every sample."""

from __future__ import annotations

import dataclasses
import time

import torch
from torch import Tensor
from torch.nn import functional

from condense.captures.capture import Views
from condense.field import Field, psnr_db
from condense.fieldfit import FOG
from condense.fieldrays import TrainingRays, choose_grid, refined, training_rays
from condense.grid import Grid
from condense.params import FieldsParams


def plain_fit(train: Views, test: Views, params: FieldsParams, goal: float, most: int = 150) -> tuple[float, float]:
    """Fits until the mean PSNR on `test` reaches `goal` dB, checked every 25 steps, or for `most` steps.

    The grid's box, pixels in a step, loss and learning rates are ours; no hull, no skipping of empty space, no
    coarse stage. Needs masks.

    Returns:
        Seconds of fitting, checks left out, and the PSNR reached.
    """
    grid = refined(choose_grid(train, params), params.resolutions[-1])
    generator = torch.Generator().manual_seed(0)
    started = time.perf_counter()
    rays = training_rays(train, dataclasses.replace(params, subrays=1), generator)
    x, y, z = grid.shape
    density = torch.full((1, 1, z, y, x), FOG / max(grid.shape)).requires_grad_()
    colour = torch.full((1, 3, z, y, x), 0.5).requires_grad_()
    optimizer = torch.optim.Adam(
        [{"params": [density], "lr": params.density_lr}, {"params": [colour], "lr": params.colour_lr}]
    )
    spent, reached = time.perf_counter() - started, 0.0
    for step in range(most):
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        chosen = torch.randint(len(rays.target), (params.pixels,), generator=generator)
        light, target = render_dense(density, colour, grid, rays, chosen), rays.target[chosen]
        missed = light[:, 3:] - target[:, 3:]
        loss = (light[:, :3] - target[:, :3] - missed).square().mean() + params.opacity * missed.square().mean()
        loss.backward()
        optimizer.step()
        spent += time.perf_counter() - started
        if (step + 1) % 25 == 0 or step + 1 == most:
            scores = psnr_db(_as_field(density, colour, grid, params.march), test)
            reached = sum(scores) / len(scores)
            if reached >= goal:
                break
    return spent, reached


def render_dense(density: Tensor, colour: Tensor, grid: Grid, rays: TrainingRays, chosen: Tensor) -> Tensor:
    """Premultiplied RGB and opacity [R, 4] of the `chosen` [R] rays through volumes [1, C, Z, Y, X], a voxel a step."""
    start, direction = grid.from_world(rays.origins[chosen]), rays.directions[chosen]
    size = torch.tensor(grid.shape).float()
    walls = torch.stack([-0.5 - start, size + 0.5 - start]) / direction  # where a voxel can first be felt
    near = walls.amin(0).amax(1).clamp_min(0)
    steps = int(size.norm()) + 2  # across the diagonal
    t = near[:, None] + torch.arange(steps) + 0.5  # [R, steps]
    place = 2 * (start[:, None] + t[..., None] * direction[:, None]) / size - 1
    place = place.view(1, 1, len(chosen), steps, 3)
    extinction = functional.grid_sample(density, place, align_corners=False)[0, 0, 0].relu()  # [R, steps]
    rgb = functional.grid_sample(colour, place, align_corners=False)[0, :, 0]  # [3, R, steps]
    through = torch.exp(-(extinction.cumsum(1) - extinction))
    weights = through * (1 - torch.exp(-extinction))
    return torch.cat([(weights * rgb).sum(-1), weights.sum(-1)[None]]).T


def _as_field(density: Tensor, colour: Tensor, grid: Grid, march: float) -> Field:
    """The dense volumes as a field of all voxels, over white."""
    coords = torch.ones(grid.shape).nonzero().int()
    values = [volume.detach()[0].permute(3, 2, 1, 0).reshape(len(coords), -1) for volume in (density, colour)]
    return Field(grid, coords, values[0], values[1], torch.ones(3), march)
