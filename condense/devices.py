"""What networks and fields run on. Whoever applies a network follows it: inputs go where its weights are."""

from __future__ import annotations

import multiprocessing
import os

import torch
from torch import nn


def open_device(name: str) -> torch.device:
    """The device of a setting: "cpu", "cuda:1", or "cuda", which shares a machine's GPUs out among its processes.

    Processes of torchrun take the GPU of their local rank, workers of a pool that of their number.

    Raises:
        ValueError: there is no such device here.
    """
    device = torch.device(name)
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    if not count:
        raise ValueError(
            f"device: {name} is set, and torch sees no CUDA device; set device: cpu, or see `make gpu-check`"
        )
    if device.index is None:
        worker = multiprocessing.current_process()._identity  # (1,) is the first of a pool, () the main process
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", worker[-1] - 1 if worker else 0)) % count)
    torch.cuda.set_device(device)
    return device


def device_of(network: nn.Module) -> torch.device:
    """Where the weights of a network are; the CPU for one without weights."""
    return next((weight.device for weight in network.parameters()), torch.device("cpu"))
