import io
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from condense.cameras import Cameras, look_at
from condense.captures.reader import read_capture
from condense.paths import project_root
from condense.synthetic import generate as gen
from condense.synthetic import primitives as solid
from condense.synthetic import texture as tx
from condense.synthetic.captions import object_captions
from condense.synthetic.render import Light, Part, render, seen_points
from condense.synthetic.rooms import ROOM_LABELS, furnish, room_captions
from condense.synthetic.setting import around, random_backdrop
from condense.synthetic.things import COLOURS, PARTS, Dice

CLASSES = (*gen.SEEN, *gen.HELD_OUT)
GREY = tx.Plain((0.5, 0.5, 0.5))


def camera(size: int, focal: float, eye=(3.0, 0.0, 0.0)) -> Cameras:
    K = torch.tensor([[[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]])
    return Cameras(K, look_at(torch.tensor([eye]), torch.zeros(3)), torch.tensor([[size, size]]))


def black(directions):
    return np.zeros((len(directions), 3))


def test_a_sphere_covers_the_pixels_that_geometry_says():
    size, focal, distance, radius = 48, 60.0, 3.0, 0.8
    sphere = solid.ellipsoid((radius,) * 3, sections=96)
    view = render([Part(sphere, GREY, label=7, instance=3)], camera(size, focal), Light(), black, supersample=3)
    disc = focal * radius / np.sqrt(distance**2 - radius**2)  # the silhouette's radius in pixels
    y, x = np.mgrid[:size, :size] + 0.5 - size / 2
    away = np.hypot(x, y) - disc
    sure = np.abs(away) > 0.75  # the mesh is a little inside the sphere, and a pixel's rays are spread
    mask = view.labels[0][..., 0] > 0
    assert np.array_equal(mask[sure], (away < 0)[sure])
    assert view.coverage.sum() == pytest.approx(np.pi * disc**2, rel=0.01)
    assert view.depth[0, size // 2, size // 2] == pytest.approx(distance - radius, abs=0.01)
    assert (view.labels[0][mask] == (7, 3, 0)).all() and (view.images[0][away > 1] == 0).all()


def test_light_comes_from_where_the_lamp_is_and_shadows_fall_away_from_it():
    floor = Part(solid.box((4, 4, 0.1), (0, 0, -0.05)), GREY, 1)
    ball = Part(solid.ellipsoid((0.4, 0.4, 0.4), (0, 0, 1.0)), GREY, 2)
    above = Cameras(
        torch.tensor([[[40.0, 0, 20], [0, 40, 20], [0, 0, 1]]]),
        look_at(torch.tensor([[0.0, 0, 4]]), torch.zeros(3), up=torch.tensor([0.0, 1, 0])),
        torch.tensor([[40, 40]]),
    )
    image = render([floor, ball], above, Light(direction=(1, 0, 1)), black).images[0].mean(-1)
    assert image[20, 10] < 0.75 * image[20, 33]  # the shadow lies on the side away from the lamp


def test_solids_are_closed_and_have_the_right_volume():
    ring = np.concatenate([solid.arc(0, 345, 1.0, 24), np.zeros((24, 1))], axis=1)
    lshape = [(0, 0), (2, 0), (2, 1), (1, 1), (1, 2), (0, 2)]
    volumes = {
        3.0: solid.prism(lshape[::-1], 1.0),
        24.0: solid.box((2, 3, 4)),
        np.pi: solid.frustum((0, 0, 0), (1, 0, 0), 1.0, sections=64),
        np.pi / 3: solid.frustum((0, 0, 0), (0, 0, 1), 1.0, 0.0, 64),
        2 * np.pi**2 * 0.04: solid.tube(ring, 0.2, 24, closed=True),
        4 / 3 * np.pi: solid.ellipsoid((1, 1, 1), sections=64),
    }
    for volume, mesh in volumes.items():
        assert mesh.is_watertight and mesh.volume == pytest.approx(volume, rel=0.03)


def test_ears_cover_a_hooked_polygon_once():
    hook = np.array([(0, 0), (4, 0), (4, 3), (1, 3), (1, 2), (3, 2), (3, 1), (0, 1)], float)
    a, b, c = hook[solid.ears(hook)].transpose(1, 0, 2)
    areas = 0.5 * ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0])
    assert (areas > 0).all() and areas.sum() == pytest.approx(8.0)


def test_textures_return_their_colours():
    red, blue = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
    at = np.array([[0.0, 0, 0.0], [0.0, 0, 0.1], [0.3, 0.2, 0.7]])
    assert (tx.Stripes(red, blue, period=0.2)(at)[:2] == [blue, red]).all()
    noise = tx.value_noise(np.random.default_rng(0).uniform(-50, 50, (1000, 3)), seed=3)
    assert 0 <= noise.min() < 0.2 and 0.8 < noise.max() <= 1
    for texture in (
        tx.Checks(red, blue),
        tx.Spots(red, blue),
        tx.Wood(red, blue),
        tx.Gradient(red, blue),
        tx.Marble(red, blue),
    ):
        assert np.allclose(texture(at).sum(1), 1)


