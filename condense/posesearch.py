"""A camera's pose by search: where do the scene's key points, projected, agree with the image's key points?

Matches by descriptor alone are too seldom right in small images for RANSAC: neighbouring places look alike. But all
key points together say a lot. A pose is judged by how well both sets of key points lie on each other, in position and
descriptor at once: the gain of a pair is its cosine less STEEP times its distance in the image, the agreement the
mean over the visible key points of the scene, and over those of the image, of the highest gain: a chamfer distance.
Poses on a grid of rotations, each at the distance that gives the scene its size in the image, are tried; the best are
refined by iterated closest points: every key point takes its best partner, and Gauss-Newton moves the camera. Cameras
are taken to stand upright (world z up), as most do. Not differentiable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from condense.keypoints import ImageKeyPoints, KeyPoints

STEEP, REACH = 3.0, 0.1  # cosine lost by a distance of one image width; distances from REACH widths on count the same
PITCHES = range(-30, 76, 15)  # degrees down
YAWS = 16
COARSE, FINE = 64, 256  # key points on either side that the search and the last steps use
NEAR = 1e-3  # depth from which a point is before the camera


@dataclass(frozen=True)
class Problem:
    """Key points of an image and a scene, as tensors.

    Args:
        pixels: [Q, 2] in units of the image's longer side, from the principal point.
        focal: [2] in the same unit.
        points: [K, 3]; normals: [K, 3].
        cosine: [K, Q] of their descriptors.
    """

    pixels: Tensor
    focal: Tensor
    points: Tensor
    normals: Tensor
    cosine: Tensor

    def some(self, count: int) -> Problem:
        """The same with at most `count` key points on either side, evenly taken."""
        q, k = (_evenly(len(values), count) for values in (self.pixels, self.points))
        return Problem(self.pixels[q], self.focal, self.points[k], self.normals[k], self.cosine[k][:, q])


def _evenly(total: int, count: int) -> Tensor:
    return torch.linspace(0, total - 1, min(total, count)).round().long()


def problem(image: ImageKeyPoints, scene: KeyPoints, K: ArrayLike) -> Problem:
    """Key points made ready for the functions below; K [3, 3] in pixels."""
    K = torch.as_tensor(np.asarray(K), dtype=torch.float32)
    side = max(image.size)
    cosine = scene.descriptors.float() @ image.descriptors.float().T
    focal = K[[0, 1], [0, 1]] / side
    return Problem((image.positions - K[:2, 2]) / side, focal, scene.positions, scene.normals, cosine)


def search_pose(problem: Problem, given: Tensor | None = None, kept: int = 12) -> tuple[Tensor, float]:
    """T_world_from_camera [4, 4] of the highest agreement found with few key points, and that agreement.

    Args:
        problem: at least 3 key points on either side; COARSE of them are used.
        given: [G, 4, 4] poses that are refined as well, such as of PnP.
        kept: poses of the grid that are refined.
    """
    return _best(*likely_poses(problem, given, kept), problem.some(COARSE))


def likely_poses(problem: Problem, given: Tensor | None = None, kept: int = 12) -> tuple[Tensor, Tensor]:
    """R [B, 3, 3] and c [B, 3] of the poses that `search_pose` chooses from. Arguments as there."""
    rough = problem.some(COARSE)
    R = rotation_grid()
    c = framing_centres(R, rough)
    best = agreement(R, c, rough).topk(min(kept, len(R))).indices
    R, c = R[best], c[best]
    if given is not None:
        R, c = torch.cat([R, given[:, :3, :3]]), torch.cat([c, given[:, :3, 3]])
    return refined(R, c, rough, 8, steep=10.0, scale=0.05)


def polished_pose(T_world_from_camera: Tensor, problem: Problem) -> tuple[Tensor, float]:
    """A pose [4, 4] near the one given, refined with FINE key points, and its agreement."""
    fine = problem.some(FINE)
    R, c = refined(T_world_from_camera[None, :3, :3], T_world_from_camera[None, :3, 3], fine, 12, steep=30.0, scale=0.1)
    return _best(R, c, fine)


def _best(R: Tensor, c: Tensor, problem: Problem) -> tuple[Tensor, float]:
    value = agreement(R, c, problem)
    T = torch.eye(4)
    T[:3, :3], T[:3, 3] = R[value.argmax()], c[value.argmax()]
    return T, float(value.max())


def rotation_grid(yaws: int = YAWS, pitches: range = PITCHES) -> Tensor:
    """[B, 3, 3] R_world_from_camera of upright cameras, OpenCV axes."""
    yaw, pitch = torch.meshgrid(
        torch.arange(yaws) * 2 * math.pi / yaws, torch.tensor(list(pitches)) * math.pi / 180, indexing="ij"
    )
    yaw, pitch, zero = yaw.flatten(), pitch.flatten(), torch.zeros(yaw.numel())
    forward = torch.stack([yaw.cos() * pitch.cos(), yaw.sin() * pitch.cos(), -pitch.sin()], dim=1)
    right = torch.stack([yaw.sin(), -yaw.cos(), zero], dim=1)
    return torch.stack([right, torch.linalg.cross(forward, right), forward], dim=2)


def framing_centres(R: Tensor, problem: Problem) -> Tensor:
    """[B, 3] camera centres that give visible key points the mean and spread of the image's (weak perspective)."""
    rays = problem.pixels / problem.focal
    middle, spread = rays.mean(0), rays.var(dim=0, unbiased=False).sum().sqrt()
    turned = problem.points @ R  # [B, K, 3] camera axes about the world's origin
    weight = (problem.normals @ -R[:, :, 2:] >= 0).float()  # [B, K, 1]
    weight = weight / weight.sum(1, keepdim=True).clamp_min(1)
    mean = (weight * turned).sum(1)
    depth = ((turned - mean[:, None])[..., :2].square() * weight).sum((1, 2)).sqrt() / spread.clamp_min(1e-6)
    t = torch.cat([middle * depth[:, None], depth[:, None]], dim=1) - mean
    return -(R @ t[:, :, None])[:, :, 0]


