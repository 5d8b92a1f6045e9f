"""Part segmentation of objects and semantic segmentation of rooms, voxel by voxel.

The truth of a voxel is the label of the nearest point of the capture's labelled surface. Frozen features are
scored by a linear probe whose regularisation is chosen on VAL captures; whole networks are fine-tuned. "1 % of
labels" is 1 % of the labelled voxels, drawn one by one over all training captures; every method sees the same
draws. TEST captures are looked at once, at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from condense.backbone3d import load_net3d
from condense.captures.capture import Capture
from condense.devices import open_device
from condense.links import load_links
from condense.metrics import confusion
from condense.params import SegmentationParams
from condense.tasks.finetune import finetune, frozen_features
from condense.tasks.pointclouds import FILE, SurfacePoints, read_points
from condense.tasks.voxelfeatures import Source, features
from condense.tasks.voxelprobe import Probe, fit_probe
from condense.voxels import VoxelScene

REACH = 1.5  # voxels from a surface point within which a voxel has its label
FEW, SOME = 0.01, 0.1  # share of the labelled voxels in "1 % of labels" and "10 %"
FINETUNED = {"finetune_1pct": FEW, "finetune_10pct": SOME, "finetune": 1.0}  # setting: share of labels
SHOTS, DRAWS = 5, 3  # labelled objects a class; draws of labels where few are drawn
KINDS = {"part": "object", "semantic": "room"}  # benchmark: kind of capture
Confusions = dict[str, NDArray[np.int64]]


def voxel_labels(scene: VoxelScene, surface: SurfacePoints, reach: float = REACH) -> NDArray[np.int64]:
    """[N] the label of the surface point nearest to each voxel's centre; 0 where none is within `reach` voxels."""
    limit = reach * scene.grid.voxel_size
    _, nearest = cKDTree(surface.points.numpy()).query(scene.centres.numpy(), distance_upper_bound=limit)
    return np.append(surface.parts.numpy(), 0)[nearest]  # a voxel without a neighbour gets the index one past the last


@dataclass(frozen=True)
class Segmented:
    """One benchmark: captures whose voxels have labels.

    Args:
        name: "part" or "semantic".
        names: [C] of the labels; the first stands for "no label".
        paths: of the captures' links.
        labels: of each capture, [N] uint8 place in `names`.
        classes: [K] class of each capture.
        splits: [K] "train", "val" or "test".
    """

    name: str
    names: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: tuple[NDArray[np.uint8], ...]
    classes: NDArray[np.str_]
    splits: NDArray[np.str_]

    def rows(self, split: str) -> NDArray[np.int64]:
        """The captures of a split."""
        return np.flatnonzero(self.splits == split)

    @property
    def coverage(self) -> float:
        """Share of voxels that have a label."""
        return float(np.concatenate(self.labels).astype(bool).mean())


def read_segmented(captures: Sequence[Capture], links: Path, name: str) -> Segmented | None:
    """The benchmark on the linked captures of a folder; None without a labelled capture in train and test.

    Labels of one name are one label, over all captures. Classes that pre-training never saw are left out.
    """
    chosen = [capture for capture in captures if _usable(capture, links, name)]
    if {"train", "test"} - {capture.meta["split"] for capture in chosen}:
        return None
    parts = [{int(number): part for number, part in capture.meta["parts"].items()} for capture in chosen]
    names = ("none", *sorted({part for numbers in parts for part in numbers.values()}))
    paths = tuple(links / f"{capture.name}.safetensors" for capture in chosen)
    labels = []
    for capture, numbers, path in zip(chosen, parts, paths, strict=True):
        surface = read_points(capture.folder)
        assert surface is not None  # of a usable capture
        place = np.zeros(256, np.uint8)  # of each number that a byte can hold
        place[list(numbers)] = [names.index(part) for part in numbers.values()]
        labels.append(place[voxel_labels(load_links(path, ()).scene, surface)])
    metas = [capture.meta for capture in chosen]
    classes, splits = (np.array([meta[key] for meta in metas], np.str_) for key in ("class", "split"))
    return Segmented(name, names, paths, tuple(labels), classes, splits)


def _usable(capture: Capture, links: Path, name: str) -> bool:
    meta = capture.meta
    return (
        meta.get("kind") == KINDS[name]
        and {"parts", "class", "split"} <= set(meta)
        and not meta.get("heldout_class")
        and capture.folder.exists(FILE)
        and (links / f"{capture.name}.safetensors").is_file()
    )


def draw_labels(task: Segmented, share: float, seed: int, draw: int) -> dict[int, NDArray[np.int64]]:
    """{training capture: rows of its voxels} of `share` of all labelled voxels, drawn one by one."""
    train = task.rows("train")
    owner = np.concatenate([np.full(len(task.labels[k]), k) for k in train])
    row = np.concatenate([np.arange(len(task.labels[k])) for k in train])
    labelled = np.flatnonzero(np.concatenate([task.labels[k] for k in train]))
    rng = np.random.default_rng([seed, draw, round(1000 * share)])
    some = np.sort(rng.permutation(labelled)[: max(1, round(share * len(labelled)))])
    return {int(k): row[some][owner[some] == k] for k in train}


def draw_objects(task: Segmented, seed: int, draw: int, shots: int = SHOTS) -> dict[int, NDArray[np.int64]]:
    """{training capture: rows of its labelled voxels} of `shots` captures of each class."""
    rng = np.random.default_rng([seed, draw])
    order = rng.permutation(task.rows("train"))
    of_class = task.classes[order]
    drawn = np.concatenate([order[of_class == name][:shots] for name in np.unique(of_class)])
    return {int(k): np.flatnonzero(task.labels[k]) for k in np.sort(drawn)}


