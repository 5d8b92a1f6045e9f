"""Small captures in exact formats, for tests to read and to spoil."""

import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from condense.cameras import look_at, opencv_from_opengl

WIDTH, HEIGHT = 24, 16


def poses(n: int) -> torch.Tensor:
    angle = torch.arange(n, dtype=torch.float64) * 0.3
    return look_at(torch.stack([2 * angle.cos(), 2 * angle.sin(), angle * 0 + 1], -1), torch.zeros(3).double())


def picture(i: int, mode: str = "RGB") -> Image.Image:
    """A smooth picture that differs from view to view."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    channels = [x * 10, y * 15, x * 0 + i * 9, np.where(x < WIDTH // 2, 255, 0)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8), "RGBA").convert(mode)


def make(folder: Path, n: int = 9, mode: str = "RGB", end: str = ".png", **top) -> dict:
    """A small sound capture; returns what its transforms.json holds, for a test to spoil and write again."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    frames = []
    for i, pose in enumerate(opencv_from_opengl(poses(n)).tolist()):
        picture(i, mode).save(folder / f"images/{i:03d}{end}")
        frames.append({"file_path": f"images/{i:03d}{end}", "transform_matrix": pose})
    intrinsics = {"fl_x": 20.0, "fl_y": 21.0, "cx": 12.0, "cy": 8.0, "w": WIDTH, "h": HEIGHT}
    content = {**intrinsics, **top, "frames": frames}
    write(folder, content)
    return content


def write(folder: Path, content: dict, name: str = "transforms.json") -> None:
    (folder / name).write_text(json.dumps(content))


def zip_up(folder: Path, path: Path, top: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, top + file.relative_to(folder).as_posix())
    return path
