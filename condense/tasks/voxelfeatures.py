"""Frozen features of voxels, whatever they come from: what probes of voxels compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from condense.backbone3d import load_net3d
from condense.devices import open_device
from condense.links import load_links
from condense.model import ensemble, lifted_features, load_model, voxel_features
from condense.voxels import VoxelScene


@dataclass(frozen=True)
class Lifted:
    """2D features of a capture's training views, lifted to its voxels.

    Args:
        model: folder of the model whose student's they are; None: the frozen network's, which the links keep.
        net3d: folder of a 3D network whose features are taken with them (`model.ensemble`), or None.
    """

    model: Path | None = None
    net3d: Path | None = None


Source = Path | Lifted | str  # see `features`


def with_images(networks: Mapping[str, Sequence[Path]]) -> dict[str, list[Lifted]]:
    """The sources of features that look at a capture's training views, by method.

    Args:
        networks: as of `methods.networks`.

    Returns:
        `lift`, the frozen network's features; `lift_student`, the trained one's; and `<method>_2d3d`, the features of
        a method's 3D network together with those of the 2D network that it learned with or from.
    """
    found = {"lift": [Lifted()], "lift_student": [Lifted(folder) for folder in networks.get("condense", ())]}
    found["condense_2d3d"] = [Lifted(folder, folder) for folder in networks.get("condense", ())]
    for method in ("distill", "pixel_voxel"):
        found[f"{method}_2d3d"] = [Lifted(None, folder) for folder in networks.get(method, ())]
    return {method: sources for method, sources in found.items() if sources}


def features(source: Source, paths: Sequence[Path], device: str = "cpu") -> list[Tensor]:
    """Features [N, D] of the voxels of linked captures; those of networks have unit length, as wherever they serve.

    Args:
        source: the folder of a 3D network; what is lifted; or "colour_position".
        paths: of the links.
        device: of the networks.
    """
    if isinstance(source, Lifted):
        return _lifted(source, paths, device)
    scenes = [load_links(path, ()).scene for path in paths]
    if isinstance(source, str):
        return [colour_position(scene) for scene in scenes]
    net3d = load_net3d(source).to(open_device(device))
    return [normalize(each, dim=1) for each in voxel_features(net3d, scenes)]


def _lifted(source: Lifted, paths: Sequence[Path], device: str) -> list[Tensor]:
    if source.model is None:
        lifted = [load_links(path, ()).lifted for path in paths]
    else:
        student = load_model(source.model).student.to(open_device(device))
        lifted = [lifted_features(student, load_links(path, ("train",))) for path in paths]
    if source.net3d is None:
        return [normalize(each, dim=1) for each in lifted]
    return [ensemble(*pair) for pair in zip(features(source.net3d, paths, device), lifted, strict=True)]


def colour_position(scene: VoxelScene) -> Tensor:
    """[N, 5] what a voxel shows without any learning: colour, height, and distance from the vertical axis."""
    at = scene.coords.float() - scene.coords.float().mean(0)
    return torch.cat([scene.colour, at[:, 2:], at[:, :2].norm(dim=1, keepdim=True)], dim=1)
