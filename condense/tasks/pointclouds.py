"""The labelled surface points that built-in captures carry: another modality than a field, without colour."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from condense.captures.folder import Folder
from condense.datasets.ply import vertices
from condense.datasets.scenes import GREY
from condense.voxels import VoxelScene, voxelise_points

FILE = "points.ply"
RGB = ("red", "green", "blue")


@dataclass(frozen=True)
class SurfacePoints:
    """Points on the surface of a capture.

    Args:
        points: [P, 3] float32, capture units.
        normals: [P, 3] float32, outward, nearly unit length.
        colours: [P, 3] float32 RGB in [0, 1].
        parts: [P] int64, the part (or semantic) label of each, 0 = none.
    """

    points: Tensor
    normals: Tensor
    colours: Tensor
    parts: Tensor


def read_points(folder: Folder) -> SurfacePoints | None:
    """The surface points of a capture; None where it has none (photographs).

    Raises:
        ValueError: the file is damaged or lacks one of these columns.
    """
    if not folder.exists(FILE):
        return None
    try:
        table = vertices(io.BytesIO(folder.read(FILE)))
        points, normals, rgb = (columns(table, names) for names in (("x", "y", "z"), ("nx", "ny", "nz"), RGB))
        return SurfacePoints(points, normals, rgb / 255, torch.from_numpy(table["part"].astype(np.int64)))
    except ValueError as error:
        raise ValueError(f"{FILE} in {folder.path.name}: {error}") from error


def columns(table: np.ndarray, names: tuple[str, ...]) -> Tensor:
    """[P, len(names)] float32 of a structured array [P]."""
    return torch.from_numpy(np.stack([table[name].astype(np.float32) for name in names], axis=1))


def scene_of_points(points: Tensor, resolution: int) -> VoxelScene:
    """Points [P, 3] as opaque grey voxels, `resolution` of them along the longest side of their bounds."""
    return voxelise_points(points, torch.full_like(points, GREY), resolution)


def without_colour(scene: VoxelScene) -> VoxelScene:
    """The same voxels, all of them grey."""
    return VoxelScene(scene.coords, scene.density, torch.full_like(scene.colour, GREY), scene.grid)
