"""What one image tells, by linear probes on frozen cell features: labels, depth, and surface normals.

Probes learn from some views of training captures, their regularisation is chosen on VAL captures, and they are scored
on held-out views of TEST captures. Every network is asked the same of the same cells; features have unit length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from condense.devices import open_device
from condense.metrics import confusion
from condense.model import image_features
from condense.rivals2d import load_image_network
from condense.tasks.targets2d import CellTargets
from condense.tasks.voxelprobe import Probe, fit_probe

STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)  # ridge penalties tried on VAL, per sample
FEW, DRAWS = 0.01, 3  # share of labels in "1 %", and how often they are drawn
BATCH = 32  # images at a time
Views = Sequence[CellTargets]


@dataclass(frozen=True)
class ProbeViews:
    """One benchmark: views of captures, by split.

    Args:
        name: "part" or "semantic".
        names: [C] of the labels, the first for cells without one.
        train, val, test: the views of each capture; each split has some.
    """

    name: str
    names: tuple[str, ...]
    train: Sequence[Views]
    val: Sequence[Views]
    test: Sequence[Views]


@dataclass(frozen=True)
class Ridge:
    """A linear map of standardised features.

    Args:
        weight: [D, K].
        bias: [K].
        centre: [D] and
        spread: [D] of the features it learned from.
    """

    weight: Tensor
    bias: Tensor
    centre: Tensor
    spread: Tensor

    def predict(self, features: Tensor) -> Tensor:
        """[N, K] from features [N, D]."""
        return (features - self.centre) / self.spread @ self.weight + self.bias


Error = Callable[[Tensor, Tensor], Tensor]


def root_mean_square(predicted: Tensor, truth: Tensor) -> Tensor:
    """Scalar, of [N, K] each."""
    return (predicted - truth).square().mean().sqrt()


def mean_angle(predicted: Tensor, truth: Tensor) -> Tensor:
    """Scalar, mean angle in degrees between vectors [N, 3] each, of any length."""
    cosine = (normalize(predicted, dim=1) * normalize(truth, dim=1)).sum(1)
    return torch.rad2deg(cosine.clamp(-1, 1).acos()).mean()


REGRESSED: dict[str, tuple[str, Error]] = {  # metric: attribute of `Cells`, error
    "depth_probe_rmse": ("depth", root_mean_square),
    "normals_probe_deg": ("normals", mean_angle),
}


def fit_ridge(x: Tensor, y: Tensor, val_x: Tensor, val_y: Tensor, error: Error) -> Ridge:
    """Ridge regression in closed form, of the penalty in STRENGTHS whose `error` on VAL is least.

    Args:
        x: [M, D] features.
        y: [M, K] values.
        val_x: [V, D] and
        val_y: [V, K]; without any, the middle penalty is taken.
        error: of predictions and truth.

    Raises:
        ValueError: no samples.
    """
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(f"ridge regression needs samples, each with a value; got {len(x)} and {len(y)}")
    centre, spread, bias = x.mean(0), x.std(0, unbiased=False).clamp_min(1e-6), y.mean(0)
    standard = ((x - centre) / spread).double()
    gram, moment = standard.T @ standard / len(x), standard.T @ (y - bias).double() / len(x)
    eye = torch.eye(len(gram), dtype=gram.dtype)
    fits = [Ridge(torch.linalg.solve(gram + s * eye, moment).float(), bias, centre, spread) for s in STRENGTHS]
    if not len(val_x):
        return fits[len(fits) // 2]
    return min(fits, key=lambda fit: float(error(fit.predict(val_x), val_y)))


@dataclass(frozen=True)
class Cells:
    """The cells of some views.

    Args:
        features: [N, D] of unit length.
        labels: [N] int64.
        depth: [N, 1] and
        normals: [N, 3], NaN where unknown; all as of `CellTargets`.
    """

    features: Tensor
    labels: Tensor
    depth: Tensor
    normals: Tensor

    def known(self, name: str) -> Tensor:
        """[N] bool: the cells that have a label, or a value, of one of the targets."""
        values = getattr(self, name)
        return values > 0 if name == "labels" else values.isfinite().all(1)

    def some(self, name: str, most: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Features [M, D] and one of the targets of the cells that know it; `most` of them, drawn evenly."""
        rows = np.flatnonzero(self.known(name).numpy())
        if most is not None:
            rows = np.sort(np.random.default_rng(seed).permutation(rows)[:most])
        return self.features[torch.from_numpy(rows)], getattr(self, name)[torch.from_numpy(rows)]


