import math
import os
import zipfile

import numpy as np
import pytest
from capturefiles import HEIGHT, WIDTH, make, picture, write, zip_up
from PIL import Image

from condense.captures.capture import CaptureError
from condense.captures.folder import EscapeError, Folder, clean, open_folder
from condense.captures.reader import doctor, read_capture, read_captures
from condense.cli import main

# Damage: each gets one finding that names the file, and the others are used


def absent(folder, content):
    (folder / "images/003.png").unlink()


def truncated(folder, content):
    picture(3).save(folder / "images/003.jpg")
    data = (folder / "images/003.jpg").read_bytes()
    (folder / "images/003.jpg").write_bytes(data[:-20])
    (folder / "images/003.png").unlink()
    content["frames"][3]["file_path"] = "images/003.jpg"


def truncated_png(folder, content):
    data = (folder / "images/003.png").read_bytes()
    (folder / "images/003.png").write_bytes(data[:-30])


def not_an_image(folder, content):
    (folder / "images/003.png").write_text("<html>404</html>")


def nan_pose(folder, content):
    content["frames"][3]["transform_matrix"][1][2] = math.nan


def scaled_pose(folder, content):
    matrix = np.array(content["frames"][3]["transform_matrix"])
    matrix[:3, :3] *= 1.5
    content["frames"][3]["transform_matrix"] = matrix.tolist()


def mirrored_pose(folder, content):
    matrix = np.array(content["frames"][3]["transform_matrix"])
    matrix[:3, 0] *= -1
    content["frames"][3]["transform_matrix"] = matrix.tolist()


def no_pose(folder, content):
    del content["frames"][3]["transform_matrix"]


def wrong_size(folder, content):
    picture(3).resize((30, 16)).save(folder / "images/003.png")


def no_focal_length(folder, content):
    content["frames"][3]["fl_x"] = -3


def text_for_number(folder, content):
    content["frames"][3]["cx"] = "middle"


def copied(folder, content):
    (folder / "images/003.png").write_bytes((folder / "images/002.png").read_bytes())


def sixty_four_bit(folder, content):
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.float32)).save(folder / "images/003.tif")
    (folder / "images/003.png").unlink()
    content["frames"][3]["file_path"] = "images/003.tif"


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (absent, "absent"),
        (truncated, "truncated"),
        (truncated_png, "cannot be decoded"),
        (not_an_image, "not an image"),
        (nan_pose, "not finite"),
        (scaled_pose, "not rigid"),
        (mirrored_pose, "not rigid"),
        (no_pose, "no 4 x 4 pose"),
        (wrong_size, "is 30 x 16 pixels but its intrinsics in transforms.json are for 24 x 16"),
        (no_focal_length, "focal length is not positive"),
        (text_for_number, "not numbers"),
        (copied, "same bytes as images/002.png"),
        (sixty_four_bit, "floating-point"),
    ],
)
def test_damaged_view_is_left_out_with_a_finding(tmp_path, spoil, problem, zipped):
    content = make(tmp_path / "a")
    spoil(tmp_path / "a", content)
    write(tmp_path / "a", content)
    path = zip_up(tmp_path / "a", tmp_path / "a.zip") if zipped else tmp_path / "a"
    capture = read_capture(path)
    (finding,) = capture.findings
    assert finding.file.startswith("images/003") and problem in finding.problem and finding.remedy
    assert len(capture.frames) == 8 and "images/003" not in str(capture.frames)
    assert finding.file in doctor(path)[0]


@pytest.mark.parametrize(
    "path", ["../secret.png", "/etc/passwd", "images/../../secret.png", "..\\secret.png", "C:/x.png"]
)
def test_path_that_leaves_the_folder_is_refused(tmp_path, path):
    content = make(tmp_path / "a")
    picture(7).save(tmp_path / "secret.png")
    content["frames"][3]["file_path"] = path
    write(tmp_path / "a", content)
    (tmp_path / "a/images/003.png").unlink()
    capture = read_capture(tmp_path / "a")
    (finding,) = capture.findings
    assert finding.file == path and "leaves the capture's folder" in finding.problem
    for folder in (Folder(tmp_path / "a"), open_folder(zip_up(tmp_path / "a", tmp_path / "a.zip"))):
        with pytest.raises(EscapeError):
            folder.read(path)


def test_symbolic_links_are_resolved_before_they_are_trusted(tmp_path):
    make(tmp_path / "a")
    picture(7).save(tmp_path / "secret.png")
    for name, target in (("003", tmp_path / "secret.png"), ("004", tmp_path / "a/images/other.png")):
        (tmp_path / f"a/images/{name}.png").rename(tmp_path / f"a/images/other{name}.bak")
        (tmp_path / f"a/images/{name}.png").symlink_to(target)
    (tmp_path / "a/images/other004.bak").rename(tmp_path / "a/images/other.png")
    (tmp_path / "a/images/005.png").unlink()
    (tmp_path / "a/images/005.png").symlink_to("005.png")  # a loop
    files = {finding.file: finding.problem for finding in read_capture(tmp_path / "a").findings}
    assert "leaves" in files["images/003.png"] and "absent" in files["images/005.png"]
    assert "images/004.png" not in files


