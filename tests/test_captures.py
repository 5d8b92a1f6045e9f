import io
import math
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from capturefiles import HEIGHT, WIDTH, make, picture, poses, write, zip_up
from PIL import Image

from condense.captures.capture import CaptureError
from condense.captures.images import (
    ImageError,
    area_resize,
    decode,
    read_photograph,
    resample,
    resample_nearest,
    to_colour,
    to_labels,
)
from condense.captures.lens import Lens, LensError, lens_from_focal, undistorted
from condense.captures.reader import read_capture, read_captures

# The sound case


def test_cameras_images_and_splits(tmp_path):
    make(tmp_path)
    capture = read_capture(tmp_path)
    assert capture.findings == ()
    assert capture.views("test") == [0, 8] and capture.views("train") == list(range(1, 8))
    torch.testing.assert_close(capture.cameras.T_world_from_camera, poses(9).float())
    assert capture.cameras.K[3].tolist() == [[20, 0, 12], [0, 21, 8], [0, 0, 1]]
    views = capture.load([2, 5])
    assert views.names == ("images/002.png", "images/005.png") and views.masks is None and views.labels is None
    np.testing.assert_array_equal(views.images[1], np.asarray(picture(5)))
    assert read_capture(tmp_path, test_every=4).views("test") == [0, 4, 8]
    with pytest.raises(ValueError, match="'val'"):
        capture.views("val")


@pytest.mark.parametrize("top", ["", "chair/"])
def test_zip_reads_as_the_folder_does(tmp_path, top):
    make(tmp_path / "chair")
    path = zip_up(tmp_path / "chair", tmp_path / "chair_1.zip", top)
    capture, plain = read_capture(path), read_capture(tmp_path / "chair")
    assert capture.name == "chair_1" and [f.name for f in capture.frames] == [f.name for f in plain.frames]
    np.testing.assert_array_equal(capture.load([1]).images[0], plain.load([1]).images[0])


def test_alpha_is_the_mask_and_meta_comes_along(tmp_path):
    content = make(tmp_path, mode="RGBA")
    for frame in content["frames"]:
        frame["split"] = "test" if frame["file_path"] == "images/004.png" else "train"
    write(tmp_path, content)
    write(tmp_path, {"class": "chair"}, "meta.json")
    capture = read_capture(tmp_path)
    assert capture.findings == () and capture.meta == {"class": "chair"} and capture.views("test") == [4]
    views = capture.load()
    for i, (image, mask) in enumerate(zip(views.images, views.masks, strict=True)):
        np.testing.assert_array_equal(image, np.asarray(picture(i)))
        np.testing.assert_array_equal(mask, np.asarray(picture(i, "RGBA"))[:, :, 3] / 255)


# The forms of transforms.json


def test_blender_form(tmp_path):
    content = make(tmp_path, mode="RGBA")
    angle = 2 * math.atan(WIDTH / 2 / 30)
    for frame in content["frames"]:
        frame["file_path"] = "./" + frame["file_path"].removesuffix(".png")
    write(tmp_path, {"camera_angle_x": angle, "frames": content["frames"][:6]}, "transforms_train.json")
    write(tmp_path, {"camera_angle_x": angle, "frames": content["frames"][6:]}, "transforms_test.json")
    (tmp_path / "transforms.json").write_text("not looked at")
    picture(0).save(tmp_path / "images/000_depth_0001.png")
    capture = read_capture(tmp_path)
    assert capture.findings == () and capture.views("test") == [6, 7, 8]
    torch.testing.assert_close(capture.cameras.K[0], torch.tensor([[30.0, 0, 12], [0, 30, 8], [0, 0, 1]]))
    views = capture.load()
    np.testing.assert_array_equal(views.masks[0][:, :12], 1)
    np.testing.assert_array_equal(views.masks[0][:, 12:], 0)


