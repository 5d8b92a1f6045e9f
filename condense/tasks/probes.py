"""Probes of frozen vectors: linear, nearest neighbours, few labels. The same choices for every method.

What is chosen (regularisation, number of neighbours) is chosen on VAL rows; TEST rows are looked at once, at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from condense.metrics import hits

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse regularisation tried, strongest regularisation first
NEIGHBOURS = (1, 3, 5, 9, 15)
DRAWS = 10  # of the labelled instances of few-shot learning

Vectors = NDArray[np.floating]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Labelled:
    """The class and split of captures.

    Args:
        classes: [C] class names.
        splits: [C] "train", "val" or "test".
        heldout: [C] bool, True for classes that pre-training never saw.
    """

    classes: NDArray[np.str_]
    splits: NDArray[np.str_]
    heldout: NDArray[np.bool_]

    @classmethod
    def read(cls, metas: Sequence[Mapping[str, Any]]) -> Labelled:
        """From the captures' `meta`; one without a class or a split gets an empty string and is never used."""
        objects = [meta if meta.get("kind") == "object" else {} for meta in metas]
        return cls(
            np.array([str(meta.get("class", "")) for meta in objects], dtype=np.str_),
            np.array([str(meta.get("split", "")) for meta in objects], dtype=np.str_),
            np.array([bool(meta.get("heldout_class")) for meta in objects], dtype=bool),
        )

    def rows(self, split: str, heldout: bool) -> Rows:
        """The captures of a split, of the classes seen in pre-training or of those held out."""
        return np.flatnonzero((self.splits == split) & (self.heldout == heldout) & (self.classes != ""))


@dataclass(frozen=True)
class Probe:
    """Logistic regression on standardised vectors.

    Args:
        centre, spread: [D] of the vectors it learned from.
        weights: [K, D + 1] of each class, the offset last.
        names: [K] the classes.
    """

    centre: Vectors
    spread: Vectors
    weights: Vectors
    names: NDArray[np.str_]

    def predict(self, vectors: Vectors) -> NDArray[np.str_]:
        """[C] the most likely class of each of [C, D]."""
        scaled = (vectors - self.centre) / self.spread
        return self.names[(scaled @ self.weights[:, :-1].T + self.weights[:, -1]).argmax(1)]


def fit_path(vectors: Vectors, classes: NDArray[np.str_]) -> list[Probe]:
    """One probe for each of STRENGTHS, each fit starting from the last; [C, D] vectors with [C] classes.

    A single class is predicted always.
    """
    centre, spread = vectors.mean(0), vectors.std(0)
    spread = np.where(spread > 1e-6 * np.abs(vectors).max(initial=1e-6), spread, 1.0)  # a constant tells nothing
    names = np.unique(classes)
    if len(names) == 1:
        return [Probe(centre, spread, np.zeros((1, vectors.shape[1] + 1)), names)] * len(STRENGTHS)
    model = LogisticRegression(max_iter=300, warm_start=True)
    probes = []
    for strength in STRENGTHS:
        model.set_params(C=strength).fit((vectors - centre) / spread, classes)
        weights = np.concatenate([model.coef_, model.intercept_[:, None]], axis=1)
        if len(names) == 2:  # scikit-learn keeps the second class alone
            weights = np.concatenate([-weights, weights]) / 2
        probes.append(Probe(centre, spread, weights, names))
    return probes


def accuracy(probe: Probe, vectors: Vectors, classes: NDArray[np.str_]) -> float:
    """Share of [C, D] vectors whose class it predicts."""
    return float(hits(probe.predict(vectors), classes).mean())


def linear_probe(vectors: Vectors, classes: NDArray[np.str_], train: Rows, val: Rows) -> tuple[Probe, float]:
    """The probe that learned from `train` rows, of the strength that is best on `val` rows (the strongest of equals).

    Args:
        vectors: [C, D].
        classes: [C].
        train, val: rows.

    Returns:
        The probe and its accuracy on `val`.
    """
    path = fit_path(vectors[train], classes[train])
    scores = [accuracy(probe, vectors[val], classes[val]) for probe in path]
    best = int(np.argmax(scores))
    return path[best], scores[best]


def nearest_neighbours(
    vectors: Vectors, classes: NDArray[np.str_], train: Rows, val: Rows, test: Rows
) -> NDArray[np.float64]:
    """[len(test)] 1 where the vote of the most similar `train` rows is right.

    Vectors are standardised over `train` and compared by cosine; a vote counts one plus its cosine. The number of
    neighbours is the one of NEIGHBOURS that is best on `val`, the smallest of equals.
    """
    centred = (vectors - vectors[train].mean(0)) / np.maximum(vectors[train].std(0), 1e-6)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9)
    names, number = np.unique(classes[train], return_inverse=True)

    def right(rows: Rows, k: int) -> NDArray[np.float64]:
        similarity = unit[rows] @ unit[train].T  # [R, T]
        near = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        votes = np.zeros((len(rows), len(names)))
        for column in near.T:
            each = np.arange(len(rows))
            votes[each, number[column]] += 1 + similarity[each, column]  # not negative
        return hits(names[votes.argmax(1)], classes[rows])

    best = max(NEIGHBOURS, key=lambda k: (right(val, k).mean(), -k))
    return right(test, best)


def draw_shots(classes: NDArray[np.str_], train: Rows, shots: int, seed: int) -> list[Rows]:
    """DRAWS times up to `shots` of the `train` rows of each class; the rows depend on the arguments alone.

    A draw of more shots holds those of fewer shots with the same seed.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(DRAWS):
        order = rng.permutation(train)
        names = classes[order]
        drawn.append(np.concatenate([order[names == name][:shots] for name in np.unique(names)]))
    return drawn


def few_shot(
    vectors: Vectors, classes: NDArray[np.str_], rows: tuple[Rows, Rows, Rows], shots: int, seed: int
) -> NDArray[np.float64]:
    """[DRAWS, test rows] hits of linear probes that saw `shots` instances of each class.

    Args:
        vectors: [C, D].
        classes: [C].
        rows: that are drawn from, that choose one strength for all draws together, and that are scored.
        shots: labelled instances a class; a class with fewer gives all it has.
        seed: of the draws.
    """
    train, val, test = rows
    paths = [fit_path(vectors[some], classes[some]) for some in draw_shots(classes, train, shots, seed)]
    scores = [[accuracy(probe, vectors[val], classes[val]) for probe in path] for path in paths]
    best = int(np.argmax(np.mean(scores, axis=0)))
    return np.stack([hits(path[best].predict(vectors[test]), classes[test]) for path in paths])
