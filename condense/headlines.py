"""The first table of the report: what matters most, ours beside each rival, from the metric files alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd

from condense.report import format_value, load_metrics

AHEAD, BEHIND, TOUCHING = "▲", "▼", "="  # ours against a rival's interval
SEPARATOR = "; "  # between rivals


@dataclass(frozen=True)
class Headline:
    """One row.

    Args:
        words: what is measured.
        file: the metric file's name.
        metric: in it; larger is better.
        rivals: {method: its words}.
        method: ours.
    """

    words: str
    file: str
    metric: str
    rivals: Mapping[str, str]
    method: str = "condense"


def headline_table(folder: Path, headlines: Sequence[Headline]) -> pd.DataFrame:
    """A row a headline: ours, and every rival with a sign; rows that this run did not measure are left out.

    AHEAD says that ours is better by 95 % intervals that do not touch, BEHIND that it is worse, TOUCHING neither.

    Args:
        folder: of the metric files.
        headlines: in order.
    """
    rows = {}
    for line in headlines:
        path = folder / f"{line.file}.json"
        metrics = load_metrics(path) if path.is_file() else {}
        own = metrics.get(line.method, {}).get(line.metric)
        if own is None:
            continue
        found = {words: metrics.get(method, {}).get(line.metric) for method, words in line.rivals.items()}
        beside = [
            f"{sign(own, value)} {format_value(line.metric, value)} {words}"
            for words, value in found.items()
            if value is not None
        ]
        rows[line.words] = {"here": format_value(line.metric, own), "beside it": SEPARATOR.join(beside)}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["here", "beside it"]).rename_axis("")


def sign(own: Mapping[str, float], other: Mapping[str, float]) -> str:
    """AHEAD, BEHIND or TOUCHING, by two intervals {mean, ci95}; a single value is its own interval."""
    apart = abs(own["mean"] - other["mean"]) > (own["ci95"] or 0.0) + (other["ci95"] or 0.0)
    if not apart:
        return TOUCHING
    return AHEAD if own["mean"] > other["mean"] else BEHIND


def headline_html(table: pd.DataFrame) -> str:
    """The table and what its signs mean; nothing if it is empty."""
    if table.empty:
        return ""
    rows = "".join(
        f"<tr><td>{escape(words)}</td><td>{escape(here)}</td><td>{_coloured(beside)}</td></tr>\n"
        for words, here, beside in table.itertuples()
    )
    note = (
        f"In percent, mean ± half-width of the 95 % interval. {AHEAD} ours is ahead, {BEHIND} behind, by intervals "
        f"that do not touch; {TOUCHING} they do. Paired tests, which see smaller differences, are in the sections."
    )
    head = "<tr><th></th><th>here</th><th>beside it</th></tr>"
    return f'<h2>At a glance</h2>\n<table class="headlines">{head}\n{rows}</table>\n<p class="note">{note}</p>\n'


def _coloured(beside: str) -> str:
    """The rivals, each in one piece and with a colour by its sign."""
    kinds = {AHEAD: "ahead", BEHIND: "behind", TOUCHING: "touching"}
    return " ".join(f'<span class="{kinds[rival[0]]}">{escape(rival)}</span>' for rival in beside.split(SEPARATOR))
