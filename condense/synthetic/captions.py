"""Sentences that are true of a capture: several paraphrases, and phrasings kept back to test language."""

from __future__ import annotations

import re
from collections.abc import Sequence

from condense.synthetic.things import NUMBERS, Dice, Thing

# The words of the held-out captions name the same thing otherwise, where English has another word.
OTHER_WORDS = {
    "aeroplane": "plane",
    "bed": "bed to sleep in",
    "bench": "seat for several people",
    "boat": "vessel",
    "bottle": "flask",
    "car": "automobile",
    "chair": "seat for one person",
    "helicopter": "chopper",
    "lamp": "light",
    "mug": "cup",
    "plant": "houseplant",
    "shelf": "bookcase",
    "sofa": "couch",
    "table": "desk",
    "teapot": "pot for tea",
    "truck": "lorry",
}


def tidy(text: str) -> str:
    """Single spaces, "an" before a vowel."""
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)


def coloured(thing: Thing, part: str) -> str:
    """The phrase of a part with its material: "four brown legs"."""
    return tidy(thing.phrases[part].format(thing.material(part).words))


def bare(thing: Thing, part: str) -> str:
    """The phrase of a part without its material: "four legs"."""
    return tidy(thing.phrases[part].format(""))


def object_captions(dice: Dice, thing: Thing) -> tuple[list[str], list[str]]:
    """Captions and held-out captions of an object."""
    kind, adjective = thing.kind, thing.adjectives[0]
    main = thing.pieces[0].material
    first, *others = thing.phrases
    order = [others[int(i)] for i in dice.rng.permutation(len(others))] or [first]
    a, b, c = (order * 3)[:3]
    captions = [
        f"a {main.colour} {kind}",
        f"a {adjective} {kind} with {coloured(thing, first)}",
        f"a {main.words} {kind} with {coloured(thing, a)}",
        f"{adjective} {kind}: {listed([coloured(thing, part) for part in dict.fromkeys((first, a, b))])}",
        f"a {kind} with {bare(thing, a)} and {coloured(thing, b if b != a else first)}",
        f"a picture of a {adjective} {main.colour} {kind} that has {bare(thing, c)}",
    ]
    other = OTHER_WORDS[kind]
    heldout = [
        f"this {other} is mostly {main.colour} and comes with {coloured(thing, a)}",
        f"find the {adjective} {other} which has {coloured(thing, b)}",
    ]
    return [tidy(c) for c in captions], [tidy(c) for c in heldout]


def listed(items: Sequence[str]) -> str:
    """ "a, b and c"."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def counted(kinds: Sequence[str]) -> list[str]:
    """["two chairs", "one table"] from kinds that may repeat, in the order first met."""
    names = []
    for kind in dict.fromkeys(kinds):
        count = list(kinds).count(kind)
        plural = "shelves" if kind == "shelf" else f"{kind}s"
        names.append(f"{NUMBERS[min(count, 6)]} {kind if count == 1 else plural}")
    return names
