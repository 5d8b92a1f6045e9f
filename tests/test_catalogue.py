"""What a run's captures are is written down once, and read back the same."""

import dataclasses

import pytest
import torch
from capturefiles import make, write, zip_up

from condense.captures.capture import CaptureError
from condense.captures.catalogue import load_captures, save_captures
from condense.captures.reader import read_captures


def test_captures_come_back_as_they_were(tmp_path):
    root = tmp_path / "data"
    content = make(root / "rooms/a", mode="RGBA", k1=0.01)
    (root / "rooms/a/meta.json").write_text('{"class": "kitchen", "split": "train"}')
    content["frames"][2]["transform_matrix"][0][0] = float("nan")
    write(root / "rooms/a", content)
    make(tmp_path / "b", n=7)
    zip_up(tmp_path / "b", root / "b.zip", top="b/")
    captures, _ = read_captures(root)
    save_captures(captures, root, tmp_path / "captures.json")
    pixels = [capture.load([0]).images[0] for capture in captures]
    moved = root.rename(tmp_path / "elsewhere")
    again = load_captures(tmp_path / "captures.json", moved)
    assert [c.name for c in again] == ["b", "rooms/a"] and again[1].findings[0].file == "images/002.png"
    for before, after in zip(captures, again, strict=True):
        for field in ("name", "frames", "lenses", "findings", "meta"):
            assert getattr(before, field) == getattr(after, field)
        for field in dataclasses.fields(before.cameras):
            assert torch.equal(getattr(before.cameras, field.name), getattr(after.cameras, field.name))
        assert (after.load([0]).images[0] == pixels.pop(0)).all()


def test_a_view_that_was_set_aside_stays_so(tmp_path):
    root = tmp_path / "data"
    make(root / "a")
    data = (root / "a/images/003.png").read_bytes()
    (root / "a/images/003.png").write_bytes(data[:-30])
    save_captures(read_captures(root)[0], root, tmp_path / "captures.json")
    (capture,) = load_captures(tmp_path / "captures.json", root)
    assert len(capture.load().images) == 8 and "images/003.png" not in capture.load().names


def test_the_root_may_be_the_capture(tmp_path):
    make(tmp_path / "one")
    save_captures(read_captures(tmp_path / "one")[0], tmp_path / "one", tmp_path / "captures.json")
    (capture,) = load_captures(tmp_path / "captures.json", tmp_path / "one")
    assert capture.name == "one" and len(capture.load([1, 2]).images) == 2


@pytest.mark.parametrize("text", ["", "[", '[{"name": "a"}]', '[["a"]]', "[3]", '{"a": 1}'])
def test_a_damaged_catalogue_is_told(tmp_path, text):
    (tmp_path / "captures.json").write_text(text)
    with pytest.raises(ValueError, match=r"captures.json cannot be read .* run 00_captures again"):
        load_captures(tmp_path / "captures.json", tmp_path)


def test_files_that_have_gone_since_are_named(tmp_path):
    make(tmp_path / "data/a")
    save_captures(read_captures(tmp_path / "data")[0], tmp_path / "data", tmp_path / "captures.json")
    (tmp_path / "data/a/images/004.png").unlink()
    (capture,) = load_captures(tmp_path / "captures.json", tmp_path / "data")
    with pytest.raises(CaptureError, match=r"images/004.png.*Remedy"):
        capture.load()
