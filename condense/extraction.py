"""Key points of a scene, from its voxels alone or with the help of its images, and of an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d, normalize

from condense.keypoints import ImageKeyPoints, KeyPoints, sample_map, spread_maxima, voxel_normals
from condense.links import LinkedView, as_batch
from condense.model import voxel_features
from condense.sparse import SparseModel, view_weights
from condense.voxels import VoxelScene

SEEN = 0.05  # summed weight in the views from which they describe a voxel


@torch.no_grad()
def condense_scene(model: SparseModel, scene: VoxelScene, count: int = 256) -> KeyPoints:
    """The decorated key points of a scene, from its voxels alone: no image is looked at.

    Args:
        model: in evaluation mode.
        scene: the voxels.
        count: at most so many key points, spread over the scene (see `spread_maxima`).
    """
    return condense_features(model, scene, voxel_features(model.dense.net3d, [scene])[0], count)


@torch.no_grad()
def condense_views(model: SparseModel, scene: VoxelScene, views: Sequence[LinkedView], count: int = 256) -> KeyPoints:
    """The decorated key points of a scene with posed images, whose descriptors are carried to the voxels.

    A voxel that the views see gets the mean of its descriptors and of its scores in them; the 3D network alone
    describes the others.

    Args:
        model: in evaluation mode.
        scene: the voxels.
        views: images of the scene with their cameras and ray operators.
        count: at most so many key points.
    """
    described, logits = model.voxel_head(voxel_features(model.dense.net3d, [scene])[0])
    scores = logits.sigmoid()
    lifted, lifted_scores, seen = lift_views(model, scene, views)
    known = seen > SEEN
    descriptors = torch.where(known[:, None], lifted, described)
    return _decorated(scene, descriptors, torch.where(known, lifted_scores, scores), count)


@torch.no_grad()
def lift_views(model: SparseModel, scene: VoxelScene, views: Sequence[LinkedView]) -> tuple[Tensor, Tensor, Tensor]:
    """What the images say of each voxel: means over the views, weighted by how much of a view the voxel makes up.

    Returns:
        descriptors [N, D], unit length; scores [N] in [0, 1]; summed weights [N], 0 where no view sees a voxel.
    """
    pixels, weights = view_weights(scene, views)
    total = torch.zeros(len(scene), model.dense.student.dim + 1)
    for number, view in enumerate(views):
        _, descriptors, logits = model.image_maps(as_batch([view.image]))
        at, size = pixels[:, number], (view.image.shape[1], view.image.shape[0])
        scores = logits.sigmoid()
        found = torch.cat([sample_map(descriptors[0], at, size), sample_map(scores, at, size)], dim=1)
        total += weights[:, number, None] * found
    seen = weights.sum(1)
    return normalize(total[:, :-1], dim=1), total[:, -1] / seen.clamp_min(1e-6), seen


@torch.no_grad()
def condense_features(model: SparseModel, scene: VoxelScene, dense: Tensor, count: int = 256) -> KeyPoints:
    """The key points of a scene whose voxels have the dense features [N, D], such as lifted ones."""
    descriptors, logits = model.voxel_head(dense)
    return _decorated(scene, descriptors, logits.sigmoid(), count)


def _decorated(scene: VoxelScene, descriptors: Tensor, scores: Tensor, count: int) -> KeyPoints:
    kept = spread_maxima(scene.centres, scores, count)
    normals = voxel_normals(scene)[kept]
    return KeyPoints(scene.centres[kept], normals, scores[kept], descriptors[kept], scene.colour[kept])


@torch.no_grad()
def detect_image(model: SparseModel, image: Tensor, mask: Tensor | None = None, count: int = 256) -> ImageKeyPoints:
    """The key points of one image.

    Args:
        model: in evaluation mode.
        image: [H, W, 3] uint8.
        mask: [H, W] uint8 or None; only places that it covers at least by half are taken.
        count: at most so many.
    """
    return detect_images(model, [image], None if mask is None else [mask], count)[0]


@torch.no_grad()
def detect_images(
    model: SparseModel, images: Sequence[Tensor], masks: Sequence[Tensor] | None = None, count: int = 256
) -> list[ImageKeyPoints]:
    """`detect_image` of several images of one size."""
    _, descriptors, logits = model.image_maps(as_batch(images))
    scores = logits.sigmoid()  # [B, H, W]
    height, width = images[0].shape[:2]
    found = []
    for number, (score, features) in enumerate(zip(scores, descriptors, strict=True)):
        places, strength = best_of_cells(score, (width, height))
        if masks is not None:
            cells = (score.shape[0] // 2, score.shape[1] // 2)
            inside = interpolate(masks[number][None, None].float(), cells, mode="area").flatten() >= 127.5
            places, strength = places[inside], strength[inside]
        kept = spread_maxima(places, strength, count)
        described = normalize(sample_map(features, places[kept], (width, height)), dim=1)
        found.append(ImageKeyPoints(places[kept], strength[kept], described, (width, height)))
    return found


def best_of_cells(score: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The best place [H W / 4, 2] (x, y) of each 2 x 2 cell of a map of scores [H, W], and its score [H W / 4].

    Args:
        score: that covers the image.
        size: width and height of the image, in pixels.
    """
    rows, columns = score.shape
    best, index = max_pool2d(score[None], 2, return_indices=True)
    at = torch.stack([index % columns, index // columns], dim=-1).flatten(0, -2) + 0.5
    return at * score.new_tensor([size[0] / columns, size[1] / rows]), best.flatten()
