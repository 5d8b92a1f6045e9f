import dataclasses
import json

import numpy as np
import pytest

from condense.ablations import VARIANTS, variant
from condense.params import PretrainParams
from condense.tasks.ablation import Measured, differences, tabulate


def test_every_variant_changes_what_it_names_and_nothing_else():
    base = PretrainParams()
    for name, changes in VARIANTS.items():
        params = variant(base, name, steps=7)
        assert params.steps == 7
        different = {key for key, value in dataclasses.asdict(params).items() if value != getattr(base, key)} - {
            "steps"
        }
        assert different == set(changes), name
    with pytest.raises(KeyError):
        variant(base, "no such thing", steps=7)


def test_a_variant_s_row_by_hand():
    counts = np.zeros((1, 2, 3, 3), dtype=int)
    counts[0, :, 1, 1], counts[0, :, 2, 1], counts[0, :, 2, 2] = 3, 1, 2  # IoU 3/4 and 2/3
    seeds = [
        Measured({"linear_probe_acc": np.array(hits)}, {"part_probe": counts}, {"rank_student": rank})
        for hits, rank in (([1.0, 0.0], 8.0), ([1.0, 1.0], 10.0))
    ]
    row = tabulate({"full": seeds})["full"]
    assert row["linear_probe_acc"]["mean"] == 0.75 and row["linear_probe_acc"]["n"] == 2
    assert row["part_probe_miou"]["mean"] == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert row["student_rank"]["mean"] == 9.0
    json.dumps(row)  # a metric file


def test_differences_by_hand():
    counts = np.zeros((1, 2, 3, 3), dtype=int)
    counts[0, :, 1, 1], counts[0, :, 2, 2] = 3, 2
    worse = counts.copy()
    worse[0, :, 2, 2], worse[0, :, 2, 1] = 0, 2  # IoU 3/5 and 0 where it was 1 and 1
    measured = {
        "no student": [Measured({"linear_probe_acc": np.zeros(2)}, {"part_probe": worse}, {})] * 2,
        "condense": [Measured({"linear_probe_acc": np.array([1.0, 0.0])}, {"part_probe": counts}, {})] * 2,
    }
    table = differences(measured).set_index("metric")
    assert table["method"].tolist() == ["no student"] * 2
    assert table.loc["linear_probe_acc", "difference"] == 0.5
    assert table.loc["part_probe_miou", "difference"] == pytest.approx(1 - (3 / 5 + 0) / 2)
    assert table.loc["part_probe_miou", "p"] < 0.05 < table.loc["linear_probe_acc", "p"]
    assert differences({}).empty
