"""What each variant of joint training is worth: the probes of the main benchmarks, and the signs of collapse."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from condense.backbone3d import load_net3d
from condense.devices import open_device
from condense.metrics import interval, paired_difference, segmentation_difference, segmentation_scores
from condense.tasks.classification import Hits, Source, load_scenes, measure
from condense.tasks.descriptors import describe
from condense.tasks.methods import paired_table
from condense.tasks.probes import Labelled
from condense.tasks.segmentation import Confusions, Segmented, probe

PROBED = ("linear_probe_acc", "few_shot_5_acc")
SIGNS = ("rank_student", "rank_rendered")  # of the last step


@dataclass(frozen=True)
class Measured:
    """Of one trained network.

    Args:
        hits: {metric: [test captures], or [draws, test captures]}, 1 where right.
        confusions: {setting: [draws, test captures, C, C]} of the part probe; {} without labels.
        signs: {sign of collapse: value after the last step}.
    """

    hits: Hits
    confusions: Confusions
    signs: dict[str, float]


def measure_variant(
    name: str,
    folder: Path,
    sources: tuple[Source, ...],
    labelled: Labelled,
    task: Segmented | None,
    most: int,
    seed: int,
    device: str = "cpu",
) -> Measured:
    """Probes one network. One job of `parallel_map`.

    Args:
        name: of the variant.
        folder: of the network, with its `history.json`; without, it was not trained, and there are no signs.
        sources: objects,
        labelled: and their classes.
        task: part segmentation, or None.
        most: voxels that a part probe is fitted on.
        seed: of the draws of labels, the same for every variant.
        device: of the network.
    """
    vectors = describe(load_net3d(folder).to(open_device(device)), load_scenes(sources).fields)
    found = measure(vectors, labelled, seed)
    parts = probe(name, folder, task, most, seed, device, only=("part_probe",)).confusions if task else {}
    history = folder / "history.json"
    last = json.loads(history.read_text())[-1] if history.is_file() else {}
    return Measured(
        {metric: found[metric] for metric in PROBED if metric in found},
        parts,
        {sign: last[sign] for sign in SIGNS if sign in last},
    )


def tabulate(measured: Mapping[str, Sequence[Measured]]) -> dict[str, dict[str, dict[str, Any]]]:
    """The metric file from {variant: one `Measured` a seed}."""
    metrics: dict[str, dict[str, dict[str, Any]]] = {}
    for name, seeds in measured.items():
        row: dict[str, dict[str, Any]] = {m: interval(np.stack([s.hits[m] for s in seeds])) for m in seeds[0].hits}
        for setting in seeds[0].confusions:
            scores = segmentation_scores(np.concatenate([seed.confusions[setting] for seed in seeds]))
            row[f"{setting}_miou"] = scores["miou"]
        for sign in seeds[0].signs:
            words = sign.split("_")
            row[f"{words[1]}_{words[0]}"] = interval([seed.signs[sign] for seed in seeds])
        metrics[name] = row
    return metrics


def differences(measured: Mapping[str, Sequence[Measured]], of: str = "condense") -> pd.DataFrame:
    """`methods.paired_table` of one row against the others, on the same captures, draws and seeds."""
    hits = {
        name: {metric: np.stack([seed.hits[metric] for seed in seeds]) for metric in seeds[0].hits}
        for name, seeds in measured.items()
    }
    parts = {
        name: {f"{key}_miou": np.concatenate([seed.confusions[key] for seed in seeds]) for key in seeds[0].confusions}
        for name, seeds in measured.items()
    }
    tables = [paired_table(hits, paired_difference, of), paired_table(parts, segmentation_difference, of)]
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
