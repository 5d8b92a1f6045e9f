"""Reads `transforms.json` as nerfstudio, instant-ngp and Blender (NeRF synthetic) write it.

Poses are `transform_matrix` [4, 4], world from camera, OpenGL axes. Intrinsics stand at the top or in each
frame: `fl_x fl_y cx cy w h`, or `camera_angle_x`; distortion `k1 k2 k3 p1 p2`. Ours on top of theirs: a frame
may carry `labels_path`, and `unused_filenames` lists images that are left out on purpose. Where `images/` is absent,
nerfstudio's reduced copies stand in.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import numpy as np
import torch

from condense.cameras import opencv_from_opengl
from condense.captures.capture import Finding
from condense.captures.folder import EscapeError, Folder, clean
from condense.captures.lens import Lens, LensError, lens_from_focal
from condense.captures.listing import Listed, Listing, find_image, stored_size

PINHOLE_LIKE = ("", "OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")
SHARED_KEYS = "camera_angle_x camera_angle_y fl_x fl_y cx cy w h k1 k2 k3 k4 p1 p2 camera_model is_fisheye"
FILES = ("transforms_train.json", "transforms_test.json", "transforms_val.json", "transforms.json")


def find_transforms(folder: Folder) -> list[str]:
    """The transforms files of a capture: the split ones if there is one for training, else `transforms.json`.

    The validation file counts only where there is no test file.
    """
    train, test, val, single = (name if folder.exists(name) else None for name in FILES)
    found = [train, test or val] if train else [single]
    return [name for name in found if name]


def read_transforms(folder: Folder) -> Listing:
    """What the transforms files of a folder list; a file that cannot be read becomes a finding."""
    views: list[Listed] = []
    findings: list[Finding] = []
    unused: list[str] = []
    for file in find_transforms(folder):
        try:
            content = json.loads(folder.read(file).decode("utf-8-sig"))
            frames = content["frames"]
            if not isinstance(frames, list):
                raise TypeError("'frames' is not a list")
        except (OSError, ValueError, RecursionError) as error:
            findings.append(Finding(file, f"is not JSON ({error})", "write the file again; it may be cut off"))
            continue
        except (KeyError, TypeError):
            findings.append(Finding(file, "has no list 'frames'", "write it as nerfstudio does"))
            continue
        split = file.removesuffix(".json").removeprefix("transforms").removeprefix("_") or None
        found, problems = _read_frames(folder, file, content, frames, split)
        views += found
        findings += problems
        unused += _names(content.get("unused_filenames"))
    return Listing(tuple(views), tuple(findings), tuple(unused))


def _read_frames(
    folder: Folder, file: str, content: dict[str, Any], frames: list[Any], split: str | None
) -> tuple[list[Listed], list[Finding]]:
    views, findings = [], []
    splits = _listed_splits(content)
    shared = {key: content[key] for key in SHARED_KEYS.split() if key in content}
    usable = [frame for frame in frames if isinstance(frame, dict) and isinstance(frame.get("file_path"), str)]
    if len(usable) < len(frames):
        problem = f"{len(frames) - len(usable)} frames have no file_path"
        findings.append(Finding(file, problem, "name an image in every frame, or delete it"))
    images = [find_image(folder, frame["file_path"]) for frame in usable]
    common = None if "w" in shared and "h" in shared else _common_size(folder, images)
    for frame, image in zip(usable, images, strict=True):
        own = any(key in frame for key in ("fl_x", "camera_angle_x"))
        size = stored_size(folder, image) if common and own else common
        values = {**shared, **frame}
        copy = reduced_copy(folder, image)
        if copy:
            values = _reduced(values, stored_size(folder, copy))
        views.append(
            Listed(
                source=file,
                image=copy or image,
                mask=_path(frame.get("mask_path")),
                labels=_path(frame.get("labels_path")),
                split=split or splits.get(_normal(frame["file_path"])) or _path(frame.get("split")),
                lens=_lens(values, size),
                pose=_pose(frame.get("transform_matrix")),
            )
        )
    return views, findings


def reduced_copy(folder: Folder, image: str) -> str | None:
    """The copy in `images_2`, `images_4` or `images_8` of an image that `images` lacks, as nerfstudio names them.

    Some data sets, DL3DV for one, are downloaded so.
    """
    place, _, name = image.rpartition("/")
    try:
        if not place or folder.exists(image):
            return None
        return next((copy for by in (2, 4, 8) if folder.exists(copy := f"{place}_{by}/{name}")), None)
    except (EscapeError, OSError):
        return None


def _reduced(values: dict[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    """Intrinsics for a copy of another size; those that cannot be scaled stay, and are found out later."""
    try:
        ratios = {axis: side / float(values[axis]) for axis, side in zip("wh", size or (), strict=False)}
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return values
    axes = {"w": "w", "fl_x": "w", "cx": "w", "h": "h", "fl_y": "h", "cy": "h"}
    scaled = dict(values)
    for key, axis in axes.items():
        if isinstance(values.get(key), int | float) and axis in ratios:
            scaled[key] = values[key] * ratios[axis]
    return scaled


def _names(value: Any) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _path(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _normal(path: str) -> str:
    try:
        return clean(path)
    except ValueError:
        return path


def _listed_splits(content: dict[str, Any]) -> dict[str, str]:
    """nerfstudio's `train_filenames`, `test_filenames`, `val_filenames`: file path → split."""
    lists = {split: content.get(f"{split}_filenames") for split in ("val", "test", "train")}
    return {_normal(name): split for split, names in lists.items() for name in _names(names)}


def _common_size(folder: Folder, images: list[str]) -> tuple[int, int] | None:
    """The size that most images have: what intrinsics without `w` and `h` speak of."""
    sizes = Counter(size for image in images if (size := stored_size(folder, image)))
    return sizes.most_common(1)[0][0] if sizes else None


def _lens(values: dict[str, Any], size: tuple[int, int] | None) -> Lens | str:
    """The lens of one frame; or, as text, why there is none."""
    model = str(values.get("camera_model") or "").upper()
    if model not in PINHOLE_LIKE or values.get("is_fisheye"):
        return f"camera model {model or 'fisheye'} is not supported"
    try:
        width, height = (round(float(values.get(key, side))) for key, side in zip("wh", size or (1, 1), strict=True))
        if "fl_x" in values:
            fx = float(values["fl_x"])
        elif "camera_angle_x" in values:
            fx = width / 2 / math.tan(float(values["camera_angle_x"]) / 2)
        else:
            return "there is no focal length (fl_x or camera_angle_x)"
        fy = float(values.get("fl_y", fx))
        if "fl_x" not in values and "fl_y" not in values and "camera_angle_y" in values:
            fy = height / 2 / math.tan(float(values["camera_angle_y"]) / 2)
        centre = (float(values.get("cx", width / 2)), float(values.get("cy", height / 2)))
        distortion = [float(values.get(key, 0)) for key in ("k1", "k2", "p1", "p2", "k3", "k4")]
        if distortion[5]:
            return "distortion by k4 is not supported"
        return lens_from_focal((fx, fy), centre, (width, height), distortion[:5])
    except LensError as error:
        return str(error)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        return f"the intrinsics are not numbers ({error})"


def _pose(matrix: Any) -> np.ndarray | None:
    try:
        pose = np.array(matrix, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    if pose.shape == (3, 4):
        pose = np.vstack([pose, [0, 0, 0, 1]])
    return opencv_from_opengl(torch.from_numpy(pose)).numpy() if pose.shape == (4, 4) else None
