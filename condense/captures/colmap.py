"""Reads COLMAP models, text or binary, through pycolmap."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from condense.captures.capture import Finding
from condense.captures.folder import EscapeError, Folder
from condense.captures.lens import Lens, LensError
from condense.captures.listing import Listed, Listing
from condense.colmap import pycolmap

PLACES = (".", "sparse", "sparse/0", "colmap/sparse/0")
PARTS = ("cameras", "images", "points3D", "frames", "rigs")


def find_colmap(folder: Folder) -> tuple[str, str] | None:
    """Where a COLMAP model lies (its folder and its ending, ".bin" or ".txt"); None if there is none."""
    for place in PLACES:
        for ending in (".bin", ".txt"):
            if all(folder.exists(f"{place}/{part}{ending}") for part in ("cameras", "images")):
                return place, ending
    return None


def read_colmap(folder: Folder) -> Listing:
    """What the COLMAP model of a folder lists; a model that cannot be read becomes a finding."""
    found = find_colmap(folder)
    if found is None:
        return Listing(())
    place, ending = found
    source = f"{place}/images{ending}".removeprefix("./")
    try:
        model, unposed = _load(folder, place, ending)
    except (OSError, ValueError, RuntimeError, IndexError) as error:
        problem = f"the COLMAP model cannot be read ({error})"
        return Listing((), (Finding(source, problem, "export it again with `colmap model_converter`"),))
    views = []
    for index in sorted(model.images):
        image = model.images[index]
        pose = np.eye(4)
        if image.has_pose:
            pose[:3] = image.cam_from_world().inverse().matrix()
        listed = Listed(source, _locate(folder, image.name), _lens(image.camera), pose if image.has_pose else None)
        views.append(listed)
    for name in unposed:
        views.append(Listed(source, _locate(folder, name), "its pose is no number", np.full((4, 4), np.nan)))
    return Listing(tuple(views))


def _locate(folder: Folder, name: str) -> str:
    """An image of the model: below `images` as COLMAP's own tools lay it out, or below the capture itself."""
    below = f"images/{name}"
    try:
        return name if folder.exists(name) and not folder.exists(below) else below
    except EscapeError:
        return name  # refused, with a finding, by the checks that every format shares


def _lens(camera: pycolmap.Camera | None) -> Lens | str:
    if camera is None:
        return "its camera is absent from the model"
    try:
        return Lens(camera.model_name, camera.width, camera.height, tuple(map(float, camera.params)))
    except LensError as error:
        return str(error)


def _load(folder: Folder, place: str, ending: str) -> tuple[pycolmap.Reconstruction, list[str]]:
    """The model, read from a copy (a .zip has no files to point at), and the images whose pose is no number."""
    unposed: list[str] = []
    with tempfile.TemporaryDirectory() as copy:
        for part in PARTS:
            file = f"{place}/{part}{ending}"
            if folder.exists(file):
                content = folder.read(file)
                if part == "images" and ending == ".txt":
                    content, unposed = _without_nan(content)
                Path(copy, part + ending).write_bytes(content)
            elif part == "points3D":  # not needed here, but pycolmap insists
                Path(copy, part + ending).write_bytes(b"" if ending == ".txt" else bytes(8))
        return pycolmap.Reconstruction(copy), unposed


def _without_nan(content: bytes) -> tuple[bytes, list[str]]:
    """`images.txt` without the images whose pose is not finite (pycolmap refuses the whole file), and those."""
    kept: list[str] = []
    unposed: list[str] = []
    lines = iter(content.decode().splitlines())
    for line in lines:
        words = line.split(maxsplit=9)
        if line.startswith("#") or not words:
            kept.append(line)
            continue
        points = next(lines, "")
        try:
            sound = bool(np.isfinite(np.array(words[1:8], dtype=np.float64)).all())
        except ValueError:
            sound = True  # not ours to judge: pycolmap names the line
        if sound or len(words) < 10:
            kept += [line, points]
        else:
            unposed.append(words[9])
    return ("\n".join(kept) + "\n").encode(), unposed
