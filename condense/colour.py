"""Colours as texts are compared with them: even to the eye, and as vectors beside features. Differentiable."""

from __future__ import annotations

import torch
from scipy.stats import norm, qmc
from torch import Tensor
from torch.nn.functional import normalize

SHADES = 64  # numbers that `with_colour` adds
COLOUR_WIDTHS = (0.3, 0.06, 0.06)  # of likeness in Oklab: lightness, which light changes, and the two of hue


def oklab(colour: Tensor) -> Tensor:
    """[N, 3] sRGB in [0, 1] as lightness and two of hue, even to the eye: Oklab (Ottosson 2020)."""
    colour = colour.float().clamp(0, 1)
    linear = torch.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    cones = torch.tensor([
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ], device=colour.device)  # fmt: skip
    opponents = torch.tensor([
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ], device=colour.device)  # fmt: skip
    return (linear @ cones.T).clamp_min(0) ** (1 / 3) @ opponents.T


def with_colour(features: Tensor, colour: Tensor) -> Tensor:
    """What is told in words of voxels, cells or key points: their features, and their colour beside them.

    Features are trained to stay the same in any light, while captions name colours. A colour becomes cosines and sines
    of fixed directions through Oklab (random Fourier features, Rahimi and Recht 2007, of a Halton sequence): of two
    results the product is the mean of the features' cosine and of the colours' likeness, about a Gaussian of
    COLOUR_WIDTHS.

    Args:
        features: [N, D].
        colour: [N, 3] RGB in [0, 1].

    Returns:
        [N, D + SHADES] unit vectors.
    """
    normal = norm.ppf(qmc.Halton(3, scramble=False).random(SHADES // 2 + 1)[1:])  # the first is 0, and has no image
    angle = oklab(colour) @ torch.from_numpy(normal / COLOUR_WIDTHS).to(colour.device, torch.float32).T
    shades = torch.cat([angle.cos(), angle.sin()], dim=1) / (SHADES // 2) ** 0.5
    return torch.cat([normalize(features.float(), dim=1), shades], dim=1) / 2**0.5
