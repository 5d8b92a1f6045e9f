"""ScanNet (Dai et al., CVPR 2017): a scan is a scene, as `.sens` or as the frames that its own reader exports."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from condense.adapters.cameras import Photograph, matrix_file
from condense.captures.images import header
from condense.paths import write_atomically

VERSION = 4
COMPRESSION = {1: "png", 2: "jpg"}  # of colour; 0 is raw
INTRINSIC = "intrinsic/intrinsic_color.txt"


def find(root: Path) -> list[Path]:
    """The scans below `root`: folders with a `.sens` file, or with `color/` and `pose/`."""
    folders = {path.parent for path in root.rglob("*.sens")} | {path.parent for path in root.rglob("pose")}
    return sorted(folder for folder in folders if _exported(folder) or any(folder.glob("*.sens")))


def read(folder: Path) -> list[Photograph]:
    """The frames of a scan, by number; a `.sens` file is first exported to `color/`, `pose/` and `intrinsic/`.

    Frames that were lost in tracking have infinite poses, and keep them.

    Raises:
        ValueError: a file is damaged, or missing.
    """
    if not _exported(folder):
        export(next(iter(sorted(folder.glob("*.sens")))), folder)
    images = sorted((p for p in (folder / "color").iterdir() if p.stem.isdigit()), key=lambda path: int(path.stem))
    if not images:
        raise ValueError(f"{folder / 'color'} holds no frames: export them again")
    K = matrix_file(folder / INTRINSIC)
    size = header(images[0].read_bytes())[0]
    focal, centre = (K[0, 0], K[1, 1]), (K[0, 2] + 0.5, K[1, 2] + 0.5)  # there, pixel centres are at whole numbers
    poses = [matrix_file(folder / "pose" / f"{image.stem}.txt") for image in images]
    return [
        Photograph(f"color/{image.name}", size, focal, centre, pose) for image, pose in zip(images, poses, strict=True)
    ]


def _exported(folder: Path) -> bool:
    return (folder / "color").is_dir() and (folder / "pose").is_dir() and (folder / INTRINSIC).is_file()


def export(sens: Path, folder: Path) -> None:
    """Writes the colour frames and poses of a `.sens` file as ScanNet's own reader does; the intrinsics come last.

    Raises:
        ValueError: it is no such file, of another version, raw, or cut off.
    """
    with sens.open("rb") as file:
        try:
            (version,) = struct.unpack("<I", file.read(4))
            if version != VERSION:
                raise ValueError(f"version {version}, not {VERSION}")
            file.read(struct.unpack("<Q", file.read(8))[0])  # the sensor's name
            K = np.frombuffer(file.read(64), "<f4").reshape(4, 4)
            file.read(3 * 64)  # the colour camera's extrinsics, the depth camera's matrices
            kind, _, *_, frames = struct.unpack("<iiIIIIfQ", file.read(36))
            if kind not in COMPRESSION:
                raise ValueError(f"colour of kind {kind} is not supported")
            for name in ("color", "pose", "intrinsic"):
                (folder / name).mkdir(exist_ok=True)
            for number, (pose, data) in enumerate(tqdm(_frames(file, frames), total=frames, desc=sens.name)):
                image, text = folder / f"color/{number}.{COMPRESSION[kind]}", folder / f"pose/{number}.txt"
                write_atomically(image, partial(Path.write_bytes, data=data))
                write_atomically(text, partial(np.savetxt, X=pose, fmt="%.6f"))
        except (ValueError, struct.error) as error:
            raise ValueError(f"{sens} cannot be read: {error}; download it again") from error
    write_atomically(folder / INTRINSIC, lambda path: np.savetxt(path, K, fmt="%.6f"))


def _frames(file: BinaryIO, count: int) -> Iterator[tuple[np.ndarray, bytes]]:
    """Pose [4, 4] and encoded colour of each frame."""
    for number in range(count):
        pose = np.frombuffer(file.read(64), "<f4").reshape(4, 4)
        colour, depth = struct.unpack("<16xQQ", file.read(32))  # after two time stamps
        data = file.read(colour)
        if len(data) < colour or len(file.read(depth)) < depth:
            raise ValueError(f"it ends in frame {number} of {count}")
        yield pose, data
