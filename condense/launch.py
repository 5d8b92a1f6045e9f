"""Pre-training one seed by several processes, on one machine or many, as started by torchrun."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from condense.captures.catalogue import load_captures
from condense.captures.choose import for_training
from condense.distributed import rank, wait_for_all
from condense.parallel import set_threads
from condense.pretrain import pretrain_seed
from condense.run import Run


@contextmanager
def process_group(device: str = "cpu") -> Iterator[None]:
    """Joins the processes that torchrun started, over NCCL if they compute on "cuda"; alone, without torchrun."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    set_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))  # torchrun's way to say how many a process may have
    store, rank_here, count = next(dist.rendezvous("env://"))
    # torchrun may keep its store when it restarts workers, and with it the addresses of those that died
    store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=store, rank=rank_here, world_size=count)
    try:
        yield
    finally:
        dist.destroy_process_group()


def pretrain_together(study: Run, seed: int) -> Path:
    """What `40_pretrain` does for one seed, in the same place: the pipeline finds it there and goes on.

    Args:
        study: the run, whose teacher and links are made; on every machine the same files.
        seed: one of the run's.

    Returns:
        The folder of the seed.

    Raises:
        FileNotFoundError: an upstream artefact is missing.
    """
    params = study.params
    links, teacher = study.artifact("links"), study.artifact("teacher") / "teacher.safetensors"
    captures = for_training(load_captures(study.artifact("captures.json"), study.captures))
    paths = [path for c in captures if (path := links / f"{c.name}.safetensors").exists()]
    settings = (params.pretrain, params.seed, [path.name for path in paths])
    if rank() == 0:  # it may empty the folder
        study.workspace("condense", ["condense.pretrain"], settings, [links, teacher])
    wait_for_all()
    folder = study.workspace("condense", ["condense.pretrain"], settings, [links, teacher])
    return pretrain_seed(folder / f"seed_{seed}", paths, teacher, params.pretrain, seed)
