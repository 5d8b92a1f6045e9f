"""One vector a scene: what classification sees of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from condense.backbone3d import SparseUNet
from condense.devices import device_of
from condense.model import network_inputs
from condense.voxels import VoxelScene


def pool(features: Tensor, scene: Tensor, scenes: int) -> Tensor:
    """[scenes, 2 D] mean and maximum of features [N, D] over each scene; `scene` [N] int64 says whose each row is.

    Differentiable. A scene without rows gets zeros.
    """
    index = scene[:, None].expand_as(features)
    zeros = features.new_zeros(scenes, features.shape[1])
    mean = zeros.scatter_reduce(0, index, features, "mean", include_self=False)
    return torch.cat([mean, zeros.scatter_reduce(0, index, features, "amax", include_self=False)], dim=1)


def length(net3d: SparseUNet) -> int:
    """Length of a network's descriptors."""
    return 2 * (net3d.out_channels + net3d.channels[-1])


def descriptors(net3d: SparseUNet, coords: Tensor, inputs: Tensor, shape: Sequence[int], scenes: int) -> Tensor:
    """[scenes, `length`] mean and maximum of the output and of the U-Net's lowest level; differentiable.

    Both levels together were better on VAL instances than the output alone (linear probe 93 against 89 %, 5-shot
    77 against 74 %), and more so for untrained networks. Arguments as of `SparseUNet.forward`.
    """
    output, lowest, scene = net3d.with_lowest(coords, inputs, shape, scenes)
    return torch.cat([pool(output, coords[:, 0].long(), scenes), pool(lowest, scene, scenes)], dim=1)


@torch.no_grad()
def describe(net3d: SparseUNet, scenes: Sequence[VoxelScene], size: int = 16) -> NDArray[np.float32]:
    """[scenes, `length`] descriptors, evaluation mode, `size` scenes at a time."""
    net3d.eval()
    device = device_of(net3d)
    parts = (network_inputs(scenes[start : start + size], device) for start in range(0, len(scenes), size))
    return torch.cat([descriptors(net3d, *part).cpu() for part in parts]).float().numpy()


def colour_histogram(scene: VoxelScene, bins: int = 4) -> NDArray[np.float32]:
    """[bins^3] share of voxels in each cell of RGB space: what colour alone tells."""
    cells = (scene.colour.clamp(0, 1) * bins).long().clamp_max(bins - 1)
    index = (cells[:, 0] * bins + cells[:, 1]) * bins + cells[:, 2]
    return (torch.bincount(index, minlength=bins**3) / len(scene)).float().numpy()


def shape_histogram(scene: VoxelScene, bins: int = 8) -> NDArray[np.float32]:
    """[bins^2] share of voxels by distance from the vertical axis and by height, about the centroid.

    Unchanged by turns about the vertical, by recolouring and by texture.
    """
    at = scene.coords.float() - scene.coords.float().mean(0)
    radius = at[:, :2].norm(dim=1) / max(scene.grid.shape[:2]) * 2
    height = at[:, 2] / scene.grid.shape[2] + 0.5
    r, h = ((value * bins).long().clamp(0, bins - 1) for value in (radius, height))
    return (torch.bincount(r * bins + h, minlength=bins**2) / len(scene)).float().numpy()
