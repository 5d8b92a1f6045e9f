"""The key points that stand for a whole scene."""

import torch

from condense.extraction import best_spread
from condense.keypoints import KeyPoints


def made(x, scores, descriptors):
    positions = torch.stack([torch.tensor(x), *torch.zeros(2, len(x))], dim=1)
    return KeyPoints(positions, positions * 0, torch.tensor(scores), descriptors, positions * 0)


def test_each_stands_for_those_nearest_to_it():
    kept = best_spread(made([0.0, 1, 9], [1.0, 0.9, 0.5], torch.eye(3)), 2)
    assert kept.positions[:, 0].tolist() == [0, 9]  # the strongest, and the one far from it
    half = 0.5**0.5
    torch.testing.assert_close(kept.descriptors, torch.tensor([[half, half, 0], [0, 0, 1]]))


def test_near_equals_do_not_crowd():
    """The second best, all but as good as the best beside it, gives way to the weakest, far away."""
    points = made([0.0, 0.1, 9], [1.0, 0.99, 0.1], torch.eye(3))
    assert best_spread(points, 2).scores.tolist() == torch.tensor([1.0, 0.1]).tolist()


def test_where_all_are_kept_nothing_is_mixed():
    points = made([0.0, 1, 9], [0.5, 0.9, 1.0], torch.eye(3))
    for count in (3, 7):
        assert best_spread(points, count).descriptors.tolist() == torch.eye(3).flip(0).tolist()
