"""What to ask of scenes in words, and which scenes are right: read from the captures' own descriptions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six")
Meta = dict[str, Any]


@dataclass(frozen=True)
class Queries:
    """Texts and what answers them.

    Args:
        texts: [Q].
        right: [Q, S] bool, the scenes that each is true of.
    """

    texts: tuple[str, ...]
    right: NDArray[np.bool_]

    def __getitem__(self, rows: NDArray[Any]) -> Queries:
        kept = np.arange(len(self.texts))[rows]
        return Queries(tuple(self.texts[row] for row in kept), self.right[kept])


def with_article(words: str) -> str:
    """ "a red mug", "an orange mug"."""
    return f"{'an' if words[:1].lower() in 'aeiou' else 'a'} {words}"


def caption_queries(metas: Sequence[Meta], key: str = "captions_heldout") -> Queries:
    """Every caption of every scene; right are all scenes that have it word for word."""
    texts = [text for meta in metas for text in meta.get(key, [])]
    right = [[text in meta.get(key, []) for meta in metas] for text in texts]
    return Queries(tuple(texts), np.array(right, dtype=bool).reshape(len(texts), len(metas)))


def furnished(meta: Meta) -> bool:
    """Whether a capture is a room whose things are named."""
    return meta.get("kind") == "room" and "attributes" in meta


def coloured_things(meta: Meta) -> set[tuple[str, str]]:
    """The (colour, class) of an object, or of everything in a room."""
    if furnished(meta):
        return {(str(thing["colour"]), str(thing["class"])) for thing in meta["attributes"]["instances"]}
    return {(str(meta["attributes"]["colour"]), str(meta["class"]))} if {"attributes", "class"} <= set(meta) else set()


def attribute_queries(metas: Sequence[Meta]) -> Queries:
    """ "a red armchair": each colour with each class of an object, those that no scene has included."""
    every = [coloured_things(meta) for meta in metas]
    classes = sorted({str(meta["class"]) for meta in metas if meta.get("kind") == "object" and "class" in meta})
    colours = sorted({colour for things in every for colour, _ in things})
    pairs = [(colour, name) for name in classes for colour in colours]
    right = [[pair in things for things in every] for pair in pairs]
    texts = tuple(with_article(f"{colour} {name}") for colour, name in pairs)
    return Queries(texts, np.array(right, dtype=bool).reshape(len(pairs), len(metas)))


def count_queries(rooms: Sequence[Meta]) -> Queries:
    """ "a room with two chairs": counts from one to six that some room has and another has not."""
    counts = [Counter(str(thing["class"]) for thing in meta["attributes"]["instances"]) for meta in rooms]
    texts, right = [], []
    for name in ("chair", "table", "plant", "lamp", "shelf"):
        for number in range(1, len(NUMBER_WORDS)):
            true = [count[name] == number for count in counts]
            if any(true) and not all(true):
                plural = name if number == 1 else "shelves" if name == "shelf" else f"{name}s"
                texts.append(f"a room with {NUMBER_WORDS[number]} {plural}")
                right.append(true)
    return Queries(tuple(texts), np.array(right, dtype=bool).reshape(len(texts), len(rooms)))


def relation_queries(rooms: Sequence[Meta]) -> Queries:
    """ "a room with a mug on the table": what captions say of one thing on another."""
    texts, right = [], []
    for small in ("mug", "bottle", "plant"):
        true = [any(text.endswith(f"with a {small} on the table") for text in meta["captions"]) for meta in rooms]
        if any(true) and not all(true):
            texts.append(f"a room with a {small} on the table")
            right.append(true)
    return Queries(tuple(texts), np.array(right, dtype=bool).reshape(len(texts), len(rooms)))


def part_phrases(meta: Meta) -> dict[str, str]:
    """{part: "four splayed pink legs"} of an object, as its captions would say it."""
    attributes = meta.get("attributes", {})
    return {
        part: phrase.format(attributes["materials"][part])
        for part, phrase in attributes.get("phrases", {}).items()
        if part in attributes["materials"]
    }
