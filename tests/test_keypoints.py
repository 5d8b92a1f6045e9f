import dataclasses

import h5py
import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from toys import toy_scene

from condense.datasets.ply import read_vertices
from condense.grid import Grid
from condense.keypoints import (
    ImageKeyPoints,
    KeyPoints,
    load_keypoints,
    sample_map,
    save_keypoints,
    soft_places,
    spread_maxima,
    stored_bytes,
    voxel_normals,
)
from condense.voxels import VoxelScene


def scene_points(count=7, dim=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    draws = [torch.randn(count, n, generator=g) for n in (3, 3, dim)]
    scores = torch.rand(count, generator=g).sort(descending=True).values
    colours = torch.rand(count, 3, generator=g)
    return KeyPoints(draws[0], normalize(draws[1], dim=1), scores, normalize(draws[2], dim=1), colours)


def image_points(count=5, dim=4, seed=1):
    g = torch.Generator().manual_seed(seed)
    descriptors = normalize(torch.randn(count, dim, generator=g), dim=1)
    return ImageKeyPoints(64 * torch.rand(count, 2, generator=g), torch.rand(count, generator=g), descriptors, (64, 48))


def assert_near(a, b):
    """Equal up to what a file keeps: positions exactly, halves to 1e-3, colours to half a step of 255."""
    torch.testing.assert_close(a.positions, b.positions, rtol=0, atol=1e-5)
    for name in {field.name for field in dataclasses.fields(a)} - {"positions", "size"}:
        atol = 0.5 / 255 + 1e-6 if name == "colours" else 1e-3
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=atol)


class TestKeyPoints:
    def test_a_wrong_shape_is_named(self):
        points = scene_points()
        with pytest.raises(ValueError, match=r"KeyPoints.normals has shape \(6, 3\), not \(7, 3\)"):
            dataclasses.replace(points, normals=points.normals[:6])
        with pytest.raises(ValueError, match=r"ImageKeyPoints.descriptors has shape \(2, 4\)"):
            dataclasses.replace(image_points(), descriptors=torch.zeros(2, 4))

    def test_top_takes_the_highest(self):
        points, image = scene_points(), image_points()
        assert torch.equal(points.top(3).scores, points.scores[:3])
        assert len(points.top(99)) == 7
        assert torch.equal(image.top(2).scores, image.scores.sort(descending=True).values[:2])

    def test_bytes_by_hand(self):
        assert stored_bytes(scene_points(count=7, dim=4)) == 7 * (12 + 2 * 4 + 2 + 6 + 3)


