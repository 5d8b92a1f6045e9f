"""Pure metrics over arrays, and the error bars of every table."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 2000  # bootstrap draws of an interval


def hits(predicted: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """[N] 1 where the prediction is right, else 0; the mean is the accuracy."""
    return (np.asarray(predicted) == np.asarray(truth)).astype(float)


def recall_at_k(similarity: ArrayLike, truth: ArrayLike, k: int) -> NDArray[np.float64]:
    """[Q] 1 where the true item is among the `k` most similar, else 0.

    Args:
        similarity: [Q, C] of each query to each item. A tie with the true item counts as a miss of rank, so
            that constant features score nothing.
        truth: [Q] int, index of the right item.
        k: how many items are looked at.
    """
    similarity = np.asarray(similarity)
    own = np.take_along_axis(similarity, np.asarray(truth)[:, None], axis=1)  # [Q, 1]
    rank = (similarity >= own).sum(axis=1) - 1  # items at least as similar as the true one, itself aside
    return (rank < k).astype(float)


def mean_iou(predicted: ArrayLike, truth: ArrayLike, classes: int, ignore: int = 0) -> float:
    """Mean over the classes present in `truth` of intersection over union.

    Args:
        predicted: [N] int in [0, classes).
        truth: [N] int in [0, classes).
        classes: number of classes.
        ignore: elements of this true class are left out altogether; -1 leaves none out.
    """
    iou, _ = class_scores(confusion(predicted, truth, classes, ignore))
    return float(np.nanmean(iou)) if np.isfinite(iou).any() else 0.0


def confusion(predicted: ArrayLike, truth: ArrayLike, classes: int, ignore: int = 0) -> NDArray[np.int64]:
    """[classes, classes] counts, true class first.

    Args:
        predicted: [N] int in [0, classes).
        truth: [N] int in [0, classes).
        classes: number of classes.
        ignore: elements of this true class are left out altogether; -1 leaves none out.
    """
    predicted, truth = np.asarray(predicted, dtype=np.int64).ravel(), np.asarray(truth, dtype=np.int64).ravel()
    kept = truth != ignore
    pairs = np.bincount(truth[kept] * classes + predicted[kept], minlength=classes**2)
    return pairs.reshape(classes, classes)


def class_scores(confusions: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Intersection over union and recall [..., C] of each class from confusions [..., C, C], true class first.

    NaN for a class that the truth lacks.
    """
    counts = np.asarray(confusions, dtype=float)
    both = np.diagonal(counts, axis1=-2, axis2=-1)
    true, predicted = counts.sum(-1), counts.sum(-2)
    return _shares(both, true, predicted)


