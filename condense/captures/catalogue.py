"""The captures of a run, checked once: `00_captures` writes them down, every later notebook reads them back.

Nothing is checked again, which would take seconds a notebook, and what was set aside stays so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from condense.cameras import Cameras
from condense.captures.capture import Capture, Finding, Frame
from condense.captures.folder import Folder
from condense.captures.lens import Lens
from condense.paths import write_atomically


def save_captures(captures: Sequence[Capture], root: Path, path: Path) -> None:
    """Writes captures, all but their pixels, as JSON.

    Args:
        captures: checked ones, of folders at or below `root`.
        root: the folder they were read from; not part of the file, which holds paths relative to it.
        path: of the file.

    Raises:
        ValueError: a capture lies elsewhere.
    """
    text = json.dumps([_entry(capture, root) for capture in captures])
    write_atomically(path, lambda temporary: temporary.write_text(text))


def load_captures(path: Path, root: Path) -> list[Capture]:
    """The captures that `save_captures` wrote, their files below `root`.

    Raises:
        ValueError: the file is damaged, or not of this version of the package.
    """
    lenses: dict[str, Lens] = {}  # most captures have one: they are checked one by one as they are made
    try:
        return [_capture(entry, root, lenses) for entry in json.loads(path.read_text())]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): run 00_captures again") from error


def _entry(capture: Capture, root: Path) -> dict[str, Any]:
    cameras = capture.cameras
    return {
        "name": capture.name,
        "path": capture.folder.path.relative_to(root).as_posix(),
        "inside": capture.folder.inside,
        "frames": [asdict(frame) for frame in capture.frames],
        "K": cameras.K.tolist(),
        "T_world_from_camera": cameras.T_world_from_camera.tolist(),
        "sizes": cameras.sizes.tolist(),
        "lenses": [asdict(lens) for lens in capture.lenses],
        "findings": [asdict(finding) for finding in capture.findings],
        "meta": capture.meta,
    }


def _capture(entry: dict[str, Any], root: Path, lenses: dict[str, Lens]) -> Capture:
    return Capture(
        name=entry["name"],
        folder=Folder(root / entry["path"], entry["inside"]),
        frames=tuple(Frame(**frame) for frame in entry["frames"]),
        cameras=Cameras(
            K=torch.tensor(entry["K"]),
            T_world_from_camera=torch.tensor(entry["T_world_from_camera"]),
            sizes=torch.tensor(entry["sizes"]),
        ),
        lenses=tuple(_lens(values, lenses) for values in entry["lenses"]),
        findings=tuple(Finding(**finding) for finding in entry["findings"]),
        meta=entry["meta"],
    )


def _lens(values: dict[str, Any], known: dict[str, Lens]) -> Lens:
    key = repr(values)
    if key not in known:
        known[key] = Lens(**{**values, "params": tuple(values["params"])})
    return known[key]
