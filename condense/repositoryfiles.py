"""The folder of a scene repository: `repository.json`, packs of condensed scenes, thumbnails.

A file is named after its own content, so a scene's name never becomes a path and no write changes a file that is in
use. The index is replaced last and in one move: whatever is killed on the way leaves the old repository whole and at
most some files that the index does not name (`leftovers`). One process writes at a time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from condense.keypoints import KeyPoints
from condense.paths import write_atomically

FORMAT = 1
INDEX, FILES = "repository.json", "files"
FILE_NAME = re.compile(r"[0-9a-f]{32}\.(safetensors|png)")


@dataclass(frozen=True)
class Pack:
    """Condensed scenes one after another, in the precision they are kept in: 39 kB for 256 key points of 64 numbers.

    Args:
        starts: [S + 1] int64, where each scene's key points start; the last is N.
        pooled: [S, P, D] float32, unit vectors that stand for each scene.
        positions: [N, 3] float32; normals: [N, 3] float16; scores: [N] float16.
        descriptors: [N, D] float16.
        colours: [N, 3] uint8.
    """

    starts: Tensor
    pooled: Tensor
    positions: Tensor
    normals: Tensor
    scores: Tensor
    descriptors: Tensor
    colours: Tensor

    @staticmethod
    def of(scene: KeyPoints, pooled: Tensor) -> Pack:
        """A pack of one scene; `pooled` is [P, D]."""
        colours = (scene.colours.clamp(0, 1) * 255).round().to(torch.uint8)
        normals, scores, descriptors = (v.half() for v in (scene.normals, scene.scores, scene.descriptors))
        starts = torch.tensor([0, len(scene)])
        return Pack(starts, pooled[None].float(), scene.positions.float(), normals, scores, descriptors, colours)

    def rows(self, scene: int) -> slice:
        """Where the key points of the scene with this number lie."""
        return slice(*self.starts[scene : scene + 2].tolist())

    def scene(self, scene: int) -> KeyPoints:
        """The key points of the scene with this number."""
        rows = self.rows(scene)
        positions, normals, scores, descriptors = (
            values[rows].float() for values in (self.positions, self.normals, self.scores, self.descriptors)
        )
        return KeyPoints(positions, normals, scores, descriptors, self.colours[rows].float() / 255)


def join(scenes: Sequence[tuple[Pack, int]]) -> Pack:
    """One pack of some scenes (pack, number in it) of others."""
    sizes = torch.tensor([0] + [int(pack.starts[row + 1] - pack.starts[row]) for pack, row in scenes])
    parts = {"pooled": torch.stack([pack.pooled[row] for pack, row in scenes]), "starts": sizes.cumsum(0)}
    for name in ("positions", "normals", "scores", "descriptors", "colours"):
        parts[name] = torch.cat([getattr(pack, name)[pack.rows(row)] for pack, row in scenes])
    return Pack(**parts)


@dataclass(frozen=True)
class Place:
    """Where a scene's parts are: its pack and its number in it, its thumbnail, and what else is known of it."""

    pack: str
    row: int
    thumbnail: str | None
    meta: dict[str, Any]


@dataclass(frozen=True)
class Index:
    """What `repository.json` holds. `model` is the fingerprint of the network that made the descriptors."""

    model: str
    dim: int
    parts: int
    calibration: dict[str, list[float]]
    scenes: dict[str, Place]


def fingerprint(model: nn.Module) -> str:
    """A name for a network's weights: two networks of one fingerprint give the same descriptors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def write_file(folder: Path, data: bytes, suffix: str) -> str:
    """Writes `data` under a name made from it, and returns that name."""
    name = hashlib.sha256(data).hexdigest()[:32] + suffix
    write_atomically(folder / FILES / name, lambda temporary: temporary.write_bytes(data))
    return name


def write_pack(folder: Path, pack: Pack) -> str:
    """Writes a pack and returns its file's name."""
    tensors = {field.name: getattr(pack, field.name).contiguous() for field in dataclasses.fields(pack)}
    return write_file(folder, to_bytes(tensors), ".safetensors")


