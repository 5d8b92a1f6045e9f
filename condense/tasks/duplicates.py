"""Which scenes of a repository are the same one? Re-captured, recoloured, turned, cropped, or overlapping in part.

A method shortlists each scene's nearest others by one vector a scene; only those pairs are compared in full: key points
are matched, the scenes aligned rigidly, and the alignment judged by what is where. A twin matches nearly everywhere, so
what tells is not how much agrees but whether anything speaks against: a voxel of the one, well inside what the other
covers, with nothing near it there, and most of all many such voxels in one place.

- `condense`: key points of the scene model.
- `fpfh`: key points described by shape alone (`geometrydescriptor`); all else as `condense`.
- `pooled`, `pooled_teacher`, `shape_histogram`: the cosine of one vector a scene, nothing else: the scene model's, the
  frozen network's features lifted from the training views and averaged (a recoloured copy keeps those of the original:
  an advantage), and a histogram over heights and radii.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import label
from scipy.spatial import ConvexHull, cKDTree
from torch import Tensor
from torch.nn.functional import normalize

from condense.geometrydescriptor import shape_keypoints
from condense.keypoints import KeyPoints
from condense.links import Links, load_links
from condense.poses import mutual_matches, rotation_error_deg, scene_pose
from condense.ranking import pool
from condense.sparse import condense_scene, load_sparse
from condense.tasks.descriptors import shape_histogram
from condense.variantset import Derived, cropped, overlapping, recoloured, rotated
from condense.voxels import VoxelScene

Array = NDArray[np.float64]
POSITIVE = ("again", "recoloured", "rotated", "cropped", "overlap")
POINTS = 256  # key points a scene
SHORTLIST = 12  # others that a scene is compared with in full
NEAR = 1.5  # voxels within which a voxel counts as found in the other scene
STEPS = 8  # of ICP


@dataclass(frozen=True)
class Item:
    """A scene of the benchmark.

    Args:
        name: unique.
        base: the capture it stems from.
        kind: "original", "again", "twin", "part_a", "part_b", or a derived kind of POSITIVE.
        group: the class of the capture.
        scene: its voxels.
        T_from_base: [4, 4] T_item_from_base, world to world.
        teacher: [D] mean of the frozen network's features on its voxels.
    """

    name: str
    base: str
    kind: str
    group: str
    scene: VoxelScene
    T_from_base: Array
    teacher: Tensor


def benchmark_items(links: Iterable[Path], variants: Iterable[Path]) -> list[Item]:
    """Test captures, the variants, and of each capture with variants the scenes derived from its `again`."""
    items = [_item(load_links(path, ())) for path in links]
    bases = {item.name for item in items}
    for number, path in enumerate(variants):
        linked = load_links(path, ())
        if linked.meta["base"] in bases:
            items.append(_item(linked))
            if linked.meta["variant"] == "again":
                items += _derived_items(items[-1], linked, number)
    return items


def _item(links: Links) -> Item:
    meta = links.meta
    T = np.array(meta.get("T_variant_from_original", np.eye(4)))
    kind, base = meta.get("variant", "original"), meta.get("base", links.name)
    return Item(
        links.name,
        base,
        kind,
        meta["class"] if meta["kind"] == "object" else "room",
        links.scene,
        T,
        links.lifted.mean(0),
    )


def _derived_items(again: Item, links: Links, seed: int) -> list[Item]:
    parts = overlapping(links.scene, seed)
    made = {"recoloured": recoloured(links.scene, seed), "rotated": rotated(links.scene, seed)}
    made |= {"cropped": cropped(links.scene, seed), "part_a": parts[0], "part_b": parts[1]}
    return [_derived_item(again, kind, derived, links.lifted) for kind, derived in made.items()]


def _derived_item(again: Item, kind: str, derived: Derived, lifted: Tensor) -> Item:
    T = derived.T_derived_from_original.numpy() @ again.T_from_base
    teacher = derived.carry(lifted).mean(0)
    name = f"{again.base}_{kind}"
    return dataclasses.replace(again, name=name, kind=kind, scene=derived.scene, T_from_base=T, teacher=teacher)


@dataclass(frozen=True)
class Shape:
    """What comparing a scene in full needs of it.

    Args:
        points: its key points.
        centres: [N, 3] its voxels' centres, world.
        coords: [N, 3] their places in the grid.
        voxel: edge of a voxel.
        tree: over the centres.
        facets: [F, 4] of the centres' convex hull: n . x + d <= 0 inside.
    """

    points: KeyPoints
    centres: Array
    coords: NDArray[np.int64]
    voxel: float
    tree: cKDTree
    facets: Array

    @staticmethod
    def of(scene: VoxelScene, points: KeyPoints) -> Shape:
        """The shape of a scene with these key points."""
        centres = scene.centres.double().numpy()
        facets = ConvexHull(centres, qhull_options="QJ").equations  # joggled: a flat scene has a hull as well
        return Shape(points, centres, scene.coords.long().numpy(), scene.grid.voxel_size, cKDTree(centres), facets)

    @property
    def size(self) -> float:
        """The diagonal of the box around the centres."""
        return float(np.linalg.norm(np.ptp(self.centres, axis=0)))


@dataclass(frozen=True)
class Aligned:
    """Two scenes laid over each other.

    Args:
        T_b_from_a: [4, 4] rigid.
        evidence: [7] what tells whether they are the same, see `evidence`.
    """

    T_b_from_a: Array
    evidence: Array


def align(a: Shape, b: Shape, max_error: float = 0.04, seed: int = 0) -> Aligned | None:
    """Lays scene `a` over `b` by mutual matches of their key points, then by ICP on their voxels.

    Args:
        a: a scene.
        b: another.
        max_error: distance of an inlier, as a share of the smaller scene's size.
        seed: of RANSAC.

    Returns:
        None where no rigid motion explains three matches.
    """
    cosine = a.points.descriptors @ b.points.descriptors.T
    matches = mutual_matches(cosine)
    ends = a.points.positions.numpy()[matches[:, 0]], b.points.positions.numpy()[matches[:, 1]]
    found = scene_pose(*ends, max_error * min(a.size, b.size), seed)
    if found is None:
        return None
    T = refined(a, b, found.T_b_from_a)
    return Aligned(T, evidence(a, b, T, found.inliers))


def refined(a: Shape, b: Shape, T: Array) -> Array:
    """T_b_from_a after STEPS of ICP (Besl and McKay 1992) on the voxels within an ever smaller distance of each other."""
    for reach in np.linspace(3, NEAR, STEPS) * max(a.voxel, b.voxel):
        moved = carry(T, a.centres)
        distance, nearest = b.tree.query(moved, distance_upper_bound=reach)
        near = np.isfinite(distance)
        if near.sum() < 3:
            return T
        T = _rigid(moved[near], b.centres[nearest[near]]) @ T
    return T


def carry(T: Array, points: Array) -> Array:
    """Points [N, 3] through T [4, 4]."""
    return points @ T[:3, :3].T + T[:3, 3]


def _rigid(a: Array, b: Array) -> Array:
    """[4, 4] the rigid motion nearest to carrying a [M, 3] onto b (Kabsch 1976)."""
    middle_a, middle_b = a.mean(0), b.mean(0)
    u, _, vt = np.linalg.svd((a - middle_a).T @ (b - middle_b))
    R = vt.T @ np.diag([1, 1, np.sign(np.linalg.det(vt.T @ u.T))]) @ u.T
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = R, middle_b - R @ middle_a
    return T


def evidence(a: Shape, b: Shape, T: Array, inliers: NDArray[np.bool_]) -> Array:
    """[7] what speaks for and against two scenes, laid over each other by T_b_from_a, being one.

    - the smaller and the larger share of a scene's voxels that are found in the other (within NEAR voxels);
    - the larger share, of a scene's voxels inside the other's convex hull, that are not found there: what one scene has
      where the other looked, and saw nothing;
    - the log of the largest number of those that touch;
    - the share of matches that are inliers, and the log of their number;
    - the mean cosine of key points that come to lie together.
    """
    reach = NEAR * max(a.voxel, b.voxel)
    sides = [_unfound(a, b, T, reach), _unfound(b, a, np.linalg.inv(T), reach)]
    shares = sorted(1 - missing.mean() for missing, _, _ in sides)
    against = max((missing & inside).sum() / max(inside.sum(), 1) for missing, inside, _ in sides)
    piece = max(piece for _, _, piece in sides)
    distance, nearest = cKDTree(b.points.positions.numpy()).query(carry(T, a.points.positions.numpy()))
    met = distance <= 2 * reach
    cosine = (a.points.descriptors * b.points.descriptors[nearest]).sum(1).numpy()[met].mean() if met.any() else 0.0
    return np.array([*shares, against, np.log1p(piece), inliers.mean(), np.log1p(inliers.sum()), cosine])


def _unfound(a: Shape, b: Shape, T: Array, reach: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_], int]:
    """Which voxels [N] of `a` have none of `b` near, which lie within its hull, and the largest piece of both at once."""
    moved = carry(T, a.centres)
    missing = np.isinf(b.tree.query(moved, distance_upper_bound=reach)[0])
    inside = (moved @ b.facets[:, :3].T + b.facets[:, 3] <= 0).all(1)
    volume = np.zeros(a.coords.max(0) + 1, dtype=bool)
    volume[tuple(a.coords[missing & inside].T)] = True
    pieces, count = label(volume, np.ones((3, 3, 3)))
    return missing, inside, int(np.bincount(pieces.ravel())[1:].max()) if count else 0
