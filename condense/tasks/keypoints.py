"""How well key points are found again: between two views, and between a view and its scene.

Everything is measured on held-out views of captures that nothing was trained on. What belongs together comes from the
capture's geometry (`viewpairs`); no label is used, so photographs are measured by the same code. A pair of views is
measured as it is and, with NEW_LIGHT appended to a metric's name, with its second view before another background and
under another light.

Between two views, of all methods at equal numbers of key points (see `equal_count`):

- `repeatability`, `_1px`: share of the co-visible key points of either view with a key point of the other within 3
  pixels, or 1, of where they show there (Mikolajczyk et al. 2005, both ways as DeTone et al. 2018); `_own_count` with
  as many as the method finds, OWN at the most;
- `matching_accuracy_1px`, `_3px`, `_5px`: share of mutual nearest neighbours that are right (Dusmanu et al. 2019);
- `matching_score`: right ones at 3 pixels per co-visible key point.

Between a view and the scene's key points:

- `agreement_2d_3d`, `_1px`: share of the view's key points within 3 pixels, or 1, of where a visible one shows;
- `image_to_scene_accuracy_3px`: share of the view's key points whose nearest neighbour is visible within 3 pixels;
- `bytes_a_scene`: of the numbers stored.

What cannot be told apart from nothing counts 0: a pair without matches has the accuracy 0.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from condense.devices import open_device
from condense.extraction import best_spread, condense_scene, condense_views, describe_images, detect_images, merged
from condense.keypoints import ImageKeyPoints, KeyPoints, spread_maxima, stored_bytes
from condense.links import LinkedView, Links, load_links
from condense.metrics import interval
from condense.poses import mutual_matches
from condense.rivaldetectors import (
    Aliked,
    Sift,
    aliked_ready,
    described,
    farthest_pixels,
    grid_pixels,
    grid_voxels,
    random_pixels,
)
from condense.sparse import SparseModel, load_sparse
from condense.tasks.matching import spread
from condense.viewpairs import (
    MeshSurface,
    Surface,
    built_in_meshes,
    in_new_light,
    shown,
    view_pairs,
    voxel_surface,
    warp,
)
from condense.voxels import VoxelScene

NEW_LIGHT = "_new_light"
NEAR = 3.0  # pixels
MOST, FEWEST, OTHERWISE = 64, 8, 32  # key points of an image at equal numbers
OWN = 256  # and at the method's own number, at most
SCENE = 256  # key points of a scene
LIGHTS = {False: "", True: NEW_LIGHT}
Look = tuple[int, bool]  # number of a view, and whether it is in new light
Detector = Callable[[Tensor, Tensor], ImageKeyPoints]  # of an image and its mask
Scores = dict[str, dict[str, list[float]]]  # {method: {metric: the value of each seed}}


def repeatability(a: ImageKeyPoints, b: ImageKeyPoints, surfaces: tuple[Surface, Surface]) -> tuple[float, float]:
    """Share of co-visible key points of either view found again in the other, within NEAR and within 1 pixel."""
    found, shared = np.zeros(2), 0
    for first, second, way in ((a, b, surfaces), (b, a, surfaces[::-1])):
        there, visible = warp(*way, first.positions)
        nearest = torch.cdist(there, second.positions).min(1).values[visible] if len(second) else torch.zeros(0)
        found += [int((nearest <= limit).sum()) for limit in (NEAR, 1.0)]
        shared += int(visible.sum())
    return tuple(found / max(1, shared))


def pair_matches(a: ImageKeyPoints, b: ImageKeyPoints, surfaces: tuple[Surface, Surface]) -> tuple[Tensor, Tensor]:
    """Mutual nearest neighbours [M, 2] of two views, and [M] how many pixels off; infinite if not co-visible."""
    matches = torch.from_numpy(mutual_matches(a.descriptors @ b.descriptors.T))
    there, both = warp(*surfaces, a.positions[matches[:, 0]])
    return matches, (there - b.positions[matches[:, 1]]).norm(dim=1).masked_fill(~both, torch.inf)


def matching(a: ImageKeyPoints, b: ImageKeyPoints, surfaces: tuple[Surface, Surface]) -> dict[str, float]:
    """Accuracy of mutual nearest neighbours, and right ones per co-visible key point, of two views' key points."""
    _, error = pair_matches(a, b, surfaces)
    right = {limit: float((error <= limit).sum()) for limit in (1, 3, 5)}
    shared = sum(int(warp(*way, p.positions)[1].sum()) for p, way in ((a, surfaces), (b, surfaces[::-1])))
    accuracy = {f"matching_accuracy_{limit}px": number / max(1, len(error)) for limit, number in right.items()}
    return {**accuracy, "matching_score": 2 * right[3] / max(1, shared)}


