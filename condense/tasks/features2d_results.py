"""From the measures of `features2d` and `probes2d` to the metric file and the paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from condense.metrics import interval, paired_difference, segmentation_difference, segmentation_scores
from condense.tasks.features2d import Rows
from condense.tasks.methods import paired_table
from condense.tasks.probes2d import ProbeResult

TITLES = {  # of panels of a figure; the arrow points to better
    "consistency_margin": "consistency margin ↑",
    "variance_explained": "variance explained ↑",
    "match_at_1px": "found within 1 px ↑",
    "match_at_2px": "found within 2 px ↑",
    "match_at_1_cell": "found within a cell ↑",
    "tv_ratio": "steps inside / across ↓",
    "norm_outliers": "outliers of norm ↓",
    "part_probe_miou": "parts, mIoU ↑",
    "part_probe_1pct_miou": "parts, 1 % of labels ↑",
    "semantic_probe_miou": "rooms, mIoU ↑",
    "semantic_probe_1pct_miou": "rooms, 1 % of labels ↑",
    "depth_probe_rmse": "depth, RMSE ↓",
    "normals_probe_deg": "normals, degrees ↓",
}
KEYS = ("method", "metric", "difference", "ci95")  # columns of `differences`
Values = dict[str, dict[str, NDArray]]  # {method: {metric: [seeds, captures] or confusions}}


def stack_measures(captures: Sequence[Rows]) -> Values:
    """{kind: {metric: [seeds, captures]}} from one `measure_capture` a capture; metrics without a value left out."""
    values: Values = {}
    for kind, seeds in (captures[0] if captures else {}).items():
        for metric in seeds[0]:
            table = np.array([[rows[kind][seed][metric] for rows in captures] for seed in range(len(seeds))])
            if np.isfinite(table).any():
                values.setdefault(kind, {})[metric] = table
    return values


def stack_errors(results: Sequence[ProbeResult]) -> Values:
    """{method: {metric: [seeds, captures of all benchmarks]}} of the regressions."""
    values: Values = {}
    for method in dict.fromkeys(result.method for result in results):
        own = [result for result in results if result.method == method]
        folders = list(dict.fromkeys(result.folder for result in own))
        for metric in dict.fromkeys(metric for result in own for metric in result.errors):
            rows = [[r.errors[metric] for r in own if r.folder == folder and metric in r.errors] for folder in folders]
            values.setdefault(method, {})[metric] = np.array([np.concatenate(row) for row in rows])
    return values


def stack_confusions(results: Sequence[ProbeResult]) -> Values:
    """{method: {setting: [seeds and draws, captures, C, C]}} of the probes of labels."""
    parts: dict[str, dict[str, list[NDArray]]] = {}
    for result in results:
        for setting, counts in result.confusions.items():
            parts.setdefault(result.method, {}).setdefault(setting, []).append(counts)
    return {m: {setting: np.concatenate(each) for setting, each in rows.items()} for m, rows in parts.items()}


def tabulate(values: Values, confusions: Values) -> dict[str, dict[str, Any]]:
    """The metric file: `interval` of values [seeds, captures], and `<setting>_miou` of confusions."""
    metrics: dict[str, dict[str, Any]] = {
        method: {metric: interval(table) for metric, table in row.items()} for method, row in values.items()
    }
    for method, row in confusions.items():
        for setting, counts in row.items():
            metrics.setdefault(method, {})[f"{setting}_miou"] = segmentation_scores(counts)["miou"]
    return metrics


def differences(values: Values, confusions: Values, of: str = "student") -> pd.DataFrame:
    """`methods.paired_table` of all metrics: `of` minus every other method."""
    labels = paired_table(confusions, segmentation_difference, of)
    both = (paired_table(values, paired_difference, of), labels.assign(metric=labels["metric"] + "_miou"))
    return pd.concat([table for table in both if len(table)] or [both[0]], ignore_index=True)


def verdicts(table: pd.DataFrame, titles: Mapping[str, str] = TITLES) -> pd.DataFrame:
    """In what the student is better, worse, or not told apart (the interval of the difference holds 0).

    Args:
        table: of `differences`; metrics without a title are left out.
        titles: {metric: title with an arrow to better}.

    Returns:
        A row a method, columns better, worse, not told apart: the metrics' names.
    """
    rows: dict[str, dict[str, list[str]]] = {}
    for method, metric, difference, half in zip(*(table[c].tolist() for c in KEYS), strict=True):
        if metric in titles:
            gain = difference if titles[metric].endswith("↑") else -difference
            verdict = ("better" if gain > 0 else "worse") if half is not None and abs(gain) > half else "not told apart"
            rows.setdefault(method, {}).setdefault(verdict, []).append(metric)
    columns = ["better", "worse", "not told apart"]
    words = {method: {c: ", ".join(found.get(c, ["-"])) for c in columns} for method, found in rows.items()}
    return pd.DataFrame.from_dict(words, orient="index", columns=columns)


def join(first: Mapping[str, Mapping[str, NDArray]], second: Mapping[str, Mapping[str, NDArray]]) -> Values:
    """The metrics of both, method by method, in the order of the first."""
    return {method: {**first.get(method, {}), **second.get(method, {})} for method in dict.fromkeys([*first, *second])}
