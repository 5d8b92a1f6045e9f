import dataclasses

import numpy as np
import pytest
import torch
from toys import tiny_teacher, toy_links

from condense.backbone3d import SparseUNet, save_net3d
from condense.grid import Grid
from condense.links import save_links
from condense.metrics import class_scores, confusion, mean_iou, segmentation_difference, segmentation_scores
from condense.model import new_model, save_model
from condense.params import SegmentationParams
from condense.tasks.pointclouds import SurfacePoints
from condense.tasks.segmentation import (
    FINETUNED,
    Segmented,
    draw_labels,
    draw_objects,
    fine_tune,
    probe,
    settings,
    voxel_labels,
)
from condense.tasks.segmentation_results import (
    class_table,
    coloured,
    differences,
    efficiency,
    shown,
    stack_confusions,
    tabulate,
)
from condense.tasks.voxelfeatures import Lifted, colour_position, features, with_images
from condense.tasks.voxelprobe import fit_probe, rarity
from condense.viewer import ColouredVoxels, exposed, heated_voxels, viewer_page, write_viewer
from condense.voxels import VoxelScene


def line_of_voxels(count=4, size=0.5):
    coords = torch.stack([torch.arange(count), torch.zeros(count), torch.zeros(count)], 1).int()
    return VoxelScene(coords, torch.ones(count), torch.full((count, 3), 0.5), Grid((0, 0, 0), size, (count, 1, 1)))


