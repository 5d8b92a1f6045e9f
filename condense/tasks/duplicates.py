"""Which scenes of a repository are the same one? Re-captured, recoloured, turned, cropped, or overlapping in part.

A method shortlists each scene's nearest others by a few vectors a scene; only those pairs are compared in full:
key points are matched, the scenes laid over each other, and the alignment judged by what is where (`alignment`).

- `condense`: key points of the scene model.
- `fpfh`: key points described by shape alone (`geometrydescriptor`); all else as `condense`.
- `pooled`, `pooled_teacher`, `shape_histogram`: the cosine of one vector a scene, nothing else: the scene model's, the
  frozen network's features lifted from the training views and averaged, and a histogram over heights and radii. Derived
  scenes have no images: they keep the lifted features of what they were made from, an advantage of `pooled_teacher`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from condense.alignment import Shape, align
from condense.devices import open_device
from condense.extraction import condense_scene
from condense.geometrydescriptor import shape_keypoints
from condense.keypoints import KeyPoints
from condense.links import Links, load_links
from condense.ranking import pool
from condense.sparse import load_sparse
from condense.tasks.descriptors import shape_histogram
from condense.variantset import Derived, cropped, overlapping, recoloured, rotated
from condense.voxels import VoxelScene

Array = NDArray[np.float64]
POSITIVE = ("again", "recoloured", "rotated", "cropped", "overlap")
POINTS = 256  # key points a scene
SHORTLIST, BY_SHAPE = 12, 4  # others that a scene is compared with in full: by parts, and by `shape_histogram`
PARTS = 32  # pooled vectors of a scene that shortlists go by
ALIKE = 8  # of them, those that are most alike, count: two scenes may share a part alone
# Weights of the evidence of an alignment, and the bias: logistic regression on variants of validation captures.
DECISION = {
    "condense": (2.70, -6.16, -2.82, 0.59, 0.72, 3.51, -11.24, -5.55),
    "fpfh": (3.88, -4.79, -2.58, 0.51, 0.63, 2.45, -9.96, -7.50),
}


@dataclass(frozen=True)
class Item:
    """A scene of the benchmark.

    Args:
        name: unique.
        base: the capture it stems from.
        kind: "original", "again", "twin", "part_a", "part_b", or a derived kind of POSITIVE.
        scene: its voxels.
        T_from_base: [4, 4] T_item_from_base, world to world.
        teacher: [D] mean of the frozen network's features on its voxels.
    """

    name: str
    base: str
    kind: str
    scene: VoxelScene
    T_from_base: Array
    teacher: Tensor


def benchmark_items(links: Iterable[Path], variants: Iterable[Path]) -> list[Item]:
    """Test captures, the variants, and of each capture with variants the scenes derived from its `again`."""
    items = [_item(load_links(path, ())) for path in links]
    bases = {item.name for item in items}
    for number, path in enumerate(variants):
        linked = load_links(path, ())
        if linked.meta["base"] in bases:
            items.append(_item(linked))
            if linked.meta["variant"] == "again":
                items += _derived_items(items[-1], linked, number)
    return items


def _item(links: Links) -> Item:
    meta = links.meta
    T = np.array(meta.get("T_variant_from_original", np.eye(4)))
    kind, base = meta.get("variant", "original"), meta.get("base", links.name)
    return Item(links.name, base, kind, links.scene, T, links.lifted.mean(0))


def _derived_items(again: Item, links: Links, seed: int) -> list[Item]:
    parts = overlapping(links.scene, seed)
    made = {"recoloured": recoloured(links.scene, seed), "rotated": rotated(links.scene, seed)}
    made |= {"cropped": cropped(links.scene, seed), "part_a": parts[0], "part_b": parts[1]}
    return [_derived_item(again, kind, derived, links.lifted) for kind, derived in made.items()]


def _derived_item(again: Item, kind: str, derived: Derived, lifted: Tensor) -> Item:
    T = derived.T_derived_from_original.numpy() @ again.T_from_base
    teacher = derived.carry(lifted).mean(0)
    name = f"{again.base}_{kind}"
    return dataclasses.replace(again, name=name, kind=kind, scene=derived.scene, T_from_base=T, teacher=teacher)


@dataclass(frozen=True)
class Found:
    """What a method found among N scenes.

    Args:
        score: [N, N] symmetric, higher for pairs more likely to be one; -inf where a pair was not compared, or could
            not be laid over each other.
        compared: pairs that were compared in full.
        poses: T_b_from_a [4, 4] of those that were laid over each other, by (a, b), a < b.
    """

    score: Array
    compared: int
    poses: dict[tuple[int, int], Array]


def by_vectors(vectors: Tensor) -> Found:
    """Pairs of scenes by the cosine of their vectors [N, D] alone."""
    unit = normalize(vectors.double(), dim=1)
    return Found((unit @ unit.T).numpy(), 0, {})


def by_parts(points: Sequence[KeyPoints], parts: int = PARTS, alike: int = ALIKE) -> Array:
    """[N, N] how well the `alike` best found of one scene's `parts` pooled vectors are found among the other's.

    The better way round counts. Scenes that overlap share some parts, not their mean.
    """
    vectors = torch.stack([pool(some.descriptors, some.scores, parts) for some in points])  # [N, P, D]
    flat = vectors.flatten(0, 1)
    best = [(flat @ some.T).view(len(points), parts, parts).amax(1) for some in vectors]  # [N, P] of each scene
    found = torch.stack([cosines.topk(min(alike, parts), dim=1).values.mean(1) for cosines in best])
    return torch.maximum(found, found.T).double().numpy()


def shortlisted(similarity: Array, count: int) -> set[tuple[int, int]]:
    """The pairs (a, b), a < b, of which one is among the `count` nearest of the other by similarity [N, N]."""
    others = np.where(np.eye(len(similarity), dtype=bool), -np.inf, similarity)
    nearest = np.argsort(-others, axis=1, kind="stable")[:, : min(count, len(others) - 1)]
    return {(min(a, int(b)), max(a, int(b))) for a, row in enumerate(nearest) for b in row}


def by_alignment(scenes: Sequence[VoxelScene], points: Sequence[KeyPoints], weights: Sequence[float]) -> Found:
    """Pairs of shortlisted scenes, by the evidence of their alignment.

    The shortlist goes by parts (`by_parts`) and by `shape_histogram`, which recolouring leaves as it is.

    Args:
        scenes: N of them.
        points: their key points.
        weights: of the pieces of evidence, and the bias: the score is the log odds of being one.
    """
    shapes = [Shape.of(scene, some) for scene, some in zip(scenes, points, strict=True)]
    by_shape = by_vectors(shape_vectors(scenes)).score
    pairs = sorted(shortlisted(by_parts(points), SHORTLIST) | shortlisted(by_shape, BY_SHAPE))
    score = np.full((len(scenes), len(scenes)), -np.inf)
    poses = {}
    for a, b in pairs:
        aligned = align(shapes[a], shapes[b])
        if aligned is not None:
            poses[a, b] = aligned.T_b_from_a
            score[a, b] = score[b, a] = aligned.evidence @ weights[:-1] + weights[-1]
    return Found(score, len(pairs), poses)


def shape_vectors(scenes: Sequence[VoxelScene]) -> Tensor:
    """[N, 64] their shape histograms."""
    return torch.from_numpy(np.stack([shape_histogram(scene) for scene in scenes]))


def found_by_model(
    folder: Path, links: Sequence[Path], variants: Sequence[Path], device: str = "cpu"
) -> dict[str, Found]:
    """`condense` and `pooled` by the scene model in `folder`. One job of `parallel_map`."""
    model, items = load_sparse(folder).to(open_device(device)), benchmark_items(links, variants)
    points = [condense_scene(model, item.scene, POINTS) for item in items]
    vectors = torch.cat([pool(some.descriptors, some.scores, 1) for some in points])
    scenes = [item.scene for item in items]
    return {"condense": by_alignment(scenes, points, DECISION["condense"]), "pooled": by_vectors(vectors)}


def found_without_model(links: Sequence[Path], variants: Sequence[Path]) -> dict[str, Found]:
    """`fpfh`, `pooled_teacher` and `shape_histogram`. One job of `parallel_map`."""
    items = benchmark_items(links, variants)
    scenes = [item.scene for item in items]
    return {
        "fpfh": by_alignment(scenes, [shape_keypoints(scene, POINTS) for scene in scenes], DECISION["fpfh"]),
        "pooled_teacher": by_vectors(torch.stack([item.teacher for item in items])),
        "shape_histogram": by_vectors(shape_vectors(scenes)),
    }
