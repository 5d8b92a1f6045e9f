"""What two views of a capture both see: ground truth for key points, without labels.

A pixel shows the place where its ray ends; another view sees that place too if its own ray there ends at the same
distance. Rays end in the capture's voxel scene, or, for a built-in capture, on the meshes it was rendered from: fitted
geometry is often off by several pixels on plain walls, and would call right matches wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from condense.cameras import Cameras
from condense.keypoints import sample_map
from condense.links import LinkedView, Links
from condense.params import SparseParams
from condense.raymarch import accumulate, render_weights, sample_rays, trilinear
from condense.sparsebatch import relit
from condense.synthetic.generate import HELD_OUT, SEEN
from condense.synthetic.render import Scene
from condense.synthetic.rooms import furnish
from condense.synthetic.things import Dice
from condense.voxels import VoxelScene, index_volume

SOLID = 0.5  # opacity from which a ray ends on a surface
SAME = 0.05  # share of the distance by which two views of voxels may differ on one surface; at least a voxel
SAME_MESH = 0.01  # and two views of meshes
APART = (15.0, 60.0)  # degrees between the optical axes of a pair
NEW_LIGHT = dataclasses.replace(SparseParams(), replace_background=1.0)


class Surface(Protocol):
    """What one view sees."""

    @property
    def camera(self) -> Cameras:
        """Of the view, one row."""

    def at(self, xy: Tensor) -> tuple[Tensor, Tensor]:
        """Opacity [K], and the distance [K] from the camera's centre, of rays through image points [K, 2]."""

    def tolerance(self, distance: Tensor) -> Tensor:
        """[K] by how much distances [K] of one place may differ, capture units."""


@dataclass(frozen=True)
class VoxelSurface:
    """What a view sees of a voxel scene.

    Args:
        camera: of the view, one row.
        opacity: [H, W] of the ray through each pixel's centre.
        distance: [H, W] from the camera's centre to where the ray ends on average, times the opacity; capture units.
        voxel: edge of a voxel in capture units; in a contracted grid, of one in the middle.
    """

    camera: Cameras
    opacity: Tensor
    distance: Tensor
    voxel: float

    def at(self, xy: Tensor) -> tuple[Tensor, Tensor]:
        """See `Surface`; bilinear between pixels, the distance weighted by the opacity."""
        width, height = self.camera.sizes[0].tolist()
        opacity, distance = sample_map(torch.stack([self.opacity, self.distance]), xy, (width, height)).T
        return opacity, distance / opacity.clamp_min(1e-6)

    def tolerance(self, distance: Tensor) -> Tensor:
        """See `Surface`."""
        return (SAME * distance).clamp_min(self.voxel)


@dataclass(frozen=True)
class MeshSurface:
    """What a view sees of the meshes of a built-in capture."""

    camera: Cameras
    meshes: Scene

    def at(self, xy: Tensor) -> tuple[Tensor, Tensor]:
        """See `Surface`; exact."""
        rays = (np.ascontiguousarray(part.numpy(), dtype=np.float32) for part in self.camera.pixel_rays(0, xy))
        part, distance, _ = self.meshes.cast(*rays)
        return torch.from_numpy(part >= 0).float(), torch.from_numpy(np.where(part >= 0, distance, 0)).float()

    def tolerance(self, distance: Tensor) -> Tensor:
        """See `Surface`."""
        return (SAME_MESH * distance).clamp_min(1e-6)


def voxel_surface(scene: VoxelScene, camera: Cameras) -> VoxelSurface:
    """The surface of a scene that a camera (one row) sees, one ray a pixel; not differentiable."""
    width, height = camera.sizes[0].tolist()
    origins, directions = (rays.to(scene.density) for rays in camera.grid_rays(0, height, width))
    index = index_volume(scene)
    samples = sample_rays(origins, directions, scene.grid, index >= 0)
    voxel, corner = trilinear(samples.position, index)
    weights = render_weights((corner * scene.density[voxel]).sum(1), samples)
    sums = accumulate(weights, torch.stack([torch.ones_like(samples.t), samples.t], dim=1), samples)  # [H W, 2]
    opacity, distance = sums.T.reshape(2, height, width)
    edge = scene.grid.voxel_size * (scene.grid.radius if scene.grid.contracted else 1.0)
    return VoxelSurface(camera, opacity, distance, edge)


