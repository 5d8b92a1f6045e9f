"""How well the scores of pairs tell duplicates from the rest, with intervals over captures and seeds at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from condense.metrics import interval, median_interval
from condense.poses import rotation_error_deg
from condense.tasks.duplicates import POSITIVE, Found, Item

Metrics = dict[str, dict[str, dict[str, float | int | None]]]
DRAWS = 400  # of the bootstrap: each sorts through all pairs
NEGATIVE, IGNORED = -1, -2


def pair_kinds(items: Sequence[Item]) -> NDArray[np.int64]:
    """[N, N] of each pair its place in POSITIVE, NEGATIVE for two scenes, or IGNORED.

    The scene itself and all that was derived from it are one; a twin is another scene. Of the pairs that are one, those
    count that POSITIVE names: the original with its re-capture, either with a copy of the re-capture, and two parts.
    """
    kinds = np.full((len(items),) * 2, NEGATIVE)
    whole = {"original", "again"}
    for i, a in enumerate(items):
        for j, b in enumerate(items):
            pair = {a.kind, b.kind}
            if i == j:
                kinds[i, j] = IGNORED
            elif a.base == b.base and "twin" not in pair:
                copies = pair - whole
                found = "again" if pair == whole else "overlap" if pair == {"part_a", "part_b"} else ""
                found = found or (copies.pop() if len(copies) == 1 and pair & whole else "")
                kinds[i, j] = POSITIVE.index(found) if found in POSITIVE else IGNORED
    return kinds


def duplicate_metrics(found: Mapping[str, Sequence[Found]], items: Sequence[Item], seed: int = 0) -> Metrics:
    """The metric file of duplicates.

    - `average_precision`, and by kind of duplicate `average_precision_<kind>`: that kind against all pairs that are two
      scenes. A pair that was not compared comes last; of equal scores those of two scenes come first.
    - `precision_at_99_recall`: the highest precision of any threshold that misses at most 1 % of all duplicates.
    - `again_above_twin`: captures whose re-capture scores above their twin.
    - `alignment_error_deg`, `alignment_error_size`: medians over captures of each one's median over the duplicates that
      were laid over each other: rotation, and how far the scene's middle is off as a share of its size.
    - `compared`: pairs compared in full, as a share of all; for methods that compare in full.

    Args:
        found: of each method and seed.
        items: the scenes, in that order.
        seed: of the bootstrap, which redraws captures (with all that stems from them) and seeds.
    """
    kinds = pair_kinds(items)
    metrics: Metrics = {}
    for method, seeds in found.items():
        metrics[method] = _precisions([one.score for one in seeds], kinds, items, seed)
        rows = [_above_twin(one.score, items) for one in seeds]
        if rows[0]:
            metrics[method]["again_above_twin"] = interval(rows)
        if any(one.poses for one in seeds):
            errors = np.nanmean([_errors(one, kinds, items) for one in seeds], axis=0)  # [2, bases]
            for name, values in zip(("alignment_error_deg", "alignment_error_size"), errors, strict=True):
                metrics[method][name] = median_interval(values[np.isfinite(values)])
            share = np.mean([one.compared for one in seeds]) / (len(items) * (len(items) - 1) / 2)
            metrics[method]["compared"] = {"mean": float(share), "ci95": None, "n": len(items)}
    return metrics


def precision_recall(score: NDArray[np.float64], kinds: NDArray[np.int64]) -> tuple[NDArray, NDArray]:
    """Recall and precision [P] over all duplicates, from the highest score on; at each duplicate."""
    hit, _ = _sorted(score, kinds)
    recall, precision = np.cumsum(hit >= 0) / max((hit >= 0).sum(), 1), np.cumsum(hit >= 0) / np.arange(1, len(hit) + 1)
    return recall[hit >= 0], precision[hit >= 0]


def examples(found: Found, kinds: NDArray[np.int64], count: int = 4) -> list[tuple[int, int]]:
    """Pairs to look at: `count` duplicates from the surest to the least sure, and the surest pairs of two scenes."""
    hit, pairs = _sorted(found.score, kinds)
    laid = np.array([(int(a), int(b)) in found.poses for a, b in pairs], dtype=bool)
    right, wrong = pairs[laid & (hit >= 0)], pairs[laid & (hit == NEGATIVE)][:count]
    spread = np.linspace(0, len(right) - 1, min(count, len(right))).round().astype(int)
    return [(int(a), int(b)) for a, b in np.concatenate([right[spread], wrong])]


def _sorted(score: NDArray[np.float64], kinds: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Kinds [P] of the pairs that count, highest score first, and the pairs [P, 2]."""
    pairs = np.argwhere(np.triu(kinds != IGNORED, 1))
    kind, value = kinds[tuple(pairs.T)], score[tuple(pairs.T)]
    order = np.lexsort((kind, -value))
    return kind[order], pairs[order]


