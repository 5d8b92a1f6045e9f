"""Rooms furnished with the parametric objects, in metres: semantic labels, instances, relations, cameras."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from condense.cameras import Cameras
from condense.synthetic import furniture, vessels
from condense.synthetic import primitives as solid
from condense.synthetic import texture as tx
from condense.synthetic.captions import OTHER_WORDS, counted, listed, tidy
from condense.synthetic.render import Part
from condense.synthetic.setting import pinhole
from condense.synthetic.things import Dice, Material, Paints, Thing

# Semantic classes; an id is the place here, counted from 1.
ROOM_LABELS = (
    *("floor", "wall", "window", "door", "picture", "rug", "table", "chair", "sofa", "bed", "lamp", "shelf"),
    *("plant", "mug", "bottle"),
)


@dataclass
class Room:
    """A furnished room: the floor is z = 0, centred at the origin; walls stand at -X and -Y sides and their like."""

    kind: str
    size: tuple[float, float, float]
    parts: list[Part] = field(default_factory=list)
    instances: list[dict[str, str | int]] = field(default_factory=list)
    relations: list[tuple[str, str]] = field(default_factory=list)
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def note(self, name: str, material: Material) -> int:
        """A new instance id, 1 up, for something of class `name`."""
        number = len(self.instances) + 1
        self.instances.append({"id": number, "class": name, "material": material.words, "colour": material.colour})
        return number

    def surface(self, name: str, mesh: solid.Trimesh, material: Material) -> None:
        """Adds a wall, rug or the like; its texture is looked up at half scale, for rooms are large."""
        lookup = np.diag([0.5, 0.5, 0.5, 1.0])
        number = self.note(name, material)
        label = ROOM_LABELS.index(name) + 1
        self.parts.append(Part(mesh, material.texture, label, number, 0.0, lookup))

    def free(self, x: float, y: float, half_x: float, half_y: float) -> bool:
        """Whether a rectangle lies inside the room and touches nothing there."""
        inside = abs(x) + half_x < self.size[0] / 2 - 0.04 and abs(y) + half_y < self.size[1] / 2 - 0.04
        return inside and not any(
            abs(x - a) < half_x + c + 0.04 and abs(y - b) < half_y + d + 0.04 for a, b, c, d in self.taken
        )

    def put(self, thing: Thing, x: float, y: float, yaw: float, z: float = 0.0, scale: float = 1.0) -> bool:
        """Sets a thing with its middle at (x, y), its front turned to `yaw` degrees, if there is room for it."""
        low, high = thing.bounds * scale
        c, s = abs(np.cos(np.radians(yaw))), abs(np.sin(np.radians(yaw)))
        half = (high - low)[:2] / 2
        half_x, half_y = c * half[0] + s * half[1], s * half[0] + c * half[1]
        if z == 0.0:
            if not self.free(x, y, half_x, half_y):
                return False
            self.taken.append((x, y, half_x, half_y))
        T = solid.rotation((0, 0, 1), yaw)
        middle = T[:3, :3] @ [*((low + high)[:2] / 2), 0]
        T[:3, :3] *= scale
        T[:3, 3] = [x - middle[0], y - middle[1], z - low[2]]
        number = self.note(thing.kind, thing.pieces[0].material)
        self.parts += thing.placed(T, ROOM_LABELS.index(thing.kind) + 1, number)
        return True

    def against_wall(self, dice: Dice, thing: Thing, scale: float = 1.0) -> None:
        """Sets a thing with its back to one of the two walls, at a free place if one is found."""
        half = (thing.bounds[1] - thing.bounds[0])[:2] / 2 * scale
        for _ in range(20):
            side = dice.pick(0, 1)
            reach = self.size[1 - side] / 2 - half[1] - 0.06
            if reach < 0:
                continue
            along, gap = dice.u(-reach, reach), -self.size[side] / 2 + half[0] + 0.06
            x, y = (gap, along) if side == 0 else (along, gap)
            if self.put(thing, x, y, yaw=90.0 * side, scale=scale):
                return

    def anywhere(self, dice: Dice, thing: Thing) -> None:
        """Sets a thing at a free place of the floor if one is found."""
        for _ in range(30):
            x, y = (dice.u(-0.45, 0.45) * s for s in self.size[:2])
            if self.put(thing, x, y, dice.u(0, 360)):
                return


def furnish(dice: Dice) -> Room:
    """A living room, bedroom, dining room or study."""
    kind = dice.pick("living room", "bedroom", "dining room", "study")
    size = (dice.u(3.0, 3.9), dice.u(3.0, 3.9), dice.u(2.1, 2.5))
    room = Room(kind, size)
    _shell(dice, room)
    if kind == "living room":
        room.against_wall(dice, furniture.sofa(dice))
        _with_table(dice, room, 0, low=True)
    elif kind == "bedroom":
        room.against_wall(dice, furniture.bed(dice))
    elif kind == "dining room":
        _with_table(dice, room, dice.whole(2, 4), low=False)
    else:
        _with_table(dice, room, 1, low=False)
        room.against_wall(dice, furniture.shelf(dice))
    extras: list[Callable[[Dice], Thing]] = [furniture.shelf, furniture.lamp, vessels.plant, furniture.chair]
    for make in [extras[int(i)] for i in dice.rng.permutation(len(extras))][: dice.whole(2, 4)]:
        thing = make(dice)
        tall = thing.bounds[1, 2] - thing.bounds[0, 2]
        if thing.kind in ("shelf", "lamp") or dice.chance(0.3):
            room.against_wall(dice, thing, 1.2 if thing.kind == "lamp" and tall < 0.9 else 1.0)
        else:
            room.anywhere(dice, thing)
    return room


def _shell(dice: Dice, room: Room) -> None:
    """Floor, two walls, and what hangs on or lies by them."""
    length, width, height = room.size
    paints = Paints(dice)
    room.surface("floor", solid.box((length, width, 0.06), (0, 0, -0.03)), paints.new(0.6))
    paper = paints.new(0.3)
    room.surface("wall", solid.box((0.06, width, height), (-length / 2 - 0.03, 0, height / 2)), paper)
    room.surface("wall", solid.box((length + 0.06, 0.06, height), (-0.03, -width / 2 - 0.03, height / 2)), paper)
    hung = ["window", dice.pick("door", "picture", "window")]
    for side, name in enumerate(hung if dice.chance(0.5) else hung[::-1]):
        span = width if side == 0 else length
        wide, tall = {"window": (1.0, 0.9), "door": (0.8, 1.85), "picture": (0.7, 0.5)}[name]
        wide, tall = wide * dice.u(0.9, 1.2), min(tall * dice.u(0.9, 1.1), height - 0.15)
        middle = tall / 2 if name == "door" else dice.u(1.3, 1.45)
        along = dice.u(-0.3, 0.3) * (span - wide)
        at = (-length / 2 + 0.01, along, middle) if side == 0 else (along, -width / 2 + 0.01, middle)
        extent = np.array((0.06, wide, tall) if side == 0 else (wide, 0.06, tall))
        frame = paints.new(0.0)
        pane = Material(tx.Plain((0.75, 0.88, 0.97)), "bright", "white", 0.0) if name == "window" else paints.new(0.8)
        number, thick = room.note(name, frame), np.array([1 - side, side, 0])
        around = solid.box(extent + 0.12 * (1 - thick), at)
        for mesh, material in ((around, frame), (solid.box(extent + 0.03 * thick, at), pane)):
            room.parts.append(Part(mesh, material.texture, ROOM_LABELS.index(name) + 1, number, 0.0))
    if dice.chance(0.7):
        long, wide = dice.u(1.2, 2.0), dice.u(0.9, 1.5)
        if dice.chance(0.4):
            rug = solid.prism(solid.arc(0, 350, (long / 2, wide / 2), 36), 0.02, (0.2, 0.2, 0.01))
        else:
            rug = solid.box((long, wide, 0.02), (0.2, 0.2, 0.01))
        room.surface("rug", rug, paints.new(0.8))


def _with_table(dice: Dice, room: Room, chairs: int, low: bool) -> None:
    """A table, chairs that face it, and a mug or a bottle on it."""
    table = furniture.table(dice)
    while (table.bounds[1, 2] < 0.55) != low:
        table = furniture.table(dice)
    yaw = dice.pick(0, 90)
    for _ in range(40):
        x, y = dice.u(-0.2, 0.25) * room.size[0], dice.u(-0.2, 0.25) * room.size[1]
        if room.put(table, x, y, yaw):
            break
    else:
        return
    x, y, half_x, half_y = room.taken[-1]
    sides = [(1, 0), (-1, 0), (0, 1), (0, -1)]
    seated = 0
    for i in dice.rng.permutation(4):
        if seated < chairs:
            (dx, dy), chair = sides[int(i)], furniture.chair(dice)
            deep = (chair.bounds[1] - chair.bounds[0])[0] / 2
            at_x, at_y = x + dx * (half_x + deep + 0.06), y + dy * (half_y + deep + 0.06)
            seated += room.put(chair, at_x, at_y, float(np.degrees(np.arctan2(-dy, -dx))))
    if seated:
        room.relations.append(("chair", "table"))
    if dice.chance(0.75):
        small = dice.pick(vessels.mug, vessels.bottle, vessels.plant)(dice)
        tall = small.bounds[1, 2] - small.bounds[0, 2]
        scale = dice.u(0.3, 0.4) / tall
        room.put(small, x + dice.u(-0.3, 0.3) * half_x, y + dice.u(-0.3, 0.3) * half_y, 0.0, table.bounds[1, 2], scale)
        room.relations.append((small.kind, "table top"))


def inside(dice: Dice, room: Room, views: int, size: int) -> Cameras:
    """Cameras over the two open sides and inside the room, at varied heights, that look into it."""
    length, width, _ = room.size
    i = np.arange(views)
    shift = dice.rng.uniform(0, 1, 2)
    azimuth = np.radians(45 + 68 * (2 * ((0.7549 * i + shift[0]) % 1) - 1))  # a two-dimensional golden ratio
    height = 0.9 + 1.9 * ((0.5698 * i + shift[1]) % 1)
    reach = dice.rng.uniform(0.6, 0.88, (views, 1)) * np.array([[length, width]])
    flat = reach * np.stack([np.cos(azimuth), np.sin(azimuth)], -1)
    eyes = np.concatenate([flat, height[:, None]], -1)
    across = dice.rng.uniform(-0.2, 0.12, (views, 2)) * [length, width]
    targets = np.concatenate([across, np.full((views, 1), 0.5)], -1)
    return pinhole(0.8 * size, eyes, targets, size)


def room_captions(dice: Dice, room: Room) -> tuple[list[str], list[str]]:
    """Captions and held-out captions of a room: counts, colours, relations."""
    things = [i for i in room.instances if i["class"] not in ("floor", "wall", "window", "door", "picture")]
    kinds = [str(i["class"]) for i in things]
    shell = {str(i["class"]): i for i in room.instances}
    a, b = (things[int(j)] for j in dice.rng.permutation(len(things))[:2])
    named = [f"a {thing['colour']} {thing['class']}" for thing in things]
    captions = [
        f"a {room.kind} with {listed(counted(kinds))}",
        f"a room with {named[things.index(a)]} and {named[things.index(b)]}",
        f"a {room.kind} with a {shell['floor']['material']} floor and {shell['wall']['material']} walls",
        f"{room.kind}: {listed(named)}",
        f"a {room.kind} that has a {a['material']} {a['class']}",
    ]
    for first, second in room.relations:
        if second == "table":
            count = kinds.count("chair")
            captions.append(f"{counted(['chair'] * count)[0]} and a table in a {room.kind}")
        else:
            captions.append(f"a {room.kind} with a {first} on the table")
    other = [OTHER_WORDS.get(str(t["class"]), str(t["class"])) for t in (a, b)]
    heldout = [
        f"someone furnished this place with a {a['colour']} {other[0]} and a {b['colour']} {other[1]}",
        f"the interior has {shell['wall']['colour']} walls, a {shell['floor']['colour']} floor and "
        + listed(counted(kinds)),
    ]
    return [tidy(c) for c in captions], [tidy(c) for c in heldout]
