from functools import partial

import numpy as np
import pytest
import torch

from condense.backbone3d import SparseUNet, save_net3d
from condense.cli import main
from condense.datasets.pointset import Contents, Entry, PointSet
from condense.tasks.pointsets import bench_classification, bench_segmentation, labelled_clouds


def ball_or_stick(number):
    points = torch.randn(64, 3, generator=torch.Generator().manual_seed(number))
    points = points / points.norm(dim=1, keepdim=True) if number % 2 else points * torch.tensor([0.02, 0.02, 1.0])
    return Contents(points)


def point_set(splits=("train", "test"), each=10, classes=("stick", "ball")):
    entries = [
        Entry(f"{split}_{i}", "file", split, i % 2 if classes else None, partial(ball_or_stick, i + 100 * place))
        for place, split in enumerate(splits)
        for i in range(each)
    ]
    return PointSet("toys", classes, (), tuple(entries))


def test_without_a_val_split_every_fifth_training_cloud_is_val():
    labelled, rows = labelled_clouds(point_set())
    assert len(rows) == 20
    assert [int((labelled.splits == split).sum()) for split in ("train", "val", "test")] == [8, 2, 10]
    assert sorted(labelled.classes[labelled.splits == "val"]) == ["ball", "stick"]
    labelled, rows = labelled_clouds(point_set(("train", "val", "test")), per_class=1)
    assert len(rows) == 6 and all((labelled.splits == split).sum() == 2 for split in ("train", "val", "test"))


def test_what_cannot_be_classified_is_told():
    with pytest.raises(ValueError, match="no classes"):
        labelled_clouds(point_set(classes=()))
    with pytest.raises(ValueError, match="splits train and test"):
        labelled_clouds(point_set(("train",)))
    with pytest.raises(ValueError, match="no 3D networks"):
        bench_classification(point_set(), [], 8)


def test_balls_and_sticks_are_told_apart_by_an_untrained_network(tmp_path):
    save_net3d(SparseUNet(channels=(8, 12), out_channels=8), tmp_path / "net")
    metrics = bench_classification(point_set(), [tmp_path / "net"], 8)
    (row,) = metrics.values()
    assert row["linear_probe_acc"] == {"mean": 1.0, "ci95": pytest.approx(0), "n": 10}
    assert np.isfinite(row["few_shot_1_acc"]["mean"])


def halves(number):
    """A ball, red above and green below, labelled so, but for some points without a label."""
    points = ball_or_stick(2 * number + 1).points
    labels = torch.where(points[:, 2] > 0, 2, 1)
    colours = torch.tensor([[0.1, 0.8, 0.1], [0.8, 0.1, 0.1]])[labels - 1]
    return Contents(points, colours, labels.masked_fill(torch.arange(len(points)) % 9 == 0, 0))


def labelled_set(label=None, point_classes=("low", "high"), read=halves):
    entries = [
        Entry(f"{split}_{i}", "file", split, label, partial(read, i + 100 * place))
        for place, split in enumerate(("train", "test"))
        for i in range(10)
    ]
    return PointSet("toys", () if label is None else ("ball",), point_classes, tuple(entries))


@pytest.mark.parametrize("label", [None, 0])  # rooms, and objects of a class
def test_points_are_told_apart_by_voxels(tmp_path, label):
    save_net3d(SparseUNet(channels=(8, 12), out_channels=8), tmp_path / "net")
    (row,) = bench_segmentation(labelled_set(label), [tmp_path / "net"], 8).values()
    assert row["point_probe_miou"]["n"] == 10 and row["point_probe_miou"]["mean"] > 0.5  # one label for all: 0.34
    assert {f"point_probe{share}_{score}" for share in ("", "_1pct", "_10pct") for score in ("miou", "macc")} == set(
        row
    )
    (few,) = bench_segmentation(labelled_set(label), [tmp_path / "net"], 8, per_class=5).values()
    assert few["point_probe_miou"]["n"] == 5


def test_what_cannot_be_segmented_is_told(tmp_path):
    save_net3d(SparseUNet(channels=(8, 12), out_channels=8), tmp_path / "net")
    with pytest.raises(ValueError, match="a benchmark of classification"):
        bench_segmentation(point_set(), [tmp_path / "net"], 8)
    with pytest.raises(ValueError, match="train_0 has no point labels"):
        bench_segmentation(labelled_set(read=ball_or_stick), [tmp_path / "net"], 8)


def test_a_wrong_root_is_told_plainly(tmp_path, capsys):
    for task, name in (("classification", "modelnet40"), ("segmentation", "shapenetpart")):
        assert main(["bench", task, "--dataset", name, "--root", str(tmp_path)]) == 1
        assert name in capsys.readouterr().err
