"""Parametric furniture, in metres; +X is the front."""

from __future__ import annotations

import numpy as np
from trimesh import Trimesh

from condense.synthetic import primitives as solid
from condense.synthetic.primitives import pair
from condense.synthetic.things import NUMBERS, Dice, Paints, Thing


def four_legs(dice: Dice, length: float, width: float, height: float, style: str) -> list[Trimesh]:
    """Legs under a rectangle centred at the origin, feet at z = 0."""
    thick = dice.u(0.025, 0.04)
    splay = 1.2 if style == "splayed" else 1.0
    foot = 0.4 if style in ("splayed", "tapered") else 1.0
    legs = []
    for x, y in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        top = np.array([x * (length / 2 - 0.05), y * (width / 2 - 0.05), height])
        if style == "square":
            legs.append(solid.box((1.7 * thick, 1.7 * thick, height), (top[0], top[1], height / 2)))
        else:
            legs.append(solid.frustum(top * (splay, splay, 0), top, thick * foot, thick, 10))
    return legs


def pedestal(dice: Dice, reach: float, height: float) -> list[Trimesh]:
    """A column on a star of feet, or on a disc."""
    column = solid.frustum((0, 0, 0.03), (0, 0, height), 0.045, 0.035)
    if dice.chance(0.4):
        return [column, solid.lathe([(reach, 0), (reach, 0.02), (0.05, 0.06)])]
    angles = np.linspace(0, 2 * np.pi, dice.pick(4, 5), endpoint=False)
    feet = [(reach * np.cos(a), reach * np.sin(a), 0.03) for a in angles]
    return [column, *(solid.frustum((0, 0, 0.09), foot, 0.03, 0.025, 8) for foot in feet)]


def panel(dice: Dice, style: str, width: float, height: float, thick: float) -> list[Trimesh]:
    """An upright back in the YZ plane, from z = 0 to `height`: solid, slatted, laddered or arched."""
    if style == "solid":
        return [solid.box((thick, width, height), (0, 0, height / 2), 0.02)]
    if style == "arched":
        bow = np.add(solid.arc(0, 180, (width / 2, 0.4 * height)), (0, 0.6 * height))
        outline = [(-width / 2, 0), (width / 2, 0), *bow]
        return [solid.moved(solid.prism(outline, thick), rotate=_stand())]
    posts = [solid.box((thick, 0.035, height), (0, y, height / 2)) for y in (-width / 2 + 0.02, width / 2 - 0.02)]
    if style == "slatted":
        slats = np.linspace(-width / 2, width / 2, dice.whole(5, 6))[1:-1]
        bars = [solid.box((0.6 * thick, 0.035, height - 0.04), (0, y, height / 2)) for y in slats]
        return [*posts, solid.box((1.1 * thick, width, 0.07), (0, 0, height - 0.035)), *bars]
    rungs = np.linspace(0.25, 0.92, dice.whole(3, 4)) * height
    return [*posts, *(solid.box((0.7 * thick, width - 0.03, 0.06), (0, 0, z)) for z in rungs)]


def _evenly(count: int, step: float) -> np.ndarray:
    """Places [count] a `step` apart, about zero."""
    return (np.arange(count) - (count - 1) / 2) * step


def _stand() -> np.ndarray:
    """Turns the XY plane of a prism into the YZ plane."""
    return np.array([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])


def _lean(dice: Dice, least: float) -> np.ndarray:
    """Tilts a back by `least` to 14 degrees."""
    return solid.rotation((0, 1, 0), -dice.u(least, 14))


