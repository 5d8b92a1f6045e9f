"""Renders of Objaverse (Deitke et al., CVPR 2023) and Objaverse-XL (Deitke et al., NeurIPS 2023): an object is a scene.

Two layouts, both found at any depth:

- `000.png` with `000.npy`, as allenai/objaverse-xl's `scripts/rendering/blender_script.py` writes them (beside a
  `metadata.json`, in the folder that its `.zip` unpacks to), and before it cvlab-columbia/zero123's
  `objaverse-rendering/scripts/blender_script.py`, which made `views_release/`.
- `00000/00000.png` with `00000/00000.json`: G-Objaverse (Qiu et al., CVPR 2024), below `campos_512_v4/` as its archives
  have it, or without that folder, as `dataset/gobjaverse/download_gobjaverse_280k.py` of modelscope/richdreamer has it.

Images have alpha, which the reader takes as masks. The longest side of an object is one unit of the world.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from condense.adapters.cameras import Photograph
from condense.captures.images import ImageError, header

# millimetres, as both scripts set `cam.data.lens` and `cam.data.sensor_width`; at 512 x 512 pixels that is 560 pixels
LENS, SENSOR = 35.0, 32.0
AXES = np.diag([1.0, -1.0, -1.0])  # from Blender's camera (y up, z backward) to OpenCV's
RENDER = re.compile(r"\d{3}\.(png|npy)")  # the scripts' `{i:03d}`
VIEW = re.compile(r"\d{5}")  # G-Objaverse's folders
SPARE = re.compile(r"\d{5}_\w+\.png")  # its maps of albedo, metalness and roughness
LOST = np.full((4, 4), np.nan)  # the pose of a view whose camera file is not there
AGAIN = "unpack, download or render the object again"


def find(root: Path) -> list[Path]:
    """The objects below `root`, in one walk over its files: millions lie there."""
    found = set()
    for place, _, files in os.walk(root):
        here = Path(place)
        renders = {name.rpartition(".")[2] for name in files if RENDER.fullmatch(name)}
        if "npy" in renders or ("png" in renders and "metadata.json" in files):
            found.add(here)
        elif here != root and VIEW.fullmatch(here.name) and f"{here.name}.json" in files:
            found.add(here.parent)
    return sorted(found)


def read(folder: Path) -> list[Photograph]:
    """The views of an object; one without a camera file has a pose of NaN.

    Raises:
        ValueError: a camera file is damaged, there is none at all, or no image can be read.
    """
    renders = sorted({path.stem for path in folder.iterdir() if RENDER.fullmatch(path.name)})
    return _read_renders(folder, renders) if renders else _read_g_objaverse(folder)


def spare(folder: Path) -> list[str]:
    """G-Objaverse's maps of an object, which are no photographs, as paths below `folder`."""
    found = (path for view in _views(folder) for path in (folder / view).iterdir() if SPARE.fullmatch(path.name))
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _read_renders(folder: Path, names: Sequence[str]) -> list[Photograph]:
    """The views `names` of the scripts; those without `.png` are listed too, so that `condense doctor` misses them."""
    if not any((folder / f"{name}.npy").is_file() for name in names):
        raise ValueError(f"{folder} holds images but no camera, such as {names[0]}.npy: {AGAIN}")
    images = [f"{name}.png" for name in names]
    width, height = size = _size(folder, images)
    focal = LENS / SENSOR * max(size)  # Blender's sensor fit AUTO: the sensor's width spans the longer side
    return [
        Photograph(image, size, (focal, focal), (width / 2, height / 2), _pose_of_matrix(folder / f"{name}.npy"))
        for name, image in zip(names, images, strict=True)
    ]


def _pose_of_matrix(path: Path) -> NDArray[np.float64]:
    """[4, 4] T_world_from_camera, OpenCV axes, of a `.npy`; NaN where there is no such file.

    The file holds [3, 4] (R | t) with x_camera = R x_world + t in Blender's camera axes: the scripts transpose the
    camera's rotation and turn no axis (`get_3x4_RT_matrix_from_blender`). In the example of objaverse-xl's
    `scripts/rendering/README.md`, the object's centre accordingly lies at z = -1.66.

    Raises:
        ValueError: it is no such array; the message names the file.
    """
    try:
        with path.open("rb") as file:
            # not np.load: that would also open archives
            matrix = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        return LOST
    except Exception as error:  # numpy's parser of headers raises many kinds
        raise ValueError(f"{path} is no sound .npy file of numbers ({error}): {AGAIN}") from error
    # 4 x 4 matrices of other scripts are refused: nothing says which way they map
    if matrix.shape != (3, 4) or matrix.dtype.kind != "f":
        shape = " x ".join(map(str, matrix.shape)) or "one"
        raise ValueError(f"{path} holds {shape} values of {matrix.dtype}, not a camera's 3 x 4 numbers: {AGAIN}")
    R, t = matrix[:, :3].astype(np.float64), matrix[:, 3]
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = R.T @ AXES, -R.T @ t
    return pose


def _read_g_objaverse(folder: Path) -> list[Photograph]:
    views = _views(folder)
    images = [f"{view}/{view}.png" for view in views]
    width, height = size = _size(folder, images)
    photographs = []
    for view, image in zip(views, images, strict=True):
        pose, (x, y) = _pose_and_angles(folder / view / f"{view}.json")
        focal = (width / 2 / math.tan(x / 2), height / 2 / math.tan(y / 2))
        photographs.append(Photograph(image, size, focal, (width / 2, height / 2), pose))
    return photographs


def _views(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if VIEW.fullmatch(path.name) and path.is_dir())


def _pose_and_angles(path: Path) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """[4, 4] T_world_from_camera, OpenCV axes, and the horizontal and vertical field of view in radians.

    The keys are those of openai/shap-e's `blender_script.py`: `origin` is the camera's place, `x`, `y`, `z` are its
    axes to the right, down and forward in the world (columns of Blender's matrix, two of them negated). richdreamer's
    `dataset/gobjaverse/depth_warp_example.py` projects with the same axes, and a focal length of 1422.222 at 1024
    pixels, which is Blender's default angle of 0.6911 radians.

    Raises:
        ValueError: something is missing or of another kind; the message names the file.
    """
    try:
        content = json.loads(path.read_text())
        axes = np.array([content[key] for key in ("x", "y", "z", "origin")], np.float64)
        angles = (float(content["x_fov"]), float(content["y_fov"]))
        if axes.shape != (4, 3):
            raise ValueError("x, y, z and origin are not 3 numbers each")
        if not all(0 < angle < math.pi for angle in angles):
            raise ValueError(f"fields of view of {angles} are no angles in radians")
    except FileNotFoundError:
        return LOST, (1.0, 1.0)  # any angle will do: without a pose the view is left out
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be used: {error!r}; {AGAIN}") from error
    pose = np.eye(4)
    pose[:3] = axes.T
    return pose, angles


def _size(folder: Path, images: Sequence[str]) -> tuple[int, int]:
    """Width and height of the first image that can be read: all are rendered alike, and the reader checks each.

    Raises:
        ValueError: none can.
    """
    for image in images:
        try:
            return header((folder / image).read_bytes())[0]
        except (OSError, ImageError):
            continue
    raise ValueError(f"none of the {len(images)} images of {folder} can be read, {images[0]} the first: {AGAIN}")
