"""Image files into arrays: decoding, undoing distortion, area resizing."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from condense.captures.lens import Lens, undistorted, undistortion_grid

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
EXIF_ORIENTATION = 274


class ImageError(ValueError):
    """A file that cannot be decoded as an image; the message says why."""


def is_image(name: str) -> bool:
    """Whether a file name ends like an image and is not hidden."""
    return name.lower().endswith(ENDINGS) and not name.rsplit("/", 1)[-1].startswith(".")


def header(data: bytes) -> tuple[tuple[int, int], int]:
    """Width and height as stored, and the EXIF orientation (1 = upright), without decoding the pixels.

    Raises:
        ImageError: no image is recognised.
    """
    image = _open(data)
    if image.format == "PNG" and "exif" not in image.info:
        return image.size, 1  # getexif would decode the pixels to look behind them
    try:
        return image.size, int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # damaged EXIF says nothing about the pixels
        return image.size, 1


def decode(
    data: bytes, size: tuple[int, int] | None = None, enough: tuple[int, int] | None = None
) -> tuple[Image.Image, float]:
    """Decodes an image to the last byte.

    Args:
        data: the file.
        size: the (width, height) that the camera belongs to. An image that is stored on its side (EXIF) is
            turned only if this says so, since camera files as a rule speak of the pixels as stored.
        enough: a JPEG may be decoded at a half, quarter or eighth if at least this large then (fast).

    Returns:
        the image, and the factor by which it was reduced.

    Raises:
        ImageError: unreadable, truncated, or of a kind that is not supported.
    """
    image, shrink = _open(data), 1.0
    stored = image.size
    try:
        drafted = image.draft(None, enough) if enough else None
        if drafted:
            shrink = stored[0] / drafted[1][2]
        image.load()
    except Exception as error:  # Pillow's decoders raise many kinds
        raise ImageError(f"cannot be decoded: {error}") from error
    if size is not None and stored != size:
        image = ImageOps.exif_transpose(image)
    return image, shrink


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise ImageError("is not an image that Pillow knows") from error
    except Exception as error:  # decompression bombs, broken headers
        raise ImageError(f"cannot be opened: {error}") from error


def to_colour(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3] RGB, or [H, W, 4] with straight alpha; grey is repeated, 16 bits become 8.

    Raises:
        ImageError: a floating-point image, whose range nobody can know.
    """
    if image.mode == "F":
        raise ImageError("holds floating-point values: save it with 8 bits a channel")
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image).astype(np.int64) // 257, 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    alpha = "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La")
    return np.array(image.convert("RGBA" if alpha else "RGB"))  # a copy that may be written to: torch wants that


