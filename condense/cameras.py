"""Pinhole cameras: rays and projection, in one convention.

Frames: OpenCV camera axes (x right, y down, z forward). `T_world_from_camera` maps camera points to world
points. Pixels: `K` is in pixels and pixel centres lie at +0.5, so the image covers [0, W] x [0, H].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cameras:
    """The pinhole cameras of V views.

    Args:
        K: [V, 3, 3] float32, intrinsics in pixels.
        T_world_from_camera: [V, 4, 4] float32, rigid, OpenCV axes.
        sizes: [V, 2] int64, (width, height) in pixels.

    Raises:
        ValueError: a shape is not as above.
    """

    K: Tensor
    T_world_from_camera: Tensor
    sizes: Tensor

    def __post_init__(self) -> None:
        views = len(self.K)
        wanted = {"K": (views, 3, 3), "T_world_from_camera": (views, 4, 4), "sizes": (views, 2)}
        for name, shape in wanted.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"Cameras.{name} has shape {tuple(getattr(self, name).shape)}, not {shape}")

    def __len__(self) -> int:
        return len(self.K)

    def __getitem__(self, views: Sequence[int] | Tensor | slice) -> Cameras:
        """The cameras of some views (a list, tensor or slice; not an int)."""
        return Cameras(self.K[views], self.T_world_from_camera[views], self.sizes[views])

    def to(self, target: Any) -> Cameras:
        """The same cameras on another device."""
        return Cameras(self.K.to(target), self.T_world_from_camera.to(target), self.sizes.to(target))

    @property
    def centres(self) -> Tensor:
        """[V, 3] camera centres in the world frame."""
        return self.T_world_from_camera[:, :3, 3]

    def resized(self, sizes: Tensor) -> Cameras:
        """The same cameras for images resampled to `sizes` ([V, 2] or [2], width and height)."""
        sizes = sizes.to(self.sizes).expand_as(self.sizes)
        factor = sizes.to(self.K) / self.sizes.to(self.K)  # [V, 2]
        K = self.K.clone()
        K[:, :2] *= factor[:, :, None]
        return Cameras(K, self.T_world_from_camera, sizes)

    def pixel_rays(self, view: int, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """World rays through image points.

        Args:
            view: index of the view.
            pixels: [N, 2] float (x, y); the centre of the top left pixel is (0.5, 0.5).

        Returns:
            origins [N, 3] and unit directions [N, 3] in the world frame.
        """
        K, T = self.K[view], self.T_world_from_camera[view]
        homogeneous = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1)  # [N, 3]
        directions = homogeneous @ torch.linalg.inv(K).T @ T[:3, :3].T
        directions = torch.nn.functional.normalize(directions, dim=1)
        return T[:3, 3].expand_as(directions), directions

    def grid_rays(self, view: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Rays through the centres of a `height` x `width` grid laid over the image, in row-major order."""
        w, h = (float(s) for s in self.sizes[view])
        x = (torch.arange(width, device=self.K.device) + 0.5) * (w / width)
        y = (torch.arange(height, device=self.K.device) + 0.5) * (h / height)
        pixels = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)
        return self.pixel_rays(view, pixels.to(self.K))

    def project(self, view: int, points: Tensor) -> tuple[Tensor, Tensor]:
        """Image points [N, 2] and depths along the optical axis [N] of world points [N, 3].

        A point with depth <= 0 lies behind the camera; its image point means nothing.
        """
        T = self.T_world_from_camera[view]
        camera = (points - T[:3, 3]) @ T[:3, :3]  # rigid: the inverse rotation is the transpose
        image = camera @ self.K[view].T
        return image[:, :2] / image[:, 2:], camera[:, 2]


def opencv_from_opengl(T_world_from_camera: Tensor) -> Tensor:
    """Turns [..., 4, 4] camera poses from OpenGL axes (y up, z backward) to OpenCV axes; its own inverse."""
    flip = torch.tensor([1.0, -1.0, -1.0, 1.0]).to(T_world_from_camera)
    return T_world_from_camera * flip


def look_at(eyes: Tensor, target: Tensor, up: Tensor | None = None) -> Tensor:
    """Poses [V, 4, 4] of cameras at `eyes` [V, 3] that look at `target` [3] or [V, 3] with `up` [3] upward."""
    up = torch.tensor([0.0, 0.0, 1.0]).to(eyes) if up is None else up
    forward = torch.nn.functional.normalize(target - eyes, dim=-1)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up.expand_as(forward)), dim=-1)
    down = torch.linalg.cross(forward, right)
    T = torch.eye(4).to(eyes).repeat(len(eyes), 1, 1)
    T[:, :3, :3] = torch.stack([right, down, forward], dim=-1)
    T[:, :3, 3] = eyes
    return T
