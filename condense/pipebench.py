"""Benchmarks that need the pipeline's data: a field, a joint step, a `dvc repro` with nothing to do, memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from condense.backbone2d import load_backbone
from condense.batches import draw_batch
from condense.benchmarks import Line, line, ray_marching, seconds, sparse_unet, write_table
from condense.captures.reader import read_capture
from condense.distributedbench import bench_processes
from condense.field import psnr_db
from condense.fieldfit import fit_field
from condense.links import load_links
from condense.milvusbench import bench_milvus
from condense.model import new_model
from condense.parallel import set_threads
from condense.paths import project_root
from condense.plainfit import plain_fit
from condense.pretrain import make_optimizer, train_step
from condense.rayoperator import build_operator
from condense.repositorybench import bench_repository
from condense.run import Run, open_run


def field_fit(run: Run) -> dict[str, Line]:
    """One built-in object, against the plain way run until it is as good on held-out views, or 150 steps."""
    capture = read_capture(sorted((run.captures / "objects").glob("*.zip"))[0])
    train, test = (capture.load(capture.views(split)) for split in ("train", "test"))
    scores = psnr_db(fit_field(train, run.params.fields.object, 0), test)
    ours = seconds(lambda: fit_field(train, run.params.fields.object, 0), runs=5, warmup=1)
    goal = sum(scores) / len(scores)
    plain, reached = plain_fit(train, test, run.params.fields.object, goal)
    what = (
        f"a field of {capture.name}, {goal:.1f} dB on held-out views, against a dense grid and autograd "
        f"through every sample, {reached:.1f} dB, 1 thread"
    )
    return {"field_fit": line(ours, plain, what)}


def joint_step(run: Run) -> dict[str, Line]:
    """A step of joint training on the run's own links, against one that marches its rays anew."""
    paths = sorted(run.artifact("links").rglob("*.safetensors"))[:48]
    captures = [load_links(path) for path in paths]
    params = run.params.pretrain
    model = new_model(load_backbone(run.artifact("teacher") / "teacher.safetensors"), 0, channels=params.channels)
    optimizer = make_optimizer(model, params)

    def step() -> None:
        train_step(model, optimizer, captures, params, 0, 0)

    def marching() -> None:
        batch = draw_batch(captures, params, 0, 0)
        for links, views in zip(batch.captures, batch.views, strict=True):
            for view in views:
                build_operator(links.scene, view.camera, 0, *view.cells)
        step()

    batch = draw_batch(captures, params, 0, 0)
    what = (
        f"a joint step, {len(batch.captures)} captures x {params.views} views, {len(batch.voxels.coords)} voxels, both "
        "networks, against one that marches its rays anew, 1 thread"
    )
    return {"joint_step": line(seconds(step, runs=9), seconds(marching, runs=3), what)}


def noop_repro(root: Path) -> dict[str, Line]:
    """`dvc repro` when everything is up to date.

    Raises:
        RuntimeError: there is something to do: run `make repro` first.
    """
    command = [sys.executable, "-m", "dvc", "repro"]
    if subprocess.run([sys.executable, "-m", "dvc", "status", "-q"], cwd=root, check=False).returncode:
        raise RuntimeError("the pipeline is not up to date: run 'make repro' before 'make bench'")
    ours = seconds(lambda: subprocess.run(command, cwd=root, check=True, capture_output=True), runs=3, warmup=1)
    return {"noop_repro": line(ours, None, "dvc repro with nothing to do")}


def peak_memory(run: Run) -> dict[str, Line]:
    """Peak memory and wall time of every stage, as the last run measured them."""
    costs = {path.stem: json.loads(path.read_text()) for path in sorted(run.artifact("times").glob("*.json"))}
    return {
        f"stage_{name}": line(cost["seconds"], None, f"stage {name}, peak memory {cost['peak_gb']:.2f} GB")
        for name, cost in costs.items()
    }


def main() -> None:
    """Runs every benchmark; each adds its lines to `reports/benchmarks.json` when it is done."""
    set_threads(1)
    run = open_run(project_root())
    every: list[Callable[[], dict[str, Line]]] = [
        lambda: noop_repro(run.folder),  # says at once if the pipeline is not up to date
        lambda: peak_memory(run),
        ray_marching,
        sparse_unet,
        lambda: field_fit(run),
        lambda: joint_step(run),
        lambda: bench_processes(run),
        bench_repository,
        bench_milvus,
    ]
    for bench in every:
        write_table(bench(), run.folder / "reports" / "benchmarks.json")


if __name__ == "__main__":
    main()
