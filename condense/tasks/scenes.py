"""Image -> scene: which scene of a repository does an unseen photograph show, and from where?

A query is one photograph under another light and before another background than the scene was captured with (ending
`SAME_LIGHT`: as it was captured). The repository also holds scenes that nobody asks for, near-duplicates among them.

- `condense`: key points of the voxels against those of the photograph; the first scenes are then rendered and laid over
  it (`SceneQueries.query_photograph`).
- `condense_keypoints`: the same by key points alone, their geometry included (`query_image`).
- `condense_shortlist`: its pooled vectors alone.
- `lifted_teacher`, `lifted_teacher_keypoints`: the frozen network's features, lifted to the voxels, in the same ways.
- `pooled_teacher`: mean feature of the photograph against the mean over all training views, frozen network.
- `sift_pnp`, `sift_rendered`: see `tasks.siftscenes`.

Scores are calibrated on validation captures, in a repository of their own that lacks half of them. Queries asked once
more without their scene and its near-duplicate (ending `UNKNOWN`) tell how well the score says "none of these".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

from condense.backbone2d import load_backbone
from condense.devices import device_of, open_device
from condense.extraction import best_spread, condense_features, condense_views, detect_images
from condense.field import load_field
from condense.keypoints import ImageKeyPoints, KeyPoints, load_keypoints, save_keypoints
from condense.links import Links, as_batch, load_links
from condense.lookalikes import laid_over
from condense.model import new_model
from condense.params import ScenesParams, SparseParams
from condense.pooling import rendered_scene
from condense.posealign import Photograph, Renderers
from condense.ranking import Answer, calibrate, pool
from condense.repository import SceneRepository
from condense.sparse import SparseModel, load_sparse
from condense.sparsebatch import relit
from condense.tasks.scenes_results import SAME_LIGHT, UNKNOWN, Outcome, Query, Truth, outcome, truth_of
from condense.voxels import VoxelScene

Results = tuple[dict[str, list[Outcome]], dict[int, list[Outcome]]]  # by method; by key points a scene
SEEN = 0.01  # summed weight in training views from which a voxel counts as seen
PARTS = 8  # pooled vectors a scene
POINTS = 256  # key points a scene and an image, unless said otherwise
COUNTS = (16, 32, 64, 128, 256, 512)  # key points a scene, of the curve
Metrics = dict[str, dict[str, dict[str, float | int | None]]]


@dataclass(frozen=True)
class Asked:
    """The first `views` test views of a links file as queries; `light`: under another light, on another background.

    Scenes that the repository has, but whose names are in `leave_out`, are no answers.
    """

    path: Path
    ending: str
    light: bool
    views: int
    leave_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What is searched and what is asked.

    Args:
        scenes: the links file of each scene by name.
        asked: the queries.
        fields: folders where the scenes' fields may be.
        resolution: voxels along the longest side of a scene that is rendered.
        poses: folder that keeps the poses of rendered scenes: methods ask for the same ones.
    """

    scenes: dict[str, Path]
    asked: tuple[Asked, ...]
    fields: tuple[Path, ...] = ()
    resolution: int = 64
    poses: Path | None = None

    def voxels(self, name: str) -> VoxelScene:
        """A scene's voxels, to be rendered: of its field, or, where that is not kept, those it was linked with."""
        for field in (folder / f"{name}.safetensors" for folder in self.fields):
            if field.is_file():
                return _voxels(field, self.resolution)
        return load_links(self.scenes[name], ()).scene

    def queries(self) -> list[Query]:
        """All queries, in order."""
        return [query for asked in self.asked for query in queries_of(asked)]


@lru_cache(maxsize=512)
def _voxels(path: Path, resolution: int) -> VoxelScene:
    return rendered_scene(load_field(path)[0], resolution)


