"""Writes captures as nerfstudio `transforms.json`, which other tools open too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from condense.cameras import Cameras, opencv_from_opengl
from condense.captures.capture import Capture, Frame
from condense.paths import write_atomically


def transforms_content(cameras: Cameras, frames: Sequence[Frame]) -> dict[str, Any]:
    """What `transforms.json` holds: OpenGL axes; intrinsics at the top where all views share them."""
    lenses = []
    for K, (width, height) in zip(cameras.K.tolist(), cameras.sizes.tolist(), strict=True):
        focal = {"fl_x": K[0][0], "fl_y": K[1][1], "cx": K[0][2], "cy": K[1][2]}
        lenses.append({**focal, "w": width, "h": height})
    shared = all(lens == lenses[0] for lens in lenses)
    poses = opencv_from_opengl(cameras.T_world_from_camera).tolist()
    entries = []
    for frame, lens, pose in zip(frames, lenses, poses, strict=True):
        entry: dict[str, Any] = {"file_path": frame.image, "split": frame.split}
        if frame.mask and frame.mask != frame.image:
            entry["mask_path"] = frame.mask
        if frame.labels:
            entry["labels_path"] = frame.labels
        entries.append({**entry, **({} if shared else lens), "transform_matrix": pose})
    return {"camera_model": "PINHOLE", **(lenses[0] if shared else {}), "frames": entries}


def write_capture(capture: Capture, folder: Path, max_side: int | None = None) -> None:
    """Writes a capture's undistorted images, masks, label maps, `transforms.json` and `meta.json`.

    Args:
        capture: to be written.
        folder: made if absent.
        max_side: as in `Capture.load`.
    """
    frames, sizes = [], []
    for i, frame in enumerate(capture.frames):
        views = capture.load([i], max_side)
        sizes.append(views.cameras.sizes[0])
        pictures = {"images": views.images[0]}
        if views.masks:
            pictures["masks"] = np.rint(views.masks[0] * 255).astype(np.uint8)
        if views.labels:
            pictures["labels"] = views.labels[0]
        paths = {kind: f"{kind}/{i:04d}.png" for kind in pictures}
        for kind, pixels in pictures.items():
            write_atomically(folder / paths[kind], Image.fromarray(pixels).save)
        image = paths["images"]
        frames.append(Frame(image, image, paths.get("masks"), paths.get("labels"), frame.split))
    content = transforms_content(capture.cameras.resized(torch.stack(sizes)), frames)
    _write_json(folder / "transforms.json", content)
    if capture.meta:
        _write_json(folder / "meta.json", capture.meta)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1)
    write_atomically(path, lambda temporary: temporary.write_text(text))
