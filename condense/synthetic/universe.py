"""The built-in teacher's own universe: random assemblies of solids, with dense labels for every pixel.

Single objects of the grammar (grammar.py) before a background, and some scenes of several objects on a floor
between walls. The labels say what a region is like (kind of solid, colour, pattern, size, ...) and where a pixel
lies (height in the object, distance from its axis, facing, ...). They are what the teacher learns to read off an
image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import trimesh
from numpy.typing import ArrayLike
from tqdm import tqdm

from condense.cameras import Cameras, look_at
from condense.parallel import parallel_map
from condense.synthetic import primitives as solids
from condense.synthetic.grammar import COLOURS, KINDS, PATTERNS, ROLES, Region, backdrop, grow, lamp, paint
from condense.synthetic.render import Part, render

SIDE = 96  # pixels of an image
CELLS = 48  # labels have half that resolution
IGNORE = 255
SURFACES = ("floor", "wall")  # kinds that are no object: labelled by kind, colour, pattern, facing, boundary

# Classes of each label. `kind` 0 is the background, where all others are IGNORE.
REGION_LABELS = {
    "kind": 1 + len(KINDS), "colour": len(COLOURS), "pattern": len(PATTERNS), "role": len(ROLES),
    "size": 5, "shape": 4, "axis": 3, "place": 5, "reach": 3, "count": 4,
}  # fmt: skip
PIXEL_LABELS = {"height": 8, "radius": 4, "along": 4, "facing": 4, "depth": 4, "boundary": 2}
LABELS = {**REGION_LABELS, **PIXEL_LABELS}


@dataclass(frozen=True)
class Views:
    """Rendered views; those of one scene follow each other.

    Args:
        images: uint8 [N, SIDE, SIDE, 3].
        labels: uint8 [N, len(LABELS), CELLS, CELLS]; IGNORE where a label does not apply.
        points: float16 [N, CELLS, CELLS, 3], surface points in the world, NaN at the background.
    """

    images: np.ndarray
    labels: np.ndarray
    points: np.ndarray


def bins(value: ArrayLike, count: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Which of `count` equal bins of [low, high] each value falls in, clamped."""
    return np.clip(np.floor((np.asarray(value) - low) / (high - low) * count), 0, count - 1).astype(np.uint8)


def region_row(region: Region, colour: int, pattern: int, bounds: np.ndarray) -> list[int]:
    """The labels of REGION_LABELS, in order, of a region of an object with `bounds` [2, 3]."""
    if KINDS[region.kind] in SURFACES:
        return [1 + region.kind, colour, pattern] + [IGNORE] * (len(REGION_LABELS) - 3)
    extent = np.maximum(bounds[1] - bounds[0], 1e-6)
    size = np.sort(region.size)
    flat, slim = size[0] / size[1], size[1] / size[2]
    shape = 3 if flat < 0.5 and slim < 0.5 else 1 if flat < 0.45 else 2 if slim < 0.5 else 0
    long_way = region.size.argmin() if shape == 1 else region.size.argmax()
    axis = 0 if shape == 0 else 1 if long_way == 2 else 2
    centre = np.mean([mesh.bounds.mean(0) for mesh in region.meshes], axis=0)
    first = region.meshes[0].bounds.mean(0)
    reach = np.linalg.norm(first[:2] - bounds.mean(0)[:2]) / np.linalg.norm(extent[:2])
    copies = len(region.meshes)
    return [
        1 + region.kind, colour, pattern, region.role,
        int(bins(size[2] / extent.max(), 5)), shape, axis,
        int(bins((centre[2] - bounds[0, 2]) / extent[2], 5)), int(bins(reach, 3, 0, 0.5)),
        min(copies, 4) - 1,
    ]  # fmt: skip


@dataclass
class Stage:
    """A scene being put together: parts to render, a row of labels and the bounds of its object per region."""

    parts: list[Part]
    rows: list[list[int]]
    bounds: list[np.ndarray]
    spans: list[tuple[float, float]]  # lowest and highest z of each region

    def add(self, regions: list[Region], rng: np.random.Generator, instance: int) -> None:
        """Paints and adds the regions of one object; two in three objects use few textures."""
        corners = np.concatenate([mesh.bounds for region in regions for mesh in region.meshes])
        bounds = np.stack([corners.min(0), corners.max(0)])
        paints = [paint(rng) for _ in range(len(regions) if rng.random() < 0.35 else 2)]
        for region in regions:
            texture, colour, pattern = paints[int(rng.integers(len(paints)))]
            mesh = solids.joined(region.meshes)
            self.parts.append(Part(mesh, texture, len(self.parts) + 1, instance, float(rng.uniform(0, 0.3))))
            self.rows.append(region_row(region, colour, pattern, bounds))
            self.bounds.append(bounds)
            self.spans.append((mesh.bounds[0, 2], mesh.bounds[1, 2]))


