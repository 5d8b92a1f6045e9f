"""What a field is fitted to: where its grid lies, which voxels the masks allow, and the training rays."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from condense.cameras import Cameras
from condense.captures.capture import Views
from condense.field import target_image
from condense.grid import Grid
from condense.params import FieldsParams

NEAR = 0.25  # of the distance from the cameras to what they look at: nearer to a camera nothing is looked for
SPAN = 0.8  # half the first box, of the largest distance: farther off, masks that carve nothing leave only fog


@dataclass(frozen=True)
class TrainingRays:
    """Rays sorted by pixel; pixels in random order. A pixel has several rays where the mask is fractional.

    Args:
        origins, directions: [R, 3].
        first: [P + 1] int64, the first ray of each pixel.
        target: [P, 4] RGB times mask, and mask (1 without masks).
    """

    origins: Tensor
    directions: Tensor
    first: Tensor
    target: Tensor


def choose_grid(views: Views, params: FieldsParams) -> Grid:
    """A grid for a capture, one voxel along its longest side; `refined` makes it finer.

    With masks: the bounding box of the visual hull. Without: contracted space about the point the cameras look
    at, with the cameras inside or near the kept ball; or, with `params.space` "bounded", a box around them.

    Raises:
        ValueError: nothing is left of the visual hull: masks or cameras are wrong.
    """
    centres, focus = views.cameras.centres, look_point(views.cameras)
    distance = (centres - focus).norm(dim=1)
    if views.masks is not None:
        low, high = focus - SPAN * distance.max(), focus + SPAN * distance.max()
        for _ in range(2):  # the second time around the first box
            grid = refined(box_grid(low, high), 32)
            inside = possible_voxels(views, grid).nonzero()
            if not len(inside):
                raise ValueError("no point is inside the masks of all views: check the masks and the camera poses")
            low, high = grid.to_world(inside.amin(0).float()), grid.to_world(inside.amax(0) + 1.0)
        return box_grid(low, high)
    if params.space == "bounded":
        low, high = centres.amin(0), centres.amax(0)
        pad = params.reach * (high - low).max()
        return box_grid(torch.minimum(low, focus) - pad, torch.maximum(high, focus) + pad)
    radius = params.reach * float(distance.median())
    return Grid((-2.0,) * 3, 4.0, (1, 1, 1), contracted=True, centre=tuple(focus.tolist()), radius=radius)


def box_grid(low: Tensor, high: Tensor) -> Grid:
    """A bounded grid around the box from `low` [3] to `high` [3]; its voxel is the longest side."""
    side = float((high - low).max())
    x, y, z = ((high - low) / side).tolist()  # fractions of the longest side, made whole by `refined`
    return Grid(tuple(low.tolist()), side, (x, y, z))  # type: ignore[arg-type]


def refined(grid: Grid, resolution: int) -> Grid:
    """The same region with `resolution` voxels along its longest side."""
    size = grid.voxel_size / resolution
    x, y, z = (math.ceil(n * resolution - 1e-3) for n in grid.shape)
    return replace(grid, voxel_size=size, shape=(x, y, z))


def look_point(cameras: Cameras) -> Tensor:
    """The point [3] closest to all optical axes (least squares)."""
    axis = cameras.T_world_from_camera[:, :3, 2].double()
    across = torch.eye(3).to(axis) - axis[:, :, None] * axis[:, None]  # projects off the axis
    right = (across @ cameras.centres.double()[:, :, None]).sum(0)
    ridge = 1e-6 * torch.eye(3).to(axis)  # parallel axes have no such point
    mean = cameras.centres.double().mean(0)[:, None]
    return torch.linalg.solve(across.sum(0) + ridge, right + ridge @ mean)[:, 0].to(cameras.centres)


def possible_voxels(views: Views, grid: Grid) -> Tensor:
    """Bool of `grid.shape`: voxels that may hold something: `seen_voxels`, with masks those in the `visual_hull`."""
    seen = seen_voxels(views.cameras, grid)
    return seen if views.masks is None else seen & visual_hull(views, grid)


def visual_hull(views: Views, grid: Grid) -> Tensor:
    """Bool of `grid.shape`: voxels whose projection touches every mask.

    Beyond an image there is nothing if its mask ends before the border. If the border cuts off what the mask covers, as
    in a room, the image says nothing of what it does not show.
    """
    assert views.masks is not None
    points = grid.to_world(voxel_centres(grid, views.cameras.K.device))
    number = torch.arange(len(points), device=points.device)
    for view, values in enumerate(views.masks):
        if not len(number):
            break
        image, depth = views.cameras.project(view, points[number])
        h, w = values.shape
        nearest = depth.clamp_min(1e-3).median()
        radius = float(0.75 * grid.voxel_size * views.cameras.K[view, 0, 0] / nearest)  # of a voxel, in pixels
        k = math.ceil(radius)
        mask = torch.from_numpy(values).to(points)[None, None]
        touched = torch.nn.functional.max_pool2d(mask, 2 * k + 1, 1, k)[0, 0] > 0
        x, y = (image.clamp(-1e6, 1e6)).long().unbind(1)
        possible = touched[y.clamp(0, h - 1), x.clamp(0, w - 1)] & (depth > 0)
        if values[[0, -1]].any() or values[:, [0, -1]].any():
            possible |= (x < 0) | (x >= w) | (y < 0) | (y >= h) | (depth <= 0)
        number = number[possible]
    hull = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    hull[number] = True
    return hull.view(grid.shape)


def seen_voxels(cameras: Cameras, grid: Grid) -> Tensor:
    """Bool of `grid.shape`: voxels that a tenth of the views (at least 2) see, and none from very near.

    What one camera sees alone or right before it would else be painted there, as fog in front of the truth.
    """
    world = grid.to_world(voxel_centres(grid, cameras.K.device))
    count = torch.zeros(len(world), device=world.device)
    near = NEAR * (cameras.centres - look_point(cameras)).norm(dim=1).median()
    clear = torch.ones_like(count, dtype=torch.bool)
    for view in range(len(cameras)):
        image, depth = cameras.project(view, world)
        size = cameras.sizes[view].to(image)
        count += ((image > -0.05 * size) & (image < 1.05 * size)).all(1) & (depth > 0)
        clear &= (world - cameras.centres[view]).norm(dim=1) > near
    return ((count >= max(2.0, len(cameras) / 10)) & clear).view(grid.shape)


def voxel_centres(grid: Grid, device: torch.device) -> Tensor:
    """[X Y Z, 3] grid coordinates of all voxel centres, the last axis fastest."""
    axes = [torch.arange(n, device=device) + 0.5 for n in grid.shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)


def training_rays(views: Views, params: FieldsParams, generator: torch.Generator) -> TrainingRays:
    """All pixels of all views, shuffled: one ray a pixel, `subrays`^2 where the mask is neither 0 nor 1."""
    origins, directions, owner, targets, base = [], [], [], [], 0
    for view, image in enumerate(views.images):
        h, w = image.shape[:2]
        colour, mask = target_image(views, view)
        mask = colour.new_ones(h, w) if mask is None else mask
        target = torch.cat([colour, mask[..., None]], dim=-1).view(-1, 4).to(views.cameras.K)
        edge = ((mask > 0) & (mask < 1)).view(-1).to(target.device)
        s = params.subrays if bool(edge.any()) else 1
        pixel = torch.arange(h * w, device=target.device)
        for chosen, n in ((~edge, 1), (edge, s)):
            o, d = views.cameras.grid_rays(view, h * n, w * n)
            d = d.view(h, n, w, n, 3).transpose(1, 2).reshape(h * w, n * n, 3)[chosen]
            directions.append(d.reshape(-1, 3))
            origins.append(o[:1].expand(len(directions[-1]), 3))
            owner.append(base + pixel[chosen].repeat_interleave(n * n))
        targets.append(target)
        base += h * w
    shuffle = torch.randperm(base, generator=generator)
    rank = torch.empty_like(shuffle)
    rank[shuffle] = torch.arange(base)
    place = rank.to(owner[0].device)[torch.cat(owner)]
    order = place.argsort(stable=True)
    counts = torch.bincount(place, minlength=base)
    first = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    target = torch.cat(targets)[shuffle.to(first.device)]
    return TrainingRays(torch.cat(origins)[order], torch.cat(directions)[order], first, target)
