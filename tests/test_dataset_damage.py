import json

import h5py
import numpy as np
import pytest
from datasetfiles import (
    CHAIR,
    TETRAHEDRON,
    cloud,
    ply,
    write_h5,
    write_modelnet40,
    write_off,
    write_s3dis,
    write_scannet,
    write_scanobjectnn,
    write_scene,
    write_shapenetpart,
    write_shapenetpart_hdf5,
)

from condense.cli import main
from condense.datasets.open import describe, open_dataset
from condense.datasets.pointset import DatasetError, verify

WRITERS = {
    "modelnet40": write_modelnet40,
    "scanobjectnn": write_scanobjectnn,
    "shapenetpart": write_shapenetpart,
    "s3dis": write_s3dis,
    "scannet": write_scannet,
}

# The wrong root: what was looked for, and where it is if it is near


@pytest.mark.parametrize("name", WRITERS)
def test_a_root_one_level_off_is_named(tmp_path, name):
    root = tmp_path / "above" / "right"
    root.mkdir(parents=True)
    WRITERS[name](root)
    with pytest.raises(DatasetError, match=f"holds no .*name {root} instead"):
        open_dataset(name, root.parent)
    (root / "below").mkdir()
    with pytest.raises(DatasetError, match=f"holds no .*name {root} instead"):
        open_dataset(name, root / "below")


@pytest.mark.parametrize("name", WRITERS)
def test_a_root_with_nothing_says_what_was_looked_for(tmp_path, name):
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(DatasetError, match="name the unpacked folder that holds"):
        open_dataset(name, tmp_path / "a" / "b")
    with pytest.raises(DatasetError, match="is not a folder"):
        open_dataset(name, tmp_path / "absent")


# A partial download: what is there is used, the rest is listed


def problems(name, root):
    return [(finding.file, finding.problem) for finding in open_dataset(name, root).findings]


def test_an_absent_hdf5_file_is_set_aside(tmp_path):
    write_modelnet40(tmp_path)
    (tmp_path / "ply_data_train0.h5").unlink()
    assert problems("modelnet40", tmp_path) == [
        ("ply_data_train0.h5", "is listed in train_files.txt but absent; set aside")
    ]
    assert open_dataset("modelnet40", tmp_path).splits == {"train": 3, "test": 2}


def test_a_truncated_hdf5_file_is_set_aside(tmp_path):
    write_modelnet40(tmp_path)
    path = tmp_path / "ply_data_train0.h5"
    path.write_bytes(path.read_bytes()[:-100])
    [(file, problem)] = problems("modelnet40", tmp_path)
    assert file == path.name and "cannot be opened" in problem and "truncated" in problem


def test_an_absent_list_is_told(tmp_path):
    write_modelnet40(tmp_path)
    (tmp_path / "test_files.txt").unlink()
    assert problems("modelnet40", tmp_path) == [("test_files.txt", "is absent, so that its split has no clouds")]


def test_absent_classes_of_meshes_are_told(tmp_path):
    write_off(tmp_path)
    point_set = open_dataset("modelnet40", tmp_path)
    assert len(point_set.findings) == 80 - 3
    text = describe(point_set, point_set.findings)
    assert "airplane/train, airplane/test, bathtub/train" in text and "and 72 more: holds no .off file" in text


def test_an_absent_scanobjectnn_file_is_set_aside(tmp_path):
    write_scanobjectnn(tmp_path)
    (tmp_path / "main_split/test_objectdataset.h5").unlink()
    assert problems("scanobjectnn", tmp_path) == []
    [(file, problem)] = problems("scanobjectnn_obj_bg", tmp_path)
    assert file == "main_split/test_objectdataset.h5" and "absent; set aside" in problem


def test_an_absent_shape_is_set_aside(tmp_path):
    write_shapenetpart(tmp_path)
    (tmp_path / CHAIR / "a1.txt").unlink()
    [(file, problem)] = problems("shapenetpart", tmp_path)
    assert file == f"{CHAIR}/a1.txt"
    assert problem == "is listed in train_test_split/shuffled_train_file_list.json but absent; set aside"


def test_a_room_without_annotations_is_set_aside(tmp_path):
    write_s3dis(tmp_path)
    for path in (tmp_path / "Area_3/office_1/Annotations").iterdir():
        path.unlink()
    for path in (tmp_path / "Area_4").rglob("*.txt"):
        path.unlink()
    for folder in ("Annotations", ""):
        (tmp_path / "Area_4/office_1" / folder).rmdir()
    assert problems("s3dis", tmp_path) == [
        ("Area_3/office_1", "has no annotations (Annotations/<class>_<n>.txt); set aside"),
        ("Area_4", "holds no room"),
    ]


