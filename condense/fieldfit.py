"""Fitting a field to the views of one capture by gradient descent through the ray marcher.

What makes it fast on a CPU: masks carve a visual hull before anything is fitted; resolution doubles from stage to
stage, and each stage keeps only voxels that the rays of the one before could see; where the samples of all rays
fit into memory and are met more than once they are laid out once, in random order of pixels, so that a batch is a
slice; and interpolation goes backward as a sparse product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from condense.captures.capture import Views
from condense.field import Field, index_volume, interpolate, render_samples
from condense.fieldrays import TrainingRays, choose_grid, possible_voxels, refined, training_rays
from condense.grid import Grid
from condense.params import FieldsParams
from condense.raymarch import Samples, felt_cells, pad_index, sample_cells, trilinear, trilinear_padded

CACHED = 4_000_000  # samples of a stage that are kept in memory
FOG, THIN = 12.0, 2.0  # optical depth of the fog to start from, across the grid: inside a hull, else
HIDDEN = 1e-3  # a voxel whose largest weight in any training ray is smaller is dropped


@dataclass
class _Stage:
    """One resolution: its grid, its voxels, and where the samples of a batch come from."""

    grid: Grid
    occupied: Tensor  # bool of grid.shape
    rays: TrainingRays
    march: float
    generator: torch.Generator

    def __post_init__(self) -> None:
        self.coords = self.occupied.nonzero().int()
        self.felt = felt_cells(self.occupied)
        self.index = index_volume(self.coords, self.grid.shape)
        self.padded = pad_index(self.index)
        self.cache: tuple[Samples, Tensor, Tensor, Tensor] | None = None

    def lay_out(self) -> None:
        """Takes the samples of all rays now, if they are few enough."""
        probe = slice(0, min(len(self.rays.directions), 4096))
        few = sample_cells(self.rays.origins[probe], self.rays.directions[probe], self.grid, self.felt, self.march)
        if len(few.ray) / probe.stop * len(self.rays.directions) > CACHED:
            return
        samples, voxel, weight = self._march(0, len(self.rays.directions))
        counts = torch.bincount(samples.ray, minlength=samples.rays)
        self.cache = (samples, voxel, weight, torch.nn.functional.pad(counts.cumsum(0), (1, 0)))

    def _march(self, start: int, stop: int) -> tuple[Samples, Tensor, Tensor]:
        rays = self.rays
        samples = sample_cells(
            rays.origins[start:stop], rays.directions[start:stop], self.grid, self.felt, self.march, self.generator
        )
        voxel, weight = trilinear_padded(samples.position, self.padded)
        return samples, voxel, weight

    def samples(self, start: int, stop: int) -> tuple[Samples, Tensor, Tensor]:
        """Samples of rays `start` to `stop`, with their voxels and trilinear weights."""
        if self.cache is None:
            return self._march(start, stop)
        samples, voxel, weight, first = self.cache
        a, b = int(first[start]), int(first[stop])
        part = Samples(
            samples.ray[a:b] - start, samples.position[a:b], samples.delta[a:b], samples.t[a:b], stop - start
        )
        return part, voxel[a:b], weight[a:b]


def fit_field(views: Views, params: FieldsParams, seed: int, device: torch.device | str = "cpu") -> Field:
    """Fits a field to all of `views`.

    Args:
        views: the training views of one capture.
        params: see `FieldsParams`; the number of steps is fixed, so that the result never depends on the clock.
        seed: of the order of pixels, and of where along a ray samples lie.
        device: to fit it on; what is returned is on the CPU.

    Raises:
        ValueError: the masks leave nothing to fit.
    """
    generator = torch.Generator().manual_seed(seed)
    views = replace(views, cameras=views.cameras.to(device))
    base = choose_grid(views, params)
    rays = training_rays(views, params, generator)
    masked = views.masks is not None
    field, done = None, 0
    for resolution, steps in zip(params.resolutions, params.steps, strict=True):
        grid = refined(base, resolution)
        occupied = _occupied(field, views, grid, rays)
        stage = _Stage(grid, occupied, rays, params.march, generator)
        field = _start(stage, field, views, params)
        if masked and done == 0:  # rays beside the hull have nothing to say, now or later
            stage.rays = rays = _that_hit(stage)
        batches = max(1, round(len(rays.target) / params.pixels))
        if steps >= 2 * batches:  # else most are met once
            stage.lay_out()
        field = _descend(field, stage, params, (done, done + steps), batches, masked)
        done += steps
    assert field is not None
    seen = visible_voxels(field, rays, limit=400_000)  # nothing can be said of the others
    kept = replace(field, coords=field.coords[seen], density=field.density[seen], colour=field.colour[seen])
    return kept.to("cpu")


def _occupied(field: Field | None, views: Views, grid: Grid, rays: TrainingRays) -> Tensor:
    """The voxels of a stage: what masks or images can see at first, later what the last stage found there."""
    if field is None:
        return possible_voxels(views, grid)
    coarse = torch.zeros(field.grid.shape, dtype=torch.bool, device=field.density.device)
    coarse[tuple(field.coords[visible_voxels(field, rays)].long().unbind(1))] = True
    coarse = torch.nn.functional.max_pool3d(coarse[None, None].float(), 3, 1, 1)[0, 0] > 0  # and their neighbours
    where = [
        ((torch.arange(n, device=coarse.device) + 0.5) * grid.voxel_size / field.grid.voxel_size).long()
        for n in grid.shape
    ]
    where = [at.clamp_max(n - 1) for at, n in zip(where, coarse.shape, strict=True)]
    occupied = coarse[where[0]][:, where[1]][:, :, where[2]]
    return occupied & possible_voxels(views, grid) if views.masks is not None else occupied


@torch.no_grad()
def visible_voxels(field: Field, rays: TrainingRays, limit: int = 100_000) -> Tensor:
    """Bool [N]: voxels that reach a weight of HIDDEN in some ray (of the first `limit`)."""
    felt, padded = felt_cells(field.index >= 0), pad_index(field.index)
    best = torch.zeros(len(field.coords), device=field.density.device)
    for start in range(0, min(limit, len(rays.directions)), 16384):
        o, d = rays.origins[start : start + 16384], rays.directions[start : start + 16384]
        samples = sample_cells(o, d, field.grid, felt, field.step)
        voxel, weight = trilinear_padded(samples.position, padded)
        _, weights = render_samples(field.density, field.colour[:, :3], d, samples, voxel, weight)
        kept = (weights > HIDDEN).nonzero()[:, 0]
        share = weight.index_select(0, kept) * weights.index_select(0, kept)[:, None]
        best.scatter_reduce_(0, voxel.index_select(0, kept).long().flatten(), share.flatten(), "amax")
    return best > HIDDEN


def _start(stage: _Stage, field: Field | None, views: Views, params: FieldsParams) -> Field:
    """The field a stage starts from: even fog, or the last stage's field on the finer grid."""
    n, device = len(stage.coords), stage.coords.device
    if field is None:
        thickness = (FOG if views.masks is not None else THIN) / max(stage.grid.shape)
        grey = torch.full((n, 3, 1), 0.5, device=device)  # from every direction
        return Field(
            stage.grid,
            stage.coords,
            torch.full((n, 1), thickness, device=device),
            torch.nn.functional.pad(grey, (0, params.harmonics - 1)).view(n, -1),
            torch.full((3,), 0.5, device=device),
            params.march,
        )
    ratio = stage.grid.voxel_size / field.grid.voxel_size
    voxel, weight = trilinear((stage.coords + 0.5) * ratio, field.index)
    density = interpolate(field.density, voxel, weight) * ratio  # extinction is per voxel edge
    weight = weight / weight.sum(1, keepdim=True).clamp_min(1e-6)
    colour = interpolate(field.colour, voxel, weight)
    return Field(stage.grid, stage.coords, density, colour, field.background, params.march)


