import itertools

import pytest
import torch
from conftest import TOLERANCE

from condense.cameras import Cameras, look_at
from condense.grid import Grid
from condense.rayoperator import (
    RayOperator,
    build_operator,
    heaviest,
    on_columns,
    pruned,
    stack_operators,
)
from condense.voxels import VoxelScene, batch_scenes

SIZE = 4  # cells along each side of a view
GRIDS = {
    "bounded": Grid((-0.5, -0.5, -0.5), 1 / 8, (8, 8, 8)),
    "contracted": Grid((-2.0, -2.0, -2.0), 4 / 8, (8, 8, 8), contracted=True, radius=0.4),
}


def make_scene(generator, grid, voxels=120):
    cells = torch.randperm(512, generator=generator)[:voxels]
    coords = torch.stack(torch.unravel_index(cells, grid.shape), dim=1).int()
    density = 3 * torch.rand(voxels, generator=generator, dtype=torch.float64)
    return VoxelScene(coords, density, torch.rand(voxels, 3, generator=generator, dtype=torch.float64), grid)


def make_cameras(views=2):
    eyes = torch.tensor([[1.7, 0.4, 0.6], [-0.3, 1.5, 1.0]], dtype=torch.float64)[:views]
    K = torch.tensor([[9.0, 0, 4], [0, 9, 4], [0, 0, 1]], dtype=torch.float64).repeat(views, 1, 1)
    return Cameras(K, look_at(eyes, torch.zeros(3)), torch.full((views, 2), 8))


def march_one_ray(scene, features, origin, direction, step, reach=12.0):
    """Renders one ray sample by sample, voxel by voxel, straight from the formula; also returns the opacity.

    Marches from the origin in equal steps of grid coordinates; fine steps stand in for an integral.
    """
    rows = {tuple(c): row for row, c in enumerate(scene.coords.tolist())}
    light, colour = torch.ones((), dtype=torch.float64), torch.zeros(features.shape[1], dtype=torch.float64)
    t, fine = 0.0, 1e-3
    while t < reach:
        here = scene.grid.from_world(origin + t * direction)
        speed = float((scene.grid.from_world(origin + (t + fine) * direction) - here).norm()) / fine
        middle = scene.grid.from_world(origin + (t + step / speed / 2) * direction) - 0.5
        base = middle.floor()
        density, mixed, present = 0.0, torch.zeros_like(colour), 0.0
        for bits in itertools.product((0, 1), repeat=3):
            corner = base + torch.tensor(bits)
            row = rows.get(tuple(int(c) for c in corner))
            if row is not None:
                weight = (1 - (middle - corner).abs()).prod()
                density = density + weight * scene.density[row]
                mixed = mixed + weight * features[row]
                present = present + weight
        if present > 0:
            alpha = 1 - torch.exp(-density * step)
            colour = colour + light * alpha * mixed / present
            light = light * (1 - alpha)
        t += step / speed
    return colour, 1 - light


@pytest.fixture(scope="module", params=list(GRIDS))
def built(request):
    """A scene, its cameras and the operator of view 0, nothing dropped."""
    scene = make_scene(torch.Generator().manual_seed(0), GRIDS[request.param])
    cameras = make_cameras()
    return scene, cameras, build_operator(scene, cameras, 0, SIZE, SIZE, subrays=2, keep=1.0)


def test_entries_are_positive_and_rows_sum_to_opacity(built):
    scene, _, operator = built
    assert operator.shape == (SIZE * SIZE, len(scene)) and (operator.value > 0).all()
    assert (operator.opacity <= 1).all() and (operator.opacity > 0.3).any()
    constant = operator.render(torch.full((len(scene), 1), 2.0, dtype=torch.float64))
    torch.testing.assert_close(constant[:, 0], 2 * operator.opacity, **TOLERANCE[torch.float64])


def test_columns_ascend_within_each_row(built):
    operator = built[2]
    key = operator.row * operator.voxels + operator.col
    assert (key.diff() > 0).all()


