"""Laying one scene over another, and what then speaks for and against their being the same one.

A near-duplicate agrees with a scene nearly everywhere, so what tells is not how much agrees but whether anything speaks
against: a voxel of the one, well inside what the other covers, with nothing near it there, and most of all many such
voxels in one place. Colours are not compared: the light may be another. Not differentiable.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label
from scipy.spatial import ConvexHull, cKDTree

from condense.keypoints import KeyPoints
from condense.poses import mutual_matches, scene_pose
from condense.voxels import VoxelScene

Array = NDArray[np.float64]
NEAR = 1.5  # voxels within which a voxel counts as found in the other scene
STARTS = 6  # of RANSAC, with other draws each
TRIALS = 200  # of each of them
BEST = 3  # of what they find is refined
STEPS = 10  # of ICP
SAMPLE = 400  # voxels that ICP moves


@dataclass(frozen=True)
class Shape:
    """What comparing a scene in full needs of it.

    Args:
        points: its key points.
        centres: [N, 3] its voxels' centres, world.
        coords: [N, 3] their places in the grid.
        colours: [N, 3] RGB in [0, 1].
        voxel: edge of a voxel.
        tree: over the centres.
        facets: [F, 4] of the centres' convex hull: n . x + d <= 0 inside.
    """

    points: KeyPoints
    centres: Array
    coords: NDArray[np.int64]
    colours: Array
    voxel: float
    tree: cKDTree
    facets: Array

    @staticmethod
    def of(scene: VoxelScene, points: KeyPoints) -> Shape:
        """The shape of a scene with these key points."""
        centres = scene.centres.double().numpy()
        facets = ConvexHull(centres, qhull_options="QJ").equations  # joggled: a flat scene has a hull as well
        coords, colours = scene.coords.long().numpy(), scene.colour.double().numpy()
        return Shape(points, centres, coords, colours, scene.grid.voxel_size, cKDTree(centres), facets)

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


def align(a: Shape, b: Shape, max_error: float = 0.04) -> Aligned | None:
    """Lays scene `a` over `b` by mutual matches of their key points, then by ICP on their voxels.

    A single RANSAC often ends with what fits most matches and few voxels: from some short ones, those are refined that
    lay the most key points on the other scene, and the one that then lays the most voxels there is kept.

    Args:
        a: a scene.
        b: another.
        max_error: distance of an inlier, as a share of the smaller scene's size.

    Returns:
        None where no rigid motion explains three matches.
    """
    matches = mutual_matches(a.points.descriptors @ b.points.descriptors.T)
    ends = a.points.positions.numpy()[matches[:, 0]], b.points.positions.numpy()[matches[:, 1]]
    radius = max_error * min(a.size, b.size)
    starts = [scene_pose(*ends, radius, seed, trials=TRIALS) for seed in range(STARTS)]
    poses = [start.T_b_from_a for start in starts if start is not None]
    if not poses:
        return None
    corners = [np.asarray(shape.points.positions.double()) for shape in (a, b)]
    first = sorted(poses, key=lambda T: -_agreement(a, b, T, *corners))[:BEST]
    thinned = [shape.centres[:: max(1, len(shape.centres) // SAMPLE)] for shape in (a, b)]
    T = max((refined(a, b, start) for start in first), key=lambda T: _agreement(a, b, T, *thinned))
    agreeing = np.linalg.norm(carry(T, np.asarray(ends[0], dtype=float)) - ends[1], axis=1) <= radius
    return Aligned(T, evidence(a, b, T, int(agreeing.sum())))


def _agreement(a: Shape, b: Shape, T: Array, from_a: Array, from_b: Array) -> float:
    """How many of some points of either scene, as shares added up, lie near a voxel of the other under T_b_from_a."""
    reach = NEAR * max(a.voxel, b.voxel)
    there = b.tree.query(carry(T, from_a), distance_upper_bound=reach)[0]
    back = a.tree.query(carry(np.asarray(np.linalg.inv(T)), from_b), distance_upper_bound=reach)[0]
    return float(np.isfinite(there).mean() + np.isfinite(back).mean())


def refined(a: Shape, b: Shape, T: Array) -> Array:
    """T_b_from_a after STEPS of ICP (Besl and McKay 1992), on voxels within an ever smaller distance of each other."""
    points = a.centres[:: max(1, len(a.centres) // SAMPLE)]
    for reach in np.linspace(5, NEAR, STEPS) * max(a.voxel, b.voxel):
        moved = carry(T, points)
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


def evidence(a: Shape, b: Shape, T: Array, inliers: int) -> Array:
    """[7] what speaks for and against two scenes, laid over each other by T_b_from_a, being one.

    - the smaller and the larger share of a scene's voxels that are found in the other (within NEAR voxels);
    - of a scene's voxels inside the other's convex hull, the share not found there, what one scene has where the other
      looked and saw nothing: the log of the larger share, plus 0.01;
    - the log of the largest number of those that touch, plus 1;
    - the log of the number of matches that agree with the pose, plus 1;
    - the mean cosine of key points that come to lie together;
    - how far the colours that lie together are from being an affine map of each other, the worse way round (RMS): light
      and recolouring change all colours alike, other materials do not.
    """
    reach, back = NEAR * max(a.voxel, b.voxel), np.asarray(np.linalg.inv(T))
    sides = [_unfound(a, b, T, reach), _unfound(b, a, back, reach)]
    shares = sorted(1 - missing.mean() for missing, _, _ in sides)
    against = max((missing & inside).sum() / max(inside.sum(), 1) for missing, inside, _ in sides)
    piece = max(piece for _, _, piece in sides)
    distance, nearest = cKDTree(b.points.positions.numpy()).query(carry(T, a.points.positions.numpy()))
    met = distance <= 2 * reach
    cosine = (a.points.descriptors * b.points.descriptors[nearest]).sum(1).numpy()[met].mean() if met.any() else 0.0
    colour = max(_recolouring_error(a, b, T, reach), _recolouring_error(b, a, back, reach))
    return np.array([*shares, np.log(against + 0.01), np.log1p(piece), np.log1p(inliers), cosine, colour])


def _recolouring_error(a: Shape, b: Shape, T: Array, reach: float) -> float:
    """RMS of what the best affine map of the colours of `a` leaves of those nearest in `b`; 1 where none are near."""
    distance, nearest = b.tree.query(carry(T, a.centres), distance_upper_bound=reach)
    met = np.isfinite(distance)
    if not met.any():
        return 1.0
    source, target = np.pad(a.colours[met], ((0, 0), (0, 1)), constant_values=1.0), b.colours[nearest[met]]
    return float(np.sqrt(np.mean((target - source @ np.linalg.lstsq(source, target, rcond=None)[0]) ** 2)))


def _unfound(a: Shape, b: Shape, T: Array, reach: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_], int]:
    """Which voxels [N] of `a` have none of `b` near, which lie in its hull, and the largest piece of both at once."""
    moved = carry(T, a.centres)
    missing = np.isinf(b.tree.query(moved, distance_upper_bound=reach)[0])
    inside = np.all(moved @ b.facets[:, :3].T + b.facets[:, 3] <= 0, axis=1)
    volume = np.zeros(a.coords.max(0) + 1, dtype=bool)
    volume[tuple(a.coords[missing & inside].T)] = True
    pieces, count = label(volume, np.ones((3, 3, 3)))
    return missing, inside, int(np.bincount(pieces.ravel())[1:].max()) if count else 0


def unfound(a: VoxelScene, b: VoxelScene, T_b_from_a: Array) -> NDArray[np.bool_]:
    """[N] bool: the voxels of `a` that have none of `b` within NEAR voxels."""
    moved, other = carry(T_b_from_a, a.centres.double().numpy()), cKDTree(b.centres.double().numpy())
    return np.isinf(other.query(moved, distance_upper_bound=NEAR * max(a.grid.voxel_size, b.grid.voxel_size))[0])
