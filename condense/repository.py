"""Condensed scenes in a folder, searched exactly and in memory: which scene does this image show, which fits a text?"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from condense import repositoryfiles as files
from condense.colour import SHADES, with_colour
from condense.keypoints import KeyPoints
from condense.language import Bank, TextMap, bank, rank_scenes
from condense.ranking import UNCALIBRATED, coarse_similarity, pool
from condense.repositoryfiles import Index, Pack, Place
from condense.scenequeries import SceneQueries
from condense.text import SentenceEncoder

PACK = 1024  # scenes of one file, where many are saved at once
KINDS = ("image", "photograph", "scene")  # of queries whose scores are calibrated


@dataclass(frozen=True)
class Entry:
    """A scene in memory; `file` is its pack on disk, where there is one, and `thumbnail` a PNG."""

    pack: Pack
    row: int
    meta: dict[str, Any]
    thumbnail: bytes | Path | None = None
    file: str | None = None


@dataclass
class SceneRepository(SceneQueries):
    """Condensed scenes by name.

    Args:
        model: fingerprint of the network whose descriptors it holds (`repositoryfiles.fingerprint`).
        dim: length of a descriptor.
        parts: pooled vectors a scene; more find better and take longer.
        folder: set by `open`: what changes is written there at once.
    """

    model: str
    dim: int = 64
    parts: int = 1
    calibration: dict[str, list[float]] = field(default_factory=dict)  # by kind of query
    folder: Path | None = None
    _entries: dict[str, Entry] = field(default_factory=dict, repr=False)
    _pooled: Tensor | None = field(default=None, repr=False)  # [S, P, D], made when first needed
    _banks: dict[int, Bank] = field(default_factory=dict, repr=False)  # by number of centres; for texts, likewise

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def names(self) -> list[str]:
        """Of all scenes, in the order they came."""
        return list(self._entries)

    def add(
        self, name: str, keypoints: KeyPoints, meta: dict[str, Any] | None = None, thumbnail: ArrayLike | None = None
    ) -> None:
        """Adds a scene; on an opened repository it is on disk when this returns.

        Args:
            name: any text that no other scene has.
            keypoints: of the scene, at least one.
            meta: JSON values to keep with it.
            thumbnail: [H, W, 3] uint8.

        Raises:
            ValueError: the name is taken, there are no key points, or their descriptors do not fit.
            TypeError: `meta` is not JSON.
        """
        if name in self._entries:
            raise ValueError(f"the repository has a scene {name!r} already: remove it first, or choose another name")
        if not len(keypoints):
            raise ValueError(f"scene {name!r} has no key points: there is nothing to find it by")
        descriptors = normalize(self._checked(keypoints.descriptors, f"scene {name!r}"), dim=1)
        meta = json.loads(json.dumps(meta or {}))
        pack = Pack.of(
            dataclasses.replace(keypoints, descriptors=descriptors), pool(descriptors, keypoints.scores, self.parts)
        )
        entry = Entry(pack, 0, meta, None if thumbnail is None else files.png(thumbnail))
        if self.folder is not None:
            picture = files.kept(self.folder, entry.thumbnail)
            entry = dataclasses.replace(entry, file=files.write_pack(self.folder, pack), thumbnail=picture)
            self._write(self.folder, {**self._entries, name: entry})
        self._entries[name] = entry
        self._forget()

    def remove(self, name: str) -> None:
        """Takes a scene out, and off the disk.

        Raises:
            KeyError: there is none of that name.
        """
        self._entry(name)
        self._change({other: entry for other, entry in self._entries.items() if other != name})
        if self.folder is not None:
            files.delete(files.leftovers(self.folder))

    def scene(self, name: str) -> KeyPoints:
        """The key points of a scene, as precise as they are kept. KeyError: no scene has that name."""
        entry = self._entry(name)
        return entry.pack.scene(entry.row)

    def meta(self, name: str) -> dict[str, Any]:
        """What was said of a scene when it was added."""
        return self._entry(name).meta

    def thumbnail(self, name: str) -> NDArray[np.uint8] | None:
        """[H, W, 3] uint8, or None where the scene came without one."""
        picture = self._entry(name).thumbnail
        return None if picture is None else np.asarray(Image.open(io.BytesIO(files.content(picture))).convert("RGB"))

    def query_vector(self, vector: Tensor, top: int = 10, leave_out: Collection[str] = ()) -> list[tuple[str, float]]:
        """The scenes with pooled vectors nearest to `vector` [D], a sentence's for one, and their cosines.

        Of several vectors [P, D], such as `pool` makes of a query's key points, the mean cosine counts. Scenes whose
        names are in `leave_out` are no answers.
        """
        vector = normalize(self._checked(torch.atleast_2d(vector), "the vector"), dim=1)
        if not self._entries:
            return []
        best, order = coarse_similarity(vector, self._pools()).topk(min(top + len(leave_out), len(self)))
        names = self.names
        near = [(names[place], value) for place, value in zip(order.tolist(), best.tolist(), strict=True)]
        return [(name, value) for name, value in near if name not in leave_out][:top]

    def query_text(
        self,
        text: str,
        encoder: SentenceEncoder,
        text_map: TextMap,
        top: int = 10,
        centres: int = 24,
        least: float = -np.inf,
    ) -> list[tuple[str, float]]:
        """The scenes whose key points fit a text, best first: names and how far each stands out, in deviations.

        Descriptors and colours are asked (`with_colour`).

        The first query after a change condenses every scene for texts, some milliseconds each.

        Args:
            text: such as "a red armchair with thin legs".
            encoder: of sentences, the one that the map was trained with.
            text_map: between its vectors and descriptors of the repository's model.
            top: answers at most.
            centres: as in the map's training.
            least: scenes below it are no answer (`language.margin_threshold` finds it), so that there may be none.

        Raises:
            ValueError: the text is empty or blank, or the map is of other descriptors.
        """
        if text_map.reference.shape[1] != self.dim + SHADES:
            length = text_map.reference.shape[1] - SHADES
            raise ValueError(f"the text map is of coloured features of length {length}, not {self.dim}")
        if self._entries and centres not in self._banks:
            scenes = map(self.scene, self.names)
            self._banks[centres] = bank([with_colour(each.descriptors, each.colours) for each in scenes], centres)
        return rank_scenes(text, encoder, text_map, self.names, self._banks.get(centres), least)[:top]

    def set_calibration(self, kind: str, weights: list[float]) -> None:
        """Keeps what `calibrate` found for "image", "photograph" or "scene" queries.

        Raises:
            ValueError: another kind, or not 5 numbers.
        """
        if kind not in KINDS or len(weights) != len(UNCALIBRATED):
            raise ValueError(f"a calibration is of one of {KINDS} queries and has 5 numbers: {kind!r}, {weights}")
        self.calibration[kind] = weights
        self._change(self._entries)

    def save(self, folder: Path) -> None:
        """Writes everything to `folder`, packed; a repository that is there already is replaced.

        Raises:
            FileExistsError: the folder holds something else.
        """
        files.refuse_foreign(folder)
        names, placed = self.names, {}
        for start in range(0, len(names), PACK):
            group = [self._entries[name] for name in names[start : start + PACK]]
            file = files.write_pack(folder, files.join([(entry.pack, entry.row) for entry in group]))
            for row, (name, entry) in enumerate(zip(names[start:], group, strict=False)):
                placed[name] = dataclasses.replace(
                    entry, row=row, file=file, thumbnail=files.kept(folder, entry.thumbnail)
                )
        self._write(folder, placed)
        files.delete(files.leftovers(folder))
        if folder == self.folder:
            self._entries = self.load(folder)._entries

    @classmethod
    def load(cls, folder: Path, model: str | None = None) -> SceneRepository:
        """Reads what `save` wrote; later changes stay in memory. Key points are mapped: read when first needed.

        Args:
            folder: of the repository.
            model: fingerprint of the network that will ask; None asks no questions.

        Raises:
            FileNotFoundError: the folder is no repository, or lacks a file.
            ValueError: a file is damaged, or another model built it.
        """
        index = files.read_index(folder)
        if model is not None and model != index.model:
            raise ValueError(
                f"{folder} was built by model {index.model}, not by {model}: descriptors of two models do not compare; "
                "build it again"
            )
        packs = {f: files.read_pack(folder, f, index.dim) for f in dict.fromkeys(p.pack for p in index.scenes.values())}
        entries = {}
        for name, place in index.scenes.items():
            if not 0 <= place.row < len(packs[place.pack].starts) - 1:
                raise ValueError(f"{folder / files.INDEX} is damaged: {place.pack} has no scene {place.row}")
            picture = None if place.thumbnail is None else folder / files.FILES / place.thumbnail
            entries[name] = Entry(packs[place.pack], place.row, place.meta, picture, place.pack)
        return cls(index.model, index.dim, index.parts, index.calibration, _entries=entries)

    @classmethod
    def open(cls, folder: Path, model: str, dim: int = 64, parts: int = 1) -> SceneRepository:
        """As `load`, but what changes is written to the folder at once; makes a repository where there is none.

        Many scenes are added faster in memory and saved once: each write here replaces the whole index.

        Raises:
            FileExistsError: the folder holds something else.
            FileNotFoundError, ValueError: of `load`.
        """
        if (folder / files.INDEX).is_file():
            repository = cls.load(folder, model)
        else:
            files.refuse_foreign(folder)
            repository = cls(model, dim, parts)
            repository._write(folder, {})
        repository.folder = folder
        return repository

    def _shortlist(self, query: Tensor, scores: Tensor, count: int, leave_out: Collection[str]) -> list[str]:
        """Names of the scenes whose pooled vectors are nearest to those of a query."""
        names = self.names
        if not names:
            return []
        similarity = coarse_similarity(pool(query, scores, self.parts), self._pools())
        if leave_out:
            similarity[[place for place, name in enumerate(names) if name in set(leave_out)]] = -torch.inf
            count = min(count, int((similarity > -torch.inf).sum()))
        return [names[place] for place in similarity.topk(min(count, len(names))).indices.tolist()]

    def _descriptors(self, names: Sequence[str]) -> list[Tensor]:
        entries = [self._entries[name] for name in names]
        return [entry.pack.descriptors[entry.pack.rows(entry.row)] for entry in entries]

    def _pools(self) -> Tensor:
        if self._pooled is None:
            self._pooled = torch.stack([entry.pack.pooled[entry.row] for entry in self._entries.values()])
        return self._pooled

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise KeyError(f"the repository has no scene {name!r}, but {len(self)} others")
        return self._entries[name]

    def _change(self, entries: dict[str, Entry]) -> None:
        """Takes over `entries`: on disk first, so that a write that fails changes nothing."""
        if self.folder is not None:
            self._write(self.folder, entries)
        self._take_over(entries)

    def _take_over(self, entries: dict[str, Entry]) -> None:
        self._entries = entries
        self._forget()

    def _forget(self) -> None:
        """What was worked out of all scenes, and holds no longer."""
        self._pooled, self._banks = None, {}

    def _write(self, folder: Path, entries: dict[str, Entry]) -> None:
        """Replaces the index in `folder`, where the files of `entries` are already."""
        scenes = {}
        for name, entry in entries.items():
            picture = entry.thumbnail.name if isinstance(entry.thumbnail, Path) else None
            scenes[name] = Place(str(entry.file), entry.row, picture, entry.meta)
        files.write_index(folder, Index(self.model, self.dim, self.parts, self.calibration, scenes))
