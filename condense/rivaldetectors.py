"""Other ways to find key points: SIFT and ALIKED in an image, and places chosen without a look at what is there.

In an image all lie where its mask covers at least by half. SIFT and ALIKED were made for photographs of 500 pixels and
more: small images are enlarged first, and the places divided.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from condense.colmap import pycolmap
from condense.keypoints import ImageKeyPoints, sample_map
from condense.tasks.matching import spread

FINEST = 0.8  # pixels, the scale from which SIFT looks for key points
SIDE = 192  # pixels of an image's longer side, to which smaller ones are enlarged


class Sift:
    """SIFT (Lowe 2004) by COLMAP, with RootSIFT descriptors (Arandjelovic and Zisserman 2012).

    Args:
        side: an image is enlarged so that its longer side has so many pixels; SIFT itself doubles once more.
        peak: the least contrast of a key point.
        upright: leave the orientation out of the descriptor: cameras that are held level need none.
    """

    def __init__(self, side: int = SIDE, peak: float = 0.013, upright: bool = True) -> None:
        options = pycolmap.FeatureExtractionOptions()
        options.use_gpu, options.num_threads = False, 1
        # a second orientation would put a second key point on the same place
        options.sift.peak_threshold, options.sift.upright, options.sift.max_num_orientations = peak, upright, 1
        pycolmap.logging.minloglevel = 1  # it would announce, with the time of day, that it is SIFT on a CPU
        self.side, self.extractor = side, pycolmap.FeatureExtractor.create(options, pycolmap.Device.cpu)

    def __call__(self, image: Tensor, mask: Tensor) -> ImageKeyPoints:
        """Key points of an image [H, W, 3] uint8, scored by contrast times scale; descriptors [K, 128]."""
        large, factor = enlarged(image, self.side)
        grey = (large[0] * large.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0).numpy()
        points, found = self.extractor.extract_from_uint8_array((grey * 255).round().astype(np.uint8))
        places = np.array([(p.x, p.y, p.compute_scale()) for p in points]).reshape(-1, 3)
        descriptors = normalize(torch.from_numpy(np.array(found.data)).float().reshape(-1, 128), dim=1)
        # on validation captures the largest are matched best and the strongest found best; this does well in both
        strength = contrast(grey, places) * places[:, 2]
        at, strength = (torch.from_numpy(values).float() for values in (places[:, :2] / factor, strength))
        return _on_mask(at, strength, descriptors, mask)


def contrast(grey: NDArray[np.float32], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """[K] absolute difference of Gaussians of an image [H, W] at places [K, 3] (x, y, scale)."""
    if not len(places):
        return np.zeros(0)
    level = 3 * np.log2(places[:, 2] / FINEST)
    blurred = [gaussian_filter(grey, FINEST * 2 ** (n / 3)) for n in range(max(2, int(level.max()) + 3))]
    volume = np.diff(np.stack(blurred), axis=0)  # [levels, H, W]
    at = np.stack([level, places[:, 1] - 0.5, places[:, 0] - 0.5])
    return np.abs(map_coordinates(volume, at, order=1, mode="nearest"))


class Aliked:
    """ALIKED-n16 (Zhao et al. 2023) as kornia has it, with weights from a file.

    Args:
        weights: aliked-n16.pth of the authors' repository.
        side: an image is enlarged so that its longer side has so many pixels.

    Raises:
        ValueError: the file lacks weights of the network.
    """

    def __init__(self, weights: Path, side: int = SIDE) -> None:
        from kornia.feature.aliked import ALIKED  # optional: the extra `aliked`

        # a threshold of 0 would keep what is above the mean score; so many are kept as there are maxima
        self.network: nn.Module = ALIKED("aliked-n16", max_num_keypoints=2**20, detection_threshold=0.0).eval()
        missing, _ = self.network.load_state_dict(torch.load(weights, weights_only=True), strict=False)
        missing = [name for name in missing if not name.startswith("dkd.")]  # the detector's own grid is no weight
        if missing:
            raise ValueError(f"{weights} lacks {missing[0]!r}: it is not aliked-n16.pth of github.com/Shiaoming/ALIKED")
        self.side = side

    @torch.no_grad()
    def __call__(self, image: Tensor, mask: Tensor) -> ImageKeyPoints:
        """Key points of an image [H, W, 3] uint8; descriptors [K, 128]."""
        large, factor = enlarged(image, self.side)
        found: Any = self.network(large)[0]
        at = (found.keypoints + 0.5) / factor  # kornia's pixel centres are whole numbers
        return _on_mask(at, found.keypoint_scores, found.descriptors, mask)


def aliked_ready(weights: str) -> bool:
    """Whether ALIKED can run: weights are named and kornia is installed.

    Raises:
        FileNotFoundError: the file named is not there.
    """
    if weights and not Path(weights).is_file():
        raise FileNotFoundError(f"{weights} is not there: get aliked-n16.pth from github.com/Shiaoming/ALIKED")
    return bool(weights) and importlib.util.find_spec("kornia") is not None


def enlarged(image: Tensor, side: int) -> tuple[Tensor, float]:
    """An image [1, 3, H, W] in [0, 1] from uint8 [H, W, 3], its longer side at least `side` pixels, and the factor."""
    pixels, factor = image.permute(2, 0, 1)[None].float() / 255, side / max(image.shape[:2])
    if factor <= 1:
        return pixels, 1.0
    size = [round(factor * length) for length in image.shape[:2]]
    return interpolate(pixels, size, mode="bicubic").clamp(0, 1), factor


def _on_mask(at: Tensor, scores: Tensor, descriptors: Tensor, mask: Tensor) -> ImageKeyPoints:
    size = (mask.shape[1], mask.shape[0])
    kept = sample_map(mask[None].float(), at, size)[:, 0] >= 127.5
    order = torch.argsort(scores[kept], descending=True, stable=True)
    return ImageKeyPoints(at[kept][order], scores[kept][order], descriptors[kept][order], size)


def random_pixels(mask: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """[<= count, 2] centres of pixels that a mask [H, W] uint8 covers, drawn at random."""
    inside = covered(mask)
    return inside[torch.from_numpy(rng.permutation(len(inside))[:count])]


def grid_pixels(mask: Tensor, count: int) -> Tensor:
    """[<= count, 2] nodes of the coarsest square grid that has `count` of them on the mask; those too many left out."""
    height, width = mask.shape
    spacing = max(1.0, (len(covered(mask)) / max(count, 1)) ** 0.5)
    while True:
        x, y = ((torch.arange(int(side / spacing)) + 0.5) * side / int(side / spacing) for side in (width, height))
        nodes = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)
        nodes = nodes[sample_map(mask[None].float(), nodes, (width, height))[:, 0] >= 127.5]
        if len(nodes) >= count or spacing <= 1:
            return nodes[torch.linspace(0, len(nodes) - 1, min(count, len(nodes))).round().long()]
        spacing = max(1.0, 0.97 * spacing)


def farthest_pixels(mask: Tensor, count: int) -> Tensor:
    """[<= count, 2] centres of pixels on the mask far from each other (farthest-point sampling)."""
    inside = covered(mask)
    return inside[spread(inside, count)] if len(inside) else inside


def grid_voxels(positions: Tensor, count: int) -> Tensor:
    """[<= count] rows of points [N, 3]: nearest to the middle of the cells of the coarsest grid that fills `count`."""
    side = float((positions.amax(0) - positions.amin(0)).max())
    for cells in range(1, 10_000):
        place = (positions - positions.amin(0)) * cells / max(side, 1e-9)
        _, owner = torch.unique(place.long().clamp_max(cells - 1), dim=0, return_inverse=True)
        if int(owner.max()) + 1 >= min(count, len(positions)):
            break
    off = (place - place.floor() - 0.5).norm(dim=1)
    order = torch.argsort(owner + off / 2)  # by cell, then from its middle; off is less than 1
    first = torch.ones_like(owner, dtype=torch.bool)
    first[1:] = owner[order][1:] != owner[order][:-1]
    rows = order[first]
    return rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).round().long()]


def covered(mask: Tensor) -> Tensor:
    """[K, 2] centres (x, y) of the pixels that a mask [H, W] uint8 covers at least by half."""
    y, x = torch.nonzero(mask >= 128, as_tuple=True)
    return torch.stack([x, y], dim=1) + 0.5


def described(at: Tensor, features: Tensor, size: tuple[int, int]) -> ImageKeyPoints:
    """Key points at places [K, 2] with the descriptors of a map [D, h, w] there; all score 1."""
    return ImageKeyPoints(at, torch.ones(len(at)), normalize(sample_map(features, at, size), dim=1), size)
