"""Which of several scenes that are laid over a photograph does it show? Near-duplicates differ in a part.

What a scene costs (`posealign`) sums over the image, and there another light, which falls on everything, outweighs the
plant that stands where a chair should be. So scenes are compared two by two as well, where they differ most: at the
place where the one explains the photograph so much better than the other. Chromaticities are compared, less their
means nearby: shadows change colours less than brightness. Nothing is trained. Not differentiable.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from condense.posealign import Level, Photograph, Renderers, in_light

COMPARED = Level(64, 1, 1, 0, 0.1)  # the grid of cells, and the difference from which a cell's counts little more
NEARBY = 17  # cells across the neighbourhood whose mean chromaticity is taken off
PLACE = 5  # cells across a place that scenes are told apart by
DARK = 0.15  # brightness, the sum of RGB, below which chromaticity fades


@torch.no_grad()
def laid_over(photograph: Photograph, scene: Renderers, T_world_from_camera: Tensor) -> Tensor:
    """[4, h, w] opacity and colours of a scene from a pose [4, 4], on COMPARED's cells, in the photograph's light."""
    view = photograph.on(COMPARED)
    T = T_world_from_camera[None]
    return in_light(scene.whole.render(T[:, :3, :3], T[:, :3, 3], view)[0], view)[0]


def standings(photograph: Photograph, shown: Sequence[Tensor], costs: Sequence[float]) -> list[float]:
    """How well each scene stands against the one that it stands worst against, in [-2, 2]; 2 where it is alone.

    Against another it stands by the share by which it costs less, and by `evidence`.

    Args:
        photograph: of one of the scenes.
        shown: as of `laid_over`, of each.
        costs: as of `find_pose`, of each.
    """
    truth = chromaticity(photograph.on(COMPARED).seen[1:])
    unlike = [unlikeness(image, truth) for image in shown]
    worst = [2.0] * len(shown)
    for a, b in itertools.combinations(range(len(shown)), 2):
        less = (costs[b] - costs[a]) / max(costs[b] + costs[a], 1e-9)
        stand = less + evidence(unlike[a], unlike[b], torch.minimum(shown[a][0], shown[b][0]))
        worst[a], worst[b] = min(worst[a], stand), min(worst[b], -stand)
    return worst


def unlikeness(shown: Tensor, truth: Tensor) -> Tensor:
    """[h, w] in [0, 1]: how badly a scene, [4, h, w] as of `laid_over`, explains the `chromaticity` [3, h, w] seen."""
    square = (chromaticity(shown[1:]) - truth).square().sum(0)
    return square / (square + COMPARED.outlier**2)


def evidence(first: Tensor, second: Tensor, opacity: Tensor) -> float:
    """In [-1, 1]: how much better the first scene explains the place of the image at which the two differ most in that.

    Args:
        first: [h, w] its `unlikeness`.
        second: [h, w] likewise.
        opacity: [h, w] where both are there.
    """
    better = _mean_nearby((second - first) * opacity, PLACE)
    return float(better.flatten()[better.abs().argmax()])


def chromaticity(colour: Tensor) -> Tensor:
    """[3, h, w] the shares of red, green and blue of colours [3, h, w], less their means nearby."""
    colour = colour.clamp_min(0)
    share = colour / (colour.sum(0) + DARK)
    return share - _mean_nearby(share, NEARBY)


def _mean_nearby(values: Tensor, side: int) -> Tensor:
    """[..., h, w] means over squares of `side` cells; cells beyond the border are those on it."""
    flat = values.reshape(1, -1, *values.shape[-2:])
    return avg_pool2d(pad(flat, (side // 2,) * 4, mode="replicate"), side, 1).reshape(values.shape)
