"""Triangle meshes of simple solids. Units are the capture's own; +Z is up.

Nearly everything is a `loft`: closed rings of points joined one to the next.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import trimesh
from numpy.typing import ArrayLike
from trimesh import Trimesh


def loft(rings: ArrayLike, cap: bool = True, closed: bool = False) -> Trimesh:
    """Joins M rings of K points.

    Args:
        rings: [M, K, 3]; a ring may shrink to one point (an apex).
        cap: close the first and the last ring by a fan about its mean.
        closed: join the last ring to the first (a torus) and cap nothing.
    """
    rings = np.asarray(rings, float)
    m, k, _ = rings.shape
    i, j = np.meshgrid(np.arange(m if closed else m - 1), np.arange(k), indexing="ij")
    here, right = i * k + j, i * k + (j + 1) % k
    up, diagonal = (i + 1) % m * k + j, (i + 1) % m * k + (j + 1) % k
    faces = [np.stack(corners, -1).reshape(-1, 3) for corners in ((here, right, diagonal), (here, diagonal, up))]
    vertices = rings.reshape(-1, 3)
    if cap and not closed:
        vertices = np.concatenate([vertices, rings[0].mean(0)[None], rings[-1].mean(0)[None]])
        ring = np.arange(k)
        faces.append(np.stack([(ring + 1) % k, ring, np.full(k, m * k)], -1))
        last = (m - 1) * k
        faces.append(np.stack([last + ring, last + (ring + 1) % k, np.full(k, m * k + 1)], -1))
    mesh = Trimesh(vertices, np.concatenate(faces), process=False)
    mesh.merge_vertices()
    mesh.update_faces(mesh.area_faces > 1e-12)
    return mesh


def box(size: ArrayLike, centre: ArrayLike = (0, 0, 0), bevel: float = 0.0) -> Trimesh:
    """An axis-aligned box; `bevel` cuts its edges and corners by so much."""
    half = np.asarray(size, float) / 2
    signs = np.array(list(np.ndindex(2, 2, 2))) * 2.0 - 1
    if bevel <= 0:
        points = signs * half
    else:
        cut = min(bevel, 0.9 * half.min())
        points = np.concatenate([signs * (half - cut * (1 - np.eye(3)[axis])) for axis in range(3)])
    return trimesh.convex.convex_hull(points + np.asarray(centre, float))


def superellipsoid(radii: ArrayLike, centre: ArrayLike = (0, 0, 0), power: float = 2.0, sections: int = 24) -> Trimesh:
    """|x/a|^p + |y/b|^p + |z/c|^p = 1: an ellipsoid at power 2, a cushion near 4, a rounded box near 8."""
    latitude = np.linspace(-np.pi / 2, np.pi / 2, sections // 2 + 1)[:, None]
    longitude = np.linspace(0, 2 * np.pi, sections, endpoint=False)[None]
    x, y, z = np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)
    direction = np.stack(np.broadcast_arrays(x, y, z), -1)
    direction = np.sign(direction) * np.abs(direction) ** (2 / power)
    return loft(direction * np.asarray(radii, float) + np.asarray(centre, float), cap=False)


def ellipsoid(radii: ArrayLike, centre: ArrayLike = (0, 0, 0), sections: int = 24) -> Trimesh:
    """An axis-aligned ellipsoid."""
    return superellipsoid(radii, centre, 2.0, sections)


def lathe(profile: ArrayLike, centre: ArrayLike = (0, 0, 0), sections: int = 32) -> Trimesh:
    """A surface of revolution about Z from a profile [N, 2] of (radius, height); ends are capped.

    Go up the outside and down the inside for an open vessel with a wall.
    """
    radius, height = np.asarray(profile, float).T
    angle = np.linspace(0, 2 * np.pi, sections, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle), np.zeros(sections)], -1)
    rings = circle[None] * radius[:, None, None]
    rings[..., 2] = height[:, None]
    return loft(rings + np.asarray(centre, float))


def frustum(
    start: ArrayLike, end: ArrayLike, radius0: float, radius1: float | None = None, sections: int = 20
) -> Trimesh:
    """A round rod from `start` to `end`; a cylinder by default, a cone where `radius1` is 0."""
    radius1 = radius0 if radius1 is None else radius1
    return tube(np.stack([start, end]), [radius0, radius1], sections)


def tube(path: ArrayLike, radius: ArrayLike, sections: int = 12, closed: bool = False) -> Trimesh:
    """A tube along a path [N, 3].

    `radius` is a number, one number a point [N], or two a point [N, 2] for a flattened section: the first across
    the path and level (as near as may be), the second at right angles to it. A `closed` path is a loop.
    """
    path = np.asarray(path, float)
    radius = np.asarray(radius, float)
    radius = np.broadcast_to(radius[:, None] if radius.ndim == 1 else radius, (len(path), 2))
    tangent = np.roll(path, -1, 0) - np.roll(path, 1, 0) if closed else np.gradient(path, axis=0)
    tangent = tangent / np.linalg.norm(tangent, axis=1, keepdims=True)
    across = np.cross(tangent[0], [0.0, 0.0, 1.0])
    across = across if np.linalg.norm(across) > 0.05 else np.array([1.0, 0.0, 0.0])
    angle = np.linspace(0, 2 * np.pi, sections, endpoint=False)
    rings = []
    for point, direction, size in zip(path, tangent, radius, strict=True):
        across = across - direction * (across @ direction)  # carried along the path: no twist
        across = across / np.linalg.norm(across)
        other = np.cross(direction, across)
        rings.append(point + np.cos(angle)[:, None] * across * size[0] + np.sin(angle)[:, None] * other * size[1])
    return loft(np.stack(rings), closed=closed)


def prism(outline: ArrayLike, height: float, centre: ArrayLike = (0, 0, 0)) -> Trimesh:
    """A simple polygon [N, 2] (either turn) in the XY plane, extruded along Z, half of `height` to each side."""
    outline = np.asarray(outline, float)
    x, y = outline.T
    if np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) < 0:
        outline = outline[::-1]
    low, high = (np.insert(outline, 2, z, axis=1) for z in (-height / 2, height / 2))
    cap = ears(outline)
    bottom, top = Trimesh(low, cap[:, ::-1], process=False), Trimesh(high, cap, process=False)
    mesh = joined([loft([low, high], cap=False), bottom, top])
    mesh.merge_vertices()
    return mesh.apply_translation(np.asarray(centre, float))


def ears(outline: np.ndarray) -> np.ndarray:
    """Triangles [N - 2, 3] of a simple polygon [N, 2] that turns left, by clipping ears (Meisters, 1975)."""
    left = list(range(len(outline)))
    triangles = []
    while len(left) > 3:
        for n, b in enumerate(left):
            a, c = left[n - 1], left[(n + 1) % len(left)]
            if _turn(outline[a], outline[b], outline[c]) <= 0:
                continue
            others = outline[[v for v in left if v not in (a, b, c)]]
            inside = np.ones(len(others), bool)
            for p, q in ((a, b), (b, c), (c, a)):
                inside &= _turn(outline[p], outline[q], others) >= 0
            if not inside.any():
                break
        triangles.append((a, b, c))  # a degenerate polygon clips the last corner seen, so this ends
        left.remove(b)
    return np.array([*triangles, tuple(left)])


def _turn(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Twice the signed area of triangles a, b, c [..., 2]."""
    u, v = b - a, c - a
    return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]


