import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from condense import repositoryfiles as files
from condense.cameras import Cameras, look_at
from condense.colour import with_colour
from condense.keypoints import ImageKeyPoints, KeyPoints
from condense.language import bank, encode_phrases, train_text_map, vocabulary
from condense.params import LanguageParams
from condense.poses import pose_errors
from condense.ranking import calibrate, coarse_similarity, local_similarity, margins, pool
from condense.repository import SceneRepository
from condense.repositorybench import bench_size, exhaustive, made_query, made_scene

DIM = 16
K = torch.tensor([[80.0, 0, 32], [0, 80, 32], [0, 0, 1]])


def random_scene(seed, count=40):
    rng = np.random.default_rng(seed)
    draw = [torch.from_numpy(rng.normal(size=(count, width))).float() for width in (3, DIM)]
    points, descriptors = normalize(draw[0], dim=1), normalize(draw[1], dim=1)  # a sphere: points are normals
    scores = torch.from_numpy(np.sort(rng.uniform(0.1, 1, count))[::-1].copy()).float()
    return KeyPoints(points, points, scores, descriptors, torch.from_numpy(rng.uniform(size=(count, 3))).float())


def view_of(scene, seed=0, noise=0.02):
    """What a camera 3 away sees of the scene, descriptors a little off; and its pose."""
    rng = np.random.default_rng(seed)
    eye = normalize(torch.from_numpy(rng.normal(size=(1, 3))).float(), dim=1) * 3
    cameras = Cameras(K[None], look_at(eye, torch.zeros(3)), torch.tensor([[64, 64]]))
    seen = ((eye - scene.positions) * scene.normals).sum(1) > 0
    pixels, _ = cameras.project(0, scene.positions[seen])
    off = noise * torch.from_numpy(rng.normal(size=(int(seen.sum()), DIM))).float()
    descriptors = normalize(scene.descriptors[seen] + off, dim=1)
    return ImageKeyPoints(pixels, scene.scores[seen], descriptors, (64, 64)), cameras.T_world_from_camera[0].numpy()


def turned(scene, degrees=50.0, shift=(1.0, 2.0, 3.0)):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    T = torch.tensor([[c, -s, 0, shift[0]], [s, c, 0, shift[1]], [0, 0, 1, shift[2]], [0, 0, 0, 1]])
    positions = scene.positions @ T[:3, :3].T + T[:3, 3]
    return dataclasses.replace(scene, positions=positions), T.numpy()


def filled(count=8, **kwargs):
    repository = SceneRepository("model-a", DIM, **{"parts": 2, **kwargs})
    for seed in range(count):
        picture = np.full((4, 5, 3), seed, np.uint8) if seed % 2 else None
        repository.add(f"scene/{seed}", random_scene(seed), {"class": seed}, picture)
    return repository


def same_answers(a, b):
    assert [x.name for x in a] == [x.name for x in b]
    np.testing.assert_allclose([x.score for x in a], [x.score for x in b], atol=1e-6)


def test_an_image_finds_its_scene_and_where_it_was_taken():
    repository = filled()
    image, T = view_of(random_scene(3))
    answers = repository.query_image(image, K, top=3)
    assert answers[0].name == "scene/3" and len(answers) == 3
    degrees, distance = pose_errors(answers[0].pose, T)
    assert degrees < 0.5 and distance < 0.02
    seen, at = answers[0].inliers.T
    projected, _ = Cameras(K[None], torch.from_numpy(T[None]), torch.tensor([[64, 64]])).project(
        0, repository.scene("scene/3").positions[at]
    )
    assert len(seen) > 10 and (projected - image.positions[seen]).norm(dim=1).max() < 2
    assert answers[0].score > max(answer.score for answer in answers[1:])
    assert all(0 <= answer.score <= 1 for answer in answers)
    same_answers(answers, repository.query_image(image, K, top=3))


