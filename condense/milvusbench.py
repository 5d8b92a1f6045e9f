"""Exact search in memory against Milvus Lite, on the same synthetic scenes: recall, waiting, memory, disk.

In every line "ours_s" is the exact search (`SceneRepository`) and "other_s" Milvus Lite (`MilvusRepository`). Both
compare pooled vectors for a shortlist and then key points, so they differ in the shortlist alone, and in where
scenes are kept. Each store is built and asked in processes of its own: neither's memory counts for the other. Files
were just written, so the system still has them in memory.

`python -m condense.milvusbench` adds the lines to `reports/benchmarks.json`; `--table` names another file.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from condense.benchmarks import Line, line, seconds, write_table
from condense.milvusrepository import BATCH, MilvusRepository
from condense.parallel import set_threads
from condense.paths import project_root
from condense.repository import SceneRepository
from condense.repositorybench import (
    DIM,
    SEEN,
    K,
    answered,
    build,
    bytes_on_disk,
    label,
    made_query,
    made_scene,
    recall_at_1,
    spread,
)
from condense.scenequeries import SceneQueries

SCENES, POINTS, QUERIES = 100_000, 10, 100
SHORTLIST = 50  # scenes whose key points a query compares: as many answers hold all of them
MODEL = "benchmark"


@dataclass(frozen=True)
class Store:
    """A kind of repository: how it is built at a path, in how many seconds, and how it is opened there."""

    file: str
    build: Callable[[int, int, Path], float]
    open: Callable[[Path], SceneQueries]


@dataclass(frozen=True)
class Measured:
    """What one store costs and answers.

    Args:
        building: seconds from key points in memory to a store that a new process has opened.
        opening: seconds to open a store that was opened before, and to answer a first query.
        memory: bytes that opening and answering add to what is resident.
        disk: bytes of its files.
        found: names of the shortlist of each query, best first.
        waits: seconds of each query.
    """

    building: float
    opening: float
    memory: int
    disk: int
    found: list[list[str]]
    waits: list[float]

    @property
    def median(self) -> float:
        """Seconds of a query."""
        return float(np.median(self.waits))


def build_exact(scenes: int, points: int, path: Path) -> float:
    """Seconds of adding made scenes in memory and saving them."""
    repository, spent = build(scenes, points)
    return spent + seconds(partial(repository.save, path), runs=1, warmup=0)


def open_milvus(path: Path) -> MilvusRepository:
    """The database at `path`, which is made where there is none."""
    return MilvusRepository(str(path), MODEL, DIM)


def build_milvus(scenes: int, points: int, path: Path) -> float:
    """Seconds of adding made scenes in batches, making them aside."""
    repository, spent = open_milvus(path), 0.0
    for start in range(0, scenes, BATCH):
        batch = [(str(seed), made_scene(seed, points), None) for seed in range(start, min(start + BATCH, scenes))]
        spent += seconds(partial(repository.add_many, batch), runs=1, warmup=0)
    repository.close()
    return spent


EXACT = Store("exact", build_exact, SceneRepository.load)
MILVUS = Store("scenes.db", build_milvus, open_milvus)


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What a function returns in a process of its own, and the seconds that process takes to end.

    Milvus Lite writes what was added last when its process ends.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=set_threads) as pool:
        result = pool.submit(function, *arguments).result()
        start = time.perf_counter()
    return result, time.perf_counter() - start


def resident() -> int:
    """Resident bytes of this process and of those it started, a server for one."""
    me = psutil.Process()
    return sum(process.memory_info().rss for process in (me, *me.children(recursive=True)))


def asked(scenes: int) -> list[int]:
    """Numbers of the scenes that queries show parts of."""
    return spread(scenes, min(QUERIES, scenes))


def seconds_to_open(store: Store, path: Path) -> float:
    """Seconds to open a store."""
    return seconds(partial(store.open, path), runs=1, warmup=0)


def ask(store: Store, scenes: int, points: int, path: Path) -> tuple[float, int, list[list[str]], list[float]]:
    """Opening, memory, answers and waits as in `Measured`; what queries of any store load is loaded before."""
    queries = [made_query(seed, points) for seed in asked(scenes)]
    build(3, points)[0].query_image(queries[0], K)
    before, start = resident(), time.perf_counter()
    repository = store.open(path)
    repository.query_image(queries[0], K)
    opening = time.perf_counter() - start
    found, waits = answered(repository, queries, SHORTLIST)
    return opening, resident() - before, found, waits


def measure(store: Store, scenes: int, points: int, folder: Path) -> Measured:
    """Builds a store in `folder` and asks it.

    The first opening belongs to building: Milvus Lite then indexes what it wrote when the building process ended.
    """
    path = folder / store.file
    adding, ending = in_fresh_process(store.build, scenes, points, path)
    first, _ = in_fresh_process(seconds_to_open, store, path)
    (opening, memory, found, waits), _ = in_fresh_process(ask, store, scenes, points, path)
    return Measured(adding + ending + first, opening, memory, bytes_on_disk(path), found, waits)


def kept(wanted: Sequence[Sequence[str]], found: Sequence[Sequence[str]], top: int) -> float:
    """Share of the first `top` wanted names of each query that are among those found."""
    return float(np.mean([name in names for best, names in zip(wanted, found, strict=True) for name in best[:top]]))


def side_by_side(exact: Measured, milvus: Measured, scenes: int, points: int) -> dict[str, Line]:
    """The lines of the table; ours is the exact search."""
    size = f"{scenes:,} synthetic scenes of {points} key points"
    first = [recall_at_1(store.found, asked(scenes)) for store in (exact, milvus)]
    longest = [1e3 * max(store.waits) for store in (exact, milvus)]
    query = (
        f"an image of {min(points, SEEN)} key points among {size}, exact search against Milvus Lite "
        f"{version('milvus-lite')}; recall@1 {first[0]:.2f} against {first[1]:.2f} of {len(exact.waits)}; of the exact "
        f"search's first 10 answers {kept(exact.found, milvus.found, 10):.3f} are in Milvus's shortlist of "
        f"{SHORTLIST}, of its whole shortlist {kept(exact.found, milvus.found, SHORTLIST):.3f}; "
        f"longest {longest[0]:.0f} against {longest[1]:.0f} ms; 1 thread"
    )
    opening = (
        f"opening {size} and a first query; opening and {len(exact.waits)} queries add {exact.memory / 1e6:.0f} "
        f"against {milvus.memory / 1e6:.0f} MB of resident memory, libraries and mapped files included; 1 thread"
    )
    building = (
        f"building {size}, from key points in memory to a store that a new process has opened; "
        f"{exact.disk / 1e6:.0f} against {milvus.disk / 1e6:.0f} MB on disk; 1 thread"
    )
    return {
        f"milvus_query_{label(scenes)}": line(exact.median, milvus.median, query),
        f"milvus_open_{label(scenes)}": line(exact.opening, milvus.opening, opening),
        f"milvus_build_{label(scenes)}": line(exact.building, milvus.building, building),
    }


def bench_milvus(scenes: int = SCENES, points: int = POINTS) -> dict[str, Line]:
    """Lines `milvus_query_100k` and so on; none, and a word about it, where Milvus Lite is not installed."""
    if find_spec("pymilvus") is None or find_spec("milvus_lite") is None:
        print("milvus_* left out: Milvus Lite is not installed; pip install 'condense[scale]' brings it")
        return {}
    with tempfile.TemporaryDirectory() as folder:
        exact, milvus = (measure(store, scenes, points, Path(folder)) for store in (EXACT, MILVUS))
    return side_by_side(exact, milvus, scenes, points)


def main() -> None:
    """Adds the lines of one size to a table."""
    parser = argparse.ArgumentParser(description="Exact search in memory against Milvus Lite.")
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--points", type=int, default=POINTS, help="key points of a scene")
    parser.add_argument("--table", type=Path, default=project_root() / "reports" / "benchmarks.json")
    arguments = parser.parse_args()
    lines = bench_milvus(arguments.scenes, arguments.points)
    if lines:
        write_table(lines, arguments.table)


if __name__ == "__main__":
    main()
