"""Poses that were found by rendering, kept in a folder: many methods ask for the same photograph and scene."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from condense.paths import write_atomically
from condense.posealign import LEVELS, Photograph, Renderers, pose_by_mask
from condense.voxels import VoxelScene


def kept_pose(photograph: Photograph, scene: Renderers, folder: Path | None) -> tuple[Tensor, float]:
    """`pose_by_mask`; what was found before is read from `folder` (None: nothing is kept).

    Files go by what is in the photograph and the scene, so a changed scene is searched again.
    """
    if folder is None:
        return pose_by_mask(photograph, scene)
    path = folder / f"{_key(photograph, scene.scene)}.json"
    if not path.is_file():
        T, cost = pose_by_mask(photograph, scene)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"T_world_from_camera": T.tolist(), "cost": cost})
        write_atomically(path, lambda temporary: temporary.write_text(text))
    found = json.loads(path.read_text())
    return torch.tensor(found["T_world_from_camera"]), float(found["cost"])


def _key(photograph: Photograph, scene: VoxelScene) -> str:
    digest = hashlib.sha256(repr((LEVELS, dataclasses.astuple(scene.grid))).encode())
    for part in (*vars(photograph).values(), scene.coords, scene.density, scene.colour):
        digest.update(repr(part.shape).encode() + part.contiguous().numpy().tobytes())
    return digest.hexdigest()
