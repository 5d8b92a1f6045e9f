import dataclasses

import numpy as np
import pytest
import torch
from toys import toy_scene, toy_views

from condense.cameras import Cameras, look_at
from condense.grid import Grid
from condense.keptposes import kept_pose
from condense.keypoints import ImageKeyPoints, KeyPoints
from condense.posealign import (
    LEVELS,
    Level,
    Photograph,
    Renderer,
    Renderers,
    distinct,
    find_pose,
    framed,
    look,
    moved,
    pose_by_mask,
    slopes,
)
from condense.poses import pose_errors
from condense.posesearch import rotation_grid
from condense.rayoperator import build_operator
from condense.repository import SceneRepository
from condense.voxels import VoxelScene, halved, index_volume

K = torch.tensor([[83.0, 0, 32], [0, 83, 32], [0, 0, 1]])
FINE = Level(32, 1, 1, 20, 0.3)


def lopsided(seed=0):
    """A box with a block on one corner: no turn carries it onto itself."""
    box = toy_scene(1 + 2 * seed, side=16)
    coords = torch.stack(
        torch.meshgrid(torch.arange(9, 16), torch.arange(9, 16), torch.arange(10, 16), indexing="ij"), -1
    )
    coords = coords.reshape(-1, 3).int()
    new = coords[~(coords[:, None] == box.coords).all(2).any(1)]
    colour = torch.tensor([[0.9, 0.2, 0.1]]).expand(len(new), 3)
    return VoxelScene(
        torch.cat([box.coords, new]), torch.full((len(box) + len(new),), 4.0), torch.cat([box.colour, colour]), box.grid
    )


def camera(eye):
    return Cameras(K[None], look_at(torch.tensor([eye]), torch.zeros(3)), torch.tensor([[64, 64]]))


def photograph(scene, cameras, gain=(1.0, 1.0, 1.0), offset=0.0):
    views = toy_views(scene, cameras)
    image = torch.from_numpy(views.images[0]).float() * torch.tensor(gain) + 255 * offset
    mask = torch.from_numpy(views.masks[0] * 255).round().to(torch.uint8)
    return Photograph(image.clamp(0, 255).round().to(torch.uint8), mask, K)


def test_cells_are_what_the_ray_operator_renders():
    scene, cameras = lopsided(), camera([1.7, 0.6, 0.8])
    view = photograph(scene, cameras).on(Level(32, 2, 1, 1, 1.0))
    T = cameras.T_world_from_camera
    image, depth = Renderer(scene).render(T[:, :3, :3], T[:, :3, 3], view)
    away = cameras.project(0, scene.centres)[1]
    values = torch.cat([torch.ones(len(scene), 1), scene.colour, away[:, None]], 1)
    expected = build_operator(scene, cameras, 0, 64, 64, subrays=1, step=1.0, keep=1.0).render(values).T.view(5, 64, 64)
    torch.testing.assert_close(image[0], expected[:4], atol=2e-3, rtol=0)
    solid = expected[0] > 0.9
    torch.testing.assert_close(
        (depth[0, 0] / image[0, 0])[solid], (expected[4] / expected[0])[solid], atol=0.03, rtol=0
    )
    torch.testing.assert_close(view.seen[0], view.cells(expected[:1])[0], atol=0.1, rtol=0)


def test_slopes_are_finite_differences():
    scene, cameras = lopsided(), camera([1.7, 0.6, 0.8])
    view = photograph(scene, cameras).on(Level(32, 2, 1, 1, 1.0))
    renderer, T = Renderer(scene), cameras.T_world_from_camera
    R, c = T[:, :3, :3], T[:, :3, 3]
    J = slopes(look(R, c, renderer, view, 1.0), view, renderer.middle)[0]
    for axis in range(6):
        step = 0.015 * torch.eye(6)[axis, None]
        ahead, behind = (
            view.weighed(view.cells(renderer.render(*moved(R, c, renderer.middle, s), view)[0]))[0]
            for s in (step, -step)
        )
        difference = (ahead - behind) / 0.03
        cosine = torch.nn.functional.cosine_similarity(J[axis].flatten(), difference.flatten(), dim=0)
        assert cosine > 0.8 and 0.7 < J[axis].norm() / difference.norm() < 1.4, axis