def test_intrinsics_of_each_frame(tmp_path):
    content = make(tmp_path)
    content["frames"][3] |= {"fl_x": 25.0, "fl_y": 26.0}
    write(tmp_path, content)
    assert read_capture(tmp_path).cameras.K[2:4, 0, 0].tolist() == [20, 25]
    for key in ("fl_x", "fl_y", "cx", "cy", "w", "h"):
        del content[key]
    for i, frame in enumerate(content["frames"]):
        frame |= {"fl_x": 20.0 + i, "w": float(WIDTH), "h": float(HEIGHT)}
    write(tmp_path, content)
    assert read_capture(tmp_path).cameras.K[4].tolist() == [[24, 0, 12], [0, 24, 8], [0, 0, 1]]


@pytest.mark.parametrize("form", ["lists", "keys", "validation"])
def test_splits_as_listed(tmp_path, form):
    content = make(tmp_path)
    names = [frame["file_path"] for frame in content["frames"]]
    if form == "lists":
        content |= {"train_filenames": names[2:], "test_filenames": names[:2]}
    for i, frame in enumerate(content["frames"]):
        if form != "lists":
            frame["split"] = "train" if i >= 2 else {"keys": "test", "validation": "val"}[form]
    write(tmp_path, content)
    assert read_capture(tmp_path).views("test") == [0, 1]


def test_masks_and_labels_of_their_own(tmp_path):
    content = make(tmp_path)
    (tmp_path / "masks").mkdir()
    labels = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8) // 4
    for i, frame in enumerate(content["frames"]):
        frame |= {"mask_path": f"masks/{i}.png", "labels_path": f"labels_{i}.png"}
        Image.fromarray(labels > 20).save(tmp_path / f"masks/{i}.png")
        Image.fromarray(labels).save(tmp_path / f"labels_{i}.png")
    write(tmp_path, content)
    capture = read_capture(tmp_path)
    assert capture.findings == ()
    views = capture.load([4])
    np.testing.assert_array_equal(views.masks[0], labels > 20)
    np.testing.assert_array_equal(views.labels[0][:, :, 0], labels)
    assert views.labels[0].shape == (HEIGHT, WIDTH, 3) and not views.labels[0][:, :, 1:].any()
    half = capture.load([4], max_side=12)
    np.testing.assert_array_equal(half.labels[0][:, :, 0], labels[1::2, 1::2])
    assert half.masks[0].shape == (8, 12) and half.images[0].shape == (8, 12, 3)
    torch.testing.assert_close(half.cameras.K[0, :2], capture.cameras.K[4, :2] / 2)
    del content["frames"][0]["mask_path"]
    write(tmp_path, content)
    capture = read_capture(tmp_path)
    assert capture.load([4]).masks is None and any("no mask" in f.problem for f in capture.findings)


def test_fisheye_says_that_it_is_unsupported(tmp_path):
    make(tmp_path, camera_model="OPENCV_FISHEYE", k1=0.1)
    with pytest.raises(CaptureError, match="OPENCV_FISHEYE is not supported"):
        read_capture(tmp_path)


# Pixels


def test_area_resize_is_the_mean_over_each_cell(generator):
    image = torch.rand(6, 9, 2, generator=generator).numpy()
    mean = image.reshape(2, 3, 3, 3, 2).mean((1, 3))
    np.testing.assert_allclose(area_resize(image, (3, 2), (9, 6)), mean, rtol=1e-5)
    ramp = np.arange(7, dtype=np.float32)[None, :, None] + 0.5  # the mean of a ramp is its value at the centre
    np.testing.assert_allclose(area_resize(ramp, (2, 1), (6.0, 1))[0, :, 0], [1.5, 4.5], rtol=1e-6)
    np.testing.assert_allclose(area_resize(ramp, (2, 1), (5.0, 1))[0, :, 0], [1.3, 3.7], rtol=1e-6)


