import dataclasses
import math

import numpy as np
import pytest
import torch
from toys import tiny_teacher, toy_links, toy_scene

from condense.backbone2d import save_backbone
from condense.cameras import Cameras, look_at
from condense.grid import Grid
from condense.keypoints import ImageKeyPoints, KeyPoints
from condense.links import save_links
from condense.model import new_model
from condense.params import ScenesParams
from condense.ranking import Answer
from condense.sparse import SparseModel, save_sparse
from condense.tasks.scenes import (
    Asked,
    Condensed,
    answers_of,
    make_plans,
    model_outcomes,
    queries_of,
    rendered,
    teacher_outcomes,
)
from condense.tasks.scenes_results import (
    SAME_LIGHT,
    UNKNOWN,
    Outcome,
    Query,
    confusions,
    outcome,
    recall_curve,
    reliability,
    scene_metrics,
    truth_of,
    within,
)
from condense.tasks.siftscenes import Sift, by_pnp, sift_answers, surface_points, voted
from condense.verification import Verified, Verifier
from condense.voxels import VoxelScene


def turn(degrees, shift=(0.0, 0.0, 0.0)):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.tensor([[c, -s, 0, shift[0]], [s, c, 0, shift[1]], [0, 0, 1, shift[2]], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Links of four toy captures by split, and a variant of the first, taken in a frame of its own."""
    folder = tmp_path_factory.mktemp("links")
    found = {}
    for seed, split in enumerate(("test", "test", "train", "val")):
        links = toy_links(seed)
        links = dataclasses.replace(links, meta={**links.meta, "split": split})
        found[links.name] = folder / f"{links.name}.safetensors"
        save_links(links, found[links.name])
    base = toy_links(0)
    T = turn(40, (0.1, 0.2, 0.3))
    views = [
        dataclasses.replace(
            view, camera=dataclasses.replace(view.camera, T_world_from_camera=T @ view.camera.T_world_from_camera)
        )
        for view in base.views
    ]
    meta = {**base.meta, "split": "test", "variant": "again", "base": "toy_0", "T_variant_from_original": T.tolist()}
    found["again"] = folder / "toy_0_again.safetensors"
    save_links(dataclasses.replace(base, name="toy_0_again", meta=meta, views=tuple(views)), found["again"])
    return found


def test_a_variants_cameras_come_back_to_the_frame_of_its_base(files):
    of_base, of_variant = (queries_of(Asked(files[name], "", False, 2)) for name in ("toy_0", "again"))
    for one, other in zip(of_base, of_variant, strict=True):
        assert one.scene == other.scene == "toy_0"
        torch.testing.assert_close(one.camera.T_world_from_camera, other.camera.T_world_from_camera)
    relit = queries_of(Asked(files["toy_0"], "", True, 1))
    assert len(relit) == 1 and (relit[0].image != of_base[0].image).any()


def test_plans_search_what_they_should(files):
    captures = [files[f"toy_{i}"] for i in range(4)]
    test, validation = make_plans(captures, [files["again"]], [], ScenesParams(views=1))
    assert set(test.scenes) == {"toy_0", "toy_1", "toy_2"} and set(validation.scenes) == {"toy_3", "toy_2"}
    asked = [(q.scene, q.ending, q.leave_out) for q in test.queries()]
    assert asked == [("toy_0", "", ()), ("toy_0", SAME_LIGHT, ()), ("toy_0", UNKNOWN, ("toy_0",))]
    assert {q.scene for q in validation.queries()} == {"toy_3"}
    without, _ = make_plans(captures, [], [], ScenesParams(distractors=0))
    assert {q.scene for q in without.queries() if not q.ending} == {"toy_0", "toy_1"}


class TestTruth:
    def test_only_what_looks_the_same_counts(self):
        at = torch.stack(torch.meshgrid(torch.arange(24), torch.arange(2), torch.arange(2), indexing="ij"), -1)
        coords = at.reshape(-1, 3).int()
        grid = Grid((0.0, 0.0, 0.0), 0.5, (24, 24, 2))
        bar = VoxelScene(coords, torch.ones(len(coords)), torch.full((len(coords), 3), 0.5), grid)
        assert truth_of(bar).size == pytest.approx(math.hypot(11.5, 0.5, 0.5))
        same = truth_of(bar).alike
        assert len(same) == 2
        np.testing.assert_allclose(same[1][:2, :2], -np.eye(2), atol=1e-9)  # half a turn
        np.testing.assert_allclose(same[1] @ [6, 0.5, 0.5, 1], [6, 0.5, 0.5, 1])  # about its middle
        marked = torch.where(coords[:, :1] < 12, bar.colour, bar.colour + 0.5)
        assert len(truth_of(dataclasses.replace(bar, colour=marked)).alike) == 1

    def test_a_quarter_turn_of_a_square_box_is_no_error(self):
        box = toy_scene(1)
        truth = truth_of(dataclasses.replace(box, colour=torch.full_like(box.colour, 0.5)))
        camera = Cameras(
            torch.eye(3)[None], look_at(torch.tensor([[2.0, 0.3, 0.5]]), torch.zeros(3)), torch.ones(1, 2).long()
        )
        query = make_query(camera)
        pose = (turn(90) @ camera.T_world_from_camera[0]).double().numpy()
        result = outcome(query, [Answer("a", 0.9, 1.0, np.zeros(4), pose, np.zeros((0, 2), int))], truth)
        assert result.errors[0] == pytest.approx(90, abs=0.1) and not within(result.errors)
        assert within(result.symmetric)
        wrong = outcome(query, [Answer("b", 0.9, 1.0, np.zeros(4), pose, np.zeros((0, 2), int))], truth)
        assert math.isnan(wrong.errors[0]) and not wrong.right and not within(wrong.errors)


def make_query(camera):
    return Query("a", torch.zeros(4, 4, 3, dtype=torch.uint8), torch.full((4, 4), 255, dtype=torch.uint8), camera, "")


def made(scene, names, score=0.5, ending="", errors=(np.nan, np.nan)):
    return Outcome(scene, ending, names, score, errors=errors, symmetric=errors)


class TestMetrics:
    def test_by_hand(self):
        seed = [
            made("a", ["a", "b"], 0.9, errors=(1.0, 0.01)),
            made("a", ["b", "a"], 0.6),
            made("b", ["b"], 0.7, errors=(30.0, 0.3)),
            made("a", ["b"], 0.65, UNKNOWN),
        ]
        row = scene_metrics({"condense": [seed, seed]})["condense"]
        assert row["recall_at_1"]["mean"] == pytest.approx(0.75) and row["recall_at_1"]["n"] == 2
        assert row["recall_at_5"]["mean"] == 1
        assert row["pose_success"]["mean"] == pytest.approx(0.25)
        assert row["median_rotation_deg"]["mean"] == pytest.approx(15.5)
        assert row["unknown_auroc"]["mean"] == pytest.approx((0.5 + 1) / 2)  # scene by scene: 1 of 2, then 1 of 1
        assert row["brier"]["mean"] == pytest.approx(((0.1**2 + 0.6**2 + 0.65**2) / 3 + 0.3**2) / 2)
        assert "recall_at_1" + SAME_LIGHT not in row
        without = scene_metrics(
            {"pooled_teacher": [[made("a", ["a"]), made("b", ["a"]), made("c", ["a"], 0.1, UNKNOWN)]]}
        )
        assert "pose_success" not in without["pooled_teacher"] and "brier" not in without["pooled_teacher"]

    def test_confusions_curve_and_reliability(self):
        seed = [made("a", ["a"], 0.9), made("b", ["a"], 0.2), made("b", ["c"], 0.3), made("b", ["a"], 0.1)]
        classes = {"a": "mug", "b": "car", "c": "bed"}
        assert confusions(seed, classes) == [("car", "mug", 2), ("car", "bed", 1)]
        assert recall_curve([{16: seed[:1], 32: seed[1:2]}]) == [(16, 1.0, 0.0), (32, 0.0, 0.0)]
        bins = reliability(seed, 2)
        assert bins[0] == pytest.approx((0.15, 0.0, 2)) and bins[1] == pytest.approx((0.6, 0.5, 2))


class TestJobs:
    def test_a_model_and_the_teacher_answer_and_keep_what_they_condensed(self, files, tmp_path):
        teacher = tiny_teacher()
        save_backbone(teacher, tmp_path / "teacher.safetensors")
        save_sparse(tmp_path / "model", SparseModel(new_model(teacher, 0)))
        test, validation = make_plans(
            [files[f"toy_{i}"] for i in range(4)], [files["again"]], [], ScenesParams(views=1)
        )
        kept = tmp_path / "kept.h5"
        found, curve = model_outcomes(tmp_path / "model", kept, test, validation)
        assert set(found) == {"condense", "condense_keypoints", "condense_shortlist"} and set(curve) == {
            16,
            32,
            64,
            128,
            256,
            512,
        }
        assert [len(some) for some in found.values()] == [3, 3, 3]
        assert [len(o.names) for o in found["condense"]] == [3, 3, 2]  # the last has to do without what it shows
        assert all("toy_0" not in some[2].names for some in found.values())
        stamp = kept.stat().st_mtime_ns
        again, _ = model_outcomes(tmp_path / "model", kept, test, validation)
        assert kept.stat().st_mtime_ns == stamp
        assert [o.names for o in again["condense"]] == [o.names for o in found["condense"]]
        lifted, _ = teacher_outcomes(tmp_path / "teacher.safetensors", tmp_path / "t.h5", test, validation)
        assert lifted["lifted_teacher"][1].right  # the view as it was captured
        assert set(scene_metrics({m: [some] for m, some in {**found, **lifted}.items()})) == {*found, *lifted}
        model = SparseModel(new_model(teacher, 0)).eval()
        ((row, answer, query, image, scene),) = answers_of(Condensed(model), kept, test, [1])
        assert row == 1 and answer.name in test.scenes and len(scene) and image.size == (32, 32)
        right = dataclasses.replace(answer, name=query.scene, pose=query.camera.T_world_from_camera[0].double().numpy())
        on = query.mask.numpy() >= 128
        shown, seen = rendered(test, query, right)[::2, ::2], query.image.numpy() / 255
        assert np.abs(shown[on] - seen[on]).mean() < 0.1 and shown[~on].mean() < 0.05 and shown.max() <= 1
        assert rendered(test, query, dataclasses.replace(right, pose=None)) is None


class TestSift:
    def test_rays_end_on_the_surface(self):
        scene = toy_scene(1)
        camera = Cameras(torch.tensor([[[40.0, 0, 16], [0, 40, 16], [0, 0, 1]]]),
                         look_at(torch.tensor([[2.0, 0, 0]]), torch.zeros(3)), torch.tensor([[32, 32]]))  # fmt: skip
        points, hit = surface_points(scene, camera, 0, torch.tensor([[16.0, 16.0], [1.0, 1.0]]))
        assert hit.tolist() == [True, False]
        edge = float(scene.centres[:, 0].max()) + scene.grid.voxel_size / 2
        assert points[0].tolist() == pytest.approx([edge, 0, 0], abs=scene.grid.voxel_size)

    def test_votes_go_to_the_scene_that_has_the_descriptors(self, generator, monkeypatch):
        monkeypatch.setattr("condense.tasks.siftscenes.VERIFIED", 2)
        unit = torch.nn.functional.normalize

        def scene(descriptors):
            zeros = torch.zeros(len(descriptors), 3)
            return KeyPoints(
                torch.randn(len(descriptors), 3, generator=generator), zeros, zeros[:, 0], descriptors, zeros
            )

        counts = (("a", 9), ("b", 9), ("empty", 0))
        scenes = {name: scene(unit(torch.randn(n, 128, generator=generator), dim=1)) for name, n in counts}
        image = ImageKeyPoints(
            torch.rand(5, 2, generator=generator) * 32, torch.ones(5), scenes["b"].descriptors[3:8], (32, 32)
        )
        found = voted(image, scenes, 0.8)
        assert list(found.votes.values()) == pytest.approx([0, 1, 0], abs=0.01) and next(iter(found.nearest)) == "b"
        assert found.nearest["b"].tolist() == [3, 4, 5, 6, 7] and set(found.nearest) == {"a", "b"}
        assert voted(image, {}, 0.8).votes == {}
        nothing = voted(image[:0], scenes, 0.8)
        assert nothing.votes == {"a": 0, "b": 0, "empty": 0} and not nothing.nearest
        handed = {}

        def posed(name, near, matches):
            handed[name] = near
            return Verified(np.eye(4), matches[:2], 0.5, 0.25)

        answers = sift_answers(found, scenes, Verifier(posed))
        assert [answer.name for answer in answers] == ["b", "a", "empty"] and set(handed) == {"a", "b"}
        torch.testing.assert_close(handed["b"].positions, scenes["b"].positions[3:8])
        assert answers[0].inliers.tolist() == [[0, 3], [1, 4]] and answers[2].pose is None
        K = torch.tensor([[40.0, 0, 16], [0, 40, 16], [0, 0, 1]])
        assert sift_answers(found, scenes, by_pnp(image, K))[0].name == "b"

    def test_key_points_keep_to_the_mask(self):
        rng = np.random.default_rng(0)
        image = torch.from_numpy(np.kron(rng.integers(0, 255, (16, 16, 3)), np.ones((4, 4, 1)))).to(torch.uint8)
        mask = torch.zeros(64, 64, dtype=torch.uint8)
        mask[:, :32] = 255
        found = Sift()(image, mask)
        assert len(found) > 10 and found.positions[:, 0].max() < 33
        torch.testing.assert_close(found.descriptors.norm(dim=1), torch.ones(len(found)))
