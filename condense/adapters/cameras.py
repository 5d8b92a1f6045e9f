"""What an adapter says of a photograph, and the `transforms.json` that it becomes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from condense.cameras import opencv_from_opengl
from condense.paths import write_atomically


@dataclass(frozen=True)
class Photograph:
    """One view of a scene.

    Args:
        image: its path below the scene's folder.
        size: width and height, in pixels.
        focal: (fx, fy) and
        centre: (cx, cy), pixels, pixel centres at +0.5.
        pose: [4, 4] T_world_from_camera, OpenCV axes; entries that are no finite numbers are kept as such.
        distortion: k1, k2, p1, p2, k3, as OpenCV has them; () for none.
        mask: a path, or None.
        split: "train" or "test", or None where the data set does not say.
    """

    image: str
    size: tuple[int, int]
    focal: tuple[float, float]
    centre: tuple[float, float]
    pose: NDArray[np.float64]
    distortion: tuple[float, ...] = ()
    mask: str | None = None
    split: str | None = None


def write_cameras(folder: Path, photographs: Sequence[Photograph], unused: Sequence[str] = ()) -> Path:
    """Writes `folder/transforms.json`, as nerfstudio has it.

    Args:
        folder: of the scene.
        photographs: its views.
        unused: images that are left out on purpose; `condense doctor` does not miss them.
    """
    content: dict[str, Any] = {"camera_model": "OPENCV", "frames": [_frame(each) for each in photographs]}
    if unused:
        content["unused_filenames"] = list(unused)
    path = folder / "transforms.json"
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(content, indent=1, allow_nan=False)))
    return path


def _frame(view: Photograph) -> dict[str, Any]:
    (width, height), (fx, fy), (cx, cy) = view.size, view.focal, view.centre
    pose = opencv_from_opengl(torch.from_numpy(np.asarray(view.pose, np.float64))).tolist()  # its own inverse
    frame: dict[str, Any] = {
        "file_path": view.image,
        "w": width,
        "h": height,
        "fl_x": fx,
        "fl_y": fy,
        "cx": cx,
        "cy": cy,
    }
    frame |= dict(zip(("k1", "k2", "p1", "p2", "k3"), view.distortion, strict=False))
    frame |= {"mask_path": view.mask} if view.mask else {}
    frame |= {"split": view.split} if view.split else {}
    # null is the only way to say in JSON that a number is none
    frame["transform_matrix"] = [[value if math.isfinite(value) else None for value in row] for row in pose]
    return frame


def matrix_file(path: Path, rows: int = 4) -> NDArray[np.float64]:
    """[rows, rows] numbers of a text file, infinities included.

    Raises:
        ValueError: it holds something else; the message names the file.
    """
    try:
        values = np.array(path.read_text().split(), np.float64)
        return values.reshape(rows, rows)
    except ValueError as error:
        raise ValueError(f"{path} does not hold {rows} x {rows} numbers: {error}") from None
