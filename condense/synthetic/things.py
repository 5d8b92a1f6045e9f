"""What an object is made of: named pieces with materials, and the words that are true of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from trimesh import Trimesh

from condense.synthetic import primitives as solid
from condense.synthetic import texture as tx
from condense.synthetic.render import Part
from condense.synthetic.texture import Colour, Texture

Option = TypeVar("Option")

COLOURS: dict[str, Colour] = {
    "red": (0.80, 0.12, 0.10),
    "orange": (0.93, 0.50, 0.10),
    "yellow": (0.93, 0.82, 0.18),
    "green": (0.18, 0.58, 0.22),
    "teal": (0.10, 0.58, 0.60),
    "blue": (0.14, 0.28, 0.78),
    "purple": (0.48, 0.20, 0.65),
    "pink": (0.93, 0.50, 0.66),
    "brown": (0.45, 0.28, 0.15),
    "white": (0.92, 0.92, 0.90),
    "grey": (0.52, 0.53, 0.55),
    "black": (0.15, 0.15, 0.17),
}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
# Part names of all classes; a part's id is its place here, counted from 1. A leg is a leg on any class.
PARTS = (
    *("seat", "back", "leg", "armrest", "top", "drawer", "base", "pillow", "mattress", "frame", "headboard"),
    *("blanket", "board", "book", "pole", "shade", "body", "handle", "saucer", "drink", "neck", "cap", "label"),
    *("pot", "stem", "leaf", "flower", "window", "roof", "wheel", "light", "spoiler", "fuselage", "wing", "tail"),
    *("engine", "propeller", "hull", "mast", "sail", "cabin", "funnel", "cab", "cargo", "spout", "lid", "rotor"),
    *("skid", "deck"),
)


class Dice:
    """Draws from one seeded stream."""

    def __init__(self, *seed: int):
        self.rng = np.random.default_rng(seed)

    def u(self, low: float, high: float) -> float:
        """A number between low and high."""
        return float(self.rng.uniform(low, high))

    def pick(self, *options: Option) -> Option:
        """One of the options."""
        return options[int(self.rng.integers(len(options)))]

    def chance(self, probability: float) -> bool:
        """True so often."""
        return bool(self.rng.random() < probability)

    def whole(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return int(self.rng.integers(low, high + 1))


@dataclass(frozen=True)
class Material:
    """A texture and the words for it."""

    texture: Texture
    words: str
    colour: str
    gloss: float


def shade_of(dice: Dice, name: str) -> Colour:
    """A shade of a named colour: a little lighter or darker, hue kept."""
    r, g, b = np.clip(np.asarray(COLOURS[name]) * dice.u(0.85, 1.12) + dice.rng.uniform(-0.03, 0.03, 3), 0.03, 0.97)
    return float(r), float(g), float(b)


class Paints:
    """Materials of one object: colours are not repeated until they run out, and owe nothing to its class."""

    def __init__(self, dice: Dice):
        self.dice = dice
        self.left: list[str] = []

    def colour(self) -> str:
        """The next colour name."""
        if not self.left:
            self.left = [str(name) for name in self.dice.rng.permutation(list(COLOURS))]
        return self.left.pop()

    def new(self, patterned: float = 0.45, among: Sequence[str] = ()) -> Material:
        """A material, patterned so often; with its first colour `among` some, if given."""
        dice = self.dice
        first = dice.pick(*among) if among else self.colour()
        a, gloss = shade_of(dice, first), dice.u(0.0, 0.25)
        if not dice.chance(patterned):
            return Material(tx.Plain(a), first, first, gloss)
        style = dice.pick("stripes", "checks", "spots", "wood", "gradient", "marble")
        if style == "wood":
            light, dark = dice.pick(((0.76, 0.58, 0.36), (0.60, 0.42, 0.24)), ((0.50, 0.32, 0.18), (0.34, 0.20, 0.11)))
            wood = tx.Wood(light, dark, dice.u(0.1, 0.16), dice.whole(0, 99))
            return Material(wood, "light wooden" if light[0] > 0.6 else "dark wooden", "brown", gloss)
        second = self.colour()
        b = shade_of(dice, second)
        axis = dice.pick((0.0, 0.0, 1.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.6, 0.0, 0.8))
        make: dict[str, Callable[[], Texture]] = {
            "stripes": lambda: tx.Stripes(a, b, dice.u(0.12, 0.26), axis),
            "checks": lambda: tx.Checks(a, b, dice.u(0.18, 0.32)),
            "spots": lambda: tx.Spots(a, b, dice.u(0.16, 0.26)),
            "gradient": lambda: tx.Gradient(a, b, axis, dice.u(0.25, 0.45)),
            "marble": lambda: tx.Marble(a, b, dice.u(0.2, 0.35), dice.whole(0, 99)),
        }
        texture = make[style]()
        return Material(texture, f"{first} and {second} {texture.pattern}", first, gloss)

    def like(self, other: Material, probability: float = 0.4, patterned: float = 0.3) -> Material:
        """The other material so often, else a new one."""
        return other if self.dice.chance(probability) else self.new(patterned)


@dataclass(frozen=True)
class Piece:
    """A mesh with its part name and material."""

    name: str
    mesh: Trimesh
    material: Material


@dataclass
class Thing:
    """An object in its own frame: +X is its front, +Z up, furniture in metres.

    `phrases` maps a part to words with a gap for its material, such as "four {} legs". The first part added is
    the one that gives the object its colour.
    """

    kind: str
    adjectives: list[str] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    phrases: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, meshes: Trimesh | Sequence[Trimesh], material: Material, phrase: str = "") -> None:
        """Adds a piece; `phrase` has a gap {} for the material."""
        mesh = meshes if isinstance(meshes, Trimesh) else solid.joined(meshes)
        self.pieces.append(Piece(name, mesh, material))
        if phrase:
            self.phrases.setdefault(name, phrase)

    def material(self, name: str) -> Material:
        """The material of the first piece of that name."""
        return next(piece.material for piece in self.pieces if piece.name == name)

    @property
    def bounds(self) -> np.ndarray:
        """[2, 3] lower and upper corner."""
        each = np.array([piece.mesh.bounds for piece in self.pieces])
        return np.stack([each[:, 0].min(0), each[:, 1].max(0)])

    def unit_frame(self, yaw: float = 0.0) -> np.ndarray:
        """[4, 4] T_unit_from_object: turned by `yaw` degrees, centred, longest side of the box = 0.96."""
        T = solid.rotation((0, 0, 1), yaw)
        points = np.concatenate([piece.mesh.vertices for piece in self.pieces]) @ T[:3, :3].T
        low, high = points.min(0), points.max(0)
        scale = 0.96 / (high - low).max()
        T[:3, :3] *= scale
        T[:3, 3] = -scale * (low + high) / 2
        return T

    def placed(self, T_world_from_object: np.ndarray, label: int = 0, instance: int = 1) -> list[Part]:
        """The object's parts in the world, labelled by part, or all with `label` if given."""
        lookup = self.unit_frame() @ np.linalg.inv(T_world_from_object)
        return [
            Part(
                piece.mesh.copy().apply_transform(T_world_from_object),
                piece.material.texture,
                label or PARTS.index(piece.name) + 1,
                instance,
                piece.material.gloss,
                lookup,
            )
            for piece in self.pieces
        ]
