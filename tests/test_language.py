import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from toys import toy_links

from condense.colour import SHADES
from condense.language import (
    TextMap,
    bank,
    encode_phrases,
    load_text_map,
    margin_threshold,
    phrases,
    rank_scenes,
    save_text_map,
    score_texts,
    stand_out,
    train_text_map,
    vocabulary,
)
from condense.languagefigures import Heat, heat_maps, ranked_scenes
from condense.languagequeries import attribute_queries, caption_queries, count_queries, part_phrases, relation_queries
from condense.params import LanguageParams
from condense.tasks.described import Described, describe, learns
from condense.tasks.grounding import THRESHOLDS, grounding, name_voxels
from condense.tasks.language import all_texts, by_capture, evaluate, metric_file, precision, recall

WORDS = ["red", "green", "blue", "ball", "box", "leg"]
DIM = 8


class WordEncoder:
    """Which of WORDS a text has: a sentence encoder that can be checked by hand."""

    dim = len(WORDS)

    def encode(self, texts):
        return normalize(torch.tensor([[float(word in text) for word in WORDS] for text in texts]) + 1e-3, dim=1)


def feature(*words):
    """A feature that adds up a fixed direction for each word."""
    directions = torch.randn(len(WORDS), DIM, generator=torch.Generator().manual_seed(0))
    return sum(directions[WORDS.index(word)] for word in words)


def capture(number, colour, shape, legs, split="train"):
    """40 voxels: 30 of a body, 10 of its legs, labelled 1 and 2."""
    noise = 0.2 * torch.randn(40, DIM, generator=torch.Generator().manual_seed(number))
    voxels = torch.stack([feature(colour, shape)] * 30 + [feature(legs, "leg")] * 10) + noise
    meta = {
        "kind": "object", "class": shape, "split": split, "heldout_class": False, "parts": {"1": shape, "2": "leg"},
        "captions": [f"a {colour} {shape} with {legs} leg", f"a {colour} {shape}"],
        "captions_heldout": [f"find the {colour} {shape} which has {legs} leg"],
        "attributes": {"colour": colour, "materials": {shape: colour, "leg": legs},
                       "phrases": {shape: f"a {{}} {shape}", "leg": "four {} leg"}},
    }  # fmt: skip
    grey = torch.full((40, 3), 0.5)
    features = (voxels, voxels[::2], (voxels[1::4], voxels[::4]))
    return Described(f"{split}_{number}", meta, torch.arange(40), *features, (grey, grey[::2], (grey[1::4], grey[::4])))


def captures(split):
    kinds = [(c, s, leg) for c in WORDS[:3] for s in WORDS[3:5] for leg in WORDS[:3] if leg != c]
    start = {"train": 0, "val": 100, "test": 200}[split]
    kinds = kinds if split == "train" else kinds[::2]
    return [capture(start + i, *kind, split) for i, kind in enumerate(kinds)]


@pytest.fixture(scope="module")
def learned():
    train = captures("train")
    vectors = encode_phrases(WordEncoder(), all_texts([s.meta for s in train + captures("val") + captures("test")]))
    banks = [bank([some.voxels for some in train], 6), bank([some.cells for some in train], 6)]
    params = LanguageParams(steps=80, batch=12, dropout=0.0, centres=6)
    return train_text_map(banks, [some.meta["captions"] for some in train], vectors, params, seed=0), vectors


def test_captions_fall_into_phrases():
    assert phrases("a boat with a roof and a brown deck") == ["a boat", "a roof", "a brown deck"]
    assert phrases("a green and white striped leg") == ["a green and white striped leg"]
    assert phrases("long table: an oval top, four legs") == ["long table", "an oval top", "four legs"]
    assert phrases("with") == ["with"] and phrases("...") == ["..."]


def test_a_bank_keeps_the_directions_and_their_shares():
    one, two = torch.eye(DIM)[0], torch.eye(DIM)[1]
    scenes = bank([torch.stack([one * 3] * 3 + [two]), torch.stack([one])], 2)
    order = scenes.shares[0].argsort(descending=True)
    torch.testing.assert_close(scenes.shares[0][order], torch.tensor([0.75, 0.25]))
    torch.testing.assert_close(scenes.centres[0][order], torch.stack([one, two]))
    torch.testing.assert_close(scenes.means[0], 0.75 * one + 0.25 * two)
    assert sorted(scenes.shares[1].tolist()) == [0, 1]  # one feature needs one centre
    with pytest.raises(ValueError, match="scene 1 has no features"):
        bank([torch.ones(2, DIM), torch.ones(0, DIM)], 2)


