"""What two views of a capture both see: ground truth for key points, from the capture's geometry alone.

A pixel shows the place where its ray, marched through the voxel scene, ends on average. Another view sees that place
too if its own ray there is stopped at the same distance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from condense.cameras import Cameras
from condense.keypoints import sample_map
from condense.links import LinkedView
from condense.params import SparseParams
from condense.raymarch import accumulate, render_weights, sample_rays, trilinear
from condense.sparsebatch import relit
from condense.voxels import VoxelScene, index_volume

SOLID = 0.5  # opacity from which a ray ends on a surface
SAME = 0.02  # share of the distance by which two views may differ on one surface; at least a voxel
APART = (15.0, 60.0)  # degrees between the optical axes of a pair
NEW_LIGHT = dataclasses.replace(SparseParams(), replace_background=1.0)


@dataclass(frozen=True)
class Surface:
    """What one view sees of a scene.

    Args:
        camera: of the view, one row.
        opacity: [H, W] of the ray through each pixel's centre.
        distance: [H, W] from the camera's centre to where the ray ends, times the opacity; capture units.
        voxel: edge of a voxel in capture units; in a contracted grid, of one in the middle.
    """

    camera: Cameras
    opacity: Tensor
    distance: Tensor
    voxel: float

    def at(self, xy: Tensor) -> tuple[Tensor, Tensor]:
        """Opacity [K] and distance [K] at image points [K, 2], bilinear; the distance weighted by the opacity."""
        width, height = self.camera.sizes[0].tolist()
        opacity, distance = sample_map(torch.stack([self.opacity, self.distance]), xy, (width, height)).T
        return opacity, distance / opacity.clamp_min(1e-6)


def view_surface(scene: VoxelScene, camera: Cameras) -> Surface:
    """The surface that a camera (one row) sees of a scene, one ray a pixel; not differentiable."""
    width, height = camera.sizes[0].tolist()
    origins, directions = (rays.to(scene.density) for rays in camera.grid_rays(0, height, width))
    index = index_volume(scene)
    samples = sample_rays(origins, directions, scene.grid, index >= 0)
    voxel, corner = trilinear(samples.position, index)
    weights = render_weights((corner * scene.density[voxel]).sum(1), samples)
    sums = accumulate(weights, torch.stack([torch.ones_like(samples.t), samples.t], dim=1), samples)  # [H W, 2]
    opacity, distance = sums.T.reshape(2, height, width)
    return Surface(
        camera, opacity, distance, scene.grid.voxel_size * (scene.grid.radius if scene.grid.contracted else 1)
    )


def seen(surface: Surface, points: Tensor, slack: float = 1.0) -> tuple[Tensor, Tensor]:
    """Where world points [K, 3] show in a view, [K, 2] pixels, and [K] bool whether the view sees them there.

    A point counts as seen up to a voxel, or SAME of the distance, before or behind the surface, times `slack`: the
    centre of a surface's voxel lies behind the surface and needs 2.
    """
    xy, depth = surface.camera.project(0, points)
    xy = torch.where((depth > 0)[:, None], xy, xy.new_tensor(-1.0))
    inside = ((xy >= 0) & (xy <= surface.camera.sizes[0])).all(1)
    opacity, distance = surface.at(xy)
    gap = ((points - surface.camera.centres[0]).norm(dim=1) - distance).abs()
    return xy, inside & (opacity >= SOLID) & (gap <= slack * (SAME * distance).clamp_min(surface.voxel))


def warp(a: Surface, b: Surface, xy: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels [K, 2] of view `a` carried to view `b`: [K, 2] pixels there, and [K] bool whether both see the place."""
    opacity, distance = a.at(xy)
    origins, directions = a.camera.pixel_rays(0, xy)
    there, visible = seen(b, origins + distance[:, None] * directions)
    return there, visible & (opacity >= SOLID)


def view_pairs(views: Sequence[LinkedView], most: int = 4) -> list[tuple[int, int]]:
    """Up to `most` pairs of views APART degrees apart, spread over the angles; the nearest to that if there is none."""
    axes = torch.stack([view.camera.T_world_from_camera[0, :3, 2] for view in views]).double()
    angles = torch.rad2deg(torch.arccos((axes @ axes.T).clamp(-1, 1)))
    every = [(i, j) for i in range(len(views)) for j in range(i + 1, len(views))]
    off = {p: max(APART[0] - float(angles[p]), float(angles[p]) - APART[1], 0.0) for p in every}
    good = (
        sorted((p for p in every if off[p] == 0), key=lambda p: float(angles[p]))
        or sorted(every, key=off.__getitem__)[:1]
    )
    chosen = np.unique(np.linspace(0, len(good) - 1, min(most, len(good))).round().astype(int))
    return [good[k] for k in chosen]


def in_new_light(view: LinkedView, seed: Sequence[int]) -> LinkedView:
    """The view before another background and under another light, as of `sparsebatch.relit`, drawn by `seed`."""
    image = relit(view, np.random.default_rng(seed), NEW_LIGHT)
    return dataclasses.replace(view, image=(image.permute(1, 2, 0) * 255).round().to(torch.uint8))
