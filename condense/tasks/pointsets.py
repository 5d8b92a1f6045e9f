"""The classification protocol on public point sets: the same probes, draws and choices as on built-in captures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from condense.backbone3d import load_net3d
from condense.datasets.pointset import PointSet
from condense.datasets.scenes import scene_of
from condense.metrics import interval
from condense.tasks.classification import measure
from condense.tasks.descriptors import describe
from condense.tasks.probes import Labelled, Rows

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
    splits = np.array([entry.split for entry in point_set.entries], dtype="<U5")
    if not point_set.classes or (labels < 0).any():
        raise ValueError(f"the clouds of {point_set.name} have no classes: it is a benchmark of segmentation")
    if not {"train", "test"} <= set(splits):
        raise ValueError(f"{point_set.name} needs the splits train and test, and has {sorted(set(splits))}")
    if "val" not in splits:
        for label in np.unique(labels):
            splits[np.flatnonzero((labels == label) & (splits == "train"))[VAL_EVERY - 1 :: VAL_EVERY]] = "val"
    groups = [np.flatnonzero((labels == label) & (splits == s)) for label in np.unique(labels) for s in set(splits)]
    rows = np.sort(np.concatenate([group[: per_class or None] for group in groups]))
    classes = np.array(point_set.classes)[labels[rows]]
    return Labelled(classes, splits[rows], np.zeros(len(rows), dtype=bool)), rows


def bench_classification(
    point_set: PointSet, folders: Sequence[Path], resolution: int, per_class: int = 0, seed: int = 0
) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Probes of frozen networks on a point set's clouds.

    Args:
        point_set: as of `open_dataset`; every used cloud is read once.
        folders: of 3D networks.
        resolution: voxels along a cloud's longest side.
        per_class: see `labelled_clouds`.
        seed: of the few-shot draws.

    Returns:
        {folder: {metric: {mean, ci95, n}}}.

    Raises:
        ValueError: no networks, or the set cannot be classified.
        DatasetError: a cloud's file is damaged.
    """
    if not folders:
        raise ValueError("no 3D networks: name folders that hold net3d.safetensors with --networks")
    nets = [load_net3d(folder) for folder in folders]
    labelled, rows = labelled_clouds(point_set, per_class)
    parts: list[list[np.ndarray]] = [[] for _ in nets]
    for start in tqdm(range(0, len(rows), TOGETHER), desc=point_set.name):
        scenes = [scene_of(point_set[int(i)], resolution)[0] for i in rows[start : start + TOGETHER]]
        for net3d, part in zip(nets, parts, strict=True):
            part.append(describe(net3d, scenes))
    found = [measure(np.concatenate(part), labelled, seed) for part in parts]
    return {
        f"{folder.parent.name}/{folder.name}": {metric: interval(right) for metric, right in _rows(hits).items()}
        for folder, hits in zip(folders, found, strict=True)
    }


def _rows(hits: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Hits of one network with a first axis of seeds."""
    return {metric: values[None] for metric, values in hits.items()}
