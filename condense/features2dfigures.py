"""Pictures of image features: one colour space, where they are noisy, and what probes make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from condense.backbone2d import FeatureStatistics
from condense.figures import label_colours
from condense.joint import SOLID
from condense.links import Links
from condense.rivals2d import load_image_network
from condense.tasks.noise2d import OUTLIER, norm_deviation
from condense.tasks.probes2d import REGRESSED, ProbeResult, ProbeViews, read_cells
from condense.tasks.targets2d import CellTargets


def shared_colours(links: Links, maps: Mapping[str, Sequence[Tensor]]) -> dict[str, list[NDArray]]:
    """Images and features of several views, all features in one PCA colour space.

    The three components are those of all kinds' cells together, each of unit length, where the capture is solid; so
    one colour means one feature in every picture.

    Args:
        links: the capture, with the views to show.
        maps: {kind: [D, h, w] of each view}.

    Returns:
        {"image" and every kind: [H, W, 3] of each view, in [0, 1]}; feature maps have one pixel a cell, and
        "rendered" and "lifted" are white where nothing is.
    """
    solid = [view.operator.opacity >= SOLID for view in links.views]
    unit = {kind: [normalize(cells.flatten(1).T, dim=1) for cells in each] for kind, each in maps.items()}
    every = torch.cat([cells[s] for each in unit.values() for cells, s in zip(each, solid, strict=True)])
    centre = every.mean(0)
    _, axes = torch.linalg.eigh((every - centre).T @ (every - centre))
    axes = axes[:, -3:].flip(1)  # [D, 3], the largest first
    axes = axes * torch.where(axes.sum(0) < 0, -1, 1)  # an eigenvector's sign is arbitrary
    low, high = torch.quantile((every - centre) @ axes, torch.tensor([0.02, 0.98]), dim=0)
    pictures: dict[str, list[NDArray]] = {"image": [v.image.float().numpy() / 255 for v in links.views]}
    for kind, each in unit.items():
        pictures[kind] = []
        for cells, view, here in zip(each, links.views, solid, strict=True):
            colour = (((cells - centre) @ axes - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
            if kind in ("rendered", "lifted"):
                colour = torch.where(here[:, None], colour, 1.0)
            pictures[kind].append(colour.reshape(*view.cells, 3).numpy())
    return pictures


def noise_colours(
    links: Links, maps: Mapping[str, Sequence[Tensor]], statistics: FeatureStatistics
) -> dict[str, list[NDArray]]:
    """Images, and in colour how far each cell's feature norm is from its view's median (`noise2d.norm_deviation`).

    Args:
        links: the capture, with the views to show.
        maps: {kind: [D, h, w] of each view}.
        statistics: of the frozen network.

    Returns:
        {"image" and every kind: [H, W, 3] of each view}; blue is OUTLIER below the median, red above, white the
        median itself and what is behind the capture.
    """
    pictures: dict[str, list[NDArray]] = {"image": [view.image.numpy() / 255 for view in links.views]}
    for kind, each in maps.items():
        pictures[kind] = []
        for cells, view in zip(each, links.views, strict=True):
            solid = (view.operator.opacity >= SOLID).reshape(view.cells)
            z = norm_deviation(cells, statistics, solid).nan_to_num(0.0)
            pictures[kind].append(plt.get_cmap("bwr")((z / (2 * OUTLIER) + 0.5).clamp(0, 1).numpy())[..., :3])
    return pictures


def probe_colours(
    results: Mapping[str, ProbeResult], task: ProbeViews, views: Sequence[CellTargets], teacher: Path
) -> dict[str, dict[str, list[NDArray]]]:
    """What probes make of single images, beside the truth; only cells with a truth are coloured.

    Args:
        results: {method: one of `probe_network`}.
        task: the benchmark they are of.
        views: to show.
        teacher: the frozen network's .safetensors.

    Returns:
        {"labels", "depth", "normals": {"image", "truth" and every method: [H, W, 3] of each view}}; a target that
        no probe learned is left out.
    """
    names = {f"{task.name}_probe": "labels", **{metric: name for metric, (name, _) in REGRESSED.items()}}
    pictures: dict[str, dict[str, list[NDArray]]] = {}
    for method, result in results.items():
        cells = read_cells(load_image_network(result.folder, teacher), views)
        for probe, name in names.items():
            if probe in result.probes:
                known, truth = cells.known(name), getattr(cells, name)
                found = pictures.setdefault(name, {"image": [view.image / 255 for view in views]})
                found.setdefault("truth", _coloured(truth, truth, known, views, len(task.names)))
                guess = result.probes[probe].predict(cells.features)
                found[method] = _coloured(guess, truth, known, views, len(task.names))
    return pictures


def _coloured(
    values: Tensor, truth: Tensor, known: Tensor, views: Sequence[CellTargets], classes: int
) -> list[NDArray]:
    """[h, w, 3] of each view: labels [N], depth [N, 1] on the scale of the truth, or normals [N, 3]."""
    if values.ndim == 1:
        colour = torch.from_numpy(label_colours(classes))[values]
    elif values.shape[1] == 1:
        low, high = torch.quantile(truth[known], torch.tensor([0.02, 0.98]))
        colour = torch.from_numpy(plt.get_cmap("viridis")(((values[:, 0] - low) / (high - low)).clamp(0, 1))[:, :3])
    else:
        colour = (normalize(values, dim=1) * values.new_tensor([1, -1, -1]) + 1) / 2  # up is green, facing is blue
    colour = torch.where(known[:, None], colour.double(), 1.0)
    parts = colour.split([len(view.labels) for view in views])
    return [part.reshape(*view.cells, 3).numpy() for part, view in zip(parts, views, strict=True)]


def label_legend(figure: Figure, names: Sequence[str], labels: NDArray[np.int64]) -> Figure:
    """Adds a legend of the labels [N] that occur, below the figure."""
    colours = label_colours(len(names))
    handles = [Patch(color=colours[i], label=names[i]) for i in np.unique(labels).tolist() if i]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=6, fontsize=7, frameon=False, title="labels of the truth"
    )
    return figure


def measure_points(
    metrics: Mapping[str, Mapping[str, Mapping[str, Any]]], panels: Mapping[str, str], columns: int = 5
) -> Figure:
    """A panel a metric, a row a method: means with 95 % intervals; the first method is drawn in colour.

    Args:
        metrics: as of a metric file.
        panels: {metric: title}; a metric that no method has is left out.
        columns: of panels.
    """
    names = [name for name in panels if any(name in row for row in metrics.values())]
    down = max(1, -(-len(names) // columns))
    size = (2.3 * columns + 0.7, (0.2 * len(metrics) + 0.75) * down)
    figure, axes = plt.subplots(down, columns, figsize=size, squeeze=False, sharey=True, layout="constrained")
    for axis, name in zip(axes.flat, names, strict=False):
        for place, row in enumerate(metrics.values()):
            if name in row:
                mean, half = row[name]["mean"], row[name]["ci95"] or 0.0
                axis.errorbar(mean, place, xerr=half, fmt="o", markersize=4, color="C0" if place == 0 else "#7a8794")
        axis.set_title(panels[name], fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", linewidth=0.4)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    axes.flat[0].set_yticks(range(len(metrics)), list(metrics))
    axes.flat[0].set_ylim(len(metrics) - 0.5, -0.5)
    return figure
