"""Scenes made elsewhere: small files in their own formats, whose voxels are known."""

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from scipy.spatial.transform import Rotation
from toys import tiny_teacher

from condense.cli import main
from condense.keypoints import KeyPoints
from condense.model import new_model
from condense.scenefiles import HARMONIC, SPLAT, read_scene, splat_scene
from condense.sparse import SparseModel, save_sparse
from condense.voxels import voxelise_points

PROPERTIES = ("x", "y", "z", "nx", "ny", "nz", *SPLAT[:3], "f_rest_0", *SPLAT[3:])  # as the authors' code writes them


def splats(centres, colours, opacity=0.9, scales=(0.05, 0.05, 0.005), rotations=None):
    """A table of Gaussians."""
    table = np.zeros(len(centres), [(name, "<f4") for name in PROPERTIES])
    table["x"], table["y"], table["z"] = np.transpose(centres)
    for name, values in zip(SPLAT[:3], np.transpose(colours), strict=True):
        table[name] = (values - 0.5) / HARMONIC
    table["opacity"] = np.log(opacity / (1 - opacity))
    for name, scale in zip(SPLAT[4:7], scales, strict=True):
        table[name] = np.log(scale)
    quaternions = np.tile([1.0, 0, 0, 0], (len(centres), 1)) if rotations is None else rotations
    for name, values in zip(SPLAT[7:], np.transpose(quaternions), strict=True):
        table[name] = values
    return table


def write_splats(path, table):
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(table)}"]
    header += [*(f"property float {name}" for name in table.dtype.names), "end_header\n"]
    path.write_bytes("\n".join(header).encode() + table.tobytes())
    return path


def sphere(count=4000):
    """Points on the unit sphere, evenly: red above, blue below."""
    normals = np.random.default_rng(0).standard_normal((count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return normals, np.where(normals[:, 2:] > 0, [1.0, 0, 0], [0, 0, 1.0])


def assert_a_red_and_blue_shell(scene, thickness):
    centres = scene.centres.numpy()
    assert np.abs(np.linalg.norm(centres, axis=1) - 1).max() < thickness
    assert scene.opacity.median() > 0.5
    above, below = centres[:, 2] > 0.2, centres[:, 2] < -0.2
    assert min(above.sum(), below.sum()) > 100
    torch.testing.assert_close(scene.colour[above].mean(0), torch.tensor([1.0, 0, 0]), atol=0.02, rtol=0)
    torch.testing.assert_close(scene.colour[below].mean(0), torch.tensor([0, 0, 1.0]), atol=0.02, rtol=0)


def test_discs_that_cover_a_sphere_become_its_shell(tmp_path):
    normals, colours = sphere()
    turns = np.stack([Rotation.align_vectors([n], [[0, 0, 1]])[0].as_quat(scalar_first=True) for n in normals])
    path = write_splats(tmp_path / "ball.ply", splats(normals, colours, rotations=3 * turns))  # any length will do
    scene = read_scene(path, 24)
    assert max(scene.grid.shape) == 24
    assert_a_red_and_blue_shell(scene, 0.25)


def test_the_optical_depth_of_a_round_gaussian_is_kept():
    size = 0.5
    scene = splat_scene(splats(np.zeros((1, 3)), [[0.2, 0.4, 0.6]], opacity=0.9, scales=(size,) * 3), 12)
    mass = float(scene.density.sum()) * scene.grid.voxel_size**2
    assert mass == pytest.approx(2 * np.pi * -np.log(1 - 0.9) * size**2, rel=0.15)  # faint and outer voxels are cut off
    torch.testing.assert_close(scene.colour.mean(0), torch.tensor([0.2, 0.4, 0.6]), atol=1e-4, rtol=0)


def test_gaussians_that_are_no_numbers_are_left_out():
    table = splats(np.zeros((3, 3)), np.full((3, 3), 0.5), scales=(0.5,) * 3)
    table["x"][0], table["scale_1"][1] = np.nan, np.inf
    whole = splats(np.zeros((1, 3)), np.full((1, 3), 0.5), scales=(0.5,) * 3)
    assert torch.equal(splat_scene(table, 8).coords, splat_scene(whole, 8).coords)
    with pytest.raises(ValueError, match="no Gaussian is opaque"):
        splat_scene(table[:2], 8)


@pytest.mark.parametrize("encoding", ["binary", "ascii"])
def test_a_point_cloud_keeps_its_colours(tmp_path, encoding):
    points, colours = sphere()
    bytes_ = np.column_stack([255 * colours, np.full(len(points), 255)]).astype(np.uint8)
    trimesh.PointCloud(points, bytes_).export(tmp_path / "cloud.ply", encoding=encoding)
    scene = read_scene(tmp_path / "cloud.ply", 24)
    twin = voxelise_points(torch.from_numpy(points).float(), torch.from_numpy(colours).float(), 24)
    assert len(scene) == pytest.approx(len(twin), rel=0.01)  # text is rounded
    assert_a_red_and_blue_shell(scene, 0.1)


@pytest.mark.parametrize("ending", ["ply", "glb"])
def test_a_mesh_with_vertex_colours(tmp_path, ending):
    mesh = trimesh.creation.icosphere(subdivisions=4)
    mesh.visual.vertex_colors = np.where(mesh.vertices[:, 2:] > 0, [255, 0, 0, 255], [0, 0, 255, 255]).astype(np.uint8)
    if ending == "glb":  # y up, as its standard has it
        mesh.apply_transform(trimesh.transformations.rotation_matrix(-np.pi / 2, [1, 0, 0]))
    mesh.export(tmp_path / f"ball.{ending}")
    assert_a_red_and_blue_shell(read_scene(tmp_path / f"ball.{ending}", 24, "y" if ending == "glb" else "z"), 0.1)


@pytest.mark.parametrize("ending", ["obj", "glb"])
def test_a_mesh_with_a_texture(tmp_path, ending):
    corners = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], float)
    picture = Image.fromarray(np.repeat(np.array([[[255, 0, 0]], [[0, 0, 255]]], np.uint8), 8, axis=0).repeat(16, 1))
    material = trimesh.visual.material.SimpleMaterial(image=picture)
    visual = trimesh.visual.TextureVisuals(uv=corners[:, :2], material=material)
    mesh = trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], visual=visual, process=False)
    mesh.export(tmp_path / f"square.{ending}")
    scene = read_scene(tmp_path / f"square.{ending}", 16)
    assert len(scene) == 16 * 16
    upper = scene.centres[:, 1] > 0.6  # the first row of a picture is its top, v = 1
    lower = scene.centres[:, 1] < 0.4
    torch.testing.assert_close(scene.colour[upper].mean(0), torch.tensor([1.0, 0, 0]), atol=0.05, rtol=0)
    torch.testing.assert_close(scene.colour[lower].mean(0), torch.tensor([0, 0, 1.0]), atol=0.05, rtol=0)


