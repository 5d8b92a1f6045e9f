"""Structure from motion on photographs of a corner with texture, whose cameras are known."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import map_coordinates, zoom

from condense.captures.pose import pose_folder
from condense.captures.reader import read_capture
from condense.cli import main

WIDTH, HEIGHT, FOCAL = 320, 240, 300.0
WALLS = (np.eye(3)[2], np.eye(3)[1])  # normals of two walls through the origin
VIEWS = 7


@pytest.fixture(scope="module")
def textures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    octaves = [zoom(rng.uniform(size=(n, n)), 256 / n, order=1) for n in (16, 64, 256)]
    return [255 * sum(np.roll(octave, 37 * k, axis=1) for octave in octaves) / 3 for k in range(2)]


def camera(number: int) -> np.ndarray:
    """T_world_from_camera that looks at the corner from a curved path."""
    angle = np.radians(20 + 50 * number / (VIEWS - 1))
    centre = 3.0 * np.array([0.6 * np.cos(2 * angle), np.cos(angle), np.sin(angle)])
    forward = np.array([0, 0.4, 0.4]) - centre
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [1.0, 0, 0])
    right /= np.linalg.norm(right)
    T = np.eye(4)
    T[:3] = np.stack([right, np.cross(forward, right), forward, centre], axis=1)
    return T


def photograph(T: np.ndarray, textures: list[np.ndarray]) -> Image.Image:
    """The corner z = 0, y = 0 as the camera sees it: the nearer wall along each ray."""
    v, u = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    rays = np.stack([(u - WIDTH / 2) / FOCAL, (v - HEIGHT / 2) / FOCAL, np.ones_like(u)], axis=-1) @ T[:3, :3].T
    grey, nearest = np.zeros(u.shape), np.full(u.shape, np.inf)
    for normal, texture in zip(WALLS, textures, strict=True):
        with np.errstate(divide="ignore"):
            distance = -(T[:3, 3] @ normal) / (rays @ normal)
        distance[distance <= 0] = np.inf
        point = T[:3, 3] + np.where(np.isfinite(distance), distance, 0)[..., None] * rays
        other = point @ (1 - normal - np.eye(3)[0])
        seen = (distance < nearest) & (other >= 0)
        at = [(point[..., 0] + 3) * 42, other * 42]
        grey[seen] = map_coordinates(texture, at, order=1, mode="wrap")[seen]
        nearest[seen] = distance[seen]
    return Image.fromarray(grey.astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, textures) -> Path:
    folder = tmp_path_factory.mktemp("corner")
    (folder / "images").mkdir()
    for number in range(VIEWS):
        photograph(camera(number), textures).save(folder / "images" / f"{number}.png")
    (folder / "images" / "torn.jpg").write_bytes(b"\xff\xd8\xff no more")
    return folder


def test_the_cameras_are_found(folder):
    posed = pose_folder(folder)
    assert posed.photographs == tuple(f"{number}.png" for number in range(VIEWS))
    assert list(posed.left_out) == ["torn.jpg"] and "Pillow" in posed.left_out["torn.jpg"]
    assert posed.error_px < 1
    capture = read_capture(folder)  # as any other COLMAP model
    found = capture.cameras.T_world_from_camera.double().numpy()
    truth = np.stack([camera(number) for number in range(VIEWS)])
    turns = found[:, :3, :3] @ truth[:, :3, :3].transpose(0, 2, 1)  # one and the same rotation, if all are right
    angle = np.degrees(np.arccos(np.clip((np.einsum("nij,ij->n", turns, turns[0]) - 1) / 2, -1, 1)))
    assert angle.max() < 2
    steps = [np.linalg.norm(np.diff(T[:, :3, 3], axis=0), axis=1) for T in (found, truth)]
    ratio = steps[0] / steps[1]  # the scale is free, but one for all
    assert ratio.max() / ratio.min() < 1.1
    assert not list(folder.glob(".pose-*"))
    with pytest.raises(ValueError, match="has a camera file"):
        pose_folder(folder)


def test_what_cannot_be_posed_is_said(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="not a directory"):
        pose_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="0 photographs can be read"):
        pose_folder(tmp_path)
    for number in range(3):
        Image.new("L", (64, 64), 90 * number).save(tmp_path / f"{number}.png")
    with pytest.raises(ValueError, match="show enough of the same"):
        pose_folder(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png", "2.png"]  # nothing left behind
    assert main(["pose", str(tmp_path)]) == 1
    assert "show enough of the same" in capsys.readouterr().err
