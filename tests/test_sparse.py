"""Key-point heads and their training, on toy captures whose geometry is known."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d, normalize
from toys import tiny_teacher, toy_links

from condense.extraction import SEEN, condense_scene, condense_views, detect_image, detect_images, lift_views
from condense.links import save_links
from condense.losses import info_nce
from condense.model import new_model, save_model, voxel_features
from condense.params import SparseParams
from condense.sparse import SparseModel, keypoint_score, load_sparse, save_sparse
from condense.sparsebatch import co_visible, cropped, draw_sparse, draw_views
from condense.sparsetrain import (
    between_views,
    distinct_loss,
    draw_patches,
    finding,
    image_maps,
    make_optimizer,
    match_probability,
    sampled,
    score_agreement,
    sparse_losses,
    too_near,
    train_sparse,
    train_step,
    weighted,
)
from condense.voxels import input_features

SMALL = dataclasses.replace(
    SparseParams(), steps=4, warmup=1, captures=3, voxels=700, samples=48, cells=64, log_every=1, checkpoint_every=2
)


@pytest.fixture(scope="module")
def captures():
    teacher = tiny_teacher()
    return [toy_links(seed, teacher) for seed in range(4)]


@pytest.fixture
def model():
    return SparseModel(new_model(tiny_teacher(), 0)).eval()


@pytest.fixture
def batch(captures):
    return draw_sparse(captures, SMALL, seed=0, step=0)


def test_untrained_descriptors_are_the_dense_features(model, captures):
    scene = captures[0].scene
    dense = voxel_features(model.dense.net3d, [scene])[0]
    descriptors, logits = model.voxel_head(dense)
    assert torch.allclose(descriptors, normalize(dense, dim=1), atol=1e-6)
    assert torch.equal(keypoint_score(logits), torch.full((len(scene),), 0.25))


def test_a_score_is_reliable_times_distinct():
    logits = torch.tensor([[0.0, 0.0], [30.0, 30.0], [30.0, -30.0]])
    assert torch.allclose(keypoint_score(logits), torch.tensor([0.25, 1.0, 0.0]), atol=1e-6)


def test_the_model_comes_back_as_it_was_saved(model, captures, tmp_path):
    torch.nn.init.normal_(model.voxel_head.correction.weight, generator=torch.Generator().manual_seed(0))
    save_sparse(tmp_path, model)
    first, second = (condense_scene(m, captures[0].scene, 16) for m in (model, load_sparse(tmp_path)))
    assert torch.equal(first.descriptors, second.descriptors) and torch.equal(first.positions, second.positions)


def test_sampled_voxels_show_their_own_colour_where_they_weigh(captures):
    links = captures[1]
    rng = np.random.default_rng(0)
    views = draw_views(links, 3, rng)
    every, where, weights = co_visible(links, views, 64, rng)
    assert len(every) == len(every.unique()) == len(where) and len(every) > 20
    assert bool(((weights > 0).sum(1) >= 2).all())
    for number, view in enumerate(views):
        shown_here = weights[:, number] > 0.15
        rows, pixels = every[shown_here], where[shown_here]
        x, y = pixels[:, number].long().unbind(1)
        shown = view.image[y.clamp(0, 31), x.clamp(0, 31)].float() / 255
        inner = view.mask[y.clamp(0, 31), x.clamp(0, 31)] == 255
        error = (shown - links.scene.colour[rows]).abs().amax(1)[inner]
        assert error.median() < 0.05  # colours vary smoothly over the toy, so a wrong place would show
        wrong = (shown - links.scene.colour[rows.roll(len(rows) // 2)]).abs().amax(1)[inner]
        assert wrong.median() > 3 * error.median()


def test_a_cropped_scene_keeps_what_lies_on_one_side(captures):
    scene, kept = cropped(captures[0].scene, np.random.default_rng(1), 1.0)
    assert 0.35 < kept.float().mean() < 0.95 and torch.equal(scene.coords, captures[0].scene.coords[kept])
    whole, every = cropped(captures[0].scene, np.random.default_rng(1), 0.0)
    assert bool(every.all()) and torch.equal(whole.coords, captures[0].scene.coords)


def test_a_capture_with_too_few_views_shows_some_again(captures):
    views = draw_views(dataclasses.replace(captures[0], views=captures[0].views[:2]), 4, np.random.default_rng(0))
    assert len(views) == 4 and len({view.name for view in views}) == 2


def test_twins_are_the_same_voxels(captures):
    """With no turn, crop or recolouring both copies of a voxel have one feature."""
    plain = dataclasses.replace(SMALL, any_angle=0.0, crop=1.0, recolour=0.0, repaint=0.0, hide_colour=0.0)
    batch = draw_sparse(captures, plain, seed=0, step=1)
    colour = batch.voxels.colour[batch.voxels.rows]
    here = batch.twins >= 0
    assert 0 < int(here.sum()) < len(here)
    assert torch.allclose(colour[batch.samples[here]], colour[batch.twins[here]], atol=1e-6)


def test_draws_hang_on_seed_and_step_alone(captures):
    one, again, other = (draw_sparse(captures, SMALL, 0, step) for step in (3, 3, 4))
    assert torch.equal(one.pixels, again.pixels) and torch.equal(one.images[0], again.images[0])
    assert one.pixels.shape != other.pixels.shape or not torch.equal(one.pixels, other.pixels)


def test_neighbours_in_one_scene_do_not_repel(batch):
    near = too_near(batch)
    i, j = torch.nonzero(near)[0].tolist()
    assert batch.owner[i] == batch.owner[j] and (batch.places[i] - batch.places[j]).norm() < 1.8
    assert not near.diagonal().any() and not near[batch.owner[:, None] != batch.owner].any()


def test_match_probability_by_hand():
    """Two samples of one scene, orthogonal descriptors: softmax of 1/t against 0, both ways; the third is alone."""
    d = torch.eye(3)
    p = match_probability(d, d, torch.tensor([0, 0, 1]), torch.zeros(3, 3, dtype=torch.bool), 0.5)
    expected = (np.exp(2) / (np.exp(2) + 1)) ** 2
    assert torch.allclose(p, torch.tensor([expected, expected, 1.0], dtype=torch.float32), atol=1e-6)


def test_distinct_wants_peaks_in_the_same_places():
    peak, flat = torch.eye(4)[:1].clamp_min(0.01), torch.full((1, 4), 0.5)
    elsewhere = torch.eye(4)[1:2].clamp_min(0.01)
    assert distinct_loss([peak] * 3) < distinct_loss([flat] * 3) and distinct_loss([peak] * 2) < distinct_loss(
        [peak, elsewhere]
    )
    assert distinct_loss([torch.zeros(0, 4)] * 3) == 0


def test_equal_scores_agree_through_the_operator(batch):
    """A constant renders to itself times the opacity, and lifts to itself."""
    rows, voxels = batch.operator.shape
    same = score_agreement(torch.full((voxels,), 0.3), torch.full((rows,), 0.3), batch)
    assert same < 1e-5
    assert score_agreement(torch.full((voxels,), 0.3), torch.full((rows,), 0.4), batch) == pytest.approx(0.2, abs=1e-4)


def test_patches_stay_within_a_scene_and_are_near(batch):
    patches, solid = draw_patches(batch, torch.Generator().manual_seed(0))
    assert 0 < len(solid) < len(patches) and bool((batch.samples[solid] >= 0).all())
    assert patches.shape[1] == 12 and len(patches) > 10
    assert bool((batch.owner[patches] == batch.owner[patches[:, :1]]).all())
    spread = (batch.places[patches] - batch.places[patches[:, :1]]).norm(dim=2).amax(1).mean()
    assert spread < 0.6 * batch.places.std(0).norm() * 2


def test_every_part_gets_a_gradient(model, batch):
    model.train()
    terms = sparse_losses(model, batch, SMALL, torch.Generator().manual_seed(0))
    assert set(terms) == {"match", "reliable", "distinct", "follow", "lift", "dense"}
    assert all(getattr(SMALL, f"{name}_weight") > 0 for name in terms)
    torch.stack(list(terms.values())).sum().backward()
    for part in (model.dense.net3d, model.dense.student, model.image_head, model.voxel_head):
        assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in part.parameters())


def test_the_match_term_by_hand(model, batch):
    """The term put together from its parts; nothing is detached or left out on the way."""
    features = model.dense.net3d(batch.voxels.coords, _inputs(batch), batch.voxels.shape, len(batch.voxels.sizes))[
        batch.voxels.rows
    ]
    voxel = model.voxel_head(features)[0]
    views, logits = sampled(image_maps(model, batch.images), batch)
    near, here, solid = too_near(batch), batch.twins >= 0, batch.samples >= 0
    own, t = voxel[batch.samples[solid]], SMALL.temperature
    best = torch.stack([view[weight.argmax()] for view, weight in zip(views, batch.weights, strict=True)])
    expected = between_views(views, logits, batch, near, t)[0] + finding(own, best, solid, near, t)
    expected = expected + finding(own, normalize(weighted(views, batch.weights), dim=1), solid, near, t)
    twins = voxel[batch.twins[here]]
    expected = expected + info_nce(voxel[batch.samples[here]], twins, t, near[here][:, here])
    terms = sparse_losses(model, batch, SMALL, torch.Generator().manual_seed(0))
    assert torch.allclose(terms["match"], expected / 4, atol=1e-5)


def test_every_view_asks_the_others(model, batch):
    """The term between views, put together view by view; a place that only one view shows is not asked for."""
    views, logits = sampled(image_maps(model, batch.images), batch)
    near, terms = too_near(batch), []
    for place in range(views.shape[1]):
        others = [v for v in range(views.shape[1]) if v != place]
        rows = (batch.weights[:, place] > 0) & (batch.weights[:, others] > 0).any(1)
        lifted = normalize((views[rows][:, others] * batch.weights[rows][:, others, None]).sum(1), dim=1)
        terms.append(info_nce(views[rows, place], lifted, 0.1, near[rows][:, rows]))
    match, reliable, chance = between_views(views, logits, batch, near, 0.1)
    assert torch.allclose(match, torch.stack(terms).mean(), atol=1e-5)
    assert float(reliable) > 0 and bool((chance > 0).all()) and bool((chance <= 1).all())


def test_finding_by_hand():
    """Two of three samples have voxels; the second's own sample is as near as the third's."""
    other = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    solid, near = torch.tensor([True, True, False]), torch.zeros(3, 3, dtype=torch.bool)
    one, two = np.log(1 + 2 * np.exp(-2)), np.log(2 + np.exp(-2))
    assert finding(other[:2], other, solid, near, 0.5) == pytest.approx((one + two) / 2, abs=1e-6)
    near[1, 2] = True  # a neighbour does not compete
    alone = np.log(1 + np.exp(-2))
    assert finding(other[:2], other, solid, near, 0.5) == pytest.approx((one + alone) / 2, abs=1e-6)
    assert finding(other[:0], other, torch.zeros(3, dtype=torch.bool), near, 0.5) == 0


def test_views_weigh_as_much_as_they_show():
    values = torch.tensor([[[9.0], [1.0], [3.0]]])
    assert weighted(values, torch.tensor([[0.0, 1.0, 3.0]])).item() == pytest.approx(2.5)
    assert weighted(values, torch.zeros(1, 3)).item() == 0


def test_scores_and_descriptors_of_images_are_carried_to_the_voxels(model, captures):
    """An image head that gives one score and one descriptor everywhere gives them to every voxel that is seen."""
    links = captures[0]
    torch.nn.init.zeros_(model.image_head.correction.weight)
    model.image_head.correction.bias.data = 1e6 * torch.nn.functional.one_hot(torch.tensor(3), 16).float()
    model.image_head.score.bias.data = torch.tensor([30.0, 0.0])
    descriptors, scores, seen = lift_views(model, links.scene, links.views)
    known = seen > SEEN
    assert int(known.sum()) > 0
    assert torch.allclose(scores[known], torch.tensor(0.5), atol=1e-4)
    assert torch.allclose(descriptors[known][:, 3], torch.tensor(1.0), atol=1e-4)
    points = condense_views(model, links.scene, links.views[:1], len(links.scene))  # none stands for others
    hidden = lift_views(model, links.scene, links.views[:1])[2] <= SEEN
    where = torch.cdist(points.positions, links.scene.centres).argmin(1)
    assert int(hidden.sum()) > 0 and bool((points.descriptors[~hidden[where], 3] > 0.99).all())
    assert bool((points.descriptors[hidden[where], 3] < 0.9).all())


def _inputs(batch):
    return input_features(batch.voxels, batch.visible)


def test_a_killed_run_ends_with_the_same_numbers(captures, tmp_path):
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for links, path in zip(captures, paths, strict=False):
        save_links(links, path)
    save_model(tmp_path / "dense", new_model(tiny_teacher(), 0))
    whole = train_sparse(tmp_path / "whole", tmp_path / "dense", paths, SMALL, seed=0)
    train_sparse(tmp_path / "killed", tmp_path / "dense", paths, SMALL, seed=0, stop=2)
    killed = train_sparse(tmp_path / "killed", tmp_path / "dense", paths, SMALL, seed=0)
    for name in ("heads.safetensors", "net3d.safetensors", "student.safetensors", "history.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
    assert not list(killed.glob("step_*"))


@pytest.mark.parametrize("rate", [0.0, 1e-3])
def test_the_image_network_learns_at_its_rate(captures, rate):
    params = dataclasses.replace(SMALL, student_lr=rate)
    model = SparseModel(new_model(tiny_teacher(), 0)).train()
    before = [p.clone() for p in model.dense.student.parameters()]
    train_step(model, make_optimizer(model, params), captures, params, 0, 1)
    same = [torch.equal(p, old) for p, old in zip(model.dense.student.parameters(), before, strict=True)]
    assert all(same) if rate == 0 else not any(same)


def test_training_makes_pixels_find_their_voxels(captures, tmp_path):
    params = dataclasses.replace(SMALL, steps=40, warmup=4, samples=96)
    model = SparseModel(new_model(tiny_teacher(), 0))
    optimizer = make_optimizer(model, params)
    history = [
        float(train_step(model.train(), optimizer, captures, params, 0, step)["match"]) for step in range(params.steps)
    ]
    assert np.mean(history[-5:]) < np.mean(history[:5]) - 1


def test_key_points_of_an_image_lie_on_its_mask(model, captures):
    view = captures[0].views[0]
    found = detect_image(model, view.image, view.mask, 32)
    covered = adaptive_avg_pool2d(view.mask[None, None].float(), 16)[0, 0]  # cells of 2 x 2 pixels
    x, y = (found.positions / 2).long().unbind(1)
    assert len(found) == 32 and bool((covered[y, x] >= 127).all()) and bool((covered < 127).any())
    both = detect_images(model, [view.image, captures[0].views[1].image])
    alone = detect_image(model, view.image)
    assert torch.allclose(both[0].positions, alone.positions, atol=1e-4)


def test_a_scene_condenses_to_the_wanted_number(model, captures):
    scene = captures[0].scene
    points = condense_scene(model, scene, 20)
    assert len(points) == 20 and bool((points.scores[:-1] >= points.scores[1:]).all())
    nearest = torch.cdist(points.positions, scene.centres).amin(1)
    assert float(nearest.max()) < 1e-5
    assert len(condense_scene(model, scene, 10**6)) == len(scene)