def test_a_scene_finds_its_duplicate_and_how_it_lies():
    repository = filled()
    scene, T = turned(random_scene(5))
    answers = repository.query_scene(scene)
    assert answers[0].name == "scene/5" and len(answers[0].inliers) == 40
    np.testing.assert_allclose(answers[0].pose, np.linalg.inv(T), atol=1e-3)
    others = repository.query_scene(scene, leave_out=["scene/5"])
    assert len(others) == 7 and "scene/5" not in [answer.name for answer in others]


def test_geometry_tells_scenes_of_equal_descriptors_apart():
    repository = SceneRepository("m", DIM, parts=1)
    scene = random_scene(0)
    order = torch.from_numpy(np.random.default_rng(1).permutation(40))
    repository.add("shuffled", dataclasses.replace(scene, positions=scene.positions[order]))
    repository.add("right", scene)
    assert repository.query_scene(scene)[0].name == "right"
    assert repository.query_image(view_of(scene)[0], K)[0].name == "right"
    unverified = repository.query_scene(scene, verify=0)
    assert unverified[0].similarity == pytest.approx(unverified[1].similarity) and unverified[0].pose is None


def test_a_scene_that_cannot_rank_first_is_not_verified():
    repository, image = filled(), view_of(random_scene(3), noise=0.2)[0]
    answers = repository.query_image(image, K, verify=8)
    assert [answer.pose is None for answer in answers] == [False] + [True] * 7
    heavy = repository.query_image(image, K, verify=8, weight=10)  # agreement may overturn any order of similarity
    assert all(answer.pose is not None for answer in heavy)
    assert answers[0].name == heavy[0].name


def test_vectors_find_scenes_without_key_points():
    repository = filled(parts=1)
    names = [repository.query_vector(pool(s.descriptors, s.scores, 1)[0], 2)[0] for s in map(random_scene, range(8))]
    assert [name for name, _ in names] == repository.names
    assert names[0][1] == pytest.approx(1, abs=1e-3)
    first = random_scene(0)
    second = repository.query_vector(pool(first.descriptors, first.scores, 1)[0], 2)[1]
    assert repository.query_vector(pool(first.descriptors, first.scores, 1)[0], 1, leave_out=[names[0][0]]) == [second]
    assert repository.query_image(view_of(first)[0], K, 1, leave_out=[names[0][0]])[0].name != names[0][0]


def test_pooling_by_hand():
    descriptors, scores = torch.eye(3)[[0, 0, 1]], torch.tensor([0.5, 0.5, 1.0])
    torch.testing.assert_close(pool(descriptors, scores, 1), normalize(torch.tensor([[1.0, 1, 0]]), dim=1))
    centres = pool(descriptors, scores, 2)
    torch.testing.assert_close(centres, torch.eye(3)[[1, 0]])
    assert pool(descriptors[:1], scores[:1], 4).shape == (4, 3)


def test_similarities_match_plain_loops(generator):
    query = normalize(torch.randn(5, DIM, generator=generator), dim=1)
    stores = [normalize(torch.randn(count, DIM, generator=generator), dim=1) for count in (3, 7)]
    similarity, cosines = local_similarity(query, stores)
    plain = [sum(max(float(q @ d) for d in store) for q in query) / 5 for store in stores]
    np.testing.assert_allclose(similarity, plain, atol=1e-5)
    assert [c.shape for c in cosines] == [(3, 5), (7, 5)]
    plain = [sum(sorted(max(float(q @ d) for d in store) for q in query)[:2]) / 2 for store in stores]
    np.testing.assert_allclose(local_similarity(query, stores, worst=0.4)[0], plain, atol=1e-5)
    pooled = torch.stack([store[:3] for store in stores])
    plain = [sum(max(float(q @ d) for d in store[:3]) for q in query) / 5 for store in stores]
    np.testing.assert_allclose(coarse_similarity(query, pooled), plain, atol=1e-5)


