import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from condense.muon import Muon, orthogonalised
from condense.params import TeacherParams
from condense.synthetic.grammar import KINDS, grow
from condense.synthetic.universe import CELLS, IGNORE, LABELS, SIDE, make_scene, make_universe
from condense.teacher import TeacherRun, cross_view_loss, draw_batch, fit_teacher, label_losses, one_cycle

TINY = TeacherParams(scenes=6, views=2, rooms=0.3, steps=6, batch=3, lr=2e-3, log_every=1, checkpoint_every=4)


@pytest.fixture(scope="module")
def universe():
    return make_universe(TINY.scenes, TINY.views, TINY.rooms, seed=1, processes=1)


class TestUniverse:
    def test_same_scene_same_bytes(self):
        first, second = make_scene(3, 5, 2, 0.0), make_scene(3, 5, 2, 0.0)
        for field in dataclasses.fields(first):
            a, b = getattr(first, field.name), getattr(second, field.name)
            assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        assert not np.array_equal(first.images, make_scene(3, 6, 2, 0.0).images)

    def test_shapes_and_ranges(self, universe):
        assert universe.images.shape == (12, SIDE, SIDE, 3)
        assert universe.labels.shape == (12, len(LABELS), CELLS, CELLS)
        for index, (name, classes) in enumerate(LABELS.items()):
            used = universe.labels[:, index][universe.labels[:, index] != IGNORE]
            assert used.max() < classes, name

    def test_background_has_only_its_kind(self, universe):
        empty = universe.labels[:, 0] == 0
        rest = universe.labels[:, 1 : list(LABELS).index("boundary")].transpose(0, 2, 3, 1)
        assert empty.any()
        assert (rest[empty] == IGNORE).all()
        assert np.isnan(universe.points[empty]).all()

    def test_height_follows_the_surface_points(self):
        view = make_scene(0, 1, 1, 0.0)
        height, z = view.labels[0, list(LABELS).index("height")], view.points[0, ..., 2].astype(float)
        low, high = z[height <= 1], z[(height >= 6) & (height != IGNORE)]
        assert low.max() < high.min()

    def test_objects_fill_the_unit_cube(self):
        for seed in range(5):
            regions = grow(np.random.default_rng(seed))
            corners = np.concatenate([mesh.bounds for region in regions for mesh in region.meshes])
            assert 0.74 < np.ptp(corners, axis=0).max() < 1.001
            assert 2 <= len(regions) <= 7
            assert all(region.kind < len(KINDS) for region in regions)


class TestBatch:
    def test_labels_follow_the_crop(self, universe):
        images, labels, points = draw_batch(universe, TINY, torch.Generator().manual_seed(0))
        assert images.shape == (6, 3, 64, 64)
        assert labels.shape == (6, len(LABELS), 16, 16)
        assert torch.equal(points.isfinite().all(3), labels[:, 0] != 0)

    def test_loss_ignores_what_does_not_apply(self):
        labels = torch.full((1, len(LABELS), 2, 2), IGNORE)
        labels[0, 0] = 3
        logits = torch.zeros(1, sum(LABELS.values()), 2, 2, requires_grad=True)
        loss, _ = label_losses(logits, labels)
        loss.backward()
        kinds = LABELS["kind"]
        assert loss.item() == pytest.approx(np.log(kinds) / len(LABELS), rel=1e-5)
        assert (logits.grad[:, kinds:] == 0).all()


class TestCrossView:
    def test_two_cells_by_hand(self):
        # Two cells a view, the same two surface points: the loss is -log softmax of cosines 1 and 0 over 0.1.
        features = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).T.reshape(1, 2, 1, 2).repeat(2, 1, 1, 1)
        points = torch.tensor([[0.0, 0, 0], [1.0, 0, 0]]).reshape(1, 1, 2, 3).repeat(2, 1, 1, 1)
        expected = np.log1p(np.exp(-10.0))
        assert cross_view_loss(features, points).item() == pytest.approx(expected, rel=1e-3)

    def test_background_does_not_count(self):
        features = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
        points = torch.full((2, 3, 3, 3), float("nan"))
        loss = cross_view_loss(features, points)
        loss.backward()
        assert loss.item() == 0
        assert (features.grad == 0).all()


def test_one_cycle_rises_and_ends_at_nothing():
    rates = [one_cycle(step, 100, 1.0) for step in range(100)]
    assert rates[9] == 1.0
    assert max(rates) == 1.0
    assert rates[0] == 0.1
    assert rates[-1] < 1e-3


def test_loss_falls(universe):
    run = TeacherRun(dataclasses.replace(TINY, steps=16, batch=4), seed=0)
    losses = [run.train_step(universe)["label_loss"] for _ in range(16)]
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:2])


def test_resumes_to_the_same_numbers(universe, tmp_path):
    through = TeacherRun(TINY, seed=0)
    for _ in range(6):
        through.log.append(through.train_step(universe))
    halves = TeacherRun(TINY, seed=0)
    for _ in range(4):
        halves.log.append(halves.train_step(universe))
    halves.checkpoint(tmp_path)
    again = TeacherRun(TINY, seed=0)
    again.resume(tmp_path)
    assert again.step == 4
    for _ in range(2):
        again.log.append(again.train_step(universe))
    assert again.log == through.log
    for name, value in through.average.state_dict().items():
        assert torch.equal(value, again.average.state_dict()[name]), name
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]


def test_other_settings_start_anew(universe, tmp_path):
    run = TeacherRun(TINY, seed=0)
    run.train_step(universe)
    run.checkpoint(tmp_path)
    other = TeacherRun(dataclasses.replace(TINY, lr=1e-3), seed=0)
    other.resume(tmp_path)
    assert other.step == 0


def test_fit_teacher_ends_standardised(tmp_path):
    network, log = fit_teacher(dataclasses.replace(TINY, steps=2), 0, tmp_path)
    assert [entry["step"] for entry in log] == [1, 2]
    assert network.feature_std.min() > 0
    again, same = fit_teacher(dataclasses.replace(TINY, steps=2), 0, tmp_path)  # from the finished checkpoint
    assert same == log
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network(x), again(x))


def test_muon_steps_as_torch_does_in_bfloat16(generator):
    start = [torch.randn(48, 16, generator=generator), torch.randn(16, 16, generator=generator)]
    ours, torchs = ([nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
    optimisers = (
        Muon(ours, lr=0.02, weight_decay=0.05),
        torch.optim.Muon(torchs, lr=0.02, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(5):
        for mine, other in zip(ours, torchs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    for mine, other, first in zip(ours, torchs, start, strict=True):
        moved = (other - first).norm()
        assert (mine - other).norm() < 0.02 * moved  # bfloat16 has three digits


def test_muon_takes_a_kernel_as_a_matrix(generator):
    kernel = nn.Parameter(torch.randn(8, 3, 3, 4, generator=generator))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    kernel.grad = torch.randn(kernel.shape, generator=generator)
    matrix.grad = kernel.grad.flatten(1).clone()
    for weights in (kernel, matrix):
        Muon([weights], lr=0.1).step()
    assert torch.equal(kernel.flatten(1), matrix)


def test_muon_makes_singular_values_near_one(generator):
    values = torch.linalg.svdvals(orthogonalised(torch.randn(12, 40, generator=generator)))
    assert values.min() > 0.6 and values.max() < 1.3
