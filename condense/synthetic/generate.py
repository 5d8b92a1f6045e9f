"""Writes the built-in captures: one .zip each, the same to the byte for the same seed (on one kind of machine).

A capture is nerfstudio's `transforms.json` (OpenGL axes) with images, masks and label maps, a labelled point cloud
and `meta.json`. See `condense.synthetic.render` for why renders of two kinds of processor may differ by a few pixels.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from condense.cameras import Cameras, opencv_from_opengl
from condense.parallel import parallel_map
from condense.paths import write_atomically
from condense.synthetic import furniture, vehicles, vessels
from condense.synthetic.captions import object_captions
from condense.synthetic.render import Part, Rendering, render, seen_points
from condense.synthetic.rooms import ROOM_LABELS, furnish, inside, room_captions
from condense.synthetic.setting import around, random_backdrop, random_light
from condense.synthetic.things import PARTS, Dice, Thing

Maker = Callable[[Dice], Thing]
SEEN: tuple[Maker, ...] = (
    *(furniture.chair, furniture.table, furniture.sofa, furniture.bed, furniture.lamp, furniture.shelf),
    *(vessels.plant, vessels.mug, vessels.bottle, vehicles.car, vehicles.aeroplane, vehicles.boat),
)
HELD_OUT: tuple[Maker, ...] = (furniture.bench, vehicles.truck, vessels.teapot, vehicles.helicopter)
POINTS = 2048


@dataclass(frozen=True)
class Pixels:
    """How a capture is rendered and stored."""

    supersample: int
    luma: int  # JPEG steps
    chroma: int
    grain: int  # points are rounded to 1 / grain


OBJECT_PIXELS = Pixels(supersample=3, luma=16, chroma=20, grain=256)
ROOM_PIXELS = Pixels(supersample=2, luma=20, chroma=24, grain=64)
OBJECT_SPLITS = ("train",) * 16 + ("val",) * 4 + ("test",) * 8
ROOM_SPLITS = ("train",) * 32 + ("val",) * 4 + ("test",) * 12


def generate(folder: Path, seed: int = 0, processes: int = 2) -> list[Path]:
    """Writes every built-in capture below `folder`: objects/<class>_<nnn>.zip and rooms/room_<nnn>.zip."""
    kinds, instances = range(len(SEEN) + len(HELD_OUT)), range(len(OBJECT_SPLITS))
    objects = [(folder / "objects", kind, instance, seed) for kind in kinds for instance in instances]
    rooms = [(folder / "rooms", instance, seed) for instance in range(len(ROOM_SPLITS))]
    made = parallel_map(write_object, objects, processes, "objects")
    return made + parallel_map(write_room, rooms, processes, "rooms")


def write_object(folder: Path, kind: int, instance: int, seed: int) -> Path:
    """Writes one object of class number `kind` (seen classes first); returns the path of its .zip."""
    dice = Dice(seed, 1, kind, instance)
    thing = (*SEEN, *HELD_OUT)[kind](dice)
    parts = thing.placed(thing.unit_frame(dice.u(0, 360)))
    cameras = around(dice, parts, views=16, size=64)
    captions, heldout = object_captions(dice, thing)
    present = [name for name in PARTS if name in {piece.name for piece in thing.pieces}]
    meta = {
        "kind": "object",
        "class": thing.kind,
        "split": OBJECT_SPLITS[instance],
        "heldout_class": kind >= len(SEEN),
        "parts": {PARTS.index(name) + 1: name for name in present},
        "captions": captions,
        "captions_heldout": heldout,
        "seed": seed,
        "attributes": {
            "colour": thing.pieces[0].material.colour,
            "pattern": thing.pieces[0].material.texture.pattern,
            "adjectives": thing.adjectives,
            "materials": {name: thing.material(name).words for name in present},
            "phrases": thing.phrases,
        },
    }
    return _write(folder / f"{thing.kind}_{instance:03d}.zip", dice, parts, cameras, meta, OBJECT_PIXELS)


def write_room(folder: Path, instance: int, seed: int) -> Path:
    """Writes one room; returns the path of its .zip."""
    dice = Dice(seed, 2, instance)
    room = furnish(dice)
    captions, heldout = room_captions(dice, room)
    cameras = inside(dice, room, views=24, size=96)
    meta = {
        "kind": "room",
        "class": room.kind,
        "split": ROOM_SPLITS[instance],
        "heldout_class": False,
        "parts": {label + 1: name for label, name in enumerate(ROOM_LABELS)},
        "captions": captions,
        "captions_heldout": heldout,
        "seed": seed,
        "attributes": {"instances": room.instances, "size": room.size},
    }
    return _write(folder / f"room_{instance:03d}.zip", dice, room.parts, cameras, meta, ROOM_PIXELS)


def _write(path: Path, dice: Dice, parts: list[Part], cameras: Cameras, meta: dict[str, Any], how: Pixels) -> Path:
    """Renders the parts and writes the capture."""
    light, backdrop = random_light(dice), random_backdrop(dice)
    rendering = render(parts, cameras, light, backdrop, how.supersample)
    cloud = seen_points(parts, cameras, POINTS, dice.whole(0, 2**31))
    files = {"transforms.json": _json(transforms(cameras)), "meta.json": _json(meta)}
    files["points.ply"] = point_cloud(cloud, how.grain)
    for view in range(len(cameras)):
        files |= _view_files(rendering, view, how)
    write_atomically(path, lambda temporary: write_zip(temporary, files))
    return path


def _view_files(rendering: Rendering, view: int, how: Pixels) -> dict[str, bytes]:
    """The image, soft mask and label map of one view."""
    labels = rendering.labels[view]
    both = labels[..., :2] if labels[..., 1].max() > 1 else labels[..., 0]
    return {
        f"images/{view:03d}.jpg": jpeg(rendering.images[view], how.luma, how.chroma),
        f"masks/{view:03d}.png": png(np.round(rendering.coverage[view] * 255).astype(np.uint8)),
        f"labels/{view:03d}.png": png(both),
    }


def jpeg(image: np.ndarray, luma: int, chroma: int) -> bytes:
    """uint8 [H, W, 3] as a JPEG in full colour resolution, with equal steps for all frequencies.

    At the same size its error is some 3 dB less than with the usual tables, which are made for the eye.
    """
    buffer = io.BytesIO()
    tables = [[luma] * 64, [chroma] * 64]
    Image.fromarray(image).save(buffer, "JPEG", optimize=True, subsampling=0, qtables=tables)
    return buffer.getvalue()


def png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W] (grey) or [H, W, 2] (grey and alpha) as a PNG without row filters: least for label maps."""
    height, width = pixels.shape[:2]
    rows = np.pad(pixels.reshape(height, -1), ((0, 0), (1, 0)))  # filter 0 before each row
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if pixels.ndim == 2 else 4, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def transforms(cameras: Cameras) -> dict[str, Any]:
    """nerfstudio's `transforms.json` of cameras that share their intrinsics; every fourth view is a test view."""
    K, (width, height) = cameras.K[0].double(), cameras.sizes[0].tolist()
    frames = []
    for view, T in enumerate(opencv_from_opengl(cameras.T_world_from_camera)):
        frames.append(
            {
                "file_path": f"images/{view:03d}.jpg",
                "mask_path": f"masks/{view:03d}.png",
                "labels_path": f"labels/{view:03d}.png",
                "split": "test" if view % 4 == 2 else "train",
                "transform_matrix": [[round(float(x), 7) for x in row] for row in T],
            }
        )
    named = {f"{part}_filenames": [f["file_path"] for f in frames if f["split"] == part] for part in ("train", "test")}
    intrinsics = {"fl_x": float(K[0, 0]), "fl_y": float(K[1, 1]), "cx": float(K[0, 2]), "cy": float(K[1, 2])}
    shared = {"camera_model": "PINHOLE", **intrinsics, "w": width, "h": height, "ply_file_path": "points.ply"}
    return {**shared, **named, "frames": frames}


