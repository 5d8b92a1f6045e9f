"""3D classification on frozen descriptors: what is measured of each method, and how methods are compared.

Two modalities: voxel scenes of fields, and point clouds of the surface without colour. Robustness is that of probes
which learned from clean captures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from condense.backbone3d import load_net3d
from condense.captures.folder import Folder
from condense.devices import open_device
from condense.links import load_links
from condense.metrics import confusion, hits, interval
from condense.params import ClassificationParams
from condense.tasks.descriptors import colour_histogram, describe, pool, shape_histogram
from condense.tasks.finetune import finetune
from condense.tasks.pointclouds import read_points, scene_of_points, without_colour
from condense.tasks.probes import (
    DRAWS,
    Labelled,
    Probe,
    Vectors,
    draw_shots,
    few_shot,
    linear_probe,
    nearest_neighbours,
)
from condense.tasks.robustness import PERTURBATIONS, perturbed
from condense.voxels import VoxelScene

SHOTS = (1, 5, 10)
FINETUNE_SHOTS = {"finetune_5_acc": 5, "finetune_all_acc": None}
HELDOUT_SHOTS = (5,)
RESOLUTION = 32  # of point clouds: voxels along the longest side
PROBES = ("linear_probe_acc", "knn_acc", "few_shot_1_acc", "few_shot_5_acc", "few_shot_10_acc")
MAIN = (*PROBES, *FINETUNE_SHOTS, "heldout_linear_probe_acc", "heldout_few_shot_5_acc")  # on fields
ROBUST = {  # metric: its title in a figure
    "linear_probe_acc": "fields, clean",
    "robust_colour_acc": "no colour",
    "linear_probe_acc_points": "points, clean",
    "robust_rotation_acc": "tilted 30 degrees",
    "robust_noise_acc": "noise 2 %",
    "robust_drop_50_acc": "half the points",
    "robust_drop_80_acc": "a fifth",
    "robust_cut_acc": "cut in half",
    "robust_one_view_acc": "seen from one side",
}
HAND_MADE = ("lift", "shape_histogram", "colour_histogram")  # methods without a network
Hits = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Source:
    """Where a capture is: its own files, and its links."""

    folder: Folder
    links: Path


@dataclass(frozen=True)
class Scenes:
    """What is classified of C captures.

    Args:
        fields: their voxel scenes.
        points: their surface points [P, 3]; [] where a capture has none.
        lifted: [C, 2 D] pooled multi-view-lifted features of the frozen image network.
    """

    fields: list[VoxelScene]
    points: list[Tensor]
    lifted: Vectors


@lru_cache(maxsize=1)  # one read a worker process, whatever number of networks it probes
def load_scenes(sources: tuple[Source, ...]) -> Scenes:
    """Reads captures; their images are not touched."""
    fields, points, lifted = [], [], []
    for source in sources:
        links = load_links(source.links, ())
        cloud = read_points(source.folder)
        seen = links.seen > 0
        fields.append(links.scene)
        points += [] if cloud is None else [cloud.points]
        lifted.append(pool(links.lifted[seen], seen[seen].long() * 0, 1)[0].numpy())
    return Scenes(fields, points if len(points) == len(sources) else [], np.stack(lifted))


@dataclass(frozen=True)
class Outcome:
    """What one network (or hand-made descriptor) got right.

    Args:
        hits: metric -> [test captures] or, of few-shot metrics, [draws, test captures]: 1 where right.
        predicted: [test captures] classes by the linear probe on fields.
    """

    hits: Hits
    predicted: NDArray[np.str_]


def measure(vectors: Vectors, labelled: Labelled, seed: int, evaluate: str = "test") -> Hits:
    """Probes of one set of vectors [C, D]: linear, nearest neighbours, few-shot, and of held-out classes.

    Args:
        vectors: one a capture.
        labelled: of the C captures.
        seed: of the few-shot draws, the same for every method.
        evaluate: the split that is scored; "val" while tuning.

    Returns:
        {metric: hits}; {} where the captures have no classes, without the metrics of a group with an empty split.
    """
    found: Hits = {}
    for prefix, heldout, numbers in (("", False, SHOTS), ("heldout_", True, HELDOUT_SHOTS)):
        train, val, test = (labelled.rows(split, heldout) for split in ("train", "val", evaluate))
        if not (len(train) and len(val) and len(test)):
            continue
        classes = labelled.classes
        probe = linear_probe(vectors, classes, train, val)[0]
        found[f"{prefix}linear_probe_acc"] = hits(probe.predict(vectors[test]), classes[test])
        found[f"{prefix}knn_acc"] = nearest_neighbours(vectors, classes, train, val, test)
        for shots in numbers:
            found[f"{prefix}few_shot_{shots}_acc"] = few_shot(vectors, classes, (train, val, test), shots, seed)
    return found


Descriptor = Callable[[Sequence[VoxelScene]], Vectors]


def histograms(histogram: Callable[[VoxelScene], NDArray[np.float32]], scenes: Sequence[VoxelScene]) -> Vectors:
    """[scenes, D] of one hand-made descriptor."""
    return np.stack([histogram(scene) for scene in scenes])


def probe_method(
    method: str,
    folder: Path | None,
    sources: tuple[Source, ...],
    labelled: Labelled,
    seed: int,
    device: str = "cpu",
    evaluate: str = "test",
) -> Outcome:
    """All that is measured of one network, or of one of HAND_MADE. One job of `parallel_map`.

    Args:
        method: its name.
        folder: of the network; None for one of HAND_MADE.
        sources: the captures.
        labelled: their classes.
        seed: of the few-shot draws and of what is done to point clouds, the same for every method.
        device: of the network.
        evaluate: the split that is scored.
    """
    scenes = load_scenes(sources)
    if method == "lift":  # has no network to ask about captures without images
        return _outcome(scenes.lifted, labelled, seed, evaluate)
    if folder is None:
        histogram = {"shape_histogram": shape_histogram, "colour_histogram": colour_histogram}[method]
        descriptor: Descriptor = partial(histograms, histogram)
    else:
        descriptor = partial(describe, load_net3d(folder).to(open_device(device)))
    vectors = descriptor(scenes.fields)
    outcome = _outcome(vectors, labelled, seed, evaluate)
    if method != "colour_histogram":
        outcome.hits.update(_without_colour(descriptor, vectors, scenes.fields, labelled, evaluate))
        outcome.hits.update(_of_points(descriptor, scenes.points, labelled, seed, evaluate))
    return outcome


def _outcome(vectors: Vectors, labelled: Labelled, seed: int, evaluate: str) -> Outcome:
    test = labelled.rows(evaluate, False)
    return Outcome(measure(vectors, labelled, seed, evaluate), _clean_probe(vectors, labelled).predict(vectors[test]))


def _clean_probe(vectors: Vectors, labelled: Labelled) -> Probe:
    rows = (labelled.rows(split, False) for split in ("train", "val"))
    return linear_probe(vectors, labelled.classes, *rows)[0]


def _without_colour(
    descriptor: Descriptor, vectors: Vectors, fields: Sequence[VoxelScene], labelled: Labelled, evaluate: str
) -> Hits:
    """Voxel scenes whose colour is missing, by the probe that learned with colour."""
    test = labelled.rows(evaluate, False)
    grey = descriptor([without_colour(fields[i]) for i in test])
    return {"robust_colour_acc": hits(_clean_probe(vectors, labelled).predict(grey), labelled.classes[test])}


def _of_points(descriptor: Descriptor, points: Sequence[Tensor], labelled: Labelled, seed: int, evaluate: str) -> Hits:
    """The probes on point clouds, and the linear one on damaged clouds; {} without point clouds."""
    if not points:
        return {}
    vectors = descriptor([scene_of_points(cloud, RESOLUTION) for cloud in points])
    found = {f"{name}_points": right for name, right in measure(vectors, labelled, seed, evaluate).items()}
    probe, test = _clean_probe(vectors, labelled), labelled.rows(evaluate, False)
    for name in PERTURBATIONS:
        damaged = [scene_of_points(perturbed(points[i], name, seed + int(i)), RESOLUTION) for i in test]
        found[f"robust_{name}_acc"] = hits(probe.predict(descriptor(damaged)), labelled.classes[test])
    return found


def finetune_method(
    method: str,
    folder: Path,
    sources: tuple[Source, ...],
    labelled: Labelled,
    seed: int,
    number: int,
    params: ClassificationParams,
    device: str = "cpu",
    evaluate: str = "test",
) -> Hits:
    """Fine-tunes one network on point clouds with few and with all labels. One job of `parallel_map`.

    On point clouds, not on fields: they have a third of the voxels, and a network has more to learn there than where
    it was pre-trained.

    Args:
        method: its name.
        folder: of the network.
        sources: the captures.
        labelled: their classes.
        seed: of the draws of labels and of the order of training.
        number: of this network among its method's; each is tuned on another draw, the same for every method.
        params: steps and learning rate.
        device: of the network.
        evaluate: the split that is scored.

    Returns:
        {metric: [test captures] 1 where right}; {} without point clouds.
    """
    clouds, net3d = load_scenes(sources).points, load_net3d(folder).to(open_device(device))
    if not clouds:
        return {}
    scenes = [scene_of_points(cloud, RESOLUTION) for cloud in clouds]
    train, test = (labelled.rows(split, False) for split in ("train", evaluate))
    names, place = np.unique(labelled.classes[train], return_inverse=True)
    target = dict(zip(train.tolist(), torch.from_numpy(place), strict=True))
    found: Hits = {}
    for metric, shots in FINETUNE_SHOTS.items():
        rows = train if shots is None else draw_shots(labelled.classes, train, shots, seed)[number % DRAWS]
        how = (len(names), params.finetune_steps, params.finetune_batch, params.finetune_lr, seed + number, "scene")
        model = finetune(net3d, [scenes[i] for i in rows], [target[int(i)] for i in rows], *how)
        predicted = names[torch.stack(model.predict([scenes[i] for i in test])).numpy()]
        found[metric] = hits(predicted, labelled.classes[test])
    return found


def finetune_jobs(
    methods: Mapping[str, Sequence[Path]],
    sources: tuple[Source, ...],
    labelled: Labelled,
    seed: int,
    params: ClassificationParams,
    device: str = "cpu",
) -> list[tuple[Any, ...]]:
    """The jobs of `finetune_method`; [] where nothing has a class."""
    if not classifiable(labelled):
        return []
    numbered = [
        (method, number, folder) for method, folders in methods.items() for number, folder in enumerate(folders)
    ]
    return [(method, folder, sources, labelled, seed, number, params, device) for method, number, folder in numbered]


def classifiable(labelled: Labelled) -> bool:
    """Whether every split has captures of classes that pre-training saw."""
    return all(len(labelled.rows(split, False)) for split in ("train", "val", "test"))


def probe_jobs(
    methods: Mapping[str, Sequence[Path]],
    sources: tuple[Source, ...],
    labelled: Labelled,
    seed: int,
    device: str = "cpu",
) -> list[tuple[Any, ...]]:
    """The jobs of `probe_method`, in the order of tables: networks, then HAND_MADE; [] where nothing has a class."""
    if not classifiable(labelled):
        return []
    found: dict[str, Sequence[Path | None]] = {**methods, **{method: [None] for method in HAND_MADE}}
    return [(method, folder, sources, labelled, seed, device) for method, some in found.items() for folder in some]


def by_method(jobs: Sequence[tuple[Any, ...]], results: Sequence[Any]) -> dict[str, list[Any]]:
    """{method: [result of each seed]}; the first element of a job is its method."""
    grouped: dict[str, list[Any]] = {}
    for job, result in zip(jobs, results, strict=True):
        grouped.setdefault(job[0], []).append(result)
    return grouped


Rights = dict[str, Hits]  # {method: {metric: [seeds, (draws,) captures]}}


def stack_hits(probed: Mapping[str, Sequence[Outcome]], tuned: Mapping[str, Sequence[Hits]]) -> Rights:
    """{method: {metric: hits of all seeds}}, a first axis of seeds added, of probes and of fine-tuning."""
    rights: Rights = {}
    for method, outcomes in probed.items():
        kinds = [[outcome.hits for outcome in outcomes], list(tuned.get(method, []))]
        rights[method] = {
            metric: np.stack([seed[metric] for seed in seeds]) for seeds in kinds if seeds for metric in seeds[0]
        }
    return rights


def metrics_of(rights: Rights) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """The metric file: mean and interval over seeds, draws and captures of each."""
    return {method: {metric: interval(values) for metric, values in row.items()} for method, row in rights.items()}


def paired_view(table: pd.DataFrame) -> pd.DataFrame:
    """The main metrics of `paired_table` to read: methods down, metrics across, percent and p in each cell."""
    rows = table.to_dict("records")
    cells = [f"{100 * r['difference']:+.1f} ± {100 * (r['ci95'] or 0.0):.1f} (p {r['p']:.3f})" for r in rows]
    wide = table.assign(cell=cells).pivot(index="method", columns="metric", values="cell").fillna("–")
    return wide.reindex(columns=[name for name in MAIN if name in wide]).rename_axis(columns=None)


def confusion_of(outcomes: Sequence[Outcome], labelled: Labelled) -> tuple[NDArray[np.float64], list[str]]:
    """[K, K] share of each true class's TEST captures (rows) that was taken for each class, over all seeds."""
    truth = labelled.classes[labelled.rows("test", False)]
    names = np.unique(np.concatenate([truth, *(outcome.predicted for outcome in outcomes)]))
    pairs = [(np.searchsorted(names, o.predicted), np.searchsorted(names, truth)) for o in outcomes]
    counts = np.sum([confusion(predicted, true, len(names), ignore=-1) for predicted, true in pairs], axis=0)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1), names.tolist()


def few_shot_curves_of(
    metrics: Mapping[str, Mapping[str, Mapping[str, Any]]], suffix: str, labelled: Labelled
) -> dict[str, list[tuple[float, float, float]]]:
    """{method: (labels a class, accuracy, half of its interval)} of probes, the one with all labels last.

    Args:
        metrics: as of the metric file.
        suffix: "" for fields or "_points".
        labelled: tells how many labels "all" are.
    """
    classes = labelled.classes[labelled.rows("train", False)]
    most = max(1, round(len(classes) / max(1, len(np.unique(classes)))))
    named = {f"few_shot_{shots}_acc{suffix}": shots for shots in SHOTS if shots < most} | {
        f"linear_probe_acc{suffix}": most
    }
    return {
        method: [(shots, row[name]["mean"], row[name]["ci95"] or 0.0) for name, shots in named.items()]
        for method, row in metrics.items()
        if set(named) <= set(row)
    }