def test_poses_that_are_tried_further_differ():
    turns = [torch.linalg.matrix_exp(torch.tensor([[0, -a, 0], [a, 0, 0], [0, 0, 0.0]])) for a in (0, 0.05, 1, 1.1, 2)]
    R, cost = torch.stack(turns), torch.tensor([0.3, 0.2, 0.5, 0.4, 0.1])
    assert distinct(R, cost, 2).tolist() == [4, 1]
    assert distinct(R, cost, 5).tolist() == [4, 1, 3]  # those between are within 10 degrees of a better one


def test_local_contrast_leaves_slow_light_out():
    scene, cameras = lopsided(), camera([1.7, 0.6, 0.8])
    bright = photograph(scene, cameras)
    slope = torch.linspace(0.7, 1.3, 64)[None, :, None]
    shaded = dataclasses.replace(bright, image=(bright.image * slope).clamp(0, 255).to(torch.uint8))
    T, renderer = cameras.T_world_from_camera, Renderer(scene)
    plain, local = (Level(64, 1, 1, 0, 0.3, window=window) for window in (0, 9))
    worse = [float(look(T[:, :3, :3], T[:, :3, 3], renderer, shaded.on(each), 0.3).cost) for each in (plain, local)]
    assert worse[1] < 0.5 * worse[0]
    view = bright.on(local)
    off = torch.rand(2, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(view.weighed(off)[:, :1], off[:, :1])
    mean = off[1, 2, 1:10, 2:11].mean()
    torch.testing.assert_close(view.weighed(off)[1, 2, 5, 6], off[1, 2, 5, 6] - mean)


@pytest.mark.parametrize("light", [((1.0, 1.0, 1.0), 0.0), ((0.6, 0.75, 0.9), 0.05)])
def test_a_pose_nearby_is_put_right_in_any_light(light):
    scene, cameras = lopsided(), camera([1.7, 0.6, 0.8])
    T = cameras.T_world_from_camera
    off = torch.tensor([[0.08, -0.1, 0.06, 0.03, -0.02, 0.06]])
    R, c = moved(T[:, :3, :3], T[:, :3, 3], Renderer(scene).middle, off)
    levels = (Level(16, 2, 1, 20, 1.0, halved=True), FINE)
    found, cost = find_pose(photograph(scene, cameras, *light), Renderers(scene), R, c, levels)
    degrees, distance = pose_errors(found, T[0])
    assert degrees < 1 and distance < 0.03 and cost < 0.02


def test_a_pose_is_found_without_any_start():
    scene, cameras = lopsided(), camera([-1.2, 1.3, 0.7])
    found, cost = pose_by_mask(photograph(scene, cameras), Renderers(scene))
    degrees, distance = pose_errors(found, cameras.T_world_from_camera[0])
    assert degrees < 1 and distance < 0.03
    mirrored = VoxelScene(
        torch.cat([15 - scene.coords[:, :1], scene.coords[:, 1:]], 1), scene.density, scene.colour, scene.grid
    )
    other = pose_by_mask(photograph(scene, cameras), Renderers(mirrored))[1]
    assert other > 2 * cost  # what looks nearly alike is told apart


def test_framing_cameras_see_the_scene_where_the_mask_is():
    scene, cameras = lopsided(), camera([2.5, 0.8, 1.0])
    T, asked, renderer = cameras.T_world_from_camera[0], photograph(lopsided(), cameras), Renderer(scene)
    R, middle = rotation_grid(4, range(0, 31, 30)), renderer.middle
    true = framed(T[None, :3, :3], asked, renderer)[0]
    assert (true - T[:3, 3]).norm() < 0.05 * T[:3, 3].norm()
    view = asked.on(LEVELS[0])
    opacity = view.cells(renderer.render(R, framed(R, asked, renderer, rounds=3), view)[0])[:, 0]
    x = torch.arange(12) + 0.5
    for axis in (1, 2):
        seen = view.seen[0].sum(axis - 1)
        there = opacity.sum(axis)
        torch.testing.assert_close(
            (there @ x) / there.sum(1), ((seen @ x) / seen.sum()).expand(len(R)), atol=0.3, rtol=0
        )
    first = framed(R, asked, renderer, rounds=0)
    centre = ((middle - first)[:, None] @ R)[:, 0]
    assert (centre[:, 2] > 0).all()  # before the camera


def test_signed_densities_keep_a_surface_where_it_is():
    scene, cameras = lopsided(), camera([1.7, 0.6, 0.8])
    volume = torch.nn.functional.pad(index_volume(scene) >= 0, (1,) * 6)
    around = (torch.nn.functional.max_pool3d(volume[None].float(), 3, 1, 1)[0] > 0) & ~volume
    shell = around.nonzero().int()
    grid = scene.grid
    low = tuple(x - grid.voxel_size for x in grid.origin)
    signed = VoxelScene(
        torch.cat([scene.coords + 1, shell]),
        torch.cat([scene.density, torch.full((len(shell),), -4.0)]),
        torch.cat([scene.colour, torch.zeros(len(shell), 3)]),
        dataclasses.replace(grid, origin=low, shape=tuple(n + 2 for n in grid.shape)),
    )
    view, T = photograph(scene, cameras).on(FINE), cameras.T_world_from_camera
    thick, thin = (Renderer(each).render(T[:, :3, :3], T[:, :3, 3], view)[0][0, 0] for each in (scene, signed))
    edge = grid.voxel_size / 2 * 83 / 2 / T[0, :3, 3].norm()  # half a voxel, in cells
    shrunk = thin.sum().sqrt() / thick.sum().sqrt()
    assert 1 - 6 * edge / thick.sum().sqrt() < shrunk < 0.99
    torch.testing.assert_close(Renderer(signed).middle, Renderer(scene).middle)


def test_at_half_the_resolution_outlines_stay_where_they_are():
    """A ball whose surface lies between voxels, as fields hold it."""
    grid, cameras = Grid((-1.0,) * 3, 1 / 16, (32, 32, 32)), camera([1.7, 0.6, 0.8])
    coords = torch.cartesian_prod(*[torch.arange(32)] * 3).int()
    density = 2 * (0.55 - grid.to_world(coords + 0.5).norm(dim=1)) / grid.voxel_size
    near = density > -4
    ball = VoxelScene(coords[near], density[near], torch.ones(int(near.sum()), 3), grid)
    thick = dataclasses.replace(ball, density=ball.density.relu())
    view, T = photograph(lopsided(), cameras).on(FINE), cameras.T_world_from_camera

    def area(scene):
        return float(Renderer(scene).render(T[:, :3, :3], T[:, :3, 3], view)[0][0, 0].sum())

    assert area(halved(ball)) == pytest.approx(area(ball), rel=0.03)
    assert area(halved(thick)) > 1.1 * area(ball)


def test_a_contracted_grid_is_rendered_too():
    scene = lopsided()
    grid = dataclasses.replace(scene.grid, contracted=True)
    if grid.to_world(torch.tensor([[8.0, 8, 8]])).abs().max() > 1:
        pytest.fail("the middle of the toy grid has moved")
    contracted, cameras = dataclasses.replace(scene, grid=grid), camera([1.0, 0.6, 0.5])
    T, middle = cameras.T_world_from_camera, Renderer(contracted).middle
    R, c = moved(T[:, :3, :3], T[:, :3, 3], middle, torch.tensor([[0.05, -0.04, 0.03, 0.02, 0, 0.03]]))
    found, _ = find_pose(photograph(contracted, cameras), Renderers(contracted), R, c, (FINE,))
    assert pose_errors(found, T[0])[0] < 1


def test_bad_input_is_refused():
    image, mask = torch.zeros(8, 8, 3, dtype=torch.uint8), torch.zeros(8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="covers no pixel"):
        Photograph(image, mask, K)
    with pytest.raises(ValueError, match=r"\(H, W, 3\)"):
        Photograph(image[:4], mask, K)
    with pytest.raises(ValueError, match="no pose to start from"):
        find_pose(Photograph(image, mask + 255, K), Renderers(lopsided()), torch.zeros(0, 3, 3), torch.zeros(0, 3))
    assert not Photograph(image, mask + 255, K).cut_out and [level.side for level in LEVELS] == [12, 16, 32, 64, 16]


def test_poses_are_kept_by_what_photograph_and_scene_hold(tmp_path, monkeypatch):
    scene, asked, calls = lopsided(), photograph(lopsided(), camera([1.7, 0.6, 0.8])), []

    def search(*given):
        calls.append(given)
        return torch.eye(4) / 3, 0.1 * len(calls)

    monkeypatch.setattr("condense.keptposes.pose_by_mask", search)
    first = kept_pose(asked, Renderers(scene), tmp_path / "poses")
    again = kept_pose(asked, Renderers(dataclasses.replace(scene)), tmp_path / "poses")
    assert len(calls) == 1 and again[1] == first[1] and torch.equal(again[0], first[0])
    for other in (dataclasses.replace(scene, density=scene.density / 2), lopsided(1)):
        kept_pose(asked, Renderers(other), tmp_path / "poses")
    kept_pose(dataclasses.replace(asked, image=255 - asked.image), Renderers(scene), tmp_path / "poses")
    kept_pose(dataclasses.replace(asked, K=2 * asked.K), Renderers(scene), tmp_path / "poses")
    assert len(calls) == 5 and len(list((tmp_path / "poses").iterdir())) == 5
    kept_pose(asked, Renderers(scene), None)
    assert len(calls) == 6


def test_rendering_tells_scenes_apart_whose_key_points_are_the_same():
    rng = np.random.default_rng(0)
    right, cameras = lopsided(), camera([1.7, 0.6, 0.8])
    wrong = VoxelScene(right.coords[:-60], right.density[:-60], right.colour[:-60], right.grid)  # lacks some of a part
    rows = torch.from_numpy(rng.permutation(len(right) - 60)[:80])
    descriptors = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(80, 64))).float(), dim=1)
    normals = torch.nn.functional.normalize(right.centres[rows], dim=1)
    points = KeyPoints(right.centres[rows], normals, torch.ones(80), descriptors, right.colour[rows])
    repository = SceneRepository("model")
    for name in ("wrong", "right"):
        repository.add(name, points)
    pixels, _ = cameras.project(0, points.positions)
    image = ImageKeyPoints(pixels, torch.ones(80), descriptors, (64, 64))
    asked = photograph(right, cameras)
    scenes = {"right": right, "wrong": wrong}
    answers = repository.query_photograph(image, asked, scenes.__getitem__)
    assert [a.name for a in answers] == ["right", "wrong"] and answers[0].features[2] > answers[1].features[2]
    assert pose_errors(answers[0].pose, cameras.T_world_from_camera[0])[0] < 1 and len(answers[0].inliers) > 5
    unseen = repository.query_photograph(image, asked, scenes.__getitem__, verify=0)
    assert all(answer.pose is None for answer in unseen)
    repository.set_calibration("photograph", [0.0, 0, 0, 0, 0])
    assert repository.query_photograph(image, asked, scenes.__getitem__)[0].score == pytest.approx(0.5)
