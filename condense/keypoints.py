"""Decorated key points of scenes and of images: finding them, describing them, keeping them.

Files are HDF5 in hloc's layout (Sarlin et al. 2019), which hloc and COLMAP tools read: a group per name with the
datasets `keypoints` [K, 2 or 3], `descriptors` [D, K], `scores` [K] and, of an image, `image_size` (width, height).
Image points in a file follow hloc: the centre of the top left pixel is (0, 0). Everywhere else in this package it is
(0.5, 0.5), as in COLMAP. A scene's group also holds `normals` [K, 3] and `colours` [K, 3] (uint8).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv3d, grid_sample, max_pool2d, normalize, unfold

from condense.datasets.ply import read_vertices
from condense.paths import write_atomically
from condense.voxels import VoxelScene, index_volume

_BLOCK = 2**22  # distances held at once
_PLY = [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
_PLY += [(name, "u1") for name in ("red", "green", "blue")] + [("score", "<f4")]


@dataclass(frozen=True)
class KeyPoints:
    """The key points of a scene.

    Args:
        positions: [K, 3] float32, capture units.
        normals: [K, 3] unit, outward; zeros where unknown.
        scores: [K] in [0, 1], highest first.
        descriptors: [K, D] unit length.
        colours: [K, 3] float RGB in [0, 1].

    Raises:
        ValueError: a shape is not as above.
    """

    positions: Tensor
    normals: Tensor
    scores: Tensor
    descriptors: Tensor
    colours: Tensor

    def __post_init__(self) -> None:
        _check(self, {"positions": (3,), "normals": (3,), "scores": (), "colours": (3,)})

    def __len__(self) -> int:
        return len(self.positions)

    def top(self, count: int) -> KeyPoints:
        """The `count` key points of highest score."""
        return self[torch.arange(min(count, len(self)))]

    def __getitem__(self, rows: Tensor) -> KeyPoints:
        """Some of the key points, by index or mask."""
        parts = (self.positions, self.normals, self.scores, self.descriptors, self.colours)
        return KeyPoints(*(part[rows] for part in parts))

    @property
    def arrays(self) -> dict[str, NDArray]:
        """What a file holds: descriptors, scores and normals in half precision, colours as bytes."""
        return {
            "keypoints": self.positions.numpy().astype(np.float32),
            "descriptors": self.descriptors.numpy().T.astype(np.float16),
            "scores": self.scores.numpy().astype(np.float16),
            "normals": self.normals.numpy().astype(np.float16),
            "colours": _bytes(self.colours),
        }

    def save(self, path: Path, name: str = "scene") -> None:
        """Writes an HDF5 file with this one entry."""
        save_keypoints(path, {name: self})

    @staticmethod
    def load(path: Path, name: str = "scene") -> KeyPoints:
        """Reads a scene's entry of an HDF5 file; errors as of `load_keypoints`."""
        found = load_keypoints(path, [name])[name]
        if not isinstance(found, KeyPoints):
            raise ValueError(f"{path}: {name!r} is an image: read it with ImageKeyPoints.load")
        return found

    def save_ply(self, path: Path) -> None:
        """Writes a binary PLY that any viewer opens: x y z nx ny nz red green blue score; no descriptors."""
        table = np.zeros(len(self), _PLY)
        columns = [*self.positions.T, *self.normals.T, *_bytes(self.colours).T, self.scores]
        for (field, _), column in zip(_PLY, columns, strict=True):
            table[field] = column
        names = {"<f4": "float", "u1": "uchar"}
        header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(self)}"]
        header += [*(f"property {names[kind]} {field}" for field, kind in _PLY), "end_header\n"]
        content = "\n".join(header).encode() + table.tobytes()
        write_atomically(path, lambda temporary: temporary.write_bytes(content))

    @staticmethod
    def load_ply(path: Path) -> KeyPoints:
        """Reads what `save_ply` wrote; descriptors are [K, 0].

        Raises:
            ValueError: it is not a binary PLY file, or lacks a property.
        """
        try:
            table = read_vertices(path)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; write it again with save_ply") from None
        missing = {field for field, _ in _PLY} - set(table.dtype.names or ())
        if missing:
            raise ValueError(f"{path}: its vertices lack {sorted(missing)}; write it again with save_ply")
        x = torch.from_numpy(np.stack([table[field].astype(np.float32) for field, _ in _PLY], axis=1))
        return KeyPoints(x[:, :3], x[:, 3:6], x[:, 9], x.new_zeros(len(x), 0), x[:, 6:9] / 255)


