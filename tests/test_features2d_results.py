from pathlib import Path

import numpy as np
import pytest

from condense.tasks.features2d_results import (
    differences,
    join,
    stack_confusions,
    stack_errors,
    stack_measures,
    tabulate,
    verdicts,
)
from condense.tasks.probes2d import ProbeResult

NAN = float("nan")


def result(method, seed, task, right, error):
    counts = np.array([[[[0, 0, 0], [0, right, 4 - right], [0, 0, 4]]] * 2])  # two captures
    errors = {"depth_probe_rmse": np.array([error, error])}
    return ProbeResult(method, Path(str(seed)), task, {f"{task}_probe": counts}, errors, {})


def test_measures_become_seeds_by_captures():
    rows = [
        {"teacher": [{"a": 1.0, "b": NAN}], "student": [{"a": 2.0, "b": NAN}, {"a": 3.0, "b": NAN}]},
        {"teacher": [{"a": 5.0, "b": NAN}], "student": [{"a": NAN, "b": NAN}, {"a": 7.0, "b": NAN}]},
    ]
    values = stack_measures(rows)
    assert set(values["student"]) == {"a"}  # nothing could be measured of b
    np.testing.assert_equal(values["student"]["a"], [[2, NAN], [3, 7]])
    np.testing.assert_equal(values["teacher"]["a"], [[1, 5]])
    assert tabulate(values, {})["student"]["a"]["mean"] == pytest.approx(4)
    assert stack_measures([]) == {}


def test_probes_of_both_benchmarks_and_all_seeds():
    results = [result("student", s, task, 4, 0.1 * (s + 1)) for s in range(2) for task in ("part", "semantic")]
    results.append(result("teacher", 9, "part", 2, 0.5))
    errors, confusions = stack_errors(results), stack_confusions(results)
    np.testing.assert_allclose(errors["student"]["depth_probe_rmse"], [[0.1] * 4, [0.2] * 4])
    assert confusions["student"]["part_probe"].shape == (2, 2, 3, 3)
    metrics = tabulate(errors, confusions)
    assert metrics["student"]["semantic_probe_miou"]["mean"] == 1
    assert metrics["teacher"]["part_probe_miou"]["mean"] == pytest.approx((2 / 4 + 4 / 6) / 2)
    assert join({"a": {"x": 1}}, {"b": {"y": 2}, "a": {"z": 3}}) == {"a": {"x": 1, "z": 3}, "b": {"y": 2}}


def test_differences_and_verdicts_know_which_way_is_better():
    rng = np.random.default_rng(0)
    own = rng.normal(size=(2, 30))
    values = {
        "student": {"match_at_2px": own, "depth_probe_rmse": own, "tv_ratio": own},
        "teacher": {"match_at_2px": own - 1, "depth_probe_rmse": own - 1, "tv_ratio": own + rng.normal(size=(2, 30))},
    }
    confusions = stack_confusions([result("student", 0, "part", 4, 0), result("teacher", 0, "part", 2, 0)])
    table = differences(values, confusions)
    assert set(table["metric"]) == {"match_at_2px", "depth_probe_rmse", "tv_ratio", "part_probe_miou"}
    found = verdicts(table).loc["teacher"]
    assert found["better"] == "match_at_2px, part_probe_miou"
    assert found["worse"] == "depth_probe_rmse" and found["not told apart"] == "tv_ratio"
    assert len(differences({}, {})) == 0
