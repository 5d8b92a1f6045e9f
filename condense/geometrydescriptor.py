"""Fast Point Feature Histograms of a scene's voxels (Rusu, Blodow and Beetz, ICRA 2009): key points from shape alone.

Nothing is learned, and colour is not looked at. Not differentiable.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from condense.keypoints import KeyPoints, spread_maxima, voxel_normals
from condense.voxels import VoxelScene

RADIUS = 5.0  # of a point's neighbourhood, in voxels
BINS = 11  # of each of the three angles


def fpfh(points: NDArray[np.floating], normals: NDArray[np.floating], radius: float = RADIUS) -> NDArray[np.float64]:
    """[N, 3 BINS] histograms, each angle's BINS summing to 1; zeros where a point has no neighbour.

    A point's own histogram (SPFH) plus the mean of its neighbours', each divided by its distance (eq. 4).

    Args:
        points: [N, 3], in voxels.
        normals: [N, 3] unit; a point whose normal is 0 takes no part.
        radius: of a neighbourhood, in voxels.
    """
    count = len(points)
    pairs = cKDTree(points).query_pairs(radius, output_type="ndarray")  # [P, 2]
    pairs = pairs[(np.abs(normals[pairs]).sum(-1) > 0).all(1)]
    distance = np.linalg.norm(points[pairs[:, 1]] - points[pairs[:, 0]], axis=1)
    pairs, distance = pairs[distance > 0], distance[distance > 0]
    bins = _bins(points, normals, pairs, distance)  # [P, 3]
    both = np.concatenate([pairs, pairs[:, ::-1]])  # a pair counts for either point
    cells = both[:, :1] * 3 * BINS + np.tile(bins, (2, 1))
    own = np.bincount(cells.ravel(), minlength=count * 3 * BINS).reshape(count, 3 * BINS).astype(float)
    neighbours = np.bincount(both[:, 0], minlength=count)[:, None].clip(1)
    own /= neighbours
    weight = csr_matrix((1 / np.tile(distance, 2), both.T), (count, count))
    mixed = own + (weight @ own) / neighbours
    return mixed / mixed[:, :BINS].sum(1, keepdims=True).clip(1e-9)


def _bins(points: NDArray, normals: NDArray, pairs: NDArray, distance: NDArray) -> NDArray[np.int64]:
    """[P, 3] the bins of the three angles of pairs, in [0, 3 BINS): of the Darboux frame at one point of each pair."""
    line = (points[pairs[:, 1]] - points[pairs[:, 0]]) / distance[:, None]
    slope = [(normals[pairs[:, side]] * line).sum(1) for side in (0, 1)]
    swap = (np.abs(slope[1]) > np.abs(slope[0]))[:, None]  # the frame stands where the normal is nearer to the line
    first, second = (np.where(swap, normals[pairs[:, b]], normals[pairs[:, a]]) for a, b in ((0, 1), (1, 0)))
    line = np.where(swap, -line, line)
    v = np.cross(line, first)
    v /= np.linalg.norm(v, axis=1, keepdims=True).clip(1e-9)
    w = np.cross(first, v)
    alpha, phi = (v * second).sum(1), (first * line).sum(1)
    theta = np.arctan2((w * second).sum(1), (first * second).sum(1)) / np.pi
    values = np.stack([alpha, phi, theta], axis=1)  # each in [-1, 1]
    return ((values + 1) / 2 * BINS).astype(np.int64).clip(0, BINS - 1) + BINS * np.arange(3)


def shape_keypoints(scene: VoxelScene, count: int = 256) -> KeyPoints:
    """Key points described by shape: those whose histograms are least like the mean one, spread over the scene.

    Descriptors are square roots of histograms, so that their cosine is the Bhattacharyya coefficient.
    """
    normals = voxel_normals(scene)
    histograms = fpfh(scene.coords.double().numpy(), normals.double().numpy())
    roots = torch.from_numpy(np.sqrt(histograms / 3)).float()  # [N, 33] unit length
    score = (roots - roots.mean(0)).norm(dim=1).clamp(0, 1) * roots.any(dim=1)
    kept = spread_maxima(scene.centres, score, count)
    return KeyPoints(scene.centres[kept], normals[kept], score[kept], roots[kept], scene.colour[kept])
