"""Pictures of what the package computes; each function returns a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

LEGEND = 12  # entries of a legend of voxels' labels, at most


def renders_beside_truth(pairs: Sequence[tuple[str, np.ndarray, np.ndarray]], columns: int = 2) -> Figure:
    """Held-out views: the truth on the left, the field's render on the right of each pair.

    Args:
        pairs: (title, truth [H, W, 3], render [H, W, 3]), uint8 or float in [0, 1].
        columns: pairs in a row.
    """
    rows = -(-len(pairs) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 2.3 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, truth, render) in zip(axes.flat, pairs, strict=False):
        axis.imshow(np.concatenate([as_float(truth), as_float(render)], axis=1).clip(0, 1), interpolation="nearest")
        axis.set_title(title, fontsize=9)
    return figure


def as_float(image: np.ndarray) -> np.ndarray:
    """An image as float in [0, 1]."""
    return image / 255.0 if image.dtype == np.uint8 else image


def contact_sheet(rows: dict[str, Sequence[np.ndarray]], side: float = 0.8) -> Figure:
    """Many small images at a glance: {title: images [H, W, 3]}, a row a title; `side` inches each."""
    columns = max(len(images) for images in rows.values())
    margin = 0.085 * max(len(title) for title in rows) + 0.1  # inches, for the titles
    width = side * columns + margin
    figure, axes = plt.subplots(len(rows), 1, figsize=(width, side * len(rows)), squeeze=False)
    figure.subplots_adjust(left=margin / width, right=1, bottom=0, top=1, hspace=0.02)
    for axis, (title, images) in zip(axes.flat, rows.items(), strict=True):
        strip = np.concatenate([as_float(image) for image in equal_sides(images)], axis=1)
        axis.imshow(strip, interpolation="nearest")
        axis.set_xlim(0, strip.shape[0] * columns)
        axis.text(-4, strip.shape[0] / 2, title, ha="right", va="center", fontsize=9)
        axis.axis("off")
    return figure


def equal_sides(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The images padded with their own white to the longest side of all."""
    side = max(max(image.shape[:2]) for image in images)
    return [squared(image, side) for image in images]


def squared(image: np.ndarray, side: int = 0) -> np.ndarray:
    """The image centred on a white square of `side` pixels (its longer side if 0)."""
    h, w = image.shape[:2]
    side = side or max(h, w)
    white = np.full((side, side, 3), 255 if image.dtype == np.uint8 else 1.0, image.dtype)
    top, left = (side - h) // 2, (side - w) // 2
    white[top : top + h, left : left + w] = image
    return white


def histograms(groups: dict[str, Sequence[float]], label: str) -> Figure:
    """How values spread, one histogram a group, with the median drawn in."""
    figure, axes = plt.subplots(1, len(groups), figsize=(4 * len(groups), 2.6), squeeze=False, layout="constrained")
    for axis, (name, values) in zip(axes.flat, sorted(groups.items()), strict=True):
        axis.hist(values, bins=min(30, max(5, len(values) // 4)), color="C0", alpha=0.8)
        axis.axvline(float(np.median(values)), color="C3", label=f"median {np.median(values):.1f}")
        axis.set(title=f"{name} ({len(values)})", xlabel=label)
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def curves(panels: dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]], x_label: str = "step") -> Figure:
    """One panel of lines a title: {panel: {line: (x, y)}}; a line of one name has one colour in all panels.

    One legend for all panels stands beside them; a line that is alone in its panels needs none: the title names it.
    """
    columns = len(panels) if len(panels) <= 3 else 2 + len(panels) % 2
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 3 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    colours: dict[str, str] = {}
    named: dict[str, plt.Line2D] = {}
    for axis, (title, lines) in zip(axes.flat, panels.items(), strict=False):
        for name, (x, y) in lines.items():
            (line,) = axis.plot(x, y, color=colours.setdefault(name, f"C{len(colours)}"))
            if len(lines) > 1:
                named[name] = line
        axis.set(title=title, xlabel=x_label)
        axis.spines[["top", "right"]].set_visible(False)
    if named:
        figure.legend(list(named.values()), list(named), frameon=False, fontsize=8, loc="outside right center")
    return figure


def feature_colours(pictures: dict[str, Sequence[np.ndarray]], title: str = "") -> Figure:
    """Images and feature maps in one colour space: a row a kind, a column a view.

    Args:
        pictures: {kind: [H, W, 3] of each view}, as of `tasks.features2d.shared_colours`.
        title: above all.
    """
    kinds = list(pictures)
    first = pictures[kinds[0]]
    columns, height = len(first), 1.6 * first[0].shape[0] / first[0].shape[1]
    size = (1.6 * columns + 0.6, max(height, 0.8) * len(kinds) + (0.3 if title else 0))
    figure, axes = plt.subplots(len(kinds), columns, figsize=size, squeeze=False, layout="constrained")
    for row, kind in zip(axes, kinds, strict=True):
        for axis, image in zip(row, pictures[kind], strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set_visible(False)
        row[0].set_ylabel(kind, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def few_shot_curves(panels: dict[str, dict[str, Sequence[tuple[float, float, float]]]]) -> Figure:
    """Accuracy by the number of labels a class, with 95 % bands: {panel: {method: (labels, accuracy, half)}}."""
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 3.8), squeeze=False, layout="constrained")
    colours: dict[str, str] = {}
    lines: dict[str, plt.Line2D] = {}
    for axis, (title, methods) in zip(axes.flat, panels.items(), strict=True):
        for method, points in methods.items():
            colour = colours.setdefault(method, f"C{len(colours)}")
            shots, mean, half = (np.array(part) for part in zip(*points, strict=True))
            (lines[method],) = axis.plot(shots, 100 * mean, "o-", markersize=3.5, label=method, color=colour)
            axis.fill_between(shots, 100 * (mean - half), 100 * (mean + half), color=colour, alpha=0.12, linewidth=0)
            ticks = [int(number) for number in shots]
        axis.set(title=title, xlabel="labelled captures a class", ylabel="accuracy [%]", ylim=(0, 102), xscale="log")
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(list(lines.values()), list(lines), frameon=False, fontsize=8, loc="outside right center")
    return figure


def confusion_matrix(shares: np.ndarray, names: Sequence[str]) -> Figure:
    """Shares [K, K] of each true class (rows) taken for each class, in percent; 0 is left blank."""
    side = 0.42 * len(names) + 1.4
    figure, axis = plt.subplots(figsize=(side, side), layout="constrained")
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(shares), strict=True):
        colour = "white" if shares[row, column] > 0.55 else "black"
        text = f"{100 * shares[row, column]:.0f}"
        axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="taken for", ylabel="true class")
    axis.spines[:].set_visible(False)
    return figure


