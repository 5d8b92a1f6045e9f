"""Labelled voxels in a page of their own: turned with a finger or the mouse, without any library or network."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from condense.figures import label_colours
from condense.paths import write_atomically


@dataclass(frozen=True)
class ColouredVoxels:
    """One capture, its voxels named in several ways.

    Args:
        title: of the capture.
        coords: [N, 3] int x, y, z below 256.
        labels: {panel: [N] int place in `names`, 0 = no label}, such as the truth beside predictions.
        names: of the labels; a label whose name is empty stays out of the legend.
        colours: [len(names), 3] in [0, 1], such as a colour map's for levels of heat; None: those of `label_colours`.
    """

    title: str
    coords: NDArray[np.integer]
    labels: Mapping[str, NDArray[np.integer]]
    names: Sequence[str]
    colours: NDArray[np.floating] | None = None


def exposed(coords: NDArray[np.integer]) -> NDArray[np.bool_]:
    """[N] whether one of a voxel's six faces is free: the others cannot be seen."""
    filled = np.zeros(coords.max(0) + 3, bool)
    at = coords + 1
    filled[tuple(at.T)] = True
    sides = [filled[tuple((at + sign * axis).T)] for axis in np.eye(3, dtype=int) for sign in (-1, 1)]
    return ~np.all(sides, axis=0)


def heated_voxels(
    title: str,
    coords: NDArray[np.integer],
    heat: Mapping[str, NDArray[np.floating]],
    limits: tuple[float, float],
    levels: int = 64,
) -> ColouredVoxels:
    """Voxels coloured by numbers, from dark at the first limit to bright at the second.

    Args:
        title: of the capture.
        coords: [N, 3] int x, y, z below 256.
        heat: {panel: [N]}.
        limits: the ends of the scale; what lies beyond gets their colours.
        levels: colours of the scale, at most 255.
    """
    low, high = limits
    placed = {panel: ((v - low) / (high - low) * levels).astype(int).clip(0, levels - 1) for panel, v in heat.items()}
    colours = plt.get_cmap("inferno")(np.linspace(0.05, 1, levels))[:, :3]
    return ColouredVoxels(title, coords, placed, [""] * levels, colours)


def viewer_page(captures: Sequence[ColouredVoxels], title: str, note: str = "") -> str:
    """One self-contained page that shows captures side by side in their panels, and a note below them."""
    scenes = []
    for capture in captures:
        kept = exposed(capture.coords)
        used = sorted({int(label) for values in capture.labels.values() for label in np.unique(values[kept])} - {0})
        colours = label_colours(len(capture.names)) if capture.colours is None else capture.colours
        scenes.append(
            {
                "title": capture.title,
                "coords": _packed(capture.coords[kept]),
                "panels": {panel: _packed(values[kept]) for panel, values in capture.labels.items()},
                "colours": [[round(255 * channel) for channel in colour] for colour in colours.tolist()],
                "legend": [[label, capture.names[label]] for label in used if capture.names[label]],
            }
        )
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    data = json.dumps(scenes, separators=(",", ":")).replace("</", "<\\/")
    return environment.get_template("viewer.html.j2").render(title=title, note=note, data=data)


def write_viewer(path: Path, captures: Sequence[ColouredVoxels], title: str, note: str = "") -> Path:
    """Writes `viewer_page`."""
    page = viewer_page(captures, title, note)
    write_atomically(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return path


def _packed(values: NDArray[np.integer]) -> str:
    return base64.b64encode(values.astype(np.uint8).tobytes()).decode()
