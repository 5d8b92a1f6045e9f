"""A grammar of random objects, for the teacher's universe: solids, how they attach, how they are painted.

An object grows from one solid by attaching others below, above or beside it, once, in mirrored pairs, at four
corners or in a ring. The grammar knows nothing of the classes of the built-in captures: no template, no class,
other colours and proportions each time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from trimesh import Trimesh

from condense.synthetic import primitives as solids
from condense.synthetic import texture as tx
from condense.synthetic.render import Background, Light

COLOURS = {
    "red": (0.78, 0.13, 0.12), "orange": (0.92, 0.48, 0.10), "yellow": (0.93, 0.82, 0.20),
    "green": (0.18, 0.55, 0.22), "cyan": (0.20, 0.68, 0.70), "blue": (0.14, 0.27, 0.70),
    "purple": (0.48, 0.20, 0.62), "pink": (0.92, 0.55, 0.66), "brown": (0.42, 0.26, 0.14),
    "white": (0.92, 0.92, 0.90), "grey": (0.50, 0.50, 0.52), "black": (0.09, 0.09, 0.10),
}  # fmt: skip
PATTERNS = ("plain", "striped", "checked", "spotted", "wooden", "two-tone", "marbled")
KINDS = (
    "box", "cushion", "ellipsoid", "cylinder", "cone", "frustum", "bowl", "bottle", "ring", "arch", "prism",
    "wedge", "floor", "wall",
)  # fmt: skip
ROLES = ("core", "below", "above", "beside")


@dataclass(frozen=True)
class Region:
    """One solid of an object, with all its repetitions.

    Args:
        meshes: the copies, in the object's frame.
        kind: index into KINDS.
        role: index into ROLES.
        size: extents [3] of one copy before any tilt.
    """

    meshes: list[Trimesh]
    kind: int
    role: int
    size: np.ndarray


def solid(kind: str, size: np.ndarray, rng: np.random.Generator) -> Trimesh:
    """A solid with extents `size` [3] about the origin."""
    if kind == "box":
        mesh = solids.box(size, bevel=float(rng.choice([0, 0.1 * size.min()])))
    elif kind == "cushion":
        mesh = solids.superellipsoid(size, power=float(rng.uniform(3, 6)))
    elif kind == "ellipsoid":
        mesh = solids.ellipsoid(size)
    elif kind in ("cylinder", "cone", "frustum"):
        top = {"cylinder": 1.0, "cone": 0.02, "frustum": float(rng.uniform(0.4, 0.75))}[kind]
        up = 1.0 if rng.random() < 0.7 else -1.0
        mesh = solids.frustum((0, 0, -up), (0, 0, up), 1.0, top)
    elif kind == "bowl":
        outside = solids.arc(-90, 0, (1.0, rng.uniform(0.6, 1.4)), 7)
        mesh = solids.lathe(np.concatenate([outside, outside[::-1] * 0.85]))
    elif kind == "bottle":
        radius = rng.uniform(0.3, 1.0, 5)
        mesh = solids.lathe(np.stack([np.repeat(radius, 2)[1:], np.linspace(-1, 1, 9)], -1))
    elif kind == "ring":
        loop = np.insert(solids.arc(0, 360, 1.0, 25)[:-1], 2, 0, axis=1)
        mesh = solids.tube(loop, float(rng.uniform(0.12, 0.35)), closed=True)
    elif kind == "arch":
        bow = solids.arc(0, float(rng.uniform(140, 200)), 1.0, 13)
        mesh = solids.tube(solids.upright(bow), float(rng.uniform(0.1, 0.25)))
    elif kind == "prism":
        mesh = solids.prism(solids.arc(0, 360, 1.0, int(rng.integers(4, 8)))[:-1], 2.0)
    else:
        mesh = solids.prism(np.array([[0, 0], [1, 0], [rng.uniform(0, 1), 1]]), 2.0)
        mesh = solids.moved(mesh, rotate=solids.rotation((1, 0, 0), 90))
    low, high = mesh.bounds
    mesh.apply_translation(-(low + high) / 2)
    return mesh.apply_scale(size / np.maximum(high - low, 1e-6))


def proportions(rng: np.random.Generator, role: str) -> np.ndarray:
    """Extents [3] relative to the parent's: blobs, plates and rods; what hangs below is often tall."""
    thin, wide = rng.uniform(0.06, 0.3), rng.uniform(0.5, 1.2)
    shapes = {
        "blob": rng.uniform(0.3, 0.9, 3),
        "plate": np.array([wide, rng.uniform(0.5, 1.2), thin]),
        "rod": np.array([thin, thin * rng.uniform(0.7, 1.4), rng.uniform(0.4, 1.4)]),
    }
    odds = {"core": (0.6, 0.35, 0.05), "below": (0.25, 0.2, 0.55)}.get(role, (0.4, 0.3, 0.3))
    shape = rng.choice(list(shapes), p=odds)
    size = shapes[shape]
    turned = rng.random() < (0.15 if role == "below" and shape == "rod" else 0.45)
    return rng.permutation(size) if turned else size


def repeat(mesh: Trimesh, how: str, offset: np.ndarray, copies: int) -> list[Trimesh]:
    """Copies of a mesh at `offset` [3] and its images under a symmetry about the z axis."""
    placed = solids.moved(mesh, offset)
    if how == "ring":
        turns = np.arange(copies) * 360 / copies
        return [solids.moved(placed, rotate=solids.rotation((0, 0, 1), turn)) for turn in turns]
    mirrors = {"pair_x": [(-1, 1)], "pair_y": [(1, -1)], "corners": [(-1, 1), (1, -1), (-1, -1)]}
    mirrored = [placed.copy().apply_transform(np.diag([x, y, 1.0, 1.0])) for x, y in mirrors.get(how, [])]
    return [placed, *mirrored]


