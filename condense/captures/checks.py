"""Which of the listed views are sound: every check that the formats share, each failure a Finding."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from condense.captures.capture import Finding
from condense.captures.folder import EscapeError, Folder, clean
from condense.captures.images import (
    EXIF_ORIENTATION,
    ImageError,
    decode,
    header,
    is_image,
    to_colour,
    to_labels,
)
from condense.captures.lens import Lens, LensError, undistorted
from condense.captures.listing import Listed, Listing

RIGID = 5e-3  # largest entry of R^T R - 1 that still counts as rounding
COMPANION = re.compile(r"[._](depth|normal|normals|mask|alpha|albedo|seg|semantic|instance|labels?)(_?\d+)?$")


@dataclass(frozen=True)
class Sound:
    """A view that passed: clean paths, a rigid pose [4, 4], whether alpha says anything."""

    image: str
    mask: str | None
    labels: str | None
    split: str | None
    lens: Lens
    pose: np.ndarray
    transparent: bool


class UnsoundError(ValueError):
    """A view that must be left out."""

    def __init__(self, file: str, problem: str, remedy: str):
        super().__init__(problem)
        self.finding = Finding(file, problem, remedy)


def sound_views(folder: Folder, listed: tuple[Listed, ...]) -> tuple[list[Sound], list[Finding]]:
    """The views that can be used, and what is wrong with the others.

    Every image is decoded to its end (JPEG at an eighth), which alone finds truncated files.

    Args:
        folder: of the capture.
        listed: what the camera files say.
    """
    views: list[Sound] = []
    findings: list[Finding] = []
    seen: dict[str, str] = {}  # path or digest of the content → image
    for entry in listed:
        try:
            views.append(_check(folder, entry, seen, findings))
        except UnsoundError as unsound:
            findings.append(unsound.finding)
    return views, findings


def _check(folder: Folder, entry: Listed, seen: dict[str, str], findings: list[Finding]) -> Sound:
    image, lens = _present(folder, entry.image, entry.source), entry.lens
    if image in seen:
        raise UnsoundError(image, "is listed twice; the first entry is used", f"delete one entry from {entry.source}")
    seen[image] = image
    pose = rigid(entry.pose, image, entry.source)
    if isinstance(lens, str):
        raise UnsoundError(image, f"{entry.source}: {lens}", "undistort the images to a pinhole camera, or mend it")
    with _blaming(image, entry.source):
        data = folder.read(image)
        first = seen.setdefault(hashlib.blake2b(data).hexdigest(), image)
        if first != image:
            raise UnsoundError(image, f"holds the same bytes as {first}", "keep one of the two photographs")
        findings += _check_size(image, data, lens, entry.source)
        undistorted(lens)
        transparent = _transparent(data)
    mask = _companion(folder, entry.mask, lens, entry.source, labels=False)
    labels = _companion(folder, entry.labels, lens, entry.source, labels=True)
    return Sound(image, mask, labels, entry.split, lens, pose, transparent)


@contextlib.contextmanager
def _blaming(file: str, source: str) -> Iterator[None]:
    """Turns what goes wrong with a file, or with its lens in `source`, into an UnsoundError that names it."""
    try:
        yield
    except ImageError as error:
        raise UnsoundError(file, str(error), "replace the file by a sound copy") from error
    except LensError as error:
        raise UnsoundError(file, f"{source}: {error}", "calibrate the camera again") from error
    except OSError as error:
        raise UnsoundError(file, f"cannot be read ({error})", "repair the file or its permissions") from error


def _present(folder: Folder, name: str, source: str) -> str:
    try:
        if folder.exists(name):
            return clean(name)
    except EscapeError as error:
        remedy = "copy the file into the folder and list it by a relative path"
        raise UnsoundError(name, f"{source} lists a path that leaves the capture's folder", remedy) from error
    except OSError as error:
        raise UnsoundError(name, f"cannot be looked up ({error})", "repair the file") from error
    remedy = f"put the file back, or delete its entry from {source}"
    raise UnsoundError(clean(name), f"is listed in {source} but absent", remedy)


def rigid(pose: np.ndarray | None, image: str, source: str) -> np.ndarray:
    """The pose, its rotation made exactly orthonormal.

    Raises:
        UnsoundError: it is missing, not finite, or not a rotation and translation.
    """
    if pose is None:
        raise UnsoundError(image, f"{source} gives it no 4 x 4 pose", "register the image, or delete its entry")
    if not np.isfinite(pose).all():
        raise UnsoundError(image, f"its pose in {source} is not finite (NaN or infinity)", "register the image again")
    R = pose[:3, :3]
    off = float(np.abs(R.T @ R - np.eye(3)).max())
    if off > RIGID or np.linalg.det(R) < 0 or not np.allclose(pose[3], [0, 0, 0, 1], atol=1e-6):
        problem = f"its pose in {source} is not rigid (scaled, sheared or mirrored)"
        raise UnsoundError(image, problem, "write a rotation and a translation; put any scale into the translations")
    u, _, vt = np.linalg.svd(R)
    exact = np.array(pose, dtype=np.float64)
    exact[:3, :3] = u @ vt
    return exact


def _check_size(image: str, data: bytes, lens: Lens, source: str) -> list[Finding]:
    """Whether an image fits its lens; a finding if it is marked as rotated."""
    size, orientation = header(data)
    sideways = orientation >= 5 and size[::-1] == lens.size and size != lens.size
    if size != lens.size and not sideways:
        problem = "is {} x {} pixels but its intrinsics in {} are for {} x {}".format(*size, source, *lens.size)
        raise UnsoundError(image, problem, "resize the image, or scale the intrinsics to it")
    if orientation == 1:
        return []
    done = "turned upright, as the intrinsics ask" if sideways else "used as stored, as the intrinsics ask"
    remedy = f"turn the pixels for good and delete EXIF tag {EXIF_ORIENTATION}"
    return [Finding(image, f"is marked as rotated (EXIF orientation {orientation}): {done}", remedy)]


def _transparent(data: bytes) -> bool:
    """Whether some pixel of an image is transparent."""
    image, _ = decode(data, enough=(1, 1))
    if image.mode == "RGB" and not image.info.get("transparency"):
        return False
    colour = to_colour(image)
    return colour.shape[2] == 4 and int(colour[:, :, 3].min()) < 255


def _companion(folder: Folder, name: str | None, lens: Lens, source: str, labels: bool) -> str | None:
    """The mask or label map of a view, checked like its image."""
    if name is None:
        return None
    file = _present(folder, name, source)
    with _blaming(file, source):
        data = folder.read(file)
        size, _ = header(data)
        decoded = decode(data)[0]
        if labels:
            to_labels(decoded)
    if size != lens.size:
        problem = "is {} x {} pixels but its image {} x {}".format(*size, *lens.size)
        raise UnsoundError(file, problem, "make it the size of its image")
    return file


def unlisted_images(folder: Folder, listing: Listing) -> list[Finding]:
    """Images beside the listed ones that no camera file mentions (depth maps and the like of listed ones aside)."""
    known = set()
    listed = [name for entry in listing.views for name in (entry.image, entry.mask, entry.labels) if name]
    for name in [*listed, *listing.unused]:
        with contextlib.suppress(EscapeError):
            known.add(clean(name))
    stems = {PurePosixPath(name).with_suffix("").as_posix() for name in known - {"."}}
    stems |= {stem.removesuffix(".color") for stem in stems}  # as RGB-D videos name their pairs
    stems |= known  # files that Blender lists without an extension
    findings = []
    for place in sorted({PurePosixPath(name).parent.as_posix() for name in known}):
        for name in folder.files(place):
            stem = PurePosixPath(name).with_suffix("").as_posix()
            companion = COMPANION.sub("", stem) in stems and COMPANION.search(stem)
            if is_image(name) and name not in known and not companion:
                remedy = "register the image and add it to the camera file, or delete it"
                findings.append(Finding(name, "is in the folder but no camera file lists it", remedy))
    return findings