def label_colours(count: int) -> np.ndarray:
    """[count, 3] RGB in [0, 1], told apart from their neighbours; the first, of what has no label, is light grey."""
    number = np.arange(count)
    hue = number * 0.618034 % 1  # steps of the golden section never repeat
    saturation, value = 0.55 + 0.15 * (number % 3), 0.95 - 0.18 * (number // 2 % 2)
    colours = hsv_to_rgb(np.stack([hue, saturation, value], axis=1))
    colours[:1] = 0.8
    return colours


def seen_obliquely(coords: np.ndarray, yaw: float = 3.8, pitch: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Voxels seen from above and aside: [N, 2] places in the picture (x right, y up), [N] their order, far first."""
    at = coords - coords.mean(0)
    x = at[:, 0] * np.cos(yaw) - at[:, 1] * np.sin(yaw)
    y = at[:, 0] * np.sin(yaw) + at[:, 1] * np.cos(yaw)
    place = np.stack([x, y * np.sin(pitch) + at[:, 2] * np.cos(pitch)], axis=1)
    return place, np.argsort(-(y * np.cos(pitch) - at[:, 2] * np.sin(pitch)), kind="stable")


def labelled_voxels(rows: Sequence[tuple[str, np.ndarray, dict[str, np.ndarray], Sequence[str]]]) -> Figure:
    """Captures down, ways of naming their voxels across, a legend of the LEGEND commonest labels beside each row.

    Args:
        rows: (title, coords [N, 3], {panel: labels [N]}, names of the labels) of each capture; 0 = no label.
    """
    columns = max(len(panels) for _, _, panels, _ in rows)
    size = (2.3 * columns + 1.6, 2.3 * len(rows))
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False, layout="constrained")
    for line, (title, coords, panels, names) in zip(axes, rows, strict=True):
        place, order = seen_obliquely(coords)
        colours = label_colours(len(names))
        dot = 1.2 * (160 / max(np.ptp(place, axis=0).max(), 1)) ** 2  # points squared: about a voxel
        for axis, (panel, labels) in zip(line, panels.items(), strict=False):
            depth = np.linspace(0.75, 1, len(order))[:, None]  # far voxels are darker
            axis.scatter(*place[order].T, s=dot, c=colours[labels[order]] * depth, marker="s", linewidths=0)
            axis.set_title(f"{title}: {panel}" if axis is line[0] else panel, fontsize=8)
        count = np.bincount(np.concatenate(list(panels.values())), minlength=len(names))
        count[0] = 0
        most = sorted(np.argsort(-count, kind="stable")[:LEGEND])
        handles = [Patch(color=colours[label], label=names[label]) for label in most if count[label]]
        line[-1].legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
        for axis in line:
            axis.set_aspect("equal")
            axis.axis("off")
    return figure
