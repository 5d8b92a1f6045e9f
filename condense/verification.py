"""How the scenes of a shortlist are verified: a pose for each, what agrees with it, and what that adds to its rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from condense.keptposes import kept_pose
from condense.keypoints import ImageKeyPoints, KeyPoints
from condense.lookalikes import laid_over, standings
from condense.posealign import Photograph, Renderers, find_pose
from condense.poses import image_pose, scene_pose
from condense.posesearch import likely_poses, partners, polished_pose, problem, search_pose
from condense.ranking import Answer, Matches, ranked
from condense.voxels import VoxelScene


@dataclass(frozen=True)
class Verified:
    """What was found of a scene.

    Args:
        pose: [4, 4].
        inliers: key points of the query and of the scene that agree with it.
        fit: how well all of it agrees.
        bonus: what that adds to the scene's rank, for itself; at least, where others have a say (`Verifier.settled`).
        shown: what the scene looks like from there, where it was rendered.
    """

    pose: NDArray[np.float64]
    inliers: Matches
    fit: float
    bonus: float
    shown: Tensor | None = None


def _own(found: Sequence[Verified]) -> list[float]:
    return [one.bonus for one in found]


@dataclass(frozen=True)
class Verifier:
    """A way to verify the scenes of a shortlist.

    Args:
        posed: what it finds of a scene, by its name, key points and matches by descriptor.
        settled: what that adds to the rank of each scene that was verified, once all are.
    """

    posed: Callable[[str, KeyPoints, Matches], Verified | None]
    settled: Callable[[Sequence[Verified]], list[float]] = _own


def answers(
    names: Sequence[str],
    similarity: NDArray[np.float64],
    found: Mapping[int, Verified],
    verifier: Verifier,
    weights: Sequence[float],
) -> list[Answer]:
    """Answers, best first (`ranking.ranked`).

    Args:
        names: of the scenes of a shortlist.
        similarity: [S].
        found: of the scenes that were verified, by place.
        verifier: by which.
        weights: of scores.
    """
    poses: list[NDArray[np.float64] | None] = [None] * len(names)
    inliers, fit, bonus = [np.zeros((0, 2), dtype=np.int64)] * len(names), *np.zeros((2, len(names)))
    for (place, one), settled in zip(found.items(), verifier.settled(list(found.values())), strict=True):
        poses[place], inliers[place], fit[place], bonus[place] = one.pose, one.inliers, one.fit, settled
    return ranked(names, similarity, poses, inliers, fit, bonus, weights)


def in_image(keypoints: ImageKeyPoints, K: ArrayLike, max_error: float, weight: float, seed: int) -> Verifier:
    """Verifies by a camera's pose T_world_from_camera: searched for (`posesearch`), starting also from PnP.

    Args:
        keypoints: of the image.
        K: [3, 3] intrinsics in pixels.
        max_error: reprojection error of an inlier, as a share of the longer side of the image.
        weight: of the agreement, in the rank.
        seed: of RANSAC.
    """

    def posed(_: str, scene: KeyPoints, matches: Matches) -> Verified | None:
        if min(len(scene), len(keypoints)) < 3:
            return None
        both = problem(keypoints, scene, K)
        T, fit = search_pose(both, _by_pnp(keypoints, scene, matches, K, max_error, seed))
        return Verified(T.double().numpy(), partners(T, both, max_error), fit, weight * fit)

    return Verifier(posed)


def _by_pnp(
    keypoints: ImageKeyPoints, scene: KeyPoints, matches: Matches, K: ArrayLike, max_error: float, seed: int
) -> Tensor | None:
    """[1, 4, 4] the camera by PnP on matches, where there is one."""
    pixels, points = keypoints.positions[matches[:, 0]], scene.positions[matches[:, 1]]
    found = image_pose(pixels, points, K, keypoints.size, max_error * max(keypoints.size), seed)
    return None if found is None else torch.from_numpy(found.T_world_from_camera).float()[None]


def in_rendering(
    keypoints: ImageKeyPoints,
    photograph: Photograph,
    voxels: Callable[[str], VoxelScene],
    max_error: float,
    weight: float,
    seed: int,
    kept: Path | None = None,
) -> Verifier:
    """Verifies by what the scene looks like (`posealign`): from poses that the key points make likely, or, where the
    photograph has a mask, from all round with an upright camera. Scenes then stand against each other (`lookalikes`).

    Args:
        keypoints: of the photograph.
        photograph: whose camera is looked for.
        voxels: of a scene, by name.
        max_error: as of `in_image`, of the key points that count as inliers.
        weight: of how a scene stands, as a share of the best that can be, in the rank.
        seed: of RANSAC.
        kept: folder of poses found before, see `kept_pose`.
    """

    def posed(name: str, scene: KeyPoints, matches: Matches) -> Verified | None:
        both, whole = problem(keypoints, scene, photograph.K), Renderers(voxels(name))
        if photograph.cut_out:
            T, cost = kept_pose(photograph, whole, kept)
        elif min(len(scene), len(keypoints)) >= 3:
            given = _by_pnp(keypoints, scene, matches, photograph.K, max_error, seed)
            T, cost = find_pose(photograph, whole, *likely_poses(both, given))
        else:
            return None
        shown = laid_over(photograph, whole, T)
        return Verified(T.double().numpy(), partners(T, both, max_error), 1 - cost, 0.0, shown)

    def settled(found: Sequence[Verified]) -> list[float]:
        shown = [one.shown for one in found if one.shown is not None]
        return [weight * (2 + stand) / 4 for stand in standings(photograph, shown, [1 - one.fit for one in found])]

    return Verifier(posed, settled)


def in_scene(keypoints: KeyPoints, max_error: float, weight: float, seed: int, scale: bool) -> Verifier:
    """Verifies by an alignment T_scene_from_query, by RANSAC on mutual matches.

    Args:
        keypoints: of the scene that is asked for.
        max_error: distance of an inlier, as a share of the diagonal of the query's bounding box.
        weight: of log(1 + inliers), in the rank.
        seed: of RANSAC.
        scale: whether the scenes may differ in scale.
    """
    size = float((keypoints.positions.amax(0) - keypoints.positions.amin(0)).norm()) if len(keypoints) else 0.0

    def posed(_: str, scene: KeyPoints, matches: Matches) -> Verified | None:
        a, b = keypoints.positions[matches[:, 0]], scene.positions[matches[:, 1]]
        found = scene_pose(a, b, max(max_error * size, 1e-9), seed, scale)
        if found is None:
            return None
        inliers = matches[found.inliers]
        bonus = weight * float(np.log1p(len(inliers)))
        return Verified(found.T_b_from_a, inliers, float(found.inliers.mean()), bonus)

    return Verifier(posed)


def polished(answer: Answer, keypoints: ImageKeyPoints, scene: KeyPoints, K: ArrayLike, max_error: float) -> Answer:
    """The answer with its camera's pose refined on all key points, where it has one. Arguments as of `in_image`."""
    if answer.pose is None:
        return answer
    both = problem(keypoints, scene, K)
    T = polished_pose(torch.from_numpy(answer.pose).float(), both)[0]
    return dataclasses.replace(answer, pose=T.double().numpy(), inliers=partners(T, both, max_error))
