"""Public data sets, small, in their exact form: what becomes of them, through the reader and `condense doctor`."""

import gzip
import json
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from condense.adapters.adopt import adopt
from condense.adapters.co3d import _frames
from condense.captures.reader import doctor, read_capture
from condense.cli import main

VIEWS = 7
POINT = np.array([0.3, -0.2, 0.4])  # of the world, before all cameras


def poses():
    """T_world_from_camera, OpenCV axes, of cameras around POINT."""
    found = []
    for number in range(VIEWS):
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_euler("yx", [0.3 * number - 1, 0.1 * number]).as_matrix()
        pose[:3, 3] = POINT - 4 * pose[:3, 2] + [0, 0.1, 0.01 * number]
        found.append(pose)
    return found


def photograph(path, size=(64, 48), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)).save(path)
    return path


def seen(pose, focal, centre):
    """The pixel of POINT by hand."""
    x, y, z = pose[:3, :3].T @ (POINT - pose[:3, 3])
    return np.array([focal[0] * x / z + centre[0], focal[1] * y / z + centre[1]])


def assert_cameras(capture, focal, centre, found=None):
    """Every camera sees POINT where it should."""
    found = poses() if found is None else found
    assert len(capture.frames) == len(found)
    for number, pose in enumerate(found):
        T, K = capture.cameras.T_world_from_camera[number], capture.cameras.K[number]
        local = torch.linalg.inv(T)[:3] @ torch.tensor([*POINT, 1.0], dtype=T.dtype)
        pixel = (K @ local.to(K))[:2] / local[2]
        np.testing.assert_allclose(pixel.numpy(), seen(pose, focal, centre), atol=2e-3)


def co3d(root, damage=False):
    """One sequence of CO3D v2, its cameras in PyTorch3D's terms."""
    size, flip = (64, 48), np.diag([-1.0, -1.0, 1.0])
    frames = []
    for number, pose in enumerate(poses()):
        image = f"apple/110_1_2/images/frame{number + 1:06d}.jpg"
        mask = f"apple/110_1_2/masks/frame{number + 1:06d}.png"
        photograph(root / image, size, number)
        (root / mask).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size, 255).save(root / mask)
        R = pose[:3, :3] @ flip
        view = {
            "R": R.tolist(),
            "T": (-R.T @ pose[:3, 3]).tolist(),
            "focal_length": [50 / 24, 55 / 24],  # of half the shorter side
            "principal_point": [2 / 24, -3 / 24],
            "intrinsics_format": "ndc_isotropic",
        }
        frame = {"sequence_name": "110_1_2", "frame_number": number, "frame_timestamp": 0.1 * number, "viewpoint": view}
        frames.append(frame | {"image": {"path": image, "size": [48, 64]}, "mask": {"path": mask, "mass": 9.0}})
    frames.append({**frames[0], "sequence_name": "999_not_downloaded"})
    if damage:
        del frames[3]["viewpoint"]["R"]
    (root / "apple/frame_annotations.jgz").write_bytes(gzip.compress(json.dumps(frames).encode()))


def test_co3d(tmp_path):
    co3d(tmp_path)
    captures, wrong = adopt("co3d", tmp_path)
    assert captures == [tmp_path / "apple/110_1_2"] and not wrong
    capture = read_capture(captures[0])
    assert capture.frames[0].image == "images/frame000001.jpg" and capture.frames[0].mask == "masks/frame000001.png"
    assert_cameras(capture, (50, 55), (32 - 2, 24 + 3))
    assert not capture.findings
    assert adopt("co3d", tmp_path / "apple")[0] == captures  # a category alone; what is there is not written again


def test_damaged_annotations_set_their_sequence_aside(tmp_path, capsys):
    co3d(tmp_path, damage=True)
    captures, wrong = adopt("co3d", tmp_path)
    assert not captures and "'R'" in wrong[tmp_path / "apple/110_1_2"]
    _frames.cache_clear()
    (tmp_path / "apple/frame_annotations.jgz").write_bytes(b"\x1f\x8b no more")
    assert main(["adopt", "co3d", str(tmp_path)]) == 1
    assert "download it again" in capsys.readouterr().err


def scannet_frames(folder):
    """A scan as ScanNet's reader exports it; tracking was lost in frame 2."""
    (folder / "pose").mkdir(parents=True)
    (folder / "intrinsic").mkdir()
    for number, pose in enumerate(poses()):
        photograph(folder / f"color/{number}.jpg", seed=number)
        pose = np.full((4, 4), -np.inf) if number == 2 else pose
        np.savetxt(folder / f"pose/{number}.txt", pose, fmt="%.6f")
    K = np.diag([50.0, 55.0, 1, 1])
    K[:2, 2] = 31.5, 23.5
    np.savetxt(folder / "intrinsic/intrinsic_color.txt", K, fmt="%.6f")


