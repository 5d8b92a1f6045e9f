"""Speed against the plain way, side by side in one run.

Everything runs on one thread, as the pipeline's processes do. Each line is {"ours_s", "other_s",
"ratio": other_s / ours_s, "what"}; times are medians after warm-up. Needs no data: scenes are hollow boxes of
about the size of a built-in object. `pipebench` runs these and those that need the pipeline's data.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from condense.backbone3d import SparseUNet
from condense.cameras import Cameras, look_at
from condense.grid import Grid
from condense.paths import write_atomically
from condense.raymarch import Samples, accumulate, render_weights, sample_rays, trilinear
from condense.rayoperator import RayOperator, build_operator
from condense.voxels import VoxelBatch, VoxelScene, batch_scenes, index_volume, input_features

Line = dict[str, Any]
SIZE, CHANNELS, CELLS, SAMPLES = 32, 64, 64, 96
STEP = 0.6  # voxels: 96 of them reach across the grid's diagonal
TOLERANCE = 1e-4  # largest difference allowed between two ways of rendering features of order 1


def seconds(function: Callable[[], object], runs: int = 7, warmup: int = 2) -> float:
    """Median time of a call; waits for the GPU, if there is one."""
    times = []
    for run in range(warmup + runs):
        start = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if run >= warmup:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def line(ours: float, other: float | None, what: str) -> Line:
    """One entry of the table."""
    entry: Line = {"ours_s": ours, "what": what}
    return entry if other is None else {**entry, "other_s": other, "ratio": other / ours}


def box_scene(seed: int, boxes: int = 6) -> VoxelScene:
    """The walls of a few boxes in a 32^3 grid: about 1,300 voxels, as many as a built-in object has."""
    generator = torch.Generator().manual_seed(seed)
    solid = torch.zeros(SIZE, SIZE, SIZE, dtype=torch.bool)
    for _ in range(boxes):
        low = torch.randint(2, 20, (3,), generator=generator)
        high = (low + torch.randint(4, 13, (3,), generator=generator)).clamp_max(SIZE - 2)
        walls = torch.ones(*(high - low).tolist(), dtype=torch.bool)
        walls[1:-1, 1:-1, 1:-1] = False
        solid[low[0] : high[0], low[1] : high[1], low[2] : high[2]] |= walls
    coords = solid.nonzero().int()
    density = 0.1 + torch.rand(len(coords), generator=generator)
    colour = torch.rand(len(coords), 3, generator=generator)
    return VoxelScene(coords, density, colour, Grid((-0.5,) * 3, 1 / SIZE, (SIZE,) * 3))


def ring_cameras(views: int = 1) -> Cameras:
    """Cameras of 64 px around the scene, looking at its centre."""
    angle = 0.7 + torch.arange(views) * (2 * torch.pi / views)
    eyes = 1.7 * torch.stack([angle.cos(), angle.sin(), torch.full_like(angle, 0.5)], dim=1)
    K = torch.tensor([[150.0, 0, 32], [0, 150, 32], [0, 0, 1]]).repeat(views, 1, 1)
    return Cameras(K, look_at(eyes, torch.zeros(3)), torch.full((views, 2), 64))


def dense_samples(scene: VoxelScene, cameras: Cameras, view: int) -> tuple[Samples, Tensor]:
    """Every ray's 96 samples, where the operator puts them, empty space included; and their density [R * 96]."""
    origins, directions = (ray.to(scene.density) for ray in cameras.grid_rays(view, CELLS, CELLS))
    start = scene.grid.from_world(origins)
    to_walls = torch.stack([-0.5 - start, SIZE + 0.5 - start]) / directions  # the box the samples start from
    near = to_walls.amin(dim=0).amax(dim=1).clamp_min(0)
    t = near[:, None] + (torch.arange(SAMPLES, device=near.device) + 0.5) * STEP  # [R, 96] voxels
    position = (start[:, None] + t[..., None] * directions[:, None]).reshape(-1, 3)
    ray = torch.arange(len(near), device=near.device).repeat_interleave(SAMPLES)
    samples = Samples(ray, position, torch.full_like(position[:, 0], STEP), t.reshape(-1), len(near))
    volume = scatter(scene.coords, scene.density[:, None])
    return samples, interpolate(volume, position)[:, 0]