def built_in_meshes(links: Links) -> Scene | None:
    """The meshes that a built-in capture was rendered from, built anew from its name and seed; None for any other.

    Raises:
        ValueError: a view's mask is not what the meshes cover: the capture comes from another generator.
    """
    number, meta = links.name.rsplit("_", 1)[-1], links.meta
    makers = {maker.__name__: kind for kind, maker in enumerate((*SEEN, *HELD_OUT))}
    if "seed" not in meta or not number.isdigit():
        return None
    if meta.get("kind") == "room":
        parts = furnish(Dice(meta["seed"], 2, int(number))).parts
    elif meta.get("class") in makers:
        kind = makers[meta["class"]]
        dice = Dice(meta["seed"], 1, kind, int(number))
        thing = (*SEEN, *HELD_OUT)[kind](dice)
        parts = thing.placed(thing.unit_frame(dice.u(0, 360)))
    else:
        return None
    meshes = Scene(parts)
    for view in links.views[:1]:
        y, x = torch.nonzero(view.mask >= 250, as_tuple=True)
        covered, _ = MeshSurface(view.camera, meshes).at(torch.stack([x, y], dim=1) + 0.5)
        if len(covered) and float(covered.mean()) < 0.99:
            raise ValueError(f"{links.name}/{view.name}: its mask does not fit its seed: run 'condense generate' anew")
    return meshes


def shown(surface: Surface, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where world points [K, 3] show in a view, [K, 2] pixels; [K] bool whether they lie in it and a ray ends there;
    and [K] how far behind the ray's end they lie, in tolerances."""
    xy, depth = surface.camera.project(0, points)
    xy = torch.where((depth > 0)[:, None], xy, xy.new_tensor(-1.0))
    inside = ((xy >= 0) & (xy <= surface.camera.sizes[0])).all(1)
    opacity, distance = surface.at(xy)
    behind = ((points - surface.camera.centres[0]).norm(dim=1) - distance) / surface.tolerance(distance)
    return xy, inside & (opacity >= SOLID), behind


def warp(a: Surface, b: Surface, xy: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels [K, 2] of view `a` carried to view `b`: [K, 2] pixels there, and [K] bool whether both see the place."""
    opacity, distance = a.at(xy)
    origins, directions = a.camera.pixel_rays(0, xy)
    there, ends, behind = shown(b, origins + distance[:, None] * directions)
    return there, ends & (behind.abs() <= 1) & (opacity >= SOLID)


def view_pairs(views: Sequence[LinkedView], most: int = 4) -> list[tuple[int, int]]:
    """Up to `most` pairs of views APART degrees apart, spread over the angles; the nearest to that if there is none."""
    axes = torch.stack([view.camera.T_world_from_camera[0, :3, 2] for view in views]).double()
    angles = torch.rad2deg(torch.arccos((axes @ axes.T).clamp(-1, 1)))
    every = [(i, j) for i in range(len(views)) for j in range(i + 1, len(views))]
    off = {p: max(APART[0] - float(angles[p]), float(angles[p]) - APART[1], 0.0) for p in every}
    good = sorted((p for p in every if off[p] == 0), key=lambda p: float(angles[p]))
    good = good or sorted(every, key=off.__getitem__)[:1]
    chosen = np.unique(np.linspace(0, len(good) - 1, min(most, len(good))).round().astype(int))
    return [good[k] for k in chosen]


def in_new_light(view: LinkedView, seed: Sequence[int]) -> LinkedView:
    """The view before another background and under another light, as of `sparsebatch.relit`, drawn by `seed`."""
    image = relit(view, np.random.default_rng(seed), NEW_LIGHT)
    return dataclasses.replace(view, image=(image.permute(1, 2, 0) * 255).round().to(torch.uint8))
