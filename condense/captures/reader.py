"""Reads captures: one folder or .zip, or every one below a folder; `doctor` says what is wrong with them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from condense.cameras import Cameras
from condense.captures.capture import Capture, CaptureError, Finding, Frame
from condense.captures.checks import Sound, sound_views, unlisted_images
from condense.captures.colmap import find_colmap, read_colmap
from condense.captures.folder import Folder, open_folder
from condense.captures.images import is_image
from condense.captures.lens import undistorted
from condense.captures.listing import Listing
from condense.captures.transforms import find_transforms, read_transforms

MIN_TRAIN = 5  # views; fewer do not pin down a field


def read_capture(path: Path, test_every: int = 8, name: str | None = None) -> Capture:
    """Reads one capture.

    Args:
        path: a folder or .zip with `transforms.json` (or `transforms_train.json`, ...) or a COLMAP model.
        test_every: where the files name no test views, every so many views sorted by name are test views.
        name: of the capture; None takes the folder's.

    Raises:
        CaptureError: fewer than MIN_TRAIN sound training views remain, or there is nothing to read.
    """
    path = Path(path)
    name = name or _stem(path)
    try:
        folder = open_folder(path)
        listing = _listing(folder)
        meta, findings = _meta(folder)
    except OSError as error:
        raise CaptureError(name, [Finding(path.name, str(error), "check the path and the file")]) from error
    findings = [*listing.findings, *findings]
    views, problems = sound_views(folder, listing.views)
    findings += problems + unlisted_images(folder, listing)
    views, problems = _with_masks(views)
    views, more = _with_splits(sorted(views, key=lambda view: view.image), test_every)
    findings += problems + more
    if sum(view.split == "train" for view in views) < MIN_TRAIN:
        raise CaptureError(name, [*findings, _too_few(path.name, folder, listing, views)])
    return _capture(name, folder, views, findings, meta)


def _stem(path: Path) -> str:
    return path.stem if path.suffix.lower() == ".zip" else path.resolve().name


def _listing(folder: Folder) -> Listing:
    """The first camera file that lists any view; the findings of those before it are kept."""
    found = Listing(())
    for read in (read_transforms, read_colmap):
        listing = read(folder)
        found = Listing(listing.views, found.findings + listing.findings, listing.unused)
        if found.views:
            break
    return found


def _too_few(file: str, folder: Folder, listing: Listing, views: list[Sound]) -> Finding:
    if listing.views:
        train = sum(view.split == "train" for view in views)
        problem = f"of {len(listing.views)} listed views {train} are sound training views, {MIN_TRAIN} are needed"
        return Finding(file, problem, "mend what is listed above, or add views")
    images = sum(is_image(image) for image in folder.files() + folder.files("images"))
    problem = f"{images} images, but no camera file that can be read (transforms.json or a COLMAP model)"
    return Finding(file, problem, "find their cameras: 'condense pose FOLDER'; a public data set: 'condense adopt'")


def _meta(folder: Folder) -> tuple[dict[str, Any], list[Finding]]:
    if not folder.exists("meta.json"):
        return {}, []
    try:
        meta = json.loads(folder.read("meta.json"))
        if isinstance(meta, dict):
            return meta, []
        problem = "is not a JSON object"
    except (ValueError, RecursionError) as error:
        problem = f"is not JSON ({error})"
    return {}, [Finding("meta.json", f"{problem}; ignored", "write it again")]


def _with_masks(views: list[Sound]) -> tuple[list[Sound], list[Finding]]:
    """Masks and labels for all views or for none; alpha is a mask where any view is transparent anywhere."""
    findings = []
    if any(view.transparent and not view.mask for view in views):
        views = [view if view.mask else replace(view, mask=view.image) for view in views]
    for kind in ("mask", "labels"):
        having = [view for view in views if getattr(view, kind)]
        if 0 < len(having) < len(views):
            lacking = next(view for view in views if not getattr(view, kind))
            problem = f"has no {kind}, as {len(views) - len(having)} of {len(views)} views; {kind} ignored for all"
            findings.append(Finding(lacking.image, problem, f"give every view a {kind} entry, or none"))
            nothing: dict[str, Any] = {kind: None}
            views = [replace(view, **nothing) for view in views]
    return views, findings


def _with_splits(views: list[Sound], test_every: int) -> tuple[list[Sound], list[Finding]]:
    """Each view train or test: as listed, else every `test_every`-th is test. Validation serves if no test does."""
    listed = {view.split for view in views}
    held = "test" if "test" in listed else "val"
    findings = []
    if held == "test" and "val" in listed:
        spare = [view for view in views if view.split == "val"]
        problem = f"is one of {len(spare)} validation views, which are not used where there are test views"
        findings.append(Finding(spare[0].image, problem, "none needed"))
        views = [view for view in views if view.split != "val"]
    if held in listed:
        return [replace(view, split="test" if view.split == held else "train") for view in views], findings
    return [replace(v, split="train" if i % test_every else "test") for i, v in enumerate(views)], findings


def _capture(name: str, folder: Folder, views: list[Sound], findings: list[Finding], meta: dict[str, Any]) -> Capture:
    straight = [undistorted(view.lens) for view in views]
    return Capture(
        name=name,
        folder=folder,
        frames=tuple(Frame(v.image, v.image, v.mask, v.labels, v.split or "train") for v in views),
        cameras=Cameras(
            K=torch.from_numpy(np.stack([K for K, _ in straight])).float(),
            T_world_from_camera=torch.from_numpy(np.stack([view.pose for view in views])).float(),
            sizes=torch.tensor([size for _, size in straight]),
        ),
        lenses=tuple(view.lens for view in views),
        findings=tuple(findings),
        meta=meta,
    )


def _walk(directory: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Every folder and .zip below `directory` (itself included) that is or should be a capture, sorted."""
    real = directory.resolve()
    if real in above:  # a link back up
        return
    here = Folder(directory)
    photographs = any(is_image(file) for file in here.files() + here.files("images"))
    if find_transforms(here) or find_colmap(here) or photographs:
        yield directory
        return
    for child in sorted(directory.iterdir()):
        if child.name.startswith("."):
            continue
        if child.is_dir():
            yield from _walk(child, above | {real})
        elif child.suffix.lower() == ".zip":
            yield child