def test_scannet_as_frames(tmp_path):
    scannet_frames(tmp_path / "scene0000_00")
    captures, wrong = adopt("scannet", tmp_path)
    assert captures == [tmp_path / "scene0000_00"] and not wrong
    capture = read_capture(captures[0])
    assert_cameras(capture, (50, 55), (32, 24), [pose for number, pose in enumerate(poses()) if number != 2])
    (finding,) = capture.findings
    assert finding.file == "color/2.jpg" and "not finite" in finding.problem
    assert "color/2.jpg" in doctor(tmp_path)[0]


def test_every_other_frame_of_a_video(tmp_path):
    scannet_frames(tmp_path / "scene0000_00")
    photograph(tmp_path / "scene0000_00/color/99.jpg", seed=99)
    np.savetxt(tmp_path / "scene0000_00/pose/99.txt", poses()[0])
    adopt("scannet", tmp_path, every=2)
    listed = json.loads((tmp_path / "scene0000_00/transforms.json").read_text())
    assert [frame["file_path"] for frame in listed["frames"]] == [f"color/{n}.jpg" for n in (0, 2, 4, 6)]
    text, usable = doctor(tmp_path)
    assert usable == 0 and "color/1.jpg" not in text  # four views are too few, and those left out are not missed


def sens(path, frames=VIEWS, kind=2):
    """A `.sens` file, version 4, written by hand."""
    matrix = np.diag([50.0, 55.0, 1, 1]).astype("<f4")
    matrix[:2, 2] = 31.5, 23.5
    content = struct.pack("<IQ", 4, 4) + b"test" + matrix.tobytes() + 3 * np.eye(4, dtype="<f4").tobytes()
    content += struct.pack("<iiIIIIfQ", kind, 1, 64, 48, 64, 48, 1000.0, frames)
    for number, pose in enumerate(poses()[:frames]):
        data = photograph(path.parent / "tmp.jpg", seed=number).read_bytes()
        content += pose.astype("<f4").tobytes() + struct.pack("<QQQQ", 0, 0, len(data), 5) + data + b"depth"
    (path.parent / "tmp.jpg").unlink()
    path.write_bytes(content)
    return content


def test_scannet_as_sens(tmp_path):
    folder = tmp_path / "scene0001_00"
    folder.mkdir()
    content = sens(folder / "scene0001_00.sens")
    captures, wrong = adopt("scannet", tmp_path)
    assert captures == [folder] and not wrong
    assert_cameras(read_capture(folder), (50, 55), (32, 24))
    for number, (damaged, said) in enumerate(
        (
            (content[:-3], "ends in frame 6"),
            (struct.pack("<I", 3) + content[4:], "version 3"),
            (content[:50], "cannot be read"),
        )
    ):
        other = tmp_path / f"damaged_{number}"
        other.mkdir()
        (other / "a.sens").write_bytes(damaged)
        assert said in adopt("scannet", other)[1][other]


def test_scannetpp(tmp_path):
    folder = tmp_path / "data/0a5c/dslr"
    frames = []
    for number, pose in enumerate(poses()):
        photograph(folder / f"resized_undistorted_images/{number}.JPG", seed=number)
        matrix = (pose @ np.diag([1.0, -1, -1, 1])).tolist()
        frames.append({"file_path": f"{number}.JPG", "mask_path": f"{number}.png", "transform_matrix": matrix})
    frames[1]["is_bad"] = True
    content = {"camera_model": "PINHOLE", "fl_x": 50.0, "fl_y": 55.0, "cx": 31.0, "cy": 25.0, "w": 64, "h": 48}
    content |= {"frames": frames[:-1], "test_frames": frames[-1:]}
    (folder / "nerfstudio").mkdir()
    cameras = folder / "nerfstudio/transforms_undistorted.json"
    cameras.write_text(json.dumps(content))
    assert adopt("scannetpp", tmp_path)[0] == [folder]
    capture = read_capture(folder)
    assert_cameras(capture, (50, 55), (31, 25), [pose for number, pose in enumerate(poses()) if number != 1])
    assert [frame.split for frame in capture.frames] == ["train"] * 5 + ["test"]
    (folder / "transforms.json").unlink()
    cameras.write_text(json.dumps(content | {"camera_model": "OPENCV_FISHEYE"}))
    assert "OPENCV_FISHEYE" in adopt("scannetpp", tmp_path)[1][folder]