def test_a_centre_without_share_changes_no_score():
    text_map, scene = TextMap(6, DIM).eval(), bank([torch.eye(DIM)[:1]], 2)
    moved = scene.centres.clone()
    moved[0, scene.shares[0] == 0] = torch.eye(DIM)[3]
    query = [WordEncoder().encode(["red"])]
    before = score_texts(text_map, query, scene)
    np.testing.assert_allclose(score_texts(text_map, query, type(scene)(moved, scene.shares, scene.means)), before)


def test_a_text_scores_the_sum_of_its_phrases():
    text_map, scenes = TextMap(6, DIM, seed=3), bank([torch.eye(DIM)[:4], torch.eye(DIM)[4:]], 2)
    parts = WordEncoder().encode(["red ball", "blue leg"])
    both = score_texts(text_map, [parts], scenes)
    apart = score_texts(text_map, [parts[:1], parts[1:]], scenes)
    np.testing.assert_allclose(both[0], apart.sum(0), rtol=1e-5, atol=1e-6)


def test_training_finds_new_captures_and_their_parts(learned):
    text_map, vectors = learned
    val, test = captures("val"), captures("test")
    labels = {some.name: np.array([1] * 30 + [2] * 10) for some in val + test}
    scores = evaluate(text_map, val, test, labels, vectors, {("red", "ball")}, 6)
    assert scores["scene_recall_at_1"].mean() > 0.8  # 6 captures; chance is 1/6
    assert scores["grounding_miou"].mean() > 0.6  # everything hot gives 0.5
    assert scores["class_zero_shot_acc"].mean() > 0.8
    tables = name_voxels(text_map, test, labels, vectors)
    metrics = metric_file({"condense": [scores, scores]}, {"condense": [tables, tables]})
    assert metrics["condense"]["part_zero_shot_miou"]["mean"] > 0.6
    assert metrics["condense"]["scene_recall_at_1"]["n"] == len(test)


def test_training_is_deterministic_and_leaves_the_global_generator_alone():
    train = captures("train")[:6]
    vectors = encode_phrases(WordEncoder(), all_texts([some.meta for some in train]))
    banks, said = [bank([some.voxels for some in train], 3)], [some.meta["captions"] for some in train]
    state = torch.get_rng_state()
    one, two = (train_text_map(banks, said, vectors, LanguageParams(steps=3), seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_map_survives_its_file(learned, tmp_path):
    text_map, vectors = learned
    save_text_map(tmp_path / "map.safetensors", text_map)
    again, scenes = load_text_map(tmp_path / "map.safetensors"), bank([torch.eye(DIM)], 3)
    query = [vectors["a red ball"]]
    np.testing.assert_array_equal(score_texts(again, query, scenes), score_texts(text_map, query, scenes))
    assert torch.equal(again.heat(query[0], torch.eye(DIM)), text_map.heat(query[0], torch.eye(DIM)))


def test_ranking_scenes_answers_sensibly(learned):
    text_map, _ = learned
    scenes = {some.name: some.voxels for some in captures("test")}
    names, condensed = list(scenes), bank(list(scenes.values()), 6)
    found = rank_scenes("a red ball", WordEncoder(), text_map, names, condensed)
    assert [name for name, _ in found[:1]] == ["test_200"] and len(found) == len(scenes)
    assert rank_scenes("a red ball", WordEncoder(), text_map, names, condensed, least=np.inf) == []
    assert rank_scenes("a red ball", WordEncoder(), text_map, [], None) == []


def test_standing_and_threshold():
    np.testing.assert_allclose(stand_out(np.array([[1.0, 3.0], [2.0, 2.0]])), [[-1, 1], [0, 0]])
    best, present = np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True])
    assert 0.2 < margin_threshold(best, present) < 0.8


def test_recall_and_precision_by_hand():
    scores, right = np.array([[3.0, 2, 1], [2, 2, 1], [1, 2, 3]]), np.array([[1, 0, 0], [1, 0, 0], [1, 0, 1]], bool)
    np.testing.assert_array_equal(recall(scores, right, 1), [1, 0, 1])  # a tie with a wrong scene is a miss
    np.testing.assert_allclose(precision(scores, right), [1, 1 / 2, (1 + 2 / 3) / 2])
    np.testing.assert_array_equal(by_capture(np.array([1.0, 0, 1]), right), [2 / 3, np.nan, 1])
    assert np.isnan(precision(scores, np.zeros_like(right))).all()


