"""What came of image -> scene queries: ranks, poses, scores, and the metrics made of them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from condense.cameras import Cameras
from condense.metrics import interval, median_interval
from condense.poses import pose_errors
from condense.ranking import Answer
from condense.voxels import VoxelScene

SAME_LIGHT, UNKNOWN = "_same_light", "_unknown"  # endings of queries
DEGREES, SHARE = 5.0, 0.05  # a pose is right below so many degrees and such a share of the scene's size
FOLDS = (72, 8, 6, 5, 4, 3, 2)  # parts of a full turn that may look alike; 72: any
LOOSE = 4  # a pose is nearly right within so many times that
CALIBRATED = ("condense", "lifted_teacher")
Metrics = dict[str, dict[str, dict[str, float | int | None]]]


@dataclass(frozen=True)
class Query:
    """A photograph that is asked about.

    Args:
        scene: name of the scene it shows.
        image: [H, W, 3] uint8.
        mask: [H, W] uint8, 255 = object.
        camera: its camera in the frame of that scene.
        ending: of the metrics it counts for.
        leave_out: names of scenes that are no answer.
    """

    scene: str
    image: Tensor
    mask: Tensor
    camera: Cameras
    ending: str
    leave_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What came of a query.

    Args:
        scene: that it shows.
        ending: of the query.
        names: answers, best first.
        score: of the first answer.
        features: [4] of the first answer (`Answer.features`); zeros of methods without.
        errors: (degrees, share of the scene's size) of the pose if the first answer is right and has one; else NaN.
        symmetric: as `errors`, nearest to any of the poses that look alike.
    """

    scene: str
    ending: str
    names: list[str]
    score: float
    features: NDArray[np.float64] = field(default_factory=lambda: np.zeros(4))
    errors: tuple[float, float] = (np.nan, np.nan)
    symmetric: tuple[float, float] = (np.nan, np.nan)

    @property
    def right(self) -> bool:
        """Whether the first answer is the scene."""
        return self.names[:1] == [self.scene]


@dataclass(frozen=True)
class Truth:
    """What a pose is measured against: of one scene.

    Args:
        size: diagonal of its bounding box, capture units.
        alike: [A, 4, 4] motions of the scene under which it looks the same, the identity first.
    """

    size: float
    alike: NDArray[np.float64]


def truth_of(scene: VoxelScene, tolerance: float = 2.0, share: float = 0.95) -> Truth:
    """A scene's size, and the turns about the upright axis through its middle that carry it onto itself.

    A turn does if `share` of 400 turned voxels lie within `tolerance` voxels of one of a like colour. The light falls
    from one side, so brightness counts less than chromaticity. The turns are those by the smallest part of a full one
    (see FOLDS) all of whose multiples do.

    Args:
        scene: its voxels.
        tolerance: in voxels; shares of red, green and blue count as 10 voxels from 0 to 1, their mean as 5.
        share: in (0, 1].
    """
    centres = scene.centres.double().numpy()
    middle = (centres.min(0) + centres.max(0)) / 2
    colour = scene.colour.double().numpy()
    total = colour.sum(1, keepdims=True)
    look = np.concatenate([10 * colour / (total + 0.15), 5 * total / 3], axis=1)  # shares of the dark fade
    tree = cKDTree(np.concatenate([(centres - middle) / scene.grid.voxel_size, look], axis=1))
    some = np.linspace(0, len(centres) - 1, min(400, len(centres))).astype(int)

    def onto_itself(T: NDArray[np.float64]) -> bool:
        turned = (centres[some] @ T[:3, :3].T + T[:3, 3] - middle) / scene.grid.voxel_size
        distance, _ = tree.query(np.concatenate([turned, look[some]], axis=1), distance_upper_bound=tolerance)
        return bool(np.isfinite(distance).mean() >= share)

    turns = ([_turn(2 * np.pi * part / fold, middle) for part in range(fold)] for fold in FOLDS)
    alike = next((motions for motions in turns if all(map(onto_itself, motions[1:]))), [np.eye(4)])
    return Truth(float(np.linalg.norm(np.ptp(centres, axis=0))), np.stack(alike))


