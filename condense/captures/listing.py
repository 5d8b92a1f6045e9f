"""What a camera file says, before anyone has looked whether it is true; shared by the readers of formats."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from condense.captures.capture import Finding
from condense.captures.folder import EscapeError, Folder
from condense.captures.images import ENDINGS, ImageError, header
from condense.captures.lens import Lens


@dataclass(frozen=True)
class Listed:
    """One view as a camera file lists it.

    Args:
        source: the camera file.
        image: its path as listed (an extension added where it was left out).
        lens: its intrinsics, or the reason why they cannot be used.
        pose: [4, 4] float64 T_world_from_camera, OpenCV axes, unchecked; None where it is missing.
        mask, labels: paths as listed.
        split: "train", "test", "val", or None where the file does not say.
    """

    source: str
    image: str
    lens: Lens | str
    pose: np.ndarray | None
    mask: str | None = None
    labels: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Listing:
    """All the views that the camera files of a capture list, and what was wrong with those files.

    `unused` are images that the files leave out on purpose.
    """

    views: tuple[Listed, ...]
    findings: tuple[Finding, ...] = ()
    unused: tuple[str, ...] = ()


def find_image(folder: Folder, name: str) -> str:
    """`name`, or with the extension that Blender files leave out; as given where no such file exists."""
    try:
        return next((name + end for end in ("", *ENDINGS) if folder.exists(name + end)), name)
    except (EscapeError, OSError):
        return name


def stored_size(folder: Folder, name: str) -> tuple[int, int] | None:
    """Width and height of an image as stored; None where it cannot be read."""
    try:
        return header(folder.read(name))[0]
    except (EscapeError, OSError, ImageError):
        return None