def settings(task: Segmented, seed: int) -> dict[str, list[dict[int, NDArray[np.int64]]]]:
    """{setting: the labels of each draw} of the probes of one benchmark."""
    draws = range(DRAWS)
    chosen = {
        f"{task.name}_probe_1pct": [draw_labels(task, FEW, seed, draw) for draw in draws],
        f"{task.name}_probe_10pct": [draw_labels(task, SOME, seed, 0)],
        f"{task.name}_probe": [draw_labels(task, 1.0, seed, 0)],
    }
    if task.name == "part":
        chosen[f"part_few_shot_{SHOTS}"] = [draw_objects(task, seed, draw) for draw in draws]
    return chosen


@dataclass(frozen=True)
class Result:
    """What one source of features achieves in one benchmark.

    Args:
        method: its name.
        source: as of `voxelfeatures.features`.
        task: name of the benchmark.
        confusions: {setting: [draws, test captures, C, C]} counts of voxels, true class first.
        probes: {setting: the probe of the first draw}.
    """

    method: str
    source: Source
    task: str
    confusions: Confusions
    probes: dict[str, Probe] = field(default_factory=dict)


def probe(
    method: str,
    source: Source,
    task: Segmented,
    most: int,
    seed: int,
    device: str = "cpu",
    evaluate: str = "test",
    only: Sequence[str] = (),
) -> Result:
    """Linear probes on frozen features, all settings of one benchmark. One job of `parallel_map`.

    Args:
        method: name of the source.
        source: as of `features`.
        task: the benchmark.
        most: voxels that one probe is fitted on; of more, so many are drawn.
        seed: of the draws of labels, the same for every source.
        device: of the network.
        evaluate: the split that is scored; "val" while tuning.
        only: the settings to measure; all if empty.
    """
    return probe_features(method, source, features(source, task.paths, device), task, most, seed, evaluate, only)


def probe_features(
    method: str,
    source: Source,
    values: Sequence[Tensor],
    task: Segmented,
    most: int,
    seed: int,
    evaluate: str = "test",
    only: Sequence[str] = (),
) -> Result:
    """`probe` of features [N, D] that are at hand, those of each capture of the benchmark."""
    labels = [torch.from_numpy(label.astype(np.int64)) for label in task.labels]
    val = _gather(values, labels, {int(k): np.flatnonzero(task.labels[k]) for k in task.rows("val")}, most, seed)
    confusions, probes = {}, {}
    for setting, draws in settings(task, seed).items():
        if only and setting not in only:
            continue
        fitted = [fit_probe(*_gather(values, labels, rows, most, seed), *val, len(task.names)) for rows in draws]
        tested = [[each.predict(values[k]) for k in task.rows(evaluate)] for each in fitted]
        confusions[setting] = np.stack([_confusions(task, evaluate, predicted) for predicted in tested])
        probes[setting] = fitted[0]
    return Result(method, source, task.name, confusions, probes)


def _gather(
    values: Sequence[Tensor], labels: Sequence[Tensor], rows: Mapping[int, NDArray[np.int64]], most: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Features [M, D] and labels [M] of voxels; `most` of them, drawn evenly, where there are more."""
    if not rows:
        return values[0][:0], labels[0][:0]
    x = torch.cat([values[k][torch.from_numpy(some)] for k, some in rows.items()])
    y = torch.cat([labels[k][torch.from_numpy(some)] for k, some in rows.items()])
    kept = torch.from_numpy(np.sort(np.random.default_rng(seed).permutation(len(y))[:most]))
    return x[kept], y[kept]


def _confusions(task: Segmented, split: str, predicted: Sequence[Tensor]) -> NDArray[np.int64]:
    """[captures of the split, C, C]."""
    pairs = zip(task.rows(split), predicted, strict=True)
    return np.stack([confusion(each.numpy(), task.labels[k], len(task.names)) for k, each in pairs])


def fine_tune(
    method: str,
    folder: Path,
    task: Segmented,
    params: SegmentationParams,
    seed: int,
    draw: int,
    device: str = "cpu",
    evaluate: str = "test",
) -> Result:
    """A network fine-tuned on each share of the labels in FINETUNED. One job of `parallel_map`.

    Args:
        method: name of the network.
        folder: of the network to start from.
        task: the benchmark.
        params: steps, captures a step and learning rate.
        seed: of the labels, and of training.
        draw: which draw of labels.
        device: of the network.
        evaluate: the split that is scored; "val" while tuning.
    """
    net3d = load_net3d(folder).to(open_device(device))
    scenes, asked = ([load_links(task.paths[k], ()).scene for k in task.rows(split)] for split in ("train", evaluate))
    frozen = frozen_features(net3d, scenes, "voxel")
    confusions = {}
    for setting, labelled in FINETUNED.items():
        model = finetune(
            net3d,
            scenes,
            _targets(task, draw_labels(task, labelled, seed, draw)),
            len(task.names),
            steps=params.part_steps if task.name == "part" else params.semantic_steps,
            batch=params.part_batch if task.name == "part" else params.semantic_batch,
            lr=params.lr,
            seed=seed + draw,
            level="voxel",
            frozen=frozen,
        )
        confusions[f"{task.name}_{setting}"] = _confusions(task, evaluate, model.predict(asked))[None]
    return Result(method, folder, task.name, confusions)


def _targets(task: Segmented, drawn: Mapping[int, NDArray[np.int64]]) -> list[Tensor]:
    """[N] int64 of each training capture: the label of its drawn voxels, 0 of all others."""
    targets = []
    for k, rows in drawn.items():
        target = np.zeros(len(task.labels[k]), np.int64)
        target[rows] = task.labels[k][rows]
        targets.append(torch.from_numpy(target))
    return targets
