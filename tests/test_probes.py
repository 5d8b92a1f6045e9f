import numpy as np
import pytest

from condense.tasks.probes import Labelled, draw_shots, few_shot, fit_path, linear_probe, nearest_neighbours


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


def rows_of(labelled):
    return tuple(labelled.rows(split, False) for split in ("train", "val", "test"))


def test_rows_keep_splits_and_held_out_classes_apart(labelled):
    seen = labelled.rows("train", False)
    assert set(labelled.classes[seen]) == {"chair", "cup"} and len(seen) == 16
    assert set(labelled.classes[labelled.rows("test", True)]) == {"boat", "bed"}


def test_probe_learns_what_is_there_and_no_more(labelled):
    train, val, test = rows_of(labelled)
    noise = np.random.default_rng(0).normal(size=(len(labelled.classes), 8))
    for vectors, low, high in ((separable(labelled, 0.1), 1, 1), (noise, 0, 0.85)):
        probe, _ = linear_probe(vectors, labelled.classes, train, val)
        assert low <= (probe.predict(vectors[test]) == labelled.classes[test]).mean() <= high


def test_the_test_split_chooses_nothing(labelled):
    """Scrambling TEST vectors changes no choice."""
    train, val, test = rows_of(labelled)
    vectors = separable(labelled, 0.8)
    scrambled = vectors.copy()
    scrambled[test] = np.random.default_rng(1).permutation(scrambled[test])
    (a, _), (b, _) = (linear_probe(v, labelled.classes, train, val) for v in (vectors, scrambled))
    assert np.array_equal(a.weights, b.weights)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_probe_is_scikit_learns(classes):
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    vectors, names = rng.normal(size=(60, 4)), np.array(["a", "b", "c"])[np.arange(60) % classes]
    scaled = (vectors - vectors.mean(0)) / vectors.std(0)
    peer = LogisticRegression(C=10.0, max_iter=300).fit(scaled, names)
    assert np.array_equal(fit_path(vectors, names)[-1].predict(vectors), peer.predict(scaled))


def test_a_single_class_and_a_constant_column_do_no_harm():
    vectors = np.ones((4, 3))
    assert set(fit_path(vectors, np.array(["a"] * 4))[0].predict(vectors)) == {"a"}
    predicted = fit_path(vectors, np.array(["a", "b"] * 2))[-1].predict(vectors)
    assert np.isin(predicted, ["a", "b"]).all()


def test_neighbours_by_hand():
    """Two tight pairs of directions: the vote of one neighbour is right for both test rows."""
    vectors = np.array([[1.0, 0], [0.9, 0.1], [0, 1], [0.1, 0.9], [1, 0.05], [0.05, 1], [0.8, 0], [0, 0.8]])
    classes = np.array(["x", "x", "y", "y", "x", "y", "x", "y"])
    train, val, test = np.arange(4), np.array([4, 5]), np.array([6, 7])
    assert nearest_neighbours(vectors, classes, train, val, test).tolist() == [1, 1]
    classes[test] = classes[test][::-1]
    assert nearest_neighbours(vectors, classes, train, val, test).tolist() == [0, 0]


def test_draws_are_nested_balanced_and_the_same_for_every_method(labelled):
    train = labelled.rows("train", False)
    one, five = (draw_shots(labelled.classes, train, shots, seed=3) for shots in (1, 5))
    assert all(set(a) <= set(b) for a, b in zip(one, five, strict=True))
    assert all(sorted(labelled.classes[rows]) == ["chair"] * 5 + ["cup"] * 5 for rows in five)
    assert not all(np.array_equal(np.sort(five[0]), np.sort(rows)) for rows in five)
    assert len(draw_shots(labelled.classes, train, 99, seed=3)[0]) == 16, "a class gives all it has"
    a, b = (few_shot(separable(labelled, 0.1), labelled.classes, rows_of(labelled), 5, seed=3) for _ in range(2))
    assert a.shape == (10, 16) and np.array_equal(a, b)