def attach(parent: Region, rng: np.random.Generator) -> Region:
    """A new region that touches the parent's first mesh."""
    low, high = parent.meshes[0].bounds
    half, centre = (high - low) / 2, (high + low) / 2
    role = str(rng.choice(ROLES[1:], p=(0.35, 0.3, 0.35)))
    scale = 2 * np.maximum(half, 0.35 * half.max())
    size = np.maximum(proportions(rng, role) * scale, 0.03)
    kind = str(rng.choice(KINDS[:12]))
    mesh = solid(kind, size, rng)
    central = bool((np.abs(centre[:2]) < 1e-6).all())
    how = str(rng.choice(["one", "pair_x", "pair_y", "corners", "ring"], p=(0.4, 0.15, 0.15, 0.15, 0.15)))
    how = how if central else "one"
    if rng.random() < 0.3:
        axis = (float(rng.normal()), float(rng.normal()), 0.0)
        mesh = solids.moved(mesh, rotate=solids.rotation(axis, float(rng.uniform(-35, 35))))
    if role == "beside":
        angle = rng.choice([0.0, 0.5, 1.0, 1.5]) * np.pi
        outward = np.array([np.cos(angle), np.sin(angle), 0.0])
        shift = outward * (half + 0.4 * size) + np.array([0, 0, rng.uniform(-0.8, 0.8) * half[2]])
    else:
        sign = 1 if role == "above" else -1
        spread = rng.uniform(0.3, 0.95, 2) * rng.choice([-1, 0, 1], 2) if how == "one" else rng.uniform(0.4, 0.95, 2)
        shift = np.append(spread * np.maximum(half[:2] - 0.3 * size[:2], 0), sign * (half[2] + 0.45 * size[2]))
    offset = centre + shift
    return Region(repeat(mesh, how, offset, int(rng.integers(3, 7))), KINDS.index(kind), ROLES.index(role), size)


def grow(rng: np.random.Generator) -> list[Region]:
    """A random object of 2 to 7 regions in the cube [-0.5, 0.5]^3, centred."""
    size = proportions(rng, "core")
    kind = str(rng.choice(KINDS[:12]))
    regions = [Region([solid(kind, size, rng)], KINDS.index(kind), 0, size)]
    for _ in range(int(rng.integers(1, 7))):
        parent = regions[0] if rng.random() < 0.6 else regions[int(rng.integers(len(regions)))]
        regions.append(attach(parent, rng))
    bounds = np.stack([mesh.bounds for region in regions for mesh in region.meshes])
    low, high = bounds[:, 0].min(0), bounds[:, 1].max(0)
    scale = rng.uniform(0.75, 1.0) / (high - low).max()
    for region in regions:
        for mesh in region.meshes:
            mesh.apply_translation(-(low + high) / 2).apply_scale(scale)
    return [replace(region, size=region.size * scale) for region in regions]


def paint(rng: np.random.Generator) -> tuple[tx.Texture, int, int]:
    """A random texture, its colour (index into COLOURS) and pattern (index into PATTERNS)."""
    names = list(COLOURS)
    first, second = (int(i) for i in rng.choice(len(names), 2, replace=False))
    a, b = (tuple(np.clip(np.array(COLOURS[names[i]]) + rng.normal(0, 0.05, 3), 0, 1)) for i in (first, second))
    shade = tuple(np.clip(np.array(a) * rng.uniform(0.5, 0.75), 0, 1))
    axis = tuple(np.eye(3)[rng.integers(3)])
    period, seed = float(rng.uniform(0.1, 0.35)), int(rng.integers(1 << 16))
    choices: list[tx.Texture] = [
        tx.Plain(a), tx.Stripes(a, b, period, axis), tx.Checks(a, b, period), tx.Spots(a, b, period),
        tx.Wood(a, shade, period, seed), tx.Gradient(a, b, axis, float(rng.uniform(0.2, 0.5))),
        tx.Marble(a, shade, period, seed),
    ]  # fmt: skip
    pattern = int(rng.choice(len(choices), p=(0.46, 0.09, 0.09, 0.09, 0.09, 0.09, 0.09)))
    return choices[pattern], first, pattern


def backdrop(rng: np.random.Generator) -> Background:
    """A random background: a passage between two colours by height, or clouds of them, or one colour."""
    a, b = rng.uniform(0, 1, (2, 3))
    grey = rng.random()
    a, b = (grey * colour.mean() + (1 - grey) * colour for colour in (a, b))
    kind, seed, scale = rng.integers(3), int(rng.integers(1 << 16)), rng.uniform(1, 8)

    def colour(directions: np.ndarray) -> np.ndarray:
        if kind == 0:
            amount = np.clip(directions[:, 2] * 1.2 + 0.5, 0, 1)
        elif kind == 1:
            amount = tx.value_noise(directions * scale + 10, seed)
        else:
            amount = np.zeros(len(directions))
        return a + amount[:, None] * (b - a)

    return colour


def lamp(rng: np.random.Generator) -> Light:
    """A random lamp above the scene."""
    angle, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.5)
    red, green, blue = (float(c) for c in 1 + rng.normal(0, 0.06, 3))
    direction = (float(np.cos(angle)), float(np.sin(angle)), float(height))
    return Light(direction, float(rng.uniform(0.35, 0.7)), (red, green, blue))
