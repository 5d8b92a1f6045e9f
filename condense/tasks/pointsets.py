"""The protocols on public point sets: the same probes, draws and choices as on built-in captures.

Numbers are comparable between networks here, not with published tables, whose protocols differ (ShapeNetPart's looks at
the parts of the known class alone; a room here is one scene of so many voxels a side).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from condense.backbone3d import SparseUNet, load_net3d
from condense.datasets.pointset import PointSet
from condense.datasets.scenes import scene_of
from condense.devices import open_device
from condense.metrics import interval
from condense.model import voxel_features
from condense.tasks.classification import measure
from condense.tasks.descriptors import describe
from condense.tasks.probes import Labelled, Rows
from condense.tasks.segmentation import Segmented, probe_features
from condense.tasks.segmentation_results import stack_confusions, tabulate

Metrics = dict[str, dict[str, dict[str, float | int | None]]]
VAL_EVERY = 5  # where a release has no val split, every so many training clouds of a class are VAL
TOGETHER = 256  # clouds read at once


def labelled_clouds(point_set: PointSet, per_class: int = 0) -> tuple[Labelled, Rows]:
    """The classes and splits of a point set, and the places of its clouds that are used.

    Args:
        point_set: whose clouds have classes.
        per_class: clouds of each class and split at most, the first ones; 0 keeps all.

    Raises:
        ValueError: the clouds have no classes, or there is no test split.
    """
    labels = np.array([-1 if entry.label is None else entry.label for entry in point_set.entries])
    if not point_set.classes or (labels < 0).any():
        raise ValueError(f"the clouds of {point_set.name} have no classes: it is a benchmark of segmentation")
    splits, rows = _splits(point_set, labels, per_class)
    classes = np.array(point_set.classes)[labels[rows]]
    return Labelled(classes, splits[rows], np.zeros(len(rows), dtype=bool)), rows


def _splits(point_set: PointSet, labels: np.ndarray, per_class: int) -> tuple[np.ndarray, Rows]:
    """The split of every cloud, some of train made val where there is none, and the places of those that are used."""
    splits = np.array([entry.split for entry in point_set.entries], dtype="<U5")
    if not {"train", "test"} <= set(splits):
        raise ValueError(f"{point_set.name} needs the splits train and test, and has {sorted(set(splits))}")
    if "val" not in splits:
        for label in np.unique(labels):
            splits[np.flatnonzero((labels == label) & (splits == "train"))[VAL_EVERY - 1 :: VAL_EVERY]] = "val"
    groups = [np.flatnonzero((labels == label) & (splits == s)) for label in np.unique(labels) for s in set(splits)]
    return splits, np.sort(np.concatenate([group[: per_class or None] for group in groups]))


def bench_classification(
    point_set: PointSet,
    folders: Sequence[Path],
    resolution: int,
    per_class: int = 0,
    seed: int = 0,
    device: str = "cpu",
) -> Metrics:
    """Probes of frozen networks on a point set's clouds.

    Args:
        point_set: as of `open_dataset`; every used cloud is read once.
        folders: of 3D networks.
        resolution: voxels along a cloud's longest side.
        per_class: see `labelled_clouds`.
        seed: of the few-shot draws.
        device: of the networks.

    Returns:
        {folder: {metric: {mean, ci95, n}}}.

    Raises:
        ValueError: no networks, or the set cannot be classified.
        DatasetError: a cloud's file is damaged.
    """
    nets = _networks(folders, device)
    labelled, rows = labelled_clouds(point_set, per_class)
    parts: list[list[np.ndarray]] = [[] for _ in nets]
    for start in tqdm(range(0, len(rows), TOGETHER), desc=point_set.name):
        scenes = [scene_of(point_set[int(i)], resolution)[0] for i in rows[start : start + TOGETHER]]
        for net3d, part in zip(nets, parts, strict=True):
            part.append(describe(net3d, scenes))
    found = [measure(np.concatenate(part), labelled, seed) for part in parts]
    return {
        _title(folder): {metric: interval(right) for metric, right in _rows(hits).items()}
        for folder, hits in zip(folders, found, strict=True)
    }


def bench_segmentation(
    point_set: PointSet,
    folders: Sequence[Path],
    resolution: int,
    per_class: int = 0,
    most: int = 16_000,
    seed: int = 0,
    device: str = "cpu",
) -> Metrics:
    """Probes of frozen networks on the labelled voxels of a point set's clouds.

    Args:
        point_set: as of `open_dataset`, with labelled points; every used cloud is read once.
        folders: of 3D networks.
        resolution: voxels along a cloud's longest side.
        per_class: as for `bench_classification`; of rooms, which have no class, so many a split.
        most: voxels that one probe is fitted on.
        seed: of the draws of labels.
        device: of the networks.

    Returns:
        {folder: {metric: {mean, ci95, n}}}, mean IoU and accuracy with 1, 10 and 100 % of the labels.

    Raises:
        ValueError: no networks, or the points have no labels.
        DatasetError: a cloud's file is damaged.
    """
    nets = _networks(folders, device)
    if not point_set.point_classes:
        raise ValueError(f"the points of {point_set.name} have no labels: it is a benchmark of classification")
    kinds = np.array([-1 if entry.label is None else entry.label for entry in point_set.entries])
    splits, rows = _splits(point_set, kinds, per_class)
    values: list[list[Tensor]] = [[] for _ in nets]
    labels = []
    for row in tqdm(rows, desc=point_set.name):
        scene, found = scene_of(point_set[int(row)], resolution)
        if found is None:
            raise ValueError(
                f"{point_set.entries[row].name} has no point labels: `condense sets` lists what is missing"
            )
        kept = found > 0  # the others are neither learned from nor scored
        labels.append(found[kept].numpy().astype(np.uint8))
        for net3d, part in zip(nets, values, strict=True):
            part.append(normalize(voxel_features(net3d, [scene])[0], dim=1)[kept])
    names = np.array([*point_set.classes, "room"])[kinds[rows]]
    task = Segmented("point", ("none", *point_set.point_classes), (), tuple(labels), names, splits[rows])
    results = [probe_features(_title(f), f, part, task, most, seed) for f, part in zip(folders, values, strict=True)]
    return tabulate(stack_confusions(results))


def _networks(folders: Sequence[Path], device: str) -> list[SparseUNet]:
    if not folders:
        raise ValueError("no 3D networks: name folders that hold net3d.safetensors with --networks")
    return [load_net3d(folder).to(open_device(device)) for folder in folders]


def _title(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def _rows(hits: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Hits of one network with a first axis of seeds."""
    return {metric: values[None] for metric, values in hits.items()}
