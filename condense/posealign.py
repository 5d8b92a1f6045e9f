"""A camera's pose by rendering: where must it stand for the scene's voxels to look like the photograph?

Key points say roughly where a camera stood; in small images they lie half a pixel off, and degrees of the pose with
them. Here the scene is ray-marched into a small grid of cells, and opacity and colours are compared with the
photograph's mask and colours. Levenberg-Marquardt moves the camera until they agree best: first many poses on a coarse
grid of cells, of the scene at half its resolution, at last the best on a fine one (inverse rendering: iNeRF, Yen-Chen
et al. 2021). How the rendering changes with the camera is worked out from its own gradient across the image and its
depth, as in the direct alignment of images (Lucas and Kanade 1981; Engel et al. 2014): a step takes one rendering. The
photograph's light is another one, so each channel is compared after the gain and offset that fit best; what decides in
the end is local contrast. Nothing is trained. Not differentiable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, pad

from condense.cameras import Cameras
from condense.posesearch import rotation_grid, turned
from condense.raymarch import felt_cells, pad_index, render_weights, sample_cells, trilinear_padded
from condense.voxels import VoxelScene, halved, index_volume

FAINT = 1e-3  # weights of samples, and opacities of cells, below it are left out
ALIKE = 10.0  # degrees between two poses below which only the better one is tried further
RIDGE = 1e-3  # pull of the light's gain to 1 and of its offset to 0


@dataclass(frozen=True)
class Level:
    """One grid of cells that a photograph is compared on.

    Args:
        side: cells along the longer side of the image.
        subrays: rays across and down a cell.
        poses: that are tried here, the best of the level before.
        steps: of each pose, at most.
        outlier: difference from which a cell counts little (Geman and McClure 1987).
        halved: render the scene at half its resolution.
        window: cells across the neighbourhood whose mean colour is taken off each colour, so that light which changes
            slowly across the image does not count; 0 takes nothing off.
    """

    side: int
    subrays: int
    poses: int
    steps: int
    outlier: float
    halved: bool = False
    window: int = 0


LEVELS = (
    Level(12, 1, 12, 0, 1.0, halved=True),
    Level(16, 2, 12, 6, 1.0, halved=True),
    Level(32, 1, 3, 10, 0.5),
    Level(64, 1, 1, 10, 0.3),
    Level(16, 4, 1, 0, 0.3, window=5),  # which scene it is, is judged so: fields lack what is finer
)


@dataclass(frozen=True)
class Photograph:
    """An image whose camera is looked for.

    Args:
        image: [H, W, 3] uint8.
        mask: [H, W] uint8, 255 = object.
        K: [3, 3] intrinsics in pixels.

    Raises:
        ValueError: a shape is not as above, or the mask covers nothing.
    """

    image: Tensor
    mask: Tensor
    K: Tensor

    def __post_init__(self) -> None:
        if self.image.shape != (*self.mask.shape, 3) or self.K.shape != (3, 3):
            shapes = [tuple(part.shape) for part in (self.image, self.mask, self.K)]
            raise ValueError(f"image, mask and K have shapes {shapes}, not (H, W, 3), (H, W) and (3, 3)")
        if not (self.mask >= 128).any():
            raise ValueError("the mask covers no pixel: nothing to look for; without a mask give 255 everywhere")

    @property
    def cut_out(self) -> bool:
        """Whether the mask leaves something out."""
        return bool((self.mask < 128).any())

    def on(self, level: Level) -> View:
        """The photograph on a level's grid of cells."""
        height, width = self.mask.shape
        rows, columns = (max(1, round(level.side * n / max(height, width))) for n in (height, width))
        mask = self.mask[None].float() / 255
        seen = adaptive_avg_pool2d(
            torch.cat([mask, mask * self.image.permute(2, 0, 1).float() / 255])[None], (rows, columns)
        )
        size = torch.tensor([columns * level.subrays, rows * level.subrays])
        camera = Cameras(self.K[None].float(), torch.eye(4)[None], torch.tensor([[width, height]])).resized(size)
        rays = camera.grid_rays(0, int(size[1]), int(size[0]))[1]
        return View(seen[0], rays, camera.K[0], level, self.cut_out)


