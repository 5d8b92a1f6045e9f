import math

import nerfacc
import pytest
import torch
from conftest import TOLERANCE

from condense.grid import Grid
from condense.raymarch import Samples, accumulate, felt_cells, render_weights, sample_rays, trilinear

UNIT = Grid((0.0, 0.0, 0.0), 1.0, (8, 8, 8))


def packed(counts, generator, dtype=torch.float64):
    ray = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    total = len(ray)
    delta = torch.rand(total, generator=generator, dtype=dtype) + 0.1
    return Samples(ray, torch.zeros(total, 3, dtype=dtype), delta, torch.arange(total).to(dtype), len(counts))


def plain_weights(density, samples):
    """The definition, sample by sample."""
    weights = []
    for i in range(len(density)):
        before = [density[j] * samples.delta[j] for j in range(i) if samples.ray[j] == samples.ray[i]]
        depth = sum(before, density.new_zeros(()))
        weights.append(torch.exp(-depth) * (1 - torch.exp(-density[i] * samples.delta[i])))
    return torch.stack(weights)


class TestSampleRays:
    def test_five_samples_by_hand(self):
        occupied = torch.ones(8, 8, 8, dtype=torch.bool)
        samples = sample_rays(torch.tensor([[-2.0, 4, 4]]), torch.tensor([[1.0, 0, 0]]), UNIT, occupied, step=1.8)
        # the box reaches from -0.5 to 8.5: five steps of 1.8 voxels, midpoints at 0.9 + 1.8 k from its face
        expected = torch.tensor([0.4, 2.2, 4.0, 5.8, 7.6])
        torch.testing.assert_close(samples.position[:, 0], expected)
        torch.testing.assert_close(samples.t, expected + 2)
        assert samples.ray.tolist() == [0] * 5 and samples.delta.unique().tolist() == pytest.approx([1.8])

    def test_starts_inside_and_misses(self):
        occupied = torch.ones(8, 8, 8, dtype=torch.bool)
        origins = torch.tensor([[4.0, 4, 4], [20.0, 20, 20], [-3.0, 4, 4]])
        directions = torch.tensor([[0.0, 0, 1], [1.0, 0, 0], [-1.0, 0, 0]])
        samples = sample_rays(origins, directions, UNIT, occupied, step=0.5)
        assert samples.ray.unique().tolist() == [0] and samples.t.min() > 0 and samples.rays == 3

    def test_skips_only_what_is_empty(self, generator):
        occupied = torch.rand(8, 8, 8, generator=generator) < 0.05
        index = torch.where(occupied, occupied.reshape(-1).cumsum(0).reshape(8, 8, 8) - 1, -1)
        density = torch.rand(int(occupied.sum()), generator=generator)
        origins = torch.rand(50, 3, generator=generator) * 20 - 6
        directions = torch.nn.functional.normalize(torch.randn(50, 3, generator=generator), dim=1)

        def opacity(allowed):
            samples = sample_rays(origins, directions, UNIT, allowed)
            voxel, weight = trilinear(samples.position, index)
            weights = render_weights((density[voxel] * weight).sum(1), samples)
            return accumulate(weights, weights.new_ones(len(weights), 1), samples), len(samples.ray)

        (skipped, few), (dense, many) = opacity(occupied), opacity(torch.ones_like(occupied))
        torch.testing.assert_close(skipped, dense, **TOLERANCE[torch.float32])
        assert few < many / 2 and skipped.max() > 0.2

    def test_contracted_steps_are_even(self, generator):
        grid = Grid((-2.0, -2.0, -2.0), 4 / 32, (32, 32, 32), contracted=True, centre=(1.0, 2.0, 0.0), radius=3.0)
        origins = torch.randn(20, 3, generator=generator) * 2 + torch.tensor([1.0, 2.0, 0.0])
        directions = torch.nn.functional.normalize(torch.randn(20, 3, generator=generator), dim=1)
        samples = sample_rays(origins, directions, grid, torch.ones(32, 32, 32, dtype=torch.bool), step=0.5)
        step = (samples.position[1:] - samples.position[:-1]).norm(dim=1)[samples.ray[1:] == samples.ray[:-1]]
        # chords and a 64-node table: about 1 % off where a ray crosses the kept ball's surface
        assert step.min() > 0.4 and step.max() < 0.55 and abs(step.mean() - 0.5) < 0.01
        assert samples.t.max() > 50 and samples.position.min() > 0 and samples.position.max() < 32
        on_ray = grid.from_world(origins[samples.ray] + samples.t[:, None] * directions[samples.ray])
        torch.testing.assert_close(on_ray, samples.position)

    def test_jitter_is_seeded_and_small(self):
        occupied = torch.ones(8, 8, 8, dtype=torch.bool)
        origins, directions = torch.tensor([[-2.0, 4, 4]] * 9), torch.tensor([[1.0, 0, 0]] * 9)
        first, second = (
            sample_rays(origins, directions, UNIT, occupied, generator=torch.Generator().manual_seed(7))
            for _ in range(2)
        )
        assert torch.equal(first.t, second.t)
        start = first.t[torch.searchsorted(first.ray, torch.arange(9))]
        assert start.unique().numel() == 9 and start.min() >= 1.5 and start.max() <= 2.0

    def test_bad_shapes(self):
        with pytest.raises(ValueError, match=r"\(7, 8, 8\)"):
            sample_rays(torch.zeros(1, 3), torch.ones(1, 3), UNIT, torch.ones(7, 8, 8, dtype=torch.bool))
        with pytest.raises(ValueError, match="not \\[R, 3\\]"):
            sample_rays(torch.zeros(3), torch.ones(3), UNIT, torch.ones(8, 8, 8, dtype=torch.bool))

    @pytest.mark.cuda
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="nerfacc's traversal needs a CUDA device")
    def test_nerfacc_takes_the_same_samples(self, generator):
        occupied = torch.rand(8, 8, 8, generator=generator) < 0.2
        origins = torch.rand(200, 3, generator=generator) * 20 - 6
        directions = torch.nn.functional.normalize(4 - origins, dim=1)
        ours = sample_rays(origins, directions, UNIT, occupied)
        theirs = sample_rays(origins.cuda(), directions.cuda(), UNIT, occupied.cuda())
        # a midpoint within rounding of a cell's face may fall on either side of it
        counts = [torch.bincount(s.ray.cpu(), minlength=200) for s in (ours, theirs)]
        same = counts[0] == counts[1]
        assert same.float().mean() > 0.95
        ours_t, theirs_t = (s.t.cpu()[same[s.ray.cpu()]] for s in (ours, theirs))
        torch.testing.assert_close(ours_t, theirs_t, rtol=1e-3, atol=1e-3)


