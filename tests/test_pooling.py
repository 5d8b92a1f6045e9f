import dataclasses

import pytest
import torch

from condense.field import Field
from condense.grid import Grid
from condense.pooling import coarser, enclosed, overlaps, rendered_scene, voxel_scene


def block(density: float, side: int = 6, grid_side: int = 12) -> Field:
    """A cube of one density in the middle of a grid, red."""
    low = (grid_side - side) // 2
    coords = torch.cartesian_prod(*[torch.arange(low, low + side)] * 3).int()
    colour = torch.tensor([1.0, 0.0, 0.0]).repeat(len(coords), 1)
    grid = Grid((0.0, 0.0, 0.0), 1.0 / grid_side, (grid_side,) * 3)
    return Field(grid, coords, torch.full((len(coords), 1), density), colour, torch.ones(3), 1.0)


def test_absorption_along_an_axis_is_kept():
    for resolution in (6, 8, 12):  # whole and broken ratios
        scene = voxel_scene(block(0.3), resolution)
        column = scene.coords[:, :2] == resolution // 2
        through = scene.density[column.all(1)].sum()  # optical depth of a ray through the middle
        torch.testing.assert_close(through, torch.tensor(6 * 0.3))


def test_colour_and_region_are_kept():
    scene = voxel_scene(block(0.3), 8)
    torch.testing.assert_close(scene.colour, torch.tensor([[1.0, 0.0, 0.0]]).expand(len(scene), 3))
    assert scene.grid.voxel_size * 8 == pytest.approx(1.0) and scene.grid.shape == (8, 8, 8)


def test_what_opaque_voxels_enclose_is_dropped():
    scene = voxel_scene(block(50.0), 12)
    assert len(scene) == 6**3 - 4**3


def test_enclosed_by_hand():
    solid = torch.ones(3, 3, 3, dtype=torch.bool)
    assert enclosed(solid).nonzero().tolist() == [[1, 1, 1]]
    solid[0, 1, 1] = False
    assert not enclosed(solid).any()


def test_shares_of_a_voxel_sum_to_one():
    coords = torch.randint(0, 30, (50, 3), generator=torch.Generator().manual_seed(0))
    shares = torch.stack([share for _, share in overlaps(coords, 1.7, (18, 18, 18))])
    torch.testing.assert_close(shares.sum(0), torch.ones(50))
    assert (shares >= 0).all()


def test_a_grid_is_never_made_finer():
    grid = Grid((0.0, 0.0, 0.0), 0.5, (8, 4, 2))
    assert coarser(grid, 32) == grid
    assert coarser(grid, 4).shape == (4, 2, 1)


def test_a_transparent_field_is_refused():
    with pytest.raises(ValueError, match="transparent"):
        voxel_scene(block(0.001), 6)


def test_a_field_is_rendered_as_it_was_fitted():
    field = block(0.3)
    around = dataclasses.replace(field, density=torch.where(field.coords[:, :1] == field.coords[:, 0].min(), -0.2, 0.3))
    scene = rendered_scene(around, 12)
    assert scene.grid == field.grid and (scene.density == -0.2).sum() == 36 and (scene.density > 0).sum() == 180
    lonely = dataclasses.replace(field, density=torch.where(field.coords[:, :1] == field.coords[:, 0].max(), 0.3, -0.2))
    kept = rendered_scene(lonely, 12).coords[:, 0]
    assert len(kept) == 72 and kept.min() == field.coords[:, 0].max() - 1  # the rest touch nothing solid
    pooled, plain = rendered_scene(field, 8), voxel_scene(field, 8)
    torch.testing.assert_close(pooled.density, plain.density)