def gains(R: Tensor, c: Tensor, problem: Problem, steep: float = STEEP) -> tuple[Tensor, Tensor]:
    """Gain [B, K, Q] of each pair in each of B poses, -inf for key points out of sight, and [B, K] those in sight."""
    camera = (problem.points - c[:, None]) @ R  # [B, K, 3]
    seen = (((c[:, None] - problem.points) * problem.normals).sum(2) >= 0) & (camera[..., 2] > NEAR)
    shown = camera[..., :2] / camera[..., 2:].clamp_min(NEAR) * problem.focal
    distance = torch.cdist(shown, problem.pixels.expand(len(R), -1, -1), compute_mode="donot_use_mm_for_euclid_dist")
    gain = torch.sub(problem.cosine, distance.clamp_max_(REACH), alpha=steep)
    return gain.masked_fill_(~seen[..., None], -torch.inf), seen


def agreement(R: Tensor, c: Tensor, problem: Problem) -> Tensor:
    """[B] how well the key points agree in each of B poses; -inf where none is in sight."""
    gain, seen = gains(R, c, problem)
    scene = torch.where(seen, gain.amax(2), torch.zeros(())).sum(1) / seen.sum(1).clamp_min(1)
    return (scene + gain.amax(1).mean(1)) / 2


def refined(R: Tensor, c: Tensor, problem: Problem, steps: int, steep: float, scale: float) -> tuple[Tensor, Tensor]:
    """B poses after `steps` of iterated closest points.

    Args:
        R: [B, 3, 3]; c: [B, 3].
        problem: the key points.
        steps: how many.
        steep: as STEEP, of partners: steeper is more precise, flatter reaches farther.
        scale: distance, in image widths, from which a pair counts little (Geman-McClure weights).
    """
    poses, scene, image = len(R), len(problem.points), len(problem.pixels)
    every = torch.arange(scene).expand(poses, -1), torch.arange(image).expand(poses, -1)
    for _ in range(steps):
        gain, seen = gains(R, c, problem, steep)
        rows, columns = torch.cat([every[0], gain.argmax(1)], 1), torch.cat([gain.argmax(2), every[1]], 1)
        weight = torch.cat([seen / seen.sum(1, keepdim=True).clamp_min(1), torch.full((poses, image), 1 / image)], 1)
        weight = weight * seen.gather(1, rows)
        R, c = _moved(R, c, problem.points[rows], problem.pixels[columns], weight, problem.focal, scale)
    return R, c


