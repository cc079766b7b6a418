"""Peak bytes of tensors that are alive during a computation, counted by what is dispatched: no allocator, no clock.

Under torch's FakeTensorMode nothing is computed, so that the sizes of real models can be tried anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class Footprint(TorchDispatchMode):
    """While it is entered: `peak`, the most bytes that tensors made since then had at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.known: set[int] = set()
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_flatten((args, kwargs))[0]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.alive:
                self.known.add(tensor.untyped_storage()._cdata)
        out = func(*args, **(kwargs or {}))
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return out


def added_peak(make: Callable[[], tuple[Tensor, ...]], step: Callable[..., Tensor]) -> int:
    """Peak bytes that step(*inputs) and its backward pass add to the inputs', gradients included."""
    with FakeTensorMode():
        inputs = make()
        with Footprint() as footprint:
            torch.autograd.grad(step(*inputs), [tensor for tensor in inputs if tensor.requires_grad])
    return footprint.peak