def test_calibrated_scores_follow_what_was_right():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 4))
    correct = rng.uniform(size=400) < 1 / (1 + np.exp(-(2 * features[:, 0] - 1)))
    weights = calibrate(features, correct)
    np.testing.assert_allclose(weights, [2, 0, 0, 0, -1], atol=0.6)
    other_units = np.array([100.0, 0.01, 1.0, 1.0])
    np.testing.assert_allclose(calibrate(features * other_units, correct)[:4], weights[:4] / other_units, atol=1e-4)
    repository = filled()
    image = view_of(random_scene(3))[0]
    repository.set_calibration("image", [0.0, 0, 0, 0, math.log(3)])
    assert repository.query_image(image, K)[0].score == pytest.approx(0.75)
    with pytest.raises(ValueError, match="0 of 5 are right"):
        calibrate(features[:5], np.zeros(5))
    with pytest.raises(ValueError, match="has 5 numbers"):
        repository.set_calibration("image", [1.0])


def test_margins_by_hand():
    rank = np.array([0.52, 0.6, 0.57, 0.1])
    np.testing.assert_allclose(margins(rank), [-0.08, 0.03, -0.03, -0.1])
    np.testing.assert_allclose(margins(rank[[1, 3]]), [0.1, -0.1])
    assert margins(rank[:1]).tolist() == [0]


@pytest.mark.parametrize("pack", [3, 1024])
def test_a_saved_repository_answers_alike(tmp_path, monkeypatch, pack):
    monkeypatch.setattr("condense.repository.PACK", pack)
    repository = filled()
    repository.set_calibration("scene", [1.0, 2, 3, 4, 5])
    repository.save(tmp_path / "r")
    again = SceneRepository.load(tmp_path / "r", "model-a")
    assert again.names == repository.names and again.calibration == repository.calibration
    assert files.check(tmp_path / "r") == []
    image, scene = view_of(random_scene(6))[0], turned(random_scene(2))[0]
    same_answers(again.query_image(image, K), repository.query_image(image, K))
    same_answers(again.query_scene(scene), repository.query_scene(scene))
    assert again.meta("scene/3") == {"class": 3} and again.thumbnail("scene/2") is None
    assert np.array_equal(again.thumbnail("scene/3"), np.full((4, 5, 3), 3))
    for name in ("positions", "normals", "scores", "descriptors", "colours"):
        kept, given = getattr(again.scene("scene/4"), name), getattr(random_scene(4), name)
        torch.testing.assert_close(kept, given, rtol=0, atol=0.003)  # colours have 8 bits, others 16 or more


def test_an_opened_repository_writes_at_once(tmp_path):
    opened = SceneRepository.open(tmp_path / "r", "model-a", DIM, parts=2)
    assert len(SceneRepository.load(tmp_path / "r")) == 0
    strange = ["../../escape", "a/b", "naïve ☃", "CON", "x" * 300]
    for seed, name in enumerate(strange):
        opened.add(name, random_scene(seed), thumbnail=np.full((2, 2, 3), seed, np.uint8))
        assert SceneRepository.load(tmp_path / "r").names == strange[: seed + 1]
    assert {path.parent.name for path in tmp_path.rglob("*") if path.is_file()} == {"r", "files"}
    opened.remove("a/b")
    again = SceneRepository.open(tmp_path / "r", "model-a")
    assert again.names == [name for name in strange if name != "a/b"] and files.check(tmp_path / "r") == []
    again.save(tmp_path / "r")  # packs it
    assert len(list((tmp_path / "r" / "files").glob("*.safetensors"))) == 1
    again.add("a/b", random_scene(9))
    assert SceneRepository.load(tmp_path / "r").query_scene(random_scene(9))[0].name == "a/b"
    assert int(again.thumbnail("CON")[0, 0, 0]) == 3 and files.check(tmp_path / "r") == []


@pytest.mark.parametrize("killed", ["write_pack", "write_index"])
def test_a_killed_add_leaves_the_repository_whole(tmp_path, monkeypatch, killed):
    filled(3).save(tmp_path / "r")
    opened = SceneRepository.open(tmp_path / "r", "model-a")

    def die(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, killed, die)
        opened.add("new", random_scene(9), thumbnail=np.full((9, 9, 3), 9, np.uint8))
    assert opened.names == SceneRepository.load(tmp_path / "r").names == ["scene/0", "scene/1", "scene/2"]
    assert files.damaged(tmp_path / "r") == {} and len(files.leftovers(tmp_path / "r")) == 1 + (killed == "write_index")
    assert "belongs to no scene" in files.check(tmp_path / "r")[0]
    opened.add("new", random_scene(9))
    opened.remove("new")
    assert files.check(tmp_path / "r") == []


