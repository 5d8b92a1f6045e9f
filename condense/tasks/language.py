"""Scenes asked for in words: retrieval, "there is none", heat on voxels, classes and labels by name alone.

The map between text and features learns from captions of training captures that pre-training saw; held-out phrasings
are never trained on. It gets features and, beside them, colours. Thresholds come from VAL captures. Methods, all with
the same colours, sentences, training and tuning:

- `condense`: voxels of the 3D network and cells of the student.
- `condense_2d3d`: the same, the student's cells lifted to the voxels as well.
- `lift`: the frozen 2D network's cells, and the same lifted to voxels.
- `pooled_teacher`: one mean cell of the frozen network a capture; asked about voxels, it looks at lifted features.
- `colours`: the colours alone, without any feature.
- `bag_of_words`, `captions`: they read the captions of the asked-for captures, which no other method sees. The words
  in common (TF-IDF), and the sentence encoder's best cosine: an upper reference for texts, not a rival.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import normalize

from condense.captures.capture import Capture
from condense.colour import with_colour
from condense.devices import open_device
from condense.extraction import best_spread
from condense.keypoints import KeyPoints, load_keypoints
from condense.language import (
    Bank,
    TextMap,
    bank,
    margin_threshold,
    save_text_map,
    score_texts,
    stand_out,
    train_text_map,
    vocabulary,
)
from condense.languagequeries import (
    Queries,
    attribute_queries,
    caption_queries,
    coloured_things,
    count_queries,
    furnished,
    part_phrases,
    relation_queries,
    with_article,
)
from condense.links import load_links
from condense.metrics import interval, segmentation_scores
from condense.model import load_model
from condense.params import LanguageParams
from condense.tasks.described import Described, describe, learns
from condense.tasks.grounding import Scores, Vectors, by_name, grounding, name_voxels
from condense.tasks.matching import max_similarity
from condense.tasks.pointclouds import read_points
from condense.tasks.segmentation import voxel_labels

METHODS = ("condense", "condense_2d3d", "lift", "pooled_teacher", "colours")  # that learn a map


def all_texts(metas: Sequence[dict[str, Any]]) -> list[str]:
    """Every text that training and the tests on these captures need, to be encoded once for all methods and seeds."""
    asked = [meta for meta in metas if meta.get("split") in ("val", "test")]
    captions = [meta["captions"] for meta in metas if learns(meta)]
    texts = [*(text for some in captions for text in some), *vocabulary(captions)]
    for split in ("val", "test"):
        some = [meta for meta in asked if meta["split"] == split]
        rooms = [meta for meta in some if furnished(meta)]
        for queries in (caption_queries(some), attribute_queries(some)):
            texts += queries.texts
        texts += [*count_queries(rooms).texts, *relation_queries(rooms).texts]
    for meta in asked:
        texts += [*part_phrases(meta).values(), *map(with_article, meta.get("parts", {}).values())]
    texts += [with_article(str(meta["class"])) for meta in metas if "class" in meta]
    return list(dict.fromkeys(texts))


def surface_labels(captures: Sequence[Capture], links: Path) -> dict[str, NDArray[np.integer]]:
    """{capture: [voxels] label} of val and test captures with a labelled surface; 0 = no label.

    Args:
        captures: of any split.
        links: folder of their links.
    """
    found: dict[str, NDArray[np.integer]] = {}
    for capture in captures:
        surface = read_points(capture.folder) if capture.meta.get("split") in ("val", "test") else None
        if surface is not None:
            scene = load_links(links / f"{capture.name}.safetensors", ()).scene
            found[capture.name] = voxel_labels(scene, surface)
    return found


def method_scores(
    method: str,
    folder: Path | None,
    paths: Sequence[Path],
    labels: Mapping[str, NDArray[np.integer]],
    vectors: Vectors,
    params: LanguageParams,
    targets: Mapping[int, Path],
    condensed: Path | None = None,
    device: str = "cpu",
) -> list[tuple[Scores, dict[str, NDArray[np.int64]]]]:
    """Trains maps on the same features, writes them, and asks them everything. One job of `parallel_map`.

    Args:
        method: one of METHODS.
        folder: of the trained model; None for the frozen network's features.
        paths: links of all captures.
        labels: {capture: [voxels] label} of val and test captures.
        vectors: of `all_texts`.
        params: of training.
        targets: {seed of training: the file of its map}.
        condensed: the file of the scenes' key points, by the model that was trained on from this one, or of lifted
            features; the map learns from them as well.
        device: of the trained model.

    Returns:
        For each seed `evaluate` and `across` on test captures, and the confusions of `name_voxels`,
        {"part", "semantic"}.
    """
    model = None if folder is None else load_model(folder).to(open_device(device))
    both = method == "condense_2d3d"
    everything = [describe(load_links(path, ("train", "test")), model, both) for path in paths]
    pooled = method == "pooled_teacher"
    own: Scores = {}
    if method == "colours":
        everything = [some.unlearned() for some in everything]
    elif not pooled:
        own = across([some for some in everything if some.meta["split"] == "test"])
    everything = [some.coloured() for some in everything]
    train = [some for some in everything if learns(some.meta)]
    count = 1 if pooled else params.centres
    banks = [bank([some.cells for some in train], count)]
    if not pooled:
        banks.append(bank([some.voxels for some in train], count))
    told = {} if condensed is None else told_key_points(condensed)
    if told:  # a capture that is not among them counts by its voxels once more
        banks.append(bank([told.get(some.name, some.voxels) for some in train], count))
    val, test = ([some for some in everything if some.meta["split"] == split] for split in ("val", "test"))
    known = {pair for some in train for pair in coloured_things(some.meta)}
    results = []
    for seed, target in targets.items():
        text_map = train_text_map(banks, [some.meta["captions"] for some in train], vectors, params, seed)
        save_text_map(target, text_map)
        scores = own | evaluate(text_map, val, test, labels, vectors, known, count)
        if told:
            kept = bank([told[some.name] for some in test], count)
            found = retrieval(text_map, kept, [some.meta for some in test], vectors)
            scores["text_to_keypoints_recall_at_1"] = found["scene_recall_at_1"]
        results.append((scores, name_voxels(text_map, test, labels, vectors)))
    return results


def evaluate(
    text_map: TextMap,
    val: Sequence[Described],
    test: Sequence[Described],
    labels: Mapping[str, NDArray[np.integer]],
    vectors: Vectors,
    known: set[tuple[str, str]],
    centres: int,
) -> Scores:
    """Every number of one map; see the functions below.

    Args:
        text_map: learned.
        val: captures that thresholds are set on; test: captures that are asked.
        labels: {capture: [voxels] label}.
        vectors: of `all_texts`.
        known: (colour, class) that some training capture has.
        centres: a capture is condensed to.
    """
    by = (lambda some: some.cells) if centres == 1 else (lambda some: some.voxels)
    scenes = {"val": bank([by(s) for s in val], centres), "test": bank([by(s) for s in test], centres)}
    metas = {"val": [some.meta for some in val], "test": [some.meta for some in test]}
    result = retrieval(text_map, scenes["test"], metas["test"], vectors)
    views = bank([torch.cat(some.asked) for some in test], centres)
    result["text_to_2d_recall_at_1"] = retrieval(text_map, views, metas["test"], vectors)["scene_recall_at_1"]
    if centres > 1:  # one mean of the images' cells is no 3D
        result["text_to_3d_recall_at_1"] = result["scene_recall_at_1"]
    result |= negatives(text_map, scenes, metas, vectors, known)
    result |= by_name(text_map, scenes["test"], metas["test"], vectors)
    if any(some.name in labels for some in val):
        chosen = int(np.nanmean(grounding(text_map, val, labels, vectors), axis=0).argmax())
        result["grounding_miou"] = grounding(text_map, test, labels, vectors)[:, chosen]
    return result


def told_key_points(path: Path) -> dict[str, Tensor]:
    """{scene: [K, D + SHADES]} what a repository that keeps these key points of each scene has to ask."""
    scenes = {name: best_spread(one) for name, one in load_keypoints(path).items() if isinstance(one, KeyPoints)}
    return {name: with_colour(one.descriptors, one.colours) for name, one in scenes.items()}


def ask(text_map: TextMap, queries: Queries, scenes: Bank, vectors: Vectors) -> NDArray[np.float32]:
    """[Q, S] scores of the queries' texts."""
    if not queries.texts:
        return np.zeros(queries.right.shape, np.float32)
    return score_texts(text_map, [vectors[text] for text in queries.texts], scenes)