@pytest.mark.parametrize(("name", "tolerance"), [("bounded", 1e-3), ("contracted", 2e-2)])
def test_matches_marching_step_by_step(name, tolerance, generator):
    """The two march in steps of 0.05 voxels, differently placed, to the same integral.

    Seen: 3e-4 where space is bounded; 8e-3 where it is contracted, since arc length is read from a table there.
    """
    scene, cameras = make_scene(generator, GRIDS[name]), make_cameras()
    operator = build_operator(scene, cameras, 0, 2, 2, subrays=1, step=0.05, keep=1.0)
    features = torch.randn(len(scene), 3, generator=generator, dtype=torch.float64, requires_grad=True)
    rays = zip(*cameras.grid_rays(0, 2, 2), strict=True)
    marched = [march_one_ray(scene, features, o, d, step=0.05) for o, d in rays]
    expected, opacity = torch.stack([m[0] for m in marched]), torch.stack([m[1] for m in marched])
    torch.testing.assert_close(operator.opacity, opacity, rtol=0, atol=tolerance)
    torch.testing.assert_close(operator.render(features), expected, rtol=0, atol=2 * tolerance)
    cotangent = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(operator.render(features), features, cotangent)
    (gradient_expected,) = torch.autograd.grad(expected, features, cotangent)
    torch.testing.assert_close(gradient, gradient_expected, rtol=0, atol=2 * tolerance)


def test_values_and_gradients_match_per_sample_rendering(built, generator):
    """The same samples, gathered and composited one by one in float64."""
    from condense.raymarch import accumulate, render_weights, sample_rays, trilinear
    from condense.voxels import index_volume

    scene, cameras, _ = built
    operator = build_operator(scene, cameras, 1, SIZE, SIZE, subrays=1, keep=1.0)
    features = torch.randn(len(scene), 5, generator=generator, dtype=torch.float64, requires_grad=True)
    index = index_volume(scene)
    samples = sample_rays(*cameras.grid_rays(1, SIZE, SIZE), scene.grid, index >= 0, 0.5)
    voxel, weight = trilinear(samples.position, index)
    density = (weight * scene.density[voxel]).sum(1)
    values = (weight[..., None] * features[voxel]).sum(1) / weight.sum(1, keepdim=True)
    expected = accumulate(render_weights(density, samples), values, samples)
    torch.testing.assert_close(operator.render(features), expected, **TOLERANCE[torch.float64])
    cotangent = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(operator.render(features), features, cotangent)
    (gradient_expected,) = torch.autograd.grad(expected, features, cotangent)
    torch.testing.assert_close(gradient, gradient_expected, **TOLERANCE[torch.float64])
    torch.testing.assert_close(operator.dense().T @ cotangent, gradient, **TOLERANCE[torch.float64])