def compose(rng: np.random.Generator, room: bool) -> Stage:
    """One object about the origin, or 2 to 5 on a floor with up to two walls."""
    stage = Stage([], [], [], [])
    if not room:
        stage.add(grow(rng), rng, 1)
        return stage
    width = rng.uniform(1.6, 2.6)
    floor = Region([solids.box((width, width, 0.04), (0, 0, -0.02))], KINDS.index("floor"), 0, np.array([2, 2, 0.04]))
    stage.add([floor], rng, 1)
    for x, y in [(1, 0), (0, 1)][: int(rng.integers(0, 3))]:
        size = np.array([0.04 if x else width, 0.04 if y else width, 1.3])
        wall = solids.box(size, (x * width / 2, y * width / 2, 0.65))
        stage.add([Region([wall], KINDS.index("wall"), 0, size)], rng, len(stage.parts) + 1)
    spots = rng.permutation([(-0.25, -0.25), (-0.25, 0.25), (0.25, -0.25), (0.25, 0.25), (0, 0)])
    for x, y in spots[: int(rng.integers(2, 6))]:
        regions, scale = grow(rng), rng.uniform(0.5, 0.9)
        T = trimesh.transformations.rotation_matrix(rng.uniform(0, 2 * np.pi), (0, 0, 1))
        T[:3, :3] *= scale
        bottom = min(mesh.bounds[0, 2] for region in regions for mesh in region.meshes) * scale
        T[:3, 3] = x * width, y * width, -bottom
        for mesh in (mesh for region in regions for mesh in region.meshes):
            mesh.apply_transform(T)
        stage.add([replace(region, size=region.size * scale) for region in regions], rng, len(stage.parts) + 1)
    return stage


def cameras_about(rng: np.random.Generator, views: int, parts: list[Part], room: bool) -> Cameras:
    """Cameras from a little below to nearly above; an object about fills the image, a room is seen from one side."""
    azimuth, rise = rng.uniform(0, 2 * np.pi, views), rng.uniform(-0.2, 0.93, views)
    distance, target = rng.uniform(1.6, 2.3, views), rng.normal(0, 0.03, (views, 3))
    if room:
        azimuth = rng.uniform(np.pi, 1.5 * np.pi) + rng.normal(0, 0.4, views)
        rise, distance = rng.uniform(0.25, 0.85, views), rng.uniform(1.5, 2.6, views)
        target = rng.normal(0, 0.25, (views, 3)) + np.array([0, 0, 0.3])
    flat = np.sqrt(1 - rise**2)
    eyes = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), rise], -1) * distance[:, None] + target
    poses = look_at(torch.from_numpy(eyes), torch.from_numpy(target)).float()
    centred = torch.eye(3).repeat(views, 1, 1)
    cameras = Cameras(centred, poses, torch.full((views, 2), SIDE))
    focal = SIDE * rng.uniform(0.9, 1.3, views)
    if not room:
        points = torch.from_numpy(np.concatenate([part.mesh.vertices for part in parts])).float()
        reach = [float(cameras.project(v, points)[0].abs().max()) for v in range(views)]
        focal = 0.48 * SIDE / np.array(reach) * rng.uniform(0.75, 1.15, views)
    centred[:, 0, 0] = centred[:, 1, 1] = torch.from_numpy(focal).float()
    centred[:, :2, 2] = SIDE / 2
    return cameras


def make_scene(seed: int, index: int, views: int, rooms: float) -> Views:
    """Scene `index` of the universe `seed`, a room with probability `rooms`; the same bytes every time."""
    rng = np.random.default_rng([seed, index])
    room = bool(rng.random() < rooms)
    stage = compose(rng, room)
    cameras = cameras_about(rng, views, stage.parts, room)
    shot = render(stage.parts, cameras, lamp(rng), backdrop(rng), supersample=1)
    step = SIDE // CELLS
    region = shot.labels[..., 0].astype(np.int64)  # [V, SIDE, SIDE]
    edge = np.zeros(region.shape, bool)
    edge[:, 1:] |= region[:, 1:] != region[:, :-1]
    edge[:, :, 1:] |= region[:, :, 1:] != region[:, :, :-1]
    edge = np.max(edge.reshape(views, CELLS, step, CELLS, step), axis=(2, 4))
    region, depth = region[:, ::step, ::step], shot.depth[:, ::step, ::step]
    points = np.stack([_unproject(cameras, v, depth[v], step) for v in range(views)])  # [V, CELLS, CELLS, 3]
    labels = _labels(stage, region, points, edge, cameras)
    points[region == 0] = np.nan
    return Views(shot.images, labels, points.astype(np.float16))


