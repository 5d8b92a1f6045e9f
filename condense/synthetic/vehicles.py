"""Parametric cars, trucks, aeroplanes, helicopters and boats; +X is the front."""

from __future__ import annotations

import numpy as np
from trimesh import Trimesh

from condense.synthetic import primitives as solid
from condense.synthetic.primitives import pair
from condense.synthetic.things import NUMBERS, Dice, Material, Paints, Thing

Point = tuple[float, float]
GLASS = ("black", "blue", "grey", "white", "teal")
BEAM = ("yellow", "white", "red", "orange")


def _side_view(outline: list[Point], width: float) -> Trimesh:
    """An outline in (x, z) extruded along y."""
    upright = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    return solid.moved(solid.prism(outline, width), rotate=upright)


def _cabin(bottom: Point, top: Point, low: float, high: float, width: float) -> Trimesh:
    """A greenhouse: a rectangle x0..x1 at the bottom that narrows to one at the top."""
    rings = []
    for (x0, x1), z, half in ((bottom, low, width / 2), (top, high, 0.82 * width / 2)):
        rings.append([(x0, -half, z), (x1, -half, z), (x1, half, z), (x0, half, z)])
    return solid.loft(np.array(rings))


def _wheels(axles: list[float], radius: float, track: float, thick: float) -> list[Trimesh]:
    """A pair of wheels on each axle, standing on z = 0."""
    near, far = (track - thick) / 2, (track + thick) / 2
    return [wheel for x in axles for wheel in pair(solid.frustum((x, near, radius), (x, far, radius), radius))]


def _hubs(thing: Thing, paints: Paints, axles: list[float], radius: float, track: float) -> None:
    """Wheels with hubs of a second colour."""
    thing.add("wheel", _wheels(axles, radius, track, 0.2), paints.new(0.05), f"{NUMBERS[2 * len(axles)]} {{}} wheels")
    thing.add("wheel", _wheels(axles, 0.5 * radius, track, 0.23), paints.new(0.0))


def car(dice: Dice) -> Thing:
    """A car."""
    thing, paints = Thing("car"), Paints(dice)
    style = dice.pick("saloon", "hatchback", "off-road", "sports", "open-top", "estate")
    length, width = dice.u(1.8, 2.3), dice.u(0.85, 1.0)
    radius = dice.u(0.2, 0.24) * (1.25 if style == "off-road" else 1)
    low, belt = 0.8 * radius, 0.8 * radius + dice.u(0.3, 0.38) * (0.85 if style == "sports" else 1)
    x = length / 2
    nose, rear = dice.u(0.62, 0.85), dice.u(0.8, 1.0)
    nose_z, rear_z = low + nose * (belt - low), low + rear * (belt - low)
    front = [(-x, low), (x - 0.04, low), (x, low + 0.1), (x - 0.03, nose_z), (0.35 * x, belt)]
    outline = [*front, (-0.5 * x, belt), (-x + 0.05, rear_z), (-x, low + 0.1)]
    paint = paints.new(0.4)
    thing.add("body", _side_view(outline, width), paint, "a {} body")
    roof = belt + dice.u(0.26, 0.34) * (0.75 if style == "sports" else 1)
    spans = {
        "saloon": ((-0.62, 0.38), (-0.38, 0.1)),
        "hatchback": ((-0.93, 0.42), (-0.72, 0.15)),
        "off-road": ((-0.95, 0.35), (-0.9, 0.2)),
        "estate": ((-0.97, 0.4), (-0.85, 0.1)),
        "sports": ((-0.7, 0.3), (-0.35, 0.0)),
        "open-top": ((0.12, 0.36), (0.08, 0.14)),
    }
    (a, b), (c, d) = spans[style]
    glass = paints.new(0.0, GLASS)
    windows = _cabin((a * x, b * x), (c * x, d * x), belt - 0.01, roof, 0.94 * width)
    thing.add("window", windows, glass, "{} windows")
    if style == "open-top":
        seats = pair(solid.superellipsoid((0.09, 0.16, 0.2), (-0.3 * x, 0.2, belt + 0.06), 4))
        thing.add("seat", seats, paints.new(0.2), "two {} seats")
    else:
        slab = solid.box(((d - c) * x + 0.05, 0.8 * width, 0.05), ((c + d) / 2 * x, 0, roof + 0.01), 0.02)
        thing.add("roof", slab, paints.like(paint, 0.6), "a {} roof")
    _hubs(thing, paints, [-0.58 * x, 0.6 * x], radius, width - 0.06)
    lamps = pair(solid.ellipsoid((0.05, 0.08, 0.06), (x - 0.02, 0.34 * width, nose_z - 0.08), 12))
    thing.add("light", lamps, paints.new(0.0, BEAM), "two {} headlights")
    if style in ("sports", "saloon") and dice.chance(0.45):
        blade = [solid.box((0.16, 0.9 * width, 0.035), (-x + 0.1, 0, rear_z + 0.16))]
        blade += pair(solid.box((0.08, 0.04, 0.16), (-x + 0.1, 0.3 * width, rear_z + 0.08)))
        thing.add("spoiler", blade, paints.like(paint), "a {} spoiler")
    thing.adjectives.append(style)
    return thing