class TestFiles:
    def test_round_trip(self, tmp_path):
        path = tmp_path / "points.h5"
        wanted = {"rooms/a": scene_points(), "db/1.jpg": image_points(), "none": scene_points(0)}
        save_keypoints(path, wanted)
        found = load_keypoints(path)
        assert set(found) == set(wanted)
        for name, points in wanted.items():
            assert type(found[name]) is type(points)
            assert_near(found[name], points)
        assert found["db/1.jpg"].size == (64, 48)
        assert list(load_keypoints(path, ["none"])) == ["none"]

    def test_layout_is_that_of_hloc(self, tmp_path):
        points = image_points()
        points.save(tmp_path / "points.h5", "db/1.jpg")
        with h5py.File(tmp_path / "points.h5") as file:
            group = file["db/1.jpg"]
            assert group["descriptors"].shape == (4, 5)
            assert group["image_size"][()].tolist() == [64, 48]
            np.testing.assert_allclose(group["keypoints"][()] + 0.5, points.positions.numpy(), atol=1e-5)

    def test_one_entry_of_the_other_kind(self, tmp_path):
        scene_points().save(tmp_path / "a.h5", "it")
        image_points().save(tmp_path / "b.h5", "it")
        assert_near(KeyPoints.load(tmp_path / "a.h5", "it"), scene_points())
        with pytest.raises(ValueError, match=r"a.h5: 'it' is a scene: read it with KeyPoints.load"):
            ImageKeyPoints.load(tmp_path / "a.h5", "it")
        with pytest.raises(ValueError, match=r"b.h5: 'it' is an image"):
            KeyPoints.load(tmp_path / "b.h5", "it")

    def test_damage_is_named(self, tmp_path):
        path = tmp_path / "points.h5"
        with pytest.raises(FileNotFoundError, match=r"points.h5 is not there"):
            load_keypoints(path)
        path.write_bytes(b"not HDF5")
        with pytest.raises(ValueError, match=r"points.h5 is not an HDF5 file: write it with"):
            load_keypoints(path)
        scene_points().save(path)
        with pytest.raises(ValueError, match=r"points.h5 has no key points of 'lamp'; it has \['scene'\]"):
            load_keypoints(path, ["lamp"])
        with h5py.File(path, "a") as file:
            del file["scene/normals"]
        with pytest.raises(ValueError, match=r"group '/scene' has no dataset 'normals'; write the file again"):
            load_keypoints(path)
        scene_points().save(path)
        with h5py.File(path, "a") as file:
            del file["scene/scores"]
            file["scene/scores"] = np.zeros(3)
        with pytest.raises(ValueError, match=r"group '/scene': KeyPoints.positions has shape"):
            load_keypoints(path)

    def test_ply_round_trip(self, tmp_path):
        points, path = scene_points(), tmp_path / "points.ply"
        points.save_ply(path)
        names = ("x", "y", "z", "nx", "ny", "nz", "red", "green", "blue", "score")
        assert read_vertices(path).dtype.names == names
        found = KeyPoints.load_ply(path)
        assert found.descriptors.shape == (7, 0)
        assert_near(found, dataclasses.replace(points, descriptors=torch.zeros(7, 0)))

    def test_a_broken_ply_is_named(self, tmp_path):
        path = tmp_path / "points.ply"
        scene_points().save_ply(path)
        content = path.read_bytes()
        path.write_bytes(content[:-10])
        with pytest.raises(ValueError, match=r"points.ply: it ends after 6 of 7 vertices; write it again"):
            KeyPoints.load_ply(path)
        path.write_bytes(content.replace(b"float score", b"float value"))
        with pytest.raises(ValueError, match=r"points.ply: its vertices lack \['score'\]"):
            KeyPoints.load_ply(path)


