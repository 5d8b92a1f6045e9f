"""Pictures of what words find: scenes in order, and where in an image and on voxels a phrase is hot."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from condense.figures import as_float, seen_obliquely, squared

COLD, HOT = -1.0, 3.0  # deviations at the ends of the colour scale


@dataclass(frozen=True)
class Heat:
    """A phrase in one capture.

    Args:
        phrase: the words.
        image: [H, W, 3] uint8.
        cells: [h, w] heat of the image's cells.
        coords: [N, 3] of voxels.
        voxels: [N] their heat.
    """

    phrase: str
    image: NDArray[np.uint8]
    cells: NDArray[np.float32]
    coords: NDArray[np.integer]
    voxels: NDArray[np.float32]


def heat_maps(found: Sequence[Heat], columns: int = 2) -> Figure:
    """Each phrase three times: the image, its cells' heat over it, and the voxels' heat; `columns` phrases a row."""
    rows = -(-len(found) // columns)
    figure, axes = plt.subplots(
        rows, 3 * columns, figsize=(5 * columns, 1.9 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for place, heat in enumerate(found):
        picture, over, scatter = axes[place // columns, 3 * (place % columns) :][:3]
        extent = (0, heat.image.shape[1], heat.image.shape[0], 0)
        picture.imshow(heat.image)
        over.imshow(as_float(heat.image).mean(2), cmap="gray", vmin=0, vmax=1)
        over.imshow(heat.cells, cmap="inferno", vmin=COLD, vmax=HOT, alpha=0.65, extent=extent)
        at, order = seen_obliquely(heat.coords)
        dot = 0.7 * (130 / max(np.ptp(at, axis=0).max(), 1)) ** 2  # points squared: about a voxel
        style = {"cmap": "inferno", "vmin": COLD, "vmax": HOT, "marker": "s", "linewidths": 0}
        scatter.scatter(*at[order].T, s=dot, c=heat.voxels[order], **style)
        scatter.set_aspect("equal")
        over.set_title(textwrap.shorten(heat.phrase, 60), fontsize=9)
    return figure


def ranked_scenes(
    answers: Sequence[tuple[str, Sequence[NDArray[np.uint8]], Sequence[bool]]], side: float = 0.85
) -> Figure:
    """Sentences on the left, the scenes found for each, best first; right ones have a green frame.

    Args:
        answers: (sentence, images of the scenes [H, W, 3], whether each is right).
        side: of an image, in inches.
    """
    columns = max(len(images) for _, images, _ in answers)
    words, width = 2.9, side * columns + 2.9  # inches
    figure, axes = plt.subplots(
        len(answers), columns + 1, figsize=(width, 1.06 * side * len(answers)), squeeze=False,
        width_ratios=[words, *[side] * columns], layout="constrained",
    )  # fmt: skip
    for line, (sentence, images, right) in zip(axes, answers, strict=True):
        for axis in line:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].text(1, 0.5, textwrap.fill(sentence, 40), ha="right", va="center", fontsize=8)
        for axis, image, good in zip(line[1:], images, right, strict=False):
            axis.imshow(squared(image))
            axis.spines[:].set(visible=good, color="green", linewidth=2.5)
    return figure
