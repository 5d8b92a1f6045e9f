"""Scenes in Milvus Lite: the same answers as from the exact search in memory."""

import numpy as np
import pytest
from test_repository import DIM, K, filled, random_scene, same_answers, turned, view_of

from condense.milvusbench import bench_milvus
from condense.milvusrepository import MilvusRepository
from condense.ranking import pool

pytest.importorskip("milvus_lite", reason="Milvus Lite is not installed: pip install 'condense[scale]'")


@pytest.fixture
def repository(tmp_path):
    repository = MilvusRepository(str(tmp_path / "scenes.db"), "model-a", DIM)
    repository.add_many((f"scene/{seed}", random_scene(seed), {"class": seed}) for seed in range(8))
    yield repository
    repository.close()


def test_it_answers_as_the_exact_search_does(repository):
    exact = filled(parts=1)
    assert len(repository) == len(exact)
    image, _ = view_of(random_scene(3))
    same_answers(repository.query_image(image, K), exact.query_image(image, K))
    scene, _ = turned(random_scene(5))
    same_answers(repository.query_scene(scene), exact.query_scene(scene))
    same_answers(
        repository.query_scene(scene, leave_out=["scene/5"], shortlist=4),
        exact.query_scene(scene, leave_out=["scene/5"], shortlist=4),
    )
    vector = pool(image.descriptors, image.scores, 1)[0]
    for (name, value), (other, wanted) in zip(
        repository.query_vector(vector, 3), exact.query_vector(vector, 3), strict=True
    ):
        assert name == other and value == pytest.approx(wanted, abs=1e-5)


def test_what_is_kept_comes_back_after_a_restart(tmp_path):
    uri = str(tmp_path / "scenes.db")
    first = MilvusRepository(uri, "model-a", DIM)
    first.add("a, 'b' \"c\"", random_scene(0), {"class": "chair"})
    first.close()
    again = MilvusRepository(uri, "model-a", DIM)
    exact = filled(1, parts=1).scene("scene/0")
    assert again.meta("a, 'b' \"c\"") == {"class": "chair"} and len(again) == 1
    for a, b in zip(vars(again.scene("a, 'b' \"c\"")).values(), vars(exact).values(), strict=True):
        np.testing.assert_array_equal(a, b)
    again.close()
    with pytest.raises(ValueError, match="not by model-b"):
        MilvusRepository(uri, "model-b", DIM)
    with pytest.raises(ValueError, match=f"length {DIM}, not 8"):
        MilvusRepository(uri, "model-a", 8)


def test_what_is_removed_is_not_found(repository):
    repository.remove("scene/3")
    image, _ = view_of(random_scene(3))
    assert "scene/3" not in [answer.name for answer in repository.query_image(image, K)]
    for ask in (repository.remove, repository.scene, repository.meta):
        with pytest.raises(KeyError, match="no scene 'scene/3'"):
            ask("scene/3")
    repository.add("scene/3", random_scene(3))
    assert repository.query_image(image, K)[0].name == "scene/3"


def test_what_does_not_fit_is_refused(repository):
    with pytest.raises(ValueError, match="has a scene 'scene/1' already"):
        repository.add("scene/1", random_scene(9))
    with pytest.raises(ValueError, match="'twice' already"):
        repository.add_many([("twice", random_scene(9), None)] * 2)
    with pytest.raises(ValueError, match="no key points"):
        repository.add("empty", random_scene(9)[np.zeros(0, int)])
    with pytest.raises(ValueError, match=r"not \(K, 16\)"):
        repository.query_vector(random_scene(0).descriptors[:, :8])
    with pytest.raises(ValueError, match=r"more than 65535 bytes.*KeyPoints.top"):
        repository.add("large", random_scene(9, 2000))
    assert len(repository) == 8


def test_an_empty_repository_answers_nothing(tmp_path):
    empty = MilvusRepository(str(tmp_path / "empty.db"), "m", DIM)
    assert empty.query_image(view_of(random_scene(0))[0], K) == [] and empty.query_scene(random_scene(0)) == []
    empty.close()


def test_the_benchmark_puts_both_side_by_side():
    lines = bench_milvus(8, 20)
    assert set(lines) == {"milvus_query_8", "milvus_open_8", "milvus_build_8"}
    assert all(entry["ours_s"] > 0 and entry["other_s"] > 0 for entry in lines.values())
    said = lines["milvus_query_8"]["what"]
    assert "recall@1 1.00 against 1.00 of 8" in said and "1.000 are in Milvus's shortlist of 50" in said