def scene_matches(image: ImageKeyPoints, scene: KeyPoints, surface: Surface) -> tuple[Tensor, Tensor, Tensor]:
    """A view's key points and its scene's.

    Returns:
        [K] the scene's nearest neighbour of each of the view's key points, [K] how many pixels off it shows, and
        [K] how far the nearest one in the image is; infinite for what something hides.
    """
    at, ends, behind = shown(surface, scene.positions)
    apart = torch.cdist(image.positions, at).masked_fill(~(ends & (behind <= 1)), torch.inf)  # [K, scene's]
    nearest = (image.descriptors @ scene.descriptors.T).argmax(1)
    return nearest, apart.gather(1, nearest[:, None])[:, 0], apart.min(1).values


def scene_scores(image: ImageKeyPoints, scene: KeyPoints, surface: Surface) -> dict[str, float]:
    """The metrics of one view's key points and its scene's."""
    _, error, distance = scene_matches(image, scene, surface)
    count = max(1, len(image))
    return {
        "agreement_2d_3d": float((distance <= NEAR).sum()) / count,
        "agreement_2d_3d_1px": float((distance <= 1).sum()) / count,
        "image_to_scene_accuracy_3px": float((error <= NEAR).sum()) / count,
    }


def equal_count(sift: int) -> int:
    """Key points of an image for every method: as many as SIFT finds there, MOST at most; OTHERWISE if below FEWEST."""
    return min(sift, MOST) if sift >= FEWEST else OTHERWISE


def blind_places(mask: Tensor, counts: Sequence[int], rng: np.random.Generator) -> dict[str, list[Tensor]]:
    """Random, grid and spread places on a mask, for each count."""
    rows, far = random_pixels(mask, max(counts), rng), farthest_pixels(mask, max(counts))  # each begins with the fewer
    return {
        "random": [rows[:count] for count in counts],
        "grid": [grid_pixels(mask, count) for count in counts],
        "farthest": [far[:count] for count in counts],
    }


def model_points(
    model: SparseModel, view: LinkedView, counts: Sequence[int], blind: Mapping[str, Sequence[Tensor]]
) -> dict[str, list[ImageKeyPoints]]:
    """Key points of a view by the model, for each count, and the model's descriptors at blind places."""
    (found,) = detect_images(model, [view.image], [view.mask], view.mask.numel())
    features = describe_images(model, [view.image])[0][0]
    own = [found[spread_maxima(found.positions, found.scores, count, robustness=1.0)] for count in counts]
    return {"condense": own} | {
        name: [described(at, features, found.size) for at in places] for name, places in blind.items()
    }


def scene_points(
    model: SparseModel, scene: VoxelScene, known: Sequence[LinkedView], rng: np.random.Generator
) -> dict[str, KeyPoints]:
    """SCENE key points of a scene with `known` views, by the model; its descriptors at random, grid and spread voxels.

    Those of `voxels_alone` are made without looking at the views.
    """
    every = condense_views(model, scene, known, len(scene))
    rows = {
        "random_voxels": torch.from_numpy(rng.permutation(len(every))[:SCENE]),
        "grid_voxels": grid_voxels(every.positions, SCENE),
        "farthest_voxels": spread(every.positions, SCENE),
    }
    own = {"voxels_alone": condense_scene(model, scene, SCENE), "condense": best_spread(every, SCENE)}
    return own | {name: merged(every, some) for name, some in rows.items()}


@dataclass(frozen=True)
class Scenery:
    """A capture as it is measured.

    Args:
        scene: its voxels.
        views: {(number of a view, whether in new light): the view}.
        pairs: numbers of views.
        truth: what each view sees in truth, as far as that is known: of meshes, or of the voxels,
        surfaces: and of the voxels.
    """

    scene: VoxelScene
    views: dict[Look, LinkedView]
    pairs: list[tuple[int, int]]
    truth: dict[int, Surface]
    surfaces: dict[int, Surface]


def scenery(links: Links) -> Scenery:
    """What is measured of a capture: pairs of the views that `links` has; second views also in new light."""
    pairs = view_pairs(links.views)
    used = sorted({number for pair in pairs for number in pair})
    key = zlib.crc32(links.name.encode())
    views = {(number, False): links.views[number] for number in used}
    views |= {(j, True): in_new_light(links.views[j], (key, j)) for j in sorted({j for _, j in pairs})}
    surfaces: dict[int, Surface] = {n: voxel_surface(links.scene, links.views[n].camera) for n in used}
    meshes = built_in_meshes(links)
    truth: dict[int, Surface]
    truth = surfaces if meshes is None else {n: MeshSurface(s.camera, meshes) for n, s in surfaces.items()}
    return Scenery(links.scene, views, pairs, truth, surfaces)