def truck(dice: Dice) -> Thing:
    """A truck with a box, a tank, a flat bed or a tipper."""
    thing, paints = Thing("truck"), Paints(dice)
    length, width, radius = dice.u(2.2, 3.0), dice.u(0.85, 1.0), dice.u(0.2, 0.25)
    floor, nose = 1.3 * radius + 0.1, dice.chance(0.4)
    cab, tall = dice.u(0.6, 0.75), dice.u(0.75, 0.95)
    front = length / 2
    paint = paints.new(0.3)
    load = dice.pick("box", "tank", "flat bed", "tipper")
    back, span = -length / 2, length - cab - 0.1
    middle = back + span / 2
    goods = paints.new(0.5)
    if load == "box":
        high = dice.u(0.9, 1.2)
        chest = solid.box((span, width, high), (middle, 0, floor + high / 2 + 0.04), 0.02)
        thing.add("cargo", chest, goods, "a {} cargo box")
    elif load == "tank":
        r = 0.46 * width
        z = floor + r + 0.04
        drum = solid.tube([(back + x, 0, z) for x in (0, 0.12, span - 0.12, span)], r * np.array([0.6, 1, 1, 0.6]), 24)
        thing.add("cargo", drum, goods, "a round {} tank")
    else:
        wall = dice.u(0.12, 0.2) if load == "flat bed" else dice.u(0.35, 0.5)
        sides = [solid.box((span, width, 0.06), (middle, 0, floor + 0.07))]
        z = floor + 0.1 + wall / 2
        sides += pair(solid.box((span, 0.05, wall), (middle, width / 2 - 0.025, z)))
        sides += [solid.box((0.05, width, wall), (back + x, 0, z)) for x in (0.03, span - 0.03)]
        if load == "tipper":
            tip = solid.rotation((0, 1, 0), -dice.u(0, 28), (back, 0, floor))
            sides = [solid.moved(side, rotate=tip) for side in sides]
        thing.add("cargo", sides, goods, "an open {} load bed" if load == "flat bed" else "a {} tipping bed")
    chassis = solid.box((length - 0.05, 0.6 * width, 0.12), (0, 0, floor - 0.04))
    thing.add("base", chassis, paints.new(0.0), "a {} chassis")
    if nose:
        face = [(front, floor + 0.28), (front - 0.3, floor + 0.36), (front - 0.4, floor + tall)]
        glass_x, top = front - 0.36, floor + 0.38
    else:
        face = [(front, floor + 0.3), (front - 0.08, floor + tall)]
        glass_x, top = front - 0.05, floor + 0.36
    outline = [(front - cab, floor - 0.15), (front, floor - 0.15), *face, (front - cab, floor + tall)]
    words = "a {} cab with a bonnet" if nose else "a flat-fronted {} cab"
    thing.add("cab", _side_view(outline, 0.96 * width), paint, words)
    glass = paints.new(0.0, GLASS)
    pane = solid.box((0.09, 0.8 * width, 0.55 * tall - 0.1), (glass_x - 0.02, 0, top + 0.26 * tall), 0.0)
    side = solid.box((0.45 * cab, 0.99 * width, 0.24), (front - (0.68 if nose else 0.5) * cab, 0, floor + tall - 0.22))
    thing.add("window", [pane, side], glass, "{} windows")
    axles = [front - 0.5 * cab, back + 0.35, *([back + 0.35 + 2.3 * radius] if dice.chance(0.6) else [])]
    _hubs(thing, paints, axles, radius, width - 0.1)
    lamps = pair(solid.ellipsoid((0.04, 0.07, 0.07), (front, 0.36 * width, floor), 10))
    thing.add("light", lamps, paints.new(0.0, BEAM), "two {} headlights")
    thing.adjectives.append({"box": "delivery", "tank": "tanker", "flat bed": "flatbed", "tipper": "dump"}[load])
    return thing