@dataclass(frozen=True)
class View:
    """A photograph on a grid of cells.

    Args:
        seen: [4, h, w] the mask, and the colours times the mask.
        rays: [h s w s, 3] unit directions in the camera's frame, row-major; s the level's sub-rays.
        K: [3, 3] intrinsics in units of rays.
        level: whose grid it is.
        cut_out: whether the mask tells the scene from what lies beyond.
    """

    seen: Tensor
    rays: Tensor
    K: Tensor
    level: Level
    cut_out: bool

    def cells(self, maps: Tensor) -> Tensor:
        """[..., h, w] means over each cell's rays, [..., h s, w s]."""
        return avg_pool2d(maps, self.level.subrays)

    def weighed(self, off: Tensor) -> Tensor:
        """What counts of differences [B, 4, h, w] in opacity and colours: see `Level.window`."""
        if not self.level.window:
            return off
        colour, reach = off[:, 1:], self.level.window // 2
        colour = colour - avg_pool2d(pad(colour, (reach,) * 4, mode="replicate"), self.level.window, 1)
        return torch.cat([off[:, :1], colour], 1)


class Renderer:
    """A voxel scene, ready to be ray-marched from many cameras at once.

    Densities may be signed (`pooling.rendered_scene`): extinction is the positive part of what is interpolated.
    """

    def __init__(self, scene: VoxelScene) -> None:
        index, solid = index_volume(scene), scene.density > 0
        self.scene, self.padded = scene, pad_index(index)
        self.felt = felt_cells((index >= 0) & solid[index])
        centres = scene.centres[solid]
        self.middle = centres.median(0).values  # a contracted grid reaches far
        self.spread = float((centres - self.middle).square().sum(1).mean().sqrt())

    def render(self, R: Tensor, c: Tensor, view: View) -> tuple[Tensor, Tensor]:
        """Opacity and opacity-weighted colours [B, 4, h s, w s], and depths likewise [B, 1, h s, w s], of B cameras.

        Args:
            R: [B, 3, 3] R_world_from_camera; c: [B, 3] camera centres.
            view: whose rays are marched.
        """
        directions = (view.rays @ R.mT).reshape(-1, 3)
        origins = c[:, None].expand(-1, len(view.rays), -1).reshape(-1, 3)
        samples = sample_cells(origins, directions, self.scene.grid, self.felt, 1.0)
        voxel, corner = trilinear_padded(samples.position, self.padded)
        weights = render_weights((corner * _rows(self.scene.density, voxel)).sum(1).relu(), samples)
        kept = (weights > FAINT).nonzero()[:, 0]
        ray, t = _rows(samples.ray, kept), _rows(samples.t, kept)
        voxel, corner, weights = (_rows(each, kept) for each in (voxel, corner, weights))
        corner = corner / corner.sum(1, keepdim=True)
        colour = torch.einsum("sk,skc->sc", corner, _rows(self.scene.colour, voxel))
        depth = t * _rows(view.rays[:, 2].repeat(len(R)), ray)
        values = torch.cat([torch.ones_like(colour[:, :1]), colour, depth[:, None]], 1)
        sums = values.new_zeros(len(origins), 5).index_add_(0, ray, weights[:, None] * values)
        rows, columns = (n * view.level.subrays for n in view.seen.shape[1:])
        maps = sums.view(len(R), rows, columns, 5).permute(0, 3, 1, 2)
        return maps[:, :4], maps[:, 4:]


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """`values[index]`, twice as fast as indexing on a CPU."""
    return values.index_select(0, index.reshape(-1)).view(*index.shape, *values.shape[1:])


