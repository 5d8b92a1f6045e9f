"""Sparse features: heads on both networks that score and describe key points, and condensing a scene or an image.

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

from condense.keypoints import ImageKeyPoints, KeyPoints, spread_maxima, voxel_normals
from condense.links import as_batch
from condense.model import Model, load_model, save_model, voxel_features
from condense.paths import write_atomically
from condense.voxels import VoxelScene

STRIDE = 2  # pixels a cell of the score and descriptor maps
CANDIDATES = 4  # of so many times the wanted key points, those spread best are kept


class ImageHead(nn.Module):
    """Dense features and the image itself -> descriptors and scores at half the image's resolution.

    Args:
        dim: channels of the dense features, and of the descriptors.
        width: of the hidden layers.
    """

    def __init__(self, dim: int, width: int = 48) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 2, 3, padding=1), nn.GELU(), nn.Conv2d(width // 2, width, 3, stride=2, padding=1)
        )
        self.dense = nn.Conv2d(dim, width, 1)
        self.mix = nn.Sequential(nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU())
        self.correction, self.score = nn.Conv2d(width, dim, 3, padding=1), nn.Conv2d(width, 2, 3, padding=1)
        _start_neutral(self.correction, self.score)

    def forward(self, images: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """Descriptors [B, D, H/2, W/2], unit length, and logits [B, 2, H/2, W/2] (reliable, distinct).

        Args:
            images: [B, 3, H, W] float in [0, 1].
            dense: [B, D, h, w] of the student.
        """
        fine = self.stem((images - 0.5) * 4)  # [B, width, H/2, W/2]
        hidden = self.mix(fine + interpolate(self.dense(dense), fine.shape[2:], mode="bilinear"))
        base = interpolate(dense, fine.shape[2:], mode="bilinear")
        return normalize(base + self.correction(hidden), dim=1), self.score(hidden)


class VoxelHead(nn.Module):
    """The same for voxels, from each voxel's dense feature."""

    def __init__(self, dim: int, width: int = 128) -> None:
        super().__init__()
        self.hidden, self.correction, self.score = nn.Linear(dim, width), nn.Linear(width, dim), nn.Linear(width, 2)
        _start_neutral(self.correction, self.score)

    def forward(self, dense: Tensor) -> tuple[Tensor, Tensor]:
        """Descriptors [N, D], unit length, and logits [N, 2] of dense features [N, D]."""
        hidden = gelu(self.hidden(dense))
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


@torch.no_grad()
def condense_scene(model: SparseModel, scene: VoxelScene, count: int = 256) -> KeyPoints:
    """The decorated key points of a scene, from its voxels alone: no image is looked at.

    Args:
        model: in evaluation mode.
        scene: the voxels.
        count: at most so many key points, spread over the scene (see `spread_maxima`).
    """
    return condense_features(model, scene, voxel_features(model.dense.net3d, [scene])[0], count)


@torch.no_grad()
def condense_features(model: SparseModel, scene: VoxelScene, dense: Tensor, count: int = 256) -> KeyPoints:
    """The key points of a scene whose voxels have the dense features [N, D], such as lifted ones."""
    descriptors, logits = model.voxel_head(dense)
    scores = keypoint_score(logits)
    kept = spread_maxima(scene.centres, scores, count)
    normals = voxel_normals(scene)[kept]
    return KeyPoints(scene.centres[kept], normals, scores[kept], descriptors[kept], scene.colour[kept])


@torch.no_grad()
def detect_image(model: SparseModel, image: Tensor, mask: Tensor | None = None, count: int = 256) -> ImageKeyPoints:
    """The key points of one image.

    Args:
        model: in evaluation mode.
        image: [H, W, 3] uint8.
        mask: [H, W] uint8 or None; only places that it covers at least by half are taken.
        count: at most so many.
    """
    return detect_images(model, [image], None if mask is None else [mask], count)[0]


@torch.no_grad()
def detect_images(
    model: SparseModel, images: Sequence[Tensor], masks: Sequence[Tensor] | None = None, count: int = 256
) -> list[ImageKeyPoints]:
    """`detect_image` of several images of one size."""
    _, descriptors, logits = model.image_maps(as_batch(images))
    scores = keypoint_score(logits.movedim(1, -1))  # [B, H/2, W/2]
    height, width = images[0].shape[:2]
    found = []
    for number, (score, features) in enumerate(zip(scores, descriptors, strict=True)):
        rows, columns = score.shape
        y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
        places = torch.stack([x, y], dim=-1).flatten(0, 1) * score.new_tensor([width / columns, height / rows])
        inside = torch.ones(rows * columns, dtype=torch.bool)
        if masks is not None:
            inside = interpolate(masks[number][None, None].float(), score.shape, mode="area").flatten() >= 127.5
        places, strength, described = places[inside], score.flatten()[inside], features.flatten(1).T[inside]
        kept = spread_maxima(places, strength, count)
        found.append(ImageKeyPoints(places[kept], strength[kept], described[kept], (width, height)))
    return found
