"""Names and phrases found within scenes: zero-shot classification and segmentation, and grounding of phrases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from condense.language import Bank, TextMap, score_texts
from condense.languagequeries import part_phrases, with_article
from condense.metrics import confusion
from condense.tasks.described import Described

Vectors = Mapping[str, Tensor]  # {text: [P, T] its phrases}
Scores = dict[str, NDArray[np.float64]]  # {metric: [captures], or [1] where captures are not its units}
LABELS = 64  # numbers that a label may have
THRESHOLDS = tuple(np.arange(-0.5, 3.1, 0.25))  # of the heat of a phrase, in deviations


def by_name(text_map: TextMap, scenes: Bank, metas: Sequence[dict[str, Any]], vectors: Vectors) -> Scores:
    """Zero-shot classification of objects by the names of their classes, each kind among names of its kind."""
    result: Scores = {}
    named = [i for i, m in enumerate(metas) if m.get("kind") == "object" and "class" in m]
    for metric, heldout in (("class_zero_shot_acc", False), ("heldout_class_zero_shot_acc", True)):
        rows = [i for i in named if bool(metas[i].get("heldout_class")) == heldout]
        names = sorted({str(metas[i]["class"]) for i in rows})
        if len(names) > 1:
            scores = score_texts(text_map, [vectors[with_article(n)] for n in names], scenes[torch.tensor(rows)])
            told = np.array(names)[scores.argmax(axis=0)]
            result[metric] = (told == np.array([metas[i]["class"] for i in rows])).astype(float)
    return result


def grounding(
    text_map: TextMap, captures: Sequence[Described], labels: Mapping[str, NDArray[np.integer]], vectors: Vectors
) -> NDArray[np.float64]:
    """[S, T] mean IoU over an object's phrases ("four splayed pink legs") of the part and of voxels that are hot.

    A column a threshold of `THRESHOLDS`. Voxels without a label are left out. NaN for a capture without a phrase.
    """
    result = np.full((len(captures), len(THRESHOLDS)), np.nan)
    for place, some in enumerate(captures):
        said = part_phrases(some.meta)
        if some.name not in labels or not said:
            continue
        own = labels[some.name][some.rows.numpy()]
        number = {part: int(label) for label, part in some.meta["parts"].items()}
        heat = torch.cat([text_map.heat(vectors[phrase], some.voxels).mean(0, True) for phrase in said.values()])
        hot = heat.numpy()[:, None, own > 0] > np.array(THRESHOLDS)[:, None]  # [P, T, N]
        true = np.stack([own[own > 0] == number[part] for part in said])[:, None]  # [P, 1, N]
        shares = (hot & true).sum(-1) / np.maximum((hot | true).sum(-1), 1)
        seen = true.any(axis=(1, 2))
        if seen.any():
            result[place] = shares[seen].mean(axis=0)
    return result


def name_voxels(
    text_map: TextMap, captures: Sequence[Described], labels: Mapping[str, NDArray[np.integer]], vectors: Vectors
) -> dict[str, NDArray[np.int64]]:
    """Zero-shot segmentation: each voxel gets the name, of those of its own capture's labels, that it is hottest for.

    Returns:
        {"part", "semantic"}: confusions [S, C, C] of objects and of rooms; label 0 is left out.
    """
    found: dict[str, list[NDArray[np.int64]]] = {"part": [], "semantic": []}
    for some in captures:
        names = {int(label): str(name) for label, name in some.meta.get("parts", {}).items()}
        if some.name in labels and names:
            heat = torch.stack([text_map.heat(vectors[with_article(n)], some.voxels).mean(0) for n in names.values()])
            named = np.array(list(names))[heat.argmax(dim=0).numpy()]
            kind = "semantic" if some.meta.get("kind") == "room" else "part"
            found[kind].append(confusion(named, labels[some.name][some.rows.numpy()], LABELS))
    return {kind: np.stack(some) for kind, some in found.items() if some}