@pytest.mark.parametrize("kind", range(len(CLASSES)))
def test_objects_fit_the_unit_cube_and_their_captions_are_true(kind):
    looks = set()
    for instance in range(3):
        dice = Dice(0, 1, kind, instance)
        thing = CLASSES[kind](dice)
        parts = thing.placed(thing.unit_frame(dice.u(0, 360)))
        corners = np.concatenate([part.mesh.bounds for part in parts])
        assert np.abs(corners).max() <= 0.4801 and len({part.label for part in parts}) >= 2
        assert set(thing.phrases) <= {piece.name for piece in thing.pieces} <= set(PARTS)
        captions, heldout = object_captions(dice, thing)
        assert not set(captions) & set(heldout) and all(thing.kind in caption for caption in captions)
        words = " ".join(piece.material.words for piece in thing.pieces).split()
        true = {word for word in words if word in COLOURS} | {piece.material.colour for piece in thing.pieces}
        for caption in captions + heldout:
            assert {word.strip(",") for word in caption.split()} & set(COLOURS) <= true
            assert "{" not in caption and "  " not in caption
        looks.add(" ".join(captions))
    assert len(looks) == 3


def test_labelled_points_project_onto_their_labels():
    dice = Dice(3, 0)
    thing = gen.SEEN[0](dice)
    parts = thing.placed(thing.unit_frame(30))
    cameras = around(dice, parts, views=6, size=64)
    rendering = render(parts, cameras, Light(), random_backdrop(dice))
    points, rgb, normals, labels, _ = seen_points(parts, cameras, 500, seed=0)
    assert np.allclose(np.linalg.norm(normals, axis=1), 1) and rgb.min() >= 0 and rgb.max() <= 1
    right = visible = 0
    seen = np.zeros(len(points), bool)
    for view in range(len(cameras)):
        pixel, depth = cameras.project(view, torch.from_numpy(points).float())
        x, y = pixel.long().T.numpy()
        near = np.abs(rendering.depth[view, y, x] - depth.numpy()) < 0.02
        seen |= near
        visible += near.sum()
        right += (rendering.labels[view, y, x, 0] == labels)[near].sum()
    assert seen.mean() > 0.9 and right / visible > 0.97  # the rest lies on edges, within a pixel


def test_a_room_is_furnished_without_collisions():
    for instance in range(4):
        dice = Dice(0, 2, instance)
        room = furnish(dice)
        assert {part.label for part in room.parts} <= set(range(1, len(ROOM_LABELS) + 1))
        assert {part.instance for part in room.parts} == {item["id"] for item in room.instances}
        for part in room.parts:
            item = room.instances[part.instance - 1]
            assert ROOM_LABELS[part.label - 1] == item["class"]
        boxes = room.taken
        for i, (x, y, dx, dy) in enumerate(boxes):
            assert all(abs(x - a) >= dx + c or abs(y - b) >= dy + d for a, b, c, d in boxes[:i])
        captions, heldout = room_captions(dice, room)
        assert not set(captions) & set(heldout) and room.kind in captions[0]


@pytest.fixture(scope="module")
def chair(tmp_path_factory):
    return gen.write_object(tmp_path_factory.mktemp("objects"), 0, 0, seed=0)


def test_a_capture_is_the_same_to_the_byte_when_written_again(chair, tmp_path):
    assert gen.write_object(tmp_path, 0, 0, seed=0).read_bytes() == chair.read_bytes()
    assert gen.write_object(tmp_path, 0, 0, seed=1).read_bytes() != chair.read_bytes()


def test_a_capture_is_the_one_in_data(chair):
    stored = project_root() / "data" / "objects" / chair.name
    if not stored.is_file():
        pytest.skip(f"no {stored}: run `dvc pull`")
    with zipfile.ZipFile(stored) as old, zipfile.ZipFile(chair) as new:
        assert old.namelist() == new.namelist()
        assert json.loads(old.read("meta.json")) == json.loads(new.read("meta.json"))
        for name in (n for n in old.namelist() if n.endswith((".png", ".jpg"))):
            a, b = (np.asarray(Image.open(io.BytesIO(z.read(name)))).astype(int) for z in (old, new))
            if name.startswith("labels"):
                assert (a != b).mean() < 0.002  # another processor may send a ray past an edge
            else:
                assert np.abs(a - b).mean() < 0.5


def test_the_reader_takes_a_written_capture(chair):
    capture = read_capture(chair)
    assert not capture.findings and len(capture.views("train")) == 12 and len(capture.views("test")) == 4
    R = capture.cameras.T_world_from_camera[:, :3, :3]
    torch.testing.assert_close(R @ R.mT, torch.eye(3).expand(16, 3, 3), rtol=0, atol=1e-5)
    assert (torch.linalg.det(R) > 0).all()
    views = capture.load()
    parts = {int(key) for key in capture.meta["parts"]}
    assert views.labels is not None and views.masks is not None
    for label, mask in zip(views.labels, views.masks, strict=True):
        assert set(np.unique(label[..., 0])) <= parts | {0}
        assert ((label[..., 0] > 0) == (mask > 0.5)).mean() > 0.98 and 0.03 < mask.mean() < 0.9


def test_splits_have_the_stated_sizes():
    assert [gen.OBJECT_SPLITS.count(split) for split in ("train", "val", "test")] == [16, 4, 8]
    assert [gen.ROOM_SPLITS.count(split) for split in ("train", "val", "test")] == [32, 4, 12]
    kinds = {make(Dice(0)).kind for make in gen.SEEN}
    assert len(kinds) == 12 and not kinds & {make(Dice(0)).kind for make in gen.HELD_OUT}
