import dataclasses
import itertools
import math

import pytest
import torch

from condense.grid import Grid
from condense.voxels import (
    Turn,
    VoxelScene,
    batch_scenes,
    halved,
    index_volume,
    input_features,
    random_turn,
    turn_coords,
    voxelise_points,
    whereabouts,
)


def make_scene(generator, shape=(5, 6, 7), voxels=40):
    cells = torch.randperm(shape[0] * shape[1] * shape[2], generator=generator)[:voxels]
    coords = torch.stack(torch.unravel_index(cells, shape), dim=1).int()
    density = 10 * torch.rand(voxels, generator=generator)
    return VoxelScene(coords, density, torch.rand(voxels, 3, generator=generator), Grid((-1.0, 0.0, 2.0), 0.5, shape))


def test_wrong_shapes_and_places_are_refused(generator):
    scene = make_scene(generator)
    with pytest.raises(ValueError, match=r"density has shape \(39,\), not \(40,\)"):
        VoxelScene(scene.coords, scene.density[1:], scene.colour, scene.grid)
    with pytest.raises(ValueError, match=r"torch\.int64, not torch\.int32"):
        VoxelScene(scene.coords.long(), scene.density, scene.colour, scene.grid)
    with pytest.raises(ValueError, match="outside the grid"):
        VoxelScene(scene.coords + 5, scene.density, scene.colour, scene.grid)


def test_opacity_and_centres_by_hand():
    scene = VoxelScene(
        torch.tensor([[0, 1, 0]], dtype=torch.int32),
        torch.tensor([0.6931472]),
        torch.zeros(1, 3),
        Grid((1.0, 1.0, 1.0), 2.0, (1, 2, 1)),
    )
    torch.testing.assert_close(scene.opacity, torch.tensor([0.5]))
    torch.testing.assert_close(scene.centres, torch.tensor([[2.0, 4.0, 2.0]]))


def test_save_and_load_give_the_same_scene(generator, tmp_path):
    scene = make_scene(generator)
    scene.save(tmp_path / "scene.safetensors")
    again = VoxelScene.load(tmp_path / "scene.safetensors")
    assert again.grid == scene.grid
    for name in ("coords", "density", "colour"):
        assert torch.equal(getattr(again, name), getattr(scene, name))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scene.json", "scene.safetensors"]


def test_index_volume_names_every_voxel_once(generator):
    scene = make_scene(generator)
    volume = index_volume(scene)
    assert volume.shape == scene.grid.shape and (volume >= 0).sum() == len(scene)
    assert torch.equal(volume[tuple(scene.coords.long().T)], torch.arange(len(scene)))


def test_batch_puts_the_scene_first_and_keeps_rows(generator):
    scenes = [make_scene(generator, voxels=9), make_scene(generator, shape=(8, 3, 4), voxels=5)]
    batch = batch_scenes(scenes)
    assert batch.sizes == (9, 5) and batch.shape == (8, 6, 7) and batch.coords.dtype == torch.int32
    assert batch.coords[:, 0].tolist() == [0] * 9 + [1] * 5
    assert torch.equal(batch.coords[9:, 1:], scenes[1].coords)
    features = input_features(batch, visible=torch.arange(14) < 9)
    assert features.shape == (14, 7) and (features[9:, :3] == 0).all() and (features[:, 3] == 1).all()
    torch.testing.assert_close(features[:9, :3], 2 * scenes[0].colour - 1)
    with pytest.raises(ValueError, match="at least one"):
        batch_scenes([])


def test_whereabouts_by_hand():
    coords = torch.tensor([[2, 0, 3], [0, 0, 3], [1, 0, 7]], dtype=torch.int32)
    tower = VoxelScene(coords, torch.ones(3), torch.ones(3, 3), Grid((0.0, 0.0, 0.0), 1.0, (9, 9, 9)))
    other = dataclasses.replace(tower, coords=coords + 1)
    found = whereabouts(batch_scenes([tower, other]))
    torch.testing.assert_close(found[:, 0], torch.tensor([-1, -1, -0.75] * 2))
    torch.testing.assert_close(found[:, 1], torch.tensor([-0.875, -0.875, -1] * 2))


def test_whereabouts_do_not_change_when_a_scene_is_turned_or_mirrored(generator):
    scene = make_scene(generator)
    for quarters, mirror in itertools.product(range(4), (False, True)):
        turned = whereabouts(batch_scenes([scene], [Turn(quarters * math.pi / 2, mirror)]))
        torch.testing.assert_close(turned, whereabouts(batch_scenes([scene])))


def test_turns_by_hand():
    coords = torch.tensor([[0, 0, 3]], dtype=torch.int32)
    turned, shape = turn_coords(coords, (4, 2, 5), Turn(math.pi / 2))
    assert turned.tolist() == [[1, 0, 3]] and shape == (2, 4, 5)
    assert turn_coords(coords, (4, 2, 5), Turn(mirror=True))[0].tolist() == [[3, 0, 3]]


