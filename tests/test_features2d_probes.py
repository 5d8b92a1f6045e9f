import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toys import tiny_teacher, toy_links

from condense.backbone2d import save_backbone
from condense.tasks.pointclouds import SurfacePoints
from condense.tasks.probes2d import (
    ProbeViews,
    fit_ridge,
    mean_angle,
    probe_network,
    read_cells,
    root_mean_square,
)
from condense.tasks.targets2d import CellTargets, cell_depth, cell_labels, cell_normals, part_names, voxel_normals


@pytest.fixture(scope="module")
def links():
    return toy_links(0, views=6, test=2)


def ball_surface(links):
    """Points on a sphere a little inside the toy ball, with outward normals."""
    out = torch.nn.functional.normalize(links.scene.centres, dim=1)
    zero = torch.zeros(len(out), dtype=torch.int64)
    return SurfacePoints(links.scene.centres, out, torch.zeros(len(out), 3), zero)


class TestTargets:
    def test_a_cell_has_the_commonest_label_of_its_pixels(self):
        pixels = np.array([[5, 5, 9, 9], [5, 9, 0, 0], [0, 0, 9, 0], [0, 0, 0, 9]], np.uint8)[..., None]
        label = cell_labels(pixels, {"5": "leg", "9": "seat"}, ("none", "back", "leg", "seat"), (2, 2))
        assert label.tolist() == [2, 0, 0, 0]  # ties go to the label that comes first

    def test_names_are_shared(self):
        parts = ({"1": "leg", "2": "seat"}, {"7": "leg", "8": "board"}, {"1": "wall"})
        metas = [{"kind": kind, "parts": each} for kind, each in zip(("object", "object", "room"), parts, strict=True)]
        captures = [SimpleNamespace(meta=meta) for meta in metas]
        assert part_names(captures, "object") == ("none", "board", "leg", "seat")

    def test_depth_of_a_ball(self, links):
        """Cameras stand 1.8 from the ball's middle: nearest in the middle of the image."""
        depth = cell_depth(links, links.views[0]).reshape(8, 8)
        solid = links.views[0].operator.opacity.reshape(8, 8) >= 0.5
        assert torch.equal(depth.isfinite(), solid) and not solid.all()
        assert depth[solid].median() == pytest.approx(1)
        assert depth[3:5, 3:5].max() < depth[solid].max() and 0.7 < depth[solid].min() < 1

    def test_normals_of_a_ball_face_the_camera_and_turn_with_the_image(self, links):
        normals = voxel_normals(links, ball_surface(links))
        seen = cell_normals(links, links.views[0], normals).reshape(8, 8, 3)
        known = seen.isfinite().all(2)
        assert known.any() and (seen[known][:, 2] < 0).all()
        assert (seen[known].norm(dim=1) - 1).abs().max() < 1e-4
        row, column = torch.nonzero(known, as_tuple=True)
        left, right = seen[known][column < 4], seen[known][column >= 4]
        assert left[:, 0].mean() < -0.1 < 0.1 < right[:, 0].mean()  # x points right
        assert seen[known][row < 4][:, 1].mean() < seen[known][row >= 4][:, 1].mean()  # y points down
        flipped = cell_normals(links, links.views[0], -normals).reshape(8, 8, 3)
        torch.testing.assert_close(flipped, seen, equal_nan=True)

    def test_voxels_far_from_any_surface_point_have_no_normal(self, links):
        surface = ball_surface(links)
        far = dataclasses.replace(surface, points=surface.points + 100)
        assert (voxel_normals(links, far) == 0).all()
        assert cell_normals(links, links.views[0], voxel_normals(links, far)).isnan().all()


class TestRidge:
    def test_finds_a_linear_map(self):
        generator = torch.Generator().manual_seed(0)
        x, noise = torch.randn(500, 6, generator=generator), torch.randn(500, 2, generator=generator)
        y = x @ torch.randn(6, 2, generator=generator) + 3 + 0.01 * noise
        ridge = fit_ridge(x[:400], y[:400], x[400:], y[400:], root_mean_square)
        assert root_mean_square(ridge.predict(x[400:]), y[400:]) < 0.02

    def test_val_chooses_a_strong_penalty_for_noise(self):
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(40, 30, generator=generator), torch.randn(40, 1, generator=generator)
        val = torch.randn(200, 30, generator=generator), torch.randn(200, 1, generator=generator)
        chosen, middle = fit_ridge(x, y, *val, root_mean_square), fit_ridge(x, y, x[:0], y[:0], root_mean_square)
        assert chosen.weight.norm() < 0.8 * middle.weight.norm()

    def test_no_samples(self):
        with pytest.raises(ValueError, match="got 0 and 0"):
            fit_ridge(torch.zeros(0, 3), torch.zeros(0, 1), torch.zeros(0, 3), torch.zeros(0, 1), root_mean_square)


def test_mean_angle():
    a, b = torch.tensor([[1.0, 0, 0], [0, 2.0, 0]]), torch.tensor([[0, 1.0, 0], [0, 1.0, 0]])
    assert mean_angle(a, b) == pytest.approx(45, abs=1e-3)


def views_of(seed):
    """Two views of random colours whose labels and depth follow brightness; no normals."""
    rng = np.random.default_rng(seed)
    views = []
    for _ in range(2):
        bright = np.kron(rng.integers(0, 2, (4, 4)), np.ones((8, 8)))  # [32, 32]
        image = (40 + 170 * bright[..., None] * np.ones(3)).astype(np.uint8)
        cells = bright[2::4, 2::4].flatten()  # [64]
        targets = (cells.astype(np.int64) + 1, cells.astype(np.float32) + 1, np.full((64, 3), np.nan, np.float32))
        views.append(CellTargets(image, (8, 8), *targets))
    return views


def test_probes_read_what_the_image_shows(tmp_path):
    save_backbone(tiny_teacher(), tmp_path / "teacher.safetensors")
    split = [[views_of(10 * place + number) for number in range(3)] for place in range(3)]
    task = ProbeViews("part", ("none", "dark", "bright"), *split)
    (result,) = probe_network("teacher", None, tmp_path / "teacher.safetensors", [task], 300, 0, True)
    counts = result.confusions["part_probe"]
    assert counts.shape == (1, 3, 3, 3) and result.confusions["part_probe_1pct"].shape == (3, 3, 3, 3)
    assert counts.sum() == 3 * 128 and np.trace(counts.sum((0, 1))) > 0.9 * counts.sum()
    assert set(result.errors) == {"depth_probe_rmse"} and result.errors["depth_probe_rmse"].shape == (3,)
    assert (result.errors["depth_probe_rmse"] < 0.3).all()  # the values' own deviation is 0.5
    cells = read_cells(tiny_teacher(), split[0][0])
    assert torch.equal(cells.known("labels"), torch.ones(128, dtype=torch.bool))
    x, y = cells.some("labels", 10, seed=1)
    assert x.shape == (10, 16) and y.shape == (10,) and len(cells.some("normals")[0]) == 0


def test_no_labels(tmp_path):
    save_backbone(tiny_teacher(), tmp_path / "teacher.safetensors")
    bare = [[dataclasses.replace(view, labels=view.labels * 0) for view in views_of(0)]]
    task = ProbeViews("part", ("none",), bare, bare, bare)
    kept, lost = (probe_network("t", None, tmp_path / "teacher.safetensors", [task], 9, 0, k)[0] for k in (True, False))
    assert kept.confusions == {} and set(kept.probes) == {"depth_probe_rmse"} and lost.probes == {}
