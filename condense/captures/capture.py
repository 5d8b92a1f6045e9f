"""Captures: posed views of one object or room, what is wrong with them, and loading their images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from condense.cameras import Cameras
from condense.captures.folder import Folder
from condense.captures.images import (
    ImageError,
    decode,
    resample,
    resample_nearest,
    to_colour,
    to_labels,
    to_mask,
)
from condense.captures.lens import Lens, undistorted


@dataclass(frozen=True)
class Finding:
    """One entry of a capture's data-quality list."""

    file: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}. Remedy: {self.remedy}."


class CaptureError(ValueError):
    """A capture that cannot be used; `findings` say why, the decisive one last."""

    def __init__(self, name: str, findings: Sequence[Finding]):
        super().__init__(f"capture {name} cannot be used:\n" + "\n".join(f"  {finding}" for finding in findings))
        self.name = name
        self.findings = tuple(findings)

    @property
    def reason(self) -> str:
        """The decisive finding in one line."""
        return str(self.findings[-1])

    def __reduce__(self) -> tuple[Any, ...]:  # so that it survives the way out of a worker process
        return CaptureError, (self.name, self.findings)


@dataclass(frozen=True)
class Frame:
    """One view: paths relative to the capture's folder."""

    name: str
    image: str
    mask: str | None  # the image itself where its alpha channel is the mask
    labels: str | None
    split: str  # "train" or "test"


@dataclass(frozen=True)
class Views:
    """Decoded views of a capture.

    Args:
        names: of the frames.
        images: uint8 [H, W, 3] RGB each, undistorted; colour is not multiplied by alpha.
        masks: float32 [H, W] in [0, 1] each, 1 = object; None if the capture has none.
        labels: uint8 [H, W, 3] each; None if the capture has none.
        cameras: of these images.
        blended: whether the background's colour is mixed into the images where 0 < mask < 1 (photographs with
            masks), or not (images with an alpha channel).
    """

    names: tuple[str, ...]
    images: list[np.ndarray]
    masks: list[np.ndarray] | None
    labels: list[np.ndarray] | None
    cameras: Cameras
    blended: bool = False


@dataclass(frozen=True)
class Capture:
    """The sound views of one capture.

    Args:
        name: unique within a set: the path below the set's folder.
        folder: where the files are.
        frames: sorted by name.
        cameras: one per frame, OpenCV axes, of the undistorted images at full size.
        lenses: one per frame, of the images as stored.
        findings: the data-quality list.
        meta: what `meta.json` holds, else {}.
    """

    name: str
    folder: Folder
    frames: tuple[Frame, ...]
    cameras: Cameras
    lenses: tuple[Lens, ...]
    findings: tuple[Finding, ...]
    meta: dict[str, Any] = field(default_factory=dict)

    def views(self, split: str) -> list[int]:
        """The indices of the frames of a split, "train" or "test".

        Raises:
            ValueError: another split.
        """
        if split not in ("train", "test"):
            raise ValueError(f"split is {split!r}, not 'train' or 'test'")
        return [i for i, frame in enumerate(self.frames) if frame.split == split]

    def load(self, views: Sequence[int] | None = None, max_side: int | None = None) -> Views:
        """Decodes views, undoes lens distortion, and shrinks.

        Args:
            views: indices of frames; None for all.
            max_side: the longer side gets at most so many pixels (area averages); None or 0 keeps the size.

        Raises:
            CaptureError: an image cannot be decoded: its file has changed since the capture was read.
        """
        chosen = list(range(len(self.frames))) if views is None else list(views)
        cameras = self.cameras[chosen]
        sizes = [shrunken(self.cameras.sizes[i].tolist(), max_side) for i in chosen]
        loaded = [self._load(i, size) for i, size in zip(chosen, sizes, strict=True)]
        masks = [mask for _, mask, _ in loaded if mask is not None]
        labels = [label for _, _, label in loaded if label is not None]
        return Views(
            names=tuple(self.frames[i].name for i in chosen),
            images=[image for image, _, _ in loaded],
            masks=masks or None,
            labels=labels or None,
            cameras=cameras.resized(torch.tensor(sizes).reshape(-1, 2)),
            blended=any(self.frames[i].mask not in (None, self.frames[i].image) for i in chosen),
        )

    def _load(self, view: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        frame, lens = self.frames[view], self.lenses[view]
        file = frame.image
        try:
            image, mask = _load_image(self.folder.read(file), lens, size, alpha=frame.mask == frame.image)
            if frame.mask and frame.mask != frame.image:
                file = frame.mask
                stored = to_mask(decode(self.folder.read(file), lens.size)[0])
                mask = np.clip(resample(stored[:, :, None], lens, size, 1.0)[:, :, 0], 0, 1)
            labels = None
            if frame.labels:
                file = frame.labels
                labels = resample_nearest(to_labels(decode(self.folder.read(file), lens.size)[0]), lens, size)
        except (ImageError, OSError) as error:
            raise CaptureError(self.name, [Finding(file, str(error), "replace the file")]) from error
        return image, mask, labels


def shrunken(size: Sequence[int], max_side: int | None) -> tuple[int, int]:
    """`size` (width, height) scaled down so that the longer side has at most `max_side` pixels."""
    factor = min(1.0, max_side / max(size)) if max_side else 1.0
    width, height = (max(1, round(side * factor)) for side in size)
    return width, height


def _load_image(data: bytes, lens: Lens, size: tuple[int, int], alpha: bool) -> tuple[np.ndarray, np.ndarray | None]:
    full = undistorted(lens)[1]
    enough = None
    if max(size) < max(full):  # a margin, so that undistortion does not blur the result
        enough = (round(1.75 * size[0]), round(1.75 * size[1]))
    image, shrink = decode(data, lens.size, enough)
    colour = to_colour(image)
    if size == lens.size and not lens.distorted:
        mask = colour[:, :, 3].astype(np.float32) / 255 if alpha and colour.shape[2] == 4 else None
        return np.ascontiguousarray(colour[:, :, :3]), mask
    if not alpha or colour.shape[2] == 3:
        return _to_uint8(resample(colour[:, :, :3].astype(np.float32), lens, size, shrink)), None
    values = colour.astype(np.float32)
    values[:, :, :3] *= values[:, :, 3:] / 255  # averages are right for premultiplied colour
    values = resample(values, lens, size, shrink)
    opacity = values[:, :, 3] / 255
    straight = values[:, :, :3] / np.maximum(opacity, 1e-6)[:, :, None]
    return _to_uint8(straight), np.clip(opacity, 0, 1)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