def _that_hit(stage: _Stage) -> TrainingRays:
    """The rays of pixels of which some ray meets an occupied voxel."""
    rays = stage.rays
    hit = torch.zeros(len(rays.directions), dtype=torch.long, device=rays.directions.device)
    for start in range(0, len(hit), 65536):
        o, d = rays.origins[start : start + 65536], rays.directions[start : start + 65536]
        hit[start + sample_cells(o, d, stage.grid, stage.felt, 1.0).ray] = 1
    total = torch.nn.functional.pad(hit.cumsum(0), (1, 0))
    pixel = (total[rays.first[1:]] > total[rays.first[:-1]]).nonzero()[:, 0]
    counts = rays.first[1:] - rays.first[:-1]
    kept = torch.zeros_like(counts, dtype=torch.bool)
    kept[pixel] = True
    of_ray = kept.repeat_interleave(counts)
    first = torch.nn.functional.pad(counts[pixel].cumsum(0), (1, 0))
    return TrainingRays(rays.origins[of_ray], rays.directions[of_ray], first, rays.target[pixel])


def _descend(
    field: Field, stage: _Stage, params: FieldsParams, span: tuple[int, int], batches: int, masked: bool
) -> Field:
    """Gradient steps `span[0]` to `span[1]` of the whole fit, on one stage; its pixels make so many batches."""
    density, colour, background = (t.clone().requires_grad_() for t in (field.density, field.colour, field.background))
    adam = _Adam([density, colour, background], [params.density_lr, params.colour_lr, 0.01])
    smooth = _Smoothness(stage.index, stage.coords, stage.generator)
    rays, total = stage.rays, sum(params.steps)
    pixels = len(rays.target)
    for step in range(*span):
        batch = step % batches
        a, b = pixels * batch // batches, pixels * (batch + 1) // batches
        start, stop = int(rays.first[a]), int(rays.first[b])
        counts = rays.first[a + 1 : b + 1] - rays.first[a:b]
        samples, voxel, weight = stage.samples(start, stop)
        light, _ = render_samples(density, colour, rays.directions[start:stop], samples, voxel, weight)
        if stop - start > b - a:
            pixel = torch.repeat_interleave(torch.arange(b - a, device=counts.device), counts)
            light = light.new_zeros(b - a, 4).index_add(0, pixel, light) / counts[:, None]
        target = rays.target[a:b]
        behind = torch.ones_like(background) if masked else background
        missed = light[:, 3:] - target[:, 3:]
        loss = (light[:, :3] - target[:, :3] - missed * behind).square().mean()
        if masked:
            loss = loss + params.opacity * missed.square().mean()
        gradients = list(torch.autograd.grad(loss, [density, colour, background], allow_unused=True))
        gradients[0] += smooth(density, params.density_tv, 0.1)
        gradients[1] += smooth(colour, params.colour_tv, 0.02)
        adam.step(gradients, 0.1 ** (step / total))
    return Field(
        stage.grid, stage.coords, density.detach(), colour.detach(), background.detach().clamp(0, 1), params.march
    )