@dataclass(frozen=True)
class ImageKeyPoints:
    """The key points of an image.

    Args:
        positions: [K, 2] float32 pixels (x, y), pixel centres at +0.5.
        scores: [K].
        descriptors: [K, D] unit length.
        size: width and height of the image.

    Raises:
        ValueError: a shape is not as above.
    """

    positions: Tensor
    scores: Tensor
    descriptors: Tensor
    size: tuple[int, int]

    def __post_init__(self) -> None:
        _check(self, {"positions": (2,), "scores": ()})

    def __len__(self) -> int:
        return len(self.positions)

    def top(self, count: int) -> ImageKeyPoints:
        """The `count` key points of highest score."""
        return self[torch.argsort(self.scores, descending=True, stable=True)[:count]]

    def __getitem__(self, rows: Tensor) -> ImageKeyPoints:
        """Some of the key points, by index or mask."""
        return ImageKeyPoints(self.positions[rows], self.scores[rows], self.descriptors[rows], self.size)

    @property
    def arrays(self) -> dict[str, NDArray]:
        """What a file holds; positions in hloc's convention."""
        return {
            "keypoints": self.positions.numpy().astype(np.float32) - np.float32(0.5),
            "descriptors": self.descriptors.numpy().T.astype(np.float16),
            "scores": self.scores.numpy().astype(np.float16),
            "image_size": np.array(self.size),
        }

    def save(self, path: Path, name: str = "image") -> None:
        """Writes an HDF5 file with this one entry."""
        save_keypoints(path, {name: self})

    @staticmethod
    def load(path: Path, name: str = "image") -> ImageKeyPoints:
        """Reads an image's entry of an HDF5 file; errors as of `load_keypoints`."""
        found = load_keypoints(path, [name])[name]
        if not isinstance(found, ImageKeyPoints):
            raise ValueError(f"{path}: {name!r} is a scene: read it with KeyPoints.load")
        return found


def _check(points: KeyPoints | ImageKeyPoints, wanted: Mapping[str, tuple[int, ...]]) -> None:
    count, kind = len(points.scores), type(points).__name__
    for name, rest in wanted.items():
        shape = tuple(getattr(points, name).shape)
        if shape != (count, *rest):
            raise ValueError(f"{kind}.{name} has shape {shape}, not {(count, *rest)}")
    if points.descriptors.ndim != 2 or len(points.descriptors) != count:
        raise ValueError(f"{kind}.descriptors has shape {tuple(points.descriptors.shape)}, not ({count}, D)")


def _bytes(colours: Tensor) -> NDArray[np.uint8]:
    return (colours.numpy() * 255).round().clip(0, 255).astype(np.uint8)


def stored_bytes(points: KeyPoints | ImageKeyPoints) -> int:
    """Bytes of the numbers that a file holds of them, without HDF5's own headers."""
    return sum(array.nbytes for array in points.arrays.values())


def save_keypoints(path: Path, points: Mapping[str, KeyPoints | ImageKeyPoints]) -> None:
    """Writes key points by name; a `/` in a name makes groups within groups, as in hloc."""

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            for name, some in points.items():
                group = file.create_group(name)
                for key, array in some.arrays.items():
                    group.create_dataset(key, data=array)

    write_atomically(path, write)


