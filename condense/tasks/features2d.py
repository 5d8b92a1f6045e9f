"""Is the image network itself better after joint training? Steadiness and noise of its features, without training.

The same code serves the trained student, the frozen network it started from, and its rivals. All captures are unseen.
What needs labels is left out where there are none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from condense.backbone2d import FeatureStatistics, load_backbone
from condense.backbone3d import SparseUNet, load_net3d
from condense.captures.capture import Capture
from condense.devices import open_device
from condense.joint import SOLID
from condense.links import LinkedView, Links, lift, load_links
from condense.model import image_features, voxel_features
from condense.rayoperator import heaviest
from condense.rivals2d import load_image_network
from condense.tasks.matches2d import Matches, find_matches, match_scores
from condense.tasks.noise2d import OUTLIER, norm_deviation, steps, variance_explained
from condense.tasks.targets2d import cell_labels

Rows = dict[str, list[dict[str, float]]]


@dataclass(frozen=True)
class Evaluation:
    """One capture, and what every network is measured by on it.

    Args:
        links: with all its views.
        matches: of its views.
        tracks: as of `find_tracks`.
        labels: {number of a held-out view: [h w] labels of its cells}; {} without labels.
        statistics: of the frozen network's features, to undo their standardisation.
        stride: pixels a cell.
        seed: of the random pairs.
    """

    links: Links
    matches: Sequence[Matches]
    tracks: Tensor
    labels: Mapping[int, Tensor]
    statistics: FeatureStatistics
    stride: int
    seed: int

    @property
    def heldout(self) -> list[int]:
        """The numbers of the held-out views."""
        return [i for i, view in enumerate(self.links.views) if view.split == "test"]


def find_tracks(links: Links) -> Tensor:
    """[cells of all views] int64: the voxel that each cell sees most of, -1 for cells behind the capture."""
    found = []
    for view in links.views:
        nearest, solid = heaviest(view.operator), view.operator.opacity >= SOLID
        voxel = torch.full((len(solid),), -1)
        voxel[solid] = nearest.col[nearest.crow[:-1][solid].long()].long()
        found.append(voxel)
    return torch.cat(found)


def noise_scores(evaluation: Evaluation, maps: Sequence[Tensor]) -> dict[str, float]:
    """How noisy features are in single held-out views of one capture.

    `norm_outliers`: share of the capture's cells, whose norm is an outlier within its view. `tv_inside`, `tv_across`:
    total variation, the mean distance between unit features of neighbouring cells, inside parts and across borders
    of parts; `tv_ratio`, the first by the second, is small where parts are even and borders sharp. NaN where there
    is nothing to measure.
    """
    views = evaluation.links.views
    outliers, inside, across = [torch.zeros(0)], [torch.zeros(0)], [torch.zeros(0)]
    for i in evaluation.heldout:
        solid = (views[i].operator.opacity >= SOLID).reshape(views[i].cells)
        outliers.append((norm_deviation(maps[i], evaluation.statistics, solid)[solid].abs() > OUTLIER).float())
        if i in evaluation.labels:
            pair = steps(maps[i], evaluation.labels[i].reshape(views[i].cells))
            inside.append(pair[0])
            across.append(pair[1])
    tv_inside, tv_across = (float(torch.cat(parts).mean()) for parts in (inside, across))
    scores = {"norm_outliers": float(torch.cat(outliers).mean()), "tv_inside": tv_inside, "tv_across": tv_across}
    return scores | {"tv_ratio": tv_inside / tv_across if tv_across else float("nan")}


def measure(evaluation: Evaluation, maps: Sequence[Tensor]) -> dict[str, float]:
    """The metrics of one capture under one kind of features, [D, h, w] of each view."""
    matched = match_scores(evaluation.links, evaluation.matches, maps, evaluation.stride, evaluation.seed)
    features = normalize(torch.cat([cells.flatten(1).T for cells in maps]), dim=1)
    view = torch.repeat_interleave(torch.tensor([cells[0].numel() for cells in maps]))
    return {
        **matched,
        "variance_explained": variance_explained(features, evaluation.tracks, view),
        **noise_scores(evaluation, maps),
    }


def image_maps(links: Links, network: nn.Module) -> list[Tensor]:
    """[D, h, w] of each view by an image network."""
    cells = image_features(network, [view.image for view in links.views])
    return _as_maps(cells.split([len(view.teacher) for view in links.views]), links.views)


def geometry_maps(links: Links, voxels: Tensor) -> list[Tensor]:
    """[D, h, w] of each view, volume-rendered from features [N, D] of the voxels.

    A voxel has one feature in all views, whatever it is: such maps match as well as the geometry allows.
    """
    return _as_maps([view.operator.render(voxels) for view in links.views], links.views)


def teacher_maps(links: Links) -> list[Tensor]:
    """[D, h, w] of each view by the frozen network, as kept in the links."""
    return _as_maps([view.teacher.float() for view in links.views], links.views)


def _as_maps(cells: Sequence[Tensor], views: Sequence[LinkedView]) -> list[Tensor]:
    return [each.T.reshape(-1, *view.cells) for each, view in zip(cells, views, strict=True)]


@lru_cache(maxsize=32)  # of one worker process, which measures capture after capture
def _image_network(folder: Path | None, teacher: Path, device: str) -> nn.Module:
    return load_image_network(folder, teacher).to(open_device(device))


@lru_cache(maxsize=32)
def _net3d(folder: Path, device: str) -> SparseUNet:
    return load_net3d(folder).to(open_device(device))


@torch.no_grad()
def measure_capture(
    capture: Capture,
    path: Path,
    networks: Mapping[str, Sequence[Path]],
    teacher: Path,
    max_side: int,
    seed: int,
    device: str = "cpu",
) -> Rows:
    """{kind: `measure` of one capture, by seed}, of `all_maps`; and `lifted_halves`. A job of `parallel_map`.

    `lifted_halves` matches lifted features fairly: a pair's first view shows those lifted from one half of the
    training views, its second those of the other half, so that a voxel's feature no longer gives the voxel away.

    Args:
        capture: an unseen one.
        path: its links.
        networks: {method: folder of each seed}, as of `load_image_network`; where one holds a 3D network as well,
            that is measured as `rendered`.
        teacher: the frozen network's .safetensors.
        max_side: as images were shrunk for the links.
        seed: of the pairs of views and points.
        device: of the networks.
    """
    links, frozen = load_links(path, ("train", "test")), load_backbone(teacher)
    evaluation = Evaluation(
        links,
        find_matches(links, seed),
        find_tracks(links),
        heldout_labels(capture, links, max_side),
        FeatureStatistics(frozen.feature_mean, frozen.feature_std),
        frozen.stride,
        seed,
    )
    rows: Rows = {}
    for kind, maps in all_maps(links, networks, teacher, device):
        rows.setdefault(kind, []).append(measure(evaluation, maps))
    halves = [geometry_maps(links, voxels) for voxels in lifted_halves(links)]
    rows["lifted_halves"] = [match_scores(links, evaluation.matches, halves[0], frozen.stride, seed, halves[1])]
    return rows


def lifted_halves(links: Links) -> tuple[Tensor, Tensor]:
    """[N, D] each: the frozen network's features lifted from every other training view, and from those left over."""
    training = [view for view in links.views if view.split == "train"]
    some = (training[::2], training[1::2] or training)
    first, second = (lift([v.teacher for v in views], [v.operator for v in views])[0] for views in some)
    return first, second


