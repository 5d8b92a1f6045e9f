"""The vertices of a PLY file as a table, with every property it has."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

KINDS = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">"}
LONGEST_HEADER = 2**16  # bytes


def read_vertices(path: Path) -> np.ndarray:
    """The structured array [P] of a binary PLY file's vertices; faces are not read.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not binary PLY with vertices first, or it ends early.
    """
    with path.open("rb") as file:
        return vertices(file)


def vertices(file: BinaryIO) -> np.ndarray:
    """As `read_vertices`, of an open file."""
    head, end, _ = file.read(LONGEST_HEADER).partition(b"end_header\n")
    if not head.startswith(b"ply") or not end:
        raise ValueError("it has no PLY header")
    count, table = _layout(head.decode("latin-1").split("\n"))
    file.seek(len(head) + len(end))
    data = file.read(count * table.itemsize)
    if len(data) < count * table.itemsize:
        raise ValueError(f"it ends after {len(data) // table.itemsize} of {count} vertices")
    return np.frombuffer(data, dtype=table)


def _layout(header: list[str]) -> tuple[int, np.dtype]:
    """How many vertices there are, and the table's type."""
    order, count, fields = None, 0, []
    element = ""
    for words in (line.split() for line in header):
        if words[:1] == ["format"]:
            order = ORDERS.get(words[1])
        elif words[:1] == ["element"]:
            if not element and words[1] != "vertex":
                raise ValueError(f"its first element is {words[1]!r}, not 'vertex'")
            element = words[1]
            count = int(words[2]) if element == "vertex" else count
        elif words[:1] == ["property"] and element == "vertex":
            if words[1] not in KINDS:
                raise ValueError(f"its vertices have a property of type {words[1]!r}")
            fields.append((words[2], words[1]))
    if order is None:
        raise ValueError("it is not binary PLY")
    if not fields:
        raise ValueError("it has no vertices")
    return count, np.dtype([(name, order + KINDS[kind]) for name, kind in fields])
