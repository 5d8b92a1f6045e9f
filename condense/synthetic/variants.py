"""Variants of the built-in captures, to search a scene repository with: the same scene again, and a near-duplicate.

`again` is the same object or room from other cameras, under another light, before another backdrop, and in a world
frame of its own. `twin` is another scene that looks nearly the same, captured as differently: of an object, the same
materials on a slightly other shape of its class; of a room, one object moved or replaced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from scipy.spatial import cKDTree

from condense.cameras import Cameras
from condense.paths import write_atomically
from condense.synthetic import furniture, vessels
from condense.synthetic import generate as gen
from condense.synthetic import primitives as solid
from condense.synthetic.captions import bare, object_captions, tidy
from condense.synthetic.render import Light, Part, render, seen_points
from condense.synthetic.rooms import ROOM_LABELS, Room, furnish, inside, room_captions
from condense.synthetic.setting import around, random_backdrop, random_light
from condense.synthetic.things import PARTS, Dice, Thing

VARIANTS = ("again", "twin")
DRAWS = 16  # shapes that a twin is chosen from
APART = 0.08  # least distance between a shape and its twin's (see `apart`), as a share of their size
AWAY = 0.6  # metres that something is moved in a room, at least
# Parts and cameras in the base's frame, how they are rendered, what the meta has otherwise, and the dice to go on with.
Made = tuple[list[Part], Cameras, gen.Pixels, dict[str, Any], Dice]


def write_variant(path: Path, name: str, meta: dict[str, Any], variant: str) -> Path:
    """Writes a variant of a built-in capture, the same to the byte every time (on one kind of machine).

    Its meta.json is the base's with these on top: "variant"; "base", its name; "differs", what is not as in the base,
    in words ("" for `again`); and "T_variant_from_original" [4, 4], rigid, which carries the base's world to its own.

    Args:
        path: the .zip to write.
        name: of the base; ends in its instance number.
        meta: of the base.
        variant: one of VARIANTS.

    Raises:
        ValueError: the base is not built in, or there is no such variant.
    """
    if "seed" not in meta:
        raise ValueError(f"{name} is not a built-in capture (its meta has no seed): it has no variants")
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}, not one of {VARIANTS}")
    instance, twin = int(name.rsplit("_", 1)[1]), variant == "twin"
    parts, cameras, how, changes, dice = (_room if meta["kind"] == "room" else _object)(meta, instance, twin)
    T = solid.rotation((0, 0, 1), dice.u(0, 360))
    T[:3, 3] = dice.rng.uniform(-0.1, 0.1, 3) * (meta["kind"] == "object")
    about = {"variant": variant, "base": name, "differs": "", "T_variant_from_original": T.tolist()}
    _write(path, dice, [carried(part, T) for part in parts], _moved(cameras, T), {**meta, **about, **changes}, how)
    return path


def carried(part: Part, T: np.ndarray) -> Part:
    """The part moved by a rigid T [4, 4], its texture with it."""
    lookup = part.T_object_from_world @ np.linalg.inv(T)
    return dataclasses.replace(part, mesh=part.mesh.copy().apply_transform(T), T_object_from_world=lookup)


def _moved(cameras: Cameras, T: np.ndarray) -> Cameras:
    poses = T @ cameras.T_world_from_camera.double().numpy()
    return Cameras(cameras.K, cameras.T_world_from_camera.new_tensor(poses), cameras.sizes)


def other_light(dice: Dice) -> Light:
    """A lamp that is clearly warm or cold, and casts deeper shadows than those of the captures."""
    light, warm = random_light(dice), dice.pick(-1, 1) * dice.u(0.08, 0.18)
    return dataclasses.replace(light, ambient=dice.u(0.35, 0.5), colour=(1 + warm, 1.0, 1 - warm))


def _write(path: Path, dice: Dice, parts: list[Part], cameras: Cameras, meta: dict[str, Any], how: gen.Pixels) -> None:
    """As `generate._write`, under another light."""
    rendering = render(parts, cameras, other_light(dice), random_backdrop(dice), how.supersample)
    cloud = seen_points(parts, cameras, gen.POINTS, dice.whole(0, 2**31))
    files = {"transforms.json": gen._json(gen.transforms(cameras)), "meta.json": gen._json(meta)}
    files["points.ply"] = gen.point_cloud(cloud, how.grain)
    for view in range(len(cameras)):
        files |= gen._view_files(rendering, view, how)
    write_atomically(path, lambda temporary: gen.write_zip(temporary, files))


def _object(meta: dict[str, Any], instance: int, twin: bool) -> Made:
    makers = (*gen.SEEN, *gen.HELD_OUT)
    kind = [maker.__name__ for maker in makers].index(meta["class"])
    dice = Dice(meta["seed"], 1, kind, instance)  # as `write_object` draws it
    thing, yaw = makers[kind](dice), dice.u(0, 360)
    dice = Dice(meta["seed"], 3, kind, instance, int(twin))
    changes: dict[str, Any] = {}
    if twin:
        thing, differs = twin_of(thing, [makers[kind](dice) for _ in range(DRAWS)])
        captions, heldout = object_captions(dice, thing)
        present = [part for part in PARTS if part in thing.phrases]
        changes = {"differs": differs, "captions": captions, "captions_heldout": heldout}
        changes["parts"] = {PARTS.index(part) + 1: part for part in present}
        changes["attributes"] = {**meta["attributes"], "adjectives": thing.adjectives, "phrases": thing.phrases}
        changes["attributes"]["materials"] = {part: thing.material(part).words for part in present}
    parts = thing.placed(thing.unit_frame(yaw))
    return parts, around(dice, parts, views=16, size=64), gen.OBJECT_PIXELS, changes, dice


def twin_of(thing: Thing, others: Sequence[Thing]) -> tuple[Thing, str]:
    """The one of the others whose shape is nearest, though at least APART away, in the materials of `thing`.

    Returns:
        The twin, and what is other about it, in words.
    """
    distance = np.array([apart(thing, other) for other in others])
    other = others[int(np.where(distance >= APART, distance, 9 - distance).argmin())]
    first = thing.pieces[0].material
    known = {piece.name: thing.material(piece.name) for piece in thing.pieces}
    pieces = [dataclasses.replace(piece, material=known.get(piece.name, first)) for piece in other.pieces]
    twin = Thing(thing.kind, other.adjectives, pieces, other.phrases)
    words = []
    for part in dict.fromkeys((*thing.phrases, *twin.phrases)):
        old, new = (bare(one, part) if part in one.phrases else "" for one in (thing, twin))
        if old != new:
            words.append(f"{new} instead of {old}" if old and new else f"has {new}" if new else f"lacks {old}")
    return twin, "; ".join(words) or "other proportions"


def apart(thing: Thing, other: Thing) -> float:
    """How far two shapes of size 1 are apart: a twentieth of the one or the other is at least so far from the other."""
    clouds = [_surface(thing), _surface(other)]
    near = [cKDTree(b).query(a)[0] for a, b in (clouds, clouds[::-1])]
    return float(max(np.percentile(distance, 95) for distance in near))


def _surface(thing: Thing, points: int = 1500) -> np.ndarray:
    """Points [points, 3] on a thing in its unit frame."""
    mesh = solid.joined([piece.mesh for piece in thing.pieces]).apply_transform(thing.unit_frame())
    return np.asarray(trimesh.sample.sample_surface(mesh, points, seed=0)[0])


def _room(meta: dict[str, Any], instance: int, twin: bool) -> Made:
    room = furnish(Dice(meta["seed"], 2, instance))  # as `write_room` draws it
    dice = Dice(meta["seed"], 4, instance, int(twin))
    changes: dict[str, Any] = {}
    if twin:
        ways = (move_something, replace_something)[:: 1 if dice.chance(0.5) else -1]
        changes["differs"] = ways[0](dice, room) or ways[1](dice, room)
        changes["captions"], changes["captions_heldout"] = room_captions(dice, room)
        changes["attributes"] = {"instances": room.instances, "size": room.size}
    return room.parts, inside(dice, room, views=24, size=96), gen.ROOM_PIXELS, changes, dice


def _movable(dice: Dice, room: Room) -> list[tuple[int, tuple[float, float, float, float]]]:
    """Instance ids and boxes of what stands on the floor, in random order; tables stay, for things stand on them."""
    kinds = {int(item["id"]): str(item["class"]) for item in room.instances}
    lowest = {i: min(part.mesh.bounds[0, 2] for part in room.parts if part.instance == i) for i in kinds}
    # Put in this order, so that places and instances pair up; what stands on a table takes no place on the floor.
    standing = [i for i, kind in kinds.items() if ROOM_LABELS.index(kind) >= 6 and lowest[i] < 0.01]
    things = list(zip(standing, room.taken, strict=True))
    order = [things[int(i)] for i in dice.rng.permutation(len(things))]
    return [thing for thing in order if kinds[thing[0]] != "table"]


def _name(room: Room, instance: int) -> str:
    """ "red chair"."""
    return next(f"{item['colour']} {item['class']}" for item in room.instances if item["id"] == instance)


def move_something(dice: Dice, room: Room) -> str:
    """Moves one object of a room by at least AWAY, turned by a multiple of 90 degrees; says what, "" if nothing can."""
    for instance, box in _movable(dice, room):
        room.taken.remove(box)
        for _ in range(100):
            x, y = (dice.u(-0.45, 0.45) * side for side in room.size[:2])
            turn = dice.pick(0, 90, 180, 270)
            half_x, half_y = box[2:] if turn % 180 == 0 else box[:1:-1]
            if np.hypot(x - box[0], y - box[1]) >= AWAY and room.free(x, y, half_x, half_y):
                T = solid.rotation((0, 0, 1), turn, (box[0], box[1], 0))
                T[:2, 3] += (x - box[0], y - box[1])
                room.parts = [carried(part, T) if part.instance == instance else part for part in room.parts]
                room.taken.append((x, y, half_x, half_y))
                return f"the {_name(room, instance)} stands elsewhere"
        room.taken.append(box)
    return ""


def replace_something(dice: Dice, room: Room) -> str:
    """Puts an object of another class in the place of one of a room; says which, "" if none fits."""
    makers = (furniture.chair, furniture.lamp, furniture.shelf, vessels.plant)
    for instance, box in _movable(dice, room):
        old, count = _name(room, instance), len(room.parts)
        room.taken.remove(box)
        for _ in range(12):
            thing = dice.pick(*makers)(dice)
            if thing.kind != old.split()[-1] and room.put(thing, box[0], box[1], dice.pick(0.0, 90.0)):
                new = _name(room, room.parts[count].instance)
                room.parts = [part for part in room.parts if part.instance != instance]
                room.instances = [item for item in room.instances if item["id"] != instance]
                return tidy(f"a {new} stands where the {old} stood")
        room.taken.append(box)
    return ""
