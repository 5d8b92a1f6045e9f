"""A second device, pretended on the CPU: it refuses what CUDA would refuse, tensors of two devices in one operation.

Within `other_device()`, tensors sent to DEVICE are kept on the CPU, but are marked, and computed with apart from the
others; numpy cannot read them. Results are the CPU's to the bit, so what runs on both devices must give the same.
Sparse convolution cannot be pretended: it reads memory itself.
"""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = "meta"  # a name that torch knows and that needs no driver
aten = torch.ops.aten
CROSSING = {aten.copy_.default, aten._to_copy.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class Far(torch.Tensor):
    """A tensor on the other device; `near` holds it."""

    @staticmethod
    def __new__(cls, near):
        far = torch.Tensor._make_wrapper_subclass(
            cls, near.shape, near.stride(), near.storage_offset(), dtype=near.dtype, device=DEVICE
        )
        far.near = near
        return far

    def __init__(self, near):
        pass

    def __repr__(self):
        return f"Far({self.near})"

    def tolist(self):
        return self.near.tolist()

    def new_tensor(self, data, **options):
        return Far(self.near.new_tensor(data, **options))

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


class _Constants(TorchFunctionMode):
    """`torch.tensor` with a device never comes by the dispatcher."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == DEVICE:
            return Far(torch.tensor(*args, **{**kwargs, "device": "cpu"}))
        return function(*args, **kwargs)


@contextmanager
def other_device():
    """The block in which there is another device."""
    with _Constants(), _Operations():
        yield


def compute(function, args, kwargs):
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    far = [tensor for tensor in tensors if isinstance(tensor, Far)]
    near = [tensor for tensor in tensors if not isinstance(tensor, Far) and tensor.ndim]
    indexed_far = function in INDEXING and isinstance(args[0], Far)  # by indices of either device, as on CUDA
    if far and near and function not in CROSSING and not indexed_far:
        raise RuntimeError(f"{function}: tensors on two devices; on the CPU: {[tuple(t.shape) for t in near]}")
    there = bool(far)
    if function is aten.copy_.default:
        there = isinstance(args[0], Far)
    elif kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == DEVICE
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args, kwargs = tree_map_only(Far, lambda tensor: tensor.near, (args, kwargs))
    result = function(*args, **kwargs)
    known = {id(tensor.near): tensor for tensor in far}  # written in place
    return tree_map_only(torch.Tensor, lambda t: known[id(t)] if id(t) in known else Far(t) if there else t, result)
