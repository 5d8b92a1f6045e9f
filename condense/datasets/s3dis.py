"""S3DIS (Armeni et al., CVPR 2016): scanned rooms, `Stanford3dDataset_v1.2_Aligned_Version`, metres, +Z up.

`Area_k/<room>/Annotations/<class>_<n>.txt`, one file an object, of lines `x y z r g b` with colours 0 to 255. A
room is the union of its objects. Classes that are not among the thirteen (`stairs`) count as clutter.
"""

from __future__ import annotations

import re
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch

from condense.captures.capture import Finding
from condense.datasets.files import AGAIN, require
from condense.datasets.pointset import Contents, DatasetError, Entry, PointSet

NAMES = "ceiling floor wall beam column window door table chair sofa bookcase board clutter"
CLASSES = tuple(NAMES.split())  # in the usual order; labels count from 1
AREAS = range(1, 7)
STRAY = re.compile(rb"[^\x20-\x7e\t\r]")
MOST_DAMAGED = 0.01  # share of a file's lines; with more it is another file, not one with a slip


def open_s3dis(root: Path, test_area: int = 5) -> PointSet:
    """Opens the data set; the rooms of `test_area` are the test split, as in most reports, the others train.

    Raises:
        ValueError: no such area.
    """
    if test_area not in AREAS:
        raise ValueError(f"S3DIS has the areas 1 to 6, not {test_area}")
    require(root, "s3dis", ["Area_[1-6]"])
    entries, findings = [], []
    for area in AREAS:
        rooms = sorted(folder for folder in (root / f"Area_{area}").glob("*") if folder.is_dir())
        rooms = [room for room in rooms if not room.name.startswith(".")]
        if not rooms:
            findings.append(Finding(f"Area_{area}", "holds no room", "finish the download"))
        for room in rooms:
            name = room.relative_to(root).as_posix()
            if not objects(room):
                problem = "has no annotations (Annotations/<class>_<n>.txt); set aside"
                findings.append(Finding(name, problem, "finish the download"))
                continue
            split = "test" if area == test_area else "train"
            entries.append(Entry(name, name, split, None, partial(read_room, root, name)))
    return PointSet("s3dis", (), CLASSES, tuple(entries), tuple(findings))


def objects(room: Path) -> list[Path]:
    """The annotation files of a room, sorted."""
    return sorted(path for path in (room / "Annotations").glob("*.txt") if not path.name.startswith("."))


def read_room(root: Path, name: str) -> Contents:
    """All objects of one room, in the order of their files.

    Raises:
        DatasetError: a file is damaged beyond some lines.
    """
    rows, labels = [], []
    findings: list[Finding] = []
    for path in objects(root / name):
        file = path.relative_to(root).as_posix()
        found = read_rows(path, file, findings)
        kind = path.name.split("_")[0]
        rows.append(found.astype(np.float32))
        labels.append(np.full(len(found), 1 + CLASSES.index(kind if kind in CLASSES else "clutter")))
    table = torch.from_numpy(np.concatenate(rows))
    colours = (table[:, 3:] / 255).clamp(0, 1)
    return Contents(table[:, :3].contiguous(), colours, torch.from_numpy(np.concatenate(labels)), tuple(findings))


def read_rows(path: Path, file: str, findings: list[Finding]) -> np.ndarray:
    """The lines [P, 6] of an annotation file; damaged lines are left out and added to `findings`.

    The release has such lines: in Area_5/hallway_6/Annotations/ceiling_1.txt, line 180389, a control character
    stands where a blank should be.

    Raises:
        DatasetError: more than MOST_DAMAGED of the lines are damaged, or there are none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an empty file is told below
            rows = np.loadtxt(path, dtype=np.float64, ndmin=2, comments=None, encoding="latin-1")
        if rows.shape[1] == 6 and len(rows):
            return rows
    except ValueError:
        pass
    except OSError as error:
        raise DatasetError(file, [Finding(file, f"cannot be read ({error})", AGAIN)]) from error
    return _rows_one_by_one(path, file, findings)


def _rows_one_by_one(path: Path, file: str, findings: list[Finding]) -> np.ndarray:
    """`read_rows`, slower by far, but for damaged files only."""
    lines = path.read_bytes().split(b"\n")
    rows, damaged = [], []
    for number, line in enumerate(lines, start=1):
        values = _numbers(line)
        if values is not None:
            rows.append(values)
        elif line.strip():
            damaged.append(number)
    if not rows or len(damaged) > max(1, MOST_DAMAGED * len(lines)):
        problem = f"has {len(rows)} lines of six numbers, x y z r g b, and {len(damaged)} that are not"
        raise DatasetError(file, [Finding(file, problem, AGAIN)])
    for number in damaged:
        line = lines[number - 1]
        why = "has a stray control or non-ASCII character" if STRAY.search(line) else "is not six numbers"
        problem = f"line {number} {why} and is set aside: {line.decode('latin-1')!r}"
        findings.append(Finding(file, problem, "put a blank in place of the character, or delete the line"))
    return np.array(rows)


def _numbers(line: bytes) -> list[float] | None:
    try:
        values = [float(word) for word in line.split()]
    except ValueError:
        return None
    return values if len(values) == 6 else None