class Renderers:
    """A voxel scene's renderers, each made when it is first asked for: for many photographs of one scene.

    Args:
        scene: its voxels; the finer, the more precise a pose.
    """

    def __init__(self, scene: VoxelScene) -> None:
        self.scene = scene

    @cached_property
    def whole(self) -> Renderer:
        """At the scene's own resolution."""
        return Renderer(self.scene)

    @cached_property
    def half(self) -> Renderer:
        """At half of it."""
        return Renderer(halved(self.scene))


@dataclass
class Tried:
    """B poses and what they look like.

    Args:
        R: [B, 3, 3]; c: [B, 3].
        image: [B, 4, h s, w s] rendered opacity, and colours in the photograph's light.
        depth: [B, 1, h s, w s] times opacity.
        off: [B, 4, h, w] image minus photograph, of cells, weighed.
        cost: [B] mean over cells of d^2 / (d^2 + outlier^2), in [0, 1), d a cell's difference.
    """

    R: Tensor
    c: Tensor
    image: Tensor
    depth: Tensor
    off: Tensor
    cost: Tensor

    def __getitem__(self, rows: Tensor) -> Tried:
        return Tried(*(part[rows] for part in vars(self).values()))

    def take(self, rows: Tensor, other: Tried) -> None:
        """Replaces some rows by all of `other`."""
        for name, part in vars(self).items():
            part[rows] = getattr(other, name)


@torch.no_grad()
def pose_by_mask(photograph: Photograph, scene: Renderers) -> tuple[Tensor, float]:
    """T_world_from_camera [4, 4] from which a scene looks most like a photograph with a mask, and what it costs.

    Upright cameras all round the scene are tried, framed as the mask is. See `find_pose`.

    Args:
        photograph: with a mask (`Photograph.cut_out`).
        scene: that it may show.
    """
    R = rotation_grid()
    return find_pose(photograph, scene, R, framed(R, photograph, scene.half))


@torch.no_grad()
def find_pose(
    photograph: Photograph, scene: Renderers, R: Tensor, c: Tensor, levels: tuple[Level, ...] = LEVELS
) -> tuple[Tensor, float]:
    """T_world_from_camera [4, 4] of the pose that looks most like the photograph, and what it costs (see `Tried`).

    Args:
        photograph: of the scene.
        scene: that it may show.
        R: [B, 3, 3]; c: [B, 3]: poses to start from.
        levels: from coarse to fine.

    Raises:
        ValueError: nothing to start from.
    """
    if not len(R):
        raise ValueError("no pose to start from: give some, or a mask")
    for level in levels:
        renderer, view = scene.half if level.halved else scene.whole, photograph.on(level)
        tried = look(R, c, renderer, view, level.outlier)
        tried = descend(tried[distinct(R, tried.cost, level.poses)], renderer, view, level)
        R, c = tried.R, tried.c
    best = tried.cost.argmin()
    T = torch.eye(4)
    T[:3, :3], T[:3, 3] = R[best], c[best]
    return T, float(tried.cost[best])


def distinct(R: Tensor, cost: Tensor, count: int) -> Tensor:
    """Indices of up to `count` poses of low cost that are turned against each other by ALIKE or more."""
    order = cost.argsort(stable=True)
    trace = torch.einsum("aij,bij->ab", R[order], R[order])
    near = trace > 1 + 2 * math.cos(math.radians(ALIKE))
    kept: list[int] = []
    for row in range(len(order)):
        if len(kept) < count and not near[row, kept].any():
            kept.append(row)
    return order[kept]


def look(R: Tensor, c: Tensor, renderer: Renderer, view: View, outlier: float) -> Tried:
    """What the scene looks like from B poses, and how far that is from the photograph."""
    image, depth = renderer.render(R, c, view)
    image = in_light(image, view)
    off = view.weighed(view.cells(image) - view.seen)
    square = off.square().sum(1)
    return Tried(R, c, image, depth, off, (square / (square + outlier**2)).flatten(1).mean(1))


