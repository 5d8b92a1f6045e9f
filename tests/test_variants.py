import dataclasses
import io
import json
import zipfile

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from toys import tiny_teacher, toy_scene

from condense.backbone2d import save_backbone
from condense.captures.reader import read_capture
from condense.datasets.ply import vertices
from condense.links import load_links
from condense.params import FieldsByKind, FieldsParams, LinksParams
from condense.synthetic import generate as gen
from condense.synthetic.rooms import furnish
from condense.synthetic.things import Dice
from condense.synthetic.variants import APART, AWAY, apart, move_something, replace_something, twin_of, write_variant
from condense.variantset import base_captures, cropped, make_variants, overlapping, recoloured, rotated

CHAIR = "objects/chair_020"


def points(path):
    with zipfile.ZipFile(path) as archive:
        table = vertices(io.BytesIO(archive.read("points.ply")))
        meta = json.loads(archive.read("meta.json"))
    return *(np.stack([table[k] for k in keys], 1).astype(float) for keys in ("xyz", ("red", "green", "blue"))), meta


@pytest.fixture(scope="module")
def chairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chairs")
    base = gen.write_object(folder / "objects", 0, 20, seed=0)
    meta = read_capture(base).meta
    return base, meta, *(write_variant(folder / f"{kind}.zip", CHAIR, meta, kind) for kind in ("again", "twin"))


def test_a_variant_is_the_same_to_the_byte_when_written_again(chairs, tmp_path):
    _, meta, again, twin = chairs
    assert write_variant(tmp_path / "a.zip", CHAIR, meta, "again").read_bytes() == again.read_bytes()
    assert write_variant(tmp_path / "t.zip", CHAIR, meta, "twin").read_bytes() == twin.read_bytes()
    assert not read_capture(again).findings and not read_capture(twin).findings


def test_again_is_the_same_surface_and_paint_in_another_frame(chairs):
    base, _, again, _ = chairs
    old, old_rgb, _ = points(base)
    new, new_rgb, meta = points(again)
    T = np.array(meta["T_variant_from_original"])
    assert np.allclose(T[:3, :3] @ T[:3, :3].T, np.eye(3)) and np.allclose(T[2, :3], (0, 0, 1))
    back = (new - T[:3, 3]) @ T[:3, :3]
    distance, nearest = cKDTree(old).query(back)
    # both clouds have 2048 points on an area of about 1.5: some 0.03 lies between neighbours
    assert np.percentile(distance, 95) < 0.05 and np.percentile(cKDTree(old).query(new)[0], 50) > 0.05
    same = np.abs(old_rgb[nearest] - new_rgb).max(1) < 16
    assert same.mean() > 0.9  # the rest lies where two parts meet


def test_variants_are_seen_from_elsewhere_under_another_light(chairs):
    base, _, again, _ = chairs
    old, new = read_capture(base), read_capture(again)
    T = torch.tensor(new.meta["T_variant_from_original"])
    back = torch.linalg.inv(T) @ new.cameras.T_world_from_camera
    assert float(torch.cdist(back[:, :3, 3], old.cameras.centres).amin(1).median()) > 0.1
    borders = [np.mean([image[0].mean(0) for image in capture.load().images], 0) for capture in (old, new)]
    assert np.abs(borders[0] - borders[1]).max() > 10  # the backdrop's colour, of 255


def test_a_twin_is_painted_alike_but_shaped_otherwise(chairs):
    base, meta, again, twin = chairs
    old, _, _ = points(base)
    far = []
    for variant in (again, twin):
        new, _, about = points(variant)
        T = np.array(about["T_variant_from_original"])
        far.append(np.percentile(cKDTree(old).query((new - T[:3, 3]) @ T[:3, :3])[0], 95))
    assert far[1] > 1.4 * far[0] and about["differs"], far
    assert (about["base"], about["variant"], about["split"]) == (CHAIR, "twin", meta["split"])
    views = read_capture(twin).load()
    assert set(np.unique(np.stack(views.labels)[..., 0])) <= {0, *map(int, about["parts"])}


def test_the_twin_is_the_nearest_shape_that_is_not_the_same():
    dice = Dice(0, 1, 0, 3)
    thing, others = gen.SEEN[0](dice), [gen.SEEN[0](dice) for _ in range(5)]
    assert apart(thing, thing) < APART
    twin, differs = twin_of(thing, [thing, *others])
    distances = [apart(thing, other) for other in others]
    assert apart(thing, twin) == min(d for d in distances if d >= APART) and differs
    assert {p.material.words for p in twin.pieces} <= {p.material.words for p in thing.pieces}


