"""Laying one scene over another, and what then speaks for and against their being the same one.

Scenes are taken to stand upright, as cameras are in `posesearch`: one is laid over the other by a turn about the z axis
and a shift, so each match of key points votes for a shift at every turn, and where many votes meet is tried: unlike
random draws, this misses nothing that the matches say.

A near-duplicate agrees with a scene nearly everywhere, so what tells is not how much agrees but whether anything speaks
against: a voxel of the one, well inside what the other covers, with nothing near it there, and most of all many such
voxels in one place. Colours are not compared: the light may be another. Not differentiable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import label
from scipy.spatial import ConvexHull, cKDTree
from torch import Tensor

from condense.keypoints import KeyPoints
from condense.poses import mutual_matches
from condense.voxels import VoxelScene

Array = NDArray[np.float64]
NEAR = 1.5  # voxels within which a voxel counts as found in the other scene
FLAT = 0.02  # variation of colours that tells nothing
TURNS = 36  # that are tried, evenly
STARTS = 6  # poses that most matches vote for
BEST = 3  # of them are refined
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

    def covers(self, points: Array) -> NDArray[np.bool_]:
        """[M] whether points [M, 3] lie in the convex hull."""
        return np.all(points @ self.facets[:, :3].T + self.facets[:, 3] <= 0, axis=1)

    @property
    def size(self) -> float:
        """The diagonal of the box around the centres."""
        return float(np.linalg.norm(np.ptp(self.centres, axis=0)))


@dataclass(frozen=True)
class Aligned:
    """Two scenes laid over each other.

    Args:
        T_b_from_a: [4, 4] a turn about z and a shift.
        evidence: [7] what tells whether they are the same, see `evidence`.
    """

    T_b_from_a: Array
    evidence: Array


def align(a: Shape, b: Shape, max_error: float = 0.04) -> Aligned | None:
    """Lays scene `a` over `b`: where most matches of key points say (`voted`), then by ICP on their voxels.

    Of the poses that get most votes those are refined that lay the key points best on the other scene, and the one that
    then lays the voxels best there is kept.

    Args:
        a: a scene.
        b: another.
        max_error: distance between votes that agree, and of an inlier, as a share of the smaller scene's size.

    Returns:
        None where either has no key points.
    """
    cosine = a.points.descriptors @ b.points.descriptors.T
    if not cosine.numel():
        return None
    radius = max_error * min(a.size, b.size)
    corners = [np.asarray(shape.points.positions.double()) for shape in (a, b)]
    first = sorted(voted(a.points, b.points, cosine, radius), key=lambda T: -_agreement(a, b, T, *corners))[:BEST]
    thinned = [shape.centres[:: max(1, len(shape.centres) // SAMPLE)] for shape in (a, b)]
    T = max((refined(a, b, start) for start in first), key=lambda T: _agreement(a, b, T, *thinned))
    i, j = mutual_matches(cosine).T
    agreeing = np.linalg.norm(carry(T, corners[0][i]) - corners[1][j], axis=1) <= radius
    return Aligned(T, evidence(a, b, T, int(agreeing.sum())))


def voted(a: KeyPoints, b: KeyPoints, cosine: Tensor, radius: float) -> list[Array]:
    """Up to STARTS poses T_b_from_a [4, 4] that most matches vote for, most first: Hough voting over turns about z.

    Args:
        a: key points of a scene, A of them.
        b: of another, B of them.
        cosine: [A, B] of their descriptors; each key point is matched with its most similar one.
        radius: distance between the shifts of two matches from which they do not agree.
    """
    ends = torch.cat(
        [
            torch.stack([torch.arange(len(a)), cosine.argmax(1)], 1),
            torch.stack([cosine.argmax(0), torch.arange(len(b))], 1),
        ]
    )
    i, j = torch.unique(ends, dim=0).T
    R = _turns()
    middle = a.positions.mean(0)
    shift = b.positions[j] - (a.positions[i] - middle) @ R.mT  # [TURNS, M, 3] where each match puts the middle of a
    u, v = a.positions[i], b.positions[j]
    rise = shift[0, :, 2]  # at every turn
    stretch = _lengths(u) - _lengths(v)  # no turn changes either, so no other two matches agree at any:
    p, q = (stretch.square() + (rise[:, None] - rise).square() < 1.001 * radius**2).nonzero().T
    u, v = u[p] - u[q], v[p] - v[q]
    along, across = (u * v)[:, :2].sum(1), u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]
    apart = (u.square() + v.square()).sum(1) - 2 * (u * v)[:, 2] - 2 * (R[:, :2, 0] @ torch.stack([along, across]))
    vote = (1 - apart / radius**2).clamp_min(0)  # |v - R u|^2 = |u|^2 + |v|^2 - 2 v . R u
    votes = vote.new_zeros(len(i), TURNS).index_add_(0, p, vote.T.contiguous()).T  # [TURNS, M]
    poses: list[Array] = []
    while len(poses) < STARTS and votes.max() > 0:
        turn, match = divmod(int(votes.argmax()), votes.shape[1])
        agree = (shift[turn] - shift[turn, match]).norm(dim=1) < radius
        T = np.eye(4)
        T[:3, :3] = R[turn].double()
        T[:3, 3] = (shift[turn, agree].mean(0) - R[turn] @ middle).double()
        poses.append(T)
        beside = torch.arange(turn - 1, turn + 2) % TURNS  # this turn and its neighbours
        near = (shift[beside] - shift[turn, match]).norm(dim=2) < 2 * radius
        votes[beside] = votes[beside].masked_fill(near, 0)
    return poses


def _lengths(points: Tensor) -> Tensor:
    """[M, M] distances between points [M, 3], seen from above."""
    return torch.cdist(points[:, :2], points[:, :2], compute_mode="donot_use_mm_for_euclid_dist")


def _turns() -> Tensor:
    """[TURNS, 3, 3] about z."""
    angle = torch.arange(TURNS) * 2 * math.pi / TURNS
    R = torch.zeros(TURNS, 3, 3)
    R[:, 0, 0] = R[:, 1, 1] = angle.cos()
    R[:, 1, 0] = angle.sin()
    R[:, 0, 1], R[:, 2, 2] = -R[:, 1, 0], 1
    return R


def _agreement(a: Shape, b: Shape, T: Array, from_a: Array, from_b: Array) -> float:
    """How well points of either scene lie on the other's voxels under T_b_from_a, less those that should but do not.

    Near points count by how near they are, else sliding a part along the whole would cost nothing.
    """
    reach = NEAR * max(a.voxel, b.voxel)
    total = 0.0
    for shape, points, motion in ((b, from_a, T), (a, from_b, np.asarray(np.linalg.inv(T)))):
        moved = carry(motion, points)
        distance = shape.tree.query(moved, distance_upper_bound=reach)[0]
        near = np.isfinite(distance)
        total += (1 - (distance[near] / reach) ** 2).sum() / len(points) - (~near & shape.covers(moved)).mean()
    return float(total)


def refined(a: Shape, b: Shape, T: Array) -> Array:
    """T_b_from_a after STEPS of ICP (Besl and McKay 1992), on voxels within an ever smaller distance of each other.

    They count by how near they are.
    """
    points = a.centres[:: max(1, len(a.centres) // SAMPLE)]
    for reach in np.linspace(5, 1, STEPS) * max(a.voxel, b.voxel):
        moved = carry(T, points)
        distance, nearest = b.tree.query(moved, distance_upper_bound=reach)
        near = np.isfinite(distance)
        if near.sum() < 3:
            return T
        weight = (1 - (distance[near] / reach) ** 2) ** 2 + 1e-9
        T = _upright(moved[near], b.centres[nearest[near]], weight / weight.sum()) @ T
    return T


def carry(T: Array, points: Array) -> Array:
    """Points [N, 3] through T [4, 4]."""
    return points @ T[:3, :3].T + T[:3, 3]


def _upright(a: Array, b: Array, weight: Array) -> Array:
    """[4, 4] the turn about z and shift nearest to carrying a [M, 3] onto b; the weights [M] sum to 1 (Kabsch 1976)."""
    middle_a, middle_b = weight @ a, weight @ b
    H = ((a - middle_a) * weight[:, None]).T @ (b - middle_b)
    angle = np.arctan2(H[0, 1] - H[1, 0], H[0, 0] + H[1, 1])
    T = np.eye(4)
    T[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    T[:3, 3] = middle_b - T[:3, :3] @ middle_a
    return T


def evidence(a: Shape, b: Shape, T: Array, inliers: int) -> Array:
    """[7] what speaks for and against two scenes, laid over each other by T_b_from_a, being one.

    - the smaller and the larger share of a scene's voxels that are found in the other (within NEAR voxels);
    - of a scene's voxels inside the other's convex hull, the share not found there, what one scene has where the other
      looked and saw nothing: the log of the larger share, plus 0.01;
    - the log of the largest number of those that touch, plus 1;
    - the log of the number of matches that agree with the pose, plus 1;
    - the mean cosine of key points that come to lie together;
    - how far the colours that lie together are from being an affine map of each other, the worse way round, as a share
      of how much they vary: light and recolouring change all colours alike, other materials do not.
    """
    reach, back = NEAR * max(a.voxel, b.voxel), np.asarray(np.linalg.inv(T))
    sides = [_unfound(a, b, T, reach), _unfound(b, a, back, reach)]
    shares = sorted(1 - missing.mean() for missing, _, _ in sides)
    against = max((missing & inside).sum() / max(inside.sum(), 1) for missing, inside, _ in sides)
    piece = max(piece for _, _, piece in sides)
    distance, nearest = cKDTree(b.points.positions.numpy()).query(carry(T, a.points.positions.numpy()))
    met = distance <= 2 * reach
    cosine = (a.points.descriptors * b.points.descriptors[nearest]).sum(1).numpy()[met].mean() if met.any() else 0.0
    colour = max(_unlike(a, b, T, reach), _unlike(b, a, back, reach))
    return np.array([*shares, np.log(against + 0.01), np.log1p(piece), np.log1p(inliers), cosine, colour])


def _unlike(a: Shape, b: Shape, T: Array, reach: float) -> float:
    """In [0, 1]: RMS of what the best affine map of the colours of `a` leaves of those nearest in `b`, over how much
    these vary; 1 where none are near.
    """
    distance, nearest = b.tree.query(carry(T, a.centres), distance_upper_bound=reach)
    met = np.isfinite(distance)
    if not met.any():
        return 1.0
    source, target = np.pad(a.colours[met], ((0, 0), (0, 1)), constant_values=1.0), b.colours[nearest[met]]
    left = target - source @ np.linalg.lstsq(source, target, rcond=None)[0]
    return float(np.sqrt(np.mean(left**2)) / (np.sqrt(target.var(0).mean()) + FLAT))


def _unfound(a: Shape, b: Shape, T: Array, reach: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_], int]:
    """Which voxels [N] of `a` have none of `b` near, which lie in its hull, and the largest piece of both at once."""
    moved = carry(T, a.centres)
    missing = np.isinf(b.tree.query(moved, distance_upper_bound=reach)[0])
    inside = b.covers(moved)
    volume = np.zeros(a.coords.max(0) + 1, dtype=bool)
    volume[tuple(a.coords[missing & inside].T)] = True
    pieces, count = label(volume, np.ones((3, 3, 3)))
    return missing, inside, int(np.bincount(pieces.ravel())[1:].max()) if count else 0


def unfound(a: VoxelScene, b: VoxelScene, T_b_from_a: Array) -> NDArray[np.bool_]:
    """[N] bool: the voxels of `a` that have none of `b` within NEAR voxels."""
    moved, other = carry(T_b_from_a, a.centres.double().numpy()), cKDTree(b.centres.double().numpy())
    return np.isinf(other.query(moved, distance_upper_bound=NEAR * max(a.grid.voxel_size, b.grid.voxel_size))[0])
