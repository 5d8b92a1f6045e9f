import math

import numpy as np
import pytest
import torch

from condense.poses import (
    image_pose,
    mutual_matches,
    pose_errors,
    rotation_error_deg,
    scene_pose,
)

K = np.array([[80, 0, 32], [0, 80, 32], [0, 0, 1.0]])


def turn_z(degrees):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def camera_pose(rng):
    R = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    R *= np.sign(np.linalg.det(R))
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = R, R @ [0.1, 0.2, -3]  # looks at the origin from 3 away
    return T


def project(points, T):
    camera = (points - T[:3, 3]) @ T[:3, :3]
    image = camera @ K.T
    return image[:, :2] / image[:, 2:]


def wrong_matches(rng, noise=0.0, right=60, wrong=40):
    T, points = camera_pose(rng), rng.uniform(-1, 1, (right + wrong, 3))
    pixels = project(points, T) + noise * rng.normal(size=(right + wrong, 2))
    pixels[right:] = rng.uniform(0, 64, (wrong, 2))
    return T, points, pixels


def test_exact_matches_give_the_exact_pose():
    T, points, pixels = wrong_matches(np.random.default_rng(0), right=4 * 3, wrong=0)
    found = image_pose(pixels, points, K, (64, 64), 1.0)
    np.testing.assert_allclose(found.T_world_from_camera, T, atol=1e-6)
    assert found.inliers.all()


@pytest.mark.parametrize("seed", range(4))
def test_wrong_matches_are_left_out(seed):
    T, points, pixels = wrong_matches(np.random.default_rng(seed), noise=0.3)
    found = image_pose(torch.from_numpy(pixels), torch.from_numpy(points), torch.from_numpy(K), (64, 64), 1.5)
    degrees, distance = pose_errors(found.T_world_from_camera, T)
    assert degrees < 1 and distance < 0.05
    assert found.inliers[:60].mean() > 0.9 and found.inliers[60:].mean() < 0.2
    again = image_pose(pixels, points, K, (64, 64), 1.5)
    assert np.array_equal(found.T_world_from_camera, again.T_world_from_camera)


def test_no_pose_without_enough_to_go_by():
    rng = np.random.default_rng(0)
    _, points, pixels = wrong_matches(rng)
    assert image_pose(pixels[:3], points[:3], K, (64, 64), 1.0) is None
    assert image_pose(np.zeros((0, 2)), np.zeros((0, 3)), K, (64, 64), 1.0) is None
    assert image_pose(pixels, np.zeros((100, 3)), K, (64, 64), 1.0) is None  # all in one place
    assert scene_pose(points[:2], points[:2], 0.1) is None


def test_an_alignment_is_found_among_wrong_matches():
    rng = np.random.default_rng(1)
    a = rng.uniform(-1, 1, (50, 3))
    b = a @ turn_z(70).T + [1, 2, 3]
    b[35:] = rng.uniform(-1, 1, (15, 3))
    found = scene_pose(a, b, 0.02)
    np.testing.assert_allclose(found.T_b_from_a[:3, :3], turn_z(70), atol=1e-6)
    np.testing.assert_allclose(found.T_b_from_a[:3, 3], [1, 2, 3], atol=1e-6)
    assert found.inliers.tolist() == [True] * 35 + [False] * 15


def test_scale_only_where_asked_for():
    a = np.random.default_rng(2).uniform(-1, 1, (30, 3))
    found = scene_pose(a, 2.5 * a @ turn_z(20).T, 0.02, scale=True)
    np.testing.assert_allclose(found.T_b_from_a[:3, :3], 2.5 * turn_z(20), atol=1e-6)
    rigid = scene_pose(a, 2.5 * a @ turn_z(20).T, 0.02)
    assert rigid is None or rigid.inliers.sum() < 15
    if rigid is not None:
        assert np.linalg.det(rigid.T_b_from_a[:3, :3]) == pytest.approx(1)


def test_a_mirror_image_is_no_rigid_motion():
    a = np.random.default_rng(3).uniform(-1, 1, (30, 3))
    found = scene_pose(a, a * [-1, 1, 1], 0.02)
    assert found is None or found.inliers.sum() < 15


def test_errors_by_hand():
    assert rotation_error_deg(turn_z(10), turn_z(40)) == pytest.approx(30)
    assert rotation_error_deg(turn_z(0), turn_z(180)) == pytest.approx(180)
    assert rotation_error_deg(turn_z(1e-7), np.eye(3)) == pytest.approx(1e-7)
    T, shifted = np.eye(4), np.eye(4)
    shifted[:3, 3] = [3, 0, 4]
    assert pose_errors(T, shifted) == pytest.approx((0, 5))


@pytest.mark.parametrize(
    ("pixels", "points", "message"),
    [
        (np.zeros((5, 3)), np.zeros((5, 3)), r"pixels has shape \(5, 3\)"),
        (np.zeros((5, 2)), np.zeros((4, 3)), "5 pixels, 4 points"),
        (np.full((5, 2), np.nan), np.zeros((5, 3)), "pixels has values that are not finite, the first in row 0"),
    ],
)
def test_bad_input_is_named(pixels, points, message):
    with pytest.raises(ValueError, match=message):
        image_pose(pixels, points, K, (64, 64), 1.0)


def test_mutual_matches_by_hand():
    cosine = torch.tensor([[0.9, 0.2, 0.1], [0.8, 0.1, 0.3], [-torch.inf, -torch.inf, -torch.inf]])
    assert mutual_matches(cosine).tolist() == [[0, 0]]  # row 1 likes column 0 too, but column 0 prefers row 0
    assert mutual_matches(torch.zeros(0, 4)).shape == (0, 2)