def _moved(
    R: Tensor, c: Tensor, points: Tensor, pixels: Tensor, weight: Tensor, focal: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """One Gauss-Newton step of each camera: it turns about the middle of its points, and shifts.

    Args:
        R: [B, 3, 3]; c: [B, 3].
        points: [B, M, 3] with the pixels [B, M, 2] they should show at, and weights [B, M].
        pixels, weight, focal, scale: see above.
    """
    camera = (points - c[:, None]) @ R
    pivot = camera.mean(1, keepdim=True)
    x, y, z = camera.unbind(2)
    z = z.clamp_min(NEAR)
    off = torch.stack([x / z, y / z], 2) * focal - pixels
    weight = weight / (1 + off.square().sum(2) / scale**2).square()
    zero = torch.zeros_like(z)
    slope = torch.stack([1 / z, zero, -x / z.square(), zero, 1 / z, -y / z.square()], 2).unflatten(2, (2, 3))
    slope = slope * focal[:, None]  # [B, M, 2, 3] of the pixel by the camera point
    J = torch.cat([torch.linalg.cross((camera - pivot)[:, :, None].expand_as(slope), slope), slope], 3)
    H = torch.einsum("bm,bmij,bmik->bjk", weight, J, J)
    H = H + torch.diag_embed(1e-3 * H.diagonal(dim1=1, dim2=2) + 1e-9)
    step = -torch.linalg.solve(H, torch.einsum("bm,bmij,bmi->bj", weight, J, off))
    return turned(R, c, pivot[:, 0], step[:, :3].clamp(-0.3, 0.3), step[:, 3:])


def turned(R: Tensor, c: Tensor, pivot: Tensor, rotation: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Cameras for which the world seems turned about a pivot, then shifted.

    Args:
        R: [B, 3, 3]; c: [B, 3].
        pivot: [B, 3] in the cameras' frames.
        rotation: [B, 3] rotation vectors in the cameras' frames, radians.
        shift: [B, 3] in the cameras' frames.
    """
    x, y, z = rotation.unbind(1)
    zero = torch.zeros_like(x)
    turn = torch.linalg.matrix_exp(torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).unflatten(1, (3, 3)))
    # camera points go to turn (x - pivot) + pivot + shift
    offset = pivot + shift - (turn @ pivot[:, :, None])[:, :, 0]
    R_new = R @ turn.mT
    return R_new, c - (R_new @ offset[:, :, None])[:, :, 0]


def partners(T_world_from_camera: ArrayLike, problem: Problem, radius: float) -> NDArray[np.int64]:
    """[M, 2] key points (image, scene) that are each other's best partner in a pose, within `radius` image widths."""
    T = torch.as_tensor(np.asarray(T_world_from_camera), dtype=torch.float32)[None]
    gain, _ = gains(T[:, :3, :3], T[:, :3, 3], problem)
    level, _ = gains(T[:, :3, :3], T[:, :3, 3], problem, steep=1.0)
    gain = gain[0].masked_fill(problem.cosine - level[0] > radius, -torch.inf)  # the difference is the distance
    best, row = gain.max(dim=0)
    columns = torch.arange(len(row))
    mutual = (gain.argmax(dim=1)[row] == columns) & (best > -torch.inf)
    return torch.stack([columns[mutual], row[mutual]], dim=1).numpy()