def scatter(coords: Tensor, values: Tensor) -> Tensor:
    """Voxel values [N, C] as a dense volume [1, C, Z, Y, X], the layout of `grid_sample`; differentiable."""
    volume = values.new_zeros(SIZE, SIZE, SIZE, values.shape[1]).index_put(tuple(coords.long().T), values)
    return volume.permute(3, 2, 1, 0)[None]


def interpolate(volume: Tensor, position: Tensor) -> Tensor:
    """Trilinear values [S, C] of a volume at grid coordinates; beyond its faces it counts as 0."""
    place = (2 * position / SIZE - 1)[None, None, None]
    return functional.grid_sample(volume, place, align_corners=False)[0, :, 0, 0].T


def per_sample_renderer(scene: VoxelScene, cameras: Cameras, view: int) -> Callable[[Tensor], Tensor]:
    """Features [N, C] -> [R, C], one trilinear look-up a sample; positions and weights are worked out once."""
    samples, density = dense_samples(scene, cameras, view)
    weights = render_weights(density, samples)
    present = interpolate(scatter(scene.coords, torch.ones_like(scene.density)[:, None]), samples.position)
    share = (weights / present[:, 0].clamp_min(1e-12)).reshape(-1, 1, SAMPLES)

    def render(features: Tensor) -> Tensor:
        values = interpolate(scatter(scene.coords, features), samples.position)
        return torch.bmm(share, values.reshape(samples.rays, SAMPLES, -1))[:, 0]

    return render


def packed_renderer(scene: VoxelScene, cameras: Cameras, view: int) -> Callable[[Tensor], Tensor]:
    """The same, but empty space is skipped: only samples that feel a voxel are looked up, eight voxels each."""
    index = index_volume(scene)
    origins, directions = (ray.to(scene.density) for ray in cameras.grid_rays(view, CELLS, CELLS))
    samples = sample_rays(origins, directions, scene.grid, index >= 0, STEP)
    voxel, corner = trilinear(samples.position, index)
    weights = render_weights((corner * scene.density[voxel]).sum(dim=1), samples)
    share = corner / corner.sum(dim=1, keepdim=True).clamp_min(1e-12)

    def render(features: Tensor) -> Tensor:
        values = (features[voxel] * share[..., None]).sum(dim=1)  # [S, C]
        return accumulate(weights, values, samples)

    return render


def same_operator(scene: VoxelScene, cameras: Cameras) -> RayOperator:
    """The operator of the same rays and samples."""
    return build_operator(scene, cameras, 0, CELLS, CELLS, subrays=1, step=STEP, keep=1 - 1e-5)


def forward_backward(render: Callable[[Tensor], Tensor], features: Tensor, cotangent: Tensor) -> list[Tensor]:
    """Rendered features and the gradient of the voxels' features."""
    features = features.detach().requires_grad_()
    rendered = render(features)
    return [rendered.detach(), torch.autograd.grad(rendered, features, cotangent)[0]]


def ray_marching(device: str = "cpu") -> dict[str, Line]:
    """The operator against per-sample rendering, with and without empty space, and what building it costs.

    Raises:
        AssertionError: the ways do not render the same.
    """
    scene, cameras = box_scene(0).to(device), ring_cameras()
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(len(scene), CHANNELS, generator=generator).to(device)
    cotangent = torch.randn(CELLS**2, CHANNELS, generator=generator).to(device)
    operator = same_operator(scene, cameras)
    dense, packed = per_sample_renderer(scene, cameras, 0), packed_renderer(scene, cameras, 0)
    expected = forward_backward(dense, features, cotangent)
    difference = 0.0
    for render in (operator.render, packed):
        got = forward_backward(render, features, cotangent)
        difference = max(difference, *(float((a - b).abs().max()) for a, b in zip(got, expected, strict=True)))
    assert difference <= TOLERANCE, f"the ways to render differ by {difference:.1e}"
    ours = seconds(lambda: forward_backward(operator.render, features, cotangent), runs=51)
    plain = seconds(lambda: forward_backward(dense, features, cotangent), runs=3, warmup=1)
    skipping = seconds(lambda: forward_backward(packed, features, cotangent), runs=5, warmup=1)
    build = seconds(lambda: same_operator(scene, cameras).transpose, runs=5)
    where = torch.cuda.get_device_name() if device == "cuda" else "1 thread"
    size = (
        f"{CELLS**2} rays x {CHANNELS} channels, {len(scene)} voxels, {len(operator.col) / CELLS**2:.0f} non-zeros "
        f"a ray, forward and backward; largest difference {difference:.0e}; {where}"
    )
    return {
        "raymarch_forward_backward": line(
            ours, plain, f"operator against {SAMPLES} grid_sample look-ups a ray, {size}"
        ),
        "raymarch_skipping_empty": line(ours, skipping, f"operator against look-ups in occupied space only, {size}"),
        "operator_build": line(build, plain, f"building that operator once, against one per-sample step; {where}"),
    }


