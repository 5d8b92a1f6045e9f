import math

import pytest
import torch

from condense.backbone2d import FeatureStatistics
from condense.tasks.noise2d import OUTLIER, norm_deviation, steps, variance_explained


class TestVarianceExplained:
    def test_by_hand(self):
        """Two points in two views each: means 1 and 5, so MS between = 16, within = (1 + 1 + 1 + 1) / 2 = 2."""
        features = torch.tensor([[0.0], [2.0], [4.0], [6.0]])
        point, view = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
        assert variance_explained(features, point, view) == pytest.approx((16 - 2) / (16 + 2))

    def test_extremes(self):
        point, view = torch.arange(50).repeat(4), torch.arange(4).repeat_interleave(50)
        generator = torch.Generator().manual_seed(0)
        place = torch.randn(50, 8, generator=generator)
        assert variance_explained(place[point], point, view) == pytest.approx(1)
        noise = torch.randn(200, 8, generator=generator)
        assert abs(variance_explained(noise, point, view)) < 0.1  # the plain ratio of sums would be 0.25

    def test_half_signal_half_noise(self):
        point, view = torch.arange(400).repeat(3), torch.arange(3).repeat_interleave(400)
        generator = torch.Generator().manual_seed(0)
        place, noise = (torch.randn(n, 8, generator=generator) for n in (400, 1200))
        assert variance_explained(place[point] + noise, point, view) == pytest.approx(0.5, abs=0.05)

    def test_cells_of_one_view_count_once_and_points_of_one_view_not(self):
        features = torch.tensor([[0.0], [1.0], [-1.0], [2.0], [4.0], [6.0], [9.0], [3.0]])
        point = torch.tensor([0, 0, 0, 0, 1, 1, 2, -1])
        view = torch.tensor([0, 0, 0, 1, 0, 1, 0, 0])
        assert variance_explained(features, point, view) == pytest.approx(14 / 18)  # as by hand, above

    def test_too_few(self):
        assert math.isnan(variance_explained(torch.ones(2, 3), torch.tensor([0, 0]), torch.tensor([0, 1])))
        assert math.isnan(variance_explained(torch.ones(2, 3), torch.tensor([-1, -1]), torch.tensor([0, 1])))


class TestNormDeviation:
    statistics = FeatureStatistics(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 1.0]))

    def test_by_hand(self):
        """Raw norms 1, 2, 3, 4, 20 have median 3 and absolute deviations 2, 1, 0, 1, 17: their median is 1."""
        raw = torch.tensor([1.0, 2.0, 3.0, 4.0, 20.0, 99.0])
        cells = torch.stack([(raw - 1) / 2, torch.zeros(6)])[:, None]  # standardised, [2, 1, 6]
        solid = torch.tensor([[True] * 5 + [False]])
        z = norm_deviation(cells, self.statistics, solid)[0]
        torch.testing.assert_close(z[:5], torch.tensor([-2.0, -1, 0, 1, 17]) / 1.4826)
        assert z[5].isnan() and ((z[:5].abs() > OUTLIER) == torch.tensor([False] * 4 + [True])).all()

    def test_nothing_to_see_and_equal_norms(self):
        cells = torch.ones(2, 2, 2)
        assert norm_deviation(cells, self.statistics, torch.zeros(2, 2, dtype=torch.bool)).isnan().all()
        assert (norm_deviation(cells, self.statistics, torch.ones(2, 2, dtype=torch.bool)) == 0).all()


def test_steps_inside_and_across():
    cells = torch.tensor([[[2.0, 5.0, 0.0]], [[0.0, 0.0, 1.0]]])  # [2, 1, 3]: right, right, up
    inside, across = steps(cells, torch.tensor([[1, 1, 2]]))
    torch.testing.assert_close(inside, torch.tensor([0.0]))
    torch.testing.assert_close(across, torch.tensor([2**0.5]))
    inside, across = steps(cells, torch.tensor([[1, 0, 2]]))  # cells without a label are left out
    assert len(inside) == len(across) == 0
    inside, _ = steps(cells.transpose(1, 2), torch.tensor([[1], [1], [1]]))
    torch.testing.assert_close(inside, torch.tensor([0.0, 2**0.5]))
