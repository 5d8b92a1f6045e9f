"""A field for every capture of a set: jobs that run side by side, keep what is finished, and lose nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from condense.captures.capture import Capture, Views
from condense.devices import open_device
from condense.field import load_field, psnr_db, render_view, save_field, target_image
from condense.fieldfit import fit_field
from condense.metrics import interval, median_interval
from condense.parallel import parallel_map
from condense.params import FieldsByKind, FieldsParams


@dataclass(frozen=True)
class Fitted:
    """What became of one capture.

    Args:
        name: of the capture.
        kind: see `kind_of`.
        psnr_db: of each held-out view; () where there is none.
        seconds: that the fit took, one process.
        voxels: of the field.
        error: why there is no field, or "".
    """

    name: str
    kind: str
    psnr_db: tuple[float, ...] = ()
    seconds: float = 0.0
    voxels: int = 0
    error: str = ""


def fit_captures(
    captures: Sequence[Capture], folder: Path, params: FieldsByKind, seed: int, processes: int
) -> list[Fitted]:
    """Fits every capture and scores it on its held-out views, which the fit never sees.

    Args:
        captures: to fit.
        folder: gets `<capture's name>.safetensors` and `.json`; one that is there is not fitted again.
        params: settings by kind of capture.
        seed: of every fit.
        processes: that work side by side.

    Returns:
        One entry a capture, in order; a capture that cannot be fitted has its `error`, and no file.
    """
    jobs = [
        (capture, folder / f"{capture.name}.safetensors", getattr(params, kind_of(capture)), seed, params.device)
        for capture in captures
    ]
    return parallel_map(fit_capture, jobs, processes, "fields")


def kind_of(capture: Capture) -> str:
    """ "object" or "room" of the built-in captures; of others "cutouts" where they have masks, else "photographs"."""
    return str(capture.meta.get("kind", "cutouts" if capture.frames[0].mask else "photographs"))


def fit_capture(capture: Capture, path: Path, params: FieldsParams, seed: int, device: str = "cpu") -> Fitted:
    """Fits one capture, or reads what an earlier run found. One job of `parallel_map`."""
    kind = kind_of(capture)
    if path.is_file():
        return _fitted(capture.name, kind, load_field(path)[1])
    views = {split: capture.load(capture.views(split), params.max_side) for split in ("train", "test")}
    there = open_device(device)
    started = time.perf_counter()
    try:
        field = fit_field(views["train"], params, seed, there)
    except ValueError as error:
        return Fitted(capture.name, kind, error=str(error))
    seconds = time.perf_counter() - started
    facts = {"psnr_db": psnr_db(field, views["test"]), "seconds": round(seconds, 2), "voxels": len(field.coords)}
    save_field(field, path, **facts)
    return _fitted(capture.name, kind, facts)


def _fitted(name: str, kind: str, facts: Mapping[str, Any]) -> Fitted:
    return Fitted(name, kind, tuple(facts["psnr_db"]), facts["seconds"], facts["voxels"])


def held_out_pair(capture: Capture, path: Path, params: FieldsParams, number: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A held-out view and the field's render of it, [H, W, 3] float; with masks, both over white."""
    views: Views = capture.load(capture.views("test")[number : number + 1], params.max_side)
    field, _ = load_field(path)
    target, mask = target_image(views, 0)
    truth = target if mask is None else target + 1 - mask[..., None]
    background = None if mask is None else truth.new_ones(3)
    return truth.numpy(), render_view(field, views.cameras, 0, background=background)[0].numpy()


def field_metrics(fitted: Sequence[Fitted], processes: int, seed: int) -> dict[str, dict[str, Any]]:
    """The metric file of the fields, by set of captures: `builtin`, `builtin_rooms`, or each real capture by name.

    `psnr_db` is the mean over captures of the mean over held-out views (over views for a single capture),
    `median_psnr_db` the median over captures; `seconds` is wall time a capture with `processes` side by side.
    """
    names = {"object": "builtin", "room": "builtin_rooms"}
    sets: dict[str, list[Fitted]] = {}
    for one in fitted:
        if not one.error:
            sets.setdefault(names.get(one.kind, one.name), []).append(one)
    metrics: dict[str, dict[str, Any]] = {}
    for name, members in sets.items():
        row = {"seconds": interval([one.seconds / processes for one in members], seed)}
        scored = [np.mean(one.psnr_db) for one in members if one.psnr_db]
        values = scored if len(members) > 1 else list(members[0].psnr_db)
        if values:
            row["psnr_db"] = interval(values, seed)
            row["median_psnr_db"] = median_interval(values, seed)
        metrics[name] = row
    return metrics
