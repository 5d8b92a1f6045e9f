"""Pictures of key points and of matches; each function returns a matplotlib Figure.

Image points are in pixels, pixel centres at +0.5. Right matches are green, wrong ones red.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch

from condense.figures import as_float, seen_obliquely
from condense.keypoints import ImageKeyPoints, KeyPoints
from condense.voxels import VoxelScene

RIGHT, WRONG = "#1a9850", "#d73027"


def keypoints_on_images(rows: Sequence[tuple[str, Sequence[tuple[str, np.ndarray, ImageKeyPoints]]]]) -> Figure:
    """Images with their key points, larger where the score is higher: [(row's title, [(title, image, points)])].

    Args:
        rows: images are [H, W, 3] uint8; every row of pictures has a title beside it, every picture one above.
    """
    columns = max(len(pictures) for _, pictures in rows)
    size = (2.0 * columns + 0.4, 2.2 * len(rows))
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_visible(False)
    for line, (name, pictures) in zip(axes, rows, strict=True):
        for axis, (title, image, points) in zip(line, pictures, strict=False):
            _show(axis, image)
            x, y = points.positions.numpy().T
            axis.scatter(x, y, _sizes(points.scores.numpy()), facecolors="none", edgecolors="#ffd400", linewidths=0.9)
            axis.set_title(title, fontsize=8)
        line[0].set_ylabel(name, fontsize=9)
    return figure


def _show(axis: Axes, image: np.ndarray) -> None:
    height, width = image.shape[:2]
    axis.imshow(as_float(image), interpolation="nearest", extent=(0, width, height, 0))
    axis.set(visible=True, xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))


def _sizes(scores: np.ndarray) -> np.ndarray:
    """Areas in points squared: 8 for the lowest score of a picture, 60 for the highest; 25 if all are alike."""
    low, high = (float(f(scores)) for f in (np.min, np.max)) if len(scores) else (0.0, 0.0)
    return 8 + 52 * (scores - low) / (high - low) if high > low else np.full(len(scores), 25.0)


def scenes_keypoints(scenes: Sequence[tuple[str, VoxelScene, KeyPoints]], columns: int = 4) -> Figure:
    """Scenes as faint voxels seen from above and aside, with their key points in their own colours on top."""
    rows = -(-len(scenes) // columns)
    across = min(columns, len(scenes))
    figure, axes = plt.subplots(rows, across, figsize=(2.7 * across, 2.7 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, scene, points) in zip(axes.flat, scenes, strict=False):
        x, y = _oblique(axis, scene, points).T
        colours = points.colours.numpy().clip(0, 1)
        axis.scatter(x, y, _sizes(points.scores.numpy()), colours, edgecolors="black", linewidths=0.5)
        axis.set_title(title, fontsize=8)
    return figure


def _oblique(axis: Axes, scene: VoxelScene, points: KeyPoints) -> np.ndarray:
    """Draws the voxels faintly; returns where the key points lie in the picture, [K, 2]."""
    coords = scene.coords.numpy() + 0.5
    both = np.concatenate([coords, scene.grid.from_world(points.positions).numpy()])
    place, order = seen_obliquely(both)
    order = order[order < len(coords)]
    dot = 1.4 * (160 / max(np.ptp(place, axis=0).max(), 1)) ** 2  # points squared: about a voxel
    pale = 0.25 * scene.colour.numpy().clip(0, 1) + 0.75
    axis.scatter(place[order, 0], place[order, 1], dot, pale[order], marker="s", linewidths=0)
    axis.set_aspect("equal")
    axis.axis("off")
    return place[len(coords) :]


def matches_between(
    rows: Sequence[tuple[str, tuple[np.ndarray, np.ndarray], tuple[ImageKeyPoints, ImageKeyPoints], np.ndarray]],
    right: Sequence[np.ndarray],
    columns: int = 2,
) -> Figure:
    """Matches drawn between two images side by side, a panel a row.

    Args:
        rows: (title, both images, key points of both, matches [M, 2]) each.
        right: [M] bool of each.
        columns: panels across.
    """
    down = -(-len(rows) // columns)
    figure, axes = plt.subplots(down, columns, figsize=(4.2 * columns, 2.4 * down), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, images, points, matches), good in zip(axes.flat, rows, right, strict=False):
        gap = images[0].shape[1] // 16
        shift = images[0].shape[1] + gap
        pair = np.ones((max(i.shape[0] for i in images), shift + images[1].shape[1], 3))
        for image, left in zip(images, (0, shift), strict=True):
            pair[: image.shape[0], left : left + image.shape[1]] = as_float(image)
        _show(axis, pair)
        a, b = (p.positions.numpy()[matches[:, k]] for k, p in enumerate(points))
        for colour, some in ((WRONG, ~good), (RIGHT, good)):
            ends = np.stack([a[some], b[some] + [shift, 0]])  # [2, M, 2]
            axis.plot(ends[..., 0], ends[..., 1], "-o", color=colour, linewidth=0.8, markersize=2)
        axis.set_title(f"{title}: {int(good.sum())} of {len(good)} right", fontsize=8)
    return figure


def matches_to_scenes(
    rows: Sequence[tuple[str, np.ndarray, ImageKeyPoints, VoxelScene, KeyPoints, np.ndarray]],
    right: Sequence[np.ndarray],
) -> Figure:
    """Matches drawn from an image to its scene's key points, seen from above and aside; a row each.

    Args:
        rows: (title, image, its key points, scene, its key points, matches [M, 2]) each.
        right: [M] bool of each.
    """
    figure, axes = plt.subplots(len(rows), 2, figsize=(6.4, 3.0 * len(rows)), squeeze=False, layout="constrained")
    for line, (title, image, points, scene, decorated, matches), good in zip(axes, rows, right, strict=True):
        _show(line[0], image)
        place = _oblique(line[1], scene, decorated)
        colours = decorated.colours.numpy().clip(0, 1)
        line[1].scatter(place[:, 0], place[:, 1], 6, colours, edgecolors="grey", linewidths=0.3)
        for number in np.argsort(good, kind="stable"):  # the right ones on top
            a, b = points.positions.numpy()[matches[number, 0]], place[matches[number, 1]]
            line_to = ConnectionPatch(a, b, "data", "data", axesA=line[0], axesB=line[1], linewidth=0.7)
            line_to.set_color(RIGHT if good[number] else WRONG)
            figure.add_artist(line_to)
        line[0].set_title(f"{title}: {int(good.sum())} of {len(good)} right", fontsize=8)
    return figure