def chair(dice: Dice) -> Thing:
    """A chair."""
    thing, paints = Thing("chair"), Paints(dice)
    width, depth, height = dice.u(0.4, 0.52), dice.u(0.4, 0.5), dice.u(0.4, 0.5)
    thick = dice.u(0.04, 0.09)
    shape = dice.pick("square", "round", "padded")
    fabric = paints.new()
    if shape == "round":
        seat = solid.lathe(np.array([(0, 0), (0.5, 0), (0.53, 0.5), (0.5, 1), (0, 1)]) * (width, thick))
    elif shape == "padded":
        seat = solid.superellipsoid((depth / 2, width / 2, 0.6 * thick), (0, 0, thick / 2), 5)
    else:
        seat = solid.box((depth, width, thick), (0, 0, thick / 2), 0.015)
    thing.add("seat", solid.moved(seat, (0, 0, height)), fabric, f"a {{}} {shape} seat")
    style = dice.pick("solid", "slatted", "laddered", "arched")
    tall = dice.u(0.38, 0.75)
    back = solid.joined(panel(dice, style, 0.95 * width, tall, 0.035))
    back = solid.moved(back, (-depth / 2 + 0.02, 0, height + 0.5 * thick), _lean(dice, 2))
    thing.add("back", back, paints.like(fabric), f"a {{}} {style} back")
    legs = dice.pick("straight", "square", "tapered", "splayed", "swivel")
    if legs == "swivel":
        thing.add("leg", pedestal(dice, 0.27, height), paints.new(0.1), "a {} swivel foot")
    else:
        made = four_legs(dice, depth, width, height, legs)
        thing.add("leg", made, paints.like(thing.material("back"), 0.3), f"four {legs} {{}} legs")
    if dice.chance(0.35):
        at = height + dice.u(0.18, 0.26)
        rests = pair(solid.box((depth, 0.05, 0.04), (0, width / 2, at), 0.01))
        rests += pair(solid.box((0.04, 0.04, at - height), (depth / 2 - 0.05, width / 2, (at + height) / 2)))
        thing.add("armrest", rests, paints.like(thing.material("leg"), 0.5), "two {} armrests")
    thing.adjectives.append("tall" if tall > 0.62 else "low-backed" if tall < 0.48 else "simple")
    return thing


def table(dice: Dice) -> Thing:
    """A table."""
    thing, paints = Thing("table"), Paints(dice)
    length, width, height = dice.u(0.7, 1.5), dice.u(0.6, 0.85), dice.pick(dice.u(0.38, 0.48), dice.u(0.68, 0.8))
    thick, shape = dice.u(0.03, 0.07), dice.pick("rectangular", "rectangular", "round", "oval")
    if shape == "rectangular":
        top = solid.box((width, length, thick), (0, 0, thick / 2), 0.012)
    else:
        length = width if shape == "round" else max(length, 1.3 * width)
        top = solid.prism(solid.arc(0, 350, (width / 2, length / 2), 36), thick, (0, 0, thick / 2))
    thing.add("top", solid.moved(top, (0, 0, height)), paints.new(0.55), f"a {{}} {shape} top")
    inset = 1.0 if shape == "rectangular" else 0.75
    style = dice.pick("straight", "square", "tapered", "splayed", "pedestal", "panel")
    metal = paints.like(thing.material("top"), 0.25)
    if style == "pedestal":
        thing.add("leg", pedestal(dice, 0.36 * width, height), metal, "a single {} pedestal leg")
    elif style == "panel":
        sides = pair(solid.box((0.8 * inset * width, 0.05, height), (0, 0.38 * length, height / 2)))
        thing.add("leg", sides, metal, "two {} panel legs")
    else:
        legs = four_legs(dice, inset * width, inset * length, height, style)
        thing.add("leg", legs, metal, f"four {style} {{}} legs")
        if shape == "rectangular" and dice.chance(0.35):
            drawer = solid.box((0.8 * width, 0.5 * length, 0.12), (0.06, 0, height - 0.06))
            thing.add("drawer", drawer, paints.new(0.2), "a {} drawer")
        elif dice.chance(0.4):
            lower = solid.box((0.75 * inset * width, 0.8 * inset * length, 0.025), (0, 0, 0.35 * height))
            thing.add("board", lower, paints.like(thing.material("top")), "a {} board between the legs")
    word = "low" if height < 0.5 else "long" if length > 1.15 else "small" if length < 0.8 else "plain"
    thing.adjectives.append(word)
    return thing


