import math

import pytest
import torch

from condense.tasks.robustness import PERTURBATIONS, cut, drop, jitter, one_view, perturbed, rotate


def cube(count=2000, seed=0):
    """Points on the surface of the cube [-1, 1]^3."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(count, 3, generator=generator) * 2 - 1
    rows = torch.arange(count)
    axis = rows % 3
    points[rows, axis] = torch.where(rows % 2 == 0, 1.0, -1.0)
    return points


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_the_same_seed_gives_the_same_points(name):
    a, b, c = (perturbed(cube(), name, seed) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not (len(a) == len(c) and torch.equal(a, c))


def test_rotation_is_rigid_and_tilts_the_vertical_by_the_angle(generator):
    points = torch.tensor([[0.0, 0, -1], [0, 0, 1], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
    turned = rotate(points, generator, tilt=30)
    assert torch.allclose(torch.cdist(turned, turned), torch.cdist(points, points), atol=1e-5)
    assert torch.allclose(torch.det(torch.stack([turned[2], turned[4], turned[1]])), torch.tensor(1.0), atol=1e-5)
    assert float(turned[1, 2]) == pytest.approx(math.cos(math.radians(30)), abs=1e-5)


def test_noise_has_the_stated_size(generator):
    points = cube(4000)
    moved = jitter(points, generator, share=0.02) - points
    assert float(moved.std()) == pytest.approx(0.02 * math.sqrt(12), rel=0.05)


def test_dropping_keeps_some_of_the_points(generator):
    points = cube(100)
    kept = drop(points, generator, share=0.8)
    assert len(kept) == 20 and len(torch.unique(torch.cat([points, kept]), dim=0)) == 100
    assert len(drop(points[:1], generator, share=0.8)) == 1


def test_a_cut_keeps_one_half_space(generator):
    points = cube(1001)
    kept = cut(points, generator)
    assert len(kept) == 501
    centre = kept.mean(0)
    assert float(centre[:2].norm()) > 0.3 and abs(float(centre[2])) < 0.1


def test_one_view_of_a_wall_behind_a_wall_sees_the_nearer(generator):
    """Two parallel walls, seen from any side: only the outer face of one is left where they overlap."""
    at = torch.linspace(-1, 1, 40)
    y, z = (part.flatten() for part in torch.meshgrid(at, at, indexing="ij"))
    walls = torch.cat([torch.stack([torch.full_like(y, x), y, z], 1) for x in (-1.0, 1.0)])
    kept = one_view(walls, generator)
    shares = sorted(float((kept[:, 0] == x).float().sum() / len(y)) for x in (-1.0, 1.0))
    assert shares[1] == 1 and shares[0] < 0.75
