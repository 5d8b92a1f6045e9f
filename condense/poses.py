"""Poses from matches: a camera from pixels and points (PnP), a rigid alignment from two sets of points.

Both by LO-RANSAC (Chum et al. 2003), as COLMAP has it, on one thread with a seed: the same matches give the same pose.
Nothing here is differentiable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from condense.colmap import pycolmap

Array = NDArray[np.float64]
TRIALS = 1000  # of RANSAC at most: 4 ms for 200 matches; enough where a fifth of them are right


@dataclass(frozen=True)
class ImagePose:
    """Where a camera stood.

    Args:
        T_world_from_camera: [4, 4] float64, rigid, OpenCV axes.
        inliers: [M] bool, the matches that agree with it.
    """

    T_world_from_camera: Array
    inliers: NDArray[np.bool_]


@dataclass(frozen=True)
class ScenePose:
    """How a scene `a` lies in the frame of a scene `b`.

    Args:
        T_b_from_a: [4, 4] float64, rigid; the rotation is multiplied by the scale where one was asked for.
        inliers: [M] bool, the matches that agree with it.
    """

    T_b_from_a: Array
    inliers: NDArray[np.bool_]


def image_pose(
    pixels: ArrayLike,
    points: ArrayLike,
    K: ArrayLike,
    size: tuple[int, int],
    max_error_px: float,
    seed: int = 0,
) -> ImagePose | None:
    """The camera that sees `points` at `pixels`, by P3P with LO-RANSAC, refined on its inliers.

    Args:
        pixels: [M, 2] (x, y), the centre of the top left pixel is (0.5, 0.5).
        points: [M, 3] world points.
        K: [3, 3] intrinsics in pixels, without skew.
        size: width and height of the image in pixels.
        max_error_px: largest reprojection error of an inlier.
        seed: of RANSAC.

    Returns:
        None for fewer than 4 matches, or where no camera explains 4 of them.

    Raises:
        ValueError: a shape is not as above, or a value is not finite.
    """
    pixels, points, K = _checked("pixels", pixels, 2), _checked("points", points, 3), _checked("K", K, 3)
    if len(pixels) != len(points) or K.shape != (3, 3):
        raise ValueError(f"{len(pixels)} pixels, {len(points)} points and K {K.shape}: want M, M and (3, 3)")
    if len(points) < 4:
        return None
    intrinsics = [K[0, 0], K[1, 1], K[0, 2], K[1, 2]]
    camera = pycolmap.Camera(model="PINHOLE", width=int(size[0]), height=int(size[1]), params=intrinsics)
    options = pycolmap.AbsolutePoseEstimationOptions()
    options.ransac = _ransac(max_error_px, seed, TRIALS)
    found = pycolmap.estimate_and_refine_absolute_pose(pixels, points, camera, options)
    if found is None or found["num_inliers"] < 4:
        return None
    T = np.eye(4)
    T[:3] = found["cam_from_world"].inverse().matrix()
    return ImagePose(T, np.asarray(found["inlier_mask"])) if np.isfinite(T).all() else None


def scene_pose(a: ArrayLike, b: ArrayLike, max_error: float, seed: int = 0, scale: bool = False) -> ScenePose | None:
    """The rigid motion (with `scale`, the similarity) that carries points `a` onto points `b`, by LO-RANSAC.

    Args:
        a: [M, 3].
        b: [M, 3], matched to `a` row by row.
        max_error: largest distance of an inlier from where it should be, in the units of `b`.
        seed: of RANSAC.
        scale: whether the scenes may differ in scale.

    Returns:
        None for fewer than 3 matches, or where no motion explains 3 of them.

    Raises:
        ValueError: a shape is not as above, or a value is not finite.
    """
    a, b = _checked("a", a, 3), _checked("b", b, 3)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} points of a and {len(b)} of b are not matched row by row")
    if len(a) < 3:
        return None
    estimate = pycolmap.estimate_sim3d_robust if scale else pycolmap.estimate_rigid3d_robust
    found: Any = estimate(a, b, _ransac(max_error, seed, 5 * TRIALS))  # annotated as a pose, but a dict
    if found is None or found["num_inliers"] < 3:
        return None
    T = np.eye(4)
    T[:3] = found["tgt_from_src"].matrix()
    return ScenePose(T, np.asarray(found["inlier_mask"])) if np.isfinite(T).all() else None


def mutual_matches(cosine: torch.Tensor) -> NDArray[np.int64]:
    """[M, 2] pairs (row, column) of `cosine` [A, B] that are each other's most similar; pairs at -inf never match."""
    if not cosine.numel():
        return np.zeros((0, 2), dtype=np.int64)
    best, column = cosine.max(dim=1)
    rows = torch.arange(len(cosine))
    mutual = (cosine.argmax(dim=0)[column] == rows) & (best > -torch.inf)
    return torch.stack([rows[mutual], column[mutual]], dim=1).numpy()


def rotation_error_deg(Ra: ArrayLike, Rb: ArrayLike) -> float:
    """The angle in degrees of the rotation between `Ra` and `Rb`, both [3, 3]."""
    difference = np.asarray(Ra, dtype=float).T @ np.asarray(Rb, dtype=float)
    axis = [
        difference[2, 1] - difference[1, 2],
        difference[0, 2] - difference[2, 0],
        difference[1, 0] - difference[0, 1],
    ]
    return float(np.degrees(np.arctan2(np.linalg.norm(axis), np.trace(difference) - 1)))  # exact near 0, unlike arccos


def pose_errors(T: ArrayLike, T_true: ArrayLike) -> tuple[float, float]:
    """How far a pose [4, 4] is from the true one: degrees, and the distance of the camera centres in world units.

    For alignments T_b_from_a that is the distance of the places that the origin of `a` is carried to.
    """
    T, T_true = np.asarray(T, dtype=float), np.asarray(T_true, dtype=float)
    return rotation_error_deg(T[:3, :3], T_true[:3, :3]), float(np.linalg.norm(T[:3, 3] - T_true[:3, 3]))


def _ransac(max_error: float, seed: int, trials: int) -> pycolmap.RANSACOptions:
    options = pycolmap.RANSACOptions()
    options.max_error, options.random_seed, options.num_threads = float(max_error), int(seed), 1
    options.min_num_trials, options.max_num_trials = min(100, trials), trials
    return options


def _checked(name: str, values: ArrayLike, width: int) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != width:
        raise ValueError(f"{name} has shape {array.shape}, not (M, {width})")
    if not np.isfinite(array).all():
        raise ValueError(
            f"{name} has values that are not finite, the first in row {np.nonzero(~np.isfinite(array))[0][0]}"
        )
    return array