def _precisions(
    scores: Sequence[NDArray[np.float64]], kinds: NDArray[np.int64], items: Sequence[Item], seed: int
) -> dict[str, dict[str, float | int | None]]:
    """The metrics that go by precision and recall."""
    bases = list(dict.fromkeys(item.base for item in items))
    owner = np.array([bases.index(item.base) for item in items])
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(bases), np.full(len(bases), 1 / len(bases)), size=DRAWS)
    drawn = np.concatenate([np.ones((1, len(bases)), dtype=int), drawn])  # the first one leaves all as it is
    often = rng.multinomial(len(scores), np.full(len(scores), 1 / len(scores)), size=DRAWS) / len(scores)
    often = np.concatenate([np.full((1, len(scores)), 1 / len(scores)), often])  # [1 + DRAWS, seeds]
    tables = [_drawn_precisions(score, kinds, owner, drawn) for score in scores]
    units = len({item.base for item in items if item.kind == "again"})
    result = {}
    for name in tables[0]:
        values = (np.stack([table[name] for table in tables], axis=1) * often).sum(1)
        half = float(np.diff(np.nanpercentile(values[1:], [2.5, 97.5]))[0] / 2)
        result[name] = {"mean": float(values[0]), "ci95": half if units > 1 else None, "n": units}
    return result


def _drawn_precisions(
    score: NDArray[np.float64], kinds: NDArray[np.int64], owner: NDArray[np.int64], drawn: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """Metrics [D] of one seed, each base counted so often as it was drawn: `drawn` [D, bases]."""
    hit, pairs = _sorted(score, kinds)
    first, second = owner[pairs.T]
    parts: dict[str, list[NDArray]] = {}
    for counts in np.array_split(drawn, max(1, len(drawn) // 20)):
        weight = np.where(first == second, counts[:, first], counts[:, first] * counts[:, second]).astype(float)
        false = np.cumsum(np.where(hit == NEGATIVE, weight, 0), axis=1)
        for number, name in enumerate(("", *POSITIVE)):
            here = hit >= 0 if not name else hit == number - 1
            if here.any():
                gain = weight[:, here]
                true = np.cumsum(gain, axis=1)
                with np.errstate(invalid="ignore"):  # a draw without any duplicate has no precision
                    precision = true / (true + false[:, here])
                    average = np.nansum(gain * precision, axis=1) / true[:, -1]
                    parts.setdefault(f"average_precision_{name}".rstrip("_"), []).append(average)
                    if not name:
                        late = np.where(true >= 0.99 * true[:, -1:], precision, 0)
                        parts.setdefault("precision_at_99_recall", []).append(late.max(axis=1))
    return {name: np.concatenate(values) for name, values in parts.items()}


def _above_twin(score: NDArray[np.float64], items: Sequence[Item]) -> list[float]:
    """Of each base 1 where the original scores higher with its re-capture than with its twin, else 0."""
    place = {(item.base, item.kind): number for number, item in enumerate(items)}
    found = []
    for base, kind in place:
        if kind == "twin" and (base, "again") in place:
            original, again, twin = (place[base, name] for name in ("original", "again", "twin"))
            found.append(float(score[original, again] > score[original, twin]))
    return found


def _errors(found: Found, kinds: NDArray[np.int64], items: Sequence[Item]) -> NDArray[np.float64]:
    """[2, bases] medians of rotation error in degrees and of the middle's error as a share of the size; else NaN."""
    errors: dict[str, list[tuple[float, float]]] = {item.base: [] for item in items if item.kind == "again"}
    for (a, b), T in found.poses.items():
        if kinds[a, b] >= 0:
            true = items[b].T_from_base @ np.linalg.inv(items[a].T_from_base)
            centres = items[a].scene.centres.double().numpy()
            size, middle = np.linalg.norm(np.ptp(centres, axis=0)), np.append((centres.max(0) + centres.min(0)) / 2, 1)
            off = float(np.linalg.norm((T - true)[:3] @ middle) / size)
            errors[items[a].base].append((rotation_error_deg(T[:3, :3], true[:3, :3]), off))
    return np.array([np.median(some, axis=0) if some else [np.nan] * 2 for some in errors.values()]).T
