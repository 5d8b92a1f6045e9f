import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from condense.cameras import Cameras, look_at
from condense.keypoints import ImageKeyPoints, KeyPoints
from condense.poses import pose_errors
from condense.posesearch import (
    NEAR,
    REACH,
    STEEP,
    agreement,
    framing_centres,
    partners,
    polished_pose,
    problem,
    refined,
    rotation_grid,
    search_pose,
)

K = torch.tensor([[80.0, 0, 32], [0, 80, 32], [0, 0, 1]])


def bumpy(seed=0, count=120):
    """A bumpy ball whose descriptors change slowly over it: neighbours look alike, as in a small image."""
    rng = np.random.default_rng(seed)
    normals = normalize(torch.from_numpy(rng.normal(size=(count, 3))).float(), dim=1)
    points = normals * torch.tensor([1.0, 0.7, 0.5])
    mix = torch.from_numpy(rng.normal(size=(3, 12))).float()
    descriptors = normalize(torch.sin(1.5 * points @ mix), dim=1)
    return KeyPoints(points, normals, torch.ones(count), descriptors, torch.zeros(count, 3))


def seen_from(scene, eye, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    eye = torch.tensor([eye])
    cameras = Cameras(K[None], look_at(eye, torch.zeros(3)), torch.tensor([[64, 64]]))
    facing = ((eye - scene.positions) * scene.normals).sum(1) > 0
    pixels, _ = cameras.project(0, scene.positions[facing])
    off = noise * torch.from_numpy(rng.normal(size=(int(facing.sum()), 12))).float()
    descriptors = normalize(scene.descriptors[facing] + off, dim=1)
    return ImageKeyPoints(pixels, torch.ones(len(pixels)), descriptors, (64, 64)), cameras.T_world_from_camera[0]


def test_grid_of_upright_rotations():
    R = rotation_grid(8, range(-30, 31, 30))
    assert R.shape == (24, 3, 3)
    torch.testing.assert_close(R @ R.mT, torch.eye(3).expand(24, -1, -1))
    assert torch.linalg.det(R) == pytest.approx(1, abs=1e-5)
    assert R[:, 2, 0].abs().max() < 1e-6  # right is level
    assert R[:, 2, 1].max() < 0  # and down is down


def test_agreement_matches_plain_loops():
    scene = bumpy(count=9)
    image, T = seen_from(scene, [2.0, 1.5, 1.0], 0.3)
    both = problem(image, scene, K)
    shown, depth = Cameras(K[None], T[None], torch.tensor([[64, 64]])).project(0, scene.positions)
    gain = {}
    for k in range(9):
        if (T[:3, 3] - scene.positions[k]) @ scene.normals[k] >= 0 and depth[k] > NEAR:
            for q in range(len(image)):
                distance = min(float((shown[k] - image.positions[q]).norm()) / 64, REACH)
                gain[k, q] = float(scene.descriptors[k] @ image.descriptors[q]) - STEEP * distance
    scene_side = [max(v for (i, _), v in gain.items() if i == k) for k in {k for k, _ in gain}]
    image_side = [max(v for (_, j), v in gain.items() if j == q) for q in range(len(image))]
    expected = (np.mean(scene_side) + np.mean(image_side)) / 2
    assert float(agreement(T[None, :3, :3], T[None, :3, 3], both)) == pytest.approx(expected, abs=1e-4)
    away = T[:3, :3] @ torch.diag(torch.tensor([-1.0, 1, -1]))
    assert float(agreement(away[None], T[None, :3, 3], both)) == -torch.inf


@pytest.mark.parametrize("eye", [[2.5, 1.0, 1.0], [-1.0, 2.5, 0.3], [0.5, -2.0, 2.0]])
def test_a_pose_is_found_where_neighbours_look_alike(eye):
    scene = bumpy()
    image, T = seen_from(scene, eye, 0.05)
    both = problem(image, scene, K)
    found, value = search_pose(both)
    degrees, distance = pose_errors(found, T)
    assert degrees < 10 and distance < 0.5
    polished, better = polished_pose(found, both)
    degrees, distance = pose_errors(polished, T)
    assert degrees < 2 and distance < 0.1 and better > 0.9 and value > 0.8


def test_a_framing_camera_is_as_far_away_as_the_true_one():
    scene = bumpy()
    image, T = seen_from(scene, [4.0, 1.0, 1.0])
    centre = framing_centres(T[None, :3, :3], problem(image, scene, K))[0]
    assert (centre - T[:3, 3]).norm() < 0.15 * T[:3, 3].norm()


def test_refinement_undoes_a_small_error():
    scene = bumpy()
    image, T = seen_from(scene, [2.5, 1.0, 1.0])
    both = problem(image, scene, K)
    off = torch.linalg.matrix_exp(torch.tensor([[0, -0.02, 0.03], [0.02, 0, 0.02], [-0.03, -0.02, 0]])) @ T[:3, :3]
    R, c = refined(off[None], (T[:3, 3] + torch.tensor([0.1, -0.1, 0.05]))[None], both, 20, steep=30.0, scale=0.1)
    degrees, distance = pose_errors(torch.cat([torch.cat([R[0], c[0][:, None]], 1), torch.eye(4)[3:]]), T)
    assert degrees < 0.2 and distance < 0.01


def test_partners_are_near_and_mutual():
    scene = bumpy()
    image, T = seen_from(scene, [2.5, 1.0, 1.0])
    facing = torch.nonzero(((T[:3, 3] - scene.positions) * scene.normals).sum(1) > 0)[:, 0]
    pairs = partners(T, problem(image, scene, K), 0.01)
    np.testing.assert_array_equal(pairs, np.stack([np.arange(len(facing)), facing.numpy()], axis=1))
    moved = T.clone()
    moved[:3, 3] += 100
    assert len(partners(moved, problem(image, scene, K), 0.01)) == 0
