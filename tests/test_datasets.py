import copy
import pickle

import h5py
import numpy as np
import pytest
import torch
from conftest import TOLERANCE
from datasetfiles import (
    POINTS,
    cloud,
    write_h5,
    write_modelnet40,
    write_off,
    write_s3dis,
    write_scannet,
    write_scanobjectnn,
    write_shapenetpart,
    write_shapenetpart_hdf5,
)

from condense.cli import main
from condense.datasets import modelnet40, s3dis, scannet, scanobjectnn, shapenetpart
from condense.datasets.files import BLOCK
from condense.datasets.open import DATASETS, open_dataset
from condense.datasets.pointset import Contents, Entry, PointCloud, PointSet
from condense.datasets.scenes import scene_of, voxel_labels
from condense.voxels import voxelise_points

CLOSE = TOLERANCE[torch.float32]
WRITERS = {
    "modelnet40": write_modelnet40,
    "scanobjectnn": write_scanobjectnn,
    "shapenetpart": write_shapenetpart,
    "s3dis": write_s3dis,
    "scannet": write_scannet,
}


def turned(points: np.ndarray) -> torch.Tensor:
    """From +Y up to +Z up, by hand."""
    return torch.from_numpy(np.stack([points[:, 0], -points[:, 2], points[:, 1]], axis=1))


# Every format: what the release's own files say


def test_modelnet40_hdf5(tmp_path):
    write_modelnet40(tmp_path)
    point_set = open_dataset("modelnet40", tmp_path)
    assert point_set.splits == {"train": 5, "test": 2} and not point_set.findings
    assert [point_set.classes[entry.label] for entry in point_set.entries] == [
        *("sofa", "bookshelf", "airplane", "xbox", "car"),
        *("chair", "bathtub"),
    ]
    read = point_set[4]
    assert (read.name, read.split, read.label) == ("ply_data_train1/00002", "train", 7)
    assert read.points.dtype == torch.float32 and read.colours is None and read.labels is None
    assert torch.equal(read.points, turned(cloud(2)))


def test_modelnet40_off_samples_the_surface(tmp_path):
    write_off(tmp_path)
    point_set = open_dataset("modelnet40", tmp_path)
    assert [(entry.name, entry.split) for entry in point_set.entries] == [
        ("chair_0001", "train"),
        ("chair_0890", "test"),
        ("sofa_0001", "train"),
    ]
    assert {point_set.classes[entry.label] for entry in point_set.entries} == {"chair", "sofa"}
    for i in range(3):
        points = point_set[i].points
        assert points.shape == (modelnet40.POINTS, 3) and points.dtype == torch.float32
        on_a_side = (points.abs().amin(dim=1) < 1e-5) | ((points.sum(dim=1) - 3).abs() < 1e-5)
        assert on_a_side.all() and points.min() > -1e-6 and points.max() < 3 + 1e-6
    oblique = float(((points.sum(dim=1) - 3).abs() < 1e-5).float().mean())
    assert abs(oblique - 3**0.5 / (3**0.5 + 3)) < 0.05  # its share of the tetrahedron's area
    assert torch.equal(point_set[0].points, point_set[0].points)
    assert not torch.equal(point_set[0].points, point_set[1].points)


def test_one_line_off_header_reads_like_two_lines(tmp_path):
    write_off(tmp_path)
    one_line = (tmp_path / "sofa/train/sofa_0001.off").read_text()
    assert one_line.startswith("OFF4 4 6\n")
    first = open_dataset("modelnet40", tmp_path)[2].points
    (tmp_path / "sofa/train/sofa_0001.off").write_text(one_line.replace("OFF", "OFF\n", 1))
    assert torch.equal(open_dataset("modelnet40", tmp_path)[2].points, first)


@pytest.mark.parametrize("name", scanobjectnn.VARIANTS)
def test_scanobjectnn(tmp_path, name):
    write_scanobjectnn(tmp_path)
    point_set = open_dataset(name, tmp_path)
    assert point_set.name == name and point_set.splits == {"train": 2, "test": 2}
    assert [point_set.classes[entry.label] for entry in point_set.entries] == ["chair", "toilet", "bag", "table"]
    read = point_set[1]
    assert torch.equal(read.points, turned(cloud(1)))
    assert read.labels.tolist() == [1, 1, 2, 2, 2, 2, 2, 1]
    assert point_set.point_classes == ("background", "object")
    folder, ending = scanobjectnn.VARIANTS[name]
    assert point_set.entries[0].file == f"{folder}/training_objectdataset{ending}.h5"


def test_shapenetpart_numbers_its_parts_through():
    assert len(shapenetpart.CLASSES) == 16 and len(shapenetpart.PART_NAMES) == 50
    official = {"Airplane": (0, 3), "Chair": (12, 15), "Motorbike": (30, 35), "Mug": (36, 37), "Table": (47, 49)}
    for name, (first, last) in official.items():
        assert shapenetpart.PARTS[name] == tuple(range(first + 1, last + 2))
    assert shapenetpart.PART_NAMES[12] == "Chair part 1"


