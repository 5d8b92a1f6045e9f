"""The labelled surface points that built-in captures carry: another modality than a field, without colour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from condense.captures.folder import Folder
from condense.voxels import VoxelScene, voxelise_points

FILE = "points.ply"
KINDS = {"float": "<f4", "uchar": "u1"}  # all that the generator writes
GREY = 0.5  # colour of a point without colour: the 3D network sees 0


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
        ValueError: the file is not a binary PLY such as the generator writes, or it ends early.
    """
    if not folder.exists(FILE):
        return None
    head, end, body = folder.read(FILE).partition(b"end_header\n")
    lines = [line.split() for line in head.decode("latin-1").splitlines()]
    count = next((int(words[2]) for words in lines if words[:2] == ["element", "vertex"]), 0)
    fields = [(words[2], KINDS[words[1]]) for words in lines if words[:1] == ["property"] and words[1] in KINDS]
    kind = np.dtype(fields)
    wanted = {"x", "y", "z", "nx", "ny", "nz", "red", "green", "blue", "part"}
    if not end or not count or wanted - set(kind.names or ()) or len(body) < count * kind.itemsize:
        raise ValueError(f"{FILE} in {folder.path.name} is not a whole PLY file of labelled points")
    table = np.frombuffer(body, kind, count)

    def columns(*names: str) -> Tensor:
        return torch.from_numpy(np.stack([table[name].astype(np.float32) for name in names], axis=1))

    colours = columns("red", "green", "blue") / 255
    parts = torch.from_numpy(table["part"].astype(np.int64))
    return SurfacePoints(columns("x", "y", "z"), columns("nx", "ny", "nz"), colours, parts)


def scene_of_points(points: Tensor, resolution: int) -> VoxelScene:
    """Points [P, 3] as opaque grey voxels, `resolution` of them along the longest side of their bounds."""
    return voxelise_points(points, torch.full_like(points, GREY), resolution)


def without_colour(scene: VoxelScene) -> VoxelScene:
    """The same voxels, all of them grey."""
    return VoxelScene(scene.coords, scene.density, torch.full_like(scene.colour, GREY), scene.grid)