def _shares(
    both: NDArray[np.float64], true: NDArray[np.float64], predicted: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    present = true > 0
    nothing = np.full_like(both, np.nan)
    iou = np.divide(both, true + predicted - both, out=nothing.copy(), where=present)
    return iou, np.divide(both, true, out=nothing, where=present)


def segmentation_scores(confusions: ArrayLike, seed: int = 0) -> dict[str, dict[str, float | int | None]]:
    """Mean IoU and mean class accuracy, each with an interval over seeds and captures at once.

    Counts are summed over captures, then come IoU and accuracy of each class that the truth has, then their mean
    over classes, then over seeds. The bootstrap is that of `interval`; a class that no drawn capture has is left
    out of that draw.

    Args:
        confusions: [seeds, captures, C, C] counts, true class first.
        seed: of the bootstrap's own generator.

    Returns:
        {"miou", "macc"}, each {"mean", "ci95", "n"} with n the number of captures.
    """
    counts = np.asarray(confusions, dtype=float)
    captures = counts.shape[1]
    scores = [np.nanmean(values, axis=-1).mean() for values in class_scores(counts.sum(1))]
    spans = [np.diff(np.percentile(draws, [2.5, 97.5]))[0] / 2 for draws in _redrawn_scores(counts, seed)]
    return {
        name: {"mean": float(score), "ci95": float(span) if captures > 1 else None, "n": captures}
        for name, score, span in zip(("miou", "macc"), scores, spans, strict=True)
    }


def segmentation_difference(a: ArrayLike, b: ArrayLike, seed: int = 0) -> dict[str, float | int | None]:
    """Mean IoU of `a` minus that of `b`, on the same captures, with a two-sided "p" as of `paired_difference`.

    Captures are redrawn alike for both. So are seeds, where both have equally many; else each has its own.

    Args:
        a: [seeds, captures, C, C] counts, true class first.
        b: likewise; another number of seeds is allowed.
        seed: of the bootstrap's own generator.
    """
    first, second = (np.asarray(counts, dtype=float) for counts in (a, b))
    captures = first.shape[1]
    draws = _redrawn_scores(first, seed)[0] - _redrawn_scores(second, seed)[0]
    means = [np.nanmean(class_scores(counts.sum(1))[0], axis=-1).mean() for counts in (first, second)]
    half = float(np.diff(np.percentile(draws, [2.5, 97.5]))[0] / 2) if captures > 1 else None
    side = min((draws <= 0).mean(), (draws >= 0).mean())
    p = float(np.clip(2 * side, 1 / DRAWS, 1))
    return {"mean": float(means[0] - means[1]), "ci95": half, "n": captures, "p": p}


def _redrawn_scores(counts: NDArray[np.float64], seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[DRAWS] mean IoU and mean accuracy of confusions [seeds, captures, C, C] with seeds and captures redrawn.

    Captures are drawn first: two methods with other numbers of seeds see the same captures.
    """
    rng = np.random.default_rng(seed)
    seeds, captures = counts.shape[:2]
    columns = rng.multinomial(captures, np.full(captures, 1 / captures), size=DRAWS).astype(float)
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=DRAWS) / seeds  # [DRAWS, seeds]
    kinds = (np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1), counts.sum(-2))  # each [seeds, captures, C]
    iou, accuracy = _shares(*(columns @ kind for kind in kinds))  # [seeds, DRAWS, C]
    return tuple((rows.T * np.nanmean(values, axis=-1)).sum(0) for values in (iou, accuracy))  # type: ignore


def consistency_margin(same: ArrayLike, random: ArrayLike) -> float:
    """Mean cosine of one surface point's features across views, minus that of random pairs of points."""
    return float(np.asarray(same).mean() - np.asarray(random).mean())


def interval(values: ArrayLike, seed: int = 0) -> dict[str, float | int | None]:
    """Mean and half-width of the 95% interval of `values`, over seeds and captures at once.

    Every seed is measured on the same captures, so the two are crossed. The pigeonhole bootstrap (Owen 2007)
    draws rows and columns with replacement, independently: unlike a plain mean over seeds, it says how far the
    number would move with other captures too, and it errs on the wide side. The half-width is half the span
    between the 2.5th and 97.5th percentile. Draws of labels that all seeds share are one more crossed factor.

    Args:
        values: [seeds, captures], or [captures] for one seed, or [seeds, draws, captures]. Missing values are NaN
            and are left out.
        seed: of the bootstrap's own generator.

    Returns:
        {"mean", "ci95", "n"} with n the number of captures; ci95 is None where there is a single value.

    Raises:
        ValueError: no values.
    """
    table = np.atleast_2d(np.asarray(values, dtype=float))
    if table.ndim not in (2, 3) or not np.isfinite(table).any():
        raise ValueError(f"interval wants [seeds, (draws,) captures] with at least one value, not shape {table.shape}")
    n = int(np.isfinite(table).any(axis=tuple(range(table.ndim - 1))).sum())
    means = _pigeonhole(table, seed) if np.isfinite(table).sum() > 1 else None
    half = None if means is None else float(np.diff(np.percentile(means, [2.5, 97.5]))[0] / 2)
    return {"mean": float(np.nanmean(table)), "ci95": half, "n": n}


def median_interval(values: ArrayLike, seed: int = 0) -> dict[str, float | int | None]:
    """As `interval`, of the median of `values` [N]; still called "mean", as every metric file does."""
    array = np.asarray(values, dtype=float)
    drawn = np.median(array[np.random.default_rng(seed).integers(len(array), size=(DRAWS, len(array)))], axis=1)
    half = float(np.diff(np.percentile(drawn, [2.5, 97.5]))[0] / 2) if len(array) > 1 else None
    return {"mean": float(np.median(array)), "ci95": half, "n": len(array)}


def paired_difference(a: ArrayLike, b: ArrayLike, seed: int = 0) -> dict[str, float | int | None]:
    """`interval` of a - b, both [seeds, (draws,) captures] on the same draws and captures, with a two-sided "p".

    p is twice the smaller share of bootstrap means on either side of 0, at least 1 / draws. Where the numbers
    of seeds differ, seeds are not paired: the means over seeds are compared, capture by capture.
    """
    first, second = (np.atleast_2d(np.asarray(values, dtype=float)) for values in (a, b))
    if len(first) != len(second):
        present = (np.ma.masked_invalid(values) for values in (first, second))
        first, second = (values.mean(axis=0, keepdims=True).filled(np.nan) for values in present)
    result = interval(first - second, seed)
    means = _pigeonhole(first - second, seed)
    side = min((means <= 0).mean(), (means >= 0).mean())
    return {**result, "p": float(np.clip(2 * side, 1 / DRAWS, 1))}


def _pigeonhole(table: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """[DRAWS] means of `table` [seeds, (draws,) captures], every axis redrawn by itself."""
    rng = np.random.default_rng(seed)
    present = np.isfinite(table)
    total, count = np.where(present, table, 0.0), present.astype(float)
    for axis, size in enumerate(table.shape):
        times = rng.multinomial(size, np.full(size, 1 / size), size=DRAWS).astype(float)  # [DRAWS, size] times drawn
        over = "s...,bs->b..." if axis == 0 else "bs...,bs->b..."  # the first axis is what is left of the table
        total, count = (np.einsum(over, part, times, optimize=True) for part in (total, count))
    return total[count > 0] / count[count > 0]