def test_an_absent_scene_and_a_scene_without_labels_are_set_aside(tmp_path):
    write_scannet(tmp_path)
    (tmp_path / "scans/scene0000_00/scene0000_00_vh_clean_2.ply").unlink()
    labels = "scans/scene0011_00/scene0011_00_vh_clean_2.labels.ply"
    (tmp_path / labels).unlink()
    absent, unlabelled = open_dataset("scannet", tmp_path).findings
    assert absent.problem == "is listed in scannetv2_train.txt but absent; set aside"
    assert unlabelled.file == labels and "scene0011_00 has no labels; set aside" in unlabelled.problem
    assert "_vh_clean_2.labels.ply" in unlabelled.remedy


def test_scannet_without_lists_says_where_they_are(tmp_path):
    write_scannet(tmp_path)
    for path in tmp_path.glob("*.txt"):
        path.unlink()
    with pytest.raises(DatasetError, match=r"Remedy: copy scannetv2_\*\.txt from github\.com/ScanNet/ScanNet"):
        open_dataset("scannet", tmp_path)


def test_nothing_left_is_an_error_that_lists_everything(tmp_path):
    write_modelnet40(tmp_path)
    for path in tmp_path.glob("*.h5"):
        path.unlink()
    with pytest.raises(DatasetError, match="modelnet40 cannot be used") as caught:
        open_dataset("modelnet40", tmp_path)
    assert len(caught.value.findings) == 4
    assert caught.value.findings[-1].problem == "has no cloud that can be used"


# Lists are somebody else's: a path that leaves the folder is refused


@pytest.mark.parametrize("path", ["../../secret.h5", "/etc/secret.h5", "C:\\secret.h5", "data/../../secret.h5"])
def test_text_lists_cannot_leave_the_folder(tmp_path, path):
    write_modelnet40(tmp_path / "root")
    write_h5(tmp_path / "secret.h5", np.array([[1]]))
    with (tmp_path / "root/train_files.txt").open("a") as file:
        file.write(f"{path}\n")
    [(source, problem)] = problems("modelnet40", tmp_path / "root")
    assert source == "train_files.txt" and problem == f"lists {path!r}, a path that leaves the folder; refused"


def test_json_lists_cannot_leave_the_folder(tmp_path):
    write_shapenetpart(tmp_path)
    source = "train_test_split/shuffled_val_file_list.json"
    (tmp_path / source).write_text(json.dumps([f"shape_data/{CHAIR}/a2", "../../a"]))
    assert problems("shapenetpart", tmp_path) == [(source, "lists '../../a', a path that leaves the folder; refused")]


def test_scene_lists_cannot_leave_the_folder(tmp_path):
    write_scannet(tmp_path)
    (tmp_path / "scannetv2_val.txt").write_text("../scene0011_00\nscene0011_00\n")
    [(source, problem)] = problems("scannet", tmp_path)
    assert source == "scannetv2_val.txt" and "refused" in problem


@pytest.mark.parametrize("content", [b'["shape_data/', b'{"a": 1}', b"[1, 2]", b"\xff\xfe\x00"])
def test_a_list_that_is_no_list_is_told(tmp_path, content):
    write_shapenetpart(tmp_path)
    source = "train_test_split/shuffled_val_file_list.json"
    (tmp_path / source).write_bytes(content)
    [(file, problem)] = problems("shapenetpart", tmp_path)
    assert file == source and problem.startswith("cannot be read (")


def test_a_listed_shape_of_an_unknown_synset_is_told(tmp_path):
    write_shapenetpart(tmp_path)
    source = "train_test_split/shuffled_val_file_list.json"
    (tmp_path / source).write_text('["shape_data/99999999/x"]')
    [(file, problem)] = problems("shapenetpart", tmp_path)
    assert file == "99999999/x.txt" and "lacks its synset" in problem


# HDF5 files that are whole, but wrong


def test_a_label_out_of_range_is_an_error(tmp_path):
    write_scanobjectnn(tmp_path)
    file = "main_split/training_objectdataset.h5"
    write_h5(tmp_path / file, np.array([3, 15]), mask=np.zeros((2, 8)))
    with pytest.raises(DatasetError, match=f"{file}: has the label 15 in row 1, outside 0 to 14"):
        open_dataset("scanobjectnn_obj_bg", tmp_path)