def test_gradcheck_to_second_order(built, generator):
    scene, _, operator = built
    x = torch.randn(len(scene), 1, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(operator.render, x)
    y = torch.randn(SIZE * SIZE, 1, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(operator.lift, y)
    assert torch.autograd.gradgradcheck(lambda v: operator.render(v).square(), x)


def test_pruning_keeps_opacity_and_its_bound(built, generator):
    operator = built[2]
    features = 2 * torch.rand(operator.voxels, 4, generator=generator, dtype=torch.float64) - 1  # at most 1
    for keep in (0.999, 0.9, 0.5):
        slim = pruned(operator, keep)
        assert len(slim.col) < len(operator.col)
        torch.testing.assert_close(slim.opacity, operator.opacity, **TOLERANCE[torch.float64])
        error = (slim.render(features) - operator.render(features)).abs().amax(dim=1)
        assert (error <= 2 * (1 - keep) * operator.opacity + 1e-12).all()
        worst = (slim.dense() - operator.dense()).abs().sum(dim=1)  # the worst features within [-1, 1]
        assert (worst <= 2 * (1 - keep) * operator.opacity + 1e-12).all()
    with pytest.raises(ValueError, match="keep is 0"):
        pruned(operator, 0)


def test_an_empty_ray_is_a_zero_row(generator):
    scene = make_scene(generator, GRIDS["bounded"])
    away = make_cameras()
    away.T_world_from_camera[:, :3, :3] @= torch.diag(torch.tensor([1.0, -1, -1], dtype=torch.float64))
    operator = build_operator(scene, away, 0, SIZE, SIZE)
    assert operator.shape == (SIZE * SIZE, len(scene)) and len(operator.col) == 0
    features = torch.ones(len(scene), 2, dtype=torch.float64, requires_grad=True)
    rendered = operator.render(features)
    rendered.sum().backward()
    assert (rendered == 0).all() and (features.grad == 0).all()
    both = stack_operators([operator, build_operator(scene, make_cameras(), 0, SIZE, SIZE)], block_diagonal=False)
    assert (both.render(features)[: SIZE * SIZE] == 0).all() and both.opacity[SIZE * SIZE :].sum() > 0


def test_a_cell_is_the_mean_of_its_rays(built):
    scene, cameras, operator = built
    rays = build_operator(scene, cameras, 0, 2 * SIZE, 2 * SIZE, subrays=1, keep=1.0).dense()
    cells = rays.reshape(SIZE, 2, SIZE, 2, len(scene)).mean(dim=(1, 3)).reshape(-1, len(scene))
    torch.testing.assert_close(operator.dense(), cells, **TOLERANCE[torch.float64])


def test_rows_built_in_small_blocks_are_the_same(built, monkeypatch):
    scene, cameras, operator = built
    monkeypatch.setattr("condense.rayoperator._DENSE", 3 * len(scene))  # three rows at a time
    again = build_operator(scene, cameras, 0, SIZE, SIZE, subrays=2, keep=1.0)
    for name in ("crow", "col", "value"):
        assert torch.equal(getattr(again, name), getattr(operator, name))


def test_lifting_by_hand():
    operator = RayOperator(
        torch.tensor([0, 2, 3], dtype=torch.int32),
        torch.tensor([0, 1, 1], dtype=torch.int32),
        torch.tensor([0.5, 0.25, 0.75]),
        voxels=3,
    )
    values = torch.tensor([[2.0], [4.0]])
    assert operator.lift(values).tolist() == [[1.0], [3.5], [0.0]]
    mean, weight = operator.lift_mean(values)
    assert mean.tolist() == [[2.0], [3.5], [0.0]] and weight.tolist() == [0.5, 1.0, 0.0]


def test_transpose_is_the_transpose(built):
    operator = built[2]
    assert torch.equal(operator.transpose.dense(), operator.dense().T)
    assert operator.transpose.transpose is operator


def test_stacks_match_their_parts(generator):
    cameras = make_cameras()
    scenes = [make_scene(generator, GRIDS["bounded"], voxels) for voxels in (60, 90)]
    grid = [[build_operator(scene, cameras, view, SIZE, SIZE) for view in (0, 1)] for scene in scenes]
    views = [stack_operators(operators, block_diagonal=False) for operators in grid]
    torch.testing.assert_close(views[0].dense(), torch.cat([o.dense() for o in grid[0]]))
    whole = stack_operators(views)
    torch.testing.assert_close(whole.dense(), torch.block_diag(*(v.dense() for v in views)))
    assert whole.voxels == len(batch_scenes(scenes).coords)
    with pytest.raises(ValueError, match=r"not have \[60, 90\]"):
        stack_operators(views, block_diagonal=False)
    with pytest.raises(ValueError, match="at least one"):
        stack_operators([])


def test_bad_input_is_refused(built):
    scene, cameras, operator = built
    with pytest.raises(ValueError, match=r"\(3, 2\), not \(120, C\)"):
        operator.render(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="at least one cell"):
        build_operator(scene, cameras, 0, 0, 4)


def test_the_heaviest_entry_stands_for_its_row():
    crow, col = torch.tensor([0, 2, 2, 5], dtype=torch.int32), torch.tensor([0, 3, 1, 2, 4], dtype=torch.int32)
    operator = RayOperator(crow, col, torch.tensor([0.2, 0.5, 0.1, 0.3, 0.2]), 5)
    alone = heaviest(operator)
    expected = torch.zeros(3, 5)
    expected[0, 3], expected[2, 2] = 0.7, 0.6
    torch.testing.assert_close(alone.dense(), expected)
    torch.testing.assert_close(alone.opacity, operator.opacity)


def test_fewer_columns_keep_the_rows_sums():
    crow, col = torch.tensor([0, 2, 2, 5], dtype=torch.int32), torch.tensor([0, 3, 1, 2, 4], dtype=torch.int32)
    operator = RayOperator(crow, col, torch.tensor([0.2, 0.5, 0.1, 0.3, 0.2]), 5)
    slim = on_columns(operator, torch.tensor([True, True, True, False, False]))
    expected = torch.tensor([[0.7, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.15, 0.45]])
    torch.testing.assert_close(slim.dense(), expected)
