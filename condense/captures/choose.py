"""Which captures a run uses."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from condense.captures.capture import Capture


def choose(captures: Sequence[Capture], per_class: int = 0, classes: int = 0) -> list[Capture]:
    """The first `per_class` captures of each class and split, of the first `classes` classes; 0 keeps all.

    Objects and rooms, and classes that pre-training sees and those held out, count apart. Captures without a class
    (real photographs) are all kept.
    """
    names: defaultdict[tuple[str, bool], list[str]] = defaultdict(list)
    taken: Counter[tuple[str, str]] = Counter()
    kept = []
    for capture in captures:
        name = capture.meta.get("class")
        some = names[capture.meta.get("kind", ""), bool(capture.meta.get("heldout_class"))]
        if name is not None and name not in some and not (classes and len(some) == classes):
            some.append(name)
        key = (capture.name if name is None else name, capture.meta.get("split", ""))
        taken[key] += 1
        if (name is None or name in some) and (not per_class or taken[key] <= per_class):
            kept.append(capture)
    return kept


def for_training(captures: Sequence[Capture]) -> list[Capture]:
    """The captures that networks may learn from: training instances of seen classes, and all without a split."""
    return [c for c in captures if c.meta.get("split", "train") == "train" and not c.meta.get("heldout_class", False)]