def test_shapes_that_disagree_are_an_error(tmp_path):
    write_modelnet40(tmp_path)
    write_h5(tmp_path / "ply_data_train0.h5", np.array([[3], [5]]), data=np.zeros((3, 8, 3), np.float32))
    with pytest.raises(DatasetError, match=r"data of shape \(3, 8, 3\) and 2 labels, not \[N, P, 3\] and N"):
        open_dataset("modelnet40", tmp_path)


def test_point_labels_of_another_shape_are_an_error(tmp_path):
    write_shapenetpart_hdf5(tmp_path)
    write_h5(tmp_path / "ply_data_val0.h5", np.array([[4]]), pid=np.zeros((1, 7)))
    with pytest.raises(DatasetError, match=r"val0\.h5: has data of shape \(1, 8, 3\) and pid of shape \(1, 7\)"):
        open_dataset("shapenetpart", tmp_path)


def test_a_missing_array_is_an_error(tmp_path):
    write_modelnet40(tmp_path)
    with h5py.File(tmp_path / "ply_data_test0.h5", "a") as file:
        del file["label"]
    with pytest.raises(DatasetError, match=r"ply_data_test0\.h5: has no array 'label', only \['data'\]"):
        open_dataset("modelnet40", tmp_path)


def test_missing_point_labels_are_told(tmp_path):
    write_shapenetpart_hdf5(tmp_path)
    with h5py.File(tmp_path / "ply_data_test0.h5", "a") as file:
        del file["pid"]
    point_set = open_dataset("shapenetpart", tmp_path)
    assert [finding.problem for finding in point_set.findings] == ["has no array 'pid': its points have no labels"]
    assert point_set[point_set.indices("test")[0]].labels is None


def test_other_class_names_are_an_error(tmp_path):
    write_modelnet40(tmp_path)
    (tmp_path / "shape_names.txt").write_text("bathtub\nbed\n")
    with pytest.raises(DatasetError, match=r"shape_names\.txt: does not hold the 40 classes"):
        open_dataset("modelnet40", tmp_path)


def test_other_synsets_are_an_error(tmp_path):
    write_shapenetpart(tmp_path)
    (tmp_path / "synsetoffset2category.txt").write_text("Teapot\t01234567\n")
    with pytest.raises(DatasetError, match="does not list the 16 classes of ShapeNetPart"):
        open_dataset("shapenetpart", tmp_path)


def test_points_that_are_not_finite_are_an_error_when_read(tmp_path):
    write_modelnet40(tmp_path)
    data = np.stack([cloud(0), cloud(1)])
    data[1, 5, 2] = np.nan
    write_h5(tmp_path / "ply_data_train0.h5", np.array([[3], [5]]), data=data)
    point_set = open_dataset("modelnet40", tmp_path)
    point_set[0]
    with pytest.raises(DatasetError, match=r"ply_data_train0\.h5: has 1 points that are not finite, the first is 5"):
        point_set[1]


def test_a_part_of_another_class_is_an_error_when_read(tmp_path):
    write_shapenetpart_hdf5(tmp_path)
    write_h5(tmp_path / "ply_data_val0.h5", np.array([[11]]), pid=np.array([[36] * 7 + [12]]))
    point_set = open_dataset("shapenetpart", tmp_path)
    with pytest.raises(DatasetError, match=r"ply_data_val0\.h5: has the point label 13, outside 37 to 38"):
        point_set[point_set.indices("val")[0]]


# Text, meshes and scans that are damaged


@pytest.mark.parametrize("text", ["", "1 2 3 4\n", "1 2 3 0 0 1 12\n1 2 3\n", "<html>404</html>"])
def test_a_damaged_shape_is_an_error_when_read(tmp_path, text):
    write_shapenetpart(tmp_path)
    (tmp_path / CHAIR / "a1.txt").write_text(text)
    point_set = open_dataset("shapenetpart", tmp_path)
    with pytest.raises(DatasetError, match=f"{CHAIR}/a1.txt: is not lines of seven numbers"):
        point_set[0]


@pytest.mark.parametrize(
    "text",
    ["", "<html>404</html>", "OFF\n" + TETRAHEDRON[:30], "OFF\n3 1 0\n0 0 0\n0 0 0\n0 0 0\n3 0 1 2\n", "OFF\n0 0 0\n"],
)
def test_a_damaged_mesh_is_an_error_when_read(tmp_path, text):
    write_off(tmp_path)
    (tmp_path / "chair/train/chair_0001.off").write_text(text)
    point_set = open_dataset("modelnet40", tmp_path)
    with pytest.raises(DatasetError, match=r"chair/train/chair_0001\.off: is not a sound OFF mesh"):
        point_set[0]


