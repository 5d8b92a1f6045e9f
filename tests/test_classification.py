import zipfile

import numpy as np
import pytest
import torch
from toys import tiny_teacher, toy_links

from condense.backbone2d import save_backbone
from condense.backbone3d import load_net3d
from condense.captures.folder import Folder
from condense.grid import Grid
from condense.links import save_links
from condense.metrics import paired_difference
from condense.model import voxel_features
from condense.params import ClassificationParams
from condense.pretrain import scratch_seed
from condense.synthetic.generate import point_cloud
from condense.tasks import classification as task
from condense.tasks.descriptors import colour_histogram, describe, length, pool, shape_histogram
from condense.tasks.methods import paired_table
from condense.tasks.pointclouds import read_points, scene_of_points, without_colour
from condense.tasks.probes import Labelled
from condense.voxels import Turn, VoxelScene, turn_coords


def cloud_file(points, seed=0):
    """The bytes of a labelled point cloud as the generator writes it."""
    rng = np.random.default_rng(seed)
    normals = np.tile([0.0, 0, 1], (len(points), 1))
    labels = np.arange(len(points)) % 3
    return point_cloud((points, rng.random((len(points), 3)), normals, labels, labels * 0), 256)


def labelled_of(names=("ball", "box"), per_split=2, heldout=()):
    metas = [
        {"kind": "object", "class": name, "split": split, "heldout_class": name in heldout}
        for name in names
        for split in ("train", "val", "test")
        for _ in range(per_split)
    ]
    return Labelled.read(metas)


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Linked balls and boxes with point clouds, and two untrained networks."""
    root = tmp_path_factory.mktemp("toys")
    teacher = root / "teacher.safetensors"
    save_backbone(tiny_teacher(), teacher)
    sources, classes = [], np.repeat(["ball", "box"], 6)
    for number, name in enumerate(classes):
        links = toy_links(2 * number + (name == "box"), views=3, test=1)
        path = root / f"{number}.safetensors"
        save_links(links, path)
        with zipfile.ZipFile(root / f"{number}.zip", "w") as archive:
            archive.writestr("points.ply", cloud_file(links.scene.centres.numpy().astype(np.float64)))
        sources.append(task.Source(Folder(root / f"{number}.zip"), path))
    paths = [source.links for source in sources]
    nets = [scratch_seed(root / f"scratch_{seed}", paths, teacher, seed=seed) for seed in range(2)]
    return tuple(sources), nets


class TestDescriptors:
    def test_pool_by_hand(self):
        features = torch.tensor([[0.0, -2.0], [1.0, 1.0], [4.0, -4.0]])
        assert pool(features, torch.tensor([0, 1, 0]), 2).tolist() == [[2, -3, 4, -2], [1, 1, 1, 1]]

    def test_a_scene_is_described_as_if_alone(self, toys):
        sources, nets = toys
        scenes, net3d = task.load_scenes(sources).fields, load_net3d(nets[0])
        together = describe(net3d, scenes, size=5)
        assert together.shape == (12, length(net3d)) and np.abs(together[0] - together[1]).max() > 1e-3
        np.testing.assert_allclose(together[3], describe(net3d, scenes[3:4])[0], rtol=1e-4, atol=1e-5)
        output = voxel_features(net3d, scenes[3:4])[0]
        np.testing.assert_allclose(together[3][: output.shape[1]], output.mean(0), rtol=1e-4, atol=1e-5)

    def test_histograms_by_hand(self):
        coords = torch.tensor([[0, 0, 0], [3, 0, 3], [1, 2, 1]], dtype=torch.int32)
        colour = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 1, 1]])
        scene = VoxelScene(coords, torch.ones(3), colour, Grid((0, 0, 0), 1.0, (4, 4, 4)))
        histogram = colour_histogram(scene, bins=2)
        assert histogram[0] == pytest.approx(1 / 3) and histogram[7] == pytest.approx(2 / 3)
        turned, shape = turn_coords(coords, (4, 4, 4), Turn(angle=np.pi / 2, mirror=True))
        other = VoxelScene(turned, torch.ones(3), colour, Grid((0, 0, 0), 1.0, shape))
        assert np.array_equal(shape_histogram(scene), shape_histogram(other))


class TestPointClouds:
    def test_what_the_generator_writes_is_read(self, tmp_path):
        points = np.array([[0.0, 0, 0], [0.5, 0, 0], [0, 0.25, 1]])
        (tmp_path / "points.ply").write_bytes(cloud_file(points))
        cloud = read_points(Folder(tmp_path))
        assert sorted(cloud.points.tolist()) == sorted(points.tolist())
        assert cloud.normals.tolist() == [[0, 0, 1]] * 3 and sorted(cloud.parts.tolist()) == [0, 1, 2]
        assert float(cloud.colours.min()) >= 0 and float(cloud.colours.max()) <= 1

    def test_none_and_damaged(self, tmp_path):
        assert read_points(Folder(tmp_path)) is None
        (tmp_path / "points.ply").write_bytes(cloud_file(np.eye(3))[:-1])
        with pytest.raises(ValueError, match=r"points\.ply .* ends after 2 of 3"):
            read_points(Folder(tmp_path))

    def test_points_are_grey_and_opaque(self):
        scene = scene_of_points(torch.eye(3), 4)
        assert torch.all(scene.colour == 0.5) and torch.all(scene.opacity > 0.99)
        assert torch.equal(without_colour(scene).coords, scene.coords)


class TestProtocol:
    def test_every_method_gets_every_metric_that_fits_it(self, toys):
        sources, nets = toys
        labelled = labelled_of()
        jobs = task.probe_jobs({"condense": nets, "scratch": nets[:1]}, sources, labelled, 0)
        probed = task.by_method(jobs, [task.probe_method(*job) for job in jobs])
        assert [len(seeds) for seeds in probed.values()] == [2, 1, 1, 1, 1]
        metrics = task.metrics_of(task.stack_hits(probed, {}))
        assert set(metrics["condense"]) == set(metrics["shape_histogram"])
        assert set(metrics["lift"]) == set(metrics["colour_histogram"]) == set(task.PROBES)
        robust = {name for name in metrics["condense"] if name.startswith("robust_")}
        assert len(robust) == 7 and robust < set(task.ROBUST)
        assert metrics["condense"]["linear_probe_acc"]["n"] == 4
        assert metrics["condense"]["few_shot_1_acc_points"]["mean"] > 0.5

    def test_fine_tuning_learns_and_repeats(self, toys):
        sources, nets = toys
        params = ClassificationParams(finetune_steps=8, finetune_batch=4, finetune_lr=1e-3)
        jobs = task.finetune_jobs({"condense": nets}, sources, labelled_of(), 0, params)
        first, again = (task.finetune_method(*jobs[0]) for _ in range(2))
        assert all(np.array_equal(first[name], again[name]) for name in task.FINETUNE_SHOTS)
        assert first["finetune_all_acc"].mean() >= 0.75

    def test_captures_without_classes_give_nothing(self, toys):
        nothing = Labelled.read([{}] * 12)
        assert task.probe_jobs({"condense": toys[1]}, toys[0], nothing, 0) == []
        assert task.finetune_jobs({"condense": toys[1]}, toys[0], nothing, 0, ClassificationParams()) == []
        assert task.metrics_of(task.stack_hits({}, {})) == {}
        assert task.paired_view(paired_table({}, paired_difference)).empty


def test_measure_keeps_classes_that_pre_training_saw_apart():
    labelled = labelled_of(("chair", "cup", "boat", "bed"), 8, heldout=("boat", "bed"))
    _, number = np.unique(labelled.classes, return_inverse=True)
    found = task.measure(np.eye(4)[number], labelled, seed=0)
    assert all(values.mean() == 1 for values in found.values())
    assert found["linear_probe_acc"].shape == (16,) and found["few_shot_5_acc"].shape == (10, 16)
    assert {"heldout_linear_probe_acc", "heldout_few_shot_5_acc", "heldout_knn_acc"} < set(found)


def test_pairs_by_hand():
    """On 40 captures one method is right everywhere, the other on half; a third has other seeds and one metric."""
    right, half = np.ones((2, 40)), np.tile([1.0, 0.0], (2, 20))
    rights = {"condense": {"a": right, "b": right}, "scratch": {"a": half, "b": right}, "lift": {"a": half[:1]}}
    table = paired_table(rights, paired_difference).set_index(["metric", "method"])
    assert len(table) == 3
    assert table.loc[("a", "scratch"), "difference"] == 0.5 and table.loc[("a", "scratch"), "p"] < 0.01
    assert table.loc[("b", "scratch"), "difference"] == 0 and table.loc[("b", "scratch"), "p"] == 1


def test_confusion_and_curve_by_hand():
    labelled = labelled_of(("chair", "cup"), 2)
    outcome = task.Outcome({}, np.array(["chair", "cup", "cup", "cup"]))
    shares, names = task.confusion_of([outcome], labelled)
    assert names == ["chair", "cup"] and shares.tolist() == [[0.5, 0.5], [0, 1]]
    value = {"mean": 0.5, "ci95": None, "n": 4}
    metrics = {"condense": {"few_shot_1_acc": value, "linear_probe_acc": value}}
    assert task.few_shot_curves_of(metrics, "", labelled) == {"condense": [(1, 0.5, 0.0), (2, 0.5, 0.0)]}
