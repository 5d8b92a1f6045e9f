"""Pictures of image -> scene answers: why a scene was found, how recall grows, whether scores can be believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from numpy.typing import ArrayLike, NDArray

from condense.figures import as_float
from condense.keypoints import ImageKeyPoints, KeyPoints
from condense.ranking import Answer

LINES = 24  # inliers drawn, at most

Curve = Sequence[tuple[float, float, float]]


def explain(
    answer: Answer, image: NDArray[np.uint8], image_keypoints: ImageKeyPoints, scene_keypoints: KeyPoints, K: ArrayLike
) -> Figure:
    """Why a scene was found: the query beside the scene's key points in the pose of the answer, inliers joined.

    Args:
        answer: of `SceneRepository.query_image`.
        image: the query, [H, W, 3].
        image_keypoints: of the query.
        scene_keypoints: of the answer.
        K: [3, 3] intrinsics of the query in pixels.
    """
    figure, axes = plt.subplots(1, 2, figsize=(6, 3), layout="constrained")
    draw_answer((axes[0], axes[1]), answer, image, image_keypoints, scene_keypoints, K)
    return figure


def draw_answer(
    axes: tuple[Axes, Axes],
    answer: Answer,
    image: NDArray[np.uint8],
    image_keypoints: ImageKeyPoints,
    scene_keypoints: KeyPoints,
    K: ArrayLike,
) -> None:
    """As `explain`, on two axes: the query, and the scene."""
    left, right = axes
    height, width = image.shape[:2]
    left.imshow(as_float(image), extent=(0, width, height, 0), interpolation="nearest")
    for axis in axes:
        axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], aspect="equal")
    right.set_facecolor("0.93")
    if answer.pose is None:
        right.text(width / 2, height / 2, "no pose", ha="center", va="center", fontsize=8)
        return
    pixels, depth, facing = _projected(answer.pose, scene_keypoints, np.asarray(K, dtype=float))
    order = np.argsort(-depth)
    order = order[facing[order]]
    colours = scene_keypoints.colours.numpy().clip(0, 1)
    right.scatter(pixels[order, 0], pixels[order, 1], s=14, c=colours[order], linewidths=0)
    pairs = answer.inliers[np.linspace(0, len(answer.inliers) - 1, min(LINES, len(answer.inliers))).astype(int)]
    hues = plt.get_cmap("hsv")(np.linspace(0, 0.9, max(1, len(pairs))))
    for (here, there), hue in zip(pairs, hues, strict=False):
        at = image_keypoints.positions[here].numpy()
        ends = {"xyA": tuple(at), "coordsA": left.transData, "xyB": tuple(pixels[there]), "coordsB": right.transData}
        left.figure.add_artist(ConnectionPatch(**ends, color=hue, linewidth=0.7, alpha=0.8))  # type: ignore[arg-type]
        left.plot(*at, "o", color=hue, markersize=3)


def _projected(
    T: NDArray[np.float64], scene: KeyPoints, K: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Pixels [K, 2] and depths [K] of key points in a camera, and [K] whether they face it."""
    points = scene.positions.double().numpy()
    camera = (points - T[:3, 3]) @ T[:3, :3]
    depth = camera[:, 2].clip(1e-6)
    facing = (((T[:3, 3] - points) * scene.normals.double().numpy()).sum(1) >= 0) & (camera[:, 2] > 0)
    return camera[:, :2] / depth[:, None] * K[[0, 1], [0, 1]] + K[:2, 2], depth, facing


def explained(
    rows: Sequence[
        tuple[str, Answer, NDArray[np.uint8], ImageKeyPoints, KeyPoints, ArrayLike, NDArray[np.uint8] | None]
    ],
    columns: int = 2,
) -> Figure:
    """Several answers: query, key points of the scene in the answer's pose, and a picture of that scene, side by side.

    Args:
        rows: (title, the arguments of `explain`, a picture of the scene that was found) of each.
        columns: answers beside each other.
    """
    lines = -(-len(rows) // columns)
    size = (5.1 * columns, 1.95 * lines)
    figure, axes = plt.subplots(lines, 3 * columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for number, (title, answer, image, points, scene, K, picture) in enumerate(rows):
        first = 3 * (number % columns)
        left, right, aside = axes[number // columns, first : first + 3]
        left.axis("on")
        right.axis("on")
        draw_answer((left, right), answer, image, points, scene, K)
        if picture is not None:
            aside.imshow(as_float(picture), interpolation="nearest")
        left.set_title(title, fontsize=8, loc="left")
    return figure


def recall_curves(curves: Mapping[str, Curve]) -> Figure:
    """Recall at 1 by key points a scene, a line a method with its 95 % band: {method: (key points, recall, half)}."""
    figure, axis = plt.subplots(figsize=(5, 3.4), layout="constrained")
    for number, (method, curve) in enumerate(curves.items()):
        count, mean, half = (np.array(part) for part in zip(*curve, strict=True))
        axis.plot(count, 100 * mean, "o-", markersize=4, label=method, color=f"C{number}")
        axis.fill_between(count, 100 * (mean - half), 100 * (mean + half), alpha=0.12, linewidth=0, color=f"C{number}")
    axis.set(xlabel="key points a scene", ylabel="recall at 1 [%]", xscale="log", ylim=(0, 102))
    axis.set_xticks(list(count), [str(int(value)) for value in count])
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def reliability_diagram(methods: Mapping[str, Sequence[tuple[float, float, int]]]) -> Figure:
    """Scores against the share of right answers: {method: (mean score, share right, answers) of each bin}."""
    figure, axis = plt.subplots(figsize=(3.8, 3.6), layout="constrained")
    axis.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="as it should be")
    for number, (method, bins) in enumerate(methods.items()):
        score, share, _ = zip(*bins, strict=True)
        axis.plot(score, share, "o-", markersize=4, label=method, color=f"C{number}")
    axis.set(xlabel="score", ylabel="share of right answers", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    axis.spines[["top", "right"]].set_visible(False)
    return figure
