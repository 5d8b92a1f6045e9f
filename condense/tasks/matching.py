"""Image -> capture retrieval: which capture shows what this unseen photograph shows?

Queries are test views, which no field, no lifting and no training has seen. A query is the features of the
cells within its own mask (all, in photographs without masks); a capture is a set of features.

- `condense`: student cells against the 3D network's voxel features; no image of the capture is encoded. Each cell
  finds its most similar of `VOXELS` spread voxels; a capture's score is the mean over cells.
- `condense_2d3d`: as `condense`, of voxel features by both networks: the student sees the captures' training views.
- `condense_pooled`: mean student cell against the mean voxel.
- `lifted_student`, `lifted_teacher`: 2D features of the training views lifted to the voxels, scored as `condense`:
  what multi-view lifting gives with the trained and with the frozen 2D network.
- `pooled_teacher`: mean teacher cell of the query against the mean over all cells of the training views.

All views of a built-in capture share one background, and 2D features see it beyond the mask's edge. So each method
is also asked with the query's background replaced by a plain random colour (`ELSEWHERE`): the same object, elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from condense.backbone2d import ImageBackbone, load_backbone
from condense.devices import open_device
from condense.links import LinkedView, Links, lift, load_links
from condense.metrics import interval, recall_at_k
from condense.model import Model, ensemble, image_features, lifted_features, load_model, voxel_features

Tables = dict[str, NDArray[np.float32]]  # {method: [Q, C] similarity of each query to each capture}
VOXELS = 160  # of a capture, that a cell is compared with
ELSEWHERE = "_new_background"
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
        similarity: {method: [Q, C] of each seed}; a method's name may end in ELSEWHERE.
        owner: [Q] the capture each query belongs to.

    Returns:
        {method: {"recall_at_1", "recall_at_5", and both with ELSEWHERE appended}}; captures, not queries, are the
        units of the intervals. {} where there are fewer than two captures to tell apart.
    """
    metrics: dict[str, dict[str, dict[str, float | int | None]]] = {}
    for name, seeds in similarity.items():
        method = name.removesuffix(ELSEWHERE)
        for k in (1, 5):
            if seeds[0].shape[1] > k and len(owner):
                values = [_by_capture(recall_at_k(table, owner, k), owner) for table in seeds]
                metrics.setdefault(method, {})[f"recall_at_{k}{name[len(method) :]}"] = interval(values)
    return metrics


def _by_capture(values: NDArray[np.float64], owner: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.array([values[owner == capture].mean() for capture in np.unique(owner)])


def new_backgrounds(queries: Sequence[Links], seed: int = 0) -> list[Links]:
    """The same captures, each query's background replaced by a plain random colour; [] where none has a mask."""
    if not any((view.mask < 255).any() for links in queries for view in links.views):
        return []
    rng = np.random.default_rng(seed)

    def replaced(view: LinkedView) -> LinkedView:
        share = view.mask[:, :, None].float() / 255
        colour = torch.from_numpy(rng.uniform(0, 255, 3)).float()
        return dataclasses.replace(view, image=(share * view.image + (1 - share) * colour).round().to(torch.uint8))

    return [dataclasses.replace(links, views=tuple(map(replaced, links.views))) for links in queries]


@torch.no_grad()
def similarity_by_2d(network: ImageBackbone, train: Sequence[Links], queries: Sequence[Links], name: str) -> Tables:
    """`pooled_<name>` and `lifted_<name>` by a 2D network.

    Args:
        network: the 2D network.
        train: captures with their training views.
        queries: the same captures with their test views.
        name: of the network.
    """
    network.eval()
    cells = [_cells(network, links) for links in train]
    pooled = [torch.cat(query_cells(links, values)) for links, values in zip(train, cells, strict=True)]
    picked = []
    for links, values in zip(train, cells, strict=True):
        sizes = [len(view.teacher) for view in links.views]
        lifted, _ = lift(values.split(sizes), [view.operator for view in links.views])
        picked.append(lifted[visible_spread(links)])
    tables = {}
    for ending, asked in (("", queries), (ELSEWHERE, new_backgrounds(queries))):
        if asked:
            views = [part for links in asked for part in query_cells(links, _cells(network, links))]
            tables[f"pooled_{name}{ending}"] = pooled_similarity(views, pooled)
            tables[f"lifted_{name}{ending}"] = max_similarity(views, picked)
    return tables


@torch.no_grad()
def similarity_by_3d(model: Model, train: Sequence[Links], queries: Sequence[Links]) -> Tables:
    """`condense`, `condense_2d3d` and `condense_pooled` by a trained model; arguments as of `similarity_by_2d`."""
    features = voxel_features(model.net3d, [links.scene for links in queries])
    both = [ensemble(*pair) for pair in zip(features, (lifted_features(model.student, x) for x in train), strict=True)]
    rows = [visible_spread(links) for links in queries]
    picked, picked_both = ([x[some] for x, some in zip(values, rows, strict=True)] for values in (features, both))
    tables = {}
    for ending, asked in (("", queries), (ELSEWHERE, new_backgrounds(queries))):
        if asked:
            views = [part for links in asked for part in query_cells(links, _cells(model.student, links))]
            tables[f"condense{ending}"] = max_similarity(views, picked)
            tables[f"condense_2d3d{ending}"] = max_similarity(views, picked_both)
            tables[f"condense_pooled{ending}"] = pooled_similarity(views, features)
    return tables


def _cells(network: nn.Module, links: Links) -> Tensor:
    """[cells of all views, D], a capture at a time: real photographs are large."""
    return image_features(network, [view.image for view in links.views])


def model_tables(folder: Path, paths: Sequence[Path], device: str = "cpu") -> Tables:
    """[Q, C] of every method of the model in `folder` on linked captures. One job of `parallel_map`."""
    model = load_model(folder).to(open_device(device))
    train, test = ([load_links(path, (split,)) for path in paths] for split in ("train", "test"))
    student = similarity_by_2d(model.student, train, test, "student")
    return {**similarity_by_3d(model, train, test), **{k: v for k, v in student.items() if k.startswith("lifted")}}


def teacher_tables(teacher: Path, paths: Sequence[Path], device: str = "cpu") -> Tables:
    """`similarity_by_2d` of the frozen network on linked captures. One job of `parallel_map`."""
    train, test = ([load_links(path, (split,)) for path in paths] for split in ("train", "test"))
    return similarity_by_2d(load_backbone(teacher).to(open_device(device)), train, test, "teacher")


def owners(queries: Sequence[Links]) -> NDArray[np.int64]:
    """[Q] the number of the capture each query view belongs to."""
    return np.repeat(np.arange(len(queries)), [len(links.views) for links in queries])
