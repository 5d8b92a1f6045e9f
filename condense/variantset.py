"""The variants of a run's captures, fitted and linked as the captures are; and scenes derived without a new fit.

Derived scenes are made from voxels alone, so they differ from the original only in what was done to them: recoloured,
turned, cropped. Nothing here is differentiable.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from condense.batches import draw_recolour
from condense.batches import recoloured as mapped
from condense.captures.capture import Capture
from condense.captures.reader import read_capture
from condense.fieldset import fit_capture, kind_of
from condense.links import write_links
from condense.parallel import parallel_map
from condense.params import FieldsByKind, LinksParams
from condense.synthetic.variants import VARIANTS, write_variant
from condense.voxels import Turn, VoxelScene, batch_scenes, cell_means


def base_captures(
    captures: Sequence[Capture], per_class: int, rooms: int, classes: int = 0, split: str = "test"
) -> list[Capture]:
    """The first instances of a split that get variants: so many of each class of objects, held-out classes included.

    Captures that are not built in (whose meta has no seed) have none.

    Args:
        captures: to choose from.
        per_class: objects of each class.
        rooms: how many.
        classes: of objects, the first so many; 0 takes all.
        split: of the instances.
    """
    taken: Counter[str] = Counter()
    chosen = []
    for capture in captures:
        if "seed" in capture.meta and capture.meta["split"] == split:
            room = capture.meta["kind"] == "room"
            kind = "room" if room else capture.meta["class"]
            known = kind in taken or room or not classes or len(set(taken) - {"room"}) < classes
            if known and taken[kind] < (rooms if room else per_class):
                taken[kind] += 1
                chosen.append(capture)
    return chosen


def make_variants(
    bases: Sequence[Capture],
    folder: Path,
    teacher: Path,
    fields: FieldsByKind,
    links: LinksParams,
    seed: int,
    processes: int,
) -> list[Path]:
    """Every variant of the captures as links, `<base's name>_<variant>.safetensors` below `folder`.

    Read one with `load_links`. Captures and fields are kept in `captures/` and `fields/` there. What is finished is not
    made again. Arguments as of `make_variant`.
    """
    jobs = [(base, variant, folder, teacher, fields, links, seed) for base in bases for variant in VARIANTS]
    return parallel_map(make_variant, jobs, processes, "variants")


def make_variant(
    base: Capture, variant: str, folder: Path, teacher: Path, fields: FieldsByKind, links: LinksParams, seed: int
) -> Path:
    """Writes, fits and links one variant, as the stages `fit` and `link` do. One job of `parallel_map`.

    Args:
        base: a built-in capture.
        variant: one of VARIANTS.
        folder: of the artefact.
        teacher: the frozen network's .safetensors, standardised.
        fields: settings of the fields, by kind of capture.
        links: resolution and image size.
        seed: of the fit.

    Raises:
        ValueError: the base has no variants, or its variant cannot be fitted.
    """
    name = f"{base.name}_{variant}"
    target, file = folder / f"{name}.safetensors", folder / "captures" / f"{name}.zip"
    if target.is_file():
        return target
    capture = read_capture(write_variant(file, base.name, base.meta, variant), name=name)
    field = folder / "fields" / f"{name}.safetensors"
    fitted = fit_capture(capture, field, getattr(fields, kind_of(capture)), seed)
    if fitted.error:
        raise ValueError(f"{name} cannot be fitted: {fitted.error}")
    return write_links(capture, field, teacher, target, links)


@dataclass(frozen=True)
class Derived:
    """A scene made from another one's N voxels.

    Args:
        scene: its M voxels.
        T_derived_from_original: [4, 4] float64, rigid, world to world.
        cell: [N] int64 the voxel of `scene` that each voxel of the original went to, -1 where it was dropped.
    """

    scene: VoxelScene
    T_derived_from_original: Tensor
    cell: Tensor

    def carry(self, values: Tensor) -> Tensor:
        """[M, C] what the derived voxels have of the original's values [N, C]: the mean of those that met."""
        kept = self.cell >= 0
        return cell_means(values[kept], self.cell[kept], len(self.scene))

    def then(self, other: Derived) -> Derived:
        """This, and after it `other`, which was made from `self.scene`."""
        cell = torch.where(self.cell >= 0, other.cell[self.cell.clamp_min(0)], -1)
        return Derived(other.scene, other.T_derived_from_original @ self.T_derived_from_original, cell)


