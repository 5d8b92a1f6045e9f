"""Toy captures with known geometry, rendered by the ray operator itself: no files, no fitting."""

import numpy as np
import torch
from torch.nn.functional import interpolate

from condense.backbone2d import BuiltinBackbone, BuiltinConfig, FeatureStatistics
from condense.cameras import Cameras, look_at
from condense.captures.capture import Views
from condense.grid import Grid
from condense.links import link_views
from condense.rayoperator import build_operator
from condense.voxels import VoxelScene

TINY = BuiltinConfig(dim=16, stem=8, width=16, blocks=1, heads=2)


def tiny_teacher(seed=0):
    """A random network, standardised over smooth random images."""
    network = BuiltinBackbone(TINY, seed=seed).eval()
    noise = torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        network.standardise(FeatureStatistics.of(network(interpolate(noise, (32, 32), mode="bilinear"))))
    return network


def toy_scene(seed, side=12):
    """A ball (even seeds) or a box (odd ones) with smoothly varying colours."""
    rng = np.random.default_rng(seed)
    at = torch.stack(torch.meshgrid(*[torch.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)
    offset = (at + 0.5 - side / 2).abs() / (side * rng.uniform(0.3, 0.4))
    coords = at[(offset.norm(dim=1) if seed % 2 == 0 else offset.amax(1)) < 1].int()
    mix = torch.from_numpy(rng.normal(size=(3, 3))).float()
    colour = torch.sigmoid(4 * (coords / side - 0.5) @ mix)
    return VoxelScene(coords, torch.full((len(coords),), 4.0), colour, Grid((-0.5,) * 3, 1 / side, (side,) * 3))


def toy_cameras(views, width=32, height=32, seed=0):
    rng = np.random.default_rng(seed)
    turn, lift = np.linspace(0, 2 * np.pi, views, endpoint=False), rng.uniform(0.2, 0.7, views)
    eyes = 1.8 * np.stack([np.cos(turn) * np.cos(lift), np.sin(turn) * np.cos(lift), np.sin(lift)], 1)
    K = torch.tensor([[1.3 * width, 0, width / 2], [0, 1.3 * width, height / 2], [0, 0, 1.0]]).repeat(views, 1, 1)
    return Cameras(K, look_at(torch.from_numpy(eyes).float(), torch.zeros(3)), torch.tensor([[width, height]] * views))


def toy_views(scene, cameras, masks=True):
    images, alphas = [], []
    for view in range(len(cameras)):
        width, height = cameras.sizes[view].tolist()
        values = torch.cat([scene.colour, torch.ones(len(scene), 1)], 1)
        out = build_operator(scene, cameras, view, height, width, subrays=1).render(values).reshape(height, width, 4)
        image = out[..., :3] + (1 - out[..., 3:]) * 0.3
        images.append((image * 255).round().to(torch.uint8).numpy())
        alphas.append(out[..., 3].numpy())
    return Views(tuple(f"{i}.png" for i in range(len(images))), images, alphas if masks else None, None, cameras)


def toy_links(seed, teacher=None, views=6, test=2, masks=True, **size):
    """The links of a toy capture; the last `test` views are test views."""
    scene = toy_scene(seed)
    cameras = toy_cameras(views, seed=seed, **size)
    splits = ["train"] * (views - test) + ["test"] * test
    meta = {"kind": "object", "class": ("ball", "box")[seed % 2], "split": "train"}
    return link_views(f"toy_{seed}", meta, toy_views(scene, cameras, masks), splits, scene, teacher or tiny_teacher())
