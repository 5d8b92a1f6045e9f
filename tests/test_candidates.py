"""What every method would render is posed beforehand; the methods then only look it up."""

import dataclasses

import pytest
from test_scenes_task import files  # noqa: F401
from toys import tiny_teacher

from condense.backbone2d import save_backbone
from condense.model import new_model
from condense.params import ScenesParams
from condense.sparse import SparseModel, save_sparse
from condense.tasks.candidates import model_candidates, pose_candidates, teacher_candidates
from condense.tasks.scenes import make_plans, model_outcomes, teacher_outcomes
from condense.tasks.siftscenes import sift_candidates, sift_outcomes, sift_votes


@pytest.fixture
def plans(files, tmp_path):  # noqa: F811
    captures = [files[f"toy_{i}"] for i in range(4)]
    return make_plans(captures, [files["again"]], [], ScenesParams(views=1), tmp_path / "poses")


def test_methods_find_all_poses_that_they_ask_for(plans, tmp_path, monkeypatch):
    teacher, test = tiny_teacher(), plans[0]
    save_backbone(teacher, tmp_path / "teacher.safetensors")
    save_sparse(tmp_path / "model", SparseModel(new_model(teacher, 0)))
    model = (tmp_path / "model", tmp_path / "model.h5")
    lifted = (tmp_path / "teacher.safetensors", tmp_path / "teacher.h5")
    votes = sift_votes(tmp_path / "sift.h5", test)
    found = [model_candidates(*model, plans), teacher_candidates(*lifted, plans), sift_candidates(test, votes)]
    queries = [*test.queries(), *plans[1].queries()]
    for some in found[:2]:  # three scenes are searched; one of the queries has to do without what it shows
        assert len(some) == 3 + 3 + 2 + 2 and {name for _, name in some} == {"toy_0", "toy_1", "toy_2", "toy_3"}
        assert {photograph.image.numpy().tobytes() for photograph, _ in some} == {
            query.image.numpy().tobytes() for query in queries
        }
    assert [name for _, name in found[2]] == [name for one in votes for name in one.nearest]

    every = [each for some in found for each in some]
    pose_candidates(every, plans, processes=1)
    once = {(photograph.image.numpy().tobytes(), name) for photograph, name in every}
    assert len(list((tmp_path / "poses").iterdir())) == len(once) < len(every)

    def search(*_):
        raise AssertionError("a pose was not worked out beforehand")

    with monkeypatch.context() as patch:
        patch.setattr("condense.keptposes.pose_by_mask", search)
        outcomes, _ = model_outcomes(*model, *plans)
        teacher_outcomes(*lifted, *plans)
        assert len(sift_outcomes(tmp_path / "sift.h5", test, votes)["sift_rendered"]) == 3
    apart = [dataclasses.replace(plan, poses=tmp_path / "apart") for plan in plans]
    again, _ = model_outcomes(*model, *apart)
    assert [(o.names, o.score) for o in again["condense"]] == [(o.names, o.score) for o in outcomes["condense"]]


def test_photographs_without_a_mask_are_left_to_the_methods(plans, tmp_path):
    photograph, name = sift_candidates(plans[0], sift_votes(tmp_path / "sift.h5", plans[0]))[0]
    whole = dataclasses.replace(photograph, mask=photograph.mask.clone().fill_(255))
    pose_candidates([(whole, name)], plans, processes=1)
    assert not (tmp_path / "poses").exists()
