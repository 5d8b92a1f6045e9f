"""Small public data sets in the exact formats of their releases, for tests to read and to spoil."""

import json
from pathlib import Path

import h5py
import numpy as np

from condense.datasets import modelnet40, scannet, scanobjectnn, shapenetpart

POINTS = 8
TETRAHEDRON = "4 4 6\n0 0 0\n3 0 0\n0 3 0\n0 0 3\n3 0 2 1\n3 0 1 3\n3 0 3 2\n3 1 2 3\n"


def cloud(row: int, points: int = POINTS) -> np.ndarray:
    return np.random.default_rng(row).uniform(-1, 1, (points, 3)).astype(np.float32)


def write_h5(path: Path, labels: np.ndarray, **arrays: np.ndarray) -> None:
    """Compressed as PointNet's writer does it; `data` row i is `cloud(i)`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"data": np.stack([cloud(row) for row in range(len(labels))]), "label": labels, **arrays}
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, compression="gzip", compression_opts=4)


def write_modelnet40(root: Path) -> None:
    prefix = "data/modelnet40_ply_hdf5_2048"
    write_h5(root / "ply_data_train0.h5", np.array([[30], [4]], np.uint8))
    write_h5(root / "ply_data_train1.h5", np.array([[0], [39], [7]], np.uint8))
    write_h5(root / "ply_data_test0.h5", np.array([[8], [1]], np.uint8))
    (root / "train_files.txt").write_text(f"{prefix}/ply_data_train0.h5\n{prefix}/ply_data_train1.h5\n")
    (root / "test_files.txt").write_text(f"{prefix}/ply_data_test0.h5\n")
    (root / "shape_names.txt").write_text("\n".join(modelnet40.CLASSES) + "\n")


def write_off(root: Path) -> None:
    files = {"chair/train/chair_0001": "OFF\n", "chair/test/chair_0890": "OFF\n", "sofa/train/sofa_0001": "OFF"}
    for file, header in files.items():
        path = root / f"{file}.off"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(header + TETRAHEDRON)


def write_scanobjectnn(root: Path) -> None:
    mask = np.array([[-1, -1, 0, 0, 5, 5, 5, -1]] * 2)
    for folder, ending in scanobjectnn.VARIANTS.values():
        for prefix, labels in {"training": [4, 14], "test": [0, 9]}.items():
            write_h5(root / folder / f"{prefix}_objectdataset{ending}.h5", np.array(labels), mask=mask)


CHAIR, MUG = "03001627", "03797390"


def part_lines(row: int, parts: list[int]) -> str:
    lines = [*zip(cloud(row, len(parts)).tolist(), parts, strict=True)]
    return "\n".join(f"{x:.5f} {y:.5f} {z:.5f} 0.6 0.0 0.8 {part:.6f}" for (x, y, z), part in lines) + "\n"


def write_shapenetpart(root: Path) -> None:
    synsets = {name: f"{100 + i:08d}" for i, name in enumerate(shapenetpart.CLASSES)} | {"Chair": CHAIR, "Mug": MUG}
    listed = {"train": [f"{CHAIR}/a1", f"{MUG}/b1"], "val": [f"{CHAIR}/a2"], "test": [f"{MUG}/b2"]}
    lines = {"a1": [12, 13, 14, 15], "a2": [12, 12], "b1": [36, 37, 37], "b2": [37]}
    (root / "train_test_split").mkdir(parents=True)
    (root / "synsetoffset2category.txt").write_text("".join(f"{name}\t{synsets[name]}\n" for name in synsets))
    for split, files in listed.items():
        path = root / "train_test_split" / f"shuffled_{split}_file_list.json"
        path.write_text(json.dumps([f"shape_data/{file}" for file in files]))
        for row, file in enumerate(files):
            (root / file).parent.mkdir(exist_ok=True)
            (root / f"{file}.txt").write_text(part_lines(row, lines[file.split("/")[1]]))


def write_shapenetpart_hdf5(root: Path) -> None:
    for split, file in {"train": "ply_data_train0", "val": "ply_data_val0", "test": "ply_data_test0"}.items():
        pid = np.array([[12, 13, 14, 15, 12, 13, 14, 15], [36] * 4 + [37] * 4], np.uint8)
        write_h5(root / f"{file}.h5", np.array([[4], [11]], np.uint8), pid=pid)
        (root / f"{split}_hdf5_file_list.txt").write_text(f"{file}.h5\n")


def write_s3dis(root: Path) -> None:
    rooms = {f"Area_{area}/office_1": ["ceiling_1", "chair_1", "chair_2"] for area in range(1, 7)}
    rooms["Area_5/hallway_6"] = ["ceiling_1", "stairs_1"]
    for room, objects in rooms.items():
        (root / room / "Annotations").mkdir(parents=True)
        lines = [f"{i}.500 -{i}.250 3.100 {255 - i} {i} 0\n" for i in range(len(objects))]
        (root / room / f"{room.split('/')[1]}.txt").write_text("".join(lines))
        for name, line in zip(objects, lines, strict=True):
            (root / room / "Annotations" / f"{name}.txt").write_text(line * 2)


def ply(columns: dict[str, np.ndarray]) -> bytes:
    """As the release has them: vertices, then triangles."""
    kinds = {"<f4": "float", "|u1": "uchar", "<u2": "ushort"}
    table = np.zeros(len(columns["x"]), [(name, values.dtype.str) for name, values in columns.items()])
    for name, values in columns.items():
        table[name] = values
    properties = "".join(f"property {kinds[values.dtype.str]} {name}\n" for name, values in columns.items())
    header = f"ply\nformat binary_little_endian 1.0\ncomment MLIB generated\nelement vertex {len(table)}\n{properties}"
    face = np.zeros(1, [("count", "u1"), ("indices", "<i4", 3)])
    return f"{header}element face 1\nproperty list uchar int vertex_indices\nend_header\n".encode() + (
        table.tobytes() + face.tobytes()
    )


def write_scene(folder: Path, ids: list[int] | None, points: int = 6) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    columns = {axis: cloud(0, points)[:, i] for i, axis in enumerate("xyz")}
    columns |= {name: np.full(points, value, np.uint8) for name, value in zip("rgb", (255, 51, 0), strict=True)}
    columns["alpha"] = np.full(points, 255, np.uint8)
    columns = {{"r": "red", "g": "green", "b": "blue"}.get(name, name): values for name, values in columns.items()}
    (folder / f"{folder.name}_vh_clean_2.ply").write_bytes(ply(columns))
    if ids is not None:
        columns = {name: values[: len(ids)] for name, values in columns.items()}
        labelled = ply(columns | {"label": np.array(ids, np.uint16)})
        (folder / f"{folder.name}_vh_clean_2.labels.ply").write_bytes(labelled)


def write_scannet(root: Path) -> None:
    assert len(scannet.CLASSES) == 20
    write_scene(root / "scans/scene0000_00", [0, 1, 39, 40, 14, 13])
    write_scene(root / "scans/scene0000_01", [1] * 6)
    write_scene(root / "scans/scene0011_00", [36] * 6)
    write_scene(root / "scans_test/scene0707_00", None)
    (root / "scannetv2_train.txt").write_text("scene0000_00\nscene0000_01\n")
    (root / "scannetv2_val.txt").write_text("scene0011_00\n")
    (root / "scannetv2_test.txt").write_text("scene0707_00\n")