def test_shapenetpart_text(tmp_path):
    write_shapenetpart(tmp_path)
    point_set = open_dataset("shapenetpart", tmp_path)
    assert point_set.splits == {"train": 2, "val": 1, "test": 1} and not point_set.findings
    read = point_set[0]
    assert (read.name, point_set.classes[read.label]) == ("03001627/a1", "Chair")
    torch.testing.assert_close(read.points, turned(cloud(0, 4)), **CLOSE)
    assert read.labels.tolist() == [13, 14, 15, 16]
    assert point_set[point_set.indices("test")[0]].labels.tolist() == [38]


def test_shapenetpart_hdf5(tmp_path):
    write_shapenetpart_hdf5(tmp_path)
    point_set = open_dataset("shapenetpart", tmp_path)
    assert point_set.splits == {"train": 2, "val": 2, "test": 2}
    read = point_set[3]
    assert (read.split, point_set.classes[read.label]) == ("val", "Mug")
    assert read.labels.tolist() == [37] * 4 + [38] * 4
    assert torch.equal(read.points, turned(cloud(1)))


def test_s3dis(tmp_path):
    write_s3dis(tmp_path)
    point_set = open_dataset("s3dis", tmp_path)
    assert point_set.splits == {"train": 5, "test": 2} and not point_set.findings
    assert [point_set.entries[i].name for i in point_set.indices("test")] == ["Area_5/hallway_6", "Area_5/office_1"]
    read = point_set[0]
    assert (read.name, read.label) == ("Area_1/office_1", None)
    assert read.points[2].tolist() == pytest.approx([1.5, -1.25, 3.1])
    assert read.colours[2].tolist() == pytest.approx([254 / 255, 1 / 255, 0])
    assert [point_set.point_classes[label - 1] for label in read.labels] == ["ceiling"] * 2 + ["chair"] * 4


def test_s3dis_takes_unknown_classes_for_clutter(tmp_path):
    write_s3dis(tmp_path)
    point_set = open_dataset("s3dis", tmp_path)
    hallway = point_set[point_set.indices("test")[0]]
    assert [point_set.point_classes[label - 1] for label in hallway.labels] == ["ceiling"] * 2 + ["clutter"] * 2


def test_s3dis_can_hold_out_another_area(tmp_path):
    write_s3dis(tmp_path)
    assert s3dis.open_s3dis(tmp_path, test_area=2).splits == {"train": 6, "test": 1}
    with pytest.raises(ValueError, match="1 to 6, not 7"):
        s3dis.open_s3dis(tmp_path, test_area=7)


def test_scannet(tmp_path):
    write_scannet(tmp_path)
    point_set = open_dataset("scannet", tmp_path)
    assert point_set.splits == {"train": 2, "val": 1, "test": 1} and not point_set.findings
    read = point_set[0]
    assert read.name == "scene0000_00" and torch.equal(read.points, torch.from_numpy(cloud(0, 6)))
    torch.testing.assert_close(read.colours, torch.tensor([[1.0, 0.2, 0.0]] * 6), **CLOSE)
    # NYU40 ids 0 1 39 40 14 13, of which 0, 40 and 13 are not scored
    assert read.labels.tolist() == [0, 1, 20, 0, 13, 0]
    assert point_set.point_classes[20 - 1] == "otherfurniture" and point_set.point_classes[13 - 1] == "desk"


def test_scannet_test_scenes_have_no_labels(tmp_path):
    write_scannet(tmp_path)
    point_set = open_dataset("scannet", tmp_path)
    read = point_set[point_set.indices("test")[0]]
    assert read.name == "scene0707_00" and read.labels is None and read.colours is not None


def test_scannet_label_ids_are_the_benchmarks():
    assert list(scannet.NYU40.values()) == [*range(1, 13), 14, 16, 24, 28, 33, 34, 36, 39]


# What they share


@pytest.mark.parametrize("name", WRITERS)
def test_files_are_opened_for_a_read_and_closed(tmp_path, name):
    WRITERS[name](tmp_path)
    point_set = open_dataset(name, tmp_path)
    for i in range(len(point_set)):
        point_set[i]
    for path in tmp_path.rglob("*.h5"):
        with h5py.File(path, "a"):  # refused while another handle is open
            pass
    assert len(pickle.dumps(point_set)) < 1000 * len(point_set) + 5000  # an index, no points


@pytest.mark.parametrize("name", WRITERS)
def test_an_index_can_go_to_another_process(tmp_path, name):
    WRITERS[name](tmp_path)
    point_set = open_dataset(name, tmp_path)
    again = copy.deepcopy(point_set)
    assert torch.equal(again[0].points, point_set[0].points)