def make_plans(
    links: Sequence[Path],
    variants: Sequence[Path],
    fields: Sequence[Path],
    params: ScenesParams,
    poses: Path | None = None,
) -> tuple[Plan, Plan]:
    """The plans of test and of validation.

    Test: all test captures, their near-duplicates, and training captures as distractors; asked are the variants in
    another light (without any: test views, relit), the same captures as they are, and the former once more as if the
    repository lacked what they show. Validation: every other validation capture and the distractors; asked are all
    validation captures, relit.

    Args:
        links: files of captures; those without a split are test captures.
        variants: files of variants.
        fields: folders of the fields of both.
        params: how many training captures are distractors, evenly taken; how many photographs of a capture in another
            light ask (one of any other); the resolution of rendered scenes.
        poses: see `Plan`.
    """
    metas = {path: (scene.name, scene.meta) for path, scene in ((p, load_links(p, ())) for p in [*links, *variants])}
    by_split: dict[str, list[Path]] = {"test": [], "val": [], "train": [], "again": [], "twin": []}
    for path, (_, meta) in metas.items():
        by_split[meta.get("variant", meta.get("split", "test"))].append(path)
    step = max(1, -(-len(by_split["train"]) // max(1, params.distractors)))
    others, held = by_split["train"][::step], by_split["val"]
    bases = {metas[path][1]["base"] for path in by_split["again"]} or {metas[path][0] for path in by_split["test"]}
    same = [path for path in by_split["test"] if metas[path][0] in bases]
    views = params.views
    asked = [Asked(path, "", False, views) for path in by_split["again"]] or [Asked(p, "", True, views) for p in same]
    twins = {metas[path][1]["base"]: metas[path][0] for path in by_split["twin"]}
    shown = [metas[each.path][1].get("base", metas[each.path][0]) for each in asked]
    unknown = [
        dataclasses.replace(each, ending=UNKNOWN, leave_out=tuple({base: 0, twins.get(base, base): 0}))
        for each, base in zip(asked, shown, strict=True)
    ]
    asked += [Asked(path, SAME_LIGHT, False, 1) for path in same] + unknown

    def named(paths: Sequence[Path]) -> dict[str, Path]:
        return {metas[path][0]: path for path in paths}

    rest = (tuple(fields), params.resolution, poses)
    test = Plan(named([*by_split["test"], *by_split["twin"], *others]), tuple(asked), *rest)
    return test, Plan(named([*held[::2], *others]), tuple(Asked(path, "", True, 1) for path in held), *rest)


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
    count: int = POINTS  # of a photograph

    def scene(self, links: Links, count: int) -> KeyPoints:
        """From the voxels and the training views."""
        known = [view for view in links.views if view.split == "train"]
        return condense_views(self.model, links.scene, known, count)

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
        whole = links.scene
        scene = VoxelScene(whole.coords[seen], whole.density[seen], whole.colour[seen], whole.grid)
        return condense_features(self.model, scene, links.lifted[seen], count)


def queries_of(asked: Asked) -> list[Query]:
    """The queries of a links file; of a variant, with cameras in the frame of its base."""
    links = load_links(asked.path, ("test",))
    T_base_from_here = torch.linalg.inv(torch.tensor(links.meta.get("T_variant_from_original", np.eye(4).tolist())))
    rng, params = np.random.default_rng(0), SparseParams(replace_background=1.0)
    found = []
    for view in links.views[: asked.views]:
        T = T_base_from_here @ view.camera.T_world_from_camera
        camera = dataclasses.replace(view.camera, T_world_from_camera=T)
        image = _bytes(relit(view, rng, params)) if asked.light else view.image
        name = links.meta.get("base", links.name)
        found.append(Query(name, image, view.mask, camera, asked.ending, asked.leave_out))
    return found


def _bytes(image: Tensor) -> Tensor:
    return (image.permute(1, 2, 0) * 255).round().to(torch.uint8)


def condensed(describer: Describer, paths: Sequence[Path], kept: Path) -> dict[str, KeyPoints]:
    """The key points of scenes by name, at most max(COUNTS) each; read from the file `kept` if it is there."""
    if not kept.is_file():
        links = (load_links(path, ("train",)) for path in paths)
        save_keypoints(kept, {scene.name: describer.scene(scene, max(COUNTS)) for scene in links})
    return load_keypoints(kept)  # type: ignore[return-value]


def repository_of(scenes: Mapping[str, KeyPoints], plan: Plan, points: int = POINTS) -> SceneRepository:
    """A repository of a plan's scenes, each with its `points` best spread key points."""
    repository = SceneRepository("benchmark", next(iter(scenes.values())).descriptors.shape[1], PARTS)
    for name in plan.scenes:
        repository.add(name, best_spread(scenes[name], points))
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


def key_point_outcomes(
    describer: Describer, kept: Path, test: Plan, validation: Plan, method: str
) -> tuple[dict[str, list[Outcome]], dict[int, list[Outcome]]]:
    """All queries through a scene repository whose scores are calibrated on validation queries.

    Args:
        describer: of scenes and photographs.
        kept: HDF5 file that keeps the scenes' key points.
        test: what is measured.
        validation: what scores are calibrated on.
        method: its name.

    Returns:
        The outcomes of `method`, of `<method>_keypoints` and of `<method>_shortlist`; those by number of key points a
        scene, without geometry.
    """
    paths = {**test.scenes, **validation.scenes}
    scenes = condensed(describer, list(paths.values()), kept)
    queries, truths = test.queries(), truths_of(test)
    images = described(describer, queries)
    repository = repository_of(scenes, test)
    weights = calibration(describer, scenes, validation)
    if weights is not None:
        repository.set_calibration("photograph", weights)
    outcomes: dict[str, list[Outcome]] = {method: [], f"{method}_keypoints": []}
    for query, image in zip(queries, images, strict=True):
        truth = truths.get(query.scene)
        outcomes[method].append(outcome(query, asked(repository, test, query, image), truth))
        answers = repository.query_image(image, query.camera.K[0], leave_out=query.leave_out)
        outcomes[f"{method}_keypoints"].append(outcome(query, answers, truth))
    plain = (scenes, test, queries, images)
    outcomes[f"{method}_shortlist"] = shortlist_outcomes(*plain)
    return outcomes, curve_outcomes(*plain)


def asked(repository: SceneRepository, plan: Plan, query: Query, image: ImageKeyPoints, top: int = 10) -> list[Answer]:
    """The answers to a query, whose key points are `image`; the scenes it may show are rendered."""
    photograph = photograph_of(query)
    return repository.query_photograph(image, photograph, plan.voxels, top, kept=plan.poses, leave_out=query.leave_out)


def photograph_of(query: Query) -> Photograph:
    """What a query shows."""
    return Photograph(query.image, query.mask, query.camera.K[0])


def rendered(plan: Plan, query: Query, answer: Answer) -> NDArray[np.float32] | None:
    """[h, w, 3] in [0, 1] what the scene of an answer looks like from its pose, in the light of the query; None without
    a pose.
    """
    if answer.pose is None:
        return None
    T = torch.from_numpy(answer.pose).float()
    shown = laid_over(photograph_of(query), Renderers(plan.voxels(answer.name)), T)
    return shown[1:].clamp(0, 1).permute(1, 2, 0).numpy()


def calibration(describer: Describer, scenes: Mapping[str, KeyPoints], plan: Plan) -> list[float] | None:
    """Weights of the score from the first answers to a plan's queries; None where all are right, or all wrong."""
    queries = plan.queries()
    repository = repository_of(scenes, plan)
    features, right = [], []
    for query, image in zip(queries, described(describer, queries), strict=True):
        for answer in asked(repository, plan, query, image, top=1):
            features.append(answer.features)
            right.append(answer.name == query.scene)
    return calibrate(features, right) if any(right) and not all(right) else None


def curve_outcomes(
    scenes: Mapping[str, KeyPoints], plan: Plan, queries: Sequence[Query], images: Sequence[ImageKeyPoints]
) -> dict[int, list[Outcome]]:
    """Outcomes of the queries in another light by number of key points a scene; nothing is verified by geometry."""
    asked = [(query, image) for query, image in zip(queries, images, strict=True) if not query.ending]
    found: dict[int, list[Outcome]] = {}
    for count in COUNTS:
        repository = repository_of(scenes, plan, count)
        answers = [(q, repository.query_image(i, q.camera.K[0], verify=0)) for q, i in asked]
        found[count] = [outcome(query, some, None) for query, some in answers]
    return found


def shortlist_outcomes(
    scenes: Mapping[str, KeyPoints], plan: Plan, queries: Sequence[Query], images: Sequence[ImageKeyPoints]
) -> list[Outcome]:
    """Outcomes of the queries by pooled vectors alone."""
    repository = repository_of(scenes, plan)
    found = []
    for query, image in zip(queries, images, strict=True):
        vectors = pool(normalize(image.descriptors, dim=1), image.scores, PARTS)
        near = repository.query_vector(vectors, leave_out=query.leave_out)
        found.append(Outcome(query.scene, query.ending, [name for name, _ in near], near[0][1] if near else 0.0))
    return found


def truths_of(plan: Plan) -> dict[str, Truth]:
    """What poses are measured against, of every scene that is asked for and searched."""
    names = {query.scene for query in plan.queries()} & set(plan.scenes)
    return {name: truth_of(load_links(plan.scenes[name], ()).scene) for name in sorted(names)}


@torch.no_grad()
def pooled_outcomes(describer: Lifted, plan: Plan) -> list[Outcome]:
    """All queries by the frozen network's mean feature over the photograph, and over all training views of a scene."""
    means = {}
    for name, path in plan.scenes.items():
        views = load_links(path, ("train",)).views
        means[name] = normalize(torch.cat([view.teacher[view.foreground].float() for view in views]).mean(0), dim=0)
    names, table = list(means), torch.stack(list(means.values()))
    found = []
    for query in plan.queries():
        student = describer.model.dense.student
        cells = student(as_batch([query.image]).to(device_of(student))).cpu()  # [1, D, h, w]
        inside = adaptive_avg_pool2d(query.mask[None, None].float(), cells.shape[2:]).flatten() >= 127.5
        cosines = table @ normalize(cells[0].flatten(1).T[inside].mean(0), dim=0)
        order = [i for i in cosines.argsort(descending=True).tolist() if names[i] not in query.leave_out][:10]
        best = float(cosines[order[0]]) if order else 0.0
        found.append(Outcome(query.scene, query.ending, [names[i] for i in order], best))
    return found


def model_outcomes(model: Path, kept: Path, test: Plan, validation: Plan, device: str = "cpu") -> Results:
    """The outcomes of `condense` by the model in a folder (see `key_point_outcomes`). One job of `parallel_map`."""
    describer = Condensed(load_sparse(model).to(open_device(device)))
    return key_point_outcomes(describer, kept, test, validation, "condense")


def teacher_outcomes(teacher: Path, kept: Path, test: Plan, validation: Plan, device: str = "cpu") -> Results:
    """Those of `lifted_teacher` and `pooled_teacher` by the frozen network in a file. One job of `parallel_map`."""
    describer = Lifted(SparseModel(new_model(load_backbone(teacher), 0)).eval().to(open_device(device)))
    outcomes, curve = key_point_outcomes(describer, kept, test, validation, "lifted_teacher")
    del outcomes["lifted_teacher_shortlist"]  # `pooled_teacher` is what is usually done
    return {**outcomes, "pooled_teacher": pooled_outcomes(describer, test)}, curve


def answers_of(
    describer: Describer, kept: Path, plan: Plan, rows: Sequence[int]
) -> Iterator[tuple[int, Answer, Query, ImageKeyPoints, KeyPoints]]:
    """The first answers to some of a plan's queries once more, with what explains them.

    Yields:
        The query's number, the answer, the query, its key points, and those of the scene that was found.
    """
    repository = repository_of(condensed(describer, list(plan.scenes.values()), kept), plan)
    queries = plan.queries()
    for row in rows:
        image = described(describer, [queries[row]])[0]
        for answer in asked(repository, plan, queries[row], image, top=1):
            yield row, answer, queries[row], image, repository.scene(answer.name)
