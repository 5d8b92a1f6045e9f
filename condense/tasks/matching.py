"""Image -> capture retrieval: which capture shows what this unseen photograph shows?

Queries are test views, which no field, no lifting and no training has seen. A query is the features of the
cells within its own mask (all, in photographs without masks); a capture is a set of voxel features.

- `condense`: student cells against the 3D network's voxel features. Each cell finds its most similar of
  `VOXELS` spread voxels; a capture's score is the mean over cells.
- `condense_pooled`: mean student cell against the mean voxel.
- `lifted_teacher`: teacher cells against voxels with the lifted features of the teacher, scored as `condense`:
  what multi-view lifting alone gives, with the same data.
- `pooled_teacher`: mean teacher cell of the query against the mean over all cells of the training views.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from condense.joint import Model, load_model, student_cells, voxel_features
from condense.links import Links, load_links
from condense.metrics import interval, recall_at_k

VOXELS = 160  # of a capture, that a cell is compared with
SEEN = 0.01  # summed weight in training views from which a voxel counts as seen


def visible_spread(links: Links) -> Tensor:
    """Indices of `VOXELS` voxels far from each other, among those that training views see."""
    seen = torch.nonzero(links.seen > SEEN)[:, 0]
    seen = seen if len(seen) else torch.arange(len(links.scene))
    return seen[spread(links.scene.coords[seen].float(), VOXELS)]


def spread(points: Tensor, count: int) -> Tensor:
    """Indices [min(count, N)] of points far from each other, the one nearest to the centroid first.

    Farthest-point sampling (Eldar et al. 1997).


    Args:
        points: [N, 3].
        count: how many.
    """
    chosen = [int((points - points.mean(0)).norm(dim=1).argmin())]
    distance = torch.full_like(points[:, 0], torch.inf)
    while len(chosen) < min(count, len(points)):
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(1))
        chosen.append(int(distance.argmax()))
    return torch.tensor(chosen)


def max_similarity(queries: Sequence[Tensor], stores: Sequence[Tensor]) -> NDArray[np.float32]:
    """[Q, C]: mean over a query's cells of the highest cosine with any of a capture's voxels.

    Args:
        queries: [cells, D] each; a query without cells is like nothing (-1).
        stores: [voxels, D] each.
    """
    sizes = [len(store) for store in stores]
    bank = normalize(torch.cat(list(stores)), dim=1)
    owner = torch.repeat_interleave(torch.arange(len(stores)), torch.tensor(sizes))
    result = torch.full((len(queries), len(stores)), -1.0)
    for row, cells in enumerate(queries):
        if len(cells):
            cosine = normalize(cells, dim=1) @ bank.T  # [cells, voxels of all captures]
            best = cosine.new_full((len(cells), len(stores)), -1.0)
            best.scatter_reduce_(1, owner.expand_as(cosine), cosine, "amax")
            result[row] = best.mean(0)
    return result.numpy()


def pooled_similarity(queries: Sequence[Tensor], stores: Sequence[Tensor]) -> NDArray[np.float32]:
    """[Q, C]: cosine of mean features; a query without cells is like nothing (-1)."""
    means = normalize(torch.stack([store.mean(0) for store in stores]), dim=1)
    rows = [normalize(q.mean(0), dim=0) @ means.T if len(q) else torch.full((len(means),), -1.0) for q in queries]
    return torch.stack(rows).numpy()


def query_cells(links: Links, features: Tensor) -> list[Tensor]:
    """The features of each view's foreground cells.

    Which those are comes from the query's own mask, not from the capture's geometry, so a query knows nothing
    of the capture it belongs to.

    Args:
        links: one capture with its query views.
        features: [cells of all views, D].
    """
    parts = features.split([view.cells[0] * view.cells[1] for view in links.views])
    return [part[view.foreground] for part, view in zip(parts, links.views, strict=True)]


def retrieve(
    similarity: Mapping[str, Sequence[NDArray[np.floating]]], owner: NDArray[np.int64]
) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """The metric file of retrieval.

    Args:
        similarity: {method: [Q, C] of each seed}.
        owner: [Q] the capture each query belongs to.

    Returns:
        {method: {"recall_at_1", "recall_at_5"}}; captures, not queries, are the units of the intervals. {} where
        there are fewer than two captures to tell apart.
    """
    metrics: dict[str, dict[str, dict[str, float | int | None]]] = {}
    for method, seeds in similarity.items():
        if seeds[0].shape[1] < 2 or not len(owner):
            continue
        metrics[method] = {
            f"recall_at_{k}": interval([_by_capture(recall_at_k(table, owner, k), owner) for table in seeds])
            for k in (1, 5)
            if seeds[0].shape[1] > k
        }
    return metrics


def _by_capture(values: NDArray[np.float64], owner: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.array([values[owner == capture].mean() for capture in np.unique(owner)])


@torch.no_grad()
def teacher_similarity(train: Sequence[Links], queries: Sequence[Links]) -> dict[str, NDArray[np.float32]]:
    """[Q, C] by the frozen network alone: `pooled_teacher` and `lifted_teacher`.

    Args:
        train: the captures with their training views.
        queries: the same captures with their test views.
    """
    cells = [part for links in queries for part in query_cells(links, _teacher(links))]
    pooled = [torch.cat(query_cells(links, _teacher(links))) for links in train]
    lifted = [links.lifted[visible_spread(links)] for links in train]
    return {
        "pooled_teacher": pooled_similarity(cells, pooled),
        "lifted_teacher": max_similarity(cells, lifted),
    }


def _teacher(links: Links) -> Tensor:
    return torch.cat([view.teacher for view in links.views]).float()


@torch.no_grad()
def model_similarity(model: Model, queries: Sequence[Links]) -> dict[str, NDArray[np.float32]]:
    """[Q, C] by a trained model: `condense` and `condense_pooled`.

    Args:
        model: both networks.
        queries: the captures with their test views.
    """
    features = voxel_features(model.net3d, [links.scene for links in queries])
    cells = []
    for links in queries:
        cells += query_cells(links, student_cells(model.student, [view.image for view in links.views]))
    picked = [values[visible_spread(links)] for values, links in zip(features, queries, strict=True)]
    return {"condense": max_similarity(cells, picked), "condense_pooled": pooled_similarity(cells, features)}


def model_tables(folder: Path, paths: Sequence[Path]) -> dict[str, NDArray[np.float32]]:
    """`model_similarity` of the model in `folder` on the test views of linked captures. One job of `parallel_map`."""
    return model_similarity(load_model(folder), [load_links(path, ("test",)) for path in paths])


def teacher_tables(paths: Sequence[Path]) -> dict[str, NDArray[np.float32]]:
    """`teacher_similarity` on linked captures. One job of `parallel_map`."""
    train, test = ([load_links(path, (split,)) for path in paths] for split in ("train", "test"))
    return teacher_similarity(train, test)


def owners(queries: Sequence[Links]) -> NDArray[np.int64]:
    """[Q] the number of the capture each query view belongs to."""
    return np.repeat(np.arange(len(queries)), [len(links.views) for links in queries])