def test_transparent_colours_do_not_bleed_when_shrunk(tmp_path):
    content = make(tmp_path)
    for i in range(9):
        pixels = np.full((HEIGHT, WIDTH, 4), (200, 100, 50, 255), np.uint8)
        pixels[:, 9:] = (0, 255, 0, 0)
        pixels[0, 0] = i
        Image.fromarray(pixels).save(tmp_path / f"images/{i:03d}.png")
    write(tmp_path, content)
    views = read_capture(tmp_path).load([1], max_side=12)
    np.testing.assert_allclose(views.masks[0][5], [1] * 4 + [0.5] + [0] * 7, atol=1e-6)
    np.testing.assert_array_equal(views.images[0][5, :5], [[200, 100, 50]] * 5)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "CMYK", "I;16"])
def test_every_kind_of_image_becomes_rgb(mode):
    reference = picture(1).convert("L" if mode == "I;16" else mode)
    image = reference
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    stream = io.BytesIO()
    image.save(stream, "tiff" if mode == "CMYK" else "png")
    decoded, _ = decode(stream.getvalue())
    colour = to_colour(decoded)
    assert colour.dtype == np.uint8 and colour.shape == (HEIGHT, WIDTH, 4 if mode == "LA" else 3)
    np.testing.assert_array_equal(colour[:, :, :3], np.asarray(reference.convert("RGB")))


def test_label_maps_keep_both_channels_and_palette_indices():
    pair = np.stack([np.full((2, 2), 3), np.full((2, 2), 9)], -1).astype(np.uint8)
    assert to_labels(Image.fromarray(pair, "LA"))[0, 0].tolist() == [3, 9, 0]
    palette = Image.fromarray(np.full((2, 2), 7, np.uint8), "P")
    palette.putpalette([200] * 768)
    assert to_labels(palette)[1, 1].tolist() == [7, 0, 0]


LENS = Lens("OPENCV", 160, 120, (130.0, 131.0, 82.0, 57.0, 0.12, -0.09, 0.004, -0.003))


def distorted_by_hand(lens: Lens, pixels: np.ndarray) -> np.ndarray:
    """Where undistorted pixels [N, 2] lie in the distorted image: OpenCV's model, written out."""
    K, _ = undistorted(lens)
    fx, fy, cx, cy, k1, k2, p1, p2 = lens.params
    a, b = ((pixels - K[:2, 2]) / K[[0, 1], [0, 1]]).T
    r2 = a * a + b * b
    radial = 1 + k1 * r2 + k2 * r2**2
    x = a * radial + 2 * p1 * a * b + p2 * (r2 + 2 * a * a)
    y = b * radial + p1 * (r2 + 2 * b * b) + 2 * p2 * a * b
    return np.stack([fx * x + cx, fy * y + cy], -1)


def test_undistorted_pixels_show_where_opencv_says_they_came_from():
    x, y = np.meshgrid(np.arange(160) + 0.5, np.arange(120) + 0.5)
    where = np.stack([x, y], -1).astype(np.float32)  # an image of its own pixel coordinates
    _, size = undistorted(LENS)
    straight = resample(where, LENS, size, 1.0)
    assert straight.shape[:2] == size[::-1]
    rows, columns = np.mgrid[4 : size[1] - 4 : 7, 4 : size[0] - 4 : 9].reshape(2, -1)
    expected = distorted_by_hand(LENS, np.stack([columns, rows], -1) + 0.5)
    np.testing.assert_allclose(straight[rows, columns], expected, atol=1e-3)  # float32 pixels
    assert np.abs(expected - np.stack([columns, rows], -1) - 0.5).max() > 2  # there was something to undo
    small = (size[0] // 2, size[1] // 2)
    half = resample(area_resize(where, (80, 60), (160, 120)), LENS, small, 2.0)  # from a smaller decoding
    np.testing.assert_allclose(half[2:-2, 2:-2], area_resize(straight, small, size)[2:-2, 2:-2], atol=0.01)
    labels = resample_nearest(np.floor(where).astype(np.uint8), LENS, size)
    np.testing.assert_array_equal(labels[rows, columns], np.floor(expected))


def test_undistortion_is_pycolmaps(generator):
    image = torch.randint(0, 256, (120, 160, 3), generator=generator, dtype=torch.uint8).numpy()
    options = pycolmap.UndistortCameraOptions()
    bitmap, camera = pycolmap.undistort_image(options, pycolmap.Bitmap.from_array(image), LENS.camera())
    K, size = undistorted(LENS)
    np.testing.assert_allclose(K, camera.calibration_matrix())
    ours = resample(image.astype(np.float32), LENS, size, 1.0)
    assert np.abs(ours - bitmap.to_array())[1:-1, 1:-1].max() < 1  # theirs is rounded to integers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((20, 20), (12, 8), (24, 16), (-30, 0, 0, 0)), "contradict the image size"),
        (((20, 20), (99, 8), (24, 16)), "principal point"),
        (((math.inf, 20), (12, 8), (24, 16)), "not a finite number"),
        (((20, 20), (12, 8), (24, 0)), "24 x 0 pixels"),
    ],
)
def test_absurd_lenses_are_refused(arguments, message):
    with pytest.raises(LensError, match=message):
        undistorted(lens_from_focal(*arguments))


