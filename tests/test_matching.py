import dataclasses

import numpy as np
import pytest
import torch
from toys import tiny_teacher, toy_links

from condense.links import Links
from condense.model import new_model
from condense.tasks.matching import (
    max_similarity,
    new_backgrounds,
    owners,
    pooled_similarity,
    query_cells,
    retrieve,
    similarity_by_2d,
    similarity_by_3d,
    spread,
)


def test_spread_takes_the_corners():
    points = torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [9, 0, 0], [0, 9, 0], [5, 5, 0]])
    assert set(spread(points, 4).tolist()) >= {2, 3}
    assert sorted(spread(points, 99).tolist()) == [0, 1, 2, 3, 4]


def test_max_similarity_by_hand_and_by_loop(generator):
    queries = [torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(0, 2)]
    stores = [torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]])]
    expected = [[0.5, (2**-0.5 + 1) / 2], [-1, -1]]
    assert max_similarity(queries, stores) == pytest.approx(np.array(expected))
    queries, stores = ([torch.randn(n, 5, generator=generator) for n in sizes] for sizes in ((4, 7), (3, 6, 2)))
    fast = max_similarity(queries, stores)
    for q, cells in enumerate(queries):
        for c, voxels in enumerate(stores):
            cosine = [max(float(torch.cosine_similarity(x, v, dim=0)) for v in voxels) for x in cells]
            assert fast[q, c] == pytest.approx(np.mean(cosine), abs=1e-5)


def test_pooled_similarity_by_hand():
    queries = [torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.zeros(0, 2)]
    stores = [torch.tensor([[2.0, 2.0]]), torch.tensor([[-1.0, 0.0]])]
    assert pooled_similarity(queries, stores) == pytest.approx(np.array([[2**-0.5, -1], [-1, -1]]))


class TestRetrieve:
    def test_captures_are_the_units(self):
        perfect, blind = np.eye(3)[[0, 0, 1, 2]], np.ones((4, 3))
        metrics = retrieve({"condense": [perfect, perfect], "blind": [blind]}, np.array([0, 0, 1, 2]))
        assert metrics["condense"]["recall_at_1"] == {"mean": 1.0, "ci95": pytest.approx(0), "n": 3}
        assert metrics["blind"]["recall_at_1"]["mean"] == 0
        assert "recall_at_5" not in metrics["condense"]  # 3 captures

    def test_one_capture_is_nothing_to_choose_from(self):
        assert retrieve({"condense": [np.ones((2, 1))]}, np.array([0, 0])) == {}


def only(links: Links, split: str) -> Links:
    return dataclasses.replace(links, views=tuple(view for view in links.views if view.split == split))


def test_lifted_features_find_the_capture():
    """Toy captures differ in colour and shape, so even a random network's features tell them apart."""
    teacher = tiny_teacher()
    every = [toy_links(seed, teacher, views=8) for seed in range(5)]
    train, queries = ([only(links, split) for links in every] for split in ("train", "test"))
    owner = owners(queries)
    assert owner.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    tables = similarity_by_2d(teacher, train, queries, "teacher")
    metrics = retrieve({name: [table] for name, table in tables.items()}, owner)
    assert metrics["lifted_teacher"]["recall_at_1"]["mean"] >= 0.6
    assert metrics["lifted_teacher"]["recall_at_1"]["mean"] >= metrics["pooled_teacher"]["recall_at_1"]["mean"]
    assert "recall_at_1_new_background" in metrics["pooled_teacher"]
    tables = similarity_by_3d(new_model(teacher, 0), train, queries)
    assert {table.shape for table in tables.values()} == {(10, 5)} and len(tables) == 6
    own = np.arange(10), owner  # an untrained 3D network says nothing: with the lifted features captures are found
    assert (tables["condense_2d3d"][own] - tables["condense"][own]).mean() > 0.1


def test_new_background_keeps_the_object():
    links = toy_links(0)
    view, other = links.views[0], new_backgrounds([links])[0].views[0]
    assert torch.equal(view.image[view.mask == 255], other.image[view.mask == 255])
    assert len(other.image[view.mask == 0].unique(dim=0)) == 1
    assert not torch.equal(view.image[view.mask == 0], other.image[view.mask == 0])
    assert new_backgrounds([toy_links(0, masks=False)]) == []


def test_a_query_without_a_mask_is_all_of_the_photograph():
    links = toy_links(0, masks=False)
    features = torch.rand(6 * 64, 3)
    assert [len(cells) for cells in query_cells(links, features)] == [64] * 6
