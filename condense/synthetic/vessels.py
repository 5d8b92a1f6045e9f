"""Parametric mugs, bottles, teapots and potted plants; heights near one."""

from __future__ import annotations

import numpy as np
from trimesh import Trimesh

from condense.synthetic import primitives as solid
from condense.synthetic.things import NUMBERS, Dice, Paints, Thing


def _hollow(outline: np.ndarray, wall: float, floor: float) -> np.ndarray:
    """A vessel's profile: up the outline [N, 2], then down the inside to `floor`."""
    inside = outline[::-1] - [wall, 0]
    inside[:, 1] = np.maximum(inside[:, 1], floor)
    return np.concatenate([[[0, outline[0, 1]]], outline, inside, [[0, floor]]])


def mug(dice: Dice) -> Thing:
    """A mug, with or without a saucer or a drink."""
    thing, paints = Thing("mug"), Paints(dice)
    height, wide = 1.0, dice.u(0.36, 0.56)
    z = np.linspace(0, 1, 9)
    style = dice.pick("straight", "tapered", "bulging", "flared", "waisted")
    bulge = {
        "straight": 1 + 0 * z,
        "tapered": 0.68 + 0.32 * z,
        "bulging": 0.78 + 0.3 * np.sin(np.pi * (0.1 + 0.8 * z)),
        "flared": 0.8 + 0.35 * z**3,
        "waisted": 1 - 0.2 * np.sin(np.pi * z),
    }[style]
    outline = np.stack([wide * bulge, height * z], -1)
    clay = paints.new(0.6)
    thing.add("body", solid.lathe(_hollow(outline, 0.06, 0.1)), clay, f"a {{}} {style} body")
    form = dice.pick("round", "square", "ear-shaped")
    top, low = dice.u(0.75, 0.88), dice.u(0.18, 0.32)
    middle, half, reach = (top + low) / 2, (top - low) / 2, dice.u(0.26, 0.38)
    if form == "square":
        loop = np.array([(-0.1, half), (0.85 * reach, half), (reach, 0.8 * half), (reach, -0.8 * half)])
        loop = np.concatenate([loop, [(0.85 * reach, -half), (-0.1, -half)]])
    else:
        loop = solid.arc(100, -100, (reach, half), 15)
        loop[:, 0] += (0.12 * reach * loop[:, 1] / half) if form == "ear-shaped" else 0
    root = np.interp(middle + loop[:, 1], height * z, wide * bulge) - 0.03
    root = np.minimum(root.min() + 0.02, root)
    path = solid.upright(np.stack([root + loop[:, 0] + 0.02, middle + loop[:, 1]], -1))
    thing.add("handle", solid.tube(path, dice.u(0.045, 0.075)), paints.like(clay, 0.35), f"a {{}} {form} handle")
    if dice.chance(0.5):
        level = dice.u(0.72, 0.9)
        inner = float(np.interp(level, z, wide * bulge)) - 0.05
        drink = paints.new(0, ("brown", "black", "orange", "white", "green"))
        disc = solid.lathe([(0, level - 0.04), (inner, level - 0.04), (inner, level), (0, level)])
        thing.add("drink", disc, drink, "{} drink inside")
    if dice.chance(0.35):
        plate = [(0.3, -0.07), (0.62, -0.06), (0.85, 0.04), (0.85, 0.07), (0.6, 0), (0, 0)]
        thing.add("saucer", solid.lathe(plate), paints.like(clay, 0.4), "a {} saucer")
    thing.adjectives.append("slim" if wide < 0.42 else "wide" if wide > 0.5 else "ordinary")
    return thing


def bottle(dice: Dice) -> Thing:
    """A bottle."""
    thing, paints = Thing("bottle"), Paints(dice)
    wide, shoulder, neck = dice.u(0.12, 0.26), dice.u(0.42, 0.68), dice.u(0.04, 0.07)
    top = dice.u(0.86, 0.95)
    style = dice.pick("round-shouldered", "sloping", "bulbous", "square")
    steps = np.linspace(0, 1, 8)
    if style == "sloping":
        curve = 0.5 + 0.5 * np.cos(np.pi * steps)
        span = 0.9 * (top - shoulder)
    else:
        curve = np.sqrt(np.clip(1 - steps**2, 0, 1))
        span = min(wide * 1.1, 0.8 * (top - shoulder))
    slope = np.stack([neck + (wide - neck) * curve, shoulder + span * steps], -1)
    if style == "bulbous":
        wide = max(wide, 0.2)
        slope = np.add(solid.arc(-70, 75, (wide * 1.15, shoulder / 2), 16), (0, shoulder / 2))
        side = slope
    else:
        side = np.concatenate([[(0.85 * wide, 0), (wide, 0.04)], slope])
    glass = paints.new(0.5)
    around = 4 if style == "square" else 32
    body = solid.lathe([(0, side[0, 1]), *side, (0, side[-1, 1])], sections=around)
    thing.add("body", body, glass, f"a {{}} {style} body")
    start = side[-1, 1] - 0.02
    throat = [(0, start), (neck, start), (neck, top - 0.04), (1.25 * neck, top - 0.035), (1.25 * neck, top), (0, top)]
    words = "a long {} neck" if top - start > 0.3 else "a short {} neck"
    thing.add("neck", solid.lathe(throat), paints.like(glass, 0.5, 0.1), words)
    if dice.chance(0.75):
        cork = dice.chance(0.4)
        stopper = solid.frustum((0, 0, top - 0.02), (0, 0, top + dice.u(0.05, 0.1)), (0.85 if cork else 1.35) * neck)
        thing.add("cap", stopper, paints.new(0.1), "a {} cork" if cork else "a {} cap")
    if style != "bulbous" and dice.chance(0.65):
        low, high = dice.u(0.1, 0.18), shoulder - dice.u(0.03, 0.1)
        band = [(0.9 * wide, low), (1.02 * wide, low), (1.02 * wide, high), (0.9 * wide, high)]
        thing.add("label", solid.lathe(band, sections=around), paints.new(0.4), "a {} label")
    thing.adjectives.append("slender" if wide < 0.15 else "stout" if wide > 0.21 else "ordinary")
    return thing