def test_tum(tmp_path):
    folder = tmp_path / "rgbd_dataset_freiburg3_desk"
    rgb, truth = ["# color images", "# timestamp filename"], ["# ground truth"]
    for number, pose in enumerate(poses()):
        time = 1305031102.175304 + number / 30
        photograph(folder / f"rgb/{time:.6f}.png", (640, 480), number)
        rgb.append(f"{time:.6f} rgb/{time:.6f}.png")
        x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat()
        place = " ".join(f"{value:.8f}" for value in (*pose[:3, 3], x, y, z, w))
        truth.append(f"{time + 0.004 + (number == 5):.4f} {place}")  # one of them a second late
    (folder / "rgb.txt").write_text("\n".join(rgb))
    (folder / "groundtruth.txt").write_text("\n".join(truth))
    assert adopt("tum", tmp_path)[0] == [folder]
    capture = read_capture(folder)
    kept = [pose for number, pose in enumerate(poses()) if number != 5]
    assert_cameras(capture, (535.4, 539.2), (320.6, 248.1), kept)
    assert len(capture.findings) == 1 and "not finite" in capture.findings[0].problem
    folder.rename(tmp_path / "desk")
    (tmp_path / "desk/transforms.json").unlink()
    assert "freiburg1, 2 or 3" in adopt("tum", tmp_path)[1][tmp_path / "desk"]


def test_seven_scenes(tmp_path):
    for number, pose in enumerate(poses()):
        folder = tmp_path / "chess" / ("seq-02" if number == 6 else "seq-01")
        photograph(folder / f"frame-{number:06d}.color.png", (640, 480), number)
        photograph(folder / f"frame-{number:06d}.depth.png", (640, 480), 100 + number)
        rows = "\n".join("\t ".join(f"{value: .7e}" for value in row) for row in pose)
        (folder / f"frame-{number:06d}.pose.txt").write_text(rows + "\n")
    (tmp_path / "chess/TrainSplit.txt").write_text("sequence1\n")
    (tmp_path / "chess/TestSplit.txt").write_text("sequence2\n")
    assert adopt("7scenes", tmp_path)[0] == [tmp_path / "chess"]
    capture = read_capture(tmp_path / "chess")
    assert_cameras(capture, (525, 525), (320, 240))
    assert [frame.split for frame in capture.frames] == ["train"] * 6 + ["test"]
    assert not capture.findings  # depth maps are not missed


def test_mvimgnet_needs_no_adapter(tmp_path):
    """Its folders are COLMAP models; some come with an empty `sparse/`."""
    (tmp_path / "7/1a002d7d/sparse/0").mkdir(parents=True)
    for number in range(VIEWS):
        photograph(tmp_path / f"7/1a002d7d/images/{number:03d}.jpg", seed=number)
    text, usable = doctor(tmp_path)
    assert usable == 0 and "7 images, but no camera file" in text and "condense pose" in text


def test_dl3dv_needs_no_adapter(tmp_path):
    """Its cameras are for 4K, its images come reduced, in `images_4/`."""
    frames = []
    for number, pose in enumerate(poses()):
        photograph(tmp_path / f"scene/images_4/frame_{number:05d}.png", seed=number)
        matrix = (pose @ np.diag([1.0, -1, -1, 1])).tolist()
        frames.append(
            {"file_path": f"images/frame_{number:05d}.png", "transform_matrix": matrix, "colmap_im_id": number}
        )
    content = {"w": 256, "h": 192, "fl_x": 200.0, "fl_y": 220.0, "cx": 124.0, "cy": 100.0, "camera_model": "OPENCV"}
    content |= {"k1": 0.0, "k2": 0.0, "p1": 0.0, "p2": 0.0, "frames": frames}
    (tmp_path / "scene/transforms.json").write_text(json.dumps(content))
    capture = read_capture(tmp_path / "scene")
    assert capture.frames[0].image == "images_4/frame_00000.png" and not capture.findings
    assert_cameras(capture, (50, 55), (31, 25))


def test_what_cannot_be_adopted_is_said(tmp_path, capsys):
    with pytest.raises(ValueError, match="none of co3d, scannet"):
        adopt("mvimgnet", tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        adopt("tum", tmp_path / "nowhere")
    assert main(["adopt", "7scenes", str(tmp_path)]) == 1
    assert "holds no scene of 7scenes" in capsys.readouterr().err