def _wings(root: Point, sweep: float, span: float, chord: Point, lift: float) -> list[Trimesh]:
    """A pair of flat tapered wings from (x, z) at the root; `chord` is their depth at root and tip."""
    rings = []
    for share, c in ((0.0, chord[0]), (1.0, chord[1])):
        x, y, z = root[0] - share * sweep, share * span, root[1] + share * lift
        thick = 0.045 * (1 - 0.4 * share)
        rings.append([(x + c / 2, y, z), (x, y, z - thick), (x - c / 2, y, z), (x, y, z + thick)])
    return pair(solid.loft(np.array(rings)))


def _blades(centre: np.ndarray, axis: int, length: float, count: int, width: float, start: float) -> list[Trimesh]:
    """Blades of a propeller (axis 0) or rotor (axis 2) about `centre`."""
    size = np.array([0.02, width, length]) if axis == 0 else np.array([length, width, 0.02])
    out = np.array([0, 0, length / 2]) if axis == 0 else np.array([length / 2, 0, 0])
    spin = (1, 0, 0) if axis == 0 else (0, 0, 1)
    turns = start + np.arange(count) * 360 / count
    return [solid.moved(solid.box(size, out), centre, solid.rotation(spin, turn)) for turn in turns]


def aeroplane(dice: Dice) -> Thing:
    """An aeroplane: airliner, propeller plane or biplane."""
    thing, paints = Thing("aeroplane"), Paints(dice)
    style = dice.pick("jet", "jet", "propeller", "biplane")
    length, r = 2.0, dice.u(0.14, 0.19)
    x = np.array([1.0, 0.95, 0.85, 0.6, -0.3, -0.7, -0.95, -1.0]) * length / 2
    size = np.array([0.1, 0.5, 0.85, 1, 1, 0.65, 0.3, 0.15]) * r
    rise = np.array([-0.02, -0.01, 0, 0, 0, 0.04, 0.08, 0.09])
    paint = paints.new(0.5)
    thing.add("fuselage", solid.tube(solid.upright(np.stack([x, rise], -1)), size, 18), paint, "a {} fuselage")
    sweep = dice.u(0.3, 0.6) if style == "jet" else dice.u(-0.02, 0.1)
    span, chord = dice.u(0.8, 1.1), dice.u(0.34, 0.46)
    tip = chord * (dice.u(0.35, 0.55) if style == "jet" else dice.u(0.7, 0.95))
    high = dice.chance(0.4)
    colour = paints.like(paint, 0.25, 0.4)
    level = 0.7 * r if high else -0.6 * r
    lift = dice.u(0.0, 0.12)
    words = "swept {} wings" if style == "jet" else "straight {} wings"
    wings = _wings((0.2, level), sweep, span, (chord, tip), lift)
    if style == "biplane":
        level, gap = -0.6 * r, 3.0 * r
        wings = _wings((0.25, level), 0.0, span, (chord, tip), 0.02)
        wings += _wings((0.3, level + gap), 0.0, span, (chord, tip), 0.02)
        for at in (0.2, 0.38):
            wings += pair(solid.frustum((at, 0.6 * span, level), (at, 0.6 * span, level + gap), 0.02, sections=6))
        words = "two pairs of {} wings"
    thing.add("wing", wings, colour, words)
    fin = [(-0.62, 0.05), (-0.8, 0.46), (-1.02, 0.46), (-0.96, 0.05)]
    tailplane = _wings((-0.84, 0.1 if dice.chance(0.7) else 0.42), 0.12, dice.u(0.3, 0.4), (0.24, 0.15), 0.0)
    thing.add("tail", [_side_view(fin, 0.045), *tailplane], paints.like(colour, 0.4), "a {} tail")
    cockpit = solid.ellipsoid((0.17, 0.65 * r, 0.55 * r), (0.66 * length / 2, 0, 0.68 * r))
    thing.add("window", cockpit, paints.new(0.0, GLASS), "a {} cockpit window")
    if style == "jet":
        stations = (0.36, 0.66) if dice.chance(0.4) else (0.42,)
        pods = []
        for share in stations:
            pod = np.array([0.28 - share * sweep, share * span, level + share * lift - 0.1])
            path = [pod + np.array([shift, 0, 0]) for shift in (0.15, 0.05, -0.16)]
            pods += pair(solid.tube(np.stack(path), [0.07, 0.085, 0.05], 14))
        thing.add("engine", pods, paints.new(0.1), f"{NUMBERS[2 * len(stations)]} {{}} jet engines")
    else:
        blades = _blades(np.array([1.03, 0, -0.02]), 0, dice.u(0.28, 0.36), dice.whole(2, 4), 0.07, dice.u(0, 90))
        blades.append(solid.frustum((0.97, 0, -0.02), (1.1, 0, -0.02), 0.06, 0.0))
        thing.add("propeller", blades, paints.new(0.0), "a {} nose propeller")
        z = -2.1 * r
        gear = pair(solid.frustum((0.45, 0.19, z), (0.45, 0.25, z), 0.08))
        gear += pair(solid.frustum((0.45, 0.22, z), (0.45, 0.08, -0.6 * r), 0.02))
        thing.add("wheel", gear, paints.new(0.0), "two {} wheels")
    thing.adjectives.append({"propeller": "propeller-driven", "biplane": "double-winged"}.get(style, style))
    return thing