@torch.no_grad()
def read_cells(network: nn.Module, views: Views) -> Cells:
    """All cells of at least one view, view by view."""
    parts = [
        image_features(network, [torch.from_numpy(v.image) for v in views[i : i + BATCH]])
        for i in range(0, len(views), BATCH)
    ]
    targets = [
        torch.from_numpy(np.concatenate([getattr(view, name) for view in views]))
        for name in ("labels", "depth", "normals")
    ]
    return Cells(normalize(torch.cat(parts), dim=1), targets[0], targets[1][:, None], targets[2])


@dataclass(frozen=True)
class ProbeResult:
    """What one network's features tell in one benchmark.

    Args:
        method: its name.
        folder: of the network; None for the frozen one.
        task: name of the benchmark.
        confusions: {setting: [draws, TEST captures, C, C]} counts of cells, true class first.
        errors: {metric: [TEST captures]}.
        probes: {setting: the probe of the first draw}, {metric: the regression}; {} if not asked for.
    """

    method: str
    folder: Path | None
    task: str
    confusions: dict[str, NDArray[np.int64]]
    errors: dict[str, NDArray[np.float64]]
    probes: dict[str, Probe | Ridge]


def probe_network(
    method: str,
    folder: Path | None,
    teacher: Path,
    tasks: Sequence[ProbeViews],
    most: int,
    seed: int,
    keep: bool,
    device: str = "cpu",
    evaluate: str = "test",
) -> list[ProbeResult]:
    """All probes of one network. One job of `parallel_map`.

    Args:
        method: its name.
        folder: of the network, as of `load_image_network`; None for the frozen one.
        teacher: the frozen network's .safetensors.
        tasks: the benchmarks.
        most: cells that one probe is fitted on, at most.
        seed: of the draws of cells, the same for every network.
        keep: whether to hand the probes back.
        device: of the network.
        evaluate: the split that is scored; "val" while tuning.
    """
    network = load_image_network(folder, teacher).to(open_device(device))
    results = []
    for task in tasks:
        train, val = (read_cells(network, [v for views in split for v in views]) for split in (task.train, task.val))
        tested = [read_cells(network, views) for views in getattr(task, evaluate)]
        confusions, found = _label_probes(task, train, val, tested, most, seed)
        errors, ridges = _regressions(train, val, tested, most, seed)
        results.append(ProbeResult(method, folder, task.name, confusions, errors, {**found, **ridges} if keep else {}))
    return results


def _label_probes(
    task: ProbeViews, train: Cells, val: Cells, tested: Sequence[Cells], most: int, seed: int
) -> tuple[dict[str, NDArray[np.int64]], dict[str, Probe]]:
    """Confusions {setting: [draws, captures, C, C]} and {setting: the probe of the first draw}; {} without labels."""
    labelled, classes = int(train.known("labels").sum()), len(task.names)
    val_x, val_y = val.some("labels", most, seed)
    confusions, probes = {}, {}
    for setting, share, draws in (("probe", 1.0, 1), ("probe_1pct", FEW, DRAWS)) if labelled else ():
        count = min(most, max(1, round(share * labelled)))
        fitted = []
        for draw in range(draws):
            x, y = train.some("labels", count, seed + draw)
            fitted.append(fit_probe(x, y, val_x, val_y, classes))
        counts = [
            [confusion(probe.predict(cells.features).numpy(), cells.labels.numpy(), classes) for cells in tested]
            for probe in fitted
        ]
        confusions[f"{task.name}_{setting}"] = np.array(counts)
        probes[f"{task.name}_{setting}"] = fitted[0]
    return confusions, probes


def _regressions(
    train: Cells, val: Cells, tested: Sequence[Cells], most: int, seed: int
) -> tuple[dict[str, NDArray[np.float64]], dict[str, Ridge]]:
    """Errors {metric: [captures]} and {metric: the regression}; without what no training cell knows."""
    errors, ridges = {}, {}
    for metric, (name, error) in REGRESSED.items():
        (x, y), (val_x, val_y) = (cells.some(name, most, seed) for cells in (train, val))
        if len(x):
            ridges[metric] = fit_ridge(x, y, val_x, val_y, error)
            errors[metric] = np.array([_error_of(ridges[metric], name, cells, error) for cells in tested])
    return errors, ridges


def _error_of(ridge: Ridge, name: str, cells: Cells, error: Error) -> float:
    x, y = cells.some(name)
    return float(error(ridge.predict(x), y)) if len(x) else float("nan")
