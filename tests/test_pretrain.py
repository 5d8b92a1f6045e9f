import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import tiny_teacher, toy_links

from condense.backbone2d import save_backbone
from condense.baselines import make_decoder
from condense.batches import draw_batch, draw_recolour, recoloured
from condense.joint import losses, total_loss
from condense.links import load_links, save_links
from condense.linkset import LinkedCaptures
from condense.model import ensemble, lifted_features, load_model, new_model, save_model, student_cells, voxel_features
from condense.params import PretrainParams
from condense.pretrain import make_optimizer, monitor, pretrain_seed, shared_out, warmup_cosine

PARAMS = PretrainParams(
    steps=6, warmup=2, generations=1, captures=3, views=2, cells=64, log_every=2, checkpoint_every=3, net3d_lr=1e-2
)


@pytest.fixture(scope="module")
def captures():
    """Three squares, and one of another size without masks, as a mixed set of photographs would be."""
    every = [*(toy_links(seed) for seed in range(3)), toy_links(3, masks=False, width=48, height=32)]
    return [dataclasses.replace(links, views=links.views[:4]) for links in every]  # training views


@pytest.fixture(scope="module")
def files(captures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("links")
    teacher = folder / "teacher.safetensors"
    save_backbone(tiny_teacher(), teacher)
    paths = [folder / f"{links.name}.safetensors" for links in captures]
    for links, path in zip(captures, paths, strict=True):
        save_links(links, path)
    return teacher, paths


def step_losses(captures, params, seed=0, step=0, model=None):
    model = (model or new_model(tiny_teacher(), seed)).train()
    batch = draw_batch(captures, params, seed, step)
    terms, matched = losses(model, batch, params, torch.Generator().manual_seed(step))
    return model, terms, matched


class TestBatch:
    def test_rows_name_the_cells_the_student_sees(self, captures):
        batch = draw_batch(captures, PARAMS, 0, 0)
        assert batch.operator.shape[1] == len(batch.voxels.coords) == len(batch.lifted) == len(batch.visible)
        assert len(batch.teacher) == batch.operator.shape[0] == sum(len(views) for views in batch.views) * 64
        assert len(batch.images) == 3 * PARAMS.student_views
        # the lifted targets rendered there are like the view's own features: the rows are the right ones
        rows = batch.operator.render(batch.lifted)[batch.student_rows]
        solid, teacher = batch.operator.opacity[batch.student_rows] > 0.9, batch.teacher[batch.student_rows]
        cosine = torch.nn.functional.normalize(rows[solid]) @ torch.nn.functional.normalize(teacher[solid]).T
        assert cosine.diagonal().mean() > cosine.mean() + 0.2

    def test_depends_on_seed_and_step_alone(self, captures):
        a, b, other = (draw_batch(captures, PARAMS, 5, step) for step in (3, 3, 4))
        assert torch.equal(a.voxels.colour, b.voxels.colour) and torch.equal(a.teacher, b.teacher)
        assert not (a.teacher.shape == other.teacher.shape and torch.equal(a.teacher, other.teacher))

    def test_fewer_captures_than_the_batch(self, captures):
        batch = draw_batch(captures[:1], dataclasses.replace(PARAMS, captures=12, views=99), 0, 0)
        assert len(batch.voxels.sizes) == 1
        assert batch.operator.shape[0] == 4 * 64

    def test_voxels_are_budgeted(self, captures):
        sizes = [len(links.scene) for links in captures]
        batch = draw_batch(captures, dataclasses.replace(PARAMS, captures=12, voxels=1), 0, 0)
        assert len(batch.voxels.sizes) == 1  # one at least
        batch = draw_batch(captures, dataclasses.replace(PARAMS, captures=12, voxels=sum(sizes) - 1), 0, 0)
        assert len(batch.voxels.sizes) == 3


class TestLinkedCaptures:
    def test_batches_are_those_of_a_list(self, captures, files):
        room = sum(sorted(path.stat().st_size for path in files[1])[-2:])  # for any two of four
        held = LinkedCaptures(files[1], held=room)
        for step in range(4):
            a, b = (draw_batch(each, PARAMS, 0, step) for each in (captures, held))
            assert torch.equal(a.voxels.coords, b.voxels.coords) and torch.equal(a.teacher, b.teacher)
        assert 2 <= len(held._kept) <= 3 and held._bytes <= room  # whatever their number
        assert [held.voxels(place) for place in range(4)] == [len(links.scene) for links in captures]
        assert [links.name for links in held[1:3]] == [links.name for links in captures[1:3]]

    def test_captures_that_do_not_come_into_a_batch_are_not_read(self, files):
        held = LinkedCaptures(files[1])
        batch = draw_batch(held, dataclasses.replace(PARAMS, captures=1), 0, 0)
        assert len(batch.captures) == 1 and len(held._kept) == 1

    def test_a_capture_larger_than_the_room_for_all_is_held_alone(self, files):
        held = LinkedCaptures(files[1], held=1)
        assert held[0] is held[0] and held[1] is not held[0] and len(held._kept) == 1


class TestColour:
    def test_none_at_strength_0_and_mid_grey_is_fixed_by_the_hue(self):
        colour = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
        same = recoloured(colour, draw_recolour(np.random.default_rng(0), 0.0))
        torch.testing.assert_close(same, colour, rtol=1e-5, atol=1e-6)

    def test_same_map_for_images_and_voxels(self):
        change = draw_recolour(np.random.default_rng(1), 1.0)
        image = torch.randint(0, 256, (4, 4, 3), dtype=torch.uint8)

        cells = student_cells(torch.nn.Identity(), [image], [change])  # a network that hands its input on
        torch.testing.assert_close(cells, recoloured(image.reshape(-1, 3) / 255, change), rtol=1e-5, atol=1e-5)


def test_images_of_several_sizes_keep_their_order():
    teacher = tiny_teacher().eval()
    images = [torch.randint(0, 256, (size, 16, 3), dtype=torch.uint8) for size in (16, 24, 16)]
    with torch.no_grad():
        together = student_cells(teacher, images)
        alone = torch.cat([student_cells(teacher, [image]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


class TestLosses:
    @staticmethod
    def reached(loss, network):
        gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True, retain_graph=True)
        return any(g is not None and g.abs().max() > 0 for g in gradients)

    @pytest.mark.parametrize("detach", [False, True])
    def test_agreement_trains_both_networks_unless_detached(self, captures, detach):
        model, terms, _ = step_losses(captures, dataclasses.replace(PARAMS, detach_render=detach))
        assert self.reached(terms["agree"], model.student)
        assert self.reached(terms["agree"], model.net3d) is not detach

    def test_each_target_trains_its_own_side(self, captures):
        model, terms, _ = step_losses(captures, PARAMS)
        for name, network, other in (
            ("cells", model.net3d, model.student),
            ("voxels", model.net3d, model.student),
            ("views", model.student, model.net3d),
            ("prior", model.student, model.net3d),
        ):
            assert self.reached(terms[name], network) and not self.reached(terms[name], other), name

    def test_terms_of_no_weight_are_left_out(self, captures):
        without = dataclasses.replace(PARAMS, agree_weight=0.0, views_weight=0.0, prior_weight=0.0)
        _, terms, matched = step_losses(captures, without)
        assert set(terms) == {"cells", "voxels"} and set(matched) == {"rendered", "target"}

    def test_the_forms_of_agreement_differ(self, captures):
        switches = ({}, {"consistency": "cosine"}, {"link": "nearest"}, {"lifted": False})
        found = [step_losses(captures, dataclasses.replace(PARAMS, **change))[1]["cells"] for change in switches]
        assert len({round(float(value.detach()), 4) for value in found}) == len(switches)

    def test_total_is_the_weighted_sum(self):
        params = dataclasses.replace(
            PARAMS, cells_weight=2.0, voxels_weight=0.0, agree_weight=0.5, views_weight=0.1, prior_weight=3.0
        )
        terms = {
            name: torch.tensor(value)
            for name, value in zip(("cells", "voxels", "agree", "views", "prior"), (1, 2, 4, 10, 8), strict=True)
        }
        assert total_loss(terms, params).item() == pytest.approx(2 + 0 + 2 + 1 + 24)


class TestMonitor:
    def test_collapse_shows(self, generator):
        alive = torch.randn(64, 8, generator=generator)
        constant = torch.ones(64, 8) + 1e-6 * alive
        good = monitor({"student": alive, "rendered": alive, "target": alive})
        bad = monitor({"student": constant, "rendered": constant, "target": alive})
        assert good["match"] == 1 and good["agreement"] > 0.9 and good["rank_student"] > 7
        assert bad["agreement"] == pytest.approx(0, abs=1e-4) and bad["match"] < 0.2

    def test_warns(self, files, tmp_path, caplog, monkeypatch):
        monkeypatch.setattr("condense.pretrain.COLLAPSED", 2.0)  # no rank is twice the targets'
        teacher, paths = files
        pretrain_seed(tmp_path, paths, teacher, PARAMS, seed=0, stop=2)
        assert "collapse" in caplog.text


def test_every_weight_is_trained_once():
    model = new_model(tiny_teacher(), 0, make_decoder(tiny_teacher().dim, 0))
    trained = [id(p) for group in make_optimizer(model, PARAMS).param_groups for p in group["params"]]
    assert sorted(trained) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_learning_rate():
    assert warmup_cosine(0, 100, 4) == 0.25
    assert warmup_cosine(3, 100, 4) == 1
    assert warmup_cosine(52, 100, 4) == pytest.approx(0.5)
    assert warmup_cosine(99, 100, 4) < 0.001


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_interrupted_run_ends_with_the_same_bytes(files, tmp_path):
    teacher, paths = files
    straight = pretrain_seed(tmp_path / "straight", paths, teacher, PARAMS, seed=1)
    broken = pretrain_seed(tmp_path / "broken", paths, teacher, PARAMS, seed=1, stop=4)
    assert sorted(path.name for path in broken.iterdir()) == ["step_000004.json", "step_000004.safetensors"]
    pretrain_seed(broken, paths, teacher, PARAMS, seed=1)
    assert contents(straight) == contents(broken)
    before = contents(broken)
    pretrain_seed(broken, paths, teacher, PARAMS, seed=1)  # finished: nothing happens
    assert contents(broken) == before
    history = json.loads((straight / "history.json").read_text())
    assert [row["step"] for row in history] == [2, 4, 6]
    assert all(math.isfinite(value) for row in history for value in row.values())


def test_generations_lift_the_students_features(files, captures, tmp_path):
    teacher, paths = files
    params = dataclasses.replace(PARAMS, generations=2, prior_weight=0.0)
    straight = pretrain_seed(tmp_path / "straight", paths, teacher, params, seed=1)
    broken = pretrain_seed(tmp_path / "broken", paths, teacher, params, seed=1, stop=4)
    assert len(list((broken / "lifted_1").iterdir())) == len(paths)
    assert contents(pretrain_seed(broken, paths, teacher, params, seed=1)) == contents(straight)
    once = pretrain_seed(tmp_path / "once", paths, teacher, dataclasses.replace(params, generations=1), seed=1)
    assert contents(once)["net3d.safetensors"] != contents(straight)["net3d.safetensors"]
    model = new_model(tiny_teacher(), 0)  # the untrained student is the teacher: the same features are lifted
    torch.testing.assert_close(lifted_features(model.student, captures[0]), captures[0].lifted, rtol=1e-2, atol=1e-2)


def test_an_ensemble_lies_in_the_middle_and_goes_by_the_voxels_alone_where_no_view_sees():
    voxels = torch.tensor([[3.0, 0.0], [0.0, 2.0], [5.0, 0.0]])
    lifted = torch.tensor([[0.0, 7.0], [0.0, 0.0], [0.1, 0.0]])
    expected = torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, 1.0], [1.0, 0.0]])
    torch.testing.assert_close(ensemble(voxels, lifted), expected)