def recoloured(scene: VoxelScene, seed: int, draws: int = 6) -> Derived:
    """The scene in clearly other colours: hue, contrast and brightness changed, by the strongest of some draws."""
    rng = np.random.default_rng([seed, 0])
    choices = [mapped(scene.colour, draw_recolour(rng, 1.0)) for _ in range(draws)]
    colour = max(choices, key=lambda choice: float((choice - scene.colour).abs().mean()))
    eye = torch.eye(4, dtype=torch.float64)
    return Derived(dataclasses.replace(scene, colour=colour), eye, torch.arange(len(scene)))


def rotated(scene: VoxelScene, seed: int) -> Derived:
    """The scene turned by any angle about +z, on an upright grid again (see `voxels.turn_coords`).

    Raises:
        ValueError: the grid is contracted: it has no rigid turn.
    """
    if scene.grid.contracted:
        raise ValueError("a scene in a contracted grid cannot be turned rigidly: give one of a bounded grid")
    turn = Turn(float(np.random.default_rng([seed, 1]).uniform(0, 2 * math.pi)))
    batch = batch_scenes([scene], [turn])
    density = -torch.log1p(-batch.opacity.clamp_max(1 - 1e-6))
    turned = VoxelScene(batch.coords[:, 1:], density, batch.colour, dataclasses.replace(scene.grid, shape=batch.shape))
    T, size = torch.eye(4, dtype=torch.float64), scene.grid.voxel_size
    origin, old, new = (torch.tensor(x, dtype=T.dtype) for x in (scene.grid.origin, scene.grid.shape, batch.shape))
    T[:3, :3] = turn.matrix
    T[:3, 3] = origin + size * new / 2 - turn.matrix @ (origin + size * old / 2)  # the middles of the grids meet
    return Derived(turned, T, batch.rows)


def cropped(scene: VoxelScene, seed: int) -> Derived:
    """The scene on one side of a random plane, 60 to 75 % of its voxels, on the grid that just holds them."""
    rng = np.random.default_rng([seed, 2])
    along = _along(scene, rng)
    return _part(scene, along <= along.quantile(float(rng.uniform(0.6, 0.75))))


def overlapping(scene: VoxelScene, seed: int) -> tuple[Derived, Derived]:
    """Two parts of the scene that share half of each, the second turned by any angle."""
    along = _along(scene, np.random.default_rng([seed, 3]))
    low, high = (float(along.quantile(share)) for share in (1 / 3, 2 / 3))
    first, second = _part(scene, along <= high), _part(scene, along >= low)
    return first, second.then(rotated(second.scene, seed))


def _along(scene: VoxelScene, rng: np.random.Generator) -> Tensor:
    """[N] places of the voxels along a random direction."""
    direction = torch.from_numpy(rng.normal(size=3)).float()
    return scene.coords.float() @ (direction / direction.norm())


def _part(scene: VoxelScene, kept: Tensor) -> Derived:
    """The voxels `kept` [N] bool on a grid of their own; the world stays."""
    coords = scene.coords[kept]
    low, high = coords.amin(0), coords.amax(0)
    x, y, z = (high - low + 1).tolist()
    start = [o + scene.grid.voxel_size * first for o, first in zip(scene.grid.origin, low.tolist(), strict=True)]
    grid = dataclasses.replace(scene.grid, origin=(start[0], start[1], start[2]), shape=(x, y, z))
    part = VoxelScene(coords - low, scene.density[kept], scene.colour[kept], grid)
    cell = torch.where(kept, kept.cumsum(0) - 1, -1)
    return Derived(part, torch.eye(4, dtype=torch.float64), cell)