def load_keypoints(path: Path, names: Sequence[str] | None = None) -> dict[str, KeyPoints | ImageKeyPoints]:
    """Key points by name, from a file of `save_keypoints` or of hloc; all if no names are given.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not HDF5, lacks a name, or a group lacks a dataset or has arrays that do not fit.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: write it with save_keypoints")
    if not h5py.is_hdf5(path):
        raise ValueError(f"{path} is not an HDF5 file: write it with save_keypoints")
    with h5py.File(path, "r") as file:
        present = list(_names(file))
        absent = [name for name in names or () if name not in present]
        if absent:
            raise ValueError(f"{path} has no key points of {absent[0]!r}; it has {present[:5]} ({len(present)} in all)")
        return {name: _read(path, file[name]) for name in (present if names is None else names)}


def _names(group: h5py.Group, prefix: str = "") -> Iterator[str]:
    """Groups that hold datasets."""
    children = [(name, child) for name, child in group.items() if isinstance(child, h5py.Group)]
    if prefix and len(children) < len(group):
        yield prefix
    for name, child in children:
        yield from _names(child, f"{prefix}/{name}" if prefix else name)


def _read(path: Path, group: h5py.Group) -> KeyPoints | ImageKeyPoints:
    where = f"{path}: group {group.name!r}"
    scene = "keypoints" in group and group["keypoints"].shape[-1:] == (3,)
    wanted = ("keypoints", "scores", "descriptors", *(("normals", "colours") if scene else ("image_size",)))
    missing = [key for key in wanted if key not in group]
    if missing:
        raise ValueError(f"{where} has no dataset {missing[0]!r}; write the file again with save_keypoints")
    part = {key: torch.from_numpy(group[key][()].astype(np.float32)) for key in wanted}
    descriptors = normalize(part["descriptors"].T, dim=1)  # half precision shifts lengths a little
    try:
        if scene:
            colours = part["colours"] / 255
            return KeyPoints(part["keypoints"], part["normals"], part["scores"], descriptors, colours)
        width, height = (int(side) for side in part["image_size"])
        return ImageKeyPoints(part["keypoints"] + 0.5, part["scores"], descriptors, (width, height))
    except ValueError as error:
        raise ValueError(f"{where}: {error}; write the file again with save_keypoints") from None


def spread_maxima(positions: Tensor, scores: Tensor, count: int, robustness: float = 0.9) -> Tensor:
    """Indices [min(count, N)] of points of high score far from each other, highest score first.

    Adaptive non-maximum suppression (Brown, Szeliski and Winder 2005): a point's radius is its distance to the
    nearest point whose score, times `robustness`, is still higher; the largest radii are kept. Points that nothing
    suppresses, of which there are many where scores saturate, are told apart by the distance to the nearest point
    before them in order of score; what is still tied goes to the higher score, then to the lower index.

    Args:
        positions: [N, d].
        scores: [N], not negative.
        count: how many.
        robustness: in (0, 1].

    Raises:
        ValueError: a score is negative or not a number.
    """
    if not bool((scores >= 0).all()):
        raise ValueError(f"scores must be at least 0, not {float(scores.min())}")
    order = torch.argsort(scores, descending=True, stable=True)
    if count >= len(order):
        return order
    places, values = positions[order], scores[order]
    stronger = torch.searchsorted(-values, -values / robustness)  # so many come first and are stronger
    radius = _nearest_before(places, stronger)
    free = int((stronger == 0).sum())  # the first ones
    second = torch.zeros_like(radius)
    second[:free] = _nearest_before(places[:free], torch.arange(free, device=radius.device))
    kept = torch.argsort(second, descending=True, stable=True)
    kept = kept[torch.argsort(radius[kept], descending=True, stable=True)][:count]
    return order[kept.sort().values]


def _nearest_before(places: Tensor, limits: Tensor) -> Tensor:
    """[N] distance of each place to the nearest of the first `limits` [N] (ascending) places; inf without any."""
    result = places.new_full((len(places),), torch.inf)
    begin = 0
    while begin < len(places):
        end = min(len(places), begin + max(1, _BLOCK // len(places)))
        most = int(limits[end - 1])
        if most:
            distance = torch.cdist(places[begin:end], places[:most], compute_mode="donot_use_mm_for_euclid_dist")
            beyond = torch.arange(most, device=places.device) >= limits[begin:end, None]
            result[begin:end] = distance.masked_fill_(beyond, torch.inf).amin(1)
        begin = end
    return result


def voxel_normals(scene: VoxelScene, radius: int = 2) -> Tensor:
    """[N, 3] unit outward normals: down the opacity's gradient over the (2 radius + 1)^3 neighbours; 0 if it vanishes.

    In a contracted grid the gradient is carried to the world by the contraction's transposed Jacobian.
    """
    index = index_volume(scene)
    volume = torch.where(index >= 0, scene.opacity[index.clamp_min(0)], scene.opacity.new_zeros(()))
    reach = torch.arange(-radius, radius + 1, device=volume.device).to(volume)
    offsets = torch.stack(torch.meshgrid(reach, reach, reach, indexing="ij"))  # [3, x, y, z]
    uphill = conv3d(volume[None, None], offsets[:, None], padding=radius)[0]  # [3, X, Y, Z]
    normals = -uphill[:, *scene.coords.long().T].T
    if scene.grid.contracted:
        with torch.enable_grad():  # whoever asks may have switched gradients off
            centres = scene.centres.detach().requires_grad_()
            (normals,) = torch.autograd.grad(scene.grid.from_world(centres), centres, normals)
    length = normals.norm(dim=1, keepdim=True)
    return torch.where(length > 1e-5 * length.max(), normals / length.clamp_min(1e-12), torch.zeros_like(normals))


def soft_places(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Where key points of a score map are: finer than its cells at maxima, as in ALIKED (Zhao et al. 2023).

    Args:
        scores: [h, w], not negative.

    Returns:
        [h, w, 2] places (x, y) in cells, the top left one's centre at (0.5, 0.5): at a maximum of 3 x 3 cells their
        mean place, weighted by the fourth power of the score; else the cell's centre. Differentiable in the scores.
        And [h, w] bool, the maxima.
    """
    peaks = max_pool2d(scores[None], 3, 1, 1)[0] == scores
    weights = unfold(scores[None, None], 3, padding=1)[0].clamp_min(1e-6) ** 4  # [9, h w]
    step = torch.arange(-1.0, 2.0, device=scores.device).to(scores.dtype)
    moved = (weights / weights.sum(0)).T @ torch.cartesian_prod(step, step).flip(1)
    rows, columns = (torch.arange(n, device=scores.device) + 0.5 for n in scores.shape)
    centres = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    return centres + moved.reshape(centres.shape) * peaks[..., None], peaks


def sample_map(features: Tensor, xy: Tensor, size: tuple[int, int]) -> Tensor:
    """[K, D] features [D, h, w] at image points, bilinearly; the outermost cells reach on; differentiable.

    Args:
        features: [D, h, w], cells that cover the whole image.
        xy: [K, 2] pixels, pixel centres at +0.5.
        size: width and height of the image.
    """
    grid = 2 * xy / xy.new_tensor(size) - 1  # the image covers [-1, 1]
    return grid_sample(features[None], grid[None, None], padding_mode="border", align_corners=False)[0, :, 0].T
