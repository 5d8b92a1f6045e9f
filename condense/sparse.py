"""Sparse features: heads on both networks that score and describe key points.

A pixel and the voxel it shows get descriptors near each other in the space that the dense features share: a head adds a
correction to the dense feature, 0 before training. Its score says how well the place can be found again: how likely its
descriptor is to match (reliable), times how much it stands out among its neighbours (distinct), as in R2D2 (Revaud et
al., NeurIPS 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, normalize

from condense.links import LinkedView
from condense.model import Model, load_model, save_model
from condense.paths import write_atomically
from condense.voxels import VoxelScene


class ImageHead(nn.Module):
    """Dense features and the image itself -> descriptors and scores at half the image's resolution.

    A small U-Net over the image takes in the dense features half way down: they say what a place is, the image where.

    Args:
        dim: channels of the dense features, and of the descriptors.
        width: channels of the finest level; the two below have two and three times as many.
    """

    def __init__(self, dim: int, width: int = 24) -> None:
        super().__init__()
        fine, middle, coarse = width, 2 * width, 3 * width
        self.stem = nn.Conv2d(3, fine, 5, stride=2, padding=2, padding_mode="replicate")
        self.down = nn.ModuleList([Residual(fine, fine), Residual(fine, middle, 2), Residual(middle, coarse, 2)])
        self.dense, self.bottom = nn.Conv2d(dim, middle, 1), Residual(coarse, coarse)
        self.sides = nn.ModuleList([nn.Conv2d(coarse, middle, 1), nn.Conv2d(middle, fine, 1)])
        self.up = nn.ModuleList([Residual(middle, middle), Residual(fine, fine)])
        self.correction, self.score = nn.Conv2d(fine, dim, 1), nn.Conv2d(fine, 2, 1)
        _start_neutral(self.correction, self.score)

    def forward(self, images: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """Descriptors [B, D, H/2, W/2], unit length, and logits [B, 2, H/2, W/2] (reliable, distinct).

        Args:
            images: [B, 3, H, W] float in [0, 1].
            dense: [B, D, h, w] of the student.
        """
        dense = normalize(dense, dim=1)
        fine = self.down[0](gelu(self.stem((images - 0.5) * 4)))
        middle = self.down[1](fine)
        middle = middle + _resized(self.dense(dense), middle)
        coarse = self.bottom(self.down[2](middle))
        middle = self.up[0](middle + _resized(self.sides[0](coarse), middle))
        fine = self.up[1](fine + _resized(self.sides[1](middle), fine))
        return normalize(_resized(dense, fine) + self.correction(fine), dim=1), self.score(fine)


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside a skip connection (He et al. 2016); the first may halve the resolution."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.one = nn.Conv2d(inputs, outputs, 3, stride, 1, padding_mode="replicate")
        self.norm, self.two = (
            nn.GroupNorm(4, outputs),
            nn.Conv2d(outputs, outputs, 3, padding=1, padding_mode="replicate"),
        )
        same = inputs == outputs and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, outputs, H / stride, W / stride] of [B, inputs, H, W]."""
        return gelu(self.skip(x) + self.two(gelu(self.norm(self.one(x)))))


def _resized(maps: Tensor, like: Tensor) -> Tensor:
    return interpolate(maps, like.shape[2:], mode="bilinear")


class VoxelHead(nn.Module):
    """The same for voxels, from each voxel's dense feature."""

    def __init__(self, dim: int, width: int = 128) -> None:
        super().__init__()
        self.hidden, self.correction, self.score = nn.Linear(dim, width), nn.Linear(width, dim), nn.Linear(width, 2)
        _start_neutral(self.correction, self.score)

    def forward(self, dense: Tensor) -> tuple[Tensor, Tensor]:
        """Descriptors [N, D], unit length, and logits [N, 2] of dense features [N, D]."""
        dense = normalize(dense, dim=1)
        hidden = gelu(self.hidden(dense * dense.shape[1] ** 0.5))
        return normalize(dense + self.correction(hidden), dim=1), self.score(hidden)


def _start_neutral(*layers: nn.Conv2d | nn.Linear) -> None:
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


def keypoint_score(logits: Tensor) -> Tensor:
    """Scores [...] in [0, 1] of logits [..., 2]: reliable times distinct."""
    return logits.sigmoid().prod(dim=-1)


class SparseModel(nn.Module):
    """Both networks and their heads.

    Args:
        model: the dense networks.
        seed: of the heads' weights.
    """

    def __init__(self, model: Model, seed: int = 0) -> None:
        super().__init__()
        self.dense = model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.image_head, self.voxel_head = ImageHead(model.student.dim), VoxelHead(model.student.dim)

    def image_maps(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Dense features [B, D, h, w], and what `ImageHead` makes of them, of images [B, 3, H, W] in [0, 1]."""
        dense = self.dense.student(images)
        return dense, *self.image_head(images, dense)


def save_sparse(folder: Path, model: SparseModel) -> None:
    """Writes both networks and the heads."""
    save_model(folder, model.dense)
    heads = {k: v.contiguous() for k, v in model.state_dict().items() if not k.startswith("dense.")}
    write_atomically(folder / "heads.safetensors", lambda path: save_file(heads, path))


def load_sparse(folder: Path) -> SparseModel:
    """Reads what `save_sparse` wrote, in evaluation mode.

    Raises:
        FileNotFoundError: there is no such model.
    """
    model = SparseModel(load_model(folder))
    model.load_state_dict({**model.state_dict(), **load_file(folder / "heads.safetensors")})
    return model.eval()


def view_weights(scene: VoxelScene, views: Sequence[LinkedView]) -> tuple[Tensor, Tensor]:
    """Pixels [N, V, 2] where each voxel shows in each view, and [N, V] how much of the view it makes up.

    That is its column's sum in the view's ray operator, so 0 for a hidden voxel; also 0 outside the image.
    """
    pixels, weights = [], []
    for view in views:
        at, depth = view.camera.project(0, scene.centres)
        inside = (at > 0).all(1) & (at < view.camera.sizes[0]).all(1) & (depth > 0)
        pixels.append(at)
        weights.append(view.operator.transpose.opacity * inside)
    return torch.stack(pixels, dim=1), torch.stack(weights, dim=1)
