import math

import pytest
import torch
from conftest import TOLERANCE
from torch.autograd import gradcheck

from condense.losses import effective_rank, false_negatives, info_nce, prior_loss


def random(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def plain_info_nce(a, b, temperature, drop):
    """Row by row, pair by pair."""
    cosine = [[torch.dot(x, y) / x.norm() / y.norm() / temperature for y in b] for x in a]
    total, n = 0, len(a)
    for i in range(n):
        row = [cosine[i][j] for j in range(n) if i == j or not drop[i, j]]
        column = [cosine[j][i] for j in range(n) if i == j or not drop[j, i]]
        total = total + torch.logsumexp(torch.stack(row), 0) + torch.logsumexp(torch.stack(column), 0)
        total = total - 2 * cosine[i][i]
    return total / (2 * n)


class TestInfoNce:
    def test_two_orthogonal_pairs_by_hand(self):
        # logits [[2, 0], [0, 2]]: each row costs log(e^2 + 1) - 2
        eye = torch.eye(2, dtype=torch.float64)
        expected = math.log(math.exp(2) + 1) - 2
        assert info_nce(3 * eye, eye, temperature=0.5).item() == pytest.approx(expected, rel=1e-12)

    def test_all_alike_costs_log_of_the_rows(self):
        ones = torch.ones(5, 3, dtype=torch.float64)
        assert info_nce(ones, ones).item() == pytest.approx(math.log(5), rel=1e-9)

    def test_dropping_every_negative_leaves_nothing(self):
        ones = torch.ones(4, 3)
        assert info_nce(ones, ones, drop=torch.ones(4, 4, dtype=torch.bool)).item() == pytest.approx(0, abs=1e-6)

    def test_equals_its_plain_twin(self, generator):
        drop = torch.rand(6, 6, generator=generator) > 0.6
        values = []
        for loss in (info_nce, plain_info_nce):
            generator.manual_seed(3)
            a, b = (random(generator, 6, 4).requires_grad_() for _ in range(2))
            value = loss(a, b, 0.2, drop)
            values.append([value, *torch.autograd.grad(value, [a, b])])
        for fast, plain in zip(*values, strict=True):
            torch.testing.assert_close(fast, plain, **TOLERANCE[torch.float64])

    def test_gradient(self, generator):
        a, b = (random(generator, 4, 3).requires_grad_() for _ in range(2))
        drop = torch.rand(4, 4, generator=generator) > 0.5
        assert gradcheck(lambda a, b: info_nce(a, b, 0.3, drop), (a, b))

    def test_no_rows(self):
        assert info_nce(torch.zeros(0, 3), torch.zeros(0, 3)).item() == 0

    def test_refuses_shapes_that_disagree(self):
        with pytest.raises(ValueError, match=r"\(2, 3\), \(3, 3\)"):
            info_nce(torch.zeros(2, 3), torch.zeros(3, 3))


def test_false_negatives_are_near_copies_only():
    teacher = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0]])
    expected = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=torch.bool)
    assert torch.equal(false_negatives(teacher, 0.6), expected)


class TestPriorLoss:
    def test_by_hand(self):
        # orthogonal: 1 - 0; |difference| is 1 everywhere, so smooth-L1 is 0.5
        student, target = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        assert prior_loss(student, target).item() == pytest.approx(1 + 0.1 * 0.5)
        assert prior_loss(target, target).item() == pytest.approx(0, abs=1e-6)
        assert prior_loss(torch.zeros(0, 2), torch.zeros(0, 2)).item() == 0

    def test_gradient(self, generator):
        student, target = (random(generator, 5, 3).requires_grad_() for _ in range(2))
        assert gradcheck(prior_loss, (student, target))


class TestEffectiveRank:
    def test_isotropic_line_and_constant(self):
        axes = torch.cat([torch.eye(4), -torch.eye(4)])
        assert effective_rank(axes) == pytest.approx(4)
        assert effective_rank(torch.arange(6.0)[:, None] * torch.tensor([[1.0, 2.0]]) + 7) == pytest.approx(1)
        assert effective_rank(torch.full((5, 3), 2.5)) == 1

    def test_two_directions_by_hand(self):
        # singular values in the ratio 3:1 give p = (3/4, 1/4)
        features = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
        assert effective_rank(features) == pytest.approx(expected, rel=1e-6)

    def test_equals_the_singular_values(self, generator):
        features = random(generator, 20, 6)
        s = torch.linalg.svdvals(features - features.mean(0))
        p = s / s.sum()
        assert effective_rank(features) == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-6)
