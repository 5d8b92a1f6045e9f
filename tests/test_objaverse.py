"""Objaverse renders as captures, on small files in the form of each release."""

import json
import math
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from test_adapters import VIEWS, assert_cameras, photograph, poses

from condense.adapters.adopt import adopt
from condense.captures.reader import doctor, read_capture
from condense.cli import main


def render(path, size=(64, 64), seed=0):
    """An RGBA image, its upper half transparent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 4), np.uint8)
    values[:, :, 3] = 255 * (np.arange(size[1])[:, None] >= size[1] // 2)
    Image.fromarray(values).save(path)
    return path


def objaverse(folder, size=(64, 64)):
    """An object as the script of Objaverse-XL renders it: (R | t), from the world to Blender's camera."""
    for number, pose in enumerate(poses()):
        render(folder / f"{number:03d}.png", size, number)
        R = (pose[:3, :3] @ np.diag([1.0, -1, -1])).T
        np.save(folder / f"{number:03d}.npy", np.column_stack([R, -R @ pose[:3, 3]]))
    (folder / "metadata.json").write_text(json.dumps({"save_uid": folder.name, "vert_count": 2032}))
    return folder


@pytest.mark.parametrize("size", [(64, 64), (64, 48), (48, 64)])
def test_objaverse(tmp_path, size):
    folder = objaverse(tmp_path / "renders/0fde27a0-99f0-5029-8e20-be9b8ecabb59", size)
    captures, wrong = adopt("objaverse", tmp_path)
    assert captures == [folder] and not wrong
    capture = read_capture(folder)
    assert_cameras(capture, (70, 70), (size[0] / 2, size[1] / 2))  # 35 / 32 of the longer side
    assert not capture.findings
    assert [frame.mask for frame in capture.frames] == [f"{number:03d}.png" for number in range(VIEWS)]
    mask = capture.load([0]).masks[0]
    assert mask[: size[1] // 2].max() == 0 and mask[size[1] // 2 :].min() == 1


def test_the_camera_of_objaverse_by_hand(tmp_path):
    """The matrix that the README of Objaverse-XL's rendering script shows."""
    matrix = [
        [6.07966840e-01, 7.93962419e-01, 3.18103019e-08, 2.10451518e-07],
        [4.75670159e-01, -3.64238620e-01, 8.00667346e-01, -5.96046448e-08],
        [6.35699809e-01, -4.86779213e-01, -5.99109232e-01, -1.66008198e00],
    ]
    for number in range(VIEWS):
        render(tmp_path / f"uid/{number:03d}.png", (512, 512), number)
        np.save(tmp_path / f"uid/{number:03d}.npy", np.array(matrix))
    cameras = read_capture(adopt("objaverse", tmp_path)[0][0]).cameras
    assert cameras.K[0].tolist() == [[560, 0, 256], [0, 560, 256], [0, 0, 1]]  # 35 / 32 * 512
    # the camera stands 1.66 from the object; one tenth up or along x in the world: 35 / 32 * 512 / depth * offset
    for point, pixel, depth in (
        ((0, 0, 0), (256, 256), 1.66008),
        ((0, 0, 0.1), (256, 256 - 560 * 0.0800667 / 1.719993), 1.719993),
        ((0.1, 0, 0), (256 + 560 * 0.0607967 / 1.596512, 256 - 560 * 0.0475670 / 1.596512), 1.596512),
    ):
        x, y, z = (torch.linalg.inv(cameras.T_world_from_camera[0]) @ torch.tensor([*point, 1.0]))[:3].tolist()
        np.testing.assert_allclose((560 * x / z + 256, 560 * y / z + 256, z), (*pixel, depth), atol=1e-3)


def test_objaverse_without_some_files(tmp_path):
    """Views whose camera or image is not there are listed; the others are used."""
    folder = objaverse(tmp_path / "views_release/a1b2")
    (folder / "metadata.json").unlink()  # as of Zero123
    render(folder / "007.png", seed=7)  # the script was stopped before it wrote 007.npy
    render(folder / "008.png", seed=8)
    np.save(folder / "008.npy", np.full((3, 4), np.nan))
    np.save(folder / "009.npy", np.load(folder / "000.npy"))
    assert adopt("objaverse", tmp_path) == ([folder], {})
    capture = read_capture(folder)
    assert_cameras(capture, (70, 70), (32, 32))
    said = {finding.file: finding for finding in capture.findings}
    assert said.keys() == {"007.png", "008.png", "009.png"}
    assert "not finite" in said["007.png"].problem and "not finite" in said["008.png"].problem
    assert "absent" in said["009.png"].problem and "put the file back" in said["009.png"].remedy
    text, usable = doctor(tmp_path)
    assert usable == 1 and all(name in text for name in said) and ", masks" in text


class Harm:
    """What a pickle may do when it is loaded."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_damaged_cameras_set_an_object_aside(tmp_path, capsys):
    sound = objaverse(tmp_path / "sound")
    content = (sound / "003.npy").read_bytes()
    for name, damaged in (
        ("cut", content[:-8]),
        ("empty", b""),
        ("header", content[:10] + b"{'descr': (" + content[21:]),
        ("text", b"0.1 0.2 0.3"),
        ("pickle", pickle.dumps(Harm())),
    ):
        (objaverse(tmp_path / name) / "003.npy").write_bytes(damaged)
        wrong = adopt("objaverse", tmp_path / name)[1][tmp_path / name]
        assert f"{tmp_path / name / '003.npy'} is no sound .npy file" in wrong and "render the object again" in wrong
    for name, array, reason in (
        ("objects", np.array([Harm()] * 12, object).reshape(3, 4), "allow_pickle=False"),
        ("square", np.eye(4), "4 x 4 values of float64, not a camera's 3 x 4"),
        ("words", np.full((3, 4), "a"), "3 x 4 values of <U1"),
    ):
        np.save(objaverse(tmp_path / name) / "003.npy", array)
        wrong = adopt("objaverse", tmp_path / name)[1][tmp_path / name]
        assert reason in wrong and str(tmp_path / name / "003.npy") in wrong
    with (objaverse(tmp_path / "archive") / "003.npy").open("wb") as file:
        np.savez(file, np.eye(4))
    assert "003.npy is no sound .npy file" in adopt("objaverse", tmp_path / "archive")[1][tmp_path / "archive"]
    assert main(["adopt", "objaverse", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("1 captures") and said.count("set aside") == 9
    assert doctor(tmp_path)[1] == 1


def test_objaverse_without_any_camera_or_image(tmp_path):
    for name, ending in (("cameras", "npy"), ("images", "png")):
        for path in objaverse(tmp_path / name).glob(f"*.{ending}"):
            path.unlink()
    render(tmp_path / "images/000.png").write_bytes(b"\x89PNG no more")
    captures, wrong = adopt("objaverse", tmp_path)
    assert not captures
    assert "holds images but no camera, such as 000.npy" in wrong[tmp_path / "cameras"]
    assert "none of the 7 images" in wrong[tmp_path / "images"] and "again" in wrong[tmp_path / "images"]
    # the reader agrees about the images that no camera belongs to
    assert "7 images, but no camera file" in doctor(tmp_path / "cameras")[0]


def test_a_damaged_render_is_left_out(tmp_path):
    folder = objaverse(tmp_path / "uid")
    (folder / "000.png").write_bytes((folder / "000.png").read_bytes()[:40])
    (folder / "001.png").write_bytes(b"")
    render(folder / "003.png", (32, 32))
    render(folder / "007.png", seed=7)
    np.save(folder / "007.npy", np.load(folder / "000.npy"))
    np.save(folder / "006.npy", 2 * np.load(folder / "006.npy"))  # not rigid
    for number in (8, 9):
        render(folder / f"{number:03d}.png", seed=number)
        np.save(folder / f"{number:03d}.npy", np.load(folder / f"00{number - 4}.npy"))
    assert adopt("objaverse", tmp_path) == ([folder], {})
    said = {finding.file: finding.problem for finding in read_capture(folder).findings}
    assert said.keys() == {"000.png", "001.png", "003.png", "006.png"}
    assert "32 x 32 pixels but its intrinsics" in said["003.png"] and "not rigid" in said["006.png"]


def g_objaverse(folder):
    """An object of G-Objaverse: the camera's axes (right, down, forward) and place, and its angles."""
    for number, pose in enumerate(poses()):
        name = f"{number:05d}/{number:05d}"
        render(folder / f"{name}.png", (64, 48), number)
        photograph(folder / f"{name}_albedo.png", seed=100 + number)
        photograph(folder / f"{name}_mr.png", seed=200 + number)
        (folder / f"{name}_nd.exr").write_bytes(b"normals and depth")
        camera = {key: pose[:3, axis].tolist() for axis, key in enumerate(("x", "y", "z", "origin"))}
        camera |= {"x_fov": 2 * math.atan(32 / 50), "y_fov": 2 * math.atan(24 / 55), "max_depth": 5.0}
        (folder / f"{name}.json").write_text(json.dumps(camera))
    return folder


@pytest.mark.parametrize("below", ["campos_512_v4", "."])  # in its archives, and as its script downloads it
def test_g_objaverse(tmp_path, below):
    folder = g_objaverse(tmp_path / "0/10010" / below)
    assert adopt("objaverse", tmp_path) == ([folder], {})
    capture = read_capture(folder)
    assert capture.frames[0].image == capture.frames[0].mask == "00000/00000.png"
    assert_cameras(capture, (50, 55), (32, 24))
    assert not capture.findings  # its maps are not missed
    (folder / "transforms.json").unlink()
    assert adopt("objaverse", folder) == ([folder], {})  # one object alone


def test_the_angle_of_g_objaverse_is_its_focal_length(tmp_path):
    """Blender's default angle against the focal length that RichDreamer's warping takes, 1422.222 at 1024 pixels."""
    folder = g_objaverse(tmp_path)
    for number in range(VIEWS):
        path = folder / f"{number:05d}/{number:05d}.json"
        angles = {"x_fov": 0.691111147403717, "y_fov": 0.691111147403717}
        path.write_text(json.dumps(json.loads(path.read_text()) | angles))
        render(path.with_suffix(".png"), (512, 512), number)
    adopt("objaverse", folder)
    focal = read_capture(folder).cameras.K[0].diagonal()[:2]
    np.testing.assert_allclose(focal.numpy(), 1422.222 / 2, rtol=1e-5)


def test_damaged_g_objaverse(tmp_path):
    for ending, said in (("json", "00002/00002.png: its pose"), ("png", "00002/00002.png: is listed")):
        folder = g_objaverse(tmp_path / f"no_{ending}")
        (folder / f"00002/00002.{ending}").unlink()
        assert adopt("objaverse", folder) == ([folder], {})
        text, usable = doctor(folder)
        assert usable == 1 and said in text
    for name, change, reason in (
        ("key", {"x": None}, None),
        ("short", {"x": [1.0, 0.0]}, "inhomogeneous"),
        ("flat", {"x": 1, "y": 2, "z": 3, "origin": 4}, "not 3 numbers each"),
        ("degrees", {"x_fov": 39.6}, "no angles in radians"),
        ("nothing", {"y_fov": None}, "TypeError"),
    ):
        path = g_objaverse(tmp_path / name) / "00003/00003.json"
        content = json.loads(path.read_text()) | change
        path.write_text(json.dumps(content if reason else {key: content[key] for key in ("y", "z", "origin")}))
        wrong = adopt("objaverse", tmp_path / name)[1][tmp_path / name]
        assert (reason or "'x'") in wrong and str(path) in wrong and "again" in wrong
    path.write_text("{")
    assert "JSONDecodeError" in adopt("objaverse", tmp_path / name)[1][tmp_path / name]