class TestTruth:
    def test_a_voxel_has_the_label_of_the_nearest_point_within_reach(self):
        """Centres at x = 0.25, 0.75, 1.25, 1.75; points at 0.2 (label 3) and 0.9 (label 7); voxels of 0.5."""
        points = torch.tensor([[0.2, 0.25, 0.25], [0.9, 0.25, 0.25]])
        surface = SurfacePoints(points, points, points, torch.tensor([3, 7]))
        assert voxel_labels(line_of_voxels(), surface, reach=1.0).tolist() == [3, 7, 7, 0]  # the last is 0.85 away
        assert voxel_labels(line_of_voxels(), surface, reach=2.0).tolist() == [3, 7, 7, 7]
        assert voxel_labels(line_of_voxels(), surface, reach=0.2).tolist() == [3, 0, 0, 0]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Toy captures whose upper half is part 1 and lower half part 2; a tenth of the voxels have no label."""
    folder = tmp_path_factory.mktemp("links")
    paths, labels = [], []
    for seed in range(10):
        links = toy_links(seed)
        save_links(links, folder / f"toy_{seed}.safetensors")
        paths.append(folder / f"toy_{seed}.safetensors")
        label = 1 + (links.scene.coords[:, 2] < 6).numpy().astype(np.uint8)
        label[::10] = 0
        labels.append(label)
    splits = np.array(["train"] * 6 + ["val"] * 2 + ["test"] * 2)
    return Segmented("part", ("none", "up", "down"), tuple(paths), tuple(labels), np.array(["ball", "box"] * 5), splits)


class TestLabels:
    def test_a_share_is_drawn_over_all_training_captures_and_only_from_labels(self, task):
        total = sum(int((task.labels[k] > 0).sum()) for k in task.rows("train"))
        drawn = draw_labels(task, 0.1, seed=0, draw=0)
        assert set(drawn) == set(range(6)) and sum(map(len, drawn.values())) == round(0.1 * total)
        assert all((task.labels[k][rows] > 0).all() for k, rows in drawn.items())
        again, other = draw_labels(task, 0.1, 0, 0), draw_labels(task, 0.1, 0, 1)
        assert all(np.array_equal(again[k], drawn[k]) for k in drawn)
        assert any(not np.array_equal(other[k], drawn[k]) for k in drawn)

    def test_shots_are_whole_objects_of_each_class(self, task):
        drawn = draw_objects(task, seed=0, draw=0, shots=2)
        assert sorted(task.classes[list(drawn)]) == ["ball", "ball", "box", "box"]
        assert all(np.array_equal(rows, np.flatnonzero(task.labels[k])) for k, rows in drawn.items())


class TestProbe:
    def test_rare_classes_weigh_more(self):
        assert rarity(torch.tensor([1, 1, 1, 1, 2]), 4).tolist() == [0, 0.5, 1, 0]

    def test_it_learns_what_is_there_and_predicts_only_classes_it_saw(self, generator):
        y = torch.arange(300) % 3 + 1
        x = torch.eye(5)[y] + 0.1 * torch.randn(300, 5, generator=generator)
        fitted = fit_probe(x[:200], y[:200], x[200:250], y[200:250], 6)
        assert (fitted.predict(x[250:]) == y[250:]).all()
        assert set(fitted.predict(torch.randn(100, 5, generator=generator)).tolist()) <= {1, 2, 3}
        assert (fit_probe(x, y, x[:0], y[:0], 6).predict(x) == y).all()  # nothing to choose on is no obstacle

    def test_no_samples_are_refused(self):
        with pytest.raises(ValueError, match="needs samples"):
            fit_probe(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3), torch.zeros(0), 2)


class TestMetrics:
    def test_confusion_and_scores_by_hand(self):
        """Class 1: 2 of 3 found, nothing else taken for it; class 2: 1 of 1, with one of class 1 on top."""
        counts = confusion([1, 1, 2, 2, 1], [1, 1, 1, 2, 0], 4)
        assert counts.tolist() == [[0] * 4, [0, 2, 1, 0], [0, 0, 1, 0], [0] * 4]
        iou, recall = class_scores(counts)
        np.testing.assert_allclose(iou, [np.nan, 2 / 3, 1 / 2, np.nan])
        np.testing.assert_allclose(recall, [np.nan, 2 / 3, 1, np.nan])
        assert mean_iou([1, 1, 2, 2, 1], [1, 1, 1, 2, 0], 4) == pytest.approx(7 / 12)

    def test_counts_are_summed_over_captures_and_scores_averaged_over_seeds(self):
        right, wrong = np.array([[4, 0], [0, 4]]), np.array([[0, 4], [0, 4]])
        counts = np.stack([[right, right], [right, wrong]])  # [2 seeds, 2 captures, 2, 2]
        # Second seed: class 0 is found 4 of 8 times; class 1 8 of 8, with 4 too many.
        scores = segmentation_scores(counts)
        assert scores["miou"]["mean"] == pytest.approx((1 + (4 / 8 + 8 / 12) / 2) / 2)
        assert scores["macc"]["mean"] == pytest.approx((1 + 0.75) / 2)
        assert scores["miou"]["n"] == 2 and scores["miou"]["ci95"] > 0
        assert segmentation_scores(counts[:1, :1])["miou"] == {"mean": 1.0, "ci95": None, "n": 1}

    def test_the_bootstrap_is_that_of_a_plain_loop(self):
        rng = np.random.default_rng(0)
        counts = rng.integers(0, 20, (3, 8, 4, 4))
        draws = []
        for _ in range(1500):
            seeds, captures = rng.integers(3, size=3), rng.integers(8, size=8)
            draws.append(np.nanmean(class_scores(counts[seeds][:, captures].sum(1))[0], axis=-1).mean())
        half = np.diff(np.percentile(draws, [2.5, 97.5]))[0] / 2
        assert segmentation_scores(counts)["miou"]["ci95"] == pytest.approx(half, rel=0.15)  # of 2000 draws

    def test_a_difference_of_the_same_is_nothing_and_seeds_may_differ(self):
        counts = np.random.default_rng(0).integers(1, 20, (3, 8, 4, 4))
        same = segmentation_difference(counts, counts)
        assert same["mean"] == 0 and same["ci95"] == 0 and same["p"] == 1
        perfect = np.tile(np.eye(4) * 9, (1, 8, 1, 1))
        better = segmentation_difference(perfect, counts)
        assert better["mean"] > 0.5 and better["p"] < 0.01 and better["n"] == 8


def test_from_features_to_the_page(task, tmp_path):
    """A probe on height finds the halves; the fine-tuned network is scored on the same captures."""
    save_net3d(SparseUNet(channels=(8, 12), out_channels=8, seed=0), tmp_path / "seed_0")
    results = [probe("colour_position", "colour_position", task, 500, 0)]
    results.append(probe("condense", tmp_path / "seed_0", task, 500, 0))
    params = SegmentationParams(part_steps=2, part_batch=3, lr=1e-3)
    results.append(fine_tune("condense", tmp_path / "seed_0", task, params, 0, 1))
    confusions = stack_confusions(results)
    assert set(confusions["condense"]) == {*settings(task, 0), *(f"part_{setting}" for setting in FINETUNED)}
    assert confusions["condense"]["part_probe_1pct"].shape == (3, 2, 3, 3)
    metrics = tabulate(confusions)
    assert metrics["colour_position"]["part_probe_miou"]["mean"] > 0.9
    table = differences(confusions)
    assert set(table["method"]) == {"colour_position"} and (table["p"] <= 1).all()
    assert class_table(confusions, [task])["class"].tolist() == ["up", "down"]
    panels = efficiency(metrics, [task])
    assert [list(panel) for panel in panels.values()] == [["colour_position", "condense"], ["condense"]]
    assert [share for share, _, _ in panels["part, fine-tuned: mIoU [%]"]["condense"]] == [1, 10, 100]
    rows = coloured(task, shown(task, 2), results, ["condense"])
    assert [list(row[2]) for row in rows] == [["truth", "condense"]] * 2
    page = write_viewer(tmp_path / "voxels.html", [ColouredVoxels(*row) for row in rows], "Toys").read_text()
    assert "http" not in page and "toy_8" in page and len(page) < 50_000


def test_heat_becomes_colours_from_dark_to_bright():
    coords = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0]])
    page = heated_voxels("a", coords, {"warm": np.array([-9.0, 0.5, 9.0])}, (-1.0, 2.0))
    assert page.labels["warm"].tolist() == [0, 32, 63] and (np.diff(page.colours.sum(1)) > 0).mean() > 0.9
    shown = viewer_page([page], "Heat", "<hot>")
    assert "&lt;hot&gt;" in shown and '"legend":[]' in shown


def test_nothing_measured_makes_empty_tables():
    assert tabulate({}) == {} and len(differences({})) == 0 and len(class_table({}, [])) == 0


def test_colour_and_position_do_not_hang_on_where_the_scene_lies():
    links = toy_links(0)
    moved = dataclasses.replace(links.scene.grid, origin=(5.0, 5.0, 5.0))
    elsewhere = dataclasses.replace(links.scene, grid=moved)
    assert torch.equal(colour_position(links.scene), colour_position(elsewhere))


def test_what_looks_at_images_is_a_2d_network_alone_or_with_its_3d_network(task, tmp_path):
    teacher = tiny_teacher()
    save_model(tmp_path, new_model(teacher, 0, channels=(8, 12)))  # untrained, so the student is the teacher
    sources = with_images({"condense": [tmp_path], "distill": [tmp_path], "scratch": [tmp_path]})
    assert list(sources) == ["lift", "lift_student", "condense_2d3d", "distill_2d3d"]
    path = tmp_path / "links.safetensors"
    save_links(toy_links(0, teacher), path)
    given = {name: features(source, [path])[0] for name, (source,) in sources.items()}
    assert all((values.norm(dim=1) < 1.001).all() for values in given.values())
    torch.testing.assert_close(given["lift"], given["lift_student"], rtol=0, atol=0.05)
    alone = features(tmp_path, [path])[0]
    seen = given["lift"].norm(dim=1) > 0.5
    middle = torch.nn.functional.normalize(alone + given["lift"], dim=1)
    torch.testing.assert_close(given["distill_2d3d"][seen], middle[seen])
    torch.testing.assert_close(given["condense_2d3d"], given["distill_2d3d"], rtol=0, atol=0.05)
    assert Lifted() == sources["lift"][0]


def test_only_voxels_with_a_free_face_are_exposed():
    cube = np.argwhere(np.ones((3, 3, 3)))
    assert np.flatnonzero(~exposed(cube)).tolist() == [13]  # the middle one