def teapot(dice: Dice) -> Thing:
    """A teapot."""
    thing, paints = Thing("teapot"), Paints(dice)
    wide, tall = dice.u(0.38, 0.5), dice.u(0.55, 0.8)
    style = dice.pick("round", "pear-shaped", "cylindrical", "squat")
    z = np.linspace(0, 1, 13)
    curve = {
        "round": np.sqrt(np.clip(1 - (1.7 * z - 0.85) ** 2, 0, 1)),
        "pear-shaped": np.sin(np.pi * (0.25 + 0.63 * z**0.8)) * (1.02 - 0.15 * z),
        "cylindrical": np.where((z > 0.02) & (z < 0.95), 0.85 - 0.1 * z, 0.7),
        "squat": np.sqrt(np.clip(1 - (1.75 * z - 0.8) ** 2, 0, 1)) * 1.1,
    }[style]
    tall *= 0.7 if style == "squat" else 1
    outline = np.stack([wide * curve, tall * z], -1)
    clay = paints.new(0.55)
    thing.add("body", solid.lathe([(0, 0), *outline, (0, tall)]), clay, f"a {{}} {style} body")
    reach = dice.u(0.28, 0.42)
    foot = float(np.interp(0.35 * tall, tall * z, outline[:, 0])) - 0.06
    rise = dice.u(0.85, 1.05) * tall
    heights = [0.32 * tall, 0.42 * tall, 0.7 * rise, rise]
    path = np.stack([foot + reach * np.array([0, 0.5, 0.65, 1]), heights], -1)
    spout = solid.tube(solid.upright(path), [0.11, 0.085, 0.06, 0.045])
    thing.add("spout", spout, paints.like(clay, 0.6), "a curved {} spout")
    metal = paints.like(clay, 0.3)
    if dice.chance(0.6):
        middle, half = 0.52 * tall, dice.u(0.28, 0.36) * tall
        root = float(np.interp(middle, tall * z, outline[:, 0])) - 0.1
        loop = solid.arc(80, 280, (dice.u(0.28, 0.36), half), 15)
        at, thick, words = (-root, middle), 0.05, "a {} handle at the side"
    else:
        loop = solid.arc(0, 180, (0.72 * wide, dice.u(0.4, 0.55)), 15)
        at, thick, words = (0.0, 0.72 * tall), 0.04, "a {} handle over the top"
    thing.add("handle", solid.tube(solid.upright(loop + np.array(at)), thick), metal, words)
    brim = max(float(outline[-1, 0]), 0.5 * wide)
    lid = solid.lathe([(0, 0), *(solid.arc(0, 80, (brim, 0.14), 7))], (0, 0, tall - 0.03))
    knob = solid.ellipsoid((0.06, 0.06, 0.06), (0, 0, tall + 0.15))
    thing.add("lid", [lid, knob], paints.like(clay, 0.4), "a {} lid with a knob")
    thing.adjectives.append("big-bellied" if wide > 0.45 else "slim" if wide < 0.41 else "ordinary")
    return thing


def _leaf(length: float, width: float, azimuth: float, lift: float, droop: float, base: np.ndarray) -> Trimesh:
    """A blade that rises from `base` at `lift` degrees and droops towards its tip."""
    t = np.linspace(0, 1, 7)
    angle = np.radians(lift - droop * t)
    step = length / 6
    out, up = np.cumsum(np.cos(angle)) * step, np.cumsum(np.sin(angle)) * step
    path = base + np.stack([out * np.cos(azimuth), out * np.sin(azimuth), up], -1)
    half = width * np.sin(np.pi * (0.12 + 0.85 * t)) ** 0.8
    return solid.tube(path, np.stack([half, 0.015 + 0 * half], -1), 8)


