import dataclasses

import numpy as np
import pytest
import torch
from conftest import TOLERANCE

from condense.cameras import Cameras, look_at
from condense.captures.capture import Views
from condense.captures.reader import read_capture
from condense.field import (
    Field,
    harmonics,
    interpolate,
    load_field,
    psnr_db,
    render_samples,
    render_view,
    save_field,
    target_image,
)
from condense.fieldfit import fit_field
from condense.fieldrays import TrainingRays, choose_grid, look_point, refined, seen_voxels, visual_hull
from condense.grid import Grid
from condense.params import FieldsParams
from condense.plainfit import plain_fit, render_dense
from condense.raymarch import accumulate, render_weights, sample_rays, trilinear

QUICK = FieldsParams(resolutions=(12, 24), steps=(15, 25), pixels=1000)


def ring(count, size, height=0.6):
    turn = torch.arange(count) * 2.4
    eyes = torch.stack([2 * torch.cos(turn), 2 * torch.sin(turn), height * torch.sin(3 * turn)], dim=1)
    K = torch.tensor([[1.2 * size, 0, size / 2], [0, 1.2 * size, size / 2], [0, 0, 1]]).repeat(count, 1, 1)
    return Cameras(K, look_at(eyes, torch.zeros(3)), torch.full((count, 2), size))


def box_views(count=10, size=24):
    """A cube of side 0.6, red below and blue above, before green; masks are 0 or 1, one ray a pixel."""
    cameras = ring(count, size)
    images, masks = [], []
    for view in range(count):
        origins, directions = cameras.grid_rays(view, size, size)
        a, b = (-0.3 - origins) / directions, (0.3 - origins) / directions
        near = torch.minimum(a, b).amax(1)
        hit = near < torch.maximum(a, b).amin(1)
        up = (origins + near[:, None] * directions)[:, 2] > 0
        colour = torch.where(up[:, None], torch.tensor([0.1, 0.2, 0.9]), torch.tensor([0.9, 0.2, 0.1]))
        colour = torch.where(hit[:, None], colour, torch.tensor([0.2, 0.8, 0.2]))
        images.append((colour * 255).round().to(torch.uint8).view(size, size, 3).numpy())
        masks.append(hit.float().view(size, size).numpy())
    return Views(tuple(map(str, range(count))), images, masks, None, cameras)


def some(views, numbers):
    masks = None if views.masks is None else [views.masks[i] for i in numbers]
    names, images = tuple(views.names[i] for i in numbers), [views.images[i] for i in numbers]
    return dataclasses.replace(views, names=names, images=images, masks=masks, cameras=views.cameras[list(numbers)])


@pytest.fixture(scope="module")
def box():
    views = box_views()
    train = some(views, range(8))
    return train, some(views, [8, 9]), fit_field(train, QUICK, seed=3)


class TestFit:
    def test_recovers_the_box(self, box):
        _, held_out, field = box
        assert np.mean(psnr_db(field, held_out)) > 20  # hard 0/1 masks at 24 px: mostly aliasing of the edge
        image, opacity = render_view(field, held_out.cameras, 0, background=torch.zeros(3))
        mask = torch.from_numpy(held_out.masks[0]) > 0
        assert opacity[mask].mean() > 0.85 and opacity[~mask].mean() < 0.1
        assert image[mask][:, 1].mean() < 0.35  # the green background has stayed out

    def test_same_seed_same_bytes(self, box, tmp_path):
        train, _, field = box
        for name, one in (("a", field), ("b", fit_field(train, QUICK, seed=3))):
            save_field(one, tmp_path / f"{name}.safetensors")
        assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()

    def test_empty_masks_are_refused(self):
        views = box_views(6, 12)
        empty = dataclasses.replace(views, masks=[np.zeros_like(mask) for mask in views.masks])
        with pytest.raises(ValueError, match="inside the masks of all views"):
            fit_field(empty, QUICK, seed=0)

    @pytest.mark.parametrize("space", ["auto", "bounded"])
    def test_without_masks(self, space):
        views = dataclasses.replace(box_views(8, 12), masks=None)
        params = dataclasses.replace(QUICK, resolutions=(12,), steps=(5,), pixels=500, space=space)
        field = fit_field(views, params, seed=0)
        assert field.grid.contracted == (space == "auto")
        assert all(np.isfinite(psnr_db(field, views))) and len(field.coords) > 0

    def test_real_photographs(self, shared):
        capture = read_capture(shared / "captures" / "fox")
        views = capture.load(capture.views("train")[::6], max_side=24)
        field = fit_field(views, dataclasses.replace(QUICK, resolutions=(16,), steps=(10,), pixels=500), seed=0)
        assert field.grid.contracted and np.mean(psnr_db(field, views)) > 8