def box_batch(scenes: int = 12, device: str = "cpu") -> VoxelBatch:
    """A training batch's worth of voxels."""
    return batch_scenes([box_scene(seed).to(device) for seed in range(scenes)])


def unet_step(model: SparseUNet, batch: VoxelBatch) -> Callable[[], None]:
    """A function that runs the U-Net forward and backward once."""
    features = input_features(batch)

    def step() -> None:
        model.zero_grad()
        model(batch.coords, features, batch.shape, len(batch.sizes)).square().mean().backward()

    return step


def matrix_products(model: SparseUNet, batch: VoxelBatch) -> list[tuple[int, int, int]]:
    """(rows, in, out) of every matrix product of one forward pass: one for each weight of each convolution."""
    products: list[tuple[int, int, int]] = []

    def note(layer: Any, inputs: Any, output: Any) -> None:
        counts = output.find_indice_pair(layer.indice_key).indice_pair_num.tolist()
        if layer.subm:  # the middle weight meets every voxel; the others come in mirrored pairs, noted once
            middle = len(counts) // 2
            counts = [*counts[:middle], len(output.indices), *counts[:middle]]
        products.extend((count, layer.in_channels, layer.out_channels) for count in counts if count)

    layers = [module for module in model.modules() if hasattr(module, "indice_key")]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        model(batch.coords, input_features(batch), batch.shape, len(batch.sizes))
    for hook in hooks:
        hook.remove()
    return [*products, (len(batch.coords), model.head.in_features, model.head.out_features)]


def sparse_unet() -> dict[str, Line]:
    """The U-Net against the matrix products it contains: a ratio of 1 would be all work and no overhead."""
    batch, model = box_batch(), SparseUNet()
    ours = seconds(unet_step(model, batch))
    shapes = matrix_products(model, batch)
    rows, widest = max(s[0] for s in shapes), max(max(s[1:]) for s in shapes)
    left, right = torch.ones(rows * widest), torch.ones(rows * widest)
    out = torch.empty(rows * widest)

    def floor() -> None:
        for n, a, b in shapes:  # the value, its input's gradient, its weight's gradient
            x, y = left[: n * a].view(n, a), right[: n * b].view(n, b)
            weight = right[: a * b].view(a, b)
            torch.mm(x, weight, out=out[: n * b].view(n, b))
            torch.mm(y, weight.T, out=out[: n * a].view(n, a))
            torch.mm(x.T, y, out=out[: a * b].view(a, b))

    flops = sum(6 * n * a * b for n, a, b in shapes)
    what = (
        f"U-Net forward and backward, {len(batch.sizes)} objects, {len(batch.coords)} voxels, {flops / 1e9:.1f} "
        "GFLOP, against its matrix products alone, 1 thread"
    )
    return {"sparse_unet": line(ours, seconds(floor), what)}


def write_table(lines: dict[str, Line], path: Path, about: dict[str, Any] | None = None) -> None:
    """Prints the lines, and writes them to `path` as JSON beside what is already there under other names."""
    known = json.loads(path.read_text()) if path.is_file() else {}
    text = json.dumps(dict(sorted({**known, **(about or {}), **lines}.items())), indent=1) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))
    for name, entry in lines.items():
        other = f"{entry['other_s']:10.4f} s {entry['ratio']:8.2f}x" if "other_s" in entry else " " * 22
        print(f"{name:28} {entry['ours_s']:10.4f} s {other}  {entry['what']}")