def test_felt_cells_by_hand():
    occupied = torch.zeros(3, 3, 3, dtype=torch.bool)
    occupied[1, 1, 1] = True
    cells = felt_cells(occupied)
    assert cells.shape == (4, 4, 4) and cells.sum() == 8 and cells[1:3, 1:3, 1:3].all()


class TestTrilinear:
    def test_at_and_between_centres(self):
        index = torch.full((2, 2, 2), -1)
        index[0, 0, 0], index[1, 0, 0] = 0, 1
        voxel, weight = trilinear(torch.tensor([[0.5, 0.5, 0.5], [1.25, 0.5, 0.5], [0.0, 0.5, 0.5]]), index)
        values = (torch.tensor([10.0, 20.0])[voxel] * weight).sum(1)
        torch.testing.assert_close(values, torch.tensor([10.0, 0.25 * 10 + 0.75 * 20, 5.0]))

    def test_matches_grid_sample(self, generator):
        dense = torch.rand(4, 5, 6, generator=generator, dtype=torch.float64)
        position = torch.rand(40, 3, generator=generator, dtype=torch.float64) * torch.tensor([5.0, 6, 7]) - 0.5
        voxel, weight = trilinear(position, torch.arange(4 * 5 * 6).reshape(4, 5, 6))
        ours = (dense.reshape(-1)[voxel] * weight).sum(1)
        unit = 2 * position / torch.tensor([4.0, 5, 6]) - 1
        theirs = torch.nn.functional.grid_sample(
            dense[None, None], unit.flip(1)[None, None, None], align_corners=False, padding_mode="zeros"
        )
        torch.testing.assert_close(ours, theirs.reshape(-1), **TOLERANCE[torch.float64])