def recall(scores: NDArray[np.floating], right: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    """[Q] 1 where a right scene is among the first `k`; a wrong scene that scores the same comes first."""
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    return (((scores >= best) & ~right).sum(axis=1) < k).astype(float)


def precision(scores: NDArray[np.floating], right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[Q] average precision; NaN for a query without a right scene. Of equal scores, wrong scenes come first."""
    order = np.lexsort((right, -scores), axis=1)
    hit = np.take_along_axis(right, order, axis=1)
    so_far = np.cumsum(hit, axis=1) / np.arange(1, right.shape[1] + 1)
    total = hit.sum(axis=1)
    return np.where(total > 0, (so_far * hit).sum(axis=1) / np.maximum(total, 1), np.nan)


def by_capture(values: NDArray[np.float64], right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[S] mean over the queries that each scene answers; NaN without one."""
    count = right.sum(axis=0)
    total = np.where(right, values[:, None], 0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def retrieval(text_map: TextMap, scenes: Bank, metas: Sequence[dict[str, Any]], vectors: Vectors) -> Scores:
    """Held-out phrasings: `scene_*` among scenes of classes that were trained on, `all_*` among all of them."""
    queries = caption_queries(metas)
    return recalls(ask(text_map, queries, scenes, vectors), queries, metas) | rooms_scores(
        text_map, scenes, metas, vectors
    )


def recalls(scores: NDArray[np.floating], queries: Queries, metas: Sequence[dict[str, Any]]) -> Scores:
    """Recall and average precision of scores [Q, S] by capture."""
    heldout = np.array([bool(meta.get("heldout_class")) for meta in metas])
    groups = {"scene": ~heldout, "all": np.ones_like(heldout)}
    result: Scores = {}
    for name, kept in groups.items():
        rows = queries.right[:, kept].any(axis=1)
        some, right = scores[rows][:, kept], queries.right[rows][:, kept]
        for k in (1, 5):
            result[f"{name}_recall_at_{k}"] = by_capture(recall(some, right, k), right)
        result[f"{name}_map"] = by_capture(precision(some, right), right)
    if heldout.any():
        right = queries.right[:, heldout]
        rows = right.any(axis=1)
        result["heldout_class_recall_at_1"] = by_capture(recall(scores[rows], queries.right[rows], 1), right[rows])
    return result


def rooms_scores(text_map: TextMap, scenes: Bank, metas: Sequence[dict[str, Any]], vectors: Vectors) -> Scores:
    """`count_map` and `relation_map`: among rooms, and what a random order would get, `..._chance`."""
    rows = np.array([i for i, meta in enumerate(metas) if furnished(meta)], dtype=np.int64)
    rooms = [metas[row] for row in rows]
    result: Scores = {}
    for name, queries in (("count", count_queries(rooms)), ("relation", relation_queries(rooms))):
        if queries.texts:
            scores = ask(text_map, queries, scenes[torch.from_numpy(rows)], vectors)
            result[f"{name}_map"] = precision(scores, queries.right)
            result[f"{name}_chance_map"] = chance_precision(queries.right)
    return result


def chance_precision(right: NDArray[np.bool_], draws: int = 100) -> NDArray[np.float64]:
    """[Q] mean average precision of random orders."""
    rng = np.random.default_rng(0)
    return np.mean([precision(rng.random(right.shape), right) for _ in range(draws)], axis=0)


def across(test: Sequence[Described]) -> Scores:
    """Recall at 1 between images and voxels without any text: both directions of the same features."""
    views = [torch.cat(some.asked) for some in test]
    own = np.eye(len(test), dtype=bool)
    store = [some.voxels[::3] for some in test]
    few = [view[:: max(1, len(view) // 64)] for view in views]
    return {
        "2d_to_3d_recall_at_1": recall(max_similarity(few, store), own, 1),
        "3d_to_2d_recall_at_1": recall(max_similarity([voxels[::2] for voxels in store], views), own, 1),
    }


def negatives(
    text_map: TextMap,
    scenes: Mapping[str, Bank],
    metas: Mapping[str, Sequence[dict[str, Any]]],
    vectors: Vectors,
    known: set[tuple[str, str]],
) -> Scores:
    """ "a red armchair": average precision where a scene fits, and whether one fits at all.

    `new_combination_map` is of colours and classes that no training capture has together. `negative_accuracy` is the
    mean of both kinds' accuracies, at a threshold set on val captures.
    """
    queries = {split: attribute_queries(some) for split, some in metas.items()}
    if not all(some.texts for some in queries.values()):
        return {}
    scores = {split: ask(text_map, queries[split], scenes[split], vectors) for split in metas}
    best = {split: stand_out(values).max(axis=1) for split, values in scores.items()}
    present = {split: np.asarray(some.right.any(axis=1)) for split, some in queries.items()}
    found = precision(scores["test"], queries["test"].right)
    fresh = np.array([text not in {with_article(" ".join(pair)) for pair in known} for text in queries["test"].texts])
    result: Scores = {"attribute_map": found[present["test"]]}
    if (fresh & present["test"]).any():
        result["new_combination_map"] = found[fresh & present["test"]]
    if all(some.any() and not some.all() for some in present.values()):
        threshold = margin_threshold(best["val"], present["val"])
        hit = (best["test"] >= threshold) == present["test"]
        result["negative_accuracy"] = np.array([(hit[present["test"]].mean() + hit[~present["test"]].mean()) / 2])
        result["negative_auroc"] = np.array([roc_auc_score(present["test"], best["test"])])
    return result


def caption_scores(encode: Any, metas: Sequence[dict[str, Any]]) -> dict[str, Scores]:
    """`captions` and `bag_of_words`: held-out phrasings against the captures' own captions.

    Args:
        encode: texts -> unit vectors [N, T].
        metas: of the test captures.
    """
    queries = caption_queries(metas)
    texts = [text for meta in metas for text in meta["captions"]]
    owner = np.repeat(np.arange(len(metas)), [len(meta["captions"]) for meta in metas])
    words = TfidfVectorizer().fit(texts)
    cosines = {
        "captions": normalize(encode(queries.texts), dim=1).numpy() @ normalize(encode(texts), dim=1).numpy().T,
        "bag_of_words": (words.transform(queries.texts) @ words.transform(texts).T).toarray(),
    }
    result = {}
    for method, cosine in cosines.items():
        scores = np.stack([cosine[:, owner == scene].max(axis=1) for scene in range(len(metas))], axis=1)
        result[method] = recalls(scores, queries, metas)
    return result


def metric_file(
    scores: Mapping[str, Sequence[Scores]], confusions: Mapping[str, Sequence[Mapping[str, NDArray[np.int64]]]]
) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """{method: {metric: {"mean", "ci95", "n"}}} of each method's seeds.

    Args:
        scores: {method: of each seed}, as `evaluate` and `caption_scores` return them.
        confusions: {method: of each seed}, as `name_voxels` returns them.
    """
    metrics = {}
    for method, seeds in scores.items():
        values = {name: np.stack([some[name] for some in seeds]) for name in seeds[0]}
        metrics[method] = {name: interval(some) for name, some in values.items() if np.isfinite(some).any()}
    for method, tables in confusions.items():
        for kind in tables[0] if tables else ():
            metrics[method][f"{kind}_zero_shot_miou"] = segmentation_scores([some[kind] for some in tables])["miou"]
    return metrics