def helicopter(dice: Dice) -> Thing:
    """A helicopter."""
    thing, paints = Thing("helicopter"), Paints(dice)
    paint = paints.new(0.45)
    long, high, wide = dice.u(0.42, 0.6), dice.u(0.28, 0.36), dice.u(0.25, 0.34)
    power = dice.pick(2.0, 2.6, 4.0)
    thing.add("fuselage", solid.superellipsoid((long, wide, high), (0, 0, 0), power), paint, "a {} body")
    tail = -long - dice.u(0.45, 0.7)
    boom = solid.tube([(-0.6 * long, 0, 0.1), (tail, 0, 0.2)], [0.13, 0.05], 12)
    fin = [(tail + 0.12, 0.15), (tail - 0.02, 0.45), (tail - 0.14, 0.45), (tail - 0.06, 0.12)]
    planes = _wings((tail + 0.2, 0.19), 0.0, 0.24, (0.16, 0.12), 0.0)
    thing.add("tail", [boom, _side_view(fin, 0.05), *planes], paints.like(paint, 0.5), "a long {} tail boom")
    nose = solid.superellipsoid((0.55 * long, 0.93 * wide, 0.62 * high), (0.5 * long, 0, 0.22 * high), power)
    thing.add("window", nose, paints.new(0.0, GLASS), "a {} nose window")
    blades = dice.whole(2, 5)
    hub = np.array([0, 0, high + 0.14])
    sweep = _blades(hub, 2, dice.u(0.62, 0.82), blades, 0.1, dice.u(0, 90))
    rotor = [*sweep, solid.frustum((0, 0, 0.8 * high), np.add(hub, (0, 0, 0.03)), 0.045)]
    small = [solid.box(size, (tail - 0.05, 0.07, 0.32)) for size in ((0.05, 0.02, 0.4), (0.4, 0.02, 0.05))]
    thing.add("rotor", [*rotor, *small], paints.new(0.15), f"a {{}} rotor with {NUMBERS[blades]} blades")
    ground = -high - 0.16
    if dice.chance(0.65):
        runner = [(-0.5 * long - 0.1, wide, ground), (0.6 * long, wide, ground)]
        rails = pair(solid.tube([*runner, (0.6 * long + 0.12, wide, ground + 0.08)], 0.03))
        for x in (-0.35 * long, 0.4 * long):
            rails += pair(solid.frustum((x, wide, ground), (x, 0.5 * wide, -0.7 * high), 0.025))
        thing.add("skid", rails, paints.new(0.05), "two {} landing skids")
    else:
        wheels = solid.joined(_wheels([-0.4 * long, 0.5 * long], 0.1, 1.6 * wide, 0.07))
        thing.add("wheel", solid.moved(wheels, (0, 0, -high - 0.05)), paints.new(0.0), "four small {} wheels")
    thing.adjectives.append("slim" if long > 0.53 else "compact")
    return thing


def _hull(length: float, width: float, depth: float, sheer: float) -> tuple[Trimesh, Trimesh]:
    """A boat's hull and the deck that closes it, waterline near z = 0."""
    t = np.linspace(0, 1, 12)  # stern to bow
    taper = np.sqrt(np.clip(1 - np.clip((t - 0.4) / 0.62, 0, 1) ** 2.2, 0, 1))
    beam = np.maximum(width / 2 * np.clip(0.75 + 0.9 * t, 0, 1) * taper, 0.012)
    rim = depth * (0.55 + sheer * t**2)
    keel = -depth * (0.5 - 0.35 * np.clip((t - 0.6) / 0.4, 0, 1) ** 2)
    angle = np.linspace(0, np.pi, 11)
    y = np.cos(angle)[None] * beam[:, None]
    z = rim[:, None] - np.sin(angle)[None] ** 0.7 * (rim - keel)[:, None]
    x = np.broadcast_to(((t - 0.5) * length)[:, None], y.shape)
    hull = solid.loft(np.stack([x, y, z], -1))
    edge = np.stack([x[:, 0], 0.97 * beam, rim + 0.004], -1)
    outline = np.concatenate([edge, (edge * (1, -1, 1))[::-1]])
    low = outline.copy()
    low[:, 2] -= 0.03
    return hull, solid.loft(np.stack([low, outline]))


