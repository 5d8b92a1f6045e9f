import numpy as np
import pytest

from condense.metrics import (
    consistency_margin,
    hits,
    interval,
    mean_iou,
    median_interval,
    paired_difference,
    recall_at_k,
)


def test_hits():
    assert hits([1, 2, 3], [1, 0, 3]).tolist() == [1, 0, 1]


def test_recall_by_hand():
    similarity = [[0.9, 0.1, 0.5], [0.2, 0.3, 0.9]]
    assert recall_at_k(similarity, [0, 1], 1).tolist() == [1, 0]
    assert recall_at_k(similarity, [0, 1], 2).tolist() == [1, 1]


def test_constant_features_recall_nothing():
    assert recall_at_k(np.ones((4, 3)), [0, 1, 2, 0], 1).sum() == 0


def test_mean_iou_by_hand():
    # class 1: 1 of 2, class 2: 1 of 2; the element of class 0 is ignored; class 3 is absent
    assert mean_iou([1, 2, 2, 3], [1, 1, 2, 0], classes=4) == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert mean_iou([0, 1], [0, 1], classes=2, ignore=-1) == 1
    assert mean_iou([1], [0], classes=2) == 0


def test_consistency_margin():
    assert consistency_margin([0.9, 0.7], [0.1, 0.3]) == pytest.approx(0.6)


class TestInterval:
    def test_captures_alone_match_the_textbook(self):
        values = np.random.default_rng(1).normal(3, 2, size=200)
        result = interval(values)
        assert result["n"] == 200
        assert result["mean"] == pytest.approx(values.mean())
        assert result["ci95"] == pytest.approx(1.96 * values.std() / np.sqrt(200), rel=0.1)

    def test_seeds_that_differ_widen_it(self):
        seeds = np.array([[0.4], [0.5], [0.6]]) + np.zeros((3, 50))
        assert interval(seeds)["ci95"] > 0.05
        assert interval(seeds[:1])["ci95"] == pytest.approx(0, abs=1e-12)

    def test_is_deterministic_and_skips_missing_values(self):
        values = [[1.0, np.nan, 0.0], [1.0, np.nan, 1.0]]
        assert interval(values) == interval(values)
        assert interval(values)["mean"] == pytest.approx(0.75)
        assert interval(values)["n"] == 2

    def test_draws_are_a_factor_of_their_own(self):
        draws = np.array([[0.4], [0.5], [0.6]]) + np.zeros((1, 3, 50))
        assert interval(draws)["ci95"] == pytest.approx(interval(draws[0])["ci95"], rel=0.1)
        assert interval(draws)["n"] == 50
        assert interval(np.repeat(draws, 4, axis=0))["ci95"] > 0.05, "more seeds with the same draws tell no more"

    def test_one_value_has_no_interval(self):
        assert interval([0.5]) == {"mean": 0.5, "ci95": None, "n": 1}

    def test_refuses_no_values(self):
        with pytest.raises(ValueError, match="at least one value"):
            interval([])

    def test_covers_the_truth(self):
        """Of 60 tables with known mean, the interval covers at least nine tenths."""
        rng = np.random.default_rng(0)
        covered = 0
        for _ in range(60):
            table = rng.normal(size=(3, 1)) * 0.1 + rng.normal(size=(1, 40)) + rng.normal(size=(3, 40))
            result = interval(table)
            covered += abs(result["mean"]) <= result["ci95"]
        assert covered >= 54


def test_median_interval():
    values = [1.0, 2.0, 3.0, 4.0, 100.0]
    result = median_interval(values)
    assert result["mean"] == 3 and result["n"] == 5 and result["ci95"] > 0
    assert median_interval([2.0]) == {"mean": 2.0, "ci95": None, "n": 1}


def test_paired_difference_sees_what_the_intervals_hide():
    rng = np.random.default_rng(0)
    hard = rng.normal(size=(1, 60))  # captures differ far more than methods
    a, b = hard + 0.2 + 0.05 * rng.normal(size=(3, 60)), hard + 0.05 * rng.normal(size=(3, 60))
    result = paired_difference(a, b)
    assert result["mean"] == pytest.approx(0.2, abs=0.02)
    assert result["ci95"] < 0.05 < interval(a)["ci95"]
    assert result["p"] <= 0.002
    assert paired_difference(a, a)["p"] == 1
    assert paired_difference(a, b[:1])["mean"] == pytest.approx(a.mean() - b[:1].mean())


@pytest.mark.filterwarnings("error")
def test_a_capture_without_a_value_is_left_out_of_differences():
    a, b = np.array([[1.0, np.nan, 3.0], [2.0, np.nan, np.nan]]), np.array([[0.5, 1.0, 1.0]])
    result = paired_difference(a, b)
    assert result["mean"] == pytest.approx((1.0 + 2.0) / 2) and result["n"] == 2
