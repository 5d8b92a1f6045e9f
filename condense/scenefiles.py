"""Scenes made elsewhere as voxel scenes, without fitting a field: Gaussian splats, point clouds, textured meshes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from scipy.special import expit

from condense.datasets.ply import read_vertices
from condense.grid import Grid
from condense.pooling import FAINTEST, SOLID, enclosed
from condense.voxels import VoxelScene, voxelise_points

SPLAT = ("f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3")
HARMONIC = 0.5 / math.sqrt(math.pi)  # the constant spherical harmonic, by which splats' colours are divided
OUTSIDE = 0.01  # share of a splat scene's mass that is cut off on either side, along each axis: floaters and sky
PIECES = 32  # points that stand for one Gaussian
A_VOXEL = 8  # samples of a mesh's surface on a face of a voxel

Points = tuple[NDArray[np.float64], NDArray[np.float64]]  # positions [P, 3], colours [P, 3] in [0, 1]


def read_scene(path: Path, resolution: int, up: str = "z") -> VoxelScene:
    """A scene file as voxels, `resolution` of them along its longest side.

    Args:
        path: a 3D Gaussian splat (.ply as of Kerbl et al. 2023), a coloured point cloud, or a mesh with colours or
            textures, in any format of trimesh (.ply, .obj, .glb, .stl, ...).
        resolution: voxels along the longest side.
        up: "z", or "y" as in glTF, which is turned to z.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no points, no mesh and no splat, or `up` is another letter.
    """
    if up not in ("y", "z"):
        raise ValueError(f"up is {up!r}, not 'y' or 'z'")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    table = _splat(path)
    if table is not None:
        return splat_scene(table, resolution, up)
    points, colours = _surface(path, resolution)
    if not len(points):
        raise ValueError(f"{path} holds neither points nor a surface")
    return voxelise_points(
        torch.from_numpy(_upright(points, up)).float(), torch.from_numpy(colours).float(), resolution
    )


def _upright(points: NDArray[np.float64], up: str) -> NDArray[np.float64]:
    return points if up == "z" else points[:, [0, 2, 1]] * [1, -1, 1]


def _splat(path: Path) -> np.ndarray | None:
    """The table of Gaussians of a splat file, None of any other."""
    if path.suffix.lower() != ".ply":
        return None
    try:
        table = read_vertices(path)
    except ValueError:  # text, or another first element: not how splats are written
        return None
    return table if table.dtype.names and set(SPLAT) <= set(table.dtype.names) else None


def splat_scene(table: np.ndarray, resolution: int, up: str = "z") -> VoxelScene:
    """Gaussians as voxels.

    A Gaussian of opacity a absorbs -log(1 - a) of optical depth through its middle, whatever way it is looked at. Its
    mass is taken as that depth over its two longest axes, as of a disc seen from the front, and shared out to the
    voxels by points drawn from it. Extinction of a voxel is its mass over its volume, its colour the mean by mass.

    Args:
        table: [P] with x, y, z and SPLAT: opacity as a logit, scales as logarithms, rotation as quaternion w, x, y, z.
        resolution: voxels along the longest side of the box that holds all but OUTSIDE of the mass on each side.
        up: see `read_scene`.

    Raises:
        ValueError: no Gaussian is opaque.
    """
    centres, scales, quaternions = (
        np.stack([table[name].astype(np.float64) for name in names], axis=1)
        for names in (("x", "y", "z"), SPLAT[4:7], SPLAT[7:])
    )
    colour = np.clip(0.5 + HARMONIC * np.stack([table[name] for name in SPLAT[:3]], axis=1), 0, 1)
    scales = np.exp(scales)
    depth = -np.log1p(-np.clip(expit(table["opacity"].astype(np.float64)), 0, 0.999))
    mass = 2 * np.pi * depth * scales.prod(1) / scales.min(1)
    sound = np.isfinite(centres).all(1) & np.isfinite(mass) & (mass > 0) & (np.abs(quaternions).sum(1) > 0)
    if not sound.any():
        raise ValueError("no Gaussian is opaque")
    centres, scales, quaternions, colour, mass = (each[sound] for each in (centres, scales, quaternions, colour, mass))
    drawn = np.random.default_rng(0).standard_normal((PIECES, 3))
    drawn = np.concatenate([drawn, -drawn])  # their mean is the centre
    turns = Rotation.from_quat(quaternions, scalar_first=True).as_matrix()
    pieces = centres[:, None] + np.einsum("pij,pj,kj->pki", turns, scales, drawn)
    points, owner = _upright(pieces.reshape(-1, 3), up), np.arange(len(mass)).repeat(len(drawn))
    share = mass[owner] / len(drawn)
    grid = _bounded(points, share, resolution)
    return _filled(grid, points, share, colour[owner])


def _bounded(points: NDArray[np.float64], mass: NDArray[np.float64], resolution: int) -> Grid:
    """The box that holds all but OUTSIDE of the mass on either side of each axis."""
    edges = []
    for axis in range(3):
        order = np.argsort(points[:, axis])
        share = np.cumsum(mass[order]) / mass.sum()
        ends = np.searchsorted(share, [OUTSIDE, 1 - OUTSIDE]).clip(0, len(points) - 1)
        edges.append(points[order[ends], axis])
    low, high = np.array(edges).T
    size = max(float((high - low).max()) / resolution, 1e-9)
    x, y, z = (int(side) for side in np.clip(np.ceil((high - low) / size - 1e-6), 1, resolution))
    return Grid((float(low[0]), float(low[1]), float(low[2])), size, (x, y, z))


def _filled(
    grid: Grid, points: NDArray[np.float64], mass: NDArray[np.float64], colour: NDArray[np.float64]
) -> VoxelScene:
    """The voxels that hold enough mass, without those that opaque ones enclose."""
    cells = np.floor((points - grid.origin) / grid.voxel_size).astype(np.int64)
    inside = ((cells >= 0) & (cells < grid.shape)).all(1)
    rows = np.ravel_multi_index(tuple(cells[inside].T), grid.shape)
    weights = np.concatenate([mass[inside, None], mass[inside, None] * colour[inside]], axis=1)
    total = np.stack([np.bincount(rows, weight, math.prod(grid.shape)) for weight in weights.T], axis=1)
    total = total.reshape(*grid.shape, 4)
    density = torch.from_numpy(total[..., 0] / grid.voxel_size**2)  # mass over volume, over a path of one edge
    opacity = 1 - torch.exp(-density)
    coords = ((opacity > FAINTEST) & ~enclosed(opacity > SOLID)).nonzero()
    if not len(coords):
        raise ValueError("the Gaussians are transparent everywhere")
    at = tuple(coords.T)
    light = torch.from_numpy(total)[at]
    return VoxelScene(coords.int(), density[at].float(), (light[:, 1:] / light[:, :1]).float(), grid)


def _surface(path: Path, resolution: int) -> Points:
    """Points and colours of a point cloud, or drawn from a mesh's surface so that no voxel is missed."""
    try:
        scene = trimesh.load_scene(path)
    except (ValueError, KeyError, IndexError, NotImplementedError, TypeError) as error:  # as its readers raise
        raise ValueError(f"{path} cannot be read as a scene: {error}") from error
    found = list(scene.dump())
    side = max(scene.extents if scene.extents is not None else [0]) / resolution
    parts = [_of_mesh(each, side) for each in found if isinstance(each, trimesh.Trimesh) and each.area > 0]
    parts += [_of_cloud(each) for each in found if isinstance(each, trimesh.PointCloud)]
    if not parts:
        return np.zeros((0, 3)), np.zeros((0, 3))
    points, colours = (np.concatenate(each) for each in zip(*parts, strict=True))
    return points, colours


def _of_cloud(cloud: trimesh.PointCloud) -> Points:
    points = np.asarray(cloud.vertices, np.float64)
    colours = np.asarray(cloud.colors, np.float64).reshape(-1, 4)[:, :3] / 255
    return points, colours if len(colours) == len(points) else np.full_like(points, 0.5)


def _of_mesh(mesh: trimesh.Trimesh, side: float) -> Points:
    """A_VOXEL samples for each square of a voxel's `side` of the surface, with the colours there."""
    count = max(64, round(A_VOXEL * mesh.area / side**2))
    if isinstance(mesh.visual, trimesh.visual.TextureVisuals):
        material = mesh.visual.material
        if isinstance(material, trimesh.visual.material.PBRMaterial):
            material = material.to_simple()
        if mesh.visual.uv is None or getattr(material, "image", None) is None:
            points, _ = trimesh.sample.sample_surface(mesh, count, seed=0)
            return np.asarray(points), np.tile(np.asarray(material.main_color[:3]) / 255, (count, 1))
        mesh.visual.material = material
    points, _, colours = trimesh.sample.sample_surface(mesh, count, sample_color=True, seed=0)
    return np.asarray(points), np.asarray(colours, np.float64)[:, :3] / 255
