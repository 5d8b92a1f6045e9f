"""Pictures of scenes laid over each other."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from condense.alignment import Array, carry, unfound
from condense.figures import seen_obliquely
from condense.voxels import VoxelScene

COLOURS = np.array([[0.72, 0.72, 0.72], [0.25, 0.5, 0.85], [0.85, 0.15, 0.15]])  # of the second, the first, unfound


def laid_over(pairs: Sequence[tuple[str, VoxelScene, VoxelScene, Array]], columns: int = 4) -> Figure:
    """Voxels of the first scene in blue over those of the second in grey; red where either has nothing near it.

    Args:
        pairs: (title, scene a, scene b, T_b_from_a [4, 4]).
        columns: pairs in a row.
    """
    rows = -(-len(pairs) // columns)
    size = (2.6 * columns, 2.9 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, a, b, T) in zip(axes.flat, pairs, strict=False):
        points = np.concatenate([b.centres.double().numpy(), carry(T, a.centres.double().numpy())])
        kind = np.repeat([0, 1], [len(b), len(a)])
        kind[np.concatenate([unfound(b, a, np.asarray(np.linalg.inv(T), dtype=float)), unfound(a, b, T)])] = 2
        place, order = seen_obliquely(points)
        dot = (130 * b.grid.voxel_size / max(np.ptp(place, axis=0).max(), 1e-9)) ** 2  # points squared: about a voxel
        depth = np.linspace(0.7, 1, len(order))[:, None]  # far voxels are darker
        axis.scatter(*place[order].T, s=dot, c=COLOURS[kind[order]] * depth, marker="s", linewidths=0)
        axis.set_title(title, fontsize=8)
        axis.set_aspect("equal")
    return figure
