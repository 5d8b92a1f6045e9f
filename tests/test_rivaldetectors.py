"""Other detectors: places that are known, masks, and coordinates through enlarging."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from condense.rivaldetectors import (
    FINEST,
    Aliked,
    Sift,
    aliked_ready,
    contrast,
    covered,
    described,
    enlarged,
    farthest_pixels,
    grid_pixels,
    grid_voxels,
    random_pixels,
)

BLOBS = torch.tensor([[20.5, 40.3], [40.2, 22.0]])


def blobs(side=64):
    """Two bright blobs on grey; pixel centres at +0.5."""
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    bright = sum(torch.exp(-((x - u) ** 2 + (y - v) ** 2) / 18) for u, v in BLOBS)
    return (100 + 120 * bright).round().to(torch.uint8)[:, :, None].expand(-1, -1, 3).contiguous()


def whole(side=64):
    return torch.full((side, side), 255, dtype=torch.uint8)


def disc(side=32, radius=9.0):
    y, x = torch.meshgrid(*[torch.arange(side) + 0.5 - side / 2] * 2, indexing="ij")
    return ((x**2 + y**2 < radius**2) * 255).to(torch.uint8)


class TestSift:
    @pytest.mark.parametrize("side", [150, 192, 256])
    def test_blobs_are_found_where_they_are(self, side):
        found = Sift(side)(blobs(), whole())
        assert float(torch.cdist(BLOBS, found.positions).min(1).values.max()) < 0.3
        assert found.size == (64, 64) and bool((found.scores[:-1] >= found.scores[1:]).all())
        assert torch.allclose(found.descriptors.norm(dim=1), torch.ones(len(found)), atol=1e-5)

    def test_beside_the_mask_there_are_none(self):
        mask = whole()
        mask[:, 32:] = 0
        found = Sift()(blobs(), mask)
        assert len(found) and float(found.positions[:, 0].max()) <= 32

    def test_a_plain_image_has_none(self):
        assert Sift()(torch.full((64, 64, 3), 90, dtype=torch.uint8), whole()).descriptors.shape == (0, 128)


class TestAliked:
    def test_without_weights_it_is_left_out(self, tmp_path):
        assert not aliked_ready("")
        with pytest.raises(FileNotFoundError, match=r"n16.pth is not there: get aliked-n16.pth"):
            aliked_ready(str(tmp_path / "n16.pth"))

    @pytest.fixture
    def weights(self, shared):
        pytest.importorskip("kornia", reason="kornia is not installed: pip install 'condense[aliked]'")
        path = shared / "weights" / "aliked" / "models" / "aliked-n16.pth"
        if not path.is_file():
            pytest.skip(f"no weights of ALIKED at {path}")
        return path

    def test_a_turned_image_has_turned_key_points(self, weights):
        """Half a pixel of slip would shift them against each other, on average."""
        coarse = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
        image = (interpolate(coarse, (64, 64), mode="bicubic")[0].clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0)
        find = Aliked(weights, side=256)
        found, turned = find(image, whole()), find(image.flip(0, 1).contiguous(), whole())
        back = 64 - turned.positions
        distance, nearest = torch.cdist(found.positions, back).min(1)
        offset = (back[nearest] - found.positions)[distance < 1]
        assert len(offset) > 50 and float(offset.mean(0).abs().max()) < 0.15
        assert found.descriptors.shape == (len(found), 128)

    def test_other_weights_are_named(self, weights, tmp_path):
        torch.save({}, tmp_path / "other.pth")
        with pytest.raises(ValueError, match=r"other.pth lacks '.*': it is not aliked-n16.pth"):
            Aliked(tmp_path / "other.pth")


def test_enlarging_keeps_large_images():
    large, factor = enlarged(torch.zeros(10, 20, 3, dtype=torch.uint8), 60)
    assert large.shape == (1, 3, 30, 60) and factor == 3
    same, factor = enlarged(torch.zeros(10, 400, 3, dtype=torch.uint8), 60)
    assert same.shape == (1, 3, 10, 400) and factor == 1


def test_contrast_by_hand():
    """A Gaussian of width s, blurred by b, has the height s^2 / (s^2 + b^2) in its middle."""
    y, x = np.mgrid[:64, :64] + 0.5
    grey = np.exp(-((x - 30.5) ** 2 + (y - 20.5) ** 2) / (2 * 4.0**2)).astype(np.float32)
    low, high = FINEST * 2, FINEST * 2 ** (4 / 3)
    expected = 16 / (16 + low**2) - 16 / (16 + high**2)
    places = np.array([[30.5, 20.5, low], [5.5, 60.5, low]])
    np.testing.assert_allclose(contrast(grey, places), [expected, 0], atol=2e-3)


class TestBlindPlaces:
    def test_all_lie_on_the_mask_and_are_as_many_as_asked(self):
        mask, rng = disc(), np.random.default_rng(0)
        inside = {tuple(at) for at in covered(mask).tolist()}
        for at in (random_pixels(mask, 30, rng), farthest_pixels(mask, 30)):
            assert len(at) == 30 and {tuple(a) for a in at.tolist()} <= inside
        assert len(grid_pixels(mask, 30)) == 30
        assert float((grid_pixels(mask, 30) - 16).norm(dim=1).max()) < 9.5

    def test_a_grid_by_hand(self):
        expected = [[1.0, 1.0], [3.0, 1.0], [1.0, 3.0], [3.0, 3.0]]
        assert grid_pixels(torch.full((4, 4), 255, dtype=torch.uint8), 4).tolist() == expected

    def test_a_mask_smaller_than_the_number(self):
        mask = torch.zeros(8, 8, dtype=torch.uint8)
        assert len(random_pixels(mask, 5, np.random.default_rng(0))) == 0
        assert len(grid_pixels(mask, 5)) == 0 and len(farthest_pixels(mask, 5)) == 0
        mask[2:4, 3] = 255
        assert farthest_pixels(mask, 5).tolist() == [[3.5, 2.5], [3.5, 3.5]] or len(farthest_pixels(mask, 5)) == 2
        assert len(grid_pixels(mask, 5)) == 2

    def test_fewer_spread_places_are_the_first_of_more(self):
        assert torch.equal(farthest_pixels(disc(), 40)[:12], farthest_pixels(disc(), 12))

    def test_a_grid_of_voxels_takes_one_a_cell(self):
        points = torch.tensor([[0.1, 0, 0], [0.24, 0.2, 0.3], [0.9, 0, 0], [1.0, 0.1, 0], [0.2, 0.8, 0]])
        assert sorted(grid_voxels(points, 3).tolist()) == [1, 2, 4]  # cells of 0.45: each takes its middle-most
        assert sorted(grid_voxels(points, 99).tolist()) == [0, 1, 2, 3, 4]


def test_descriptors_are_those_of_the_map():
    features = torch.eye(4).reshape(4, 2, 2)
    large = interpolate(features[None], scale_factor=4, mode="nearest")[0]
    found = described(torch.tensor([[1.0, 1.0], [6.5, 6.5]]), large, (8, 8))
    assert found.descriptors.tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]] and found.size == (8, 8)