def read_captures(folder: Path, test_every: int = 8) -> tuple[list[Capture], list[CaptureError]]:
    """Every capture below `folder`, and why others cannot be used; both sorted by name.

    A folder that is itself a capture is the one capture. Arguments are those of `read_capture`.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"{folder} does not exist: name a folder of captures")
    captures: list[Capture] = []
    set_aside: list[CaptureError] = []
    taken: set[str] = set()
    for path in [folder] if folder.is_file() else _walk(folder):
        name = _stem(path) if path == folder else (path.parent / _stem(path)).relative_to(folder).as_posix()
        name = f"{name}.zip" if name in taken else name  # beside a folder of the same name
        taken.add(name)
        try:
            captures.append(read_capture(path, test_every, name))
        except CaptureError as error:
            set_aside.append(error)
    return sorted(captures, key=lambda c: c.name), sorted(set_aside, key=lambda s: s.name)


def doctor(folder: Path) -> tuple[str, int]:
    """The data-quality list of every capture below `folder` as text, and how many captures can be used.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    captures, set_aside = read_captures(folder)
    lines = []
    for capture in captures:
        train, test = len(capture.views("train")), len(capture.views("test"))
        masks = ", masks" * bool(capture.frames[0].mask) + ", labels" * bool(capture.frames[0].labels)
        sizes = " ".join(sorted({f"{w} x {h}" for w, h in capture.cameras.sizes.tolist()}))
        lines.append(f"{capture.name}: usable, {train} training and {test} test views of {sizes} pixels{masks}")
        lines += _findings_text(capture.findings)
    for aside in set_aside:
        lines.append(f"{aside.name}: SET ASIDE, {aside.findings[-1].problem}")
        lines += _findings_text(aside.findings)
    lines.append(f"{len(captures)} usable captures, {len(set_aside)} set aside")
    return "\n".join(lines), len(captures)


def _findings_text(findings: tuple[Finding, ...]) -> list[str]:
    """One paragraph for each kind of problem, naming every file that has it."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        kinds.setdefault((finding.problem, finding.remedy), []).append(finding.file)
    lines = []
    for (problem, remedy), files in kinds.items():
        which = f"{problem} ({len(files)} files): {', '.join(files)}" if len(files) > 1 else f"{files[0]}: {problem}"
        text = f"{which}. Remedy: {remedy}."
        lines += textwrap.wrap(text, 110, initial_indent="  - ", subsequent_indent="    ")
    return lines