class _Adam:
    """Adam whose step fades for parameters with gradients far below the root mean square of all.

    Plain Adam moves a voxel that hardly any ray touches as far as the others, on noise.
    """

    def __init__(self, parameters: list[Tensor], rates: list[float]):
        self.parameters, self.rates, self.count = parameters, rates, 0
        self.mean = [torch.zeros_like(p) for p in parameters]
        self.square = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None], factor: float) -> None:
        self.count += 1
        unbias, unbias_square = 1 - 0.9**self.count, 1 - 0.95**self.count
        for p, g, mean, square, rate in zip(
            self.parameters, gradients, self.mean, self.square, self.rates, strict=True
        ):
            if g is None:
                continue
            mean.lerp_(g, 0.1)
            square.mul_(0.95).addcmul_(g, g, value=0.05)
            scale = (square / unbias_square).sqrt_()
            floor = 0.3 * float(square.mean() / unbias_square) ** 0.5 + 1e-12
            p.addcdiv_(mean, scale.add_(floor), value=-rate * factor / unbias)


class _Smoothness:
    """Gradient of the mean total variation between neighbouring voxels, on a random stretch of voxels."""

    def __init__(self, index: Tensor, coords: Tensor, generator: torch.Generator, most: int = 30_000):
        padded = torch.nn.functional.pad(index, (0, 1) * 3, value=-1)
        ahead = torch.eye(3, dtype=torch.long, device=coords.device) + coords.long()[:, None]  # [N, 3, 3]
        self.next = padded[tuple(ahead.unbind(2))].long()  # [N, 3], -1 where there is none
        self.generator, self.most = generator, most

    @torch.no_grad()
    def __call__(self, values: Tensor, strength: float, soft: float) -> Tensor:
        """Charbonnier: differences well below `soft` count by their square, larger ones by their size."""
        n = len(values)
        start = int(torch.randint(0, max(1, n - self.most + 1), (1,), generator=self.generator))
        ahead = self.next[start : start + self.most]
        there = (ahead >= 0).flatten().nonzero()[:, 0]
        other, number = ahead.flatten().index_select(0, there), there // 3 + start
        difference = values.index_select(0, number) - values.index_select(0, other)
        difference *= (difference.square() + soft * soft).rsqrt_() * (strength / len(ahead))
        gradient = torch.zeros_like(values)
        return gradient.index_add_(0, number, difference).index_add_(0, other, -difference)