def arc(start: float, stop: float, radius: float | tuple[float, float] = 1.0, points: int = 13) -> np.ndarray:
    """Points [N, 2] of an elliptic arc, angles in degrees."""
    angle = np.radians(np.linspace(start, stop, points))
    return np.stack([np.cos(angle), np.sin(angle)], -1) * np.asarray(radius)


def rotation(axis: Sequence[float], degrees: float, point: Sequence[float] = (0, 0, 0)) -> np.ndarray:
    """The [4, 4] rotation by `degrees` about `axis` through `point`."""
    return trimesh.transformations.rotation_matrix(np.radians(degrees), axis, point)


def moved(mesh: Trimesh, translation: ArrayLike = (0, 0, 0), rotate: np.ndarray | None = None) -> Trimesh:
    """A copy of the mesh, rotated ([4, 4]) and then translated."""
    mesh = mesh.copy()
    if rotate is not None:
        mesh.apply_transform(rotate)
    return mesh.apply_translation(np.asarray(translation, float))


def joined(meshes: Sequence[Trimesh]) -> Trimesh:
    """Several meshes as one."""
    vertices, faces = trimesh.util.append_faces([m.vertices for m in meshes], [m.faces for m in meshes])
    return Trimesh(vertices, faces, process=False)


def upright(points: ArrayLike) -> np.ndarray:
    """Points [N, 2] of the (x, z) plane in space: [N, 3], y = 0."""
    return np.insert(np.asarray(points, float), 1, 0, axis=1)


def pair(mesh: Trimesh) -> list[Trimesh]:
    """The mesh and its mirror image across the XZ plane."""
    mirror = mesh.copy().apply_transform(np.diag([1.0, -1.0, 1.0, 1.0]))
    return [mesh, mirror]
