import numpy as np
import pytest
import torch
from toys import tiny_teacher, toy_links

from condense.backbone2d import save_backbone
from condense.grid import Grid
from condense.links import save_links
from condense.pretrain import scratch_seed
from condense.tasks.classification import (
    Labelled,
    classify,
    colour_histogram,
    describe,
    few_shot,
    linear_probe,
    pool,
    shape_histogram,
)
from condense.voxels import Turn, VoxelScene, turn_coords


def metas(per_split=8):
    rows = []
    for name, heldout in (("chair", False), ("cup", False), ("boat", True), ("bed", True)):
        for split in ("train", "val", "test"):
            meta = {"kind": "object", "class": name, "split": split, "heldout_class": heldout}
            rows += [meta] * per_split
    return [*rows, {"kind": "room", "split": "train"}, {}]


@pytest.fixture
def labelled():
    return Labelled.read(metas())


def separable(labelled, noise, seed=0):
    """Features that hold the class in one direction each, under noise."""
    rng = np.random.default_rng(seed)
    _, number = np.unique(labelled.classes, return_inverse=True)
    return np.eye(8)[number] + noise * rng.normal(size=(len(number), 8))


def test_rows_keep_splits_and_held_out_classes_apart(labelled):
    seen = labelled.rows("train", False)
    assert set(labelled.classes[seen]) == {"chair", "cup"} and len(seen) == 16
    assert set(labelled.classes[labelled.rows("test", True)]) == {"boat", "bed"}


def test_probe_learns_what_is_there_and_no_more(labelled):
    rows = [labelled.rows(split, False) for split in ("train", "val", "test")]
    assert linear_probe(separable(labelled, 0.1), labelled.classes, *rows)[0].mean() == 1
    noise = np.random.default_rng(0).normal(size=(len(labelled.classes), 8))
    assert linear_probe(noise, labelled.classes, *rows)[0].mean() < 0.85


def test_the_test_split_chooses_nothing(labelled):
    """Scrambling TEST features changes no choice: the accuracy on VAL stays."""
    rows = [labelled.rows(split, False) for split in ("train", "val", "test")]
    features = separable(labelled, 0.8)
    scrambled = features.copy()
    scrambled[rows[2]] = np.random.default_rng(1).permutation(scrambled[rows[2]])
    assert linear_probe(features, labelled.classes, *rows)[1] == linear_probe(scrambled, labelled.classes, *rows)[1]


def test_few_shot_draws_are_the_same_for_every_method(labelled):
    a, b = (few_shot(separable(labelled, 0.1), labelled, seed=3) for _ in range(2))
    assert a.shape == (5, 16)
    assert np.array_equal(a, b)


def test_metric_form(labelled):
    features = {"condense": np.stack([separable(labelled, 0.1, s) for s in range(2)])}
    metrics = classify(features, labelled, seed=0)
    assert set(metrics["condense"]) == {"linear_probe_acc", "heldout_linear_probe_acc", "few_shot_5_acc"}
    assert metrics["condense"]["linear_probe_acc"] == {"mean": 1.0, "ci95": pytest.approx(0, abs=1e-12), "n": 16}


def test_captures_without_classes_give_nothing():
    assert classify({"condense": np.zeros((1, 3, 4))}, Labelled.read([{}] * 3), seed=0) == {}


def test_descriptors_by_hand():
    coords = torch.tensor([[0, 0, 0], [3, 0, 3], [1, 2, 1]], dtype=torch.int32)
    colour = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 1, 1]])
    scene = VoxelScene(coords, torch.ones(3), colour, Grid((0, 0, 0), 1.0, (4, 4, 4)))
    histogram = colour_histogram(scene, bins=2)
    assert histogram[0] == pytest.approx(1 / 3) and histogram[7] == pytest.approx(2 / 3)
    turned, shape = turn_coords(coords, (4, 4, 4), Turn(quarters=1, mirror=True))
    other = VoxelScene(turned, torch.ones(3), colour, Grid((0, 0, 0), 1.0, shape))
    assert np.array_equal(shape_histogram(scene), shape_histogram(other))
    assert pool(torch.tensor([[0.0, 2.0], [4.0, 0.0]])).tolist() == [2, 1, 4, 2]


def test_describe_reads_scenes_alone(tmp_path):
    teacher = tmp_path / "teacher.safetensors"
    save_backbone(tiny_teacher(), teacher)
    paths = [tmp_path / f"{seed}.safetensors" for seed in range(3)]
    for seed, path in enumerate(paths):
        save_links(toy_links(seed, views=3, test=1), path)
    vectors = describe(scratch_seed(tmp_path / "scratch", paths[:2], teacher, seed=0), paths)
    assert vectors.shape == (3, 32) and np.isfinite(vectors).all()
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
