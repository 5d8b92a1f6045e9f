"""Images under known affine maps: what a key point must follow, finer than a voxel.

Voxels tell what belongs together to about two pixels. A copy of an image under a drawn map tells it exactly, as
SuperPoint (DeTone et al., CVPRW 2018), R2D2 (Revaud et al., NeurIPS 2019) and ALIKED (Zhao et al. 2023) have it. Maps
are those of `torch.nn.functional.affine_grid`: from places in the copy to places in the image, both in [-1, 1].
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import (
    affine_grid,
    avg_pool2d,
    cosine_similarity,
    grid_sample,
    interpolate,
    max_pool2d,
    unfold,
)

from condense.keypoints import soft_places

TURN, STRETCH, SHEAR, SHIFT = 0.5, 0.25, 0.15, 0.12  # largest: radians, log of the scale, and shares of half the image
PATCH = 3  # cells of a score map within which it must look alike and peak
COVERED = 0.3  # share of a patch that must show the capture in both images
MOST, LEAST = 100, 0.02  # maxima of an image that must be found again, and their least score
NEAR, BORDER = 4.0, 2  # cells: farther apart, maxima are not the same; nearer to the border, they are not asked


def draw_map(rng: np.random.Generator) -> Tensor:
    """[2, 3] a random turn, stretch, shear and shift."""
    angle, scale = rng.uniform(-TURN, TURN), np.exp(rng.uniform(-STRETCH, STRETCH))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    slant = np.array([[1, rng.uniform(-SHEAR, SHEAR)], [0, 1]])
    shift = rng.uniform(-SHIFT, SHIFT, (2, 1))
    return torch.from_numpy(np.concatenate([scale * turn @ slant, shift], axis=1)).float()


def warped(image: Tensor, by: Tensor, outside: str = "zeros") -> Tensor:
    """An image [C, H, W] under a map [2, 3], bilinearly; differentiable. Beyond it: "border" or "zeros"."""
    grid = affine_grid(by[None], [1, *image.shape], align_corners=False)
    return grid_sample(image[None], grid, padding_mode=outside, align_corners=False)[0]


def repeatable_loss(scores: Tensor, copy: Tensor, by: Tensor, cover: Tensor) -> Tensor:
    """How far a score map is from following its image, and from peaking: R2D2's two terms, in patches of PATCH cells.

    Args:
        scores: [h, w] of an image.
        copy: [h, w] of the image under
        by: [2, 3].
        cover: [H, W] in [0, 1], what of the image shows the capture.

    Returns:
        1 - cosine similarity of patches, and 1 - (maximum - mean) of the copy's patches, means over what both show;
        0 where they show nothing in common. Differentiable.
    """
    shown = _cells(warped(cover[None], by), scores)
    followed, found = warped(scores[None], by)[None], copy[None, None]
    one, other, seen = (unfold(part, PATCH, stride=PATCH // 2) for part in (followed, found, shown[None, None]))
    both = seen.mean(1) > COVERED
    if not bool(both.any()):
        return (scores.sum() + copy.sum()) * 0.0
    alike = 1 - cosine_similarity(one, other, dim=1)[both].mean()
    peaks = max_pool2d(found, PATCH, 1, PATCH // 2) - avg_pool2d(found, PATCH, 1, PATCH // 2)
    return alike + 1 - (peaks[0, 0] * shown).sum() / shown.sum()


def astray(scores: Tensor, copy: Tensor, by: Tensor, cover: Tensor) -> Tensor:
    """How far apart the maxima of both score maps are that are the same: ALIKED's reprojection loss.

    Args:
        scores, copy, by, cover: as of `repeatable_loss`.

    Returns:
        Mean distance in cells of the copy's maxima, carried to the image, from their mutual nearest ones there; 0
        without any. Differentiable, for maxima lie between cells (`soft_places`).
    """
    size = scores.new_tensor([scores.shape[1], scores.shape[0]])
    there = _maxima(scores * _cells(cover[None], scores))
    here = _maxima(copy * _cells(warped(cover[None], by), copy))
    carried = ((2 * here / size - 1) @ by[:, :2].T + by[:, 2] + 1) / 2 * size
    distance = torch.cdist(carried, there)
    if not distance.numel():
        return (scores.sum() + copy.sum()) * 0.0
    rows, nearest = torch.arange(len(here), device=here.device), distance.argmin(1)
    same = (distance.argmin(0)[nearest] == rows) & (distance[rows, nearest] < NEAR)
    return distance[rows, nearest][same].mean() if bool(same.any()) else distance.sum() * 0.0


def _cells(cover: Tensor, scores: Tensor) -> Tensor:
    """[h, w] the share of each cell of a score map that is covered."""
    return interpolate(cover[None], scores.shape, mode="area")[0, 0]


def _maxima(scores: Tensor) -> Tensor:
    """[K, 2] places of the highest maxima of a score map, in cells."""
    places, peaks = soft_places(scores)
    inner = torch.zeros_like(peaks)
    inner[BORDER:-BORDER, BORDER:-BORDER] = True
    rows = torch.nonzero((peaks & inner & (scores > LEAST)).flatten())[:, 0]
    best = scores.flatten()[rows].argsort(descending=True, stable=True)[:MOST]
    return places.flatten(0, 1)[rows[best]]
