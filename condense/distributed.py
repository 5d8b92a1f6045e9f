"""Training by several processes that together do what one would: same batch, same losses, same gradients.

Every process draws the whole batch, which is cheap, and runs the networks on its share of the scenes. Features are
gathered, and everything after them is done by all alike; going backward, a process keeps the gradient of its own
share. Batch norm is over all shares. So the sum of all processes' gradients is the gradient of the whole batch, up to
rounding. Without a process group nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_sharing = False  # set while a network runs on a share of a batch


def rank() -> int:
    """The number of this process among those that train together; 0 where it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if processes() > 1:
        dist.barrier()


def splits(count: int) -> bool:
    """Whether a batch of so many scenes is shared out; of fewer scenes than processes, each process does all."""
    return 1 < processes() <= count


def share(count: int) -> slice:
    """This process's share of `count` scenes, as even as can be, in their order."""
    return slice(count * rank() // processes(), count * (rank() + 1) // processes())


@contextmanager
def sharing() -> Iterator[None]:
    """Batch norms in the block are over the shares of all processes."""
    global _sharing
    _sharing = True
    try:
        yield
    finally:
        _sharing = False


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:  # type: ignore[override]
        counts = [torch.zeros(1, dtype=torch.int64, device=own.device) for _ in range(processes())]
        dist.all_gather(counts, torch.tensor([len(own)], device=own.device))
        sizes = [int(count) for count in counts]
        ctx.start, ctx.stop = sum(sizes[: rank()]), sum(sizes[: rank() + 1])
        padded = own.new_zeros(max(sizes), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad[ctx.start : ctx.stop]


def gathered(own: Tensor) -> Tensor:
    """The rows [n, ...] of all processes, one after another; each may have another n.

    The gradient is that of this process's rows, not summed over processes: what follows is done by all alike.
    """
    return _Gather.apply(own)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # type: ignore[override]
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        total = grad.clone()
        dist.all_reduce(total)
        return total


class BatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` of rows [N, C], over the rows of all processes while they are `sharing`."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C]."""
        if not (_sharing and self.training):
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        centred = x - self.running_mean  # the same in every process, and near the mean: squares lose no digits
        own = torch.cat([centred.sum(0), centred.square().sum(0), x.new_tensor([len(x)])])
        total = _Sum.apply(own)  # one message a layer: on a small batch, they are what takes the time
        rows = total[-1].detach()
        mean, square = (total[:-1] / rows).split(x.shape[1])
        variance = (square - mean.square()).clamp_min(0)
        with torch.no_grad():
            self.running_mean.lerp_(self.running_mean + mean, self.momentum)
            self.running_var.lerp_(variance * rows / (rows - 1), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        return (centred - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias


def sum_gradients(parameters: Iterable[nn.Parameter], shared: bool) -> None:
    """Makes the gradient of the whole batch of each process's part of it, in place.

    Args:
        parameters: of the networks that ran on shares.
        shared: see `splits`; else every process has the whole gradient, and nothing is done.
    """
    some = [parameter for parameter in parameters if parameter.grad is not None]  # the same ones in every process
    if not (shared and some):
        return
    flat = torch.cat([parameter.grad.flatten() for parameter in some])  # type: ignore[union-attr]
    dist.all_reduce(flat)
    for parameter, part in zip(some, flat.split([parameter.numel() for parameter in some]), strict=True):
        parameter.grad = part.view_as(parameter)