class TestRenderWeights:
    def test_five_samples_by_hand(self):
        samples = Samples(torch.tensor([0, 0, 0, 2, 2]), torch.zeros(5, 3), torch.ones(5), torch.zeros(5), 3)
        half = math.log(2)  # absorbs half of the light over one voxel
        weights = render_weights(torch.tensor([half, half, 1e9, 0.0, half]), samples)
        torch.testing.assert_close(weights, torch.tensor([0.5, 0.25, 0.25, 0.0, 0.5]))
        colour = accumulate(weights, torch.tensor([[1.0], [2], [4], [8], [16]]), samples)
        torch.testing.assert_close(colour, torch.tensor([[2.0], [0.0], [8.0]]))  # the middle ray is empty

    def test_no_samples_at_all(self):
        samples = Samples(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3), torch.zeros(0), torch.zeros(0), 2)
        weights = render_weights(torch.zeros(0), samples)
        assert accumulate(weights, torch.zeros(0, 3), samples).tolist() == [[0.0] * 3] * 2

    def test_matches_plain_loop(self, generator):
        samples = packed([3, 0, 5, 1], generator)
        density = torch.rand(9, generator=generator, dtype=torch.float64).requires_grad_()
        cotangent = torch.randn(9, generator=generator, dtype=torch.float64)
        ours, plain = render_weights(density, samples), plain_weights(density, samples)
        torch.testing.assert_close(ours, plain, **TOLERANCE[torch.float64])
        gradients = [torch.autograd.grad(w @ cotangent, density)[0] for w in (ours, plain)]
        torch.testing.assert_close(*gradients, **TOLERANCE[torch.float64])

    def test_gradcheck(self, generator):
        samples = packed([4, 2, 0], generator)
        density = torch.rand(6, generator=generator, dtype=torch.float64).requires_grad_()
        values = torch.rand(6, 2, generator=generator, dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda d, v: accumulate(render_weights(d, samples), v, samples), (density, values)
        )

    def test_matches_nerfacc_dense(self, generator):
        delta = torch.rand(6, 10, generator=generator, dtype=torch.float64) + 0.1
        ends = delta.cumsum(1)
        density = (torch.rand(6, 10, generator=generator, dtype=torch.float64) * 3).requires_grad_()
        cotangent = torch.randn(6, 10, generator=generator, dtype=torch.float64)
        samples = Samples(
            torch.arange(6).repeat_interleave(10), torch.zeros(60, 3), delta.reshape(-1), ends.reshape(-1), 6
        )
        ours = render_weights(density.reshape(-1), samples).reshape(6, 10)
        theirs = nerfacc.render_weight_from_density(ends - delta, ends, density)[0]
        torch.testing.assert_close(ours, theirs, **TOLERANCE[torch.float64])
        gradients = [torch.autograd.grad((w * cotangent).sum(), density)[0] for w in (ours, theirs)]
        torch.testing.assert_close(*gradients, **TOLERANCE[torch.float64])

    @pytest.mark.cuda
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="nerfacc's packed weights need a CUDA device")
    def test_matches_nerfacc_packed(self, generator):
        samples = packed([3, 0, 5, 1], generator, torch.float32)
        density = torch.rand(9, generator=generator)
        on_cuda = Samples(*(getattr(samples, n).cuda() for n in ("ray", "position", "delta", "t")), rays=4)
        theirs = render_weights(density.cuda(), on_cuda).cpu()
        torch.testing.assert_close(render_weights(density, samples), theirs, **TOLERANCE[torch.float32])