def read_pack(folder: Path, name: str, dim: int) -> Pack:
    """Maps a pack into memory: a page is read when it is first looked at.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or no pack of descriptors of `dim` numbers.
    """
    path = folder / FILES / name
    remedy = "restore it, or call condense.repositoryfiles.repair(folder), which gives up the scenes it held"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {remedy}")
    try:
        pack = Pack(**load_file(path))
        scenes, points = len(pack.starts) - 1, int(pack.starts[-1])
        whole = all(len(v) == points for v in (pack.positions, pack.normals, pack.scores, pack.colours))
        whole &= pack.descriptors.shape == (points, dim) and pack.pooled.shape[::2] == (scenes, dim)
    except Exception as error:  # safetensors has its own kinds
        raise ValueError(f"{path} is damaged ({error}): {remedy}") from error
    if not whole:
        raise ValueError(f"{path} is no pack of scenes with descriptors of {dim} numbers: {remedy}")
    return pack


def write_index(folder: Path, index: Index) -> None:
    """Replaces `repository.json`."""
    text = json.dumps({"format": FORMAT, **dataclasses.asdict(index)}, ensure_ascii=False)
    write_atomically(folder / INDEX, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_index(folder: Path) -> Index:
    """Reads `repository.json`.

    Raises:
        FileNotFoundError: `folder` is not a scene repository.
        ValueError: the index is damaged, or of another format.
    """
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is not a scene repository: it has no {INDEX}. SceneRepository.save makes one"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.pop("format")
        values["scenes"] = {name: Place(**place) for name, place in values["scenes"].items()}
        index = Index(**values)
        files = {file for place in index.scenes.values() for file in (place.pack, place.thumbnail) if file is not None}
        wrong = [file for file in files if not FILE_NAME.fullmatch(file)]  # a path out of the folder, for one
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}): restore it, or build the repository again") from error
    if version != FORMAT or wrong:
        problem = f"names a file {wrong[0]!r}" if wrong else f"has format {version}"
        raise ValueError(f"{path} {problem}, which this version (format {FORMAT}) does not read: build it again")
    return index


def leftovers(folder: Path) -> list[Path]:
    """Files that no scene uses: what a killed `add` or `remove` leaves. They do no harm."""
    places = read_index(folder).scenes.values()
    used = {place.pack for place in places} | {place.thumbnail for place in places}
    temporary = [path for path in folder.glob(".tmp-*") if path.is_file()]
    return sorted([*temporary, *(path for path in (folder / FILES).glob("*") if path.name not in used)])


def damaged(folder: Path) -> dict[str, list[str]]:
    """{file: the scenes it holds} of every file that is missing or whose content is not what its name says."""
    files: dict[str, list[str]] = {}
    for name, place in read_index(folder).scenes.items():
        for file in (place.pack, place.thumbnail):
            if file is not None:
                files.setdefault(file, []).append(name)
    return {file: names for file, names in files.items() if not _whole(folder / FILES / file)}


def check(folder: Path) -> list[str]:
    """What is wrong with a repository, a line each; [] where all is well. Reads every byte.

    Raises:
        FileNotFoundError, ValueError: of `read_index`.
    """
    lines = [f"{FILES}/{file} is missing or damaged: {len(names)} scenes" for file, names in damaged(folder).items()]
    return [*lines, *(f"{path.relative_to(folder)} belongs to no scene" for path in leftovers(folder))]


def repair(folder: Path) -> list[str]:
    """Takes the scenes with damaged files out of the index, and returns their names; what is left loads again."""
    index, lost = read_index(folder), {name for names in damaged(folder).values() for name in names}
    write_index(folder, dataclasses.replace(index, scenes={n: p for n, p in index.scenes.items() if n not in lost}))
    return sorted(lost)


def _whole(path: Path) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest()[:32] == path.stem


def png(image: ArrayLike) -> bytes:
    """A thumbnail [H, W, 3] uint8 as a PNG; ValueError where it is none."""
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"a thumbnail is [H, W, 3] uint8, not {pixels.shape} {pixels.dtype}")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def content(picture: bytes | Path) -> bytes:
    """The bytes of a thumbnail, in memory or in a file."""
    return picture.read_bytes() if isinstance(picture, Path) else picture


def kept(folder: Path, picture: bytes | Path | None) -> Path | None:
    """Where in the folder a thumbnail lies; it is written there if need be."""
    if picture is None or (isinstance(picture, Path) and picture.parent == folder / FILES):
        return picture  # type: ignore[return-value]
    return folder / FILES / write_file(folder, content(picture), ".png")


def refuse_foreign(folder: Path) -> None:
    """FileExistsError where a folder holds something other than a repository."""
    if not (folder / INDEX).is_file() and folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} holds files but no {INDEX}: give a new folder, or an empty one")


def delete(paths: Sequence[Path]) -> None:
    """Removes files; one that is gone is no error."""
    for path in paths:
        path.unlink(missing_ok=True)
