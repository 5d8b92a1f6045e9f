"""Point clouds of the data sets as voxel scenes with labels."""

from __future__ import annotations

import torch
from torch import Tensor

from condense.datasets.pointset import PointCloud
from condense.voxels import VoxelScene, voxelise_points

GREY = 0.5  # colour of points without colour, which the 3D network sees as 0


def scene_of(cloud: PointCloud, resolution: int) -> tuple[VoxelScene, Tensor | None]:
    """A cloud as voxels, `resolution` of them along its longest side, and their labels.

    Returns:
        The scene, and [N] int64 labels of its voxels as in `voxel_labels`; None if the cloud has none.
    """
    colours = torch.full_like(cloud.points, GREY) if cloud.colours is None else cloud.colours
    scene = voxelise_points(cloud.points, colours, resolution)
    return scene, None if cloud.labels is None else voxel_labels(scene, cloud.points, cloud.labels)


def voxel_labels(scene: VoxelScene, points: Tensor, labels: Tensor) -> Tensor:
    """[N] int64: the label that most labelled points in each voxel have.

    A voxel whose points are all ignored is ignored (0); of labels with equally many points the smallest wins.

    Args:
        scene: with a bounded grid, such as `voxelise_points` makes of the points.
        points: [P, 3]; those in no voxel of the scene do not count.
        labels: [P] int64, 0 = ignored.

    Raises:
        ValueError: shapes do not match.
    """
    if points.shape != (len(labels), 3) or labels.ndim != 1:
        raise ValueError(f"points {tuple(points.shape)} and labels {tuple(labels.shape)} must be [P, 3] and [P]")
    shape = torch.tensor(scene.grid.shape)
    coordinates = scene.grid.from_world(points)
    # Rounding may put a point of the bounds just outside.
    within = ((coordinates > -1e-3) & (coordinates < shape + 1e-3)).all(dim=1)
    cells = coordinates[within].floor().long().clamp_min(0).minimum(shape - 1)
    rows, found = _rows(scene, cells), labels[within]
    counted = (rows >= 0) & (found > 0)
    kinds = int(labels.max()) + 1 if len(labels) else 1
    keys, counts = torch.unique(rows[counted] * kinds + found[counted], return_counts=True)
    keys = keys[torch.argsort(counts, descending=True, stable=True)]  # ties keep the order of their labels
    keys = keys[torch.argsort(keys // kinds, stable=True)]  # by voxel, the majority first
    first = torch.ones(len(keys), dtype=torch.bool)
    first[1:] = keys[1:] // kinds != keys[:-1] // kinds
    result = torch.zeros(len(scene), dtype=torch.int64)
    result[keys[first] // kinds] = keys[first] % kinds
    return result


def _rows(scene: VoxelScene, cells: Tensor) -> Tensor:
    """[P] the scene's row of each cell [P, 3], -1 where there is none; by search, for a room's volume is large."""
    strides = torch.tensor([scene.grid.shape[1] * scene.grid.shape[2], scene.grid.shape[2], 1])
    known, order = (scene.coords.long() * strides).sum(dim=1).sort()
    wanted = (cells * strides).sum(dim=1)
    place = torch.searchsorted(known, wanted).clamp_max(len(known) - 1)
    return torch.where(known[place] == wanted, order[place], -1)