def test_rows_read_together_are_the_rows_of_the_file(tmp_path):
    rows = BLOCK + 3
    write_modelnet40(tmp_path)
    write_h5(tmp_path / "ply_data_train0.h5", np.arange(rows)[:, None] % 40)
    point_set = open_dataset("modelnet40", tmp_path)
    for row in (0, BLOCK - 1, BLOCK, rows - 1, 1):
        assert torch.equal(point_set[row].points, turned(cloud(row))) and point_set[row].label == row % 40
    write_h5(tmp_path / "ply_data_train0.h5", np.zeros((rows, 1)), data=np.ones((rows, 2, 3)))
    assert point_set[1].points.shape == (2, 3)  # replaced since


def test_indexing_reads_no_points(tmp_path, monkeypatch):
    write_modelnet40(tmp_path)
    read: list[str] = []
    original = h5py.Dataset.__getitem__

    def spy(self, *arguments, **options):
        read.append(self.name)
        return original(self, *arguments, **options)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", spy)
    point_set = open_dataset("modelnet40", tmp_path)
    assert "/data" not in read
    assert point_set[0].points.shape == (POINTS, 3) and read.count("/data") == 1


def test_sets_prints_sizes_classes_and_findings(tmp_path, capsys):
    write_modelnet40(tmp_path)
    (tmp_path / "ply_data_train1.h5").unlink()
    assert main(["sets", "modelnet40", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "modelnet40: 4 clouds (2 train, 2 test)" in printed and "40 classes: airplane, bathtub" in printed
    assert "ply_data_train1.h5: is listed in train_files.txt but absent" in printed


def test_sets_says_what_is_wrong_with_the_folder(tmp_path, capsys):
    assert main(["sets", "s3dis", str(tmp_path)]) == 1
    assert "holds no Area_[1-6]" in capsys.readouterr().err


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match=r"'modelnet' is no data set: did you mean 'modelnet40'\?"):
        open_dataset("modelnet", ".")
    assert set(WRITERS) <= set(DATASETS)


def test_an_absent_split_is_told(tmp_path):
    write_modelnet40(tmp_path)
    with pytest.raises(ValueError, match=r"no clouds of split 'val', only of \['test', 'train'\]"):
        open_dataset("modelnet40", tmp_path).indices("val")


# Voxel scenes

LINE = torch.tensor(
    [[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.2, 0.0, 0.0], [0.9, 0.0, 0.0], [1.6, 0.0, 0.0], [2.0, 0.0, 0.0]]
)


def line_cloud(labels, colours=None):
    return PointCloud("line", LINE, colours, None, labels, "train")


def test_scene_of_a_cloud_by_hand():
    scene, labels = scene_of(line_cloud(torch.tensor([3, 2, 3, 0, 0, 5])), 2)
    assert scene.coords.tolist() == [[0, 0, 0], [1, 0, 0]]
    assert labels.tolist() == [3, 5]
    assert torch.equal(scene.colour, torch.full((2, 3), 0.5))  # no colour: grey


def test_scene_of_keeps_colours_and_does_without_labels():
    scene, labels = scene_of(line_cloud(None, torch.tensor([0.2, 0.4, 0.9]).expand(6, 3).contiguous()), 2)
    assert labels is None
    torch.testing.assert_close(scene.colour, torch.tensor([[0.2, 0.4, 0.9]] * 2), **CLOSE)


def test_ignored_points_do_not_count_unless_alone():
    _, labels = scene_of(line_cloud(torch.tensor([0, 0, 0, 7, 0, 0])), 2)
    assert labels.tolist() == [7, 0]


def test_the_smallest_label_wins_a_tie():
    _, labels = scene_of(line_cloud(torch.tensor([9, 4, 4, 9, 2, 1])), 2)
    assert labels.tolist() == [4, 1]


def test_voxel_labels_match_counting_one_by_one(generator):
    points = torch.rand(3000, 3, generator=generator)
    labels = torch.randint(0, 6, (3000,), generator=generator)
    scene = voxelise_points(points, points, 7)
    cells = scene.grid.from_world(points).floor().int().clamp(0, 6)
    fast = voxel_labels(scene, points, labels)
    for coords, label in zip(scene.coords, fast.tolist(), strict=True):
        counts = torch.bincount(labels[(cells == coords).all(dim=1)], minlength=6)[1:]
        assert label == (int(counts.argmax()) + 1 if counts.any() else 0)


def test_voxel_labels_leave_points_outside_alone():
    scene, _ = scene_of(line_cloud(None), 2)
    points = torch.tensor([[-5.0, 0.0, 0.0], [0.1, 0.0, 0.0]])
    assert voxel_labels(scene, points, torch.tensor([1, 2])).tolist() == [2, 0]
    with pytest.raises(ValueError, match=r"\[P, 3\] and \[P\]"):
        voxel_labels(scene, points, torch.tensor([1]))


def read_nothing() -> Contents:
    raise AssertionError("not read")


def test_labels_of_clouds_need_no_reading():
    entries = tuple(Entry(f"{i}", "file", "train", i, read_nothing) for i in range(3))
    assert [entry.label for entry in PointSet("toy", ("a", "b", "c"), (), entries).entries] == [0, 1, 2]
