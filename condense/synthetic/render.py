"""Ray casting of textured meshes (embree): images, labels, coverage, depth.

Shading is Lambert with one hard shadow, an ambient term that is darker from below and in corners, and a mild
highlight; all but the highlight look the same from everywhere, so that a radiance field can fit them.
Embree may use other vector instructions on another kind of processor: a ray that grazes an edge can then hit the
other side, so renders are the same to the byte on one machine, and to a few pixels between machines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse
import trimesh
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from condense.cameras import Cameras
from condense.synthetic.texture import Colour, Texture

Background = Callable[[np.ndarray], np.ndarray]

# Fixed directions that probe how open the sky is above a point (Z up).
SKY = np.array([[0.6, 0.2, 0.77], [-0.2, 0.6, 0.77], [-0.6, -0.2, 0.77], [0.2, -0.6, 0.77], [0.0, 0.0, 1.0]])
CREASE = np.cos(np.radians(40))  # faces that meet at a sharper angle keep a hard edge


@dataclass(frozen=True)
class Part:
    """A mesh with one texture and one label.

    Args:
        mesh: in the world frame.
        texture: colours by point of the object's frame.
        label: part or semantic id, 1..255.
        instance: 1..255.
        gloss: strength of the highlight, 0 to 1.
        T_object_from_world: [4, 4]; where textures are looked up.
    """

    mesh: trimesh.Trimesh
    texture: Texture
    label: int
    instance: int = 1
    gloss: float = 0.1
    T_object_from_world: np.ndarray = field(default_factory=lambda: np.eye(4))


@dataclass(frozen=True)
class Light:
    """A distant lamp: direction towards it [3], share of the light that is ambient, colour."""

    direction: tuple[float, float, float] = (0.4, 0.3, 0.85)
    ambient: float = 0.5
    colour: Colour = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Rendering:
    """Renders of V views, H x W pixels.

    images uint8 [V, H, W, 3]; labels uint8 [V, H, W, 3] (label, instance, 0; the most frequent one of a pixel's
    rays, 0 where that is the background); coverage float32 [V, H, W], the share of rays that hit; depth float32
    [V, H, W] along the optical axis, mean over the rays of the pixel's label, 0 at the background.
    """

    images: np.ndarray
    labels: np.ndarray
    coverage: np.ndarray
    depth: np.ndarray


class Scene:
    """Parts gathered for ray casting."""

    def __init__(self, parts: Sequence[Part]):
        self.parts = list(parts)
        self.corners = np.concatenate([part.mesh.triangles for part in parts])  # [F, 3, 3]
        self.part_of_face = np.repeat(np.arange(len(parts)), [len(part.mesh.faces) for part in parts])
        self.normals = np.concatenate([corner_normals(part.mesh) for part in parts])  # [F, 3, 3]
        self.embree = EmbreeScene()
        TriangleMesh(self.embree, np.ascontiguousarray(self.corners, dtype=np.float32))
        self.scale = float(np.ptp(self.corners.reshape(-1, 3), axis=0).max())

    def blocked(self, points: np.ndarray, direction: np.ndarray, reach: float) -> np.ndarray:
        """Bool [N]: whether something lies on points [N, 3] + (0 to `reach`) * `direction` ([3] or [N, 3])."""
        directions = np.broadcast_to(direction.astype(np.float32), points.shape).copy()
        dists = np.full(len(points), reach, np.float32)
        return self.embree.run(points.astype(np.float32), directions, dists, query="OCCLUDED") >= 0

    def cast(self, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, ...]:
        """First hits of float32 rays: part index [N] (-1 for none), distance [N], unit normal [N, 3]."""
        hit = self.embree.run(origins, directions, output=1)
        face, u, v = hit["primID"], hit["u"][:, None], hit["v"][:, None]
        corner = self.normals[face]  # face -1 reads nonsense, overwritten by the caller's mask
        normal = (1 - u - v) * corner[:, 0] + u * corner[:, 1] + v * corner[:, 2]
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
        towards = np.sum(normal * directions, axis=1, keepdims=True) > 0
        return np.where(face < 0, -1, self.part_of_face[face]), hit["tfar"], np.where(towards, -normal, normal)

    def albedo(self, part: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Colours [N, 3] of surface points [N, 3] that lie on parts [N]."""
        colour = np.zeros((len(points), 3))
        for index in np.unique(part):
            at, T = part == index, self.parts[index].T_object_from_world
            colour[at] = self.parts[index].texture(points[at] @ T[:3, :3].T + T[:3, 3])
        return np.clip(colour, 0, 1)

    def shade(
        self, part: np.ndarray, points: np.ndarray, normal: np.ndarray, view: np.ndarray, light: Light
    ) -> np.ndarray:
        """Colours [N, 3] of surface points seen along `view` [N, 3]."""
        towards = np.asarray(light.direction, float) / np.linalg.norm(light.direction)
        off = points + normal * (2e-3 * self.scale)
        lit = np.maximum(normal @ towards, 0)
        lit *= ~self.blocked(off, towards, 1e6)
        open_sky = np.mean([~self.blocked(off, d, 0.35 * self.scale) for d in SKY], axis=0)
        ambient = light.ambient * (0.75 + 0.25 * normal[:, 2]) * (0.55 + 0.45 * open_sky)
        half = towards - view
        half /= np.maximum(np.linalg.norm(half, axis=1, keepdims=True), 1e-9)
        gloss = np.array([p.gloss for p in self.parts])[part]
        shine = gloss * np.maximum(np.sum(normal * half, axis=1), 0) ** 20 * (lit > 0)
        diffuse = (ambient + (1 - light.ambient) * lit)[:, None] * self.albedo(part, points)
        return (1.15 * diffuse + 0.5 * shine[:, None]) * np.asarray(light.colour)