# COLMAP


def make_colmap(folder: Path, place: str, text: bool, n: int = 9) -> None:
    model = pycolmap.Reconstruction()
    params = [20.0, 21.0, 12.0, 8.0, 0.02, -0.01, 0.001, 0.0]
    camera = pycolmap.Camera.create_from_model_name(1, "OPENCV", 1.0, WIDTH, HEIGHT)
    camera.params = params
    model.add_camera_with_trivial_rig(camera)
    (folder / "images").mkdir(parents=True)
    (folder / place).mkdir(parents=True, exist_ok=True)
    for i, pose in enumerate(poses(n).numpy(), start=1):
        picture(i).save(folder / f"images/{i:03d}.png")
        image = pycolmap.Image(name=f"{i:03d}.png", camera_id=1, image_id=i)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose[:3]).inverse())
    (model.write_text if text else model.write_binary)(folder / place)


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("place", [".", "sparse", "sparse/0"])
@pytest.mark.parametrize("zipped", [True, False])
def test_colmap_models(tmp_path, text, place, zipped):
    make_colmap(tmp_path / "a", place, text)
    path = zip_up(tmp_path / "a", tmp_path / "a.zip") if zipped else tmp_path / "a"
    capture = read_capture(path)
    assert capture.findings == () and capture.frames[0].name == "images/001.png"
    torch.testing.assert_close(capture.cameras.T_world_from_camera, poses(9).float(), atol=1e-5, rtol=0)
    assert capture.cameras.K[0, 0, 0] == 20 and capture.lenses[0].distorted
    assert capture.load([0]).images[0].shape[:2] == tuple(capture.cameras.sizes[0].tolist()[::-1])