@pytest.mark.parametrize("damage", ["missing", "cut", "garbled"])
def test_a_damaged_pack_is_named_and_can_be_given_up(tmp_path, damage):
    folder = tmp_path / "r"
    filled(2).save(folder)
    SceneRepository.open(folder, "model-a").add("late", random_scene(9))
    path = folder / "files" / json.loads((folder / "repository.json").read_text())["scenes"]["late"]["pack"]
    data = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(data[:-50] if damage == "cut" else b"x" + data[1:])
    with pytest.raises((FileNotFoundError, ValueError), match=rf"{path.name} is (missing|damaged).*repair"):
        SceneRepository.load(folder)
    assert files.check(folder) == [f"files/{path.name} is missing or damaged: 1 scenes"]
    assert files.repair(folder) == ["late"]
    assert SceneRepository.load(folder).names == ["scene/0", "scene/1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "repository.json is damaged"),
        ("[]", "repository.json is damaged"),
        ('{"format": 1}', "repository.json is damaged"),
        ('{"format": 9, "model": "m", "dim": 16, "parts": 1, "calibration": {}, "scenes": {}}', "has format 9"),
    ],
)
def test_a_damaged_index_is_named(tmp_path, text, message):
    (tmp_path / "repository.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        SceneRepository.load(tmp_path)


def test_an_index_names_no_file_elsewhere(tmp_path):
    filled(1).save(tmp_path / "r")
    index = files.read_index(tmp_path / "r")
    place = dataclasses.replace(index.scenes["scene/0"], pack="../../secret.safetensors")
    files.write_index(tmp_path / "r", dataclasses.replace(index, scenes={"scene/0": place}))
    with pytest.raises(ValueError, match="names a file"):
        SceneRepository.load(tmp_path / "r")


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("all my work")
    with pytest.raises(FileNotFoundError, match="is not a scene repository"):
        SceneRepository.load(tmp_path)
    for write in (lambda: filled(1).save(tmp_path), lambda: SceneRepository.open(tmp_path, "m")):
        with pytest.raises(FileExistsError, match="holds files but no repository"):
            write()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_descriptors_of_another_model_are_refused(tmp_path):
    filled(1).save(tmp_path / "r")
    for read in (SceneRepository.load, SceneRepository.open):
        with pytest.raises(ValueError, match="built by model model-a, not by model-b"):
            read(tmp_path / "r", "model-b")


def test_fingerprints_tell_weights_apart():
    torch_layer = torch.nn.Linear(3, 2)
    first = files.fingerprint(torch_layer)
    assert first == files.fingerprint(torch_layer)
    with torch.no_grad():
        torch_layer.weight[0, 0] += 1
    assert files.fingerprint(torch_layer) != first


def test_bad_scenes_and_queries_are_named():
    repository = filled(2)
    scene = random_scene(7)
    empty = KeyPoints(*(getattr(scene, f.name)[:0] for f in dataclasses.fields(scene)))
    holed = dataclasses.replace(
        scene, descriptors=scene.descriptors.clone().index_fill_(0, torch.tensor([3]), torch.nan)
    )
    short = dataclasses.replace(scene, descriptors=scene.descriptors[:, :5])
    for bad, message in ((empty, "'x' has no key points"), (holed, "not finite"), (short, r"shape \(40, 5\), not")):
        with pytest.raises(ValueError, match=message):
            repository.add("x", bad)
    with pytest.raises(ValueError, match="has a scene 'scene/1' already"):
        repository.add("scene/1", scene)
    with pytest.raises(ValueError, match="a thumbnail is"):
        repository.add("x", scene, thumbnail=np.zeros((4, 4)))
    with pytest.raises(TypeError):
        repository.add("x", scene, meta={"a": object()})
    for name in ("remove", "scene", "meta", "thumbnail"):
        with pytest.raises(KeyError, match="no scene 'y'"):
            getattr(repository, name)("y")
    assert repository.names == ["scene/0", "scene/1"]
    image = view_of(scene)[0]
    nothing = ImageKeyPoints(image.positions[:0], image.scores[:0], image.descriptors[:0], (64, 64))
    assert repository.query_image(nothing, K) == [] and repository.query_scene(empty) == []
    with pytest.raises(ValueError, match="the query has descriptors that are not finite"):
        repository.query_scene(holed)
    assert SceneRepository("m", DIM).query_image(image, K) == SceneRepository("m", DIM).query_scene(scene) == []
    assert SceneRepository("m", DIM).query_vector(scene.descriptors[0]) == []


class WordEncoder:
    """A text's vector is that of its word's number; it can be checked by hand."""

    dim = 4

    def encode(self, texts):
        return torch.eye(self.dim)[[int(text.split()[-1]) for text in texts]]


def test_texts_find_scenes_by_their_key_points(tmp_path):
    """A map learned on the descriptors of four kinds of scenes; the repository says which it has of a kind."""

    def scene(kind, seed):
        some = random_scene(seed)
        direction = torch.randn(4, DIM, generator=torch.Generator().manual_seed(0))[kind]
        return dataclasses.replace(some, descriptors=normalize(some.descriptors + 2 * direction, dim=1))

    encoder, kinds = WordEncoder(), [0, 1, 2, 3] * 5
    captions = [[f"number {kind}"] for kind in kinds]
    vectors = encode_phrases(encoder, [*(text for some in captions for text in some), *vocabulary(captions)])
    some = [scene(kind, 50 + i) for i, kind in enumerate(kinds)]
    learned_from = [bank([with_colour(each.descriptors, each.colours) for each in some], 3)]
    text_map = train_text_map(learned_from, captions, vectors, LanguageParams(steps=40, batch=8, dropout=0.0), 0)
    repository = SceneRepository.open(tmp_path, "m", DIM)
    assert repository.query_text("number 1", encoder, text_map) == []
    for kind in (0, 1, 2):
        repository.add(f"kind {kind}", scene(kind, kind))
    found = repository.query_text("number 1", encoder, text_map, centres=3)
    assert found[0][0] == "kind 1" and len(found) == 3 and found[0][1] > 0.5
    repository.add("another", scene(3, 9))
    again = SceneRepository.load(tmp_path)
    for each in (repository, again):
        assert each.query_text("number 3", encoder, text_map, top=1, centres=3)[0][0] == "another"
    assert repository.query_text("number 3", encoder, text_map, centres=3, least=9.0) == []
    with pytest.raises(ValueError, match="features of length 16, not 8"):
        SceneRepository("m", 8).query_text("number 1", encoder, text_map)


def test_one_key_point_is_enough_to_be_found_but_not_to_be_placed():
    repository = SceneRepository("m", DIM)
    one = KeyPoints(*(getattr(random_scene(0), f.name)[:1] for f in dataclasses.fields(KeyPoints)))
    repository.add("one", one)
    answer = repository.query_scene(one)[0]
    assert answer.name == "one" and answer.pose is None and answer.similarity == pytest.approx(1, abs=1e-3)


def test_the_benchmark_times_what_answers_right(tmp_path, monkeypatch):
    monkeypatch.setattr("condense.repositorybench.QUERIES", 3)
    lines = bench_size(6, tmp_path / "r")
    assert set(lines) == {"repository_query_6", "repository_build_6"}
    assert lines["repository_query_6"]["other_s"] > 0 and "recall@1 1.00 of 3" in lines["repository_query_6"]["what"]
    repository = SceneRepository.load(tmp_path / "r")
    assert exhaustive(repository, made_query(4), block=4) == "4"  # in the second block
    torch.testing.assert_close(repository.scene("4").positions, made_scene(4).positions)