def render(
    parts: Sequence[Part], cameras: Cameras, light: Light, background: Background, supersample: int = 2
) -> Rendering:
    """Renders the parts for every camera (all views of one size).

    Args:
        parts: what is seen.
        cameras: V views.
        light: the lamp.
        background: unit ray directions [N, 3] -> rgb [N, 3] in [0, 1].
        supersample: rays along each side of a pixel.
    """
    scene = Scene(parts)
    views = [_render_view(scene, cameras, v, light, background, supersample) for v in range(len(cameras))]
    return Rendering(*(np.stack(channel) for channel in zip(*views, strict=True)))


def _render_view(
    scene: Scene, cameras: Cameras, view: int, light: Light, background: Background, s: int
) -> tuple[np.ndarray, ...]:
    """One view, by s * s rays a pixel: image, labels, coverage, depth."""
    width, height = (int(size) for size in cameras.sizes[view])
    rays = [ray.numpy() for ray in cameras.grid_rays(view, height * s, width * s)]
    origins, directions = (np.ascontiguousarray(ray, dtype=np.float32) for ray in rays)
    part, distance, normal = scene.cast(origins, directions)
    hit = part >= 0
    colour = np.zeros((len(part), 3))
    colour[~hit] = background(directions[~hit].astype(float))
    points = origins[hit] + distance[hit, None] * directions[hit]
    colour[hit] = scene.shade(part[hit], points, normal[hit], directions[hit], light)
    forward = cameras.T_world_from_camera[view, :3, 2].numpy()
    z = np.where(hit, distance, 0) * (directions @ forward)

    def per_pixel(values: np.ndarray) -> np.ndarray:
        """[s * H * s * W] -> [H, W, s * s], the rays of each pixel together."""
        return values.reshape(height, s, width, s).transpose(0, 2, 1, 3).reshape(height, width, s * s)

    image = np.stack([per_pixel(np.clip(colour[:, c], 0, 1)).mean(-1) for c in range(3)], -1)
    ids = np.array([(0, 0), *((p.label, p.instance) for p in scene.parts)])[part + 1]
    code = per_pixel(ids[:, 0] * 256 + ids[:, 1])
    votes = (code[..., :, None] == code[..., None, :]).sum(-1)  # [H, W, s * s]
    winner = np.take_along_axis(code, votes.argmax(-1)[..., None], -1)
    labels = np.concatenate([winner // 256, winner % 256, winner * 0], -1).astype(np.uint8)
    same = code == winner
    depth = (per_pixel(z) * same).sum(-1) / same.sum(-1)
    coverage = per_pixel(hit).mean(-1)
    return (image * 255 + 0.5).astype(np.uint8), labels, coverage.astype(np.float32), depth.astype(np.float32)


def corner_normals(mesh: trimesh.Trimesh) -> np.ndarray:
    """Shading normals [F, 3, 3] of the corners of each face: means over the faces that meet there smoothly.

    Faces that meet at a vertex count by area if their normals differ by less than 40 degrees; so round things
    look round and edges stay sharp.
    """
    faces, corners = mesh.faces, 3 * len(mesh.faces)
    at_vertex = scipy.sparse.csr_matrix((np.ones(corners), (np.arange(corners), faces.ravel())))
    pairs = (at_vertex @ at_vertex.T).tocoo()
    normal = np.repeat(mesh.face_normals, 3, axis=0)
    area = np.repeat(mesh.area_faces, 3)
    smooth = np.sum(normal[pairs.row] * normal[pairs.col], axis=1) > CREASE
    weight = scipy.sparse.csr_matrix((area[pairs.col[smooth]], (pairs.row[smooth], pairs.col[smooth])), (corners,) * 2)
    total = weight @ normal
    return (total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)).reshape(-1, 3, 3)


def seen_points(parts: Sequence[Part], cameras: Cameras, count: int, seed: int) -> tuple[np.ndarray, ...]:
    """Points spread evenly by area over the surfaces that at least one camera centre sees (frame edges ignored).

    Returns:
        points [count, 3], rgb [count, 3] in [0, 1] (unlit), outward normals [count, 3], labels [count] and instances
        [count]; a point may repeat where little is seen.
    """
    rng = np.random.default_rng(seed)
    scene, draws = Scene(parts), 4 * count
    edges = np.cumsum(np.concatenate([part.mesh.area_faces for part in parts]))
    face = np.searchsorted(edges, edges[-1] * (np.arange(draws) + rng.random(draws)) / draws).clip(max=len(edges) - 1)
    u, v = rng.random((2, draws, 1))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    corner = scene.corners[face]
    points = (1 - u - v) * corner[:, 0] + u * corner[:, 1] + v * corner[:, 2]
    seen = np.zeros(draws, bool)
    for eye in cameras.centres.numpy():
        ray = eye - points
        seen |= ~scene.blocked(points + 2e-3 * ray, ray, 0.99)
    chosen = np.resize(rng.permutation(np.flatnonzero(seen)), count)
    points, face = points[chosen], face[chosen]
    part = scene.part_of_face[face]
    normals = np.concatenate([p.mesh.face_normals for p in parts])[face]
    ids = np.array([(p.label, p.instance) for p in parts])[part]
    return points, scene.albedo(part, points), normals, ids[:, 0], ids[:, 1]
