import dataclasses

import pytest
import torch
from conftest import TOLERANCE
from toys import tiny_teacher, toy_cameras, toy_links, toy_scene, toy_views

from condense.links import lift, link_views, load_links, save_links


@pytest.fixture(scope="module")
def links():
    return toy_links(0)


def dense(operator):
    return operator.render(torch.eye(operator.shape[1]))


def test_lift_is_the_weighted_mean_of_what_sees_a_voxel(links):
    training = [view for view in links.views if view.split == "train"]
    A = torch.cat([dense(view.operator) for view in training])
    T = torch.cat([view.teacher.float() for view in training])
    torch.testing.assert_close(links.seen, A.sum(0), **TOLERANCE[torch.float32])
    there = links.seen > 1e-3
    expected = (A.T @ T)[there] / A.sum(0)[there, None]
    torch.testing.assert_close(links.lifted[there], expected, rtol=1e-3, atol=1e-4)  # divided by small weights


def test_lifting_a_constant_gives_the_constant(links):
    operators = [view.operator for view in links.views]
    lifted, seen = lift([torch.full((len(view.teacher), 2), 3.0) for view in links.views], operators)
    assert torch.allclose(lifted[seen > 1e-4], torch.tensor(3.0), atol=1e-3)
    assert (lifted[seen == 0] == 0).all()


def test_test_views_teach_nothing(links):
    scene, cameras = toy_scene(0), toy_cameras(6, seed=0)
    views = toy_views(scene, cameras)
    for image in views.images[4:]:
        image[:] = 0
    other = link_views("toy_0", {}, views, ["train"] * 4 + ["test"] * 2, scene, tiny_teacher())
    assert torch.equal(other.lifted, links.lifted) and torch.equal(other.seen, links.seen)


def test_round_trip_reads_only_the_splits_asked_for(links, tmp_path):
    path = tmp_path / "toy.safetensors"
    save_links(links, path)
    train, test, both = load_links(path), load_links(path, ("test",)), load_links(path, ("train", "test"))
    assert [view.split for view in train.views] == ["train"] * 4
    assert [view.name for view in test.views] == ["4.png", "5.png"]
    assert both.meta == links.meta and both.scene.grid == links.scene.grid
    for ours, theirs in zip(links.views, both.views, strict=True):
        for field in dataclasses.fields(ours):
            a, b = getattr(ours, field.name), getattr(theirs, field.name)
            if isinstance(a, torch.Tensor):
                assert torch.equal(a, b), field.name
        values = torch.rand(len(links.scene), 3)
        assert torch.equal(ours.operator.render(values), theirs.operator.render(values))
        assert torch.equal(ours.camera.K, theirs.camera.K)
    torch.testing.assert_close(both.lifted, links.lifted, rtol=1e-3, atol=1e-3)  # kept as float16


def test_image_that_is_not_square_and_has_no_mask():
    links = toy_links(1, views=3, test=1, masks=False, width=48, height=32)
    view = links.views[0]
    assert view.cells == (8, 12) and view.image.shape == (32, 48, 3)
    assert view.teacher.shape == (96, 16) and view.operator.shape == (96, len(links.scene))
    assert view.foreground.all()


def test_foreground_follows_the_mask(links):
    view = links.views[0]
    opacity = view.operator.render(torch.ones(len(links.scene), 1))[:, 0]
    assert 0 < view.foreground.sum() < len(view.foreground)
    assert (opacity[view.foreground] > 0.3).all()