def in_light(image: Tensor, view: View) -> Tensor:
    """Renderings [B, 4, h s, w s] with the gain and offset of each colour that fit the photograph best.

    A photograph without a mask shows what lies beyond the scene as well, in a colour that is not known: the one that
    fits best is put there, and opacity says nothing.
    """
    opacity, colour = view.cells(image).flatten(2).split([1, 3], dim=1)  # [B, 1, n] and [B, 3, n]
    bases = [colour, opacity.expand_as(colour)]
    weight = (opacity * view.seen[0].flatten()).expand_as(colour)
    if not view.cut_out:
        bases.append(1 - bases[1])
        weight = torch.ones_like(colour)
    A = torch.stack(bases, 3)  # [B, 3, n, 2 or 3]
    ridge, none = RIDGE * weight.shape[2], torch.eye(A.shape[3])
    H = torch.einsum("bkn,bkni,bknj->bkij", weight, A, A) + ridge * none
    b = torch.einsum("bkn,bkni,kn->bki", weight, A, view.seen[1:].flatten(1)) + ridge * none[0]
    gain, offset, *beyond = torch.linalg.solve(H, b[..., None])[..., None].unbind(2)  # [B, 3, 1, 1] each
    opacity, lit = image[:, :1], gain * image[:, 1:] + offset * image[:, :1]
    if beyond:
        opacity, lit = torch.ones_like(opacity), lit + beyond[0] * (1 - opacity)
    return torch.cat([opacity, lit], 1)


def descend(tried: Tried, renderer: Renderer, view: View, level: Level) -> Tried:
    """Levenberg-Marquardt on each of B poses; one that no longer gets better is left alone."""
    damping = torch.full_like(tried.cost, 1e-2)
    live = torch.arange(len(tried.cost))
    for _ in range(level.steps):
        now = tried[live]
        J = slopes(now, view, renderer.middle).flatten(3)  # [B, 6, 4, n]
        off = now.off.flatten(2)
        weight = 1 / (1 + off.square().sum(1) / level.outlier**2).square()
        H = torch.einsum("bn,bicn,bjcn->bij", weight, J, J)
        diagonal = H.diagonal(dim1=1, dim2=2)
        H = H + torch.diag_embed(damping[live, None] * diagonal.clamp_min(1e-4 * diagonal.amax(1, keepdim=True)) + 1e-9)
        step = -torch.linalg.solve(H, torch.einsum("bn,bicn,bcn->bi", weight, J, off)).clamp(-0.3, 0.3)
        new = look(*moved(now.R, now.c, renderer.middle, step), renderer, view, level.outlier)
        better = new.cost < now.cost
        tried.take(live[better], new[better])
        damping[live] = torch.where(better, damping[live] / 4, damping[live] * 8).clamp_min(1e-5)
        done = torch.where(better, now.cost - new.cost < 1e-4 * now.cost, damping[live] > 100)
        live = live[~done]
        if not len(live):
            break
    return tried


def slopes(tried: Tried, view: View, middle: Tensor) -> Tensor:
    """[B, 6, 4, h, w] how the cells change with the motions of `moved`: against the flow of what they show.

    Rays beside the scene, whose colours change where its edge moves over them, take the depth of their neighbours.
    """
    image, K, (rows, columns) = tried.image, view.K, tried.image.shape[2:]
    beyond = pad(image, (1, 1, 1, 1), mode="replicate")
    across = (beyond[:, :, 1:-1, 2:] - beyond[:, :, 1:-1, :-2]) / 2
    down = (beyond[:, :, 2:, 1:-1] - beyond[:, :, :-2, 1:-1]) / 2
    centre = ((middle - tried.c)[:, None] @ tried.R)[:, 0]  # [B, 3], the scene's middle in the camera's frame
    opacity, depth = avg_pool2d(torch.cat([image[:, :1], tried.depth], 1), 3, 1, 1).unbind(1)
    z = torch.where(opacity > FAINT, depth / opacity.clamp_min(FAINT), centre[:, 2, None, None])  # [B, h s, w s]
    z = z.clamp_min(FAINT * centre.norm(dim=1)[:, None, None])
    v, u = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
    x, y = (u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1]
    arm = torch.stack([x * z, y * z, z], 3) - centre[:, None, None]
    arm = arm.expand(3, *arm.shape)  # [3, B, h s, w s, 3], one for each axis
    axes = torch.eye(3)[:, None, None, None].expand_as(arm)
    motion = torch.cat([torch.linalg.cross(axes, arm), axes * centre.norm(dim=1)[:, None, None, None]])
    flow_x = K[0, 0] * (motion[..., 0] - x * motion[..., 2]) / z
    flow_y = K[1, 1] * (motion[..., 1] - y * motion[..., 2]) / z
    J = -(across * flow_x[:, :, None] + down * flow_y[:, :, None]).transpose(0, 1)
    return view.weighed(view.cells(J.flatten(0, 1))).unflatten(0, J.shape[:2])