def sofa(dice: Dice) -> Thing:
    """A sofa for one to three people."""
    thing, paints = Thing("sofa"), Paints(dice)
    seats = dice.whole(1, 3)
    each, depth, floor = dice.u(0.5, 0.66), dice.u(0.75, 0.9), dice.u(0.06, 0.16)
    inner, arm = seats * each, dice.u(0.12, 0.2)
    fabric = paints.new(0.35)
    body = solid.box((depth, inner + 2 * arm, 0.2), (0, 0, floor + 0.1), 0.03)
    thing.add("base", body, fabric, "a {} base")
    tall, soft = dice.u(0.35, 0.55), dice.u(3.5, 6)
    cushions = paints.like(fabric, 0.4, 0.5)
    shift = _evenly(seats, each)
    pads = [solid.superellipsoid((depth / 2 - 0.05, each / 2, 0.09), (0.06, y, floor + 0.27), soft) for y in shift]
    words = f"{NUMBERS[seats]} {{}} seat cushions" if seats > 1 else "a single {} seat cushion"
    thing.add("seat", pads, cushions, words)
    z = floor + 0.2 + tall / 2
    if dice.chance(0.5):
        rear = [solid.box((0.2, inner + 2 * arm, tall), (-depth / 2 + 0.1, 0, z), 0.06)]
    else:
        rear = [solid.superellipsoid((0.14, each / 2, tall / 2 + 0.03), (-depth / 2 + 0.13, y, z), soft) for y in shift]
    thing.add("back", rear, paints.like(fabric, 0.6), "a high {} back" if tall > 0.45 else "a low {} back")
    style = dice.pick("boxy", "rolled", "none")
    for_arms = paints.like(fabric, 0.55)
    high = dice.u(0.22, 0.36)
    side = inner / 2 + arm / 2
    if style == "boxy":
        arms = pair(solid.box((depth, arm, high + 0.2), (0, side, floor + 0.1 + high / 2), 0.03))
    else:
        x, top = depth / 2, floor + 0.12 + high
        arms = pair(solid.box((depth, 0.7 * arm, high), (0, side, floor + 0.1 + high / 2)))
        arms += pair(solid.frustum((-x, side, top), (x, side, top), 0.6 * arm))
    if style != "none" or seats == 1:
        thing.add("armrest", arms, for_arms, f"{'boxy' if style == 'boxy' else 'rolled'} {{}} armrests")
    thing.add("leg", four_legs(dice, depth, inner + 2 * arm, floor + 0.02, "tapered"), paints.new(0.1), "short {} legs")
    if dice.chance(0.5):
        spots = [y * (inner / 2 - 0.2) for y in ((-1, 1) if seats > 1 and dice.chance(0.6) else (0,))]
        throw = [solid.superellipsoid((0.07, 0.19, 0.19), (-depth / 2 + 0.33, y, floor + 0.52), 3) for y in spots]
        tilt = solid.rotation((0, 1, 0), -14, (-depth / 2 + 0.33, 0, floor + 0.5))
        words = "a {} throw pillow" if len(spots) == 1 else "two {} throw pillows"
        thing.add("pillow", [solid.moved(p, rotate=tilt) for p in throw], paints.new(0.6), words)
    thing.adjectives.append(f"{NUMBERS[seats]}-seat")
    return thing


def bed(dice: Dice) -> Thing:
    """A bed."""
    thing, paints = Thing("bed"), Paints(dice)
    wide = dice.chance(0.5)
    width, length, floor = dice.u(1.4, 1.8) if wide else dice.u(0.85, 1.05), dice.u(1.9, 2.1), dice.u(0.14, 0.35)
    cover = paints.new(0.55)
    reach = dice.u(0.55, 0.75) * length
    spread = solid.box((reach, width + 0.07, 0.24), (length / 2 - reach / 2 + 0.04, 0, floor + 0.29), 0.05)
    thing.add("blanket", spread, cover, "a {} blanket")
    lying = solid.box((length, width, 0.2), (0, 0, floor + 0.28), 0.05)
    thing.add("mattress", lying, paints.new(0.1), "a {} mattress")
    wood = paints.new(0.3)
    sill = solid.box((length + 0.08, width + 0.08, 0.16), (0, 0, floor + 0.1), 0.01)
    thing.add("frame", sill, wood, "a {} frame")
    style, tall = dice.pick("solid", "slatted", "arched"), dice.u(0.55, 0.95)
    head = solid.joined(panel(dice, style, width + 0.08, tall, 0.07))
    head = solid.moved(head, (-length / 2 - 0.06, 0, floor))
    thing.add("headboard", head, paints.like(wood), f"a {style} {{}} headboard")
    legs = pair(solid.box((0.09, 0.09, floor + 0.05), (-length / 2, width / 2, floor / 2)))
    legs += pair(solid.box((0.09, 0.09, floor + 0.05), (length / 2, width / 2, floor / 2)))
    thing.add("leg", legs, paints.like(wood, 0.7), "four {} feet")
    if dice.chance(0.3):
        top = floor + dice.u(1.2, 1.6)
        corners = [(x * (length / 2 + 0.02), y * (width / 2 + 0.02)) for x in (-1, 1) for y in (-1, 1)]
        poles = [solid.frustum((*c, 0), (*c, top), 0.04, 0.03, 8) for c in corners]
        thing.add("pole", poles, wood, "four tall {} posts")
    two = wide or dice.chance(0.2)
    spots = (-width / 4, width / 4) if two else (0.0,)
    size = (0.2, 0.42 * width / len(spots), 0.09)
    rest = [solid.superellipsoid(size, (-length / 2 + 0.24, y, floor + 0.44), 3.5) for y in spots]
    thing.add("pillow", rest, paints.new(0.3), "two {} pillows" if two else "one {} pillow")
    thing.adjectives.append("double" if wide else "single")
    return thing


