"""Voxel scenes: a capture as sparse voxels with density and colour."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from condense.grid import Grid


@dataclass(frozen=True)
class VoxelScene:
    """The occupied voxels of one capture.

    Args:
        coords: [N, 3] int32, x, y, z order, unique, inside `grid.shape`.
        density: [N] float32, extinction per voxel edge: a ray crossing a whole voxel of density s is
            absorbed by 1 - exp(-s).
        colour: [N, 3] float32 RGB in [0, 1].
        grid: where the voxels lie.
    """

    coords: Tensor
    density: Tensor
    colour: Tensor
    grid: Grid
