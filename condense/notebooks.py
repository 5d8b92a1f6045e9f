"""Running a notebook as a stage: papermill executes it, and what differs from run to run is stripped."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import nbformat
import papermill
import psutil

from condense.paths import write_atomically
from condense.run import imports_of, source_files

# What a kernel runs first: the process that workers fork from loads their modules (see `parallel`).
_PRELOAD = "from multiprocessing import forkserver as _f; _f.set_forkserver_preload({}); _f.ensure_running()"


def run_notebook(notebook: Path, folder: Path) -> Path:
    """Executes a notebook for the run in `folder` and keeps a copy with its outputs.

    The copy goes to `reports/notebooks/`, without run times, so that two runs give the same bytes; seconds and
    peak memory go to `artifacts/times/<name>.json`.

    Raises:
        papermill.PapermillExecutionError: a cell failed; the copy then lies in `artifacts/failed/`.
    """
    copy = folder / "reports" / "notebooks" / notebook.name
    failed = folder / "artifacts" / "failed" / notebook.name
    failed.parent.mkdir(parents=True, exist_ok=True)
    watch = PeakMemory()
    started = time.perf_counter()
    with watch:
        papermill.execute_notebook(
            notebook,
            failed,
            {"run": "."},
            cwd=folder,
            progress_bar=False,
            log_output=True,
            kernel_name="python3",
            extra_arguments=kernel_options(notebook),
        )
    cost = {"seconds": round(time.perf_counter() - started, 1), "peak_gb": round(watch.peak / 2**30, 2)}
    strip(failed, copy)
    failed.unlink()
    times = folder / "artifacts" / "times" / f"{notebook.stem}.json"
    write_atomically(times, lambda path: path.write_text(json.dumps(cost)))
    return copy


def kernel_options(notebook: Path) -> list[str]:
    """Options that let the process which workers fork from load its modules while the notebook loads its own.

    Both take seconds, and torch most of them; one after the other they are a third of a short stage. Empty for a
    notebook that has no workers.

    Args:
        notebook: of plain Python; what IPython adds to it (`%magic`) is not looked into.
    """
    cells = nbformat.read(notebook, as_version=4).cells
    try:
        modules = sorted(set(imports_of("\n".join(cell.source for cell in cells if cell.cell_type == "code"))))
    except SyntaxError:
        return []
    files = {path.name for module in modules for path in source_files(module)}
    return [f"--IPKernelApp.exec_lines={_PRELOAD.format(modules)}"] if "parallel.py" in files else []


def strip(source: Path, target: Path) -> None:
    """Copies an executed notebook without run times, progress bars and machine paths in its metadata."""
    notebook = nbformat.read(source, as_version=4)
    notebook.metadata = {"kernelspec": notebook.metadata.get("kernelspec", {})}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {"tags": cell.metadata.get("tags", [])}
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    write_atomically(target, lambda path: nbformat.write(notebook, path))


class PeakMemory:
    """The largest resident memory of this process and its children together, in bytes, while in the block."""

    def __enter__(self) -> PeakMemory:
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process(os.getpid())
        while not self._done.wait(0.5):
            total = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    # shared pages once: workers map the same libraries
                    memory = process.memory_info()
                    total += memory.rss - getattr(memory, "shared", 0)
                except psutil.Error:  # it ended meanwhile
                    continue
            self.peak = max(self.peak, total)