def shelf(dice: Dice) -> Thing:
    """A set of shelves, with books or bare."""
    thing, paints = Thing("shelf"), Paints(dice)
    width, depth, height, boards = dice.u(0.5, 1.1), dice.u(0.26, 0.36), dice.u(0.8, 1.9), dice.whole(3, 5)
    wood = paints.new()
    if dice.chance(0.65):
        sides = [solid.box((depth, 0.04, height), (0, y * width / 2, height / 2)) for y in (-1, 1)]
        closed = dice.chance(0.6)
        if closed:
            sides.append(solid.box((0.02, width, height - 0.06), (-depth / 2 + 0.01, 0, height / 2 + 0.03)))
        phrase = "closed {} sides and back" if closed else "{} side panels"
    else:
        corners = [(x * depth / 2, y * width / 2) for x in (-0.9, 0.9) for y in (-1, 1)]
        sides = [solid.box((0.045, 0.045, height), (*c, height / 2)) for c in corners]
        phrase = "an open {} frame of four posts"
    thing.add("frame", sides, wood, phrase)
    levels = np.linspace(0.06, height - 0.02, boards)
    planks = [solid.box((depth, width, 0.035), (0, 0, z)) for z in levels]
    thing.add("board", planks, paints.like(wood), f"{NUMBERS[boards]} {{}} boards")
    gap = levels[1] - levels[0]
    covers = [paints.new(0.1) for _ in range(3)]
    filled = dice.u(0.3, 0.9)
    books: list[list[Trimesh]] = [[], [], []]
    for z in levels[:-1]:
        y = -width / 2 + 0.05
        while y < (filled if dice.chance(0.8) else 0.5) * width - width / 2:
            thick, tall = dice.u(0.05, 0.1), dice.u(0.5, 0.85) * gap
            if y + thick > width / 2 - 0.03:
                break
            size = (0.75 * depth, thick - 0.008, tall)
            books[dice.whole(0, 2)].append(solid.box(size, (0.02, y + thick / 2, z + 0.0175 + tall / 2)))
            y += thick
    for cover, row in zip(covers, books, strict=True):
        if row:
            thing.add("book", row, cover, "books, some of them {}")
    thing.adjectives.append("tall" if height > 1.4 else "low" if height < 1.05 else "medium-height")
    return thing


