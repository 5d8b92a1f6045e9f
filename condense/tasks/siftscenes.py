"""Image -> scene the classical way, by SIFT on the query and on every training view of every scene.

A training view's key points lie where their rays meet the scene's voxels, so a scene is a cloud of points with
RootSIFT descriptors (Lowe 2004; Arandjelovic and Zisserman 2012). Each key point of a query votes for the scene of its
nearest neighbour, unless the nearest of another scene is about as near (Lowe's ratio test, between scenes: views of one
scene show the same point often). The best scenes are verified, by PnP on mutual matches (`sift_pnp`) or by what they
look like (`sift_rendered`; see `SceneQueries.query_photograph`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from condense.cameras import Cameras
from condense.colmap import pycolmap
from condense.keypoints import ImageKeyPoints, KeyPoints, load_keypoints, sample_map, save_keypoints
from condense.links import load_links
from condense.posealign import Photograph
from condense.poses import image_pose, mutual_matches
from condense.ranking import UNCALIBRATED, Answer, Matches
from condense.raymarch import accumulate, render_weights, sample_rays, trilinear
from condense.tasks.scenes import Plan, photograph_of, truths_of
from condense.tasks.scenes_results import Outcome, outcome
from condense.verification import Verified, Verifier, answers, in_rendering
from condense.voxels import VoxelScene, index_volume

VERIFIED = 5  # scenes, as many as of `query_photograph`
RATIO = 0.8  # the largest ratio of distances, nearest scene to next, of a vote; 1 lets all vote
MAX_ERROR = 0.03  # reprojection error of an inlier, as a share of the longer side of the image
RENDERED_WEIGHT = 0.5  # of how a scene stands, rendered, against the share of key points that vote
WEIGHT = 0.1  # of log(1 + inliers) against the share of key points that vote


class Sift:
    """SIFT by COLMAP with RootSIFT descriptors.

    Args:
        enlarge: how often images are enlarged; SIFT doubles once more.
        peak: the least contrast of a key point.
        upright: leave orientation out of the descriptor: the cameras are held level.
    """

    def __init__(self, enlarge: int = 2, peak: float = 0.002, upright: bool = True) -> None:
        options = pycolmap.FeatureExtractionOptions()
        options.use_gpu, options.num_threads = False, 1
        options.sift.peak_threshold, options.sift.upright, options.sift.max_num_orientations = peak, upright, 1
        self.enlarge, self.extractor = enlarge, pycolmap.FeatureExtractor.create(options, pycolmap.Device.cpu)

    def __call__(self, image: Tensor, mask: Tensor) -> ImageKeyPoints:
        """The key points [K] on the mask (uint8 [H, W], 255 = object) of an image [H, W, 3] uint8."""
        grey = (image.float() @ torch.tensor([0.299, 0.587, 0.114]))[None, None] / 255
        large = interpolate(grey, scale_factor=float(self.enlarge), mode="bicubic").clamp(0, 1)[0, 0].numpy()
        places, found = self.extractor.extract_from_uint8_array((large * 255).round().astype(np.uint8))
        at = torch.tensor([(place.x, place.y) for place in places]).reshape(-1, 2) / self.enlarge
        descriptors = normalize(torch.from_numpy(np.array(found.data)).float().reshape(-1, 128), dim=1)
        size = (image.shape[1], image.shape[0])
        kept = sample_map(mask[None].float(), at, size)[:, 0] >= 127.5
        return ImageKeyPoints(at[kept], torch.ones(int(kept.sum())), descriptors[kept], size)


def surface_points(scene: VoxelScene, cameras: Cameras, view: int, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays through image points meet a scene: mean depth along the ray, as volume rendering weighs it.

    Args:
        scene: its voxels.
        cameras: in the scene's capture units.
        view: which camera.
        pixels: [K, 2].

    Returns:
        [K, 3] world points, and [K] bool, whether at least half of the ray's light ends in the scene.
    """
    origins, directions = cameras.pixel_rays(view, pixels)
    index = index_volume(scene)
    samples = sample_rays(origins, directions, scene.grid, index >= 0)
    voxel, corner = trilinear(samples.position, index)
    weights = render_weights((corner * scene.density[voxel]).sum(1), samples)
    sums = accumulate(weights, torch.stack([samples.t.float(), torch.ones_like(weights)], 1), samples)  # [K, 2]
    return origins + directions * (sums[:, :1] / sums[:, 1:].clamp_min(1e-9)), sums[:, 1] >= 0.5


def sift_scene(path: Path, sift: Sift) -> KeyPoints:
    """All training views' SIFT key points of a links file, on its surface; normals are 0."""
    links = load_links(path, ("train",))
    points, descriptors = [torch.zeros(0, 3)], [torch.zeros(0, 128)]
    for view in links.views:
        found = sift(view.image, view.mask)
        at, hit = surface_points(links.scene, view.camera, 0, found.positions)
        points.append(at[hit])
        descriptors.append(found.descriptors[hit])
    positions = torch.cat(points)
    zeros = torch.zeros_like(positions)
    return KeyPoints(positions, zeros, torch.ones(len(positions)), torch.cat(descriptors), zeros)


@dataclass(frozen=True)
class Voted:
    """What an image's key points say of the scenes that it may show.

    Args:
        image: its key points.
        votes: of each scene by name, the share of the key points that vote for it.
        nearest: of the best VERIFIED scenes, best first, the rows of their points that are nearest to the image's.
    """

    image: ImageKeyPoints
    votes: dict[str, float]
    nearest: dict[str, Tensor]


