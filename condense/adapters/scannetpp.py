"""ScanNet++ (Yeshwanth et al., ICCV 2023): the undistorted DSLR photographs of a scene."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from condense.adapters.cameras import Photograph
from condense.cameras import opencv_from_opengl

CAMERAS = "nerfstudio/transforms_undistorted.json"
IMAGES, MASKS = "resized_undistorted_images", "resized_undistorted_masks"


def find(root: Path) -> list[Path]:
    """The `dslr` folders below the data set's root."""
    return sorted(path.parent.parent for path in root.rglob(CAMERAS))


def read(folder: Path) -> list[Photograph]:
    """The photographs of a scene, its test views as such; those that the data set marks as bad are left out.

    Raises:
        ValueError: the camera file is damaged, or of distorted images.
    """
    path = folder / CAMERAS
    try:
        content = json.loads(path.read_text())
        if content["camera_model"] != "PINHOLE":
            raise ValueError(f"camera model {content['camera_model']}, not PINHOLE")
        size, focal, centre = (
            tuple(content[key] for key in keys) for keys in (("w", "h"), ("fl_x", "fl_y"), ("cx", "cy"))
        )
        masked = (folder / MASKS).is_dir()
        views = []
        for split, frames in (("train", content["frames"]), ("test", content.get("test_frames", []))):
            for frame in (frame for frame in frames if not frame.get("is_bad")):
                pose = opencv_from_opengl(torch.tensor(frame["transform_matrix"], dtype=torch.float64)).numpy()
                mask = f"{MASKS}/{frame['mask_path']}" if masked and frame.get("mask_path") else None
                image = f"{IMAGES}/{frame['file_path']}"
                views.append(Photograph(image, size, focal, centre, pose, mask=mask, split=split))
        return views
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be used: {error!r}") from error
