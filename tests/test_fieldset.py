import dataclasses
import json

import numpy as np
import pytest

from condense.captures.choose import choose, for_training
from condense.captures.reader import read_capture
from condense.fieldset import Fitted, field_metrics, fit_capture, held_out_pair, kind_of
from condense.params import FieldsParams
from condense.paths import project_root

QUICK = FieldsParams(resolutions=(12,), steps=(4,), pixels=500)


@pytest.fixture(scope="module")
def capture():
    path = project_root() / "data" / "objects" / "aeroplane_000.zip"
    if not path.is_file():
        pytest.skip("no built-in captures: run 'make data'")
    return read_capture(path, name="objects/aeroplane_000")


def test_a_finished_field_is_kept_and_gives_the_same_answer(capture, tmp_path):
    path = tmp_path / "field.safetensors"
    first = fit_capture(capture, path, QUICK, 0)
    written = path.stat().st_mtime_ns
    assert fit_capture(capture, path, QUICK, 0) == first and path.stat().st_mtime_ns == written
    assert len(first.psnr_db) == len(capture.views("test")) and min(first.psnr_db) > 10


def test_two_fits_give_the_same_bytes(capture, tmp_path):
    for name in ("a", "b"):
        fit_capture(capture, tmp_path / f"{name}.safetensors", QUICK, 0)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    facts = [json.loads((tmp_path / f"{name}.json").read_text())["psnr_db"] for name in ("a", "b")]
    assert facts[0] == facts[1]


def test_what_cannot_be_fitted_is_listed(capture, tmp_path, monkeypatch):
    def refuse(*_):
        raise ValueError("no point is inside the masks of all views")

    monkeypatch.setattr("condense.fieldset.fit_field", refuse)
    result = fit_capture(capture, tmp_path / "field.safetensors", QUICK, 0)
    assert "inside the masks" in result.error and not list(tmp_path.iterdir())


def test_a_held_out_pair_has_one_size(capture, tmp_path):
    path = tmp_path / "field.safetensors"
    fit_capture(capture, path, QUICK, 0)
    truth, render = held_out_pair(capture, path, QUICK)
    assert truth.shape == render.shape and np.min(render) >= 0 and np.max(render) <= 1


def test_metrics_by_set():
    fitted = [Fitted("a", "object", (30.0, 32.0), 2.0), Fitted("b", "object", (28.0, 28.0), 4.0)]
    fitted += [Fitted("fox", "photographs", (25.0, 27.0), 60.0), Fitted("bad", "object", error="why")]
    metrics = field_metrics(fitted, processes=2, seed=0)
    assert metrics["builtin"]["psnr_db"]["mean"] == 29.5 and metrics["builtin"]["psnr_db"]["n"] == 2
    assert metrics["builtin"]["seconds"]["mean"] == 1.5  # wall time with two at work
    assert metrics["fox"]["psnr_db"] == pytest.approx({"mean": 26.0, "ci95": 1.0, "n": 2})
    assert "bad" not in metrics


def test_choices(capture):
    real = dataclasses.replace(capture, meta={}, name="fox")
    held = dataclasses.replace(capture, meta={**capture.meta, "heldout_class": True})
    assert choose([capture, capture, real, real], 1) == [capture, real]
    other, room = (
        dataclasses.replace(capture, meta={"split": "train", **meta})
        for meta in ({"kind": "object", "class": "other"}, {"kind": "room", "class": "kitchen"})
    )
    assert choose([capture, other, real, held, room, capture], classes=1) == [capture, real, held, room, capture]
    assert for_training([held, real]) == [real]
    assert kind_of(capture) == "object" and kind_of(real) == "cutouts"
