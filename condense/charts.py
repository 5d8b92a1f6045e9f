"""Charts that compare many methods at a glance; each function returns a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Mapping
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
        most = max(np.add(means, errors))
        for place, mean, error in zip(places, means, errors, strict=True):
            axis.text(mean + error + 0.02 * most, place, f"{mean:.1f}", va="center", fontsize=8)
        axis.set(title=panels[name], xlabel="%", xlim=(0, 1.18 * most), yticks=range(len(methods)), yticklabels=methods)
        axis.spines[["top", "right"]].set_visible(False)
    axes.flat[0].invert_yaxis()
    return figure