def test_turns_are_the_eight_symmetries(generator):
    scene = make_scene(generator, shape=(6, 6, 4))
    images = set()
    middle = torch.tensor(scene.grid.shape) / 2
    for quarters, mirror in itertools.product(range(4), (False, True)):
        turned, shape = turn_coords(scene.coords, scene.grid.shape, Turn(quarters * math.pi / 2, mirror))
        VoxelScene(turned, scene.density, scene.colour, Grid((0.0, 0.0, 0.0), 1.0, shape))
        distances = torch.cdist(turned.double(), turned.double())
        torch.testing.assert_close(distances, torch.cdist(scene.coords.double(), scene.coords.double()))
        moved = (scene.coords + 0.5 - middle).double() @ Turn(quarters * math.pi / 2, mirror).matrix.T
        torch.testing.assert_close(turned + 0.5 - torch.tensor(shape) / 2, moved.float())
        images.add(tuple(turned.flatten().tolist()))
    assert len(images) == 8
    back, _ = turn_coords(*turn_coords(scene.coords, scene.grid.shape, Turn(math.pi / 2)), Turn(3 * math.pi / 2))
    assert torch.equal(back, scene.coords)


def test_voxels_that_meet_after_a_turn_share_a_cell(generator):
    scene = make_scene(generator, shape=(12, 12, 2), voxels=200)
    batch = batch_scenes([scene, scene], [Turn(0.5), Turn()])
    assert len(batch.coords) < 400 == len(batch.rows) and len(batch.coords.unique(dim=0)) == len(batch.coords)
    turned, _ = turn_coords(scene.coords, scene.grid.shape, Turn(0.5))
    assert torch.equal(batch.coords[batch.rows[:200], 1:], turned)
    assert torch.equal(batch.coords[batch.rows[200:], 1:], scene.coords)
    cell = int(torch.bincount(batch.rows).argmax())  # by hand: means over the voxels that met
    members = torch.nonzero(batch.rows == cell)[:, 0] % 200
    assert len(members) > 1
    torch.testing.assert_close(batch.colour[cell], scene.colour[members].mean(0))
    torch.testing.assert_close(batch.opacity[cell], scene.opacity[members].mean())
    alone = batch_scenes([dataclasses.replace(scene)])
    assert torch.equal(alone.rows, torch.arange(200))


def test_random_turns_follow_their_generator():
    import numpy as np

    draws = [[random_turn(np.random.default_rng(seed)) for _ in range(3)] for seed in (1, 1)]
    assert draws[0] == draws[1]
    rng = np.random.default_rng(0)
    assert len({random_turn(rng) for _ in range(200)}) == 8
    assert len({random_turn(rng, any_angle=1.0) for _ in range(200)}) == 200


def test_points_become_voxels_by_hand():
    points = torch.tensor([[0.0, 0.0, 0.0], [0.2, 0.1, 0.3], [1.0, 0.5, 1.0], [9.0, 9.0, 9.0]])
    colours = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    scene = voxelise_points(points, colours, resolution=2, bounds=((0, 0, 0), (1, 0.5, 1)))
    assert scene.grid == Grid((0.0, 0.0, 0.0), 0.5, (2, 1, 2))
    assert scene.coords.tolist() == [[0, 0, 0], [1, 0, 1]]
    torch.testing.assert_close(scene.colour, torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]))
    with pytest.raises(ValueError, match="none of 4 points"):
        voxelise_points(points, colours, 2, bounds=((-3, -3, -3), (-2, -2, -2)))
    with pytest.raises(ValueError, match="must both be"):
        voxelise_points(points, colours[:2], 2)


def test_points_of_a_mesh_lie_in_their_voxels():
    import trimesh

    mesh = trimesh.creation.icosphere(radius=0.5)
    points = torch.from_numpy(trimesh.sample.sample_surface(mesh, 4000, seed=0)[0]).float()
    scene = voxelise_points(points, torch.ones(4000, 3), resolution=16)
    nearest = torch.cdist(points, scene.centres).amin(dim=1)
    assert nearest.max() <= scene.grid.voxel_size * 3**0.5 / 2 * 1.001
    assert 600 < len(scene) < 1000  # a shell: about the sphere's area in voxel faces, and not its volume (2,145)


def test_halving_averages_signed_densities_and_keeps_light(generator):
    scene = make_scene(generator, shape=(5, 6, 7), voxels=60)
    half = halved(scene)
    assert half.grid == dataclasses.replace(scene.grid, voxel_size=1.0, shape=(3, 3, 4))
    # extinction per length times volume, and the light of it
    torch.testing.assert_close(half.density.sum() / 1.0 * 1.0**3, scene.density.sum() / 0.5 * 0.5**3)
    light = (half.density[:, None] * half.colour).sum(0), (scene.density[:, None] * scene.colour).sum(0) / 4
    torch.testing.assert_close(*light)
    red, blue = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]])
    coords = torch.tensor([[2, 0, 1], [3, 1, 1], [0, 0, 1], [4, 5, 6]]).int()
    signed = VoxelScene(coords, torch.tensor([3.0, -1, -2, -2]), torch.stack([red, blue, blue, red]), scene.grid)
    by_hand = halved(signed)
    assert by_hand.coords.tolist() == [[0, 0, 0], [1, 0, 0]]  # the last voxel touches nothing solid
    assert by_hand.density.tolist() == [-0.5, 0.5]
    torch.testing.assert_close(by_hand.colour, torch.stack([blue, red]))