def moved(R: Tensor, c: Tensor, middle: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
    """B cameras to which the scene seems moved: turned about its middle, then shifted, in the cameras' frames.

    Args:
        R: [B, 3, 3]; c: [B, 3].
        middle: [3] of the scene.
        motion: [B, 6] a rotation vector in radians, and a shift as a share of the distance to the middle.
    """
    centre = ((middle - c)[:, None] @ R)[:, 0]
    return turned(R, c, centre, motion[:, :3], motion[:, 3:] * centre.norm(dim=1, keepdim=True))


def framed(R: Tensor, photograph: Photograph, renderer: Renderer, rounds: int = 2) -> Tensor:
    """[B, 3] camera centres from which the scene's opacity has the mean and spread of the photograph's mask.

    Of each camera the first guess goes by how far the scene's voxels lie from its middle; then it is rendered, and
    moved by what its opacity lacks (weak perspective).

    Args:
        R: [B, 3, 3] R_world_from_camera.
        photograph: with a mask.
        renderer: of the scene.
        rounds: of rendering and moving.
    """
    view = photograph.on(LEVELS[0])
    middle, spread, _ = _moments(view.seen[None, 0], view)
    depth = renderer.spread * math.sqrt(2 / 3) / spread.expand(len(R))
    centre = torch.cat([middle.expand(len(R), 2), torch.ones(len(R), 1)], 1) * depth[:, None]
    for _ in range(rounds):
        opacity = view.cells(renderer.render(R, _centre_of(R, centre, renderer), view)[0])[:, 0]
        there, wide, total = _moments(opacity, view)
        seen = total[:, None] > 0.5  # of a cell; what is out of sight stays where it is
        z = centre[:, 2:] * torch.where(seen, (wide / spread)[:, None].clamp(0.5, 2), torch.ones(()))
        ray = centre[:, :2] / centre[:, 2:] + torch.where(seen, middle - there, torch.zeros(()))
        centre = torch.cat([ray * z, z], 1)
    return _centre_of(R, centre, renderer)


def _centre_of(R: Tensor, middle: Tensor, renderer: Renderer) -> Tensor:
    """[B, 3] where cameras stand that see the scene's middle at `middle` [B, 3], in their frames."""
    return renderer.middle - (R @ middle[:, :, None])[:, :, 0]


def _moments(opacity: Tensor, view: View) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [B, 2], spread [B] (as slopes of rays) and total [B] of cells [B, h, w]."""
    rows, columns = opacity.shape[1:]
    v, u = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
    K, subrays = view.K, view.level.subrays
    x, y = (u * subrays - K[0, 2]) / K[0, 0], (v * subrays - K[1, 2]) / K[1, 1]
    ray = torch.stack([x, y]).flatten(1)  # [2, n]
    weight = opacity.flatten(1)
    total = weight.sum(1)
    weight = weight / total[:, None].clamp_min(1e-6)
    mean = weight @ ray.T
    spread = (weight @ ray.square().T - mean.square()).sum(1).clamp_min(1e-8).sqrt()
    return mean, spread, total