class TestSpace:
    def test_hull_holds_the_object_and_not_much_more(self, box):
        train, _, _ = box
        grid = refined(choose_grid(train, QUICK), 16)
        low, high = grid.to_world(torch.zeros(3)), grid.to_world(torch.tensor(grid.shape).float())
        assert (low < -0.28).all() and (high > 0.28).all() and (high - low).max() < 1.1
        centre = grid.from_world(torch.zeros(3)).long()
        hull = visual_hull(train, grid)
        assert hull[tuple(centre)] and hull.float().mean() < 0.95

    def test_hull_of_what_the_border_cuts_off(self, box):
        # the left half of one image is cut away: its mask ends at the border, and what lies beyond is not known
        train, _, _ = box
        grid, mask = Grid((-1.0,) * 3, 0.125, (16,) * 3), train.masks[0]
        half = mask.shape[1] // 2
        cameras = train.cameras
        K, T, size = cameras.K[:1], cameras.T_world_from_camera[:1], cameras.sizes[:1]

        def hull(start: int, mask: np.ndarray) -> torch.Tensor:
            shifted, left = K - K.new_tensor([[0, 0, start], [0, 0, 0], [0, 0, 0]]), size - torch.tensor([start, 0])
            image = train.images[0][:, start:]
            return visual_hull(Views(("0",), [image], [mask], None, Cameras(shifted, T, left)), grid)

        whole, cut = hull(0, mask), hull(half, mask[:, half:])
        assert cut[whole].all() and cut.sum() > 1.2 * whole.sum()
        ended = hull(half, np.pad(mask[:, half + 4 :], ((0, 0), (4, 0))))
        assert ended.sum() < 0.8 * whole.sum()  # a mask that ends before the border carves beyond it

    def test_look_point(self):
        torch.testing.assert_close(look_point(ring(6, 8)), torch.zeros(3), rtol=0, atol=1e-5)

    def test_seen_voxels_in_a_bounded_grid(self):
        # all cameras look at the origin, which lies far from the grid's corner
        grid = Grid((-1.0, -1.0, -1.0), 0.5, (4, 4, 4))
        assert seen_voxels(ring(6, 8), grid)[1:3, 1:3, 1:3].all()


def test_interpolate_matches_gather(generator):
    values = torch.rand(20, 3, generator=generator, dtype=torch.float64).requires_grad_()
    voxel = torch.randint(0, 20, (30, 8), generator=generator, dtype=torch.int32)
    weight = torch.rand(30, 8, generator=generator, dtype=torch.float64)
    cotangent = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    ours, plain = interpolate(values, voxel, weight), (values[voxel.long()] * weight[..., None]).sum(1)
    torch.testing.assert_close(ours, plain, **TOLERANCE[torch.float64])
    gradients = [torch.autograd.grad((out * cotangent).sum(), values)[0] for out in (ours, plain)]
    torch.testing.assert_close(*gradients, **TOLERANCE[torch.float64])


