import numpy as np
import pytest
import torch
from toys import toy_links, toy_scene

from condense.tasks.matches2d import find_matches, match_scores, sample_map, surface


@pytest.fixture(scope="module")
def links():
    return toy_links(0, views=6, test=5)


def test_surface_lies_on_the_ball(links):
    position, opacity = surface(links.scene, links.views[0])
    hit = opacity > 0.9
    radius = (position[hit] - 6).norm(dim=1)
    extent = (toy_scene(0).coords + 0.5 - 6).norm(dim=1).max()
    assert hit.any() and not hit.all()
    assert (radius < extent + 1).all() and radius.median() > extent - 2.5


def test_matches_are_one_surface_point_in_both_views(links):
    matches = find_matches(links, seed=0)
    assert len(matches) >= 3
    for pair in matches:
        here = surface(links.scene, links.views[pair.first])[0]  # [16, 16, 3]
        row, column = (pair.a[:, 1] / 2).long(), (pair.a[:, 0] / 2).long()
        points = links.scene.grid.to_world(here[row, column])
        again, depth = links.views[pair.second].camera.project(0, points)
        torch.testing.assert_close(again, pair.b)
        assert (depth > 0).all()
    same = find_matches(links, seed=0)
    assert all(torch.equal(a.b, b.b) for a, b in zip(matches, same, strict=True))


def test_the_first_view_of_a_pair_is_a_test_view():
    links = toy_links(0, views=6, test=1)
    pairs = find_matches(links, seed=0)
    assert {pair.first for pair in pairs} == {5} and {pair.second for pair in pairs} <= {0, 1, 2, 3, 4}


def test_sample_map_reads_centres_exactly_and_between_linearly():
    cells = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])  # [2, 1, 2]: unit vectors side by side
    points = torch.tensor([[2.0, 2.0], [6.0, 2.0], [4.0, 2.0]])
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5**0.5, 0.5**0.5]])
    torch.testing.assert_close(sample_map(cells, points, torch.tensor([8, 4])), expected)


class TestMatchScores:
    def test_position_codes_match_and_constants_do_not(self, links):
        """A map that encodes the surface point itself is as steady as can be; a constant has no margin."""
        matches = find_matches(links, seed=0)
        maps = {"ideal": [], "constant": []}
        for view in links.views:
            code = torch.cat([links.scene.coords.float() / 12 - 0.5, torch.full((len(links.scene), 1), 0.2)], 1)
            maps["ideal"].append(view.operator.render(code).T.reshape(4, *view.cells))
            maps["constant"].append(torch.ones(4, *view.cells))
        ideal, constant = (match_scores(links, matches, maps[kind], 4, seed=0) for kind in ("ideal", "constant"))
        assert ideal["consistency_margin"] > 0.1
        assert ideal["match_at_1_cell"] > 0.8 > 0.5 > constant["match_at_1_cell"]
        assert ideal["match_at_1_cell"] == ideal["match_at_4px"] >= ideal["match_at_2px"] >= ideal["match_at_1px"] > 0
        assert constant["consistency_margin"] == pytest.approx(0, abs=1e-6)

    def test_the_second_view_by_other_features(self, links):
        matches = find_matches(links, seed=0)
        code = links.scene.coords.float() / 12 - 0.5
        maps, other = ([v.operator.render(c).T.reshape(3, *v.cells) for v in links.views] for c in (code, -code))
        same, opposite = (match_scores(links, matches, maps, 4, 0, second) for second in (None, other))
        assert opposite["consistency_margin"] == pytest.approx(-same["consistency_margin"], abs=1e-5)
        assert opposite["match_at_1_cell"] < 0.5 * same["match_at_1_cell"]

    def test_no_matches(self, links):
        assert all(np.isnan(value) for value in match_scores(links, [], [], 4, seed=0).values())