@pytest.mark.parametrize("instance", range(3))
def test_one_thing_is_moved_or_replaced_and_nothing_collides(instance):
    for change in (move_something, replace_something):
        old, room = furnish(Dice(0, 2, instance)), furnish(Dice(0, 2, instance))
        assert change(Dice(7, instance), room)
        middle = [
            {p.instance: p.mesh.bounds.mean(0)[:2] for p in one.parts if p.mesh.bounds[0, 2] < 0.01}
            for one in (old, room)
        ]
        other = [i for i in set(middle[0]) | set(middle[1]) if not np.allclose(*(m.get(i, np.inf) for m in middle))]
        assert len(other) == (1 if change is move_something else 2)
        if change is move_something:
            assert np.linalg.norm(middle[0][other[0]] - middle[1][other[0]]) > 0.5 * AWAY
        assert {p.instance for p in room.parts} == {item["id"] for item in room.instances}
        assert len(room.taken) == len(old.taken)
        for number, (x, y, dx, dy) in enumerate(room.taken):
            assert all(abs(x - a) >= dx + c or abs(y - b) >= dy + d for a, b, c, d in room.taken[:number])


def test_bad_bases_and_variants_are_refused(tmp_path):
    with pytest.raises(ValueError, match="photo is not a built-in capture"):
        write_variant(tmp_path / "a.zip", "photo", {}, "again")
    with pytest.raises(ValueError, match="'agian', not one of"):
        write_variant(tmp_path / "a.zip", CHAIR, {"seed": 0}, "agian")


def test_bases_are_the_first_built_in_ones_of_a_split(chairs):
    capture = read_capture(chairs[0])
    metas = [("table", "object"), ("chair", "object"), ("study", "room"), ("chair", "object"), ("bedroom", "room")]
    many = [
        dataclasses.replace(capture, name=str(i), meta={**capture.meta, "class": name, "kind": kind})
        for i, (name, kind) in enumerate(metas)
    ]
    strange = dataclasses.replace(capture, name="photo", meta={})
    assert [c.name for c in base_captures([strange, *many], per_class=1, rooms=1)] == ["0", "1", "2"]
    assert [c.name for c in base_captures(many, per_class=2, rooms=0, classes=1)] == ["0"]
    assert base_captures(many, 1, 1, split="val") == [] and base_captures([strange], 1, 1) == []


def test_variants_are_fitted_linked_and_not_made_twice(chairs, tmp_path):
    save_backbone(tiny_teacher(), tmp_path / "teacher.safetensors")
    base = dataclasses.replace(read_capture(chairs[0]), name=CHAIR)
    fields = FieldsByKind(object=FieldsParams(resolutions=(16,), steps=(8,)))
    arguments = (tmp_path / "teacher.safetensors", fields, LinksParams(resolution=16), 0, 1)
    paths = make_variants([base], tmp_path / "made", *arguments)
    assert [path.stem for path in paths] == ["chair_020_again", "chair_020_twin"]
    links = load_links(paths[0], ("train", "test"))
    assert links.name == f"{CHAIR}_again" and len(links.views) == 16 and len(links.scene) > 50
    written = [path.stat().st_mtime_ns for path in paths]
    assert [path.stat().st_mtime_ns for path in make_variants([base], tmp_path / "made", *arguments)] == written


@pytest.mark.parametrize("derive", [recoloured, rotated, cropped, lambda s, seed: overlapping(s, seed)[1]])
def test_derived_voxels_lie_where_their_transform_carries_the_originals(derive):
    scene = toy_scene(0)
    derived, repeated = derive(scene, 3), derive(scene, 3)
    assert torch.equal(derived.scene.colour, repeated.scene.colour)
    kept = derived.cell >= 0
    T = derived.T_derived_from_original.float()
    carried = scene.centres[kept] @ T[:3, :3].T + T[:3, 3]
    error = (carried - derived.scene.centres[derived.cell[kept]]).abs().amax()
    assert error <= 0.5001 * scene.grid.voxel_size
    assert torch.equal(derived.cell[kept].unique(), torch.arange(len(derived.scene)))


def test_derived_scenes_keep_the_stated_shares():
    scene = toy_scene(1)
    for seed in range(5):
        assert (recoloured(scene, seed).scene.colour - scene.colour).abs().mean() > 0.1
        assert 0.59 <= len(cropped(scene, seed).scene) / len(scene) <= 0.76
        a, b = overlapping(scene, seed)
        both = float(((a.cell >= 0) & (b.cell >= 0)).float().mean())
        assert abs(both - 1 / 3) < 0.03 and abs(float((a.cell >= 0).float().mean()) - 2 / 3) < 0.03


def test_values_are_carried_along_and_steps_compose():
    scene = toy_scene(0)
    first = cropped(scene, 1)
    both = first.then(rotated(first.scene, 1))
    values = both.carry(scene.centres)
    T = both.T_derived_from_original.float()
    torch.testing.assert_close(values @ T[:3, :3].T + T[:3, 3], both.scene.centres, rtol=0, atol=scene.grid.voxel_size)
    folded = dataclasses.replace(scene, grid=dataclasses.replace(scene.grid, contracted=True))
    with pytest.raises(ValueError, match="contracted"):
        rotated(folded, 0)
