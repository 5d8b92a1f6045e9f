"""The scenes that photographs may show, posed once for all methods that ask.

A pose by rendering takes half a second, and methods ask for many of the same ones. What each of them would render is
listed first (`SceneQueries.candidates`); then each scene is made ready once for all photographs that may show it, one
scene a job. The methods find the poses in the folder that their plans name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from condense.backbone2d import load_backbone
from condense.devices import open_device
from condense.keptposes import kept_pose
from condense.model import new_model
from condense.parallel import parallel_map
from condense.posealign import Photograph, Renderers
from condense.sparse import SparseModel, load_sparse
from condense.tasks.scenes import Condensed, Describer, Lifted, Plan, condensed, described, photograph_of, repository_of

Candidates = list[tuple[Photograph, str]]  # a scene, by name, for a photograph


def model_candidates(model: Path, kept: Path, plans: Sequence[Plan], device: str = "cpu") -> Candidates:
    """What `tasks.scenes.model_outcomes` renders. One job of `parallel_map`."""
    return _candidates(Condensed(load_sparse(model).to(open_device(device))), kept, plans)


def teacher_candidates(teacher: Path, kept: Path, plans: Sequence[Plan], device: str = "cpu") -> Candidates:
    """What `tasks.scenes.teacher_outcomes` renders. One job of `parallel_map`."""
    model = SparseModel(new_model(load_backbone(teacher), 0)).eval()
    return _candidates(Lifted(model.to(open_device(device))), kept, plans)


def _candidates(describer: Describer, kept: Path, plans: Sequence[Plan]) -> Candidates:
    paths = {name: path for plan in plans for name, path in plan.scenes.items()}
    scenes, found = condensed(describer, list(paths.values()), kept), []
    for plan in plans:
        repository, queries = repository_of(scenes, plan), plan.queries()
        for query, image in zip(queries, described(describer, queries), strict=True):
            names = repository.candidates(image, leave_out=query.leave_out)
            found += [(photograph_of(query), name) for name in names]
    return found


def pose_candidates(candidates: Candidates, plans: Sequence[Plan], processes: int) -> None:
    """Finds the camera of each photograph with a mask in each of its scenes; the plans' folders keep what was found."""
    plan_of = {name: plan for plan in plans for name in plan.scenes}
    photographs: dict[str, list[Photograph]] = {}
    for photograph, name in candidates:
        if photograph.cut_out:  # without a mask, a method's own key points say where to start
            photographs.setdefault(name, []).append(photograph)
    jobs = [(plan_of[name], name, some) for name, some in photographs.items()]
    parallel_map(_pose_scene, jobs, processes, "scenes posed")


def _pose_scene(plan: Plan, name: str, photographs: Sequence[Photograph]) -> None:
    scene = Renderers(plan.voxels(name))
    for photograph in photographs:
        kept_pose(photograph, scene, plan.poses)
