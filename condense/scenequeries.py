"""What can be asked of condensed scenes, wherever they are kept.

A query takes two steps. A shortlist: every scene's few pooled vectors against the query's. Then key points: each of
the query's finds its most similar in each scene of the shortlist; mutual matches with the most similar few are
verified by geometry, PnP for an image and a rigid alignment for a scene. Nothing is trained or fitted to a scene at
query time. Not differentiable.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import normalize

from condense.keypoints import ImageKeyPoints, KeyPoints
from condense.posealign import Photograph
from condense.poses import mutual_matches
from condense.ranking import UNCALIBRATED, Answer, local_similarity
from condense.verification import Verified, Verifier, answers, in_image, in_rendering, in_scene, polished
from condense.voxels import VoxelScene


class SceneQueries(ABC):
    """Queries by an image or a scene; a store says what the shortlist is and what key points its scenes have.

    Args:
        dim: length of a descriptor.
        calibration: weights of scores, by kind of query: "image", "photograph", "scene".
    """

    dim: int
    calibration: dict[str, list[float]]

    @abstractmethod
    def scene(self, name: str) -> KeyPoints:
        """The key points of a scene. KeyError: no scene has that name."""

    @abstractmethod
    def _shortlist(self, query: Tensor, scores: Tensor, count: int, leave_out: Collection[str]) -> list[str]:
        """Names of the scenes whose pooled vectors are nearest to those of a query; `leave_out` are none of them."""

    @abstractmethod
    def _descriptors(self, names: Sequence[str]) -> list[Tensor]:
        """Unit descriptors [K, D] of each of some scenes."""

    def query_image(
        self,
        keypoints: ImageKeyPoints,
        K: ArrayLike,
        top: int = 10,
        shortlist: int = 50,
        verify: int = 2,
        max_error: float = 0.03,
        weight: float = 0.02,
        worst: float = 0.25,
        seed: int = 0,
        leave_out: Collection[str] = (),
    ) -> list[Answer]:
        """The scenes that an image may show, best first; [] for an image with no key points.

        Scenes rank by similarity + weight * agreement: a pose is searched for (`posesearch`, which says what agrees),
        starting also from PnP on mutual matches. A scene that could not rank first even if all agreed is not verified.

        Args:
            keypoints: of the image.
            K: [3, 3] intrinsics in pixels, of an image of `keypoints.size`.
            top: answers at most.
            shortlist: scenes whose key points are compared.
            verify: scenes whose geometry is, at most; they have poses.
            max_error: reprojection error of an inlier, as a share of the longer side of the image.
            weight: of agreement against similarity: among small images it only decides between near equals.
            worst: share of the key points that similarity goes by, those that a scene explains worst: near-duplicates
                differ in a part. 1 takes all, for an image that shows much that its scene may lack.
            seed: of RANSAC.
            leave_out: names that are no answer.

        Raises:
            ValueError: the descriptors do not fit, or K is no matrix of intrinsics.
        """
        verifier = in_image(keypoints, K, max_error, weight, seed)
        arguments = (keypoints.descriptors, keypoints.scores, verifier, shortlist, verify)
        found = self._query("image", *arguments, most=weight, worst=worst, leave_out=leave_out)
        if found:
            found[0] = polished(found[0], keypoints, self.scene(found[0].name), K, max_error)
        return found[:top]

    def query_photograph(
        self,
        keypoints: ImageKeyPoints,
        photograph: Photograph,
        voxels: Callable[[str], VoxelScene],
        top: int = 10,
        shortlist: int = 50,
        verify: int = 5,
        max_error: float = 0.03,
        weight: float = 0.25,
        worst: float = 0.25,
        seed: int = 0,
        kept: Path | None = None,
        leave_out: Collection[str] = (),
    ) -> list[Answer]:
        """As `query_image`, verified by what the scenes look like: slower, and far surer of scene and pose.

        The first `verify` scenes are rendered from all round by upright cameras (without a mask: from poses that their
        key points make likely) and laid over the photograph (`posealign`). They rank by similarity + weight * how they
        stand against each other, in [0, 1] (`lookalikes`); fit is 1 less the cost.

        Args:
            keypoints: of the photograph.
            photograph: itself, with its mask and intrinsics.
            voxels: of a scene of the repository, by name; of 64 cells along the longest side or so.
            top: answers at most.
            shortlist: scenes whose key points are compared.
            verify: scenes that are rendered, at most; they have poses.
            max_error: as of `query_image`.
            weight: of that against similarity. It decides wherever scenes look other; where poses go wrong, as they may
                without a mask, all look equally bad, and similarity does.
            worst: as of `query_image`.
            seed: of RANSAC.
            kept: folder that keeps poses of photographs with masks, for the next that asks the same.
            leave_out: names that are no answer.

        Raises:
            ValueError: the descriptors do not fit.
        """
        verifier = in_rendering(keypoints, photograph, voxels, max_error, weight, seed, kept)
        arguments = (keypoints.descriptors, keypoints.scores, verifier, shortlist, verify)
        return self._query("photograph", *arguments, most=weight, worst=worst, leave_out=leave_out)[:top]

    def candidates(
        self,
        keypoints: ImageKeyPoints,
        shortlist: int = 50,
        verify: int = 5,
        weight: float = 0.25,
        worst: float = 0.25,
        leave_out: Collection[str] = (),
    ) -> list[str]:
        """The scenes that `query_photograph` would render, best first; arguments and errors as there."""
        if not len(keypoints):
            return []
        names, similarity, _ = self._compared(keypoints.descriptors, keypoints.scores, shortlist, worst, leave_out)
        order = similarity.argsort(descending=True, stable=True)[:verify].tolist()
        return [names[place] for place in order if similarity[place] + weight > similarity[order[0]]]

    def query_scene(
        self,
        keypoints: KeyPoints,
        top: int = 10,
        shortlist: int = 50,
        verify: int = 5,
        max_error: float = 0.04,
        weight: float = 0.05,
        seed: int = 0,
        scale: bool = False,
        leave_out: Collection[str] = (),
    ) -> list[Answer]:
        """The scenes that a scene may be, best first; [] for a scene with no key points. They
        rank by similarity + weight * log(1 + inliers). As `query_image`, but for:

        Args:
            keypoints: of the scene that is asked for.
            max_error: distance of an inlier from its match, as a share of the diagonal of the query's bounding box.
            scale: whether the scenes may differ in scale.
            leave_out: names that are no answer; its own, when a scene of the repository looks for duplicates.
        """
        verifier = in_scene(keypoints, max_error, weight, seed, scale)
        arguments = (keypoints.descriptors, keypoints.scores, verifier, shortlist, verify)
        return self._query("scene", *arguments, leave_out=leave_out)[:top]

    def _query(
        self,
        kind: str,
        descriptors: Tensor,
        scores: Tensor,
        verifier: Verifier,
        shortlist: int,
        verify: int,
        most: float = np.inf,
        worst: float = 1.0,
        leave_out: Collection[str] = (),
    ) -> list[Answer]:
        """The answers from the shortlist, in order; `most`: what geometry adds to a scene's rank at most."""
        if not len(descriptors):
            return []
        names, similarity, cosines = self._compared(descriptors, scores, shortlist, worst, leave_out)
        if not names:
            return []
        found: dict[int, Verified] = {}
        first = -np.inf
        for place in similarity.argsort(descending=True, stable=True)[:verify].tolist():
            if similarity[place] + most <= first:
                break
            one = verifier.posed(names[place], self.scene(names[place]), mutual_matches(cosines[place].T))
            if one is not None:
                found[place] = one
            first = max(first, float(similarity[place]) + (one.bonus if one else 0.0))
        weights = self.calibration.get(kind, UNCALIBRATED)
        return answers(names, similarity.double().numpy(), found, verifier, weights)

    def _compared(
        self, descriptors: Tensor, scores: Tensor, shortlist: int, worst: float, leave_out: Collection[str]
    ) -> tuple[list[str], Tensor, list[Tensor]]:
        """The shortlist of a query's key points; how similar they are to each scene's, and the cosines of all pairs."""
        query = normalize(self._checked(descriptors, "the query"), dim=1)
        names = self._shortlist(query, scores, shortlist, leave_out)
        if not names:
            return [], query.new_zeros(0), []
        return names, *local_similarity(query, self._descriptors(names), worst)

    def _checked(self, descriptors: Tensor, what: str) -> Tensor:
        if descriptors.ndim != 2 or descriptors.shape[1] != self.dim:
            raise ValueError(f"{what} has descriptors of shape {tuple(descriptors.shape)}, not (K, {self.dim})")
        if not torch.isfinite(descriptors).all():
            raise ValueError(f"{what} has descriptors that are not finite: look at the network and the image")
        return descriptors.detach().float().cpu()
