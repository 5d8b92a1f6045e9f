"""Procedural solid textures: each maps points of an object's frame to colours, with no view dependence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

Colour = tuple[float, float, float]


def value_noise(points: np.ndarray, seed: int = 0) -> np.ndarray:
    """Smooth noise in [0, 1] at points [N, 3]: random values on the integer lattice, smoothstep between them."""
    cell = np.floor(points).astype(np.int64)
    f = points - cell
    f = f * f * (3 - 2 * f)
    total = np.zeros(len(points))
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(corner, f, 1 - f), axis=1)
        total += weight * _lattice(cell + corner, seed)
    return total


def _lattice(cell: np.ndarray, seed: int) -> np.ndarray:
    """A number in [0, 1) for each integer cell [N, 3], by integer hashing (the same on every machine)."""
    x, y, z = (cell[:, i].astype(np.uint64) & np.uint64(0xFFFFFFFF) for i in range(3))
    h = x * np.uint64(73856093) ^ y * np.uint64(19349663) ^ z * np.uint64(83492791) ^ np.uint64(seed * 2654435761)
    h = (h ^ (h >> np.uint64(13))) * np.uint64(0x5BD1E995) & np.uint64(0xFFFFFFFF)
    h = (h ^ (h >> np.uint64(15))) * np.uint64(0x27D4EB2D) & np.uint64(0xFFFFFFFF)
    return (h ^ (h >> np.uint64(16))) / 2.0**32


@dataclass(frozen=True)
class Plain:
    """One colour."""

    colour: Colour
    pattern: ClassVar[str] = "plain"

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Colours [N, 3] in [0, 1] of points [N, 3] in the object's frame."""
        return np.broadcast_to(np.asarray(self.colour), (len(points), 3)).copy()


@dataclass(frozen=True)
class Mixed(ABC):
    """Two colours, mixed by an `_amount` that a subclass says; `pattern` is the adjective that a caption uses."""

    a: Colour
    b: Colour
    pattern: ClassVar[str]

    @abstractmethod
    def _amount(self, points: np.ndarray) -> np.ndarray:
        """How much of `b`, from 0 to 1, shows at points [N, 3]: [N]."""

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Colours [N, 3] in [0, 1] of points [N, 3] in the object's frame."""
        a, b = np.asarray(self.a), np.asarray(self.b)
        return a + self._amount(points)[:, None] * (b - a)


@dataclass(frozen=True)
class Stripes(Mixed):
    """Bands across `axis`; a pair of bands is `period` long."""

    period: float = 0.2
    axis: tuple[float, float, float] = (0.0, 0.0, 1.0)
    pattern: ClassVar[str] = "striped"

    def _amount(self, points: np.ndarray) -> np.ndarray:
        return (np.mod(points @ np.asarray(self.axis) / self.period + 0.13, 1) < 0.5) * 1.0


@dataclass(frozen=True)
class Checks(Mixed):
    """Cubes of the colours in turn; a pair of cubes is `period` long."""

    period: float = 0.24
    pattern: ClassVar[str] = "checked"

    def _amount(self, points: np.ndarray) -> np.ndarray:
        return np.floor(points / (self.period / 2) + 0.27).sum(axis=1) % 2


@dataclass(frozen=True)
class Spots(Mixed):
    """Balls of colour `b` on `a`, on a staggered lattice of `period`."""

    period: float = 0.22
    pattern: ClassVar[str] = "spotted"

    def _amount(self, points: np.ndarray) -> np.ndarray:
        near = np.full(len(points), np.inf)
        for shift in (0.0, 0.5):  # body-centred cubic lattice
            offset = np.mod(points / self.period + 0.31 + shift, 1) - 0.5
            near = np.minimum(near, (offset**2).sum(axis=1))
        return (near < 0.33**2) * 1.0


@dataclass(frozen=True)
class Wood(Mixed):
    """Wavy growth rings about an axis beside the object."""

    period: float = 0.14
    seed: int = 0
    pattern: ClassVar[str] = "wooden"

    def _amount(self, points: np.ndarray) -> np.ndarray:
        wobble = value_noise(points * (3.0, 3.0, 1.5), self.seed) * 0.12
        radius = np.hypot(points[:, 0] + 0.9, points[:, 1] * 0.6 + points[:, 2] * 0.8 + 0.7) + wobble
        return 0.5 + 0.5 * np.sin(2 * np.pi * radius / self.period)


@dataclass(frozen=True)
class Gradient(Mixed):
    """A smooth passage along `axis`, from -`reach` to +`reach`."""

    axis: tuple[float, float, float] = (0.0, 0.0, 1.0)
    reach: float = 0.4
    pattern: ClassVar[str] = "two-tone"

    def _amount(self, points: np.ndarray) -> np.ndarray:
        return np.clip(points @ np.asarray(self.axis) / (2 * self.reach) + 0.5, 0, 1)


@dataclass(frozen=True)
class Marble(Mixed):
    """Clouds of noise."""

    period: float = 0.25
    seed: int = 0
    pattern: ClassVar[str] = "marbled"

    def _amount(self, points: np.ndarray) -> np.ndarray:
        scaled = points / self.period
        noise = (value_noise(scaled, self.seed) + 0.5 * value_noise(2.1 * scaled, self.seed + 1)) / 1.5
        return np.clip((noise - 0.5) * 3 + 0.5, 0, 1)


Texture = Plain | Mixed
