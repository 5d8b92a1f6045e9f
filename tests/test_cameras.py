import pytest
import torch

from condense.cameras import Cameras, look_at, opencv_from_opengl

CENTRES = torch.tensor([[2.0, 0.0, 1.0], [-1.0, 2.0, 0.5], [0.3, -2.0, -1.0]], dtype=torch.float64)


@pytest.fixture
def cameras() -> Cameras:
    K = torch.tensor([[50.0, 0.0, 31.0], [0.0, 60.0, 25.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    sizes = torch.tensor([64, 48])
    poses = look_at(CENTRES, torch.zeros(3, dtype=torch.float64))
    return Cameras(K.repeat(3, 1, 1), poses, sizes.repeat(3, 1))


def test_hand_worked_camera_projects_as_opencv_does():
    K = torch.tensor([[[100.0, 0.0, 50.0], [0.0, 100.0, 40.0], [0.0, 0.0, 1.0]]])
    camera = Cameras(K, torch.eye(4)[None], torch.tensor([[100, 80]]))
    image, depth = camera.project(0, torch.tensor([[0.2, 0.1, 2.0], [0.0, 0.0, -1.0]]))
    torch.testing.assert_close(image[0], torch.tensor([60.0, 45.0]))  # right and below the centre
    torch.testing.assert_close(depth, torch.tensor([2.0, -1.0]))


def test_project_then_unproject_returns_the_points(cameras, generator):
    points = torch.rand(20, 3, generator=generator, dtype=torch.float64) - 0.5
    for view in range(3):
        image, depth = cameras.project(view, points)
        assert (depth > 0).all()
        origins, directions = cameras.pixel_rays(view, image)
        forward = cameras.T_world_from_camera[view, :3, 2]
        back = origins + directions * (depth / (directions @ forward))[:, None]
        torch.testing.assert_close(back, points, rtol=1e-9, atol=1e-10)


def test_unit_directions_from_the_centres(cameras):
    origins, directions = cameras.grid_rays(1, 6, 8)
    assert origins.shape == directions.shape == (48, 3)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(48, dtype=torch.float64))
    torch.testing.assert_close(origins, CENTRES[1].expand(48, 3))
    torch.testing.assert_close(cameras.centres, CENTRES)


def test_grid_rays_pass_through_cell_centres_row_by_row(cameras):
    _, directions = cameras.grid_rays(0, 6, 8)
    image, _ = cameras.project(0, CENTRES[0] + directions)
    torch.testing.assert_close(image[0], torch.tensor([4.0, 4.0], dtype=torch.float64))
    torch.testing.assert_close(image[1], torch.tensor([12.0, 4.0], dtype=torch.float64))
    torch.testing.assert_close(image[8], torch.tensor([4.0, 12.0], dtype=torch.float64))


def test_resized_cameras_see_the_same_rays(cameras):
    small = cameras.resized(torch.tensor([32, 12]))
    assert small.sizes.tolist() == [[32, 12]] * 3
    for ours, theirs in zip(small.grid_rays(2, 5, 7), cameras.grid_rays(2, 5, 7), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_opengl_axes_turn_and_turn_back(cameras):
    poses = cameras.T_world_from_camera
    opengl = opencv_from_opengl(poses)
    torch.testing.assert_close(opencv_from_opengl(opengl), poses, rtol=0, atol=0)
    torch.testing.assert_close(opengl[:, :3, 2], -poses[:, :3, 2])  # OpenGL looks along -z
    torch.testing.assert_close(opengl[:, :3, 1], -poses[:, :3, 1])
    torch.testing.assert_close(opengl[:, :3, 3], poses[:, :3, 3])


def test_look_at_is_rigid_upright_and_centred(cameras):
    poses = look_at(CENTRES, torch.tensor([0.1, 0.2, 0.0], dtype=torch.float64))
    R = poses[:, :3, :3]
    torch.testing.assert_close(R.mT @ R, torch.eye(3, dtype=torch.float64).repeat(3, 1, 1))
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(3, dtype=torch.float64))
    assert (R[:, 2, 1] < 0).all()  # the image's downward axis points down in the world
    looking = Cameras(cameras.K, poses, cameras.sizes)
    for view in range(3):
        image, _ = looking.project(view, torch.tensor([[0.1, 0.2, 0.0]], dtype=torch.float64))
        torch.testing.assert_close(image[0], torch.tensor([31.0, 25.0], dtype=torch.float64))


def test_some_views_and_wrong_shapes(cameras):
    assert len(cameras[[2, 0]]) == 2
    torch.testing.assert_close(cameras[[2, 0]].centres, CENTRES[[2, 0]])
    with pytest.raises(ValueError, match=r"Cameras.sizes has shape \(2, 2\)"):
        Cameras(cameras.K, cameras.T_world_from_camera, cameras.sizes[:2])
