"""The voxel grid of a capture: where it lies in the world, and how unbounded space is folded into it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """A regular grid of cubic voxels.

    Grid coordinates g are in voxels: voxel (i, j, k) covers [i, i+1) x [j, j+1) x [k, k+1), its centre lies at
    (i, j, k) + 0.5. For a bounded grid, g = (x - origin) / voxel_size.

    Args:
        origin: the grid's lower corner, in capture units (in contracted units where `contracted`).
        voxel_size: edge of a voxel, in the same units.
        shape: voxels along x, y, z.
        contracted: if set, world points first go through the contraction of mip-NeRF 360 (eq. 10) about
            `centre` with radius `radius`: the ball |x - centre| <= radius is kept and scaled to the unit ball,
            everything beyond is folded into the shell between radius 1 and 2.
        centre: centre of the kept ball, in capture units.
        radius: radius of the kept ball, in capture units.
    """

    origin: tuple[float, float, float]
    voxel_size: float
    shape: tuple[int, int, int]
    contracted: bool = False
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    radius: float = 1.0

    def from_world(self, points: Tensor) -> Tensor:
        """Grid coordinates [..., 3] of world points [..., 3]."""
        if self.contracted:
            points = (points - points.new_tensor(self.centre)) / self.radius
            norm = torch.linalg.vector_norm(points, dim=-1, keepdim=True).clamp_min(1e-9)
            points = torch.where(norm <= 1, points, (2 - 1 / norm) * points / norm)
        return (points - points.new_tensor(self.origin)) / self.voxel_size

    def to_world(self, coordinates: Tensor) -> Tensor:
        """World points [..., 3] of grid coordinates [..., 3]; the inverse of `from_world`.

        A contracted grid reaches infinity at contracted radius 2; points at or beyond it are put at 1.999.
        """
        points = coordinates * self.voxel_size + coordinates.new_tensor(self.origin)
        if self.contracted:
            norm = torch.linalg.vector_norm(points, dim=-1, keepdim=True).clamp_min(1e-9)
            far = points / norm / (2 - norm.clamp_max(1.999))
            points = torch.where(norm <= 1, points, far) * self.radius + points.new_tensor(self.centre)
        return points
