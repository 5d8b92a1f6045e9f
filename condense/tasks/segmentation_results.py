"""From the confusions of `tasks.segmentation` to tables, curves and coloured voxels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from condense.links import load_links
from condense.metrics import class_scores, segmentation_difference, segmentation_scores
from condense.tasks.methods import paired_table
from condense.tasks.segmentation import Confusions, Result, Segmented
from condense.tasks.voxelfeatures import features

ByMethod = dict[str, Confusions]  # {method: {setting: [seeds and draws, captures, C, C]}}
SHARES = {1: "_1pct", 10: "_10pct", 100: ""}  # percent of labels: how a setting's name ends
KINDS = {"probe": "linear probe", "finetune": "fine-tuned"}


def stack_confusions(results: Iterable[Result]) -> ByMethod:
    """The confusions of all seeds and draws of each method together."""
    parts: dict[str, dict[str, list[Any]]] = {}
    for result in results:
        for setting, counts in result.confusions.items():
            parts.setdefault(result.method, {}).setdefault(setting, []).append(counts)
    return {m: {setting: np.concatenate(each) for setting, each in rows.items()} for m, rows in parts.items()}


def tabulate(confusions: ByMethod) -> dict[str, dict[str, Any]]:
    """The metric file: `<setting>_miou` and `<setting>_macc` of every method."""
    metrics: dict[str, dict[str, Any]] = {}
    for method, rows in confusions.items():
        for setting, counts in rows.items():
            for name, value in segmentation_scores(counts).items():
                metrics.setdefault(method, {})[f"{setting}_{name}"] = value
    return metrics


def differences(confusions: ByMethod) -> pd.DataFrame:
    """`methods.paired_table` of the mean IoU, of the 3D network alone and of both networks together (column `of`)."""
    tables = [
        paired_table(confusions, segmentation_difference, of).assign(of=of) for of in ("condense", "condense_2d3d")
    ]
    table = pd.concat(tables, ignore_index=True)
    return table.assign(metric=table["metric"] + "_miou")


def class_table(confusions: ByMethod, tasks: Sequence[Segmented]) -> pd.DataFrame:
    """IoU of every class under the probe on all labels, mean over seeds.

    Returns:
        Columns task, class, voxels (true ones in TEST captures), and one a method; classes without a true voxel
        are left out.
    """
    rows = []
    for task in tasks:
        counts = {method: each[f"{task.name}_probe"] for method, each in confusions.items()}
        iou = {method: class_scores(each.sum(1))[0].mean(0) for method, each in counts.items()}
        voxels = next(iter(counts.values()))[0].sum((0, 2))
        for label in np.flatnonzero(voxels):
            row = {"task": task.name, "class": task.names[label], "voxels": int(voxels[label])}
            rows.append(row | {method: round(float(values[label]), 3) for method, values in iou.items()})
    return pd.DataFrame(rows, columns=["task", "class", "voxels", *confusions])


def efficiency(
    metrics: Mapping[str, Mapping[str, Any]], tasks: Sequence[Segmented]
) -> dict[str, dict[str, list[tuple[float, float, float]]]]:
    """{benchmark: {method: (percent of labels, mIoU, half of its interval) of each share}}, probes and fine-tuning."""

    def point(share: int, value: Mapping[str, Any]) -> tuple[float, float, float]:
        return share, value["mean"], value["ci95"] or 0.0

    return {
        f"{task.name}, {title}: mIoU [%]": {
            method: [point(share, row[f"{task.name}_{kind}{end}_miou"]) for share, end in SHARES.items()]
            for method, row in metrics.items()
            if f"{task.name}_{kind}_miou" in row
        }
        for task in tasks
        for kind, title in KINDS.items()
    }


def shown(task: Segmented, count: int) -> list[int]:
    """`count` TEST captures, of as many classes as can be."""
    rows = task.rows("test")
    first = [int(rows[task.classes[rows] == name][0]) for name in np.unique(task.classes[rows])]
    return first[:: max(1, len(first) // count)][:count]


def coloured(
    task: Segmented, captures: Sequence[int], results: Sequence[Result], methods: Sequence[str]
) -> list[tuple[str, np.ndarray, dict[str, np.ndarray], Sequence[str]]]:
    """The truth of some captures beside what the first seed's probe on all labels makes of them.

    Args:
        task: the benchmark.
        captures: their places in it.
        results: of `segmentation.probe`.
        methods: those to show.

    Returns:
        (name, coords [N, 3], {panel: labels [N]}, names of labels) of each capture; a prediction shows only the
        voxels that have a true label, so that both can be compared. Of rooms
        only those are shown at all: what lies outside would hide them.
    """
    paths = [task.paths[k] for k in captures]
    panels = [{"truth": task.labels[k].astype(int)} for k in captures]
    for method in methods:
        first = next(result for result in results if (result.method, result.task) == (method, task.name))
        for each, values in zip(panels, features(first.source, paths), strict=True):
            predicted = first.probes[f"{task.name}_probe"].predict(values).numpy()
            each[method] = np.where(each["truth"] > 0, predicted, 0)
    rows: list[tuple[str, np.ndarray, dict[str, np.ndarray], Sequence[str]]] = []
    for path, each in zip(paths, panels, strict=True):
        at = load_links(path, ()).scene.coords.numpy()
        kept = each["truth"] > 0 if task.name == "semantic" else np.ones(len(at), bool)
        rows.append((path.stem, at[kept], {panel: values[kept] for panel, values in each.items()}, task.names))
    return rows