def voted(image: ImageKeyPoints, scenes: Mapping[str, KeyPoints], ratio: float) -> Voted:
    """Which of some scenes an image's key points vote for."""
    if not scenes or not len(image):
        return Voted(image, dict.fromkeys(scenes, 0.0), {})
    best, rows = [], []
    for scene in scenes.values():
        cosine = scene.descriptors @ image.descriptors.T  # [N, Q]; large, so one scene's at a time
        best.append(cosine.amax(0) if len(scene) else cosine.new_full((len(image),), -1.0))
        rows.append(cosine.argmax(0).unique() if len(scene) else torch.zeros(0, dtype=torch.long))
    cosines = torch.stack(best)  # [S, Q]
    distance = (2 - 2 * cosines).clamp_min(0).sqrt()
    two = distance.topk(min(2, len(scenes)), dim=0, largest=False)
    clear = two.values[0] <= ratio * two.values[1] if len(scenes) > 1 else torch.ones(len(image), dtype=torch.bool)
    counts = torch.bincount(two.indices[0][clear], minlength=len(scenes)).double() / len(image)
    votes, names = (counts + 1e-3 * cosines.double().mean(1)).numpy(), list(scenes)  # the mean breaks ties
    first = np.argsort(-votes, kind="stable")[:VERIFIED]
    return Voted(image, dict(zip(names, votes.tolist(), strict=True)), {names[i]: rows[i] for i in first})


def sift_answers(voted: Voted, scenes: Mapping[str, KeyPoints], verifier: Verifier) -> list[Answer]:
    """The scenes an image may show, best first; the first by votes are verified."""
    names = list(voted.votes)
    found: dict[int, Verified] = {}
    for name, rows in voted.nearest.items():
        near = scenes[name][rows]
        one = verifier.posed(name, near, mutual_matches(voted.image.descriptors @ near.descriptors.T))
        if one is not None:
            own = np.stack([one.inliers[:, 0], rows.numpy()[one.inliers[:, 1]]], axis=1)
            found[names.index(name)] = replace(one, inliers=own)
    return answers(names, np.array(list(voted.votes.values())), found, verifier, UNCALIBRATED)


def by_pnp(image: ImageKeyPoints, K: Tensor) -> Verifier:
    """Verifies by PnP on the matches; K [3, 3] in pixels."""

    def posed(_: str, scene: KeyPoints, matches: Matches) -> Verified | None:
        pixels, points = image.positions[matches[:, 0]], scene.positions[matches[:, 1]]
        found = image_pose(pixels, points, K, image.size, MAX_ERROR * max(image.size))
        if found is None:
            return None
        inliers = matches[found.inliers]
        bonus = WEIGHT * float(np.log1p(len(inliers)))
        return Verified(found.T_world_from_camera, inliers, float(found.inliers.mean()), bonus)

    return Verifier(posed)


def sift_votes(kept: Path, plan: Plan, sift: Sift | None = None, ratio: float = RATIO) -> list[Voted]:
    """What the key points of each query of a plan vote for. One job of `parallel_map`.

    Args:
        kept: HDF5 file that keeps the scenes' key points.
        plan: what is searched and asked.
        sift: the detector; by default what was best on validation captures.
        ratio: see RATIO.
    """
    sift = sift or Sift()
    if not kept.is_file():
        save_keypoints(kept, {name: sift_scene(path, sift) for name, path in plan.scenes.items()})
    scenes, found = _loaded(kept, plan), []
    for query in plan.queries():
        there = {name: scene for name, scene in scenes.items() if name not in query.leave_out}
        found.append(voted(sift(query.image, query.mask), there, ratio))
    return found


def sift_candidates(plan: Plan, votes: Sequence[Voted]) -> list[tuple[Photograph, str]]:
    """The photographs and scenes that `sift_outcomes` renders."""
    queries = zip(plan.queries(), votes, strict=True)
    return [(photograph_of(query), name) for query, one in queries for name in one.nearest]


def sift_outcomes(kept: Path, plan: Plan, votes: Sequence[Voted]) -> dict[str, list[Outcome]]:
    """All queries of a plan, by `sift_pnp` and `sift_rendered`. One job of `parallel_map`. Arguments as `sift_votes`.

    Args:
        votes: of each query.
    """
    scenes, truths = _loaded(kept, plan), truths_of(plan)
    found: dict[str, list[Outcome]] = {"sift_pnp": [], "sift_rendered": []}
    for query, one in zip(plan.queries(), votes, strict=True):
        photograph = photograph_of(query)
        rendering = in_rendering(one.image, photograph, plan.voxels, MAX_ERROR, RENDERED_WEIGHT, 0, plan.poses)
        for method, verifier in (("sift_pnp", by_pnp(one.image, photograph.K)), ("sift_rendered", rendering)):
            best = sift_answers(one, scenes, verifier)[:10] if len(one.image) else []
            found[method].append(outcome(query, best, truths.get(query.scene)))
    return found


def _loaded(kept: Path, plan: Plan) -> dict[str, KeyPoints]:
    loaded = load_keypoints(kept, list(plan.scenes))
    return {name: scene for name, scene in loaded.items() if isinstance(scene, KeyPoints)}