def _unproject(cameras: Cameras, view: int, depth: np.ndarray, step: int) -> np.ndarray:
    """World points [CELLS, CELLS, 3] of every `step`-th pixel's depth along the optical axis."""
    at = np.arange(CELLS) * step + 0.5
    pixels = np.stack(np.meshgrid(at, at, indexing="xy"), -1).reshape(-1, 2)
    origins, directions = cameras.pixel_rays(view, torch.from_numpy(pixels).float())
    along = directions @ cameras.T_world_from_camera[view, :3, 2]
    distance = torch.from_numpy(depth).reshape(-1) / along
    return (origins + directions * distance[:, None]).reshape(*depth.shape, 3).numpy()


def _labels(stage: Stage, region: np.ndarray, points: np.ndarray, edge: np.ndarray, cameras: Cameras) -> np.ndarray:
    """All labels [V, len(LABELS), CELLS, CELLS] from the region map and surface points."""
    rows = np.array([[0] + [IGNORE] * (len(REGION_LABELS) - 1), *stage.rows], np.uint8)
    bounds = np.stack([np.array([[0, 0, 0], [1, 1, 1]]), *stage.bounds])[region]  # [V, h, w, 2, 3]
    spans = np.array([(0, 1), *stage.spans])[region]  # [V, h, w, 2]
    low, high = bounds[..., 0, :], bounds[..., 1, :]
    extent = np.maximum(high - low, 1e-6)
    away = np.linalg.norm((points - (low + high) / 2)[..., :2], axis=-1)
    eyes = cameras.centres.numpy()[:, None, None]
    middle = np.linalg.norm((low + high) / 2 - eyes, axis=-1)
    nearer = (np.linalg.norm(points - eyes, axis=-1) - middle) / np.linalg.norm(extent, axis=-1)
    pixel = [
        bins((points[..., 2] - low[..., 2]) / extent[..., 2], 8),
        bins(away / np.linalg.norm(extent[..., :2], axis=-1), 4, 0, 0.5),
        bins((points[..., 2] - spans[..., 0]) / np.maximum(spans[..., 1] - spans[..., 0], 1e-6), 4),
        _facing(points, eyes),
        bins(nearer, 4, -0.5, 0.5),
        edge.astype(np.uint8),
    ]
    kind: np.ndarray = rows[region][..., 0]
    ground = np.isin(kind, [1 + KINDS.index(name) for name in SURFACES])
    for name, label in zip(PIXEL_LABELS, pixel, strict=True):
        if name != "boundary":
            label[region == 0] = IGNORE
        if name not in ("boundary", "facing"):
            label[ground] = IGNORE
    return np.concatenate([rows[region].transpose(0, 3, 1, 2), np.stack(pixel, 1)], 1)


def _facing(points: np.ndarray, eyes: np.ndarray) -> np.ndarray:
    """Which way the surface turns: up 0, down 1, towards the camera 2, sideways 3 (left or right)."""
    across, down = np.gradient(points, axis=2), np.gradient(points, axis=1)
    normal = np.cross(down, across)
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)
    view = eyes - points
    view /= np.maximum(np.linalg.norm(view, axis=-1, keepdims=True), 1e-9)
    normal *= np.sign(np.sum(normal * view, -1, keepdims=True))
    level = view[..., :2] / np.maximum(np.linalg.norm(view[..., :2], axis=-1, keepdims=True), 1e-9)
    frontal = np.sum(normal[..., :2] * level, -1)
    cases = [normal[..., 2] > 0.7, normal[..., 2] < -0.7, frontal > 0.7]
    return np.select(cases, [0, 1, 2], 3).astype(np.uint8)


def make_universe(scenes: int, views: int, rooms: float, seed: int, processes: int) -> Views:
    """`scenes` scenes of `views` views each; the same for any number of processes."""
    jobs = [(seed, index, views, rooms) for index in range(scenes)]
    title = "teacher's universe"
    if processes > 1:
        made = parallel_map(make_scene, jobs, processes, title)
    else:
        made = [make_scene(*job) for job in tqdm(jobs, desc=title)]
    return Views(*(np.concatenate([getattr(m, name) for m in made]) for name in ("images", "labels", "points")))