def _turn(angle: float, middle: NDArray[np.float64]) -> NDArray[np.float64]:
    """[4, 4] the turn about the z axis through `middle` [3]."""
    T = np.eye(4)
    T[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    T[:3, 3] = middle - T[:3, :3] @ middle
    return T


def outcome(query: Query, answers: Sequence[Answer], truth: Truth | None) -> Outcome:
    """What came of a query; `truth` of the scene that it shows, or None where the repository lacks it."""
    if not answers:
        return Outcome(query.scene, query.ending, [], 0.0)
    first = answers[0]
    result = Outcome(query.scene, query.ending, [a.name for a in answers], first.score, first.features)
    if truth is None or not result.right or first.pose is None:
        return result
    T_true = query.camera.T_world_from_camera[0].double().numpy()
    errors = [pose_errors(first.pose, motion @ T_true) for motion in truth.alike]
    scaled = [(degrees, distance / truth.size) for degrees, distance in errors]
    nearest = min(scaled, key=lambda pair: max(pair[0] / DEGREES, pair[1] / SHARE))
    return dataclasses.replace(result, errors=scaled[0], symmetric=nearest)


MEASURES: dict[str, Callable[[Outcome], float]] = {
    "recall_at_1": lambda o: o.scene in o.names[:1],
    "recall_at_5": lambda o: o.scene in o.names[:5],
    "recall_at_10": lambda o: o.scene in o.names[:10],
    "pose_success": lambda o: within(o.errors),
    "pose_success_symmetric_aware": lambda o: within(o.symmetric),
    "pose_near_symmetric_aware": lambda o: within(o.symmetric, LOOSE),
}


def within(errors: tuple[float, float], times: float = 1) -> bool:
    """Whether a pose's errors are below `times` the tolerances; NaN is not."""
    return errors[0] < times * DEGREES and errors[1] < times * SHARE


def scene_metrics(outcomes: Mapping[str, Sequence[Sequence[Outcome]]]) -> Metrics:
    """The metric file: {method: outcomes of each seed} -> {method: {metric: ...}}; captures are the units."""
    metrics: Metrics = {}
    for method, seeds in outcomes.items():
        row: dict[str, Any] = {}
        for ending in ("", SAME_LIGHT):
            asked = [[o for o in seed if o.ending == ending] for seed in seeds]
            if not asked[0]:
                continue
            posed = np.array([o.errors for some in asked for o in some if np.isfinite(o.errors[0])])
            for name, value in MEASURES.items():
                if name.startswith("pose") and not len(posed):
                    continue
                row[name + ending] = interval([_by_scene(some, [value(o) for o in some]) for some in asked])
            if len(posed):
                row[f"median_rotation_deg{ending}"] = median_interval(posed[:, 0])
                row[f"median_translation_size{ending}"] = median_interval(posed[:, 1])
        row |= _of_scores(seeds)
        if method not in CALIBRATED:  # its scores rank answers, but are no probabilities
            row.pop("brier", None)
        metrics[method] = row
    return metrics


def _of_scores(seeds: Sequence[Sequence[Outcome]]) -> dict[str, Any]:
    """How well scores tell known scenes from unknown (area under the ROC curve) and right from wrong (Brier score).

    Half of the queries of the latter are of unknown scenes, as of those that calibrate.
    """
    areas, brier = [], []
    for seed in seeds:
        known, unknown = [o for o in seed if not o.ending], np.array([o.score for o in seed if o.ending == UNKNOWN])
        if not len(unknown) or not known:
            return {}
        every = [o for o in seed if o.ending in ("", UNKNOWN)]
        areas.append(_by_scene(known, [(unknown < o.score).mean() + (unknown == o.score).mean() / 2 for o in known]))
        brier.append(_by_scene(every, [(o.score - o.right) ** 2 for o in every]))
    return {"unknown_auroc": interval(areas), "brier": interval(brier)}


def _by_scene(outcomes: Sequence[Outcome], values: Sequence[float]) -> NDArray[np.float64]:
    """[scenes] mean of the values of the queries of each scene, by name."""
    names = np.array([o.scene for o in outcomes])
    table = np.asarray(values, dtype=float)
    return np.array([table[names == name].mean() for name in np.unique(names)])


def recall_curve(seeds: Sequence[Mapping[int, Sequence[Outcome]]]) -> list[tuple[int, float, float]]:
    """(key points a scene, recall at 1, half of its 95 % interval), of the curves of all seeds."""
    points = []
    for count in seeds[0]:
        value = interval([_by_scene(seed[count], [o.right for o in seed[count]]) for seed in seeds])
        points.append((count, float(value["mean"] or 0), float(value["ci95"] or 0)))
    return points


def reliability(outcomes: Sequence[Outcome], bins: int = 8) -> list[tuple[float, float, int]]:
    """(mean score, share of right answers, answers) by score, in bins of equally many; unknown scenes are among them.

    Queries in the light of the capture are not. See Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    asked = sorted((o for o in outcomes if o.ending in ("", UNKNOWN)), key=lambda o: o.score)
    groups = [g for g in np.array_split(np.arange(len(asked)), min(bins, max(1, len(asked)))) if len(g)]
    return [
        (float(np.mean([asked[i].score for i in g])), float(np.mean([asked[i].right for i in g])), len(g))
        for g in groups
    ]


def confusions(outcomes: Sequence[Outcome], classes: Mapping[str, str]) -> list[tuple[str, str, int]]:
    """(true class, class of the first answer, how often) of wrong answers to known scenes, most frequent first.

    Args:
        outcomes: of one method.
        classes: of every scene by name.
    """
    wrong = [o for o in outcomes if o.ending != UNKNOWN and o.names and not o.right]
    counts = Counter((classes[o.scene], classes[o.names[0]]) for o in wrong)
    return [(true, taken, count) for (true, taken), count in counts.most_common()]