def spread_by_loop(positions, scores, count, robustness):
    """The definition, point by point; ties in radius as documented."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    keys = {}
    for rank, i in enumerate(order):
        stronger = [j for j in order if scores[j] > scores[i] / robustness]
        radius = min((float((positions[i] - positions[j]).norm()) for j in stronger), default=np.inf)
        before = min((float((positions[i] - positions[j]).norm()) for j in order[:rank]), default=np.inf)
        keys[i] = (-radius, -before if np.isinf(radius) else 0.0, rank)
    return sorted(sorted(order, key=keys.__getitem__)[:count], key=order.index)


class TestSpreadMaxima:
    def test_by_hand(self):
        """A strong point silences its weaker neighbour, not the weakest of all, far away."""
        positions = torch.tensor([[0.0, 0], [1, 0], [9, 0]])
        assert spread_maxima(positions, torch.tensor([1.0, 0.8, 0.1]), 2).tolist() == [0, 2]

    def test_a_slightly_stronger_neighbour_does_not_silence(self):
        positions = torch.tensor([[0.0, 0], [1, 0], [9, 0]])
        assert spread_maxima(positions, torch.tensor([1.0, 0.95, 0.1]), 2).tolist() == [0, 1]

    def test_saturated_scores_are_spread(self):
        positions = torch.tensor([[0.0], [1], [2], [9], [10]])
        assert spread_maxima(positions, torch.ones(5), 2).tolist() == [0, 3]  # 3 lies 7 from those before it

    @pytest.mark.parametrize("block", [2**22, 64])
    @pytest.mark.parametrize("robustness", [0.9, 1.0])
    def test_against_the_plain_loop(self, monkeypatch, generator, block, robustness):
        """Scores with ties and zeros; a small block cuts the distances into many pieces."""
        monkeypatch.setattr("condense.keypoints._BLOCK", block)
        positions = torch.rand(60, 3, generator=generator, dtype=torch.float64)
        scores = (torch.rand(60, generator=generator) * 8).floor() / 8
        for count in (1, 7, 30, 60, 99):
            found = spread_maxima(positions, scores.double(), count, robustness).tolist()
            assert found == spread_by_loop(positions, scores.double().tolist(), count, robustness)

    def test_nothing_and_bad_scores(self):
        assert spread_maxima(torch.zeros(0, 3), torch.zeros(0), 5).tolist() == []
        with pytest.raises(ValueError, match="at least 0, not -1"):
            spread_maxima(torch.zeros(2, 3), torch.tensor([1.0, -1.0]), 1)


class TestVoxelNormals:
    def test_a_ball_points_outward(self):
        scene = toy_scene(0)
        outward = normalize(scene.centres - scene.centres.mean(0), dim=1)
        shell = (scene.centres - scene.centres.mean(0)).norm(dim=1) > 0.25
        normals = voxel_normals(scene)
        assert ((normals * outward).sum(1)[shell] > 0.9).all()

    def test_it_vanishes_where_all_sides_are_alike(self):
        at = torch.stack(torch.meshgrid(*[torch.arange(5)] * 3, indexing="ij"), -1).reshape(-1, 3).int()
        scene = VoxelScene(at, torch.ones(125), torch.zeros(125, 3), Grid((0.0,) * 3, 1.0, (5,) * 3))
        normals = voxel_normals(scene)
        assert normals[62].tolist() == [0, 0, 0]  # the middle
        assert normals[2 * 25 + 2 * 5].tolist() == pytest.approx([0, 0, -1], abs=1e-5)  # of the face z = 0

    def test_one_voxel_has_none(self):
        scene = VoxelScene(torch.zeros(1, 3).int(), torch.ones(1), torch.zeros(1, 3), Grid((0.0,) * 3, 1.0, (1,) * 3))
        assert voxel_normals(scene).tolist() == [[0, 0, 0]]

    def test_a_contracted_grid_gives_normals_of_the_world(self):
        """Those of the plain grid, through the contraction's Jacobian by finite differences."""
        at = torch.tensor([[x, y, z] for x in (12, 13) for y in range(4, 12) for z in range(4, 12)]).int()
        grid = Grid((-2.0,) * 3, 0.25, (16,) * 3, contracted=True)
        scene = VoxelScene(at, torch.ones(128, dtype=torch.float64), torch.ones(128, 3), grid)
        plain = voxel_normals(dataclasses.replace(scene, grid=dataclasses.replace(grid, contracted=False)))
        steps = 1e-5 * torch.eye(3, dtype=torch.float64)
        ahead, behind = (grid.from_world(scene.centres[:, None] + s * steps) for s in (1, -1))  # [N, 3 (world), 3]
        expected = normalize((ahead - behind) @ plain[:, :, None], dim=1)[..., 0]
        torch.testing.assert_close(voxel_normals(scene), expected, rtol=0, atol=1e-6)
        with torch.no_grad():
            torch.testing.assert_close(voxel_normals(scene), expected, rtol=0, atol=1e-6)
        assert (expected - plain).norm(dim=1).max() > 0.1  # the contraction turns them


class TestSampleMap:
    def test_half_pixels_by_hand(self):
        """Two cells of two pixels each: their centres lie at 1 and 3."""
        features = torch.tensor([[[0.0, 8.0]]])
        xy = torch.tensor([[1.0, 1], [3, 1], [2, 1], [2.5, 0.3], [0, 0], [4, 2]])
        assert sample_map(features, xy, (4, 2))[:, 0].tolist() == pytest.approx([0, 8, 4, 6, 0, 8])

    def test_differentiable(self, generator):
        features = torch.rand(2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
        xy = (torch.rand(5, 2, generator=generator, dtype=torch.float64) * 6 + 1).requires_grad_()
        assert torch.autograd.gradcheck(lambda f, p: sample_map(f, p, (8, 8)), (features, xy))


def test_maxima_lie_between_cells_and_all_else_at_their_centres():
    scores = torch.zeros(6, 8)
    scores[2, 3], scores[2, 4] = 1.0, 0.5**0.25  # the fourth powers weigh 1 and 1/2
    places, peaks = soft_places(scores)
    assert peaks[2, 3] and not peaks[2, 4]
    torch.testing.assert_close(places[2, 3], torch.tensor([3.5 + 1 / 3, 2.5]))
    torch.testing.assert_close(places[2, 4], torch.tensor([4.5, 2.5]))
    torch.testing.assert_close(places[5, 0], torch.tensor([0.5, 5.5]))
