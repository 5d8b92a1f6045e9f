"""Key points of a scene, from its voxels alone or with the help of its images, and of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from condense.devices import device_of
from condense.keypoints import ImageKeyPoints, KeyPoints, sample_map, soft_places, spread_maxima, voxel_normals
from condense.links import LinkedView, as_batch
from condense.model import voxel_features
from condense.sparse import SparseModel, keypoint_score, view_weights
from condense.voxels import VoxelScene

SEEN = 0.05  # summed weight in the views from which they describe a voxel


@torch.no_grad()
def condense_scene(model: SparseModel, scene: VoxelScene, count: int = 256) -> KeyPoints:
    """The decorated key points of a scene, from its voxels alone: no image is looked at.

    Args:
        model: in evaluation mode.
        scene: the voxels.
        count: at most so many key points, spread over the scene (see `best_spread`).
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
    described, scores = describe_voxels(model, voxel_features(model.dense.net3d, [scene])[0])
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
        descriptors, scores = describe_images(model, [view.image])
        maps = torch.cat([descriptors[0], scores])
        total += weights[:, number, None] * sample_map(
            maps, pixels[:, number], (view.image.shape[1], view.image.shape[0])
        )
    seen = weights.sum(1)
    return normalize(total[:, :-1], dim=1), total[:, -1] / seen.clamp_min(1e-6), seen


@torch.no_grad()
def condense_features(model: SparseModel, scene: VoxelScene, dense: Tensor, count: int = 256) -> KeyPoints:
    """The key points of a scene whose voxels have the dense features [N, D], such as lifted ones."""
    return _decorated(scene, *describe_voxels(model, dense), count)


@torch.no_grad()
def describe_voxels(model: SparseModel, dense: Tensor) -> tuple[Tensor, Tensor]:
    """Descriptors [N, D] and scores [N] of dense features [N, D], on the CPU."""
    descriptors, logits = model.voxel_head(dense.to(device_of(model)))
    return descriptors.cpu(), keypoint_score(logits).cpu()


@torch.no_grad()
def describe_images(model: SparseModel, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Descriptors [B, D, H/2, W/2] and scores [B, H/2, W/2] of images of one size, on the CPU."""
    _, descriptors, logits = model.image_maps(as_batch(images).to(device_of(model)))
    return descriptors.cpu(), keypoint_score(logits.movedim(1, -1)).cpu()


def _decorated(scene: VoxelScene, descriptors: Tensor, scores: Tensor, count: int) -> KeyPoints:
    return best_spread(KeyPoints(scene.centres, voxel_normals(scene), scores, descriptors, scene.colour), count)


def best_spread(points: KeyPoints, count: int = 256) -> KeyPoints:
    """`count` of a scene's key points that are far apart (`spread_maxima`), standing for all: see `merged`.

    No score silences its near equals here: they lie side by side, and would leave the rest of a scene bare.
    """
    rows = spread_maxima(points.positions, points.scores, count, robustness=1.0)
    return merged(points, rows) if len(rows) < len(points) else points[rows]


def merged(points: KeyPoints, rows: Tensor) -> KeyPoints:
    """Some of a scene's key points, each with the mean descriptor, of unit length, of all those nearest to it.

    What is left out still counts, and chance does not decide which voxel of a surface describes it.
    """
    kept = points[rows]
    _, nearest = cKDTree(kept.positions.numpy()).query(points.positions.numpy())
    sums = torch.zeros_like(kept.descriptors).index_add_(0, torch.from_numpy(nearest), points.descriptors)
    return replace(kept, descriptors=normalize(sums, dim=1))


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
    descriptors, scores = describe_images(model, images)
    height, width = images[0].shape[:2]
    found = []
    for number, (score, features) in enumerate(zip(scores, descriptors, strict=True)):
        cell = score.new_tensor([width / score.shape[1], height / score.shape[0]])
        places = soft_places(score)[0].flatten(0, 1) * cell
        inside = torch.ones(score.numel(), dtype=torch.bool)
        if masks is not None:
            inside = interpolate(masks[number][None, None].float(), score.shape, mode="area").flatten() >= 127.5
        places, strength = places[inside], score.flatten()[inside]
        kept = spread_maxima(places, strength, count, robustness=1.0)  # maxima first
        described = normalize(sample_map(features, places[kept], (width, height)), dim=1)
        found.append(ImageKeyPoints(places[kept], strength[kept], described, (width, height)))
    return found
