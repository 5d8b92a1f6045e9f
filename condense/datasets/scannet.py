"""ScanNet v2 (Dai et al., CVPR 2017): scanned rooms as meshes, metres, +Z up.

`scans/<scene>/<scene>_vh_clean_2.ply` (vertices with colour) and `<scene>_vh_clean_2.labels.ply` (the same
vertices with the property `label`, an NYU40 id; the README of the release says ScanNet ids, but see
github.com/ScanNet/ScanNet/issues/90). `scannetv2_{train,val,test}.txt` list scenes; they are in
github.com/ScanNet/ScanNet, folder Tasks/Benchmark, and belong beside `scans`. Test scenes lie in `scans_test` and
have no labels. The benchmark scores 20 of the 40 ids; all others are 0 = ignored here.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from condense.captures.capture import Finding
from condense.datasets.files import AGAIN, absent, read_list, require
from condense.datasets.ply import read_vertices
from condense.datasets.pointset import Contents, DatasetError, Entry, PointSet

NYU40 = {
    "wall": 1,
    "floor": 2,
    "cabinet": 3,
    "bed": 4,
    "chair": 5,
    "sofa": 6,
    "table": 7,
    "door": 8,
    "window": 9,
    "bookshelf": 10,
    "picture": 11,
    "counter": 12,
    "desk": 14,
    "curtain": 16,
    "refrigerator": 24,
    "shower curtain": 28,
    "toilet": 33,
    "sink": 34,
    "bathtub": 36,
    "otherfurniture": 39,
}  # class → the id that the release stores, and that the benchmark's server wants
CLASSES = tuple(NYU40)
SPLITS = ("train", "val", "test")


def open_scannet(root: Path) -> PointSet:
    """Opens the data set; `root` holds `scans` and the lists of scenes.

    Raises:
        DatasetError: there is no list, or no listed scene is there.
    """
    require(root, "scannet", ["scans", "scans_test"])
    lists = [split for split in SPLITS if (root / f"scannetv2_{split}.txt").is_file()]
    if not lists:
        remedy = f"copy scannetv2_*.txt from github.com/ScanNet/ScanNet, Tasks/Benchmark, to {root}"
        finding = Finding("scannetv2_train.txt, scannetv2_val.txt", "are absent: no scene has a split", remedy)
        raise DatasetError("scannet", [finding])
    entries, findings = [], []
    for split in lists:
        source = f"scannetv2_{split}.txt"
        scenes, problems = read_list(root, source)
        findings += problems
        for scene in scenes:
            entry = _entry(root, scene, split, source)
            if isinstance(entry, Finding):
                findings.append(entry)
            else:
                entries.append(entry)
    return PointSet("scannet", (), CLASSES, tuple(entries), tuple(findings))


def _entry(root: Path, scene: str, split: str, source: str) -> Entry | Finding:
    folders = ("scans_test", "scans") if split == "test" else ("scans",)
    files = [f"{folder}/{scene}/{scene}_vh_clean_2.ply" for folder in folders]
    file = next((file for file in files if (root / file).is_file()), None)
    if file is None:
        return absent(files[0], source)
    labels = None if split == "test" else file.removesuffix(".ply") + ".labels.ply"
    if labels is not None and not (root / labels).is_file():
        problem = f"is absent, so that {scene} has no labels; set aside"
        return Finding(labels, problem, "download the type _vh_clean_2.labels.ply too")
    return Entry(scene, file, split, None, partial(read_scene, root, file, labels))


def read_scene(root: Path, file: str, labels: str | None) -> Contents:
    """One scene.

    Raises:
        DatasetError: a file is damaged, or the two are not of the same mesh.
    """
    vertices = _table(root, file, ("x", "y", "z", "red", "green", "blue"))
    points = np.stack([vertices[axis] for axis in "xyz"], axis=1).astype(np.float32)
    colours = np.stack([vertices[name] for name in ("red", "green", "blue")], axis=1).astype(np.float32) / 255
    if labels is None:
        return Contents(torch.from_numpy(points), torch.from_numpy(colours))
    ids = _table(root, labels, ("label",))["label"].astype(np.int64)
    if len(ids) != len(points):
        problem = f"has {len(ids)} vertices, and {file} has {len(points)}"
        raise DatasetError(file, [Finding(labels, problem, "download both files again")])
    findings = _unknown_ids(labels, ids)
    kept = torch.from_numpy(np.isin(ids, list(NYU40.values())) * (1 + np.searchsorted(list(NYU40.values()), ids)))
    return Contents(torch.from_numpy(points), torch.from_numpy(colours), kept, findings)


def _table(root: Path, file: str, wanted: tuple[str, ...]) -> np.ndarray:
    try:
        vertices = read_vertices(root / file)
        lacking = [name for name in wanted if name not in (vertices.dtype.names or ())]
        if lacking:
            raise ValueError(f"its vertices have no property {lacking[0]!r}")
    except (OSError, ValueError, IndexError) as error:
        raise DatasetError(file, [Finding(file, f"is not a sound PLY file ({error})", AGAIN)]) from error
    return vertices


def _unknown_ids(file: str, ids: np.ndarray) -> tuple[Finding, ...]:
    """The release has ids 50 and 149 in three scenes (github.com/ScanNet/ScanNet/issues/20)."""
    unknown = ids[(ids < 0) | (ids > 40)]
    if not len(unknown):
        return ()
    listed = ", ".join(map(str, np.unique(unknown).tolist()))
    problem = f"{len(unknown)} vertices have the label {listed}, which is no NYU40 id; ignored"
    return (Finding(file, problem, "none needed"),)
