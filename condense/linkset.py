"""Any number of linked captures, of which a bounded part is in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file

from condense.links import Links, load_links

HELD = 4 * 2**30  # bytes of files whose captures are in memory at once


def voxels_of(captures: Sequence[Links], place: int) -> int:
    """Voxels of a capture, which need not be read for it."""
    return captures.voxels(place) if isinstance(captures, LinkedCaptures) else len(captures[place].scene)


class LinkedCaptures(Sequence[Links]):
    """The links of captures, read when they are asked for; no file stays open.

    Args:
        paths: files of `save_links`; only training views are read.
        lifted: a folder of other targets, `<place among the paths>.safetensors` each with [N, D] "lifted"; None for
            the teacher's, as linked.
        held: bytes; of the captures asked for last, as many are kept in memory as have files of so many together.
    """

    def __init__(self, paths: Sequence[Path], lifted: Path | None = None, held: int = HELD) -> None:
        self.paths, self.lifted, self.held = list(paths), lifted, held
        self._kept: dict[int, Links] = {}  # by place; asked for last comes last
        self._bytes = 0
        self._sizes: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: Any) -> Any:
        """The links of one capture, by its place among the paths; of a slice, a list."""
        places = range(len(self))[place]
        return [self._ask(each) for each in places] if isinstance(places, range) else self._ask(places)

    def voxels(self, place: int) -> int:
        """Voxels of a capture, from its file's header."""
        if place not in self._sizes:
            with safe_open(self.paths[place], "pt") as file:
                self._sizes[place] = int(file.get_slice("seen").get_shape()[0])
        return self._sizes[place]

    def _ask(self, place: int) -> Links:
        links = self._kept.pop(place, None)
        if links is None:
            links = self._read(place)
            self._bytes += self._bytes_of(place)
        self._kept[place] = links
        while self._bytes > self.held and len(self._kept) > 1:
            oldest = next(iter(self._kept))
            del self._kept[oldest]
            self._bytes -= self._bytes_of(oldest)
        return links

    def _bytes_of(self, place: int) -> int:
        return self.paths[place].stat().st_size

    def _read(self, place: int) -> Links:
        links = load_links(self.paths[place])
        if self.lifted is None:
            return links
        return dataclasses.replace(links, lifted=load_file(self.lifted / f"{place}.safetensors")["lifted"])
