from functools import partial

import numpy as np
import pytest
import torch

from condense.backbone3d import SparseUNet, save_net3d
from condense.cli import main
from condense.datasets.pointset import Contents, Entry, PointSet
from condense.tasks.pointsets import bench_classification, labelled_clouds


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


def test_a_wrong_root_is_told_plainly(tmp_path, capsys):
    assert main(["bench", "classification", "--dataset", "modelnet40", "--root", str(tmp_path)]) == 1
    assert "modelnet40" in capsys.readouterr().err