def test_render_matches_plain_compositing(generator):
    grid = Grid((0.0, 0.0, 0.0), 1.0, (5, 5, 5))
    index = torch.arange(125, dtype=torch.int32).view(5, 5, 5)
    density = torch.rand(125, 1, generator=generator, dtype=torch.float64) * 2 - 0.5
    colour = torch.rand(125, 12, generator=generator, dtype=torch.float64)
    origins = torch.rand(10, 3, generator=generator, dtype=torch.float64) * 12 - 4
    directions = torch.nn.functional.normalize(2.5 - origins, dim=1)
    samples = sample_rays(origins, directions, grid, index >= 0)
    voxel, weight = trilinear(samples.position, index)
    leaves = [density.requires_grad_(), colour.requires_grad_()]
    light, _ = render_samples(density, colour, directions, samples, voxel, weight)
    weights = render_weights((density[:, 0][voxel] * weight).sum(1).relu(), samples)
    share = weight / weight.sum(1, keepdim=True)
    value = (colour[voxel] * share[..., None]).sum(1).view(-1, 3, 4)
    rgb = torch.einsum("scb,sb->sc", value, harmonics(directions, 4)[samples.ray])
    plain = accumulate(weights, torch.cat([rgb, torch.ones_like(rgb[:, :1])], dim=1), samples)
    # samples of weight below 1e-4 have no colour: at most that much a sample
    torch.testing.assert_close(light, plain, rtol=0, atol=2e-3)
    cotangent = torch.randn(10, 4, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad((out * cotangent).sum(), leaves) for out in (light, plain)]
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).norm() < 1e-2 * theirs.norm()


def test_unmixes_the_background():
    mask = np.full((9, 9), 1, np.float32)
    mask[:, :4], mask[:, 4] = 0, 0.25
    grey, red = np.array([100, 100, 100.0]), np.array([200, 0, 0.0])
    image = mask[..., None] * red + (1 - mask[..., None]) * grey
    views = Views(("a",), [image.round().astype(np.uint8)], [mask], None, ring(1, 9), blended=True)
    light, _ = target_image(views, 0)
    expected = torch.from_numpy(mask[..., None] * red).float() / 255
    torch.testing.assert_close(light, expected, rtol=0, atol=0.005)  # 8-bit images


def test_round_trip(tmp_path):
    grid = Grid((-2.0, -2.0, -2.0), 0.25, (16, 16, 16), contracted=True, centre=(1.0, 2.0, 3.0), radius=2.0)
    coords = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.int32)
    field = Field(grid, coords, torch.tensor([[1.0], [-2.0]]), torch.rand(2, 12), torch.tensor([0.1, 0.2, 0.3]), 0.7)
    save_field(field, tmp_path / "a.safetensors", seconds=1.5)
    again, facts = load_field(tmp_path / "a.safetensors")
    assert again.grid == grid and again.step == 0.7 and facts["seconds"] == 1.5
    for name in ("coords", "density", "colour", "background"):
        assert torch.equal(getattr(again, name), getattr(field, name))


def test_the_plain_way_renders_a_uniform_block_by_hand():
    grid = Grid((0.0, 0.0, 0.0), 1.0, (4, 4, 4))
    rays = TrainingRays(
        torch.tensor([[-5.0, 2, 2], [-5, 2, 9]]), torch.tensor([[1.0, 0, 0]] * 2), torch.arange(3), torch.zeros(2, 4)
    )
    colour = torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1, 1).expand(1, 3, 4, 4, 4)
    light = render_dense(torch.full((1, 1, 4, 4, 4), 0.2), colour, grid, rays, torch.tensor([0, 1]))
    # samples feel 0.1, 0.2, 0.2, 0.2, 0.1: the two at the faces half as much, in colour too
    opacity = 1 - np.exp(-0.8)
    faces = (1 - np.exp(-0.1)) * (1 + np.exp(-0.7))
    red = opacity - faces / 2
    torch.testing.assert_close(light, torch.tensor([[red, red / 2, 0, opacity], [0, 0, 0, 0]]).float())


def test_the_plain_way_learns_and_stops(box):
    train, held_out, _ = box
    params = dataclasses.replace(QUICK, pixels=200)
    seconds, reached = plain_fit(train, held_out, params, goal=0.0, most=30)
    assert seconds > 0 and reached > 10
