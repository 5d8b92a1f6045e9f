import dataclasses

import pytest
import torch
from conftest import TOLERANCE
from toys import tiny_teacher, toy_cameras, toy_links, toy_scene, toy_views

from condense.links import lift, link_views, load_links, save_links, well_seen
from condense.rayoperator import RayOperator

TENTHS = torch.tensor([0.0, 0.1, 0.2, 0.3])


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


def test_well_seen_by_hand():
    """Three voxels carry 6, 3 and 1 tenths of what two views see; a fourth is seen by neither."""
    first = RayOperator(
        torch.tensor([0, 2], dtype=torch.int32), torch.tensor([0, 2], dtype=torch.int32), TENTHS[[3, 1]], 4
    )
    second = RayOperator(
        torch.tensor([0, 2], dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32), TENTHS[[3, 3]], 4
    )
    assert well_seen([first, second], 1.0).tolist() == [True, True, True, False]
    assert well_seen([first, second], 0.8).tolist() == [True, True, False, False]
    assert well_seen([first, second], 0.5).tolist() == [True, False, False, False]


def test_dropped_voxels_hide_nothing(links):
    scene, cameras = toy_scene(0), toy_cameras(6, seed=0)
    slim = link_views("toy_0", {}, toy_views(scene, cameras), ["train"] * 6, scene, tiny_teacher(), keep=0.95)
    assert len(slim.scene) < len(links.scene) <= len(scene)
    for ours, theirs in zip(links.views, slim.views, strict=True):
        opacity = theirs.operator.opacity
        torch.testing.assert_close(opacity, ours.operator.opacity, rtol=1e-3, atol=0.02)
        a, b = ours.operator.render(links.scene.colour), theirs.operator.render(slim.scene.colour)
        assert (a - b).abs().mean() < 0.02  # 5 % of the light, re-shared among neighbours


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
