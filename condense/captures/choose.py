"""Which captures a run uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from condense.captures.capture import Capture


def choose(captures: Sequence[Capture], per_class: int = 0) -> list[Capture]:
    """The first `per_class` captures of each class and split, in order; 0 keeps all.

    Captures without a class (real photographs) are all kept.
    """
    taken: Counter[tuple[str, str]] = Counter()
    kept = []
    for capture in captures:
        key = (capture.meta.get("class", capture.name), capture.meta.get("split", ""))
        taken[key] += 1
        if not per_class or taken[key] <= per_class:
            kept.append(capture)
    return kept


def for_training(captures: Sequence[Capture]) -> list[Capture]:
    """The captures that networks may learn from: training instances of seen classes, and all without a split."""
    return [c for c in captures if c.meta.get("split", "train") == "train" and not c.meta.get("heldout_class", False)]