@torch.no_grad()
def all_maps(
    links: Links, networks: Mapping[str, Sequence[Path]], teacher: Path, device: str = "cpu"
) -> Iterator[tuple[str, list[Tensor]]]:
    """(kind, [D, h, w] of each view): `teacher`, `lifted`, each of `networks`, and `rendered`, as `measure_capture`."""
    yield "teacher", teacher_maps(links)
    yield "lifted", geometry_maps(links, links.lifted)
    for method, folders in networks.items():
        for folder in folders:
            yield method, image_maps(links, _image_network(folder, teacher, device))
            if (folder / "net3d.json").is_file():
                yield "rendered", geometry_maps(links, voxel_features(_net3d(folder, device), [links.scene])[0])


def first_views(links: Links, count: int) -> Links:
    """The capture with its first `count` views."""
    return dataclasses.replace(links, views=links.views[:count])


def heldout_labels(capture: Capture, links: Links, max_side: int) -> dict[int, Tensor]:
    """{number of a held-out view in `links`: [h w] its cells' labels}, 0 = none; {} without labels."""
    if "parts" not in capture.meta:
        return {}
    views = capture.views("test")
    pixels = capture.load(views, max_side).labels
    names = ("none", *sorted(set(capture.meta["parts"].values())))
    numbers = [i for i, view in enumerate(links.views) if view.split == "test"]
    found = zip(numbers, pixels or (), strict=False)
    return {i: cell_labels(each, capture.meta["parts"], names, links.views[i].cells) for i, each in found}
