"""What a scene repository ranks by: pooled vectors, key points' similarity, and how sure an answer is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn.functional import normalize

Matches = NDArray[np.int64]
UNCALIBRATED = [10.0, 20.0, 2.0, 1.0, -12.0]  # rises with every feature; a guess, until `calibrate` has seen answers
CLEAR = 0.1  # a larger margin says no more: how far the next scene is behind depends on which others there are


@dataclass(frozen=True)
class Answer:
    """A scene that a query may show.

    Args:
        name: of the scene.
        score: in [0, 1], how likely it is the right one: a logistic function of `features`.
        similarity: see `local_similarity`.
        features: [4] similarity; margin, by which it ranks before the best other scene (negative: behind), at most
            CLEAR; fit; log(1 + inliers). The last two are 0 for a scene that was not verified. Fit is the agreement of
            an image's key points with the scene's (`posesearch.agreement`), the share of matches between two scenes
            that are inliers.
        pose: [4, 4] T_world_from_camera for an image, T_scene_from_query for a scene; None where none was found.
        inliers: [M, 2] key points of the query and of the scene that match and agree with the pose.
    """

    name: str
    score: float
    similarity: float
    features: NDArray[np.float64]
    pose: NDArray[np.float64] | None
    inliers: Matches


def pool(descriptors: Tensor, scores: Tensor, parts: int, rounds: int = 10) -> Tensor:
    """[P, D] unit vectors that stand for unit descriptors [K, D], weighted by their scores [K].

    One is the mean. More are the centres of spherical k-means (Dhillon and Modha 2001), started from the descriptor of
    the highest score and then from those least like the ones before: no draw is random. Fewer descriptors than parts
    give some centre twice.
    """
    weighted = descriptors * scores.clamp_min(1e-6)[:, None]
    if parts == 1:
        return normalize(weighted.sum(0, keepdim=True), dim=1)
    chosen = [int(scores.argmax())]
    nearest = descriptors @ descriptors[chosen[0]]
    while len(chosen) < parts:
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, descriptors @ descriptors[chosen[-1]])
    centres = descriptors[chosen]
    for _ in range(rounds):
        owner = (descriptors @ centres.T).argmax(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, owner, weighted)
        centres = torch.where(sums.norm(dim=1, keepdim=True) > 0, normalize(sums, dim=1), centres)
    return centres


def coarse_similarity(query: Tensor, pooled: Tensor) -> Tensor:
    """[S] mean over the query's pooled vectors [P, D] of the highest cosine with a scene's, [S, P', D]."""
    return (pooled.flatten(0, 1) @ query.T).view(*pooled.shape[:2], -1).amax(dim=1).mean(dim=1)


def local_similarity(query: Tensor, stores: Sequence[Tensor], worst: float = 1.0) -> tuple[Tensor, list[Tensor]]:
    """Similarity [S] of key points [Q, D] to each of S scenes, descriptors [K_s, D], and all cosines [K_s, Q].

    It is the mean of the highest cosines of those key points that the scene explains worst, a share `worst` of them:
    a partial Hausdorff distance (Huttenlocher, Klanderman and Rucklidge 1993) with a mean in place of the quantile.
    """
    count = max(1, round(worst * len(query)))
    bank = torch.cat(list(stores)).float()
    cosines = (bank @ query.T).split([len(store) for store in stores])
    explained = [cosine.amax(dim=0).topk(count, largest=False).values.mean() for cosine in cosines]
    return torch.stack(explained), list(cosines)


def calibrate(features: ArrayLike, correct: ArrayLike) -> list[float]:
    """Weights of the features of answers, and the bias last, by logistic regression.

    Fit them on validation queries and hand them to `SceneRepository.set_calibration`.

    Args:
        features: [N, 4] of answers, right and wrong ones.
        correct: [N] bool.

    Raises:
        ValueError: all answers are right, or all wrong.
    """
    correct = np.asarray(correct, dtype=bool)
    if correct.all() or not correct.any():
        raise ValueError(f"calibration needs right and wrong answers: {correct.sum()} of {len(correct)} are right")
    scaler = StandardScaler().fit(np.asarray(features, dtype=float))
    model = LogisticRegression().fit(scaler.transform(features), correct)
    weights = model.coef_[0] / scaler.scale_
    return [*map(float, weights), float(model.intercept_[0] - weights @ scaler.mean_)]


def margins(rank: NDArray[np.float64]) -> NDArray[np.float64]:
    """[S] by how much each ranks before the best other, at most CLEAR; behind it, negative; 0 for a single one."""
    if len(rank) == 1:
        return np.zeros(1)
    second, first = np.sort(rank)[-2:]
    return np.where(np.arange(len(rank)) == rank.argmax(), first - second, rank - first).clip(-CLEAR, CLEAR)


def ranked(
    names: Sequence[str],
    similarity: NDArray[np.float64],
    poses: Sequence[NDArray[np.float64] | None],
    inliers: Sequence[Matches],
    fit: NDArray[np.float64],
    bonus: NDArray[np.float64],
    weights: Sequence[float],
) -> list[Answer]:
    """Answers by similarity + bonus, best first.

    Args:
        names: of the scenes.
        similarity: [S].
        poses: of the verified scenes, else None.
        inliers: of each scene, [M, 2].
        fit: [S] see `Answer.features`.
        bonus: [S] what geometry adds to the similarity.
        weights: of the four features of an `Answer`, and the bias, of its score (`calibrate`).
    """
    counts = np.log1p([len(pairs) for pairs in inliers])
    rank = similarity + bonus
    features = np.stack([similarity, margins(rank), fit, counts], axis=1)
    *slopes, bias = weights
    score = expit(features @ slopes + bias)
    return [
        Answer(names[i], float(score[i]), float(similarity[i]), features[i], poses[i], inliers[i])
        for i in np.argsort(-rank, kind="stable")
    ]