def lamp(dice: Dice) -> Thing:
    """A table or floor lamp."""
    thing, paints = Thing("lamp"), Paints(dice)
    tall = dice.u(1.1, 1.6) if dice.chance(0.5) else dice.u(0.5, 0.8)
    wide = dice.u(0.16, 0.26) if tall < 1 else dice.u(0.2, 0.32)
    high = wide * dice.u(0.9, 1.6)
    style = dice.pick("conical", "drum", "dome", "globe")
    profiles = {
        "conical": [(0.35, 1), (1, 0), (0.96, 0), (0.3, 0.97)],
        "drum": [(0.85, 1), (0.95, 0), (0.9, 0), (0.8, 0.97)],
        "dome": [*(solid.arc(90, 0, 1, 9) * (1, 0.9)), (0.94, 0), *(solid.arc(0, 90, 0.9, 9) * (1, 0.9))],
        "globe": solid.arc(90, -90, 1, 15) * (0.75, 0.5) + [0, 0.5],
    }
    bent = dice.chance(0.35)
    side = dice.u(0.5, 0.9) * (wide + 0.15) if bent else 0.0
    at = tall - 0.15 * high if bent else tall - 0.5 * high
    cover = solid.lathe(np.array(profiles[style]) * (wide, high), (0, 0, -0.5 * high), 28)
    tilt = solid.rotation((0, 1, 0), -dice.u(0, 25)) if bent else None
    thing.add("shade", solid.moved(cover, (side, 0, at), tilt), paints.new(0.45), f"a {{}} {style} shade")
    thin = dice.u(0.014, 0.03)
    if bent:
        curve = np.array([(0, 0), (-0.02, 0.5), (0.05, 0.85), (0.4, 1.04), (0.8, 1.05), (1, 0.98)]) * (side, at + 0.06)
        smooth = np.array([_bezier(curve, t) for t in np.linspace(0, 1, 14)])
        pole = solid.tube(solid.upright(smooth), thin, 10)
    else:
        pole = solid.frustum((0, 0, 0), (0, 0, tall - 0.3 * high), thin, thin)
    foot = dice.pick("round", "ball", "tripod", "block")
    metal = paints.new(0.15)
    thing.add("pole", pole, metal, "a curved {} arm" if bent else "a straight {} pole")
    reach = wide * dice.u(0.55, 0.8)
    if foot == "tripod":
        spread = [(1.2 * reach * np.cos(a), 1.2 * reach * np.sin(a), 0.0) for a in (0.0, 2.09, 4.19)]
        base = [solid.frustum(end, (0, 0, 0.38 * tall), 0.016, 0.02, 8) for end in spread]
    elif foot == "block":
        base = [solid.box((1.6 * reach, 1.6 * reach, 0.06), (0, 0, 0.03), 0.015)]
    elif foot == "ball":
        base = [solid.ellipsoid((reach, reach, 0.8 * reach), (0, 0, 0.75 * reach))]
    else:
        base = [solid.lathe([(reach, 0), (reach, 0.03), (0.3 * reach, 0.06), (0, 0.08)])]
    thing.add("base", base, paints.like(metal), f"a {{}} {foot} base")
    thing.adjectives.append("floor-standing" if tall > 1 else "small")
    return thing


def _bezier(points: np.ndarray, t: float) -> np.ndarray:
    """The point at t of a Bezier curve (de Casteljau)."""
    while len(points) > 1:
        points = (1 - t) * points[:-1] + t * points[1:]
    return points[0]


def bench(dice: Dice) -> Thing:
    """A bench."""
    thing, paints = Thing("bench"), Paints(dice)
    length, depth, height = dice.u(1.1, 1.7), dice.u(0.32, 0.45), dice.u(0.4, 0.48)
    wood = paints.new(0.4)
    planks = dice.whole(3, 4) if dice.chance(0.7) else 1
    each = depth / planks
    rows = _evenly(planks, each)
    seat = [solid.box((each * (0.75 if planks > 1 else 1), length, 0.05), (x, 0, height)) for x in rows]
    thing.add("seat", seat, wood, "a {} seat of planks" if planks > 1 else "a {} solid seat")
    if dice.chance(0.6):
        rails = dice.whole(2, 3)
        bars = [solid.box((0.035, length, 0.09), (0, 0, z)) for z in np.linspace(0.14, 0.4, rails)]
        posts = [solid.box((0.05, 0.05, 0.44), (-0.03, y * length / 2.4, 0.22)) for y in (-1, 1)]
        back = solid.moved(solid.joined([*bars, *posts]), (-depth / 2, 0, height), _lean(dice, 5))
        thing.add("back", back, paints.like(wood), f"a back of {NUMBERS[rails]} {{}} rails")
    metal = paints.new(0.15)
    style = dice.pick("block", "crossed", "square")
    if style == "block":
        feet = pair(solid.box((0.9 * depth, 0.1, height), (0, length / 2.6, height / 2)))
    elif style == "crossed":
        ends = [(y * length / 2.5, s) for y in (-1, 1) for s in (-1, 1)]
        feet = [solid.frustum((-s * depth / 2, y, 0), (s * depth / 2.2, y, height), 0.03) for y, s in ends]
    else:
        feet = four_legs(dice, depth, length, height, "square")
    thing.add("leg", feet, metal, f"{style} {{}} legs")
    if dice.chance(0.4):
        at = height + 0.22
        arms = pair(solid.box((depth, 0.05, 0.04), (0, length / 2.1, at)))
        for x in (-depth / 2.4, depth / 2.4):
            arms += pair(solid.box((0.04, 0.04, 0.22), (x, length / 2.1, at - 0.11)))
        thing.add("armrest", arms, metal, "{} armrests")
    thing.adjectives.append("long" if length > 1.4 else "short")
    return thing
