"""3D classification: a linear probe on frozen features, one vector a capture.

The regularisation is chosen on VAL instances; TEST instances are looked at once, at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from condense.links import load_links
from condense.metrics import hits, interval
from condense.model import load_model, voxel_features
from condense.voxels import VoxelScene

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse regularisation tried on VAL
SHOTS, DRAWS = 5, 5  # labelled instances a class; draws of them


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

    def rows(self, split: str, heldout: bool) -> NDArray[np.int64]:
        """The captures of a split, of the classes seen in pre-training or of those held out."""
        return np.flatnonzero((self.splits == split) & (self.heldout == heldout) & (self.classes != ""))


def pool(features: Tensor) -> NDArray[np.float32]:
    """One vector [2 D] for a capture: mean and maximum over its voxels' features [N, D]."""
    return torch.cat([features.mean(0), features.amax(0)]).float().cpu().numpy()


def describe(folder: Path, paths: Sequence[Path]) -> NDArray[np.float32]:
    """[C, 2 D] pooled 3D features of linked captures by the model in `folder`. One job of `parallel_map`."""
    scenes = [load_links(path, ()).scene for path in paths]
    return np.stack([pool(features) for features in voxel_features(load_model(folder).net3d, scenes)])


def colour_histogram(scene: VoxelScene, bins: int = 4) -> NDArray[np.float32]:
    """[bins^3] share of voxels in each cell of RGB space: what colour alone tells."""
    cells = (scene.colour.clamp(0, 1) * bins).long().clamp_max(bins - 1)
    index = (cells[:, 0] * bins + cells[:, 1]) * bins + cells[:, 2]
    return (torch.bincount(index, minlength=bins**3) / len(scene)).float().cpu().numpy()


def shape_histogram(scene: VoxelScene, bins: int = 8) -> NDArray[np.float32]:
    """[bins^2] share of voxels by distance from the vertical axis and by height, about the centroid.

    Unchanged by turns about the vertical, by recolouring and by texture.
    """
    at = scene.coords.float() - scene.coords.float().mean(0)
    radius = at[:, :2].norm(dim=1) / max(scene.grid.shape[:2]) * 2
    height = at[:, 2] / scene.grid.shape[2] + 0.5
    r, h = ((value * bins).long().clamp(0, bins - 1) for value in (radius, height))
    return (torch.bincount(r * bins + h, minlength=bins**2) / len(scene)).float().cpu().numpy()


def linear_probe(
    features: NDArray[np.floating],
    classes: NDArray[np.str_],
    train: NDArray[np.int64],
    val: NDArray[np.int64],
    test: NDArray[np.int64],
) -> tuple[NDArray[np.float64], float]:
    """Logistic regression on standardised features.

    Args:
        features: [C, D].
        classes: [C].
        train: rows that are learned from.
        val: rows that choose the regularisation (the stronger one of equals).
        test: rows that are scored.

    Returns:
        [len(test)] 1 where right, and the accuracy on `val`.
    """
    best, accuracy = None, -1.0
    for strength in STRENGTHS:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
        model.fit(features[train], classes[train])
        scored = float(hits(model.predict(features[val]), classes[val]).mean())
        if scored > accuracy:
            best, accuracy = model, scored
    assert best is not None
    return hits(best.predict(features[test]), classes[test]), accuracy


def few_shot(
    features: NDArray[np.floating], labelled: Labelled, seed: int, evaluate: str = "test"
) -> NDArray[np.float64]:
    """[DRAWS, captures] hits of a probe that saw SHOTS instances of each class; the draws differ by `seed`."""
    train, val = labelled.rows("train", False), labelled.rows("val", False)
    test = labelled.rows(evaluate, False)
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(DRAWS):
        order = rng.permutation(train)
        names = labelled.classes[order]
        drawn = np.concatenate([order[names == name][:SHOTS] for name in np.unique(names)])
        result.append(linear_probe(features, labelled.classes, drawn, val, test)[0])
    return np.stack(result)


def classify(
    features: Mapping[str, NDArray[np.floating]], labelled: Labelled, seed: int, evaluate: str = "test"
) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """The metric file of 3D classification.

    Args:
        features: {method: [seeds, C, D]}, one vector per seed and capture.
        labelled: of the C captures.
        seed: of the few-shot draws, the same for every method.
        evaluate: the split that is scored; "val" while tuning.

    Returns:
        {method: {"linear_probe_acc", "heldout_linear_probe_acc", "few_shot_5_acc"}}; {} where the captures
        have no classes (real photographs), and without a metric whose split is empty.
    """
    metrics: dict[str, dict[str, Any]] = {}
    for method, vectors in features.items():
        row: dict[str, Any] = {}
        for name, heldout in (("linear_probe_acc", False), ("heldout_linear_probe_acc", True)):
            rows = [labelled.rows(split, heldout) for split in ("train", "val", evaluate)]
            if all(len(part) for part in rows):
                row[name] = interval(np.stack([linear_probe(v, labelled.classes, *rows)[0] for v in vectors]))
        if "linear_probe_acc" in row:
            row["few_shot_5_acc"] = interval(np.concatenate([few_shot(v, labelled, seed, evaluate) for v in vectors]))
        if row:
            metrics[method] = row
    return metrics
