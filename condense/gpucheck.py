"""What only a CUDA machine can show: `make gpu-check`, under ten minutes, writes `reports/gpu_check.json`.

Runs the tests marked `cuda` (nerfacc's samples and weights against ours, spconv against dense convolution, the
ray operator against float64), then times the operator (beside per-sample rendering, and beside the speed of memory),
the U-Net, and a joint step: as it is, in bfloat16, and with the image network compiled. Without a GPU it says so and
ends well.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch

from condense.backbone2d import BuiltinBackbone
from condense.backbone3d import SparseUNet
from condense.benchmarks import (
    CELLS,
    CHANNELS,
    Line,
    box_batch,
    box_scene,
    forward_backward,
    line,
    ray_marching,
    ring_cameras,
    same_operator,
    seconds,
    unet_step,
    write_table,
)
from condense.captures.capture import Views
from condense.links import Links, link_views
from condense.model import new_model
from condense.params import PretrainParams
from condense.paths import project_root
from condense.pretrain import make_optimizer, train_step
from condense.tuning import prepare


def cuda_tests() -> dict[str, Any]:
    """Runs the tests marked `cuda` and reports their last line."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-rs", str(project_root() / "tests")]
    run = subprocess.run(command, cwd=project_root(), text=True, capture_output=True)
    print(run.stdout + run.stderr)
    return {"passed": run.returncode == 0, "summary": run.stdout.strip().rpartition("\n")[2]}


def unet_lines() -> dict[str, Line]:
    """Forward and backward time of the U-Net for one and for eight training batches, with peak memory."""
    lines = {}
    for scenes in (12, 96):
        batch, model = box_batch(scenes, "cuda"), SparseUNet().cuda()
        torch.cuda.reset_peak_memory_stats()
        time = seconds(unet_step(model, batch))
        peak = torch.cuda.max_memory_allocated() / 2**20
        what = f"U-Net forward and backward, {scenes} objects, {len(batch.coords)} voxels, peak {peak:.0f} MiB"
        lines[f"sparse_unet_{scenes}"] = line(time, None, what)
    return lines


def bandwidth(device: str = "cuda", megabytes: int = 256) -> dict[str, Line]:
    """The operator's two products against moving each of their operands once, at the speed of a copy."""
    scene = box_scene(0).to(device)
    operator = same_operator(scene, ring_cameras())
    features, cotangent = (torch.randn(rows, CHANNELS).to(device) for rows in (len(scene), CELLS**2))
    ours = seconds(lambda: forward_backward(operator.render, features, cotangent), runs=51)
    block = torch.empty(megabytes * 2**18, device=device)
    speed = 2 * block.nbytes / seconds(lambda: block.clone())  # read and written
    moved = 2 * (8 * len(operator.col) + 4 * (CELLS**2 + len(scene)) * (CHANNELS + 1))
    floor = moved / speed
    what = (
        f"operator forward and backward against moving its {moved / 1e6:.1f} MB at {speed / 1e9:.0f} GB/s: "
        f"{floor / ours:.0%} of the memory's speed"
    )
    return {"operator_bandwidth": line(ours, floor, what)}


def box_links(seed: int, teacher: BuiltinBackbone, views: int = 8) -> Links:
    """A linked capture of boxes, for timing: what its images show is noise."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (views, 64, 64, 3), generator=generator).to(torch.uint8)
    names = tuple(f"{view}.png" for view in range(views))
    seen = Views(names, list(images.numpy()), None, None, ring_cameras(views))
    return link_views(f"boxes_{seed}", {}, seen, ["train"] * views, box_scene(seed), teacher)


def joint_steps(device: str = "cuda", captures: int = 24, compiled: bool = True) -> dict[str, Line]:
    """A joint step with the image network as it is, in bfloat16, and compiled: steps a second and peak memory."""
    teacher = BuiltinBackbone()
    links = [box_links(seed, teacher) for seed in range(captures)]
    lines: dict[str, Line] = {}
    for name in ("float32", "bfloat16", *(["compiled"] if compiled else [])):
        precision = "float32" if name == "compiled" else name
        params = PretrainParams(captures=captures, voxels=10**7, device=device, precision=precision)
        model = new_model(teacher, 0).to(device).train()
        prepare(model.student, params, 0)
        if name == "compiled":
            model.student.compile()
        time, peak = timed(_stepper(model, links, params), device)
        first = lines.get("joint_step_float32", {}).get("ours_s")
        what = f"a joint step of {captures} captures x {params.views} views, {name}: {1 / time:.1f} a second{peak}"
        lines[f"joint_step_{name}"] = line(time, first, what)
    return lines


def _stepper(model: Any, links: list[Links], params: PretrainParams) -> Callable[[], object]:
    optimizer = make_optimizer(model, params)
    return lambda: train_step(model, optimizer, links, params, 0, 0)


def timed(step: Callable[[], object], device: str) -> tuple[float, str]:
    """Seconds a call, and, on CUDA, peak memory in words."""
    if device != "cuda":
        return seconds(step, runs=3, warmup=1), ""
    torch.cuda.reset_peak_memory_stats()
    return seconds(step), f", peak {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB"


def main() -> int:
    """Checks, prints a table and writes it; the exit code is 1 if a test or a comparison failed."""
    if not torch.cuda.is_available():
        print("No CUDA device here: nothing to check.")
        return 0
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    path = project_root() / "reports" / "gpu_check.json"
    path.unlink(missing_ok=True)
    tests, failure = cuda_tests(), ""
    lines: dict[str, Line] = {}
    for benchmark in (lambda: ray_marching("cuda"), bandwidth, unet_lines, joint_steps):
        try:
            lines.update(benchmark())
        except Exception as error:  # the table should still show the others
            failure += f"{type(error).__name__}: {error}\n"
    device = {"name": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}
    print(f"{device['name']}: {tests['summary']}\n{failure}")
    write_table(lines, path, {"device": device, "tests": tests, "failure": failure})
    return 0 if tests["passed"] and not failure else 1


if __name__ == "__main__":
    sys.exit(main())
