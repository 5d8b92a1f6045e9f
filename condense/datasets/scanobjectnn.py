"""ScanObjectNN (Uy et al., ICCV 2019): scanned objects, `h5_files` release, 2048 points each.

`<split>/{training,test}_objectdataset<variant>.h5` with `data` [N, 2048, 3], +Y up, `label` [N] and `mask`
[N, 2048], where -1 is background. Point labels here: 1 background, 2 object.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from condense.datasets.files import absent, index_h5, require
from condense.datasets.pointset import PointSet

NAMES = "bag bin box cabinet chair desk display door shelf table bed pillow sink sofa toilet"
CLASSES = tuple(NAMES.split())  # in the order of the labels, `training_data/shape_names_ext.txt` of the release
VARIANTS = {  # name → folder, ending
    "scanobjectnn": ("main_split", "_augmentedrot_scale75"),  # PB_T50_RS, the hardest and most reported
    "scanobjectnn_obj_bg": ("main_split", ""),
    "scanobjectnn_obj_only": ("main_split_nobg", ""),
}


def open_scanobjectnn(root: Path, name: str = "scanobjectnn") -> PointSet:
    """Opens one variant; `root` is `h5_files`."""
    folder, ending = VARIANTS[name]
    require(root, name, [folder])
    entries, findings = [], []
    for split, prefix in {"train": "training", "test": "test"}.items():
        file = f"{folder}/{prefix}_objectdataset{ending}.h5"
        if not (root / file).is_file():
            findings.append(absent(file, "the release"))
            continue
        found, problems = index_h5(root, file, split, CLASSES, "mask", background_or_object)
        entries += found
        findings += problems
    return PointSet(name, CLASSES, ("background", "object"), tuple(entries), tuple(findings))


def background_or_object(mask: Tensor) -> Tensor:
    """Point labels [P] of a mask [P]: -1 to 1, everything else to 2."""
    return torch.where(mask == -1, 1, 2)
