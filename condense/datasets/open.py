"""Opens a public data set by name, and says what is in it."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from condense.captures.capture import Finding
from condense.datasets.modelnet40 import open_modelnet40
from condense.datasets.pointset import PointSet
from condense.datasets.s3dis import open_s3dis
from condense.datasets.scannet import open_scannet
from condense.datasets.scanobjectnn import VARIANTS, open_scanobjectnn
from condense.datasets.shapenetpart import open_shapenetpart

DATASETS: dict[str, Callable[[Path], PointSet]] = {
    "modelnet40": open_modelnet40,
    **{name: partial(open_scanobjectnn, name=name) for name in VARIANTS},
    "shapenetpart": open_shapenetpart,
    "s3dis": open_s3dis,
    "scannet": open_scannet,
}
SHOWN = 5  # files named for one problem; an unfinished download has thousands


def open_dataset(name: str, root: Path) -> PointSet:
    """The index of a data set as its release unpacks; points are read when asked for.

    Args:
        name: one of DATASETS.
        root: `modelnet40_ply_hdf5_2048` or `ModelNet40`; `h5_files` of ScanObjectNN;
            `shapenetcore_partanno_segmentation_benchmark_v0_normal` or `hdf5_data` of ShapeNetPart;
            `Stanford3dDataset_v1.2_Aligned_Version`; the folder with `scans` and the lists of ScanNet v2.

    Raises:
        ValueError: an unknown name.
        DatasetError: the root is another folder, or holds nothing that can be used.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f": did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"{name!r} is no data set{hint} Known: {', '.join(DATASETS)}")
    return DATASETS[name](Path(root))


def describe(point_set: PointSet, findings: Sequence[Finding]) -> str:
    """Split sizes, classes and `findings` as text."""
    sizes = ", ".join(f"{count} {split}" for split, count in point_set.splits.items())
    lines = [f"{point_set.name}: {len(point_set)} clouds ({sizes})"]
    for what, names in (("classes", point_set.classes), ("point classes", point_set.point_classes)):
        if names:
            text = f"{len(names)} {what}: {', '.join(names)}"
            lines += textwrap.wrap(text, 110, initial_indent="  ", subsequent_indent="    ")
    kinds: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        kinds.setdefault((finding.problem, finding.remedy), []).append(finding.file)
    for (problem, remedy), files in kinds.items():
        more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
        text = f"{', '.join(files[:SHOWN])}{more}: {problem}. Remedy: {remedy}."
        lines += textwrap.wrap(text, 110, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines)
