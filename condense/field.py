"""Radiance fields on sparse voxels: what a field is, rendering it, keeping it on disk.

Density and colour are interpolated trilinearly between voxel centres. Density is signed and cut at zero *after*
interpolation (a ReLU field), so that a surface may lie anywhere between two voxels. Colour depends on direction by
spherical harmonics of degree 0 to 2.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.autograd.function import once_differentiable

from condense.cameras import Cameras
from condense.captures.capture import Views
from condense.grid import Grid
from condense.paths import write_atomically
from condense.raymarch import (
    Samples,
    accumulate,
    felt_cells,
    pad_index,
    render_weights,
    sample_cells,
    trilinear_padded,
)

VISIBLE = 1e-4  # samples of smaller weight add nothing one could see: their colour is not looked up
_CHUNK = 16384  # rays rendered at once


@dataclass(frozen=True)
class Field:
    """A fitted radiance field of N voxels.

    Args:
        grid: where the voxels lie.
        coords: [N, 3] int32, x, y, z order, unique, inside `grid.shape`.
        density: [N, 1] float32, signed; a sample's extinction per voxel edge is the positive part of the
            interpolated value.
        colour: [N, 3 K] float32, K spherical-harmonic coefficients for red, then green, then blue.
        background: [3] RGB, seen where a ray passes through everything.
        step: distance between samples, in voxels.
    """

    grid: Grid
    coords: Tensor
    density: Tensor
    colour: Tensor
    background: Tensor
    step: float

    def to(self, target: Any) -> Field:
        """The same field on another device."""
        coords, density, colour = self.coords.to(target), self.density.to(target), self.colour.to(target)
        return Field(self.grid, coords, density, colour, self.background.to(target), self.step)

    @cached_property
    def index(self) -> Tensor:
        """int32 of shape `grid.shape`: the number of each voxel, -1 where there is none."""
        return index_volume(self.coords, self.grid.shape)


def index_volume(coords: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """int32 volume of `shape` that numbers voxels [N, 3] in their order, -1 elsewhere."""
    index = torch.full(shape, -1, dtype=torch.int32, device=coords.device)
    numbers = torch.arange(len(coords), dtype=torch.int32, device=coords.device)
    index[tuple(coords.long().unbind(1))] = numbers
    return index


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, voxel: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(voxel, weight)
        ctx.voxels = len(values)
        return torch.nn.functional.embedding_bag(voxel, values, per_sample_weights=weight, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        voxel, weight = ctx.saved_tensors
        if grad.device.type != "cpu":
            spread = (weight[:, :, None] * grad[:, None]).flatten(0, 1)
            return spread.new_zeros(ctx.voxels, grad.shape[1]).index_add(0, voxel.flatten(), spread), None, None
        # the transpose product of a sparse matrix with 8 entries a row: 10 times faster than index_add on CPU
        rows = np.arange(0, voxel.numel() + 1, 8, dtype=voxel.numpy().dtype)
        matrix = scipy.sparse.csr_matrix(
            (weight.flatten().numpy(), voxel.flatten().numpy(), rows), shape=(len(voxel), ctx.voxels), copy=False
        )
        return torch.from_numpy(matrix.T @ grad.numpy()), None, None


def interpolate(values: Tensor, voxel: Tensor, weight: Tensor) -> Tensor:
    """Sums of voxel values [N, C] with `trilinear`'s voxel and weight [S, 8] each: [S, C].

    Differentiable (once) in `values`.
    """
    return _Interpolate.apply(values, voxel, weight)


def harmonics(directions: Tensor, count: int) -> Tensor:
    """The first `count` (1, 4 or 9) real spherical harmonics, up to scale, of unit vectors [R, 3]: [R, count]."""
    x, y, z = directions.unbind(1)
    basis = [torch.ones_like(x), x, y, z, x * y, y * z, 3 * z * z - 1, x * z, x * x - y * y]
    return torch.stack(basis[:count], dim=1)


def render_samples(
    density: Tensor, colour: Tensor, directions: Tensor, samples: Samples, voxel: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Light that reaches each ray from the voxels, and how much of each ray they cover.

    Differentiable in `density` and `colour`, but for samples of weight below VISIBLE, which are left out.

    Args:
        density: [N, 1]. colour: [N, 3 K]. See `Field`.
        directions: [R, 3] unit directions of the rays.
        samples: S samples. voxel, weight: [S, 8], their `trilinear`.

    Returns:
        light [R, 4]: premultiplied RGB and opacity; weights [S] of the samples.
    """
    extinction = interpolate(density, voxel, weight)[:, 0].relu()
    weights = render_weights(extinction, samples)
    seen = (weights.detach() > VISIBLE).nonzero()[:, 0]
    ray, corner = samples.ray.index_select(0, seen), weight.index_select(0, seen)
    corner = corner / corner.sum(1, keepdim=True).clamp_min(1e-6)  # colours: over the voxels present
    value = interpolate(colour, voxel.index_select(0, seen), corner)  # [S', 3 K]
    if (count := value.shape[1] // 3) > 1:
        value = (value.view(-1, 3, count) * harmonics(directions, count)[ray][:, None]).sum(-1)
    value = torch.cat([value, torch.ones_like(value[:, :1])], dim=1)
    light = torch.zeros(samples.rays, 4, dtype=value.dtype, device=value.device)
    return light.index_add(0, ray, weights.index_select(0, seen)[:, None] * value), weights


@torch.no_grad()
def render_rays(field: Field, origins: Tensor, directions: Tensor) -> Tensor:
    """Premultiplied RGB and opacity [R, 4] of rays, and their mean distance in the last column: [R, 5]."""
    felt, padded, parts = felt_cells(field.index >= 0), pad_index(field.index), []
    for start in range(0, len(origins), _CHUNK):
        at = directions[start : start + _CHUNK]
        samples = sample_cells(origins[start : start + _CHUNK], at, field.grid, felt, field.step)
        voxel, weight = trilinear_padded(samples.position, padded)
        light, weights = render_samples(field.density, field.colour, at, samples, voxel, weight)
        depth = accumulate(weights, samples.t[:, None], samples) / light[:, 3:].clamp_min(1e-6)
        parts.append(torch.cat([light, depth], dim=1))
    return torch.cat(parts)


def render_view(
    field: Field, cameras: Cameras, view: int, subrays: int = 2, background: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Renders one view at its camera's size.

    Args:
        field: what to render.
        cameras: the cameras, one of which sees it.
        view: its index.
        subrays: rays along each side of a pixel, averaged.
        background: [3] RGB in place of the field's own.

    Returns:
        image [H, W, 3] float32 in [0, 1] over the background, opacity [H, W].
    """
    w, h = (int(size) for size in cameras.sizes[view])
    rays = cameras.grid_rays(view, h * subrays, w * subrays)
    light = render_rays(field, *rays)[:, :4].view(h, subrays, w, subrays, 4).mean((1, 3))
    behind = field.background if background is None else background.to(light)
    return (light[..., :3] + (1 - light[..., 3:]) * behind).clamp(0, 1), light[..., 3]


def psnr_db(field: Field, views: Views) -> list[float]:
    """PSNR in dB of the field's render of each view against its image; with masks, both over white."""
    result = []
    for view, image in enumerate(views.images):
        target, mask = target_image(views, view)
        truth = torch.from_numpy(image).float() / 255 if mask is None else target + 1 - mask[..., None]
        render, _ = render_view(field, views.cameras, view, background=None if mask is None else torch.ones(3))
        result.append(-10 * float(torch.log10((render - truth).square().mean().clamp_min(1e-10))))
    return result


def target_image(views: Views, view: int) -> tuple[Tensor, Tensor | None]:
    """What a field should show: RGB [H, W, 3] times the mask, and the mask [H, W] (None without masks).

    Where the background is blended into the image, its share of the edge pixels is taken off: its colour there
    is the mean of the background pixels nearby.
    """
    image = torch.from_numpy(views.images[view]).float() / 255
    if views.masks is None:
        return image, None
    mask = torch.from_numpy(views.masks[view]).float()
    if not views.blended:
        return image * mask[..., None], mask
    clear = (mask == 0).float()
    around = torch.cat([image * clear[..., None], clear[..., None]], dim=-1).permute(2, 0, 1)[None]
    around = torch.nn.functional.avg_pool2d(around, 5, 1, 2, count_include_pad=False)[0].permute(1, 2, 0)
    behind = around[..., :3] / around[..., 3:].clamp_min(1e-6)
    light = image - (1 - mask[..., None]) * behind
    known = (around[..., 3:] > 0) & (mask[..., None] < 1)
    light = torch.where(known, light, image * mask[..., None])
    return torch.minimum(light.clamp_min(0), mask[..., None]), mask


def save_field(field: Field, path: Path, **facts: object) -> None:
    """Writes `path` (.safetensors) and, first, its JSON sidecar with the grid and `facts` about the fit."""
    settings = {"grid": dataclasses.asdict(field.grid), "step": field.step, **facts}
    text = json.dumps(settings, indent=1, sort_keys=True) + "\n"
    write_atomically(path.with_suffix(".json"), lambda temporary: temporary.write_text(text))
    tensors = {name: getattr(field, name).contiguous() for name in ("coords", "density", "colour", "background")}
    write_atomically(path, lambda temporary: save_file(tensors, temporary))


def load_field(path: Path) -> tuple[Field, dict]:
    """The field that `save_field` wrote, and what its sidecar holds."""
    settings = json.loads(path.with_suffix(".json").read_text())
    grid: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings["grid"].items()}
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    return Field(grid=Grid(**grid), step=settings["step"], **tensors), settings
