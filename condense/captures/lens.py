"""Lenses as the files give them, and the pinhole cameras they become once distortion is undone.

The lens model and the choice of the pinhole camera are COLMAP's, through pycolmap: same focal lengths, the
largest image without blank pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from condense.colmap import pycolmap

MODELS = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV")

LARGEST_SIDE = 65_535  # pixels, that of a JPEG


class LensError(ValueError):
    """Intrinsics that cannot be used; the message says why."""


@dataclass(frozen=True)
class Lens:
    """The intrinsics of one image as listed.

    Args:
        model: a COLMAP camera model, one of MODELS.
        width, height: of the distorted image, in pixels.
        params: in COLMAP's order for the model, pixels, pixel centres at +0.5.

    Raises:
        LensError: the model is not supported, or a number is not finite or absurd.
    """

    model: str
    width: int
    height: int
    params: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise LensError(f"lens model {self.model} is not supported (known: {', '.join(MODELS)})")
        if not all(map(math.isfinite, self.params)):
            raise LensError("an intrinsic is not a finite number")
        if not (1 <= self.width <= LARGEST_SIDE and 1 <= self.height <= LARGEST_SIDE):
            raise LensError(f"an image of {self.width} x {self.height} pixels")
        try:
            camera = self.camera()
        except ValueError as error:
            raise LensError(f"{len(self.params)} intrinsics do not fit lens model {self.model}") from error
        if min(camera.focal_length_x, camera.focal_length_y) <= 0:
            raise LensError("a focal length is not positive")
        inside = 0 <= camera.principal_point_x <= self.width and 0 <= camera.principal_point_y <= self.height
        if not inside:
            raise LensError("the principal point lies outside the image")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the distorted image."""
        return self.width, self.height

    def camera(self) -> pycolmap.Camera:
        """The same lens for pycolmap."""
        camera = pycolmap.Camera.create_from_model_name(1, self.model, 1.0, self.width, self.height)
        camera.params = list(self.params)
        if not camera.verify_params():
            raise ValueError("wrong number of parameters")
        return camera

    @property
    def distorted(self) -> bool:
        """Whether there is anything to undo."""
        return not self.camera().is_undistorted()


@lru_cache(maxsize=64)
def undistorted(lens: Lens) -> tuple[np.ndarray, tuple[int, int]]:
    """K [3, 3] float64 and the (width, height) of the image once distortion is undone; not to be written to.

    Raises:
        LensError: the distortion is so strong that no sensible image is left: wrong coefficients.
    """
    camera = lens.camera()
    if lens.distorted:
        camera = pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), camera)
        ratios = (camera.width / lens.width, camera.height / lens.height)
        if min(ratios) < 0.3 or max(ratios) > 1.9:  # pycolmap stops at 0.2 and 2
            raise LensError("the distortion coefficients contradict the image size")
    K = np.asarray(camera.calibration_matrix())
    K.setflags(write=False)
    return K, (camera.width, camera.height)


@lru_cache(maxsize=4)
def undistortion_grid(lens: Lens, shrink: float, source: tuple[int, int]) -> Tensor:
    """Where each pixel of the undistorted image comes from, as `grid_sample` wants it (align_corners=False).

    Args:
        lens: of the full-size image.
        shrink: the image at hand is the full-size one reduced by this factor.
        source: width and height of the image at hand.

    Returns:
        [1, h, w, 2] float32, (x, y) with [-1, 1] across the image at hand.
    """
    K, (width, height) = undistorted(lens)
    w, h = math.ceil(width / shrink), math.ceil(height / shrink)
    x, y = np.meshgrid((np.arange(w) + 0.5) * shrink, (np.arange(h) + 0.5) * shrink)
    plane = np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], np.ones_like(x)], axis=-1)
    pixels = np.asarray(lens.camera().img_from_cam(plane.reshape(-1, 3))).reshape(1, h, w, 2)
    return torch.from_numpy(pixels * (2 / shrink / np.array(source)) - 1).float()


def lens_from_focal(
    focal: Sequence[float], centre: Sequence[float], size: tuple[int, int], distortion: Sequence[float] = ()
) -> Lens:
    """A lens in OpenCV's terms: focal (fx, fy), centre (cx, cy), distortion (k1, k2, p1, p2[, k3])."""
    params = (*focal, *centre)
    if not any(distortion):
        return Lens("PINHOLE", *size, params)
    if any(distortion[4:]):
        return Lens("FULL_OPENCV", *size, (*params, *distortion, 0.0, 0.0, 0.0))
    return Lens("OPENCV", *size, (*params, *distortion[:4]))