def test_what_is_no_scene_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_scene(tmp_path / "none.ply", 8)
    (tmp_path / "words.ply").write_text("these are words\n")
    with pytest.raises(ValueError, match=r"words\.ply cannot be read as a scene"):
        read_scene(tmp_path / "words.ply", 8)
    (tmp_path / "odd.xyzzy").write_text("")
    with pytest.raises(ValueError, match=r"odd\.xyzzy cannot be read as a scene"):
        read_scene(tmp_path / "odd.xyzzy", 8)
    with pytest.raises(ValueError, match="not 'y' or 'z'"):
        read_scene(tmp_path / "words.ply", 8, "x")


def test_a_texture_outside_the_folder_is_not_read(tmp_path):
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "secret.png")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside/a.mtl").write_text("newmtl m\nmap_Kd ../secret.png\n")
    lines = ["mtllib a.mtl", "v 0 0 0", "v 1 0 0", "v 0 1 0", "vt 0 0", "vt 1 0", "vt 0 1", "usemtl m", "f 1/1 2/2 3/3"]
    (tmp_path / "inside/a.obj").write_text("\n".join(lines) + "\n")
    colour = read_scene(tmp_path / "inside/a.obj", 8).colour
    assert (colour[:, 0] < 0.99).all()


def test_the_command_writes_key_points(tmp_path, capsys):
    save_sparse(tmp_path / "model", SparseModel(new_model(tiny_teacher(), 0)))
    trimesh.creation.icosphere(subdivisions=3).export(tmp_path / "ball.ply")
    for ending, load in ((".h5", KeyPoints.load), (".ply", KeyPoints.load_ply)):
        file = tmp_path / f"points{ending}"
        arguments = [str(tmp_path / "ball.ply"), str(file), "--model", str(tmp_path / "model"), "--count", "20"]
        assert main(["keypoints", *arguments, "--resolution", "16"]) == 0
        assert len(load(file)) == 20 and f"{file}: 20 key points" in capsys.readouterr().out
    assert main(["keypoints", str(tmp_path / "none.ply"), str(file), "--model", str(tmp_path / "model")]) == 1
    assert "does not exist" in capsys.readouterr().err
