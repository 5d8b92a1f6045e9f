"""ModelNet40 (Wu et al., CVPR 2015): CAD models of 40 classes, as HDF5 points or as OFF meshes.

`modelnet40_ply_hdf5_2048` (PointNet's): `train_files.txt` and `test_files.txt` list `ply_data_*.h5` by their path
in PointNet's own checkout; `data` [N, 2048, 3] in the unit ball, +Y up; `label` [N, 1].
`ModelNet40/<class>/{train,test}/*.off` (Princeton's): meshes, +Z up, in arbitrary units; the header of many reads
`OFF123 456 0` on one line.
"""

from __future__ import annotations

import zlib
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import torch
import trimesh

from condense.captures.capture import Finding
from condense.datasets.files import AGAIN, absent, index_h5, read_list, require
from condense.datasets.pointset import Contents, DatasetError, Entry, PointSet

NAMES = """
    airplane bathtub bed bench bookshelf bottle bowl car chair cone cup curtain desk door dresser flower_pot
    glass_box guitar keyboard lamp laptop mantel monitor night_stand person piano plant radio range_hood sink sofa
    stairs stool table tent toilet tv_stand vase wardrobe xbox
"""
CLASSES = tuple(NAMES.split())  # in the order of the labels
POINTS = 2048  # sampled from a mesh, as many as the HDF5 release has


def open_modelnet40(root: Path) -> PointSet:
    """Opens either release; `root` is `modelnet40_ply_hdf5_2048` or `ModelNet40`."""
    require(root, "modelnet40", ["train_files.txt", "*/train/*.off"])
    entries, findings = _index_hdf5(root) if (root / "train_files.txt").is_file() else _index_off(root)
    return PointSet("modelnet40", CLASSES, (), tuple(entries), tuple(findings))


def _index_hdf5(root: Path) -> tuple[list[Entry], list[Finding]]:
    names = root / "shape_names.txt"
    if names.is_file() and tuple(names.read_text().split()) != CLASSES:
        problem = "does not hold the 40 classes of ModelNet40 in their order"
        raise DatasetError("modelnet40", [Finding(names.name, problem, AGAIN)])
    entries: list[Entry] = []
    findings: list[Finding] = []
    for split in ("train", "test"):
        source = f"{split}_files.txt"
        listed, problems = read_list(root, source)
        findings += problems
        for file in (PurePosixPath(path).name for path in listed):  # the folders are those of PointNet's checkout
            if not (root / file).is_file():
                findings.append(absent(file, source))
                continue
            found, problems = index_h5(root, file, split, CLASSES)
            entries += found
            findings += problems
    return entries, findings


def _index_off(root: Path) -> tuple[list[Entry], list[Finding]]:
    entries, findings = [], []
    for label, name in enumerate(CLASSES):
        for split in ("train", "test"):
            paths = sorted(path for path in (root / name / split).glob("*.off") if not path.name.startswith("."))
            if not paths:
                findings.append(Finding(f"{name}/{split}", "holds no .off file", "finish the download"))
            for path in paths:
                file = path.relative_to(root).as_posix()
                entries.append(Entry(path.stem, file, split, label, partial(read_off, path, file)))
    return entries, findings


def read_off(path: Path, file: str) -> Contents:
    """POINTS points on the surface of a mesh, uniform by area; the same ones every time.

    Raises:
        DatasetError: the mesh cannot be read, or has no area.
    """
    try:
        mesh = trimesh.load(path, file_type="off", process=False)  # trimesh knows the one-line header
        if not isinstance(mesh, trimesh.Trimesh) or not mesh.area > 0:
            raise ValueError("it has no surface")
        seed = zlib.crc32(file.encode())  # by file, so that a cloud does not depend on those read before it
        points = trimesh.sample.sample_surface(mesh, POINTS, seed=seed)[0]
    except (OSError, ValueError, IndexError, TypeError, KeyError, AttributeError) as error:
        finding = Finding(file, f"is not a sound OFF mesh ({error})", AGAIN)
        raise DatasetError(file, [finding]) from error
    return Contents(torch.from_numpy(np.asarray(points, dtype=np.float32)))
