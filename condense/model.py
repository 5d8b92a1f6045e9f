"""Both networks, side by side: building, keeping and applying them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from condense.backbone2d import ImageBackbone, load_backbone, save_backbone
from condense.backbone3d import CHANNELS, SparseUNet, load_net3d, recalibrate_batch_norm, save_net3d
from condense.devices import device_of
from condense.distributed import gathered, share, sharing, splits
from condense.links import Links, as_batch, lift
from condense.voxels import VoxelBatch, VoxelScene, batch_scenes, input_features


class Model(nn.Module):
    """The two networks, one embedding space.

    Args:
        student: images -> cells; starts as a copy of the frozen network.
        net3d: voxels -> features of the same length.
        decoder: what else a way of pre-training learns; thrown away after it.
    """

    def __init__(self, student: ImageBackbone, net3d: SparseUNet, decoder: nn.Module | None = None) -> None:
        super().__init__()
        self.student, self.net3d, self.decoder = student, net3d, decoder


def new_model(
    teacher: ImageBackbone, seed: int, decoder: nn.Module | None = None, channels: Sequence[int] = CHANNELS
) -> Model:
    """The model before training: the student a copy of `teacher`, the 3D network with random weights."""
    return Model(copy.deepcopy(teacher), SparseUNet(channels=channels, out_channels=teacher.dim, seed=seed), decoder)


def student_cells(student: nn.Module, images: Sequence[Tensor], recolour: Sequence[Tensor] | None = None) -> Tensor:
    """Features [cells of all images, D], image by image, row-major; images of one size run together.

    Where several processes train, each runs the student on its share of the images.

    Args:
        student: an `ImageBackbone`.
        images: each [H, W, 3] uint8.
        recolour: of each image, or None.
    """
    if splits(len(images)) and student.training:
        own = share(len(images))
        return gathered(_cells(student, images[own], recolour and recolour[own]))
    return _cells(student, images, recolour)


def _cells(student: nn.Module, images: Sequence[Tensor], recolour: Sequence[Tensor] | None) -> Tensor:
    """`student_cells` of this process alone."""
    parts: dict[int, Tensor] = {}
    device = device_of(student)
    for size in sorted({tuple(image.shape) for image in images}):
        group = [i for i, image in enumerate(images) if tuple(image.shape) == size]
        batch = as_batch([images[i] for i in group]).to(device)
        if recolour is not None:
            maps = torch.stack([recolour[i] for i in group]).to(device)  # [B, 3, 4]
            batch = torch.einsum("bij,bjhw->bihw", maps[:, :, :3], batch) + maps[:, :, 3, None, None]
            batch = batch.clamp(0, 1)
        features = student(batch).flatten(2).transpose(1, 2)  # [B, h w, D]
        parts |= dict(zip(group, features, strict=True))
    return torch.cat([parts[i] for i in range(len(images))])


def save_model(folder: Path, model: Model) -> None:
    """Writes both networks."""
    save_backbone(model.student, folder / "student.safetensors")
    save_net3d(model.net3d, folder)


def load_model(folder: Path) -> Model:
    """Reads what `save_model` wrote, in evaluation mode."""
    return Model(load_backbone(folder / "student.safetensors"), load_net3d(folder)).eval()


def batch_features(net3d: nn.Module, voxels: VoxelBatch, visible: Tensor | None = None) -> Tensor:
    """Features [N, D] of all voxels of a batch, in the order of its scenes; `visible` as for `input_features`.

    Where several processes train, each runs the network on its share of the scenes.
    """
    voxels = voxels.to(device_of(net3d))
    coords, inputs, scenes = voxels.coords, input_features(voxels, visible), len(voxels.sizes)
    if not (splits(scenes) and net3d.training):
        return net3d(coords, inputs, voxels.shape, scenes)[voxels.rows]
    own = share(scenes)
    kept = (coords[:, 0] >= own.start) & (coords[:, 0] < own.stop)
    coords = coords[kept] - torch.tensor([own.start, 0, 0, 0], dtype=coords.dtype, device=coords.device)
    with sharing():
        features = net3d(coords, inputs[kept], voxels.shape, own.stop - own.start)
    return gathered(features)[voxels.rows]  # cells are in the order of their scenes


def network_inputs(
    scenes: Sequence[VoxelScene], device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, tuple[int, int, int], int]:
    """The arguments of the 3D network for whole scenes, as captured."""
    batch = batch_scenes(scenes).to(device)
    return batch.coords, input_features(batch), batch.shape, len(scenes)


def recalibrate(net3d: SparseUNet, scenes: Iterable[VoxelScene], size: int) -> None:
    """Batch-norm statistics from these scenes without augmentation, `size` at a time."""
    left = iter(scenes)
    batches = iter(lambda: list(islice(left, size)), [])
    recalibrate_batch_norm(net3d, (network_inputs(batch, device_of(net3d)) for batch in batches))


@torch.no_grad()
def voxel_features(net3d: SparseUNet, scenes: Sequence[VoxelScene], size: int = 8) -> list[Tensor]:
    """Features [N, D] of each scene, on the CPU; evaluation mode, `size` scenes at a time."""
    net3d.eval()
    result: list[Tensor] = []
    for start in range(0, len(scenes), size):
        some = scenes[start : start + size]
        result += batch_features(net3d, batch_scenes(some)).cpu().split([len(scene) for scene in some])
    return result


@torch.no_grad()
def image_features(network: nn.Module, images: Sequence[Tensor]) -> Tensor:
    """Features [cells of all images, D], on the CPU; evaluation mode. Arguments and order as of `student_cells`."""
    return student_cells(network.eval(), images).cpu()


def lifted_features(network: nn.Module, links: Links) -> Tensor:
    """[N, D] an image network's features of the views at hand, lifted to the capture's voxels; 0 where none sees it."""
    cells = image_features(network, [view.image for view in links.views])
    return lift(cells.split([len(view.teacher) for view in links.views]), [view.operator for view in links.views])[0]


def ensemble(voxels: Tensor, lifted: Tensor) -> Tensor:
    """[N, D] unit: the middle between the 3D network's features of voxels and lifted ones, where there are any.

    Both are in one space, so where a scene's photographs are at hand, both networks can describe it together (the
    2D-3D ensemble of OpenScene, Peng et al., CVPR 2023, without its choice between them by text).

    Args:
        voxels: [N, D] as of `voxel_features`.
        lifted: [N, D] as of `lifted_features`.
    """
    return normalize(normalize(voxels, dim=1) + normalize(lifted, dim=1), dim=1)
