"""ShapeNetPart (Yi et al., SIGGRAPH Asia 2016): CAD models of 16 classes with 50 part labels, +Y up.

`shapenetcore_partanno_segmentation_benchmark_v0_normal` (PointNet++'s): `<synset>/<id>.txt` of lines
`x y z nx ny nz part`; `synsetoffset2category.txt`; `train_test_split/shuffled_{train,val,test}_file_list.json`
list `shape_data/<synset>/<id>`.
`hdf5_data` (PointNet's): `{train,val,test}_hdf5_file_list.txt` list `ply_data_*.h5` with `data` [N, 2048, 3],
`label` [N, 1] and `pid` [N, 2048].
Both number parts 0 to 49 over all classes; point labels here count from 1.
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from condense.captures.capture import Finding
from condense.datasets.files import AGAIN, absent, index_h5, read_list, require
from condense.datasets.pointset import Contents, DatasetError, Entry, PointSet, z_up

PART_COUNTS = {
    "Airplane": 4,
    "Bag": 2,
    "Cap": 2,
    "Car": 4,
    "Chair": 4,
    "Earphone": 3,
    "Guitar": 3,
    "Knife": 2,
    "Lamp": 4,
    "Laptop": 2,
    "Motorbike": 6,
    "Mug": 2,
    "Pistol": 3,
    "Rocket": 3,
    "Skateboard": 3,
    "Table": 3,
}  # in the order of the labels; parts are numbered through, 0-3 for Airplane, 4-5 for Bag, ...
CLASSES = tuple(PART_COUNTS)
PART_NAMES = tuple(f"{name} part {i + 1}" for name, count in PART_COUNTS.items() for i in range(count))
SPLITS = ("train", "val", "test")
CATEGORIES = "synsetoffset2category.txt"


def _parts() -> dict[str, tuple[int, ...]]:
    first = np.cumsum([1, *PART_COUNTS.values()]).tolist()
    return {name: tuple(range(first[i], first[i + 1])) for i, name in enumerate(CLASSES)}


PARTS = _parts()  # class → its point labels, counted from 1


def open_shapenetpart(root: Path) -> PointSet:
    """Opens either release; `root` is the folder with `synsetoffset2category.txt`, or `hdf5_data`."""
    require(root, "shapenetpart", [CATEGORIES, "train_hdf5_file_list.txt"])
    entries, findings = _index_text(root) if (root / CATEGORIES).is_file() else _index_hdf5(root)
    return PointSet("shapenetpart", CLASSES, PART_NAMES, tuple(entries), tuple(findings), PARTS)


def _index_hdf5(root: Path) -> tuple[list[Entry], list[Finding]]:
    entries: list[Entry] = []
    findings: list[Finding] = []
    for split in SPLITS:
        source = f"{split}_hdf5_file_list.txt"
        listed, problems = read_list(root, source)
        findings += problems
        for file in (PurePosixPath(path).name for path in listed):
            if not (root / file).is_file():
                findings.append(absent(file, source))
                continue
            found, problems = index_h5(root, file, split, CLASSES, "pid", from_zero)
            entries += found
            findings += problems
    return entries, findings


def from_zero(labels: Tensor) -> Tensor:
    """Labels counted from 1 of labels counted from 0."""
    return labels + 1


def _index_text(root: Path) -> tuple[list[Entry], list[Finding]]:
    label_of = _synsets(root)
    entries, findings = [], []
    for split in SPLITS:
        source = f"train_test_split/shuffled_{split}_file_list.json"
        listed, problems = read_list(root, source)
        findings += problems
        for path in listed:
            file = "/".join(PurePosixPath(path).parts[-2:]) + ".txt"  # without `shape_data/`
            label = label_of.get(file.split("/")[0])
            if label is None:
                findings.append(Finding(file, f"is listed in {source}, but {CATEGORIES} lacks its synset", AGAIN))
            elif not (root / file).is_file():
                findings.append(absent(file, source))
            else:
                name = file.removesuffix(".txt")
                entries.append(Entry(name, file, split, label, partial(read_text, root / file, file)))
    return entries, findings


def _synsets(root: Path) -> dict[str, int]:
    """Synset → class."""
    lines = [line.split() for line in (root / CATEGORIES).read_text().split("\n") if line.strip()]
    if any(len(line) != 2 or line[0] not in CLASSES for line in lines):
        problem = "does not list the 16 classes of ShapeNetPart, each with its synset"
        raise DatasetError("shapenetpart", [Finding(CATEGORIES, problem, AGAIN)])
    return {synset: CLASSES.index(name) for name, synset in lines}


def read_text(path: Path, file: str) -> Contents:
    """One model of the text release.

    Raises:
        DatasetError: a line is not seven numbers.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an empty file is told below
            rows = np.loadtxt(path, dtype=np.float64, ndmin=2, comments=None)
        if rows.shape[1] != 7 or not len(rows):
            raise ValueError(f"it holds {rows.shape[0]} lines of {rows.shape[1]} numbers")
    except (OSError, ValueError) as error:
        finding = Finding(file, f"is not lines of seven numbers, x y z nx ny nz part ({error})", AGAIN)
        raise DatasetError(file, [finding]) from error
    points = torch.from_numpy(rows[:, :3].astype(np.float32))
    return Contents(z_up(points), labels=from_zero(torch.from_numpy(rows[:, 6].astype(np.int64))))