def test_a_share_of_the_captures_keeps_their_order():
    paths = [Path(str(number)) for number in range(10)]
    some = shared_out(paths, 0.3, seed=0)
    assert len(some) == 3 and some == sorted(some, key=paths.index)
    assert shared_out(paths, 1.0, seed=0) == paths and len(shared_out(paths, 0.01, seed=0)) == 1


def test_training_brings_the_networks_together(files, captures, tmp_path):
    teacher, paths = files
    params = dataclasses.replace(PARAMS, steps=40, log_every=40)
    model = load_model(pretrain_seed(tmp_path, paths, teacher, params, seed=0))
    assert not model.training
    training = [load_links(path) for path in paths]
    _, before, matched_before = step_losses(training, params)
    _, after, matched_after = step_losses(training, params, model=model)
    for name in ("cells", "voxels", "agree"):
        assert after[name] < 0.9 * before[name], name
    assert monitor(matched_after)["agreement"] > monitor(matched_before)["agreement"] + 0.05


def test_model_round_trip(tmp_path, captures):
    model = new_model(tiny_teacher(), 0).eval()
    save_model(tmp_path, model)
    again = load_model(tmp_path)
    scenes = [links.scene for links in captures]
    for a, b in zip(voxel_features(model.net3d, scenes), voxel_features(again.net3d, scenes), strict=True):
        assert torch.equal(a, b)


def test_features_of_a_scene_do_not_depend_on_its_batch(captures):
    net3d = new_model(tiny_teacher(), 0).net3d
    scenes = [links.scene for links in captures]
    together, alone = voxel_features(net3d, scenes), [voxel_features(net3d, [scene])[0] for scene in scenes]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