def test_zip_members_that_climb_or_link_are_not_read(tmp_path):
    make(tmp_path / "a")
    path = zip_up(tmp_path / "a", tmp_path / "a.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../evil.png", b"x")
        link = zipfile.ZipInfo("images/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "../../secret.png")
    folder = open_folder(path)
    with pytest.raises(EscapeError):
        folder.read("../evil.png")
    with pytest.raises(OSError, match="symbolic link"):
        folder.read("images/link.png")
    assert len(read_capture(path).frames) == 9


@pytest.mark.parametrize("name", ["a//b/./c.png", "a\\b\\c.png", "./a/x/../b/c.png"])
def test_clean_paths(name):
    assert clean(name) == "a/b/c.png"


def test_unlisted_and_twice_listed_images(tmp_path):
    content = make(tmp_path)
    picture(20).save(tmp_path / "images/extra.jpg")
    (tmp_path / "images/notes.txt").write_text("no image")
    content["frames"].append(content["frames"][4])
    write(tmp_path, content)
    capture = read_capture(tmp_path)
    assert [(f.file, f.problem.split(";")[0]) for f in capture.findings] == [
        ("images/004.png", "is listed twice"),
        ("images/extra.jpg", "is in the folder but no camera file lists it"),
    ]
    assert len(capture.frames) == 9


def test_odd_image_out_where_the_intrinsics_give_no_size(tmp_path):
    content = make(tmp_path)
    del content["w"], content["h"]
    write(tmp_path, content)
    picture(3).resize((12, 8)).save(tmp_path / "images/003.png")
    capture = read_capture(tmp_path)
    assert [f.file for f in capture.findings] == ["images/003.png"] and len(capture.frames) == 8


def test_image_on_its_side_follows_the_intrinsics(tmp_path):
    make(tmp_path)
    exif = Image.Exif()
    exif[274] = 6
    picture(2).save(tmp_path / "images/002.png", exif=exif)  # stored as the intrinsics say: used so
    picture(3).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "images/003.png", exif=exif)
    capture = read_capture(tmp_path)
    assert ["as stored" in f.problem for f in capture.findings] == [True, False] and len(capture.frames) == 9
    for i in (2, 3):
        np.testing.assert_array_equal(capture.load([i]).images[0], np.asarray(picture(i)))


def test_a_file_damaged_later_raises_on_load(tmp_path):
    content = make(tmp_path)
    capture = read_capture(tmp_path)
    truncated_png(tmp_path, content)
    assert len(capture.frames) == 9
    with pytest.raises(CaptureError, match=r"images/003.png.*Remedy"):
        capture.load([3])


@pytest.mark.parametrize(
    "text", ['{"frames": [', "[]", '{"frames": {}}', '{"frames": [3, {}]}', "[" * 100_000, "\xff", "null"]
)
def test_malformed_json_is_set_aside(tmp_path, text):
    make(tmp_path / "a")
    make(tmp_path / "b")
    (tmp_path / "a/transforms.json").write_bytes(text.encode("latin-1"))
    captures, set_aside = read_captures(tmp_path)
    assert [c.name for c in captures] == ["b"] and [s.name for s in set_aside] == ["a"]
    assert set_aside[0].findings[0].file == "transforms.json" and "Remedy" in set_aside[0].reason


def test_too_few_views_are_set_aside(tmp_path):
    make(tmp_path / "a", n=5)
    (tmp_path / "b.zip").write_bytes(b"PK not really")
    make(tmp_path / "deep/er/c")
    (tmp_path / "d/images").mkdir(parents=True)
    picture(0).save(tmp_path / "d/images/0.jpg")
    captures, set_aside = read_captures(tmp_path)
    assert [c.name for c in captures] == ["deep/er/c"]
    assert [s.name for s in set_aside] == ["a", "b", "d"]
    assert "of 5 listed views 4 are sound training views, 5 are needed" in set_aside[0].reason
    assert "not a sound .zip" in set_aside[1].reason and "no camera file" in set_aside[2].reason


def test_doctor_command(tmp_path, capsys):
    content = make(tmp_path / "a")
    absent(tmp_path / "a", content)
    assert main(["doctor", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "a: usable, 7 training and 1 test views of 24 x 16 pixels" in printed
    assert "images/003.png: is listed in transforms.json but absent" in printed and "Remedy:" in printed
    assert main(["doctor", str(tmp_path / "a/images")]) == 1
    assert main(["doctor", str(tmp_path / "nowhere")]) == 1
    os.remove(tmp_path / "a/transforms.json")
    assert main(["doctor", str(tmp_path)]) == 1