def point_cloud(cloud: tuple[np.ndarray, ...], grain: int) -> bytes:
    """A binary PLY of labelled points, in the order of a space-filling curve within each part.

    Positions are rounded to 1 / grain, normals to 1/8, colours to 1/51: enough for voxels, and deflates to a fifth.

    Args:
        cloud: what `seen_points` returns.
        grain: see above.
    """
    points, rgb, normals, labels, instances = cloud
    kinds = [(axis, "<f4") for axis in ("x", "y", "z", "nx", "ny", "nz")]
    kinds += [(name, "u1") for name in ("red", "green", "blue", "part", "instance")]
    table = np.zeros(len(points), kinds)
    for i, (at, towards, colour) in enumerate(zip("xyz", ("nx", "ny", "nz"), ("red", "green", "blue"), strict=True)):
        table[at] = np.round(points[:, i] * grain) / grain
        table[towards] = np.round(normals[:, i] * 8) / 8 + 0.0  # no minus zero
        table[colour] = np.round(rgb[:, i] * 51) * 5
    table["part"], table["instance"] = labels, instances
    cell = ((points - points.min(0)) / np.ptp(points, axis=0).max() * 63).astype(np.int64)
    curve = sum(((cell[:, axis] >> bit) & 1) << (3 * bit + axis) for axis in range(3) for bit in range(6))
    table = table[np.lexsort((curve, instances, labels))]
    names = {"<f4": "float", "u1": "uchar"}
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    header += [f"property {names[kind]} {name}" for name, kind in kinds]
    return ("\n".join([*header, "end_header"]) + "\n").encode() + table.tobytes()


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    """A .zip of the files, deflated, with fixed times and rights so that it depends on nothing else."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED, compresslevel=9)


def _json(values: dict[str, Any]) -> bytes:
    """Compact JSON."""
    return json.dumps(values, separators=(",", ":")).encode()
