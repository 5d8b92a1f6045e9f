import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from toys import tiny_teacher, toy_links, toy_scene

from condense.alignment import Shape, align, carry, evidence, unfound, voted
from condense.geometrydescriptor import BINS, fpfh, shape_keypoints
from condense.keypoints import KeyPoints
from condense.links import save_links
from condense.model import new_model
from condense.overlays import laid_over
from condense.sparse import SparseModel, save_sparse
from condense.synthetic.primitives import rotation
from condense.tasks.duplicatemetrics import IGNORED, NEGATIVE, duplicate_metrics, examples, pair_kinds, precision_recall
from condense.tasks.duplicates import (
    POSITIVE,
    Found,
    Item,
    benchmark_items,
    by_parts,
    by_vectors,
    found_by_model,
    shortlisted,
)
from condense.variantset import cropped, rotated
from condense.voxels import VoxelScene


def described(scene):
    """Key points at every third voxel, described by where they lie in the scene: all matches are right."""
    at = scene.coords[::3].float()
    waves = torch.cat([torch.sin(at * f + p) for f in (0.3, 0.7, 1.1) for p in (0.0, 1.6)], dim=1)
    unit = torch.nn.functional.normalize(waves, dim=1)
    return KeyPoints(scene.centres[::3], torch.zeros(len(at), 3), torch.ones(len(at)), unit, scene.colour[::3])


def lump():
    """A ball with a rod and a fin: no turn leaves it as it is."""
    at = torch.stack(torch.meshgrid(*[torch.arange(20)] * 3, indexing="ij"), -1).reshape(-1, 3)
    x, y, z = (at - 10).float().T
    inside = (x**2 + y**2 + z**2 < 30) | ((y.abs() < 2) & (z.abs() < 2) & (x > 0)) | ((x.abs() < 2) & (y > 0) & (z > 3))
    scene = toy_scene(0)
    coords = at[inside].int()
    colour = torch.full((len(coords), 3), 0.5)
    grid = dataclasses.replace(scene.grid, shape=(20, 20, 20))
    return VoxelScene(coords, torch.full((len(coords),), 4.0), colour, grid)


