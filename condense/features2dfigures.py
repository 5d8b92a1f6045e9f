"""Pictures of image features: one colour space, where they are noisy, and what probes make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from condense.joint import SOLID
from condense.links import Links


def shared_colours(links: Links, maps: Mapping[str, Sequence[Tensor]]) -> dict[str, list[NDArray]]:
    """Images and features of several views, all features in one PCA colour space.

    The three components are those of all kinds' cells together, each of unit length, where the capture is solid; so
    one colour means one feature in every picture.

    Args:
        links: the capture, with the views to show.
        maps: {kind: [D, h, w] of each view}.

    Returns:
        {"image" and every kind: [H, W, 3] of each view, in [0, 1]}; feature maps have one pixel a cell, and
        "rendered" and "lifted" are white where nothing is.
    """
    solid = [view.operator.opacity >= SOLID for view in links.views]
    unit = {kind: [normalize(cells.flatten(1).T, dim=1) for cells in each] for kind, each in maps.items()}
    every = torch.cat([cells[s] for each in unit.values() for cells, s in zip(each, solid, strict=True)])
    centre = every.mean(0)
    _, axes = torch.linalg.eigh((every - centre).T @ (every - centre))
    axes = axes[:, -3:].flip(1)  # [D, 3], the largest first
    axes = axes * torch.where(axes.sum(0) < 0, -1, 1)  # an eigenvector's sign is arbitrary
    low, high = torch.quantile((every - centre) @ axes, torch.tensor([0.02, 0.98]), dim=0)
    pictures: dict[str, list[NDArray]] = {"image": [v.image.float().numpy() / 255 for v in links.views]}
    for kind, each in unit.items():
        pictures[kind] = []
        for cells, view, here in zip(each, links.views, solid, strict=True):
            colour = (((cells - centre) @ axes - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
            if kind in ("rendered", "lifted"):
                colour = torch.where(here[:, None], colour, 1.0)
            pictures[kind].append(colour.reshape(*view.cells, 3).numpy())
    return pictures
