"""How much of a feature belongs to the surface point it shows, and how much is noise of the one view."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from condense.backbone2d import FeatureStatistics

OUTLIER = 3.5  # robust standard deviations
NORMAL = 1.4826  # a normal distribution's standard deviation, in median absolute deviations


def variance_explained(features: Tensor, point: Tensor, view: Tensor) -> float:
    """Share of the variance of features that is between surface points, not between the views of one point.

    The intraclass correlation of a one-way layout (Shrout & Fleiss 1979, ICC(1), group sizes as they come), summed
    over channels: 1 where all views of a point agree, about 0 for features that do not depend on the point. Unlike
    the plain ratio of sums of squares it does not rise where points are seen few times.

    Args:
        features: [N, D].
        point: [N] int, the surface point of each; -1 is left out. Those of one point in one view count once, by
            their mean; points seen in one view are left out.
        view: [N] int.

    Returns:
        At most 1; NaN with fewer than two points.
    """
    kept = point >= 0
    place, row = torch.unique(torch.stack([point, view], 1)[kept], dim=0, return_inverse=True)
    values = _means(features[kept].double(), row, len(place))  # one a point and view
    count = torch.bincount(place[:, 0])
    often = count[place[:, 0]] > 1
    _, group = torch.unique(place[often, 0], return_inverse=True)
    n = torch.bincount(group).double()
    total, groups = len(group), len(n)
    if groups < 2:
        return float("nan")
    values = values[often]
    means = _means(values, group, groups)
    between = (n[:, None] * (means - values.mean(0)).square()).sum() / (groups - 1)
    within = (values - means[group]).square().sum() / (total - groups)
    size = (total - n.square().sum() / total) / (groups - 1)
    return float((between - within) / (between + (size - 1) * within).clamp_min(1e-12))


def _means(values: Tensor, row: Tensor, rows: int) -> Tensor:
    count = torch.bincount(row, minlength=rows).clamp_min(1).to(values)
    return values.new_zeros(rows, values.shape[1]).index_add_(0, row, values) / count[:, None]


def norm_deviation(cells: Tensor, statistics: FeatureStatistics, solid: Tensor) -> Tensor:
    """[h, w] how far the norm of each cell's feature is from the median of its view, in robust standard deviations.

    Beyond OUTLIER it counts as an artefact: those of Darcet et al. (ICLR 2024) have large norms and tell of the whole
    image, not of their place.

    Args:
        cells: [D, h, w] standardised features; norms are of those before standardisation.
        statistics: of the frozen network.
        solid: [h, w] bool, cells that show the capture: the median and its absolute deviation are theirs.

    Returns:
        NaN where not solid, 0 everywhere if norms do not differ.
    """
    norms = (cells * statistics.std[:, None, None] + statistics.mean[:, None, None]).norm(dim=0)
    apart = norms - norms[solid].median() if solid.any() else norms
    spread = NORMAL * apart[solid].abs().median() if solid.any() else norms.new_zeros(())
    return torch.where(solid, apart / spread if spread > 0 else apart * 0, torch.nan)


def steps(cells: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of unit features of neighbouring cells: inside a part [A], and across a border of two parts [B].

    Args:
        cells: [D, h, w].
        labels: [h, w] int, 0 = none: pairs with such a cell are left out.
    """
    unit = normalize(cells, dim=0)
    inside, across = [], []
    for dim in (0, 1):
        n = labels.shape[dim] - 1
        a, b = (labels.narrow(dim, start, n) for start in (0, 1))
        step = (unit.narrow(dim + 1, 1, n) - unit.narrow(dim + 1, 0, n)).norm(dim=0)
        known = (a > 0) & (b > 0)
        inside.append(step[known & (a == b)])
        across.append(step[known & (a != b)])
    return torch.cat(inside), torch.cat(across)
