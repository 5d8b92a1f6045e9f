"""Charts that compare many methods at a glance; each function returns a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

COLUMNS = 5  # panels side by side, at most


def method_bars(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]], panels: Mapping[str, str]) -> Figure:
    """A panel a metric, a row a method, with 95 % intervals; the first method, whom it is about, is dark.

    Args:
        metrics: as of a metric file, fractions; methods without any of the panels' metrics are left out.
        panels: {metric: title}; a metric that no method has is left out.
    """
    methods = [method for method, row in metrics.items() if set(panels) & set(row)]
    names = [name for name in panels if any(name in row for row in metrics.values())]
    columns = min(COLUMNS, max(1, len(names)))
    rows = -(-max(1, len(names)) // columns)
    size = (2.6 * columns + 1.6, (0.26 * len(methods) + 0.9) * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=True, layout="constrained")
    for axis in axes.flat[max(1, len(names)) :]:
        axis.remove()
    for axis, name in zip(axes.flat, names, strict=False):
        values = [(place, metrics[method][name]) for place, method in enumerate(methods) if name in metrics[method]]
        places, means = [place for place, _ in values], [100 * value["mean"] for _, value in values]
        errors = [100 * (value["ci95"] or 0.0) for _, value in values]
        colours = ["C0" if place == 0 else "#b8c4d0" for place in places]
        axis.barh(places, means, xerr=errors, color=colours, height=0.7, error_kw={"elinewidth": 1, "capsize": 2})
        most = max(np.add(means, errors)) or 1.0  # an axis needs a width where all is 0
        for place, mean, error in zip(places, means, errors, strict=True):
            axis.text(mean + error + 0.02 * most, place, f"{mean:.1f}", va="center", fontsize=8)
        axis.set(title=panels[name], xlabel="%", xlim=(0, 1.18 * most), yticks=range(len(methods)), yticklabels=methods)
        axis.spines[["top", "right"]].set_visible(False)
    axes.flat[0].invert_yaxis()
    return figure


Points = Sequence[tuple[float, float, float]]  # x, mean, half of its 95 % interval; fractions


def interval_curves(panels: Mapping[str, Mapping[str, Points]], x_label: str, log: bool = False) -> Figure:
    """One panel of lines a title, from 0 up, with 95 % intervals: {panel: {line: points}}, in percent.

    A line of one name looks the same in all panels. One legend stands beside them, where there is more than one line.

    Args:
        panels: see above.
        x_label: of all panels.
        log: whether x is logarithmic.
    """
    columns = len(panels) if len(panels) <= 3 else 2
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 3 * rows), squeeze=False, layout="constrained")
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    drawn = {}
    for axis, (title, lines) in zip(axes.flat, panels.items(), strict=False):
        for name, points in lines.items():
            number = names.index(name)
            x, mean, half = (np.array(part) for part in zip(*points, strict=True))
            style = {"color": f"C{number}", "linestyle": "-" if number < 10 else "--"}
            drawn[name] = axis.errorbar(x, 100 * mean, 100 * half, **style, elinewidth=0.8, capsize=2)
        axis.set(title=title, xlabel=x_label, ylim=(0, None), xscale="log" if log else "linear")
        axis.spines[["top", "right"]].set_visible(False)
    if len(names) > 1:
        figure.legend([drawn[name] for name in names], names, frameon=False, fontsize=8, loc="outside right center")
    return figure