DAMAGED = "Area_5/hallway_6/Annotations/ceiling_1.txt"


@pytest.mark.parametrize("stray", ["\x00", "\x10", "\xa0\xe9"])
def test_the_damaged_line_of_s3dis_is_set_aside_and_told(tmp_path, stray):
    write_s3dis(tmp_path)
    lines = [f"{i}.0 2.0 3.0 10 20 30\n" for i in range(300)]
    lines[180] = f"20.9 13.1 3.1 185{stray}187 175\n"
    (tmp_path / DAMAGED).write_text("".join(lines), encoding="latin-1")
    point_set = open_dataset("s3dis", tmp_path)
    room = point_set[point_set.indices("test")[0]]
    assert len(room.points) == 299 + 2 and room.points[180, 0] == 181
    [finding] = room.findings
    assert finding.file == DAMAGED and "put a blank in place" in finding.remedy
    assert finding.problem.startswith("line 181 has a stray control or non-ASCII character and is set aside: '20.9")
    assert verify(point_set) == [finding]


def test_a_line_cut_off_is_set_aside(tmp_path):
    write_s3dis(tmp_path)
    (tmp_path / DAMAGED).write_text("1.0 2.0 3.0 10 20 30\n" * 5 + "1.0 2.0 3.")
    room = next(room for room in open_dataset("s3dis", tmp_path) if room.findings)
    assert room.name == "Area_5/hallway_6" and "line 6 is not six numbers" in room.findings[0].problem


@pytest.mark.parametrize("text", ["", "<html>\n404\n</html>", "1 2 3\n" * 50, "1 2 3 4 5 6\n" * 5 + "1 2\n" * 5])
def test_a_damaged_annotation_is_an_error_when_read(tmp_path, text):
    write_s3dis(tmp_path)
    (tmp_path / DAMAGED).write_text(text)
    point_set = open_dataset("s3dis", tmp_path)
    with pytest.raises(DatasetError, match=rf"{DAMAGED}: has \d lines of six numbers, x y z r g b, and \d+ that are"):
        point_set[point_set.indices("test")[0]]


SCENE = "scans/scene0000_00/scene0000_00_vh_clean_2"


def test_labels_of_another_mesh_are_an_error_when_read(tmp_path):
    write_scannet(tmp_path)
    write_scene(tmp_path / "scans/scene0000_00", [1] * 5)
    point_set = open_dataset("scannet", tmp_path)
    with pytest.raises(DatasetError, match=rf"{SCENE}\.labels\.ply: has 5 vertices, and {SCENE}\.ply has 6"):
        point_set[0]


def test_unknown_label_ids_are_ignored_and_told(tmp_path):
    write_scannet(tmp_path)
    write_scene(tmp_path / "scans/scene0000_00", [1, 50, 149, 50, 2, 40])
    read = open_dataset("scannet", tmp_path)[0]
    assert read.labels.tolist() == [1, 0, 0, 0, 2, 0]
    assert [finding.problem for finding in read.findings] == [
        "3 vertices have the label 50, 149, which is no NYU40 id; ignored"
    ]


X = {axis: np.zeros(2, np.float32) for axis in "xyz"}
BAD_PLY = {
    "it has no PLY header": b"<html>404</html>",
    "it ends after 1 of 2 vertices": ply(X)[:-20],
    "it is not binary PLY": ply(X).replace(b"binary_little_endian", b"ascii"),
    "its vertices have no property 'red'": ply(X),
    "its first element is 'face', not 'vertex'": ply(X).replace(b"element vertex 2", b"element face 2"),
    "its vertices have a property of type 'quad'": ply(X).replace(b"float z", b"quad z"),
}


@pytest.mark.parametrize("why", BAD_PLY)
def test_a_damaged_ply_file_is_an_error_when_read(tmp_path, why):
    write_scannet(tmp_path)
    (tmp_path / f"{SCENE}.ply").write_bytes(BAD_PLY[why])
    point_set = open_dataset("scannet", tmp_path)
    with pytest.raises(DatasetError, match=rf"{SCENE}\.ply: is not a sound PLY file \({why}\)"):
        point_set[0]


def test_verify_goes_on_after_damage(tmp_path, capsys):
    write_scannet(tmp_path)
    (tmp_path / f"{SCENE}.ply").write_bytes(b"")
    write_scene(tmp_path / "scans/scene0011_00", [50] * 6)
    assert main(["sets", "scannet", str(tmp_path), "--verify"]) == 0
    printed = capsys.readouterr().out
    assert "is not a sound PLY file" in printed and "6 vertices have the label 50" in printed
