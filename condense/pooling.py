"""From a fitted field to the sparse voxels that the 3D network sees."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from condense.field import Field
from condense.grid import Grid
from condense.voxels import VoxelScene

FAINTEST = 0.05  # opacity below which a voxel is taken for empty
SOLID = 0.95  # opacity above which neighbours hide what is between them


def voxel_scene(field: Field, resolution: int) -> VoxelScene:
    """The field pooled to `resolution` voxels along its longest side: occupied, visible voxels only.

    Extinction is averaged by volume, so a ray through a coarse voxel is absorbed as on average through the fine
    ones; colours are averaged by extinction. A view-dependent colour counts with its mean over directions.
    Voxels enclosed by opaque ones on all six sides are dropped.

    Args:
        field: what to pool.
        resolution: voxels along the longest side of the scene.

    Raises:
        ValueError: nothing opaque is left.
    """
    grid = coarser(field.grid, resolution)
    ratio = grid.voxel_size / field.grid.voxel_size
    extinction = field.density[:, 0].relu()  # [N] per fine edge
    rgb = field.colour.view(len(extinction), 3, -1)[:, :, 0]  # the other harmonics have mean 0
    mass = torch.zeros(*grid.shape, 4, dtype=extinction.dtype)
    for index, share in overlaps(field.coords, ratio, grid.shape):
        weight = (share * extinction)[:, None]
        mass.index_put_(index, torch.cat([weight, weight * rgb], dim=1), accumulate=True)
    density = mass[..., 0] / ratio**2  # per coarse edge: summed over ratio^3 voxels, over a path ratio times longer
    opacity = 1 - torch.exp(-density)
    coords = ((opacity > FAINTEST) & ~enclosed(opacity > SOLID)).nonzero()
    if not len(coords):
        raise ValueError("the field is transparent everywhere: check the capture's poses and masks")
    light = mass[tuple(coords.T)]
    colour = (light[:, 1:] / light[:, :1].clamp_min(1e-9)).clamp(0, 1)
    return VoxelScene(coords.int(), density[tuple(coords.T)].float(), colour.float(), grid)


def rendered_scene(field: Field, resolution: int) -> VoxelScene:
    """The field as voxels to be rendered, at most `resolution` along its longest side.

    A field that is no finer keeps its own voxels and their signed densities: those below 0 put its surfaces between
    voxels, and without them everything looks half a voxel thicker. Voxels that touch nothing of positive density are
    left out. A finer one is pooled, as `voxel_scene`.
    """
    if max(field.grid.shape) > resolution:
        return voxel_scene(field, resolution)
    solid = torch.zeros(field.grid.shape)
    solid[tuple(field.coords.long().T)] = (field.density[:, 0] > 0).float()
    touching = torch.nn.functional.max_pool3d(solid[None, None], 3, 1, 1)[0, 0][tuple(field.coords.long().T)] > 0
    rgb = field.colour[touching].view(int(touching.sum()), 3, -1)[:, :, 0].clamp(0, 1)
    return VoxelScene(field.coords[touching], field.density[touching, 0], rgb, field.grid)


def coarser(grid: Grid, resolution: int) -> Grid:
    """The same region with `resolution` voxels along the longest side; never finer than `grid`."""
    ratio = max(1.0, max(grid.shape) / resolution)
    x, y, z = (max(1, -int(-side // ratio)) for side in grid.shape)
    return dataclasses.replace(grid, voxel_size=grid.voxel_size * ratio, shape=(x, y, z))


def overlaps(coords: Tensor, ratio: float, shape: tuple[int, int, int]) -> list[tuple[tuple[Tensor, ...], Tensor]]:
    """The coarse voxels that fine voxels [N, 3] lie in, and the share of each fine voxel's volume there.

    A fine voxel is at most as large as a coarse one, so it meets up to two of them along each axis. Returns
    eight pairs of indices (x, y, z) [N] each and shares [N] that sum to 1.
    """
    low, high = coords / ratio, (coords + 1) / ratio
    first = low.floor().long()
    border = (first + 1).to(low)
    inside = ((border - low) / (high - low)).clamp(0, 1)  # [N, 3] share on the near side of the border
    most = torch.tensor(shape) - 1
    result = []
    for corner in range(8):
        ahead = torch.tensor([corner >> axis & 1 for axis in range(3)])
        share = torch.where(ahead.bool(), 1 - inside, inside).prod(dim=1)
        index = torch.minimum(first + ahead, most)
        result.append((tuple(index.unbind(1)), share))
    return result


def enclosed(solid: Tensor) -> Tensor:
    """Where all six neighbours are `solid` [X, Y, Z]; outside the grid nothing is."""
    padded = torch.nn.functional.pad(solid, (1,) * 6)
    hidden = torch.ones_like(solid)
    for axis in range(3):
        for start in (0, 2):
            neighbour = padded.narrow(axis, start, solid.shape[axis])
            for other in set(range(3)) - {axis}:
                neighbour = neighbour.narrow(other, 1, solid.shape[other])
            hidden &= neighbour
    return hidden
