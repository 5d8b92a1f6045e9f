"""CO3D v2 (Reizenstein et al., ICCV 2021): a sequence is a scene, its cameras stand in its category's annotations."""

from __future__ import annotations

import gzip
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condense.adapters.cameras import Photograph

ANNOTATIONS = "frame_annotations.jgz"
AXES = np.diag([-1.0, -1.0, 1.0])  # from PyTorch3D's camera (x left, y up) to OpenCV's


def find(root: Path) -> list[Path]:
    """The sequences below the data set's root, or below one category, that are on disk."""
    categories = [root] if (root / ANNOTATIONS).is_file() else sorted(p.parent for p in root.glob(f"*/{ANNOTATIONS}"))
    return [
        category / name for category in categories for name in sorted(_frames(category)) if (category / name).is_dir()
    ]


def read(folder: Path) -> list[Photograph]:
    """The views of a sequence.

    Raises:
        ValueError: an annotation lacks what makes a camera.
    """
    try:
        return [_photograph(frame) for frame in _frames(folder.parent)[folder.name]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder.parent / ANNOTATIONS}: a frame of {folder.name} cannot be used: {error!r}"
        ) from error


@lru_cache(maxsize=1)  # of one category at a time: they take up to a gigabyte
def _frames(category: Path) -> dict[str, list[dict[str, Any]]]:
    """{sequence: its frames} of a category.

    Raises:
        ValueError: the file is damaged.
    """
    path = category / ANNOTATIONS
    try:
        frames = json.loads(gzip.decompress(path.read_bytes()))
        found: dict[str, list[dict[str, Any]]] = {}
        for frame in frames:
            found.setdefault(frame["sequence_name"], []).append(frame)
        return found
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}; download it again") from error


def _photograph(frame: dict[str, Any]) -> Photograph:
    height, width = frame["image"]["size"]
    view = frame["viewpoint"]
    half = np.array([width, height]) / 2
    scale = np.full(2, min(half)) if view["intrinsics_format"] == "ndc_isotropic" else half
    focal, centre = np.array(view["focal_length"]) * scale, half - np.array(view["principal_point"]) * scale
    mask = (frame.get("mask") or {}).get("path")
    return Photograph(
        image=_below(frame["image"]["path"]),
        size=(int(width), int(height)),
        focal=(float(focal[0]), float(focal[1])),
        centre=(float(centre[0]), float(centre[1])),
        pose=_pose(np.array(view["R"], np.float64), np.array(view["T"], np.float64)),
        mask=_below(mask) if mask else None,
    )


def _pose(R: NDArray[np.float64], T: NDArray[np.float64]) -> NDArray[np.float64]:
    """T_world_from_camera from PyTorch3D's x_camera = x_world R + T, of row vectors."""
    pose = np.eye(4)
    pose[:3, :3] = R @ AXES
    pose[:3, 3] = -R @ T
    return pose


def _below(path: str) -> str:
    """A path as the annotations give it, `category/sequence/images/...`, below the sequence."""
    return path.split("/", 2)[2]