def test_the_triple_of_two_points_is_the_one_worked_out_by_hand():
    points, normals = np.array([[0.0, 0, 0], [1.0, 0, 0]]), np.array([[0.0, 0, 1], [0.0, 0, 1]])
    # parallel normals across the line: alpha = phi = theta = 0, the middle bin of each
    row = np.zeros(3 * BINS)
    row[[BINS // 2, BINS + BINS // 2, 2 * BINS + BINS // 2]] = 1
    np.testing.assert_allclose(fpfh(points, normals), [row, row])
    # the second normal leans along the line, so the frame stands there: u = (0.6, 0, 0.8), v = y, w = (-0.8, 0, 0.6),
    # and the line back is -x: alpha = 0, phi = -0.6, theta = atan2(0.6, 0.8) / pi = 0.205
    row = np.zeros(3 * BINS)
    row[[5, BINS + 2, 2 * BINS + 6]] = 1
    np.testing.assert_allclose(fpfh(points, np.array([[0.0, 0, 1], [0.6, 0, 0.8]])), [row, row])


def test_histograms_do_not_change_with_the_frame():
    rng = np.random.default_rng(0)
    points, normals = rng.uniform(0, 6, (60, 3)), rng.normal(size=(60, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    R = rotation((1, 2, 3), 70)[:3, :3]
    np.testing.assert_allclose(fpfh(points, normals), fpfh(points @ R.T + 5, normals @ R.T), atol=1e-6)
    assert np.abs(fpfh(points, normals) - fpfh(points, -normals)).max() > 0.01


def test_histograms_equal_those_summed_pair_by_pair():
    rng = np.random.default_rng(1)
    points, normals = rng.uniform(0, 5, (12, 3)), rng.normal(size=(12, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    own, near = np.zeros((12, 3 * BINS)), [[] for _ in range(12)]
    for i in range(12):
        for j in range(12):
            d = points[j] - points[i]
            if i != j and np.linalg.norm(d) <= 4:
                near[i].append(j)
                s, t = (i, j) if abs(normals[i] @ d) >= abs(normals[j] @ d) else (j, i)
                line = (points[t] - points[s]) / np.linalg.norm(d)
                v = np.cross(line, normals[s])
                v /= np.linalg.norm(v)
                w = np.cross(normals[s], v)
                angles = v @ normals[t], normals[s] @ line, np.arctan2(w @ normals[t], normals[s] @ normals[t]) / np.pi
                for k, value in enumerate(angles):
                    own[i, k * BINS + min(int((value + 1) / 2 * BINS), BINS - 1)] += 1
        own[i] /= max(len(near[i]), 1)
    mixed = own.copy()
    for i, some in enumerate(near):
        for j in some:
            mixed[i] += own[j] / np.linalg.norm(points[j] - points[i]) / len(some)
    mixed /= mixed[:, :BINS].sum(1, keepdims=True).clip(1e-9)
    np.testing.assert_allclose(fpfh(points, normals, 4.0), mixed, atol=1e-9)


def test_key_points_by_shape_have_unit_descriptors_and_ignore_colour():
    scene = lump()
    points = shape_keypoints(scene, 40)
    assert len(points) == 40
    torch.testing.assert_close(points.descriptors.norm(dim=1), torch.ones(40))
    other = shape_keypoints(dataclasses.replace(scene, colour=1 - scene.colour), 40)
    assert torch.equal(points.positions, other.positions) and torch.equal(points.descriptors, other.descriptors)


def test_a_turned_scene_is_laid_over_the_original():
    scene = lump()
    turned = rotated(scene, 2)
    a = Shape.of(scene, described(scene))
    rows = turned.cell[::3]
    b = Shape.of(turned.scene, dataclasses.replace(a.points, positions=turned.scene.centres[rows]))
    aligned = align(a, b)
    T = turned.T_derived_from_original.numpy()
    assert np.abs(aligned.T_b_from_a - T).max() < 0.25 * scene.grid.voxel_size
    smaller, larger, against, piece, inliers, cosine, colour = aligned.evidence
    assert smaller > 0.98 and np.exp(against) < 0.03 and cosine > 0.95 and np.expm1(inliers) > 50 and colour < 1e-6
    assert larger >= smaller and np.expm1(piece) <= 4


def test_what_one_scene_lacks_speaks_against_it_but_a_cut_does_not():
    scene = lump()
    cut = cropped(scene, 4).scene
    hole = scene.coords.float().sub(10).norm(dim=1) > 4.5  # hollow: much of the ball is gone
    parts = {"cut": cut, "hole": VoxelScene(scene.coords[hole], scene.density[hole], scene.colour[hole], scene.grid)}
    whole = Shape.of(scene, described(scene))
    found = {name: evidence(whole, Shape.of(part, described(part)), np.eye(4), 9) for name, part in parts.items()}
    assert found["cut"][0] < 0.9 and found["cut"][1] == 1  # much of the whole is missing, all of the part is found
    assert np.exp(found["cut"][2]) < 0.03 < 0.06 < np.exp(found["hole"][2])
    assert np.expm1(found["hole"][3]) > 20 > np.expm1(found["cut"][3])


def test_a_recoloured_scene_is_told_from_other_materials():
    scene = toy_scene(1)
    grey = KeyPoints(scene.centres[:9], torch.zeros(9, 3), torch.ones(9), torch.eye(9), scene.colour[:9])
    halves = torch.where((scene.coords[:, :1] > 5) ^ (scene.coords[:, 2:] > 5), 0.9, 0.1).expand(-1, 3)
    paints = {"darker": scene.colour[:, [1, 2, 0]] * 0.5 + 0.1, "painted": halves, "pale": 0.5 + 0.2 * halves}
    seen = {}
    for name, colour in paints.items():
        other = dataclasses.replace(scene, colour=colour)
        seen[name] = evidence(Shape.of(scene, grey), Shape.of(other, grey), np.eye(4), 9)[-1]
    assert seen["darker"] < 1e-5 and 0.5 < seen["painted"] <= 1 and seen["pale"] > 0.5


def test_alignment_is_none_without_key_points():
    scene = toy_scene(1)
    shape = Shape.of(scene, described(scene))
    none = dataclasses.replace(shape, points=shape.points[torch.arange(0)])
    assert align(none, shape) is None and align(shape, none) is None
    assert np.allclose(carry(np.eye(4), shape.centres), shape.centres)


def test_most_votes_are_right_though_most_matches_are_wrong(generator):
    positions = torch.rand(60, 3, generator=generator)
    unit = torch.nn.functional.normalize(torch.randn(60, 16, generator=generator), dim=1)
    a = KeyPoints(positions, torch.zeros(60, 3), torch.ones(60), unit, torch.zeros(60, 3))
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = rotation([0, 0, 1], 70)[:3, :3], (2.0, -1.0, 0.5)  # 70 degrees is one of the turns
    order = torch.cat([torch.arange(12), 12 + torch.randperm(48, generator=generator)])  # 48 describe another place
    moved = torch.from_numpy(carry(T, positions.double().numpy())).float()
    b = dataclasses.replace(a, positions=moved, descriptors=unit[order])
    poses = voted(a, b, a.descriptors @ b.descriptors.T, 0.05)
    np.testing.assert_allclose(poses[0], T, atol=1e-4)
    assert len(poses) == 6 and all(np.abs(pose - T).max() > 0.05 for pose in poses[1:])


def test_the_first_pose_is_that_of_votes_counted_one_by_one(generator):
    unit = torch.nn.functional.normalize(torch.randn(2, 40, 16, generator=generator), dim=2)
    zeros = torch.zeros(40, 3)
    some = [KeyPoints(torch.rand(40, 3, generator=generator), zeros, zeros[:, 0], each, zeros) for each in unit]
    cosine, radius = unit[0] @ unit[1].T, 0.3
    ends = {(i, int(cosine[i].argmax())) for i in range(40)} | {(int(cosine[:, j].argmax()), j) for j in range(40)}
    i, j = np.array(sorted(ends)).T
    a, b = (points.positions.double().numpy() for points in some)
    best, shifts = (-1.0, 0, 0), []
    for turn in range(36):
        R = rotation([0, 0, 1], 10 * turn)[:3, :3]
        shifts.append(b[j] - (a[i] - a.mean(0)) @ R.T)
        for match, shift in enumerate(shifts[-1]):
            votes = np.clip(1 - ((shifts[-1] - shift) ** 2).sum(1) / radius**2, 0, None).sum()
            best = max(best, (votes, turn, match))
    _, turn, match = best
    near = np.linalg.norm(shifts[turn] - shifts[turn][match], axis=1) < radius
    first = voted(*some, cosine, radius)[0]
    np.testing.assert_allclose(first[:3, :3], rotation([0, 0, 1], 10 * turn)[:3, :3], atol=1e-5)
    np.testing.assert_allclose(carry(first, a.mean(0)), shifts[turn][near].mean(0), atol=1e-4)


def test_two_parts_of_a_scene_are_laid_where_they_overlap():
    scene = lump()
    points, along = described(scene), scene.coords[:, 0] + 0.3 * scene.coords[:, 1]
    shapes = []
    for kept in (along <= 14, along >= 8):
        part = VoxelScene(scene.coords[kept], scene.density[kept], scene.colour[kept], scene.grid)
        shapes.append(Shape.of(part, points[kept[::3].nonzero()[:, 0]]))
    aligned = align(*shapes)
    np.testing.assert_allclose(aligned.T_b_from_a, np.eye(4), atol=0.3 * scene.grid.voxel_size)
    smaller, _, against = aligned.evidence[:3]
    assert smaller < 0.95 and np.exp(against) < 0.03  # not all is shared, nothing speaks against


def item(base, kind, seed=0):
    return Item(f"{base}_{kind}", base, kind, toy_scene(seed), np.eye(4), torch.ones(2))


ITEMS = [item("x", kind) for kind in ("original", "again", "twin", "recoloured", "part_a", "part_b")]
ITEMS += [item("y", "original", 1)]


def test_pairs_are_named_as_stated():
    kinds = pair_kinds(ITEMS)
    names = {-1: "two", -2: "ignored", **dict(enumerate(POSITIVE))}
    assert [names[k] for k in kinds[0]] == ["ignored", "again", "two", "recoloured", "ignored", "ignored", "two"]
    assert names[kinds[1, 3]] == "recoloured" and names[kinds[4, 5]] == "overlap" and names[kinds[2, 3]] == "two"
    assert (kinds == kinds.T).all() and (kinds[6, :6] == NEGATIVE).all() and (np.diag(kinds) == IGNORED).all()


def ordered(*pairs):
    """Scores that rank these pairs first, in order; no other pair was compared."""
    score = np.full((len(ITEMS),) * 2, -np.inf)
    for place, (a, b) in enumerate(pairs):
        score[a, b] = score[b, a] = -place
    return Found(score, len(pairs), {pair: np.eye(4) for pair in pairs})


def test_average_precision_is_the_one_worked_out_by_hand():
    # duplicates: 01, 03, 13, 45; ranked: hit, miss, hit, hit, and 45 last of all pairs that count
    found = ordered((0, 1), (0, 2), (0, 3), (1, 3))
    kinds = pair_kinds(ITEMS)
    recall, precision = precision_recall(found.score, kinds)
    counted = int((np.triu(kinds, 1)[np.triu_indices(7, 1)] != IGNORED).sum())
    np.testing.assert_allclose(precision, [1, 2 / 3, 3 / 4, 4 / counted])
    np.testing.assert_allclose(recall, [0.25, 0.5, 0.75, 1])
    row = duplicate_metrics({"m": [found]}, ITEMS)["m"]
    assert row["average_precision"]["mean"] == pytest.approx(np.mean([1, 2 / 3, 3 / 4, 4 / counted]))
    assert row["average_precision_again"]["mean"] == 1 and row["again_above_twin"]["mean"] == 1
    assert row["average_precision_recoloured"]["mean"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert row["precision_at_99_recall"]["mean"] == pytest.approx(4 / counted)
    assert row["alignment_error_deg"]["mean"] == 0 and row["compared"]["mean"] == pytest.approx(4 / 21)


def test_equal_scores_count_as_misses():
    row = duplicate_metrics({"m": [Found(np.zeros((7, 7)), 0, {})]}, ITEMS)["m"]
    assert row["average_precision"]["mean"] < 0.3 and row["again_above_twin"]["mean"] == 0
    assert "compared" not in row and "alignment_error_deg" not in row


def test_a_shortlist_holds_each_scenes_nearest():
    one = by_vectors(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])).score
    assert shortlisted(one, 1) == {(0, 1), (2, 3)}
    assert len(shortlisted(one, 9)) == 6 and one[0, 1] > 0.99


def test_a_part_is_found_in_the_whole():
    whole = described(lump())
    half = whole[torch.arange(len(whole) // 2)]
    other = dataclasses.replace(whole, descriptors=-whole.descriptors)
    similarity = by_parts([whole, half, other], parts=4, alike=2)
    np.testing.assert_allclose(similarity, similarity.T)
    assert similarity[0, 1] > 0.2 + max(similarity[0, 2], similarity[1, 2])


def test_a_model_finds_a_repeated_capture_from_files(tmp_path):
    teacher_links = [toy_links(seed) for seed in (0, 1)]
    paths = []
    for links in teacher_links:
        paths.append(tmp_path / f"{links.name}.safetensors")
        save_links(links, paths[-1])
    meta = {**teacher_links[0].meta, "base": "toy_0", "T_variant_from_original": np.eye(4).tolist()}
    variants = []
    for kind in ("again", "twin"):
        links = teacher_links[kind == "twin"]
        variants.append(tmp_path / f"variant_{kind}.safetensors")
        save_links(dataclasses.replace(links, name=f"toy_0_{kind}", meta={**meta, "variant": kind}), variants[-1])
    items = benchmark_items(paths, variants)
    assert [one.kind for one in items[:3]] == ["original", "original", "again"] and len(items) == 9
    save_sparse(tmp_path / "seed_0", SparseModel(new_model(tiny_teacher(), 0)))
    found = found_by_model(tmp_path / "seed_0", paths, variants)
    assert found["condense"].compared <= 36 and found["pooled"].score.shape == (9, 9)
    row = duplicate_metrics({name: [one] for name, one in found.items()}, items)["condense"]
    assert row["again_above_twin"]["mean"] == 1
    assert row["average_precision_again"]["mean"] >= 0.5  # the twin is another capture here, which is found as well


def test_pairs_to_look_at_and_their_picture():
    found = ordered((0, 1), (0, 2), (0, 3), (1, 3))
    assert examples(found, pair_kinds(ITEMS), 2) == [(0, 1), (1, 3), (0, 2)]
    scene = lump()
    half = VoxelScene(scene.coords[:300], scene.density[:300], scene.colour[:300], scene.grid)
    assert unfound(half, scene, np.eye(4)).sum() == 0 < unfound(scene, half, np.eye(4)).sum()
    figure = laid_over([("one", scene, half, np.eye(4))], columns=2)
    colours = figure.axes[0].collections[0].get_facecolors()
    assert ((colours[:, 0] > 2 * colours[:, 2]).sum()) == unfound(scene, half, np.eye(4)).sum()  # red
    plt.close(figure)
