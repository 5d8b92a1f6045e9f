import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toys import tiny_teacher, toy_links

from condense.backbone2d import FeatureStatistics, save_backbone
from condense.links import lift, save_links
from condense.model import new_model, save_model
from condense.tasks.features2d import (
    Evaluation,
    all_maps,
    find_tracks,
    first_views,
    geometry_maps,
    heldout_labels,
    lifted_halves,
    measure,
    measure_capture,
    teacher_maps,
)
from condense.tasks.matches2d import find_matches

PHOTOGRAPHS = SimpleNamespace(meta={})  # a capture without labels


@pytest.fixture(scope="module")
def links():
    return toy_links(0, views=6, test=5)


def labelled(links, number=7):
    """A stand-in for the capture: every solid pixel has one label, its left half another."""
    pixels = []
    for view in links.views:
        label = np.where(view.mask.numpy() > 127, number, 0).astype(np.uint8)
        label[:, :16] = np.where(label[:, :16] > 0, number + 1, 0)
        pixels.append(np.repeat(label[..., None], 3, axis=2))
    test = [i for i, view in enumerate(links.views) if view.split == "test"]
    parts = {str(number): "shell", str(number + 1): "half"}
    return SimpleNamespace(
        meta={"parts": parts},
        views=lambda split: test,
        load=lambda views, max_side: SimpleNamespace(labels=[pixels[i] for i in views]),
    )


def test_a_track_is_the_voxel_a_cell_sees_most_of(links):
    tracks = find_tracks(links)
    dense = torch.cat([view.operator.dense() for view in links.views])
    solid = dense.sum(1) >= 0.5
    assert torch.equal(tracks >= 0, solid)
    most = dense.max(1).values
    torch.testing.assert_close(dense[solid].gather(1, tracks[solid][:, None])[:, 0], most[solid])


def test_labels_of_heldout_views(links):
    found = heldout_labels(labelled(links), links, 0)
    assert sorted(found) == [1, 2, 3, 4, 5]
    label = found[1].reshape(links.views[1].cells)
    assert set(label[:, :4].flatten().tolist()) <= {0, 1} and set(label[:, 4:].flatten().tolist()) <= {0, 2}
    assert (label > 0).any()
    assert heldout_labels(PHOTOGRAPHS, links, 0) == {}


def test_measures_tell_features_of_the_surface_from_features_of_the_view(links):
    statistics = FeatureStatistics(torch.zeros(4), torch.ones(4))
    labels = heldout_labels(labelled(links), links, 0)
    evaluation = Evaluation(links, find_matches(links, 0), find_tracks(links), labels, statistics, 4, 0)
    code = torch.cat([links.scene.coords.float() / 12 - 0.5, torch.full((len(links.scene), 1), 0.2)], 1)
    of_points = measure(evaluation, geometry_maps(links, code))
    generator = torch.Generator().manual_seed(0)
    of_noise = measure(evaluation, [torch.randn(4, *view.cells, generator=generator) for view in links.views])
    assert of_points["variance_explained"] > 0.9 and abs(of_noise["variance_explained"]) < 0.15
    assert of_points["tv_inside"] < 0.5 * of_noise["tv_inside"]
    assert of_noise["tv_ratio"] == pytest.approx(1, abs=0.15)
    assert of_points["consistency_margin"] > of_noise["consistency_margin"] + 0.1
    without = measure(dataclasses.replace(evaluation, labels={}), geometry_maps(links, code))
    assert np.isnan(without["tv_inside"]) and np.isfinite(without["norm_outliers"])


def test_maps_of_every_kind(tmp_path, links):
    save_backbone(tiny_teacher(), tmp_path / "teacher.safetensors")
    save_model(tmp_path / "seed_0", new_model(tiny_teacher(), 0))
    maps = dict(all_maps(links, {"student": [tmp_path / "seed_0"]}, tmp_path / "teacher.safetensors"))
    assert list(maps) == ["teacher", "lifted", "student", "rendered"]
    assert all(cells.shape == (16, 8, 8) for each in maps.values() for cells in each)
    # an untrained student is its teacher, whose stored features are float16
    torch.testing.assert_close(maps["student"][0], maps["teacher"][0], rtol=1e-2, atol=1e-2)
    assert len(first_views(links, 2).views) == 2


def test_halves_of_lifted_features(links):
    """Two views out of three make one half: that half is what lifting those two gives."""
    links = dataclasses.replace(links, views=toy_links(0, views=6, test=3).views)
    first, second = lifted_halves(links)
    expected, _ = lift([links.views[i].teacher for i in (0, 2)], [links.views[i].operator for i in (0, 2)])
    torch.testing.assert_close(first, expected)
    assert not torch.allclose(first, second)


def test_files_to_rows(tmp_path, links):
    save_backbone(tiny_teacher(), tmp_path / "teacher.safetensors")
    save_links(links, tmp_path / "toy.safetensors")
    for seed in range(2):
        save_model(tmp_path / f"seed_{seed}", new_model(tiny_teacher(), seed))
    networks = {"student": [tmp_path / "seed_0", tmp_path / "seed_1"]}
    job = (tmp_path / "toy.safetensors", networks, tmp_path / "teacher.safetensors", 0, 0)
    rows = measure_capture(PHOTOGRAPHS, *job)
    counts = {kind: len(seeds) for kind, seeds in rows.items()}
    assert counts == {"teacher": 1, "lifted": 1, "student": 2, "rendered": 2, "lifted_halves": 1}
    for metric in ("consistency_margin", "variance_explained"):
        assert rows["student"][0][metric] == pytest.approx(rows["teacher"][0][metric], abs=1e-2)
    assert "consistency_margin" in rows["lifted_halves"][0] and "tv_ratio" not in rows["lifted_halves"][0]
    assert np.isnan(rows["teacher"][0]["tv_ratio"])
    assert teacher_maps(links)[0].shape == (16, 8, 8)