def two_view_scores(what: Scenery, points: Mapping[Look, Sequence[ImageKeyPoints]]) -> dict[str, float]:
    """Means over the pairs; `points` are of each view, at equal number and, as it is, at the method's own."""
    scores: dict[str, list[float]] = {}
    for i, j in what.pairs:
        surfaces = (what.truth[i], what.truth[j])
        for light, ending in LIGHTS.items():
            a, b = points[i, False][0], points[j, light][0]
            near, at_1px = repeatability(a, b, surfaces)
            values = {"repeatability": near, "repeatability_1px": at_1px, **matching(a, b, surfaces)}
            for name, value in values.items():
                scores.setdefault(name + ending, []).append(value)
        own = repeatability(points[i, False][1], points[j, False][1], surfaces)[0]
        scores.setdefault("repeatability_own_count", []).append(own)
    return {name: float(np.mean(values)) for name, values in scores.items()}


def view_scene_scores(
    what: Scenery, points: Mapping[Look, Sequence[ImageKeyPoints]], scene: KeyPoints
) -> dict[str, float]:
    """Means over the views of `scene_scores`."""
    scores: dict[str, list[float]] = {}
    for (number, light), (equal, *_) in points.items():
        for name, value in scene_scores(equal, scene, what.surfaces[number]).items():
            scores.setdefault(name + LIGHTS[light], []).append(value)
    return {name: float(np.mean(values)) for name, values in scores.items()} | {"bytes_a_scene": stored_bytes(scene)}


def capture_scores(
    links: Links,
    known: Sequence[LinkedView],
    models: Sequence[SparseModel],
    rivals: Mapping[str, Detector],
    seed: int,
) -> Scores:
    """The metrics of one capture, by every model and rival (one is "sift"); {} with less than two views.

    Args:
        links: the capture with the views that are measured.
        known: the views that its key points may be made from.
        models: one a seed.
        rivals: other detectors.
        seed: of the random places.
    """
    what, key = scenery(links), zlib.crc32(links.name.encode())
    if not what.pairs:
        return {}
    rng = np.random.default_rng((seed, key))
    found = {name: {look: rival(v.image, v.mask) for look, v in what.views.items()} for name, rival in rivals.items()}
    counts = {look: (equal_count(len(points)), OWN)[: 1 if look[1] else 2] for look, points in found["sift"].items()}
    result: Scores = {}
    for name, by_look in found.items():
        tops = {look: [points.top(count) for count in counts[look]] for look, points in by_look.items()}
        _add(result, name, two_view_scores(what, tops))
    blind = {look: blind_places(view.mask, counts[look], rng) for look, view in what.views.items()}
    for number, model in enumerate(models):
        views = {look: model_points(model, view, counts[look], blind[look]) for look, view in what.views.items()}
        scenes = scene_points(model, links.scene, known, np.random.default_rng((seed, key, number)))
        for name in next(iter(views.values())):
            points = {look: by_name[name] for look, by_name in views.items()}
            own = view_scene_scores(what, points, scenes["condense"])
            _add(result, name, two_view_scores(what, points) | own)
        points = {look: by_name["condense"] for look, by_name in views.items()}
        for name in ("voxels_alone", "random_voxels", "grid_voxels", "farthest_voxels"):
            _add(result, name, view_scene_scores(what, points, scenes[name]))
    return result


def _add(result: Scores, method: str, scores: Mapping[str, float]) -> None:
    for metric, value in scores.items():
        result.setdefault(method, {}).setdefault(metric, []).append(value)


def keypoint_rows(
    paths: Sequence[Path], models: Sequence[Path], aliked: str = "", seed: int = 0, device: str = "cpu"
) -> list[Scores]:
    """The metrics of some linked captures, on their test views. One job of `parallel_map`.

    Args:
        paths: of the links.
        models: folders of sparse models, one a seed.
        aliked: the file of ALIKED's weights; "" leaves ALIKED out, as does a missing kornia.
        seed: of the random places.
        device: of the models.
    """
    rivals: dict[str, Detector] = {"sift": Sift()}
    if aliked_ready(aliked):
        rivals["aliked"] = Aliked(Path(aliked))
    loaded = [load_sparse(folder).to(open_device(device)) for folder in models]
    return [
        capture_scores(load_links(path, ("test",)), load_links(path, ("train",)).views, loaded, rivals, seed)
        for path in paths
    ]


def keypoint_metrics(rows: Sequence[Scores]) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """The metric file of key points, from the rows of all captures: {method: {metric: {mean, ci95, n}}}."""
    rows = [row for row in rows if row]
    names = {method: list(scores) for row in rows for method, scores in row.items()}
    names = {"condense": names.pop("condense"), **names} if "condense" in names else names  # whom it is about
    return {
        method: {metric: interval(np.array([row[method][metric] for row in rows]).T) for metric in metrics}
        for method, metrics in names.items()
    }
