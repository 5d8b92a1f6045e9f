"""spconv, ready for this machine: the one place that knows the quirks of its CPU build (2.3.8).

- Its backward pass asks for the current CUDA stream, though it never uses the answer on CPU. Where CUDA is
  absent that question would raise, so it is answered with 0, spconv's own name for "no stream".
- Its scatter-add shares two pointers between threads: with more than one thread about one convolution in ten
  came out wrong, without a word. It is run on one thread; the matrix products keep theirs.
- Each use of a sparse tensor asks `torch.fx.is_fx_tracing`, which logs a warning with a time stamp, once a
  process. It says nothing about our models and would make two runs of a notebook differ, so it is silenced.
- It has no bias; our layers are built with `bias=False` and a norm, on every device.

With CUDA nothing but the warning is changed.
"""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any

import torch
from threadpoolctl import ThreadpoolController


class _SafeOps:
    """spconv's table of CPU operations, with the scatter-add on one thread."""

    def __init__(self, table: Any) -> None:
        self._table = table
        self._openmp = ThreadpoolController().select(user_api="openmp")  # once: it looks through all that is loaded

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    def scatter_add_cpu(self, out: Any, values: Any, rows: Any) -> None:
        """out[rows] += values, in place."""
        if torch.get_num_threads() == 1:
            return self._table.scatter_add_cpu(out, values, rows)
        with self._openmp.limit(limits=1):
            return self._table.scatter_add_cpu(out, values, rows)


def load_spconv() -> ModuleType:
    """The module `spconv.pytorch`, patched where CUDA is absent. Calling it again changes nothing.

    Raises:
        ImportError: spconv is not installed; it has no build for processors other than x86-64.
    """
    try:
        import spconv.pytorch as spconv
        from spconv.pytorch import ops
    except ImportError as error:
        raise ImportError("sparse convolution needs spconv, which has builds for x86-64 only") from error
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    if not torch.cuda.is_available() and not isinstance(ops.SpconvOps, _SafeOps):
        ops.get_current_stream = lambda: 0
        ops.SpconvOps = _SafeOps(ops.SpconvOps)
    return spconv


def algorithm() -> Any:
    """The convolution algorithm for this machine: gather, matrix product, scatter on CPU; spconv's own on CUDA."""
    spconv = load_spconv()
    return None if torch.cuda.is_available() else spconv.ConvAlgo.Native
