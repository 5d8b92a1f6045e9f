"""What the readers share: the right root, lists of files, and rows of HDF5 files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from condense.captures.capture import Finding
from condense.captures.folder import EscapeError, clean
from condense.datasets.pointset import Contents, DatasetError, Entry, z_up

AGAIN = "download or unpack the file again"
BLOCK = 128  # rows of an HDF5 file, read at once


def require(root: Path, name: str, patterns: Sequence[str]) -> None:
    """Checks that `root` is the folder that the release unpacks to.

    Args:
        root: what the user named.
        name: of the data set.
        patterns: glob patterns below the root; one match shows that it is the right folder.

    Raises:
        DatasetError: it is not; the message says what was looked for, and names the right folder if that is the
            one above or one below.
    """
    if _holds(root, patterns):
        return
    wanted = " or ".join(patterns)
    if not root.is_dir():
        problem, near = "is not a folder", []
    else:
        problem = f"holds no {wanted}"
        children = sorted(child for child in root.iterdir() if child.is_dir())
        near = [folder for folder in [*children, root.resolve().parent] if _holds(folder, patterns)]
    remedy = f"name {near[0]} instead" if near else f"name the unpacked folder that holds {wanted}"
    raise DatasetError(name, [Finding(str(root), problem, remedy)])


def _holds(folder: Path, patterns: Sequence[str]) -> bool:
    try:
        return any(next(folder.glob(pattern), None) is not None for pattern in patterns)
    except OSError:  # a folder that may not be read
        return False


def read_list(root: Path, file: str) -> tuple[list[str], list[Finding]]:
    """The clean relative paths that a list names, from lines of text or from a JSON list.

    Symbolic links are not followed here: large scans are often linked in from another disk, by the user's choice.
    A list is somebody else's, so a path in it that leaves the root becomes a finding.
    """
    path = root / file
    if not path.is_file():
        return [], [Finding(file, "is absent, so that its split has no clouds", "download the release again")]
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = json.loads(text) if path.suffix == ".json" else text.split("\n")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("not a list of names")
    except (OSError, ValueError, RecursionError) as error:
        return [], [Finding(file, f"cannot be read ({error})", AGAIN)]
    cleaned, findings = [], []
    for name in filter(None, map(str.strip, names)):
        try:
            cleaned.append(clean(name))
        except EscapeError:
            findings.append(Finding(file, f"lists {name!r}, a path that leaves the folder; refused", AGAIN))
    return cleaned, findings


def absent(file: str, source: str) -> Finding:
    """A listed file that is not there: what an unfinished download leaves."""
    return Finding(file, f"is listed in {source} but absent; set aside", "finish the download")


def index_h5(
    root: Path,
    file: str,
    split: str,
    classes: Sequence[str],
    key: str | None = None,
    to_labels: Callable[[Tensor], Tensor] | None = None,
) -> tuple[list[Entry], list[Finding]]:
    """An entry for every row of an HDF5 file with `data` [N, P, 3], +Y up, and `label` [N] or [N, 1].

    Args:
        root: of the data set.
        file: relative to the root; one that is absent or truncated becomes a finding.
        split: of its rows.
        classes: labels must lie in 0 ... len(classes) - 1.
        key: array [N, P] of point labels in the file, if any.
        to_labels: from those values to labels counted from 1; a module's function.

    Raises:
        DatasetError: the file is whole, but not what it should be.
    """
    try:
        with h5py.File(root / file, "r") as h5:
            missing = [array for array in ("data", "label") if array not in h5]
            if missing:
                raise DatasetError(file, [Finding(file, f"has no array {missing[0]!r}, only {sorted(h5)}", AGAIN)])
            shape, labels = h5["data"].shape, np.asarray(h5["label"]).reshape(-1).astype(np.int64)
            given = h5[key].shape if key is not None and key in h5 else None
    except OSError as error:
        return [], [Finding(file, f"cannot be opened ({error}); set aside", AGAIN)]
    _check_h5(file, shape, labels, len(classes))
    findings = []
    if key is not None and given is None:
        findings.append(Finding(file, f"has no array {key!r}: its points have no labels", AGAIN))
    elif key is not None and given != shape[:2]:
        raise DatasetError(file, [Finding(file, f"has data of shape {shape} and {key} of shape {given}", AGAIN)])
    key = key if given else None
    stem, entries = Path(file).stem, []
    for row, label in enumerate(labels.tolist()):
        read = partial(read_h5, root / file, row, key, to_labels)
        entries.append(Entry(f"{stem}/{row:05d}", file, split, label, read))
    return entries, findings


def _check_h5(file: str, shape: tuple[int, ...], labels: np.ndarray, classes: int) -> None:
    if len(shape) != 3 or shape[2] != 3 or len(labels) != shape[0]:
        problem = f"has data of shape {shape} and {len(labels)} labels, not [N, P, 3] and N"
        raise DatasetError(file, [Finding(file, problem, AGAIN)])
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        problem = f"has the label {labels[outside][0]} in row {outside.argmax()}, outside 0 to {classes - 1}"
        raise DatasetError(file, [Finding(file, problem, "name the data set that the file belongs to, or replace it")])


def read_h5(path: Path, row: int, key: str | None, to_labels: Callable[[Tensor], Tensor] | None) -> Contents:
    """One row of an HDF5 file; the file is open only for as long as this takes.

    Raises:
        DatasetError: the row cannot be read.
    """
    try:
        stamp = path.stat().st_mtime_ns
        rows = {array: _rows(path, stamp, array, row // BLOCK)[row % BLOCK] for array in ("data", key) if array}
    except (OSError, KeyError, IndexError) as error:
        raise DatasetError(path.name, [Finding(path.name, f"row {row} cannot be read ({error})", AGAIN)]) from error
    points = torch.from_numpy(rows["data"].astype(np.float32))
    labels = torch.from_numpy(rows[key].astype(np.int64)) if key else None
    if labels is not None and to_labels is not None:
        labels = to_labels(labels)
    return Contents(z_up(points), labels=labels)


@lru_cache(maxsize=4)  # a few MB at most
def _rows(path: Path, stamp: int, array: str, block: int) -> np.ndarray:
    """[BLOCK, ...] rows of an array. The releases compress so many rows together, and readers ask for them in turn."""
    with h5py.File(path, "r") as h5:
        return h5[array][block * BLOCK : (block + 1) * BLOCK]