def test_grounding_of_a_perfect_and_a_flat_heat():
    class Oracle:
        def heat(self, vectors, features):
            return 9 * features[:, :1].T * vectors.sum() - 4

    seen = captures("test")[0]
    some = dataclasses.replace(seen, name="a", rows=torch.arange(2), voxels=torch.tensor([[1.0], [0]]))
    vectors = {"a red ball": torch.ones(1, 1), "four green leg": torch.zeros(1, 1)}
    values = grounding(Oracle(), [some], {"a": np.array([1, 2])}, vectors)
    assert values.shape == (1, len(THRESHOLDS))
    np.testing.assert_allclose(values, 0.5)  # the first phrase is found, the second is nowhere hot
    assert np.isnan(grounding(Oracle(), [some], {}, vectors)).all()


def test_queries_know_their_answers():
    metas = [some.meta for some in captures("test")]
    queries = caption_queries([metas[0], metas[0], metas[1]])
    assert queries.right[0].tolist() == [True, True, False]
    assert part_phrases(metas[0])["leg"] == "four green leg"
    pairs = attribute_queries(metas)
    assert pairs.right[pairs.texts.index("a red ball")].tolist() == [m["captions"][1] == "a red ball" for m in metas]
    chair = {"class": "chair", "colour": "red"}
    rooms = [
        {
            "kind": "room",
            "attributes": {"instances": [chair] * n},
            "captions": ["a den with a mug on the table"] * (n - 1),
        }
        for n in (1, 2)
    ]
    assert count_queries(rooms).texts == ("a room with one chair", "a room with two chairs")
    assert relation_queries(rooms).right.tolist() == [[False, True]]


def test_captions_alone_are_enough_to_ask_with(learned):
    """Photographs that come with captions, but with no classes, attributes or labels."""
    plain = ("split", "captions", "captions_heldout")
    val, test = (
        [dataclasses.replace(s, meta={key: s.meta[key] for key in plain}) for s in captures(split)]
        for split in ("val", "test")
    )
    text_map, vectors = learned
    assert set(all_texts([s.meta for s in val + test])) <= set(vectors)
    scores = evaluate(text_map, val, test, {}, vectors, set(), 6)
    metrics = metric_file({"condense": [scores]}, {"condense": [name_voxels(text_map, test, {}, vectors)]})["condense"]
    assert metrics["scene_recall_at_1"]["mean"] > 0.5
    assert not {"grounding_miou", "attribute_map", "count_map", "class_zero_shot_acc"} & set(metrics)


def test_words_belong_to_the_captures_that_have_them():
    captions = [["a red chair", "a chair with two Legs"], ["a chair"], ["a blue chair: two legs"]]
    assert vocabulary(captions) == {"blue": {2}, "legs": {0, 2}, "red": {0}, "two": {0, 2}, "with": {0}}


def test_a_capture_is_described_by_its_frozen_features():
    links = toy_links(0)
    some = describe(links, None)
    torch.testing.assert_close(some.voxels, links.lifted[some.rows])
    assert some.asked == ()  # only test captures are asked for by their test views
    asked = describe(dataclasses.replace(links, meta=links.meta | {"split": "test"}), None).asked
    assert len(asked) == 2 and all(len(cells) for cells in asked)
    both, colours = some.coloured(), some.unlearned().coloured()
    assert both.voxels.shape[1] == some.voxels.shape[1] + SHADES and colours.cells.shape[1] == SHADES
    torch.testing.assert_close(both.cells.norm(dim=1), torch.ones(len(both.cells)))
    assert not learns({"split": "train", "heldout_class": True, "captions": ["a"]}) and not learns(links.meta)


def test_figures_show_every_phrase_and_scene():
    image = np.zeros((4, 6, 3), np.uint8)
    heat = Heat("four legs", image, np.zeros((2, 3), np.float32), np.eye(3, dtype=int), np.zeros(3, np.float32))
    assert len(heat_maps([heat] * 3).axes) == 12
    assert len(ranked_scenes([("a chair", [image] * 2, [True, False])]).axes) == 3
