"""What only a CUDA machine can show: `make gpu-check`, under ten minutes, writes `reports/gpu_check.json`.

Runs the tests marked `cuda` (nerfacc's samples and weights against ours, spconv against dense convolution, the
ray operator against float64), then times the operator and the U-Net. Without a GPU it says so and ends well.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch

from condense.backbone3d import SparseUNet
from condense.benchmarks import Line, box_batch, line, ray_marching, seconds, unet_step, write_table
from condense.paths import project_root


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
    for benchmark in (lambda: ray_marching("cuda"), unet_lines):
        try:
            lines.update(benchmark())
        except Exception as error:  # the table should still show the other half
            failure += f"{type(error).__name__}: {error}\n"
    device = {"name": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}
    print(f"{device['name']}: {tests['summary']}\n{failure}")
    write_table(lines, path, {"device": device, "tests": tests, "failure": failure})
    return 0 if tests["passed"] and not failure else 1


if __name__ == "__main__":
    sys.exit(main())
