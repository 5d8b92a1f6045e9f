"""How much faster two processes of torchrun train than one, step for step the same training."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from condense.backbone2d import load_backbone
from condense.benchmarks import Line, line
from condense.distributed import rank, wait_for_all
from condense.launch import process_group
from condense.linkset import LinkedCaptures
from condense.model import new_model
from condense.pretrain import make_optimizer, train_step
from condense.run import Run, open_run

CAPTURES, WARMUP, STEPS = 48, 3, 30


def seconds_a_step(run: Run) -> float:
    """Wall time of a joint step of the run's own settings, the mean over some; called by every process together."""
    params = run.params.pretrain
    captures = LinkedCaptures(sorted(run.artifact("links").rglob("*.safetensors"))[:CAPTURES])
    model = new_model(load_backbone(run.artifact("teacher") / "teacher.safetensors"), 0, channels=params.channels)
    optimizer = make_optimizer(model.train(), params)
    for step in range(WARMUP + STEPS):
        if step == WARMUP:
            wait_for_all()
            started = time.perf_counter()
        train_step(model, optimizer, captures, params, 0, step)
    wait_for_all()
    return (time.perf_counter() - started) / STEPS


def measured(run: Run, processes: int) -> float:
    """`seconds_a_step` of so many processes of torchrun."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "seconds.json"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        subprocess.run([*launch, "-m", __name__, str(run.folder), str(target)], check=True, capture_output=True)
        return float(json.loads(target.read_text()))


def bench_processes(run: Run) -> dict[str, Line]:
    """The line `joint_step_two_processes`: two processes of one thread against one."""
    two, one = measured(run, 2), measured(run, 1)
    what = (
        f"a joint step of {run.params.pretrain.captures} captures by two processes over gloo against one, one thread "
        f"each, mean of {STEPS}; each process does {one / two / 2:.0%} of what it does alone"
    )
    return {"joint_step_two_processes": line(two, one, what)}


def main(folder: Path, target: Path) -> None:
    """One process of torchrun."""
    run = open_run(folder)
    with process_group():
        found = seconds_a_step(run)
        if rank() == 0:
            target.write_text(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
