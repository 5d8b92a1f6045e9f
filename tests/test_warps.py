"""Images and scores under known affine maps."""

import numpy as np
import pytest
import torch

from condense.warps import astray, draw_map, repeatable_loss, warped

SAME = torch.eye(2, 3)


def shift(x, y, size):
    """A map that moves what an image of `size` shows `x` pixels to the left and `y` up."""
    by = SAME.clone()
    by[:, 2] = torch.tensor([2 * x / size, 2 * y / size])
    return by


def test_a_shift_moves_pixels(generator):
    image = torch.rand(1, 16, 16, generator=generator)
    torch.testing.assert_close(warped(image, SAME), image)
    moved = warped(image, shift(3, 2, 16))
    torch.testing.assert_close(moved[:, :14, :13], image[:, 2:, 3:])
    assert bool((moved[:, 14:] == 0).all()) and bool((moved[:, :, 13:] == 0).all())


def test_drawn_maps_keep_most_of_the_image_in_sight():
    rng = np.random.default_rng(0)
    maps = [draw_map(rng) for _ in range(200)]
    assert maps[0].shape == (2, 3) and not torch.equal(maps[0], maps[1])
    area = torch.stack([torch.linalg.det(by[:, :2]) for by in maps])
    assert float(area.min()) > 0.55 and float(area.max()) < 1.7  # and none is mirrored
    assert min(float(warped(torch.ones(1, 32, 32), by).mean()) for by in maps) > 0.5


def peaks():
    """One peak every three cells is as sharp as a score gets: maximum 1, mean 1 / 9."""
    scores, cover = torch.zeros(32, 32), torch.zeros(64, 64)
    scores[2::3, 2::3] = 1
    cover[8:52, 18:52] = 1  # away from the border, whose patches may lack a peak
    return scores, cover


def test_scores_that_follow_cost_only_what_they_lack_in_peaks():
    scores, cover = peaks()
    by = shift(12, 0, 64)  # six cells of the score
    copy = warped(scores[None], by)[0]
    best = repeatable_loss(scores, copy, by, cover)
    assert float(best) == pytest.approx(1 / 9, abs=0.02)
    assert float(repeatable_loss(scores, copy.roll(1, dims=1), by, cover)) > float(best) + 0.5
    flat = torch.full((32, 32), 0.7)
    assert float(repeatable_loss(flat, flat, SAME, torch.ones(64, 64))) == pytest.approx(1, abs=0.1)  # no peak


def test_maxima_astray_are_measured_in_cells():
    scores, cover = torch.zeros(32, 32), torch.ones(64, 64)
    scores[6::7, 6::7] = 1
    by = shift(14, 0, 64)
    copy = warped(scores[None], by)[0]
    assert float(astray(scores, copy, by, cover)) == pytest.approx(0, abs=1e-3)
    assert float(astray(scores, copy.roll(2, dims=0), by, cover)) == pytest.approx(2, abs=0.05)
    assert float(astray(scores, torch.zeros(32, 32), by, cover)) == 0  # nothing to find


def test_maxima_move_between_cells_by_their_neighbours():
    """The loss is least where the neighbours say so, not at a cell's centre."""
    scores, copy, cover = torch.zeros(16, 16), torch.zeros(16, 16), torch.ones(32, 32)
    scores[8, 8], copy[8, 8], scores[8, 9] = 1, 1, 0.99
    neighbour = torch.tensor([0.0, 0.9, 0.99])
    values = []
    for value in neighbour:
        copy[8, 9] = value
        values.append(float(astray(scores, copy, SAME, cover)))
    assert values[0] > values[1] > values[2] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", [repeatable_loss, astray])
def test_what_lies_beside_the_capture_does_not_count(loss, generator):
    scores, copy = torch.rand(2, 32, 32, generator=generator)
    cover = torch.zeros(64, 64)
    assert float(loss(scores, copy, SAME, cover)) == 0
    cover[:, :32] = 1
    changed = copy.clone()
    changed[:, 20:] = 0.5
    torch.testing.assert_close(loss(scores, copy, SAME, cover), loss(scores, changed, SAME, cover))


@pytest.mark.parametrize("loss", [repeatable_loss, astray])
def test_gradients_reach_both_maps(loss, generator):
    scores, copy = (torch.rand(12, 12, generator=generator, dtype=torch.float64).requires_grad_() for _ in "ab")
    by, cover = draw_map(np.random.default_rng(1)).double(), torch.ones(24, 24, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, by, cover), (scores, copy))
    loss(scores, copy, by, cover).backward()
    assert scores.grad.abs().sum() > 0 and copy.grad.abs().sum() > 0
