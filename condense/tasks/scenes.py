"""Image -> scene: which scene of a repository does an unseen photograph show, and from where?

A query is one photograph under another light and before another background than the scene was captured with (ending
`SAME_LIGHT`: as it was captured). The repository also holds scenes that nobody asks for, near-duplicates among them.

- `condense`: key points of the voxels against those of the photograph, then geometry (`SceneRepository`).
- `condense_shortlist`: its pooled vectors alone.
- `lifted_teacher`: the frozen network's features, lifted to the voxels, through the same repository and geometry.
- `pooled_teacher`: mean feature of the photograph against the mean over all training views, frozen network.
- `sift_pnp`: see `tasks.siftscenes`.

Scores are calibrated on validation captures, in a repository of their own. Queries of captures that the repository
lacks (`UNKNOWN`) tell how well the score says "none of these".
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import normalize

from condense.backbone2d import load_backbone
from condense.cameras import Cameras
from condense.keypoints import ImageKeyPoints, KeyPoints, load_keypoints, save_keypoints, spread_maxima
from condense.links import LinkedView, Links, load_links
from condense.metrics import interval, median_interval
from condense.model import new_model
from condense.params import SparseParams
from condense.poses import pose_errors
from condense.ranking import Answer, calibrate
from condense.repository import SceneRepository
from condense.sparse import SparseModel, condense_features, condense_scene, detect_images, load_sparse
from condense.sparsebatch import relit
from condense.voxels import VoxelScene

SAME_LIGHT, UNKNOWN = "_same_light", "_unknown"
DEGREES, SHARE = 5.0, 0.05  # a pose is right below so many degrees and such a share of the scene's size
SEEN = 0.01  # summed weight in training views from which a voxel counts as seen
COUNTS = (16, 32, 64, 128, 256, 512)  # key points a scene, of the curve
Metrics = dict[str, dict[str, dict[str, float | int | None]]]


@dataclass(frozen=True)
class Query:
    """A photograph that is asked about.

    Args:
        scene: name of the scene it shows.
        image: [H, W, 3] uint8.
        mask: [H, W] uint8, 255 = object.
        camera: its camera in the frame of that scene.
        ending: of the metrics it counts for.
    """

    scene: str
    image: Tensor
    mask: Tensor
    camera: Cameras
    ending: str


@dataclass(frozen=True)
class Plan:
    """Who searches what.

    Args:
        scenes: links files of the repository.
        asked: links files whose test views are queries, with the ending of each, and whether to change the light.
        points: key points a scene.
        views: queries of a file, at most.
    """

    scenes: tuple[Path, ...]
    asked: tuple[tuple[Path, str, bool], ...]
    points: int = 256
    views: int = 2

    def queries(self) -> list[Query]:
        """All queries, in order."""
        return [query for asked in self.asked for query in queries_of(*asked, self.views)]


@dataclass(frozen=True)
class Outcome:
    """What came of a query.

    Args:
        scene: that it shows.
        ending: of the query.
        names: answers, best first.
        score: of the first answer.
        features: [4] of the first answer (`Answer.features`); zeros of methods without.
        errors: (degrees, share of the scene's size) of the pose if the first answer is right and has one; else NaN.
        symmetric: as `errors`, nearest to any of the poses that look alike.
    """

    scene: str
    ending: str
    names: list[str]
    score: float
    features: NDArray[np.float64] = field(default_factory=lambda: np.zeros(4))
    errors: tuple[float, float] = (np.nan, np.nan)
    symmetric: tuple[float, float] = (np.nan, np.nan)

    @property
    def right(self) -> bool:
        """Whether the first answer is the scene."""
        return self.names[:1] == [self.scene]


class Describer(Protocol):
    """How a method describes scenes and photographs."""

    def scene(self, links: Links, count: int) -> KeyPoints:
        """The key points of a scene."""
        ...

    def images(self, images: Sequence[Tensor], masks: Sequence[Tensor]) -> list[ImageKeyPoints]:
        """The key points of photographs of one size."""
        ...


@dataclass(frozen=True)
class Condensed:
    """`condense`: a trained model."""

    model: SparseModel
    count: int = 256  # of a photograph

    def scene(self, links: Links, count: int) -> KeyPoints:
        """From the voxels alone."""
        return condense_scene(self.model, links.scene, count)

    def images(self, images: Sequence[Tensor], masks: Sequence[Tensor]) -> list[ImageKeyPoints]:
        """From the trained image network."""
        return detect_images(self.model, images, masks, self.count)


@dataclass(frozen=True)
class Lifted(Condensed):
    """`lifted_teacher`: a model with the frozen network and untrained heads, which keep features as they are."""

    def scene(self, links: Links, count: int) -> KeyPoints:
        """Spread voxels, among those that training views see, with the lifted features."""
        seen = links.seen > SEEN
        seen = seen if seen.any() else torch.ones_like(seen)
        scene = VoxelScene(links.scene.coords[seen], links.scene.density[seen], links.scene.colour[seen], links.scene.grid)
        return condense_features(self.model, scene, links.lifted[seen], count)


def lifted_teacher(teacher: Path) -> Lifted:
    """The describer of the frozen network in a file."""
    return Lifted(SparseModel(new_model(load_backbone(teacher), 0)).eval())


def queries_of(path: Path, ending: str, light: bool, views: int) -> list[Query]:
    """The first `views` test views of a links file; of a variant, with cameras in the frame of its base.

    Args:
        path: of the file.
        ending: of the queries.
        light: whether to change light and background.
        views: how many, at most.
    """
    links = load_links(path, ("test",))
    T_base_from_here = torch.linalg.inv(torch.tensor(links.meta.get("T_variant_from_original", np.eye(4).tolist())))
    rng, params = np.random.default_rng(len(path.stem)), SparseParams(replace_background=1.0)
    found = []
    for view in links.views[:views]:
        T = T_base_from_here @ view.camera.T_world_from_camera
        camera = dataclasses.replace(view.camera, T_world_from_camera=T)
        image = _bytes(relit(view, rng, params)) if light else view.image
        found.append(Query(links.meta.get("base", links.name), image, view.mask, camera, ending))
    return found


def _bytes(image: Tensor) -> Tensor:
    return (image.permute(1, 2, 0) * 255).round().to(torch.uint8)


@dataclass(frozen=True)
class Truth:
    """What a pose is measured against: of one scene.

    Args:
        size: diagonal of its bounding box, capture units.
        alike: [A, 4, 4] motions of the scene under which it looks the same, the identity first.
    """

    size: float
    alike: NDArray[np.float64]


def truth_of(scene: VoxelScene, step: int = 15, tolerance: float = 1.5, share: float = 0.95) -> Truth:
    """A scene's size, and the turns about the upright axis through its middle that carry it onto itself.

    A turn counts if `share` of 400 turned voxels lie within `tolerance` voxels of one with a like colour.

    Args:
        scene: its voxels.
        step: degrees between turns.
        tolerance: in voxels; colours count as 10 voxels from black to white.
        share: in (0, 1].
    """
    centres = scene.centres.double().numpy()
    middle = (centres.min(0) + centres.max(0)) / 2
    colours = 10 * scene.colour.double().numpy()
    tree = cKDTree(np.concatenate([(centres - middle) / scene.grid.voxel_size, colours], axis=1))
    some = np.linspace(0, len(centres) - 1, min(400, len(centres))).astype(int)
    motions = []
    for angle in np.radians(np.arange(0, 360, step)):
        T = _turn(angle, middle)
        turned = (centres[some] @ T[:3, :3].T + T[:3, 3] - middle) / scene.grid.voxel_size
        distance, _ = tree.query(np.concatenate([turned, colours[some]], axis=1), distance_upper_bound=tolerance)
        if np.isfinite(distance).mean() >= share:
            motions.append(T)
    return Truth(float(np.linalg.norm(np.ptp(centres, axis=0))), np.stack(motions))


def _turn(angle: float, middle: NDArray[np.float64]) -> NDArray[np.float64]:
    """[4, 4] the turn about the z axis through `middle` [3]."""
    T = np.eye(4)
    T[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    T[:3, 3] = middle - T[:3, :3] @ middle
    return T


def outcome(query: Query, answers: Sequence[Answer], truth: Truth | None) -> Outcome:
    """What came of a query; `truth` of the scene that it shows, or None where the repository lacks it."""
    if not answers:
        return Outcome(query.scene, query.ending, [], 0.0)
    first = answers[0]
    result = Outcome(query.scene, query.ending, [a.name for a in answers], first.score, first.features)
    if truth is None or not result.right or first.pose is None:
        return result
    T_true = query.camera.T_world_from_camera[0].double().numpy()
    errors = [pose_errors(first.pose, motion @ T_true) for motion in truth.alike]
    scaled = [(degrees, distance / truth.size) for degrees, distance in errors]
    nearest = min(scaled, key=lambda pair: max(pair[0] / DEGREES, pair[1] / SHARE))
    return dataclasses.replace(result, errors=scaled[0], symmetric=nearest)


def condensed(describer: Describer, paths: Sequence[Path], count: int, kept: Path) -> dict[str, KeyPoints]:
    """The key points of scenes by name, read from the file `kept` where they were found before."""
    if not kept.is_file():
        links = (load_links(path, ()) for path in paths)
        save_keypoints(kept, {scene.name: describer.scene(scene, count) for scene in links})
    return load_keypoints(kept)  # type: ignore[return-value]


def repository_of(scenes: Mapping[str, KeyPoints], names: Sequence[str], points: int) -> SceneRepository:
    """A repository of some scenes, each with its `points` best spread key points."""
    dim = next(iter(scenes.values())).descriptors.shape[1]
    repository = SceneRepository("benchmark", dim)
    for name in names:
        scene = scenes[name]
        repository.add(name, scene[spread_maxima(scene.positions, scene.scores, points)])
    return repository


def described(describer: Describer, queries: Sequence[Query]) -> list[ImageKeyPoints]:
    """The key points of each query, in order; images of one size run together."""
    found: dict[int, ImageKeyPoints] = {}
    for size in sorted({tuple(query.image.shape) for query in queries}):
        rows = [row for row, query in enumerate(queries) if tuple(query.image.shape) == size]
        for start in range(0, len(rows), 32):
            some = rows[start : start + 32]
            points = describer.images([queries[i].image for i in some], [queries[i].mask for i in some])
            found |= dict(zip(some, points, strict=True))
    return [found[row] for row in range(len(queries))]