def read_photograph(path: Path, longest: int) -> np.ndarray:
    """Any single photograph as uint8 [H, W, 3]: upright by its EXIF, transparency over white, grey repeated.

    Args:
        path: of the file.
        longest: pixels of the longer side of the result; a smaller photograph keeps its size.

    Raises:
        ImageError: it is absent, damaged or of a kind that is not supported; the message names the file.
    """
    try:
        image = ImageOps.exif_transpose(decode(path.read_bytes())[0])
        colour = to_colour(image).astype(np.float32)
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}") from error
    except ImageError as error:
        raise ImageError(f"{path} {error}") from error
    if colour.shape[2] == 4:
        alpha = colour[:, :, 3:]
        colour = (colour[:, :, :3] * alpha + 255 * (255 - alpha)) / np.float32(255)
    height, width = colour.shape[:2]
    scale = min(1.0, longest / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return area_resize(colour, size, (width, height)).round().astype(np.uint8)


def to_mask(image: Image.Image) -> np.ndarray:
    """float32 [H, W] in [0, 1]: the alpha channel if there is one, else brightness (0 and 1 count as black and
    white)."""
    colour = to_colour(image)
    grey = colour[:, :, 3] if colour.shape[2] == 4 else colour[:, :, :3].max(axis=2)
    return grey.astype(np.float32) / (255 if grey.max(initial=0) > 1 else 1)


def to_labels(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3]: palette index or grey value in channel 0; a second channel (LA) in channel 1; or RGB.

    Raises:
        ImageError: more than 8 bits a channel.
    """
    if image.mode not in ("1", "L", "P", "LA", "RGB", "RGBA"):
        raise ImageError(f"is a label map of mode {image.mode}: save it with 8 bits a channel")
    values = np.asarray(image).astype(np.uint8)
    values = values.reshape(*values.shape[:2], -1)[:, :, :3]
    return np.pad(values, ((0, 0), (0, 0), (0, 3 - values.shape[2])))


@lru_cache(maxsize=16)
def _overlap(n: int, extent: float, m: int) -> scipy.sparse.csr_matrix:
    """[m, n]: row i averages the stretch [i, i + 1] * extent / m of a line of n unit pixels."""
    edges = np.linspace(0, extent, m + 1)
    left = np.arange(n)
    overlap = np.minimum(edges[1:, None], left + 1) - np.maximum(edges[:-1, None], left)
    overlap = np.clip(overlap, 0, None)
    return scipy.sparse.csr_matrix((overlap / overlap.sum(1, keepdims=True)).astype(np.float32))


def area_resize(image: np.ndarray, size: tuple[int, int], extent: tuple[float, float]) -> np.ndarray:
    """Resamples by exact area averages.

    Args:
        image: [H, W, C] float32.
        size: (width, height) of the result.
        extent: (width, height) of the part of `image`, from its top left, that the result shows.

    Returns:
        [height, width, C] float32.
    """
    (H, W, C), (w, h) = image.shape, size
    rows = (_overlap(H, extent[1], h) @ image.reshape(H, W * C)).reshape(h, W, C)
    columns = _overlap(W, extent[0], w) @ rows.transpose(1, 0, 2).reshape(W, h * C)
    return np.ascontiguousarray(columns.reshape(w, h, C).transpose(1, 0, 2))


def resample(values: np.ndarray, lens: Lens, size: tuple[int, int], shrink: float) -> np.ndarray:
    """Undoes the lens's distortion and shrinks to `size`: bilinear, then by area.

    Args:
        values: [H, W, C] float32, the distorted image, reduced by `shrink` against the lens.
        lens: of the full-size image.
        size: (width, height) of the result, at most the undistorted image's.
        shrink: see `values`.

    Returns:
        [height, width, C] float32.
    """
    _, (width, height) = undistorted(lens)
    if lens.distorted:
        grid = undistortion_grid(lens, shrink, (values.shape[1], values.shape[0]))
        image = torch.from_numpy(values).permute(2, 0, 1)[None]
        straight = torch.nn.functional.grid_sample(image, grid, padding_mode="border", align_corners=False)
        values = straight[0].permute(1, 2, 0).contiguous().numpy()
    extent = (width / shrink, height / shrink)
    return values if extent == size else area_resize(values, size, extent)


def resample_nearest(labels: np.ndarray, lens: Lens, size: tuple[int, int]) -> np.ndarray:
    """As `resample`, for uint8 [H, W, C] labels at full size: each pixel takes the label at its centre."""
    _, (width, height) = undistorted(lens)
    x = ((np.arange(size[0]) + 0.5) * width / size[0]).astype(np.int64)
    y = ((np.arange(size[1]) + 0.5) * height / size[1]).astype(np.int64)
    if not lens.distorted:
        return labels[y[:, None], x[None, :]]
    grid = undistortion_grid(lens, 1.0, (labels.shape[1], labels.shape[0]))[0].numpy()[y[:, None], x[None, :]]
    source = np.floor((grid + 1) / 2 * np.array([labels.shape[1], labels.shape[0]])).astype(np.int64)
    source = np.clip(source, 0, np.array([labels.shape[1], labels.shape[0]]) - 1)
    return labels[source[..., 1], source[..., 0]]