def test_colmap_text_pose_that_is_no_number(tmp_path):
    make_colmap(tmp_path, "sparse", text=True)
    file = tmp_path / "sparse/images.txt"
    lines = file.read_text().splitlines()
    i = next(i for i, line in enumerate(lines) if line.endswith("004.png"))
    words = lines[i].split()
    lines[i] = " ".join([words[0], *["nan"] * 7, *words[8:]])
    file.write_text("\n".join(lines) + "\n")
    for part in ("frames.txt", "rigs.txt"):
        (tmp_path / "sparse" / part).unlink()  # as older releases write it
    capture = read_capture(tmp_path)
    assert [(f.file, "not finite" in f.problem) for f in capture.findings] == [("images/004.png", True)]
    assert len(capture.frames) == 8


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin"])
def test_colmap_model_cut_off(tmp_path, name):
    make_colmap(tmp_path, "sparse/0", text=False)
    data = (tmp_path / "sparse/0" / name).read_bytes()
    (tmp_path / "sparse/0" / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(CaptureError, match=r"sparse/0/images\.bin"):
        read_capture(tmp_path)


# Real captures


def test_real_captures(shared):
    captures, set_aside = read_captures(shared / "captures")
    found = {c.name: c for c in captures}
    assert [s.name for s in set_aside] == ["berlin"] and "3 images, but no camera file" in set_aside[0].reason
    assert {n: (len(c.views("train")), len(c.views("test"))) for n, c in found.items()} == {
        "buddha": (11, 2),
        "fox": (43, 7),
        "nerf_chair": (50, 29),
    }
    assert len(found["fox"].findings) == 17 and not found["buddha"].findings
    assert all("absent" in f.problem for c in captures for f in c.findings)
    chair = found["nerf_chair"].load([0], max_side=200)
    assert chair.images[0].shape == (200, 200, 3) and 0.1 < chair.masks[0].mean() < 0.3
    fox = found["fox"].load([0], max_side=240)
    assert fox.images[0].shape == (240, 135, 3) and fox.masks is None


def test_fast_decoding_agrees_with_slow(shared):
    fox = read_capture(shared / "captures/fox")
    slow = fox.load([10]).images[0].astype(np.float32)
    fast = fox.load([10], max_side=240).images[0]
    error = area_resize(slow, (135, 240), (slow.shape[1], slow.shape[0])) - fast
    assert np.sqrt((error**2).mean()) < 3  # of 255; libjpeg's scaled decoding is no exact area average
    assert abs(error.mean()) < 0.1


class TestReadPhotograph:
    """A photograph of 6 x 4 pixels, dark on the left and bright on the right, in every kind a user may have."""

    pixels = np.repeat(np.linspace(20, 220, 6).astype(np.uint8)[None], 4, axis=0)

    def saved(self, tmp_path, image, **how):
        image.save(tmp_path / "photo.png", **how)
        return tmp_path / "photo.png"

    def test_grey_8_and_16_bits_are_the_same(self, tmp_path):
        grey = read_photograph(self.saved(tmp_path, Image.fromarray(self.pixels)), 100)
        deep = read_photograph(self.saved(tmp_path, Image.fromarray(self.pixels.astype(np.uint16) * 257)), 100)
        np.testing.assert_array_equal(grey, np.repeat(self.pixels[:, :, None], 3, axis=2))
        np.testing.assert_array_equal(deep, grey)

    def test_what_lies_on_its_side_is_turned(self, tmp_path):
        exif = Image.Exif()
        exif[274] = 6  # turn clockwise to see it upright
        turned = read_photograph(self.saved(tmp_path, Image.fromarray(self.pixels), exif=exif), 100)
        np.testing.assert_array_equal(turned[:, :, 0], np.rot90(self.pixels, -1))

    def test_transparency_lies_over_white(self, tmp_path):
        alpha = np.where(np.arange(6) < 3, 0, 255).astype(np.uint8)
        clear = np.dstack([self.pixels] * 3 + [np.tile(alpha, (4, 1))])
        found = read_photograph(self.saved(tmp_path, Image.fromarray(clear)), 100)
        assert (found[:, :3] == 255).all() and (found[:, 3:, 0] == self.pixels[:, 3:]).all()

    def test_a_large_one_shrinks_and_keeps_its_shape(self, tmp_path):
        found = read_photograph(self.saved(tmp_path, Image.fromarray(self.pixels)), 3)
        assert found.shape == (2, 3, 3) and found[0, 0, 0] == 40  # the mean of 20 and 60

    def test_what_is_no_image_is_named(self, tmp_path):
        with pytest.raises(ImageError, match=r"absent\.png cannot be read: No such file"):
            read_photograph(tmp_path / "absent.png", 100)
        (tmp_path / "text.png").write_text("not an image")
        with pytest.raises(ImageError, match=r"text\.png is not an image"):
            read_photograph(tmp_path / "text.png", 100)