def plant(dice: Dice) -> Thing:
    """A potted plant."""
    thing, paints = Thing("plant"), Paints(dice)
    style = dice.pick("leafy", "leafy", "tree", "flowering", "cactus")
    green = paints.new(0.15, ("green", "green", "green", "teal", "purple", "yellow", "red"))
    rim, foot, tall = dice.u(0.2, 0.28), dice.u(0.13, 0.2), dice.u(0.26, 0.42)
    form = dice.pick("tapered", "round", "boxy")
    if form == "tapered":
        lip = 1.12 * rim
        pot = solid.lathe([(0, 0), (foot, 0), (rim, 0.8 * tall), (lip, 0.8 * tall), (lip, tall), (0, tall)])
    elif form == "round":
        side = np.add(solid.arc(-60, 50, (1.2 * rim, tall / 1.63), 12), (0, 0.53 * tall))
        pot = solid.lathe([(0, 0), *side, (0, tall)])
    else:
        pot = solid.box((1.8 * rim, 1.8 * rim, tall), (0, 0, tall / 2), 0.02)
    top = np.array([0, 0, tall])
    if style == "leafy":
        count, length, width, droop = dice.whole(9, 15), dice.u(0.45, 0.7), dice.u(0.05, 0.11), dice.u(30, 110)
        turn = np.arange(count) * 2.4
        leaves = [_leaf(length * dice.u(0.8, 1.1), width, a, dice.u(50, 85), droop, top) for a in turn]
        thing.add("leaf", leaves, green, "long {} leaves")
    elif style == "tree":
        crown = tall + dice.u(0.45, 0.65)
        thing.add("leaf", _crown(dice, crown), green, "a bushy {} crown")
        trunk = [(0, 0, tall - 0.05), (dice.u(-0.05, 0.05), 0.02, 0.5 * (tall + crown)), (0, 0, crown)]
        thing.add("stem", solid.tube(trunk, 0.035), paints.new(0.2), "a thin {} trunk")
    elif style == "cactus":
        high = dice.u(0.5, 0.75)
        body = solid.superellipsoid((0.13, 0.13, high / 2 + 0.04), (0, 0, tall + high / 2 - 0.04), 3)
        arms = []
        for side in (-1, 1)[: dice.whole(1, 2)]:
            z = tall + dice.u(0.3, 0.5) * high
            elbow = [(0, 0, z), (side * 0.22, 0, z), (side * 0.26, 0, z + 0.08), (side * 0.26, 0, z + dice.u(0.2, 0.3))]
            arms.append(solid.tube(elbow, 0.065))
        thing.add("stem", [body, *arms], green, "a fat {} stem with arms")
    else:
        heads = dice.whole(3, 5)
        bloom, stems, tips = paints.new(0.1), [], []
        for a in np.arange(heads) * 2.4 + dice.u(0, 6):
            out = dice.u(0.08, 0.3)
            tip = np.array([out * np.cos(a), out * np.sin(a), tall + dice.u(0.35, 0.65)])
            stems.append(solid.tube(np.stack([top - [0, 0, 0.05], (top + tip) / 2 + [0, 0, 0.05], tip]), 0.022, 8))
            size = dice.u(0.09, 0.14)
            tips.append(solid.ellipsoid((size, size, 0.7 * size), tip, 12))
        leaves = [_leaf(dice.u(0.25, 0.35), 0.07, a, 45, 70, top) for a in np.arange(5) * 1.26]
        thing.add("leaf", leaves, green, "{} leaves")
        thing.add("flower", tips, bloom, f"{NUMBERS[heads]} {{}} flowers")
        thing.add("stem", stems, paints.like(green, 0.7), "thin {} stems")
    thing.add("pot", pot, paints.new(0.5), f"a {{}} {form} pot")
    if dice.chance(0.3):
        dish = solid.lathe([(0, -0.05), (1.2 * rim, -0.05), (1.45 * rim, 0.02), (0, 0.02)])
        thing.add("saucer", dish, paints.new(0.1), "a {} saucer")
    thing.adjectives.append({"tree": "tree-like", "cactus": "prickly"}.get(style, style))
    return thing


def _crown(dice: Dice, height: float) -> list[Trimesh]:
    """A few balls, or stacked cones."""
    if dice.chance(0.35):
        sizes = ((0.0, 0.34), (0.22, 0.26), (0.4, 0.17))
        return [solid.frustum((0, 0, height - 0.2 + z), (0, 0, height + 0.15 + z), r, 0.0) for z, r in sizes]
    balls = [(0.0, 0.0, 0.0), *(dice.rng.uniform(-0.17, 0.17, 3) for _ in range(dice.whole(0, 5)))]
    return [solid.ellipsoid(np.full(3, dice.u(0.2, 0.28)), np.asarray(b) + np.array((0, 0, height)), 16) for b in balls]
