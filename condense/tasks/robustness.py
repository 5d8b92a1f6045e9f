"""What goes wrong with point clouds in practice: turned, noisy, thinned and partial ones.

Each function takes points [P, 3] with +Z up and a generator, and returns points [Q, 3]. A size is given relative to
the diagonal of the points' bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Generator, Tensor

TILT = 30.0  # degrees
NOISE = 0.02  # standard deviation, of the diagonal
PIXELS = 24  # along each side of the picture that decides what one viewpoint sees
BEHIND = 0.08  # of the diagonal: points so much farther than the nearest one in a pixel are hidden by it


def rotate(points: Tensor, generator: Generator, tilt: float = TILT) -> Tensor:
    """Any turn about the vertical, then a tilt of `tilt` degrees about a random horizontal axis, about the centre."""
    yaw, axis = (torch.rand(2, generator=generator) * 2 * math.pi).tolist()
    centre = _centre(points)
    turned = (points - centre) @ _about_z(yaw - axis).T  # now the axis of the tilt is x
    tilted = turned @ _about_x(math.radians(tilt)).T
    return tilted @ _about_z(axis).T + centre


def jitter(points: Tensor, generator: Generator, share: float = NOISE) -> Tensor:
    """Each point moved by Gaussian noise of `share` of the diagonal."""
    return points + torch.randn(points.shape, generator=generator) * share * _diagonal(points)


def drop(points: Tensor, generator: Generator, share: float) -> Tensor:
    """Without `share` of the points, at random; at least one is kept."""
    kept = max(1, round(len(points) * (1 - share)))
    return points[torch.randperm(len(points), generator=generator)[:kept]]


def cut(points: Tensor, generator: Generator) -> Tensor:
    """The half of the points on one side of a vertical plane in a random direction: a scan broken off."""
    along = points @ _horizontal(generator)
    return points[along <= along.median()]


def one_view(points: Tensor, generator: Generator) -> Tensor:
    """The points that a far viewpoint at a random side sees: others lie behind them in its picture.

    The picture has PIXELS cells along the diagonal of the bounds; no perspective.
    """
    away = _horizontal(generator)  # points with more of it are farther
    across = torch.stack([-away[1], away[0], away[2]])
    diagonal = _diagonal(points)
    depth = points @ away
    picture = torch.stack([points @ across, points[:, 2]], dim=1) / diagonal * PIXELS
    _, cell = torch.unique(picture.floor(), dim=0, return_inverse=True)
    nearest = torch.full((int(cell.max()) + 1,), math.inf).scatter_reduce_(0, cell, depth, "amin")
    return points[depth <= nearest[cell] + BEHIND * diagonal]


PERTURBATIONS: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "rotation": rotate,
    "noise": jitter,
    "drop_50": partial(drop, share=0.5),
    "drop_80": partial(drop, share=0.8),
    "cut": cut,
    "one_view": one_view,
}


def perturbed(points: Tensor, name: str, seed: int) -> Tensor:
    """Points [P, 3] after one of PERTURBATIONS; the same for the same seed."""
    return PERTURBATIONS[name](points, Generator().manual_seed(seed))


def _centre(points: Tensor) -> Tensor:
    return (points.amin(0) + points.amax(0)) / 2


def _diagonal(points: Tensor) -> float:
    return float((points.amax(0) - points.amin(0)).norm())


def _horizontal(generator: Generator) -> Tensor:
    """A random horizontal unit vector [3]."""
    angle = float(torch.rand(1, generator=generator)) * 2 * math.pi
    return torch.tensor([math.cos(angle), math.sin(angle), 0.0])


def _about_z(angle: float) -> Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _about_x(angle: float) -> Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])
