"""What surrounds an object: cameras, light and background, drawn per capture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from condense.cameras import Cameras, look_at
from condense.synthetic.render import Light, Part
from condense.synthetic.texture import Colour
from condense.synthetic.things import Dice

GOLDEN = np.pi * (3 - np.sqrt(5))


@dataclass(frozen=True)
class Backdrop:
    """A background at infinity: a vertical passage between two colours, and a soft glow in one direction."""

    low: Colour
    high: Colour
    glow: Colour
    towards: tuple[float, float, float]

    def __call__(self, directions: np.ndarray) -> np.ndarray:
        """Colours [N, 3] of unit directions [N, 3]."""
        rise = np.clip(0.5 + 0.7 * directions[:, 2:], 0, 1)
        colour = (1 - rise) * np.asarray(self.low) + rise * np.asarray(self.high)
        glow = np.exp(4 * (directions @ np.asarray(self.towards) - 1))[:, None]
        return (1 - 0.6 * glow) * colour + 0.6 * glow * np.asarray(self.glow)


def random_backdrop(dice: Dice) -> Backdrop:
    """A backdrop of three muted colours."""
    base = 0.3 * dice.rng.uniform(0.0, 1.0, 3) + 0.7 * dice.u(0.1, 1.0)

    def near(spread: float) -> Colour:
        r, g, b = np.clip(base + dice.rng.uniform(-spread, spread, 3), 0.05, 0.98)
        return float(r), float(g), float(b)

    x, y, z = dice.rng.normal(size=3)
    n = float(np.sqrt(x * x + y * y + z * z))
    return Backdrop(near(0.12), near(0.12), near(0.3), (x / n, y / n, z / n))


def random_light(dice: Dice) -> Light:
    """A lamp from above, a little warm or cold."""
    azimuth, height, warm = dice.u(0, 2 * np.pi), dice.u(0.9, 2.5), dice.u(-0.06, 0.06)
    direction = (float(np.cos(azimuth)), float(np.sin(azimuth)), height)
    return Light(direction, dice.u(0.5, 0.7), (1 + warm, 1.0, 1 - warm))


def pinhole(focal: float, eyes: np.ndarray, targets: np.ndarray, size: int) -> Cameras:
    """Square cameras of `size` pixels at `eyes` [V, 3] that look at `targets` [V, 3]."""
    poses = look_at(torch.from_numpy(eyes), torch.from_numpy(targets)).float()
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    return Cameras(K.expand(len(eyes), 3, 3).clone(), poses, torch.tensor([[size, size]]).expand(len(eyes), 2).clone())


def around(dice: Dice, parts: Sequence[Part], views: int, size: int) -> Cameras:
    """Cameras on a spiral about the origin, from a little below to nearly above, which the parts just fill."""
    i = np.arange(views)
    rise = -0.2 + 1.12 * (i + dice.rng.uniform(0.2, 0.8, views)) / views  # sine of the elevation
    azimuth = dice.u(0, 2 * np.pi) + GOLDEN * i + dice.rng.uniform(-0.15, 0.15, views)
    flat = np.sqrt(1 - rise**2)
    eyes = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), rise], -1)
    eyes *= dice.rng.uniform(1.7, 2.1, (views, 1))
    cameras = pinhole(1.0, eyes, dice.rng.uniform(-0.02, 0.02, (views, 3)), size)
    points = torch.from_numpy(np.concatenate([part.mesh.vertices for part in parts])).float()
    reach = max(float((cameras.project(v, points)[0] - size / 2).abs().max()) for v in range(views))
    cameras.K[:, :2, :2] *= 0.48 * size / reach
    return cameras
