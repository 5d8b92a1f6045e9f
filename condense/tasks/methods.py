"""The pre-trained 3D networks of a run, by method, and comparing methods: what every 3D benchmark does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import NDArray


def networks(condense: Path, baselines: Path) -> dict[str, list[Path]]:
    """The folders of the finished 3D networks, one a seed, in the order of tables and colours.

    Args:
        condense: the artefact of joint pre-training, with `seed_*` and, of the same networks untrained, `scratch_*`.
        baselines: folder of the other methods, `<method>/seed_*`; may be absent.

    Returns:
        {method: [folder per seed]}, `condense` first, `scratch` second, then by name; a method without a finished
        network is left out. `condense.backbone3d.load_net3d` reads each.
    """
    found = {"condense": _finished(condense, "seed_*"), "scratch": _finished(condense, "scratch_*")}
    for folder in sorted(path for path in baselines.glob("*") if path.is_dir()):
        found[folder.name] = _finished(folder, "seed_*")
    return {method: folders for method, folders in found.items() if folders}


def _finished(folder: Path, pattern: str) -> list[Path]:
    """Folders in which a network was saved; its description is written last."""
    return sorted((path.parent for path in folder.glob(f"{pattern}/net3d.json")), key=_seed)


def _seed(folder: Path) -> tuple[int, str]:
    """Sorts seed_10 after seed_9."""
    number = folder.name.rpartition("_")[2]
    return (int(number) if number.isdigit() else 0, folder.name)


def paired_table(
    values: Mapping[str, Mapping[str, NDArray]],
    difference: Callable[[NDArray, NDArray], dict[str, Any]],
    of: str = "condense",
) -> pd.DataFrame:
    """`of` minus every other method, metric by metric, on the same captures, draws and seeds.

    Args:
        values: {method: {metric: what `difference` takes}}.
        difference: gives "mean", "ci95" and "p" of its first argument minus its second.
        of: the method that is compared.

    Returns:
        Columns metric, method, difference, ci95 (both as fractions) and p, two-sided, not corrected for the
        number of comparisons; no rows without `of`.
    """
    rows = []
    for metric, own in values.get(of, {}).items():
        for method, row in values.items():
            if method != of and metric in row:
                test = difference(own, row[metric])
                rows.append({"metric": metric, "method": method, "difference": test["mean"], **test})
    return pd.DataFrame(rows, columns=["metric", "method", "difference", "ci95", "p"])