def _sail(corners: list[Point], belly: float) -> Trimesh:
    """A triangular sail in (x, z) that bellies out along y."""
    (a, b, c), steps = np.array(corners), np.linspace(0, 1, 8)
    rings, u = [], np.linspace(0, 1, 7)
    for t in steps:
        left, right = a + t * (c - a), b + t * (c - b)
        line = left + u[:, None] * (right - left)
        front = np.insert(line, 1, belly * np.sin(np.pi * u) * (1 - t) + 0.02, axis=1)
        rings.append(np.concatenate([front, (front - [0, 0.03, 0])[::-1]]))
    return solid.loft(np.stack(rings))


def boat(dice: Dice) -> Thing:
    """A boat: sailing boat, or motor boat with a cabin."""
    thing, paints = Thing("boat"), Paints(dice)
    length, width, depth = 1.6, dice.u(0.42, 0.62), dice.u(0.26, 0.4)
    paint = paints.new(0.45)
    hull, deck = _hull(length, width, depth, dice.u(0.2, 0.6))
    thing.add("hull", hull, paint, "a {} hull")
    thing.add("deck", deck, paints.new(0.35), "a {} deck")
    top = 0.6 * depth
    if dice.chance(0.6):
        _rig(thing, dice, paints, top)
    else:
        _superstructure(thing, dice, paints, top, width, paint)
    return thing


def _rig(thing: Thing, dice: Dice, paints: Paints, top: float) -> None:
    """Mast and sails."""
    at, tall = dice.u(0.02, 0.18), dice.u(1.1, 1.6)
    cloth = paints.new(0.55)
    sails = [_sail([(at - 0.03, top + 0.16), (-0.68, top + 0.16), (at - 0.03, top + tall)], dice.u(0.08, 0.16))]
    two = dice.chance(0.6)
    if two:
        sails.append(_sail([(0.76, top + 0.1), (at + 0.06, top + 0.16), (at + 0.04, top + 0.85 * tall)], 0.08))
    thing.add("sail", sails, cloth, "two {} sails" if two else "a single {} sail")
    spar = [solid.frustum((at, 0, top - 0.1), (at, 0, top + tall + 0.06), 0.028, 0.018, 8)]
    spar.append(solid.frustum((at, 0, top + 0.13), (-0.72, 0, top + 0.13), 0.02, sections=8))
    thing.add("mast", spar, paints.new(0.1), "a tall {} mast" if tall > 1.35 else "a {} mast")
    thing.adjectives.append("sailing")


def _superstructure(thing: Thing, dice: Dice, paints: Paints, top: float, width: float, paint: Material) -> None:
    """A cabin with windows, and a funnel or a short mast."""
    at, long, high = dice.u(-0.25, 0.1), dice.u(0.4, 0.6), dice.u(0.24, 0.4)
    house = solid.box((long, 0.62 * width, high), (at, 0, top + high / 2 - 0.03), 0.02)
    thing.add("cabin", house, paints.like(paint, 0.2), "a {} cabin")
    panes = solid.box((0.75 * long, 0.65 * width, 0.35 * high), (at, 0, top + 0.6 * high))
    screen = solid.box((long + 0.03, 0.5 * width, 0.35 * high), (at, 0, top + 0.6 * high))
    thing.add("window", [panes, screen], paints.new(0.0, GLASS), "{} cabin windows")
    slab = solid.box((long + 0.1, 0.7 * width, 0.04), (at, 0, top + high - 0.01))
    thing.add("roof", slab, paints.like(paint, 0.3), "a {} roof")
    if dice.chance(0.6):
        stack = solid.frustum((at - 0.1, 0, top + high), (at - 0.13, 0, top + high + dice.u(0.25, 0.4)), 0.085)
        thing.add("funnel", stack, paints.new(0.4), "a {} funnel")
    else:
        spar = solid.frustum((at, 0, top + high), (at, 0, top + high + 0.45), 0.022, sections=8)
        thing.add("mast", spar, paints.new(0.0), "a short {} mast")
    thing.adjectives.append("motor")
