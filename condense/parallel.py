"""Independent jobs side by side: one single-threaded process a core."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

Result = TypeVar("Result")


def set_threads(threads: int = 1) -> None:
    """Sets the threads of torch and of the linear algebra below numpy and scipy; the one place that does.

    Two processes with two threads each on two cores wait for each other, and both are slower than with one.
    """
    torch.set_num_threads(threads)
    threadpool_limits(threads)  # libraries that are loaded, ...
    for library in ("OMP", "OPENBLAS", "MKL"):  # ... and those that will be
        os.environ[f"{library}_NUM_THREADS"] = str(threads)


def parallel_map(
    function: Callable[..., Result], jobs: Sequence[tuple[Any, ...]], processes: int, title: str
) -> list[Result]:
    """`[function(*job) for job in jobs]` on about `processes` single-threaded workers, with a progress bar.

    `function` must be importable (a module-level function). Results keep the order of `jobs`, and do not
    depend on `processes`: each job gets its own arguments, seed included. The first error stops the rest.
    """
    return parallel_calls([(function, *job) for job in jobs], processes, title)


def parallel_calls(calls: Sequence[tuple[Any, ...]], processes: int, title: str) -> list[Any]:
    """`[function(*arguments) for function, *arguments in calls]`, as `parallel_map` does it."""
    pool = ProcessPoolExecutor(_workers(len(calls), processes), mp_context=_server(), initializer=set_threads)
    with pool, tqdm(total=len(calls), desc=title) as bar:
        futures = [pool.submit(*call) for call in calls]
        try:
            for future in as_completed(futures):
                future.result()
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _server() -> BaseContext:
    """Workers fork from one process that has loaded what this one has, and done nothing: no thread is left behind.

    Loading torch anew in every worker takes longer than many a job.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([name for name in sys.modules if name.startswith("condense.")])
    return context


def _workers(jobs: int, processes: int) -> int:
    """As many as `processes`, or a few more where that lets a few long jobs end together.

    Three jobs on two cores take two rounds by two workers, with a core idle in the second, and the time of one and a
    half by three workers, between which the system shares the cores.
    """
    even = (workers for workers in range(processes, 2 * processes) if jobs % workers == 0)
    return next(even, processes) if jobs <= 5 * processes else processes
