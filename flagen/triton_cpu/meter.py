"""What kernels move and compute, counted while the interpreter runs them.

    with metered() as report:
        o, state = chunk_gated_delta_rule(q, k, v, g, beta)
    print(report.table(per=tokens * heads))

Bytes are counted twice over. `read` and `written` count each address once per launch: what must cross the device's
memory if its cache were perfect. `requested` counts every element that a load, a store or an atomic asks for: what
crosses the levels nearer to the processor. Operators of torch that run between the kernels (casts, sums, fills) move
bytes of their own, which a comparison must not hide: they are counted beside the kernels, each output and each input
once, where they touch memory at all. An operator written in Python (`torch.library.custom_op`) is what it runs.

A backward is metered like a call. What a call keeps for it is told by `kept_for_gradients`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flagen.triton_cpu.border import Patch, interpreter, patched, stock
from flagen.triton_cpu.repair import repair
from flagen.triton_cpu.shapes import shaped, written_in_python

Addresses = npt.NDArray[np.uint64]

# Operators that take a tensor for its shape, or to overwrite it, and do not read it.
_OVERWRITING = frozenset(
    ("copy_", "fill_", "full_like", "new_full", "new_ones", "new_zeros", "ones_like", "zero_", "zeros_like")
)


@dataclass(frozen=True)
class Traffic:
    """What the launches of one kernel, or the calls of one operator, did in all."""

    launches: int = 0
    programs: int = 0
    read: int = 0
    written: int = 0
    requested: int = 0
    flops: int = 0

    @property
    def moved(self) -> int:
        """Bytes read and written, each address once per launch."""
        return self.read + self.written

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Report:
    """Traffic by the name of the kernel, and of the torch operator; it fills while the meter runs."""

    kernels: dict[str, Traffic] = field(default_factory=dict)
    operators: dict[str, Traffic] = field(default_factory=dict)

    def add(self, kernel: str, traffic: Traffic) -> None:
        """Count another launch of a kernel."""
        _add(self.kernels, kernel, traffic)

    @property
    def total(self) -> Traffic:
        """Kernels and operators together."""
        return sum((*self.kernels.values(), *self.operators.values()), Traffic())

    def table(self, per: int = 1) -> str:
        """The report as text, a row for each name; bytes and flops divided by `per`, such as tokens times heads."""
        rows = {**self.kernels, **{f"torch.{name}": traffic for name, traffic in self.operators.items()}}
        width = max(map(len, (*rows, "kernel")))
        counts = f"{'launches':>9} {'programs':>9}"
        head = f"{'kernel':{width}} {counts} {'read':>9} {'written':>9} {'requested':>11} {'flops':>11}"
        rows["total"] = self.total
        return "\n".join([head, *(_row(f"{name:{width}}", traffic, per) for name, traffic in rows.items())])


def _row(name: str, traffic: Traffic, per: int) -> str:
    read, written, requested, flops = (
        amount / per for amount in (traffic.read, traffic.written, traffic.requested, traffic.flops)
    )
    counts = f"{traffic.launches:9d} {traffic.programs:9d}"
    return f"{name} {counts} {read:9.0f} {written:9.0f} {requested:11.0f} {flops:11.0f}"


@contextmanager
def metered(*, numbers: bool = True) -> Iterator[Report]:
    """Count what kernels and torch operators do within; repairs the interpreter first. Without `numbers` operators of
    torch between kernels compute none of floating point."""
    repair()
    report = Report()
    meter = _Meter(report)
    with patched(meter.patches()), _OperatorMeter(meter, _called if numbers else shaped):
        yield report


@dataclass(frozen=True)
class Kept:
    """Bytes of memory by address; it fills while calls run."""

    storages: dict[int, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(self.storages.values())


@contextmanager
def kept_for_gradients() -> Iterator[Kept]:
    """Tell what autograd keeps of the calls within for their backward, arguments among it: each tensor's memory once,
    as a whole even if a part of it is kept."""
    kept = Kept()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept.storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def _add(counts: dict[str, Traffic], name: str, traffic: Traffic) -> None:
    counts[name] = counts.get(name, Traffic()) + traffic


class _Launch:
    """What one launch has done so far, told by the calls that the interpreter makes of its builder."""

    def __init__(self) -> None:
        self._programs = self._requested = self._flops = 0
        self._touched: dict[tuple[str, int], list[Addresses]] = defaultdict(list)

    def traffic(self) -> Traffic:
        """The launch as a whole, each address counted once."""
        moved = {"read": 0, "written": 0}
        for (kind, size), chunks in self._touched.items():
            moved[kind] += _distinct(np.concatenate(chunks)).size * size
        return Traffic(1, self._programs, moved["read"], moved["written"], self._requested, self._flops)

    def on_grid(self, *dimensions: Any) -> None:
        # A grid computed from a kernel's arguments holds tensors.
        self._programs += math.prod(map(int, dimensions))

    def on_load(self, pointer: Any, mask: Any, *_: Any, **__: Any) -> None:
        self._touch("read", pointer, mask)

    def on_store(self, pointer: Any, _value: Any, mask: Any, *_: Any, **__: Any) -> None:
        self._touch("written", pointer, mask)

    def on_atomic_rmw(self, _operation: Any, pointer: Any, _value: Any, mask: Any, *_: Any) -> None:
        self._touch("read", pointer, mask)
        self._touch("written", pointer, mask)

    def on_atomic_cas(self, pointer: Any, *_: Any) -> None:
        self.on_atomic_rmw(None, pointer, None, np.ones(pointer.data.shape, dtype=np.bool_))

    def on_dot(self, a: Any, b: Any, *_: Any) -> None:
        self._flops += 2 * a.data.size * b.data.shape[-1]

    def _touch(self, kind: str, pointer: Any, mask: Any) -> None:
        size = max(1, pointer.get_element_ty().primitive_bitwidth // 8)
        # Some releases pass the mask of a descriptor as a bare array.
        addresses = pointer.data[mask if isinstance(mask, np.ndarray) else mask.data]
        self._requested += addresses.size * size
        self._touched[kind, size].append(_distinct(addresses))


def _distinct(addresses: Addresses) -> Addresses:
    """Each address once, in order. They come in runs that a sort is quick with; numpy's `unique` would hash each."""
    ordered: Addresses = np.sort(addresses, axis=None)
    first = np.ones(ordered.size, dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]


_LISTENERS: Mapping[str, Callable[..., None]] = {
    "set_grid_dim": _Launch.on_grid,
    "create_masked_load": _Launch.on_load,
    "create_masked_store": _Launch.on_store,
    "create_atomic_rmw": _Launch.on_atomic_rmw,
    "create_atomic_cas": _Launch.on_atomic_cas,
    "create_dot": _Launch.on_dot,
}


class _Meter:
    """Listens to the interpreter's launches, and during one to its builder."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.launch: _Launch | None = None

    def patches(self) -> list[Patch]:
        builder, executor = stock(interpreter, "InterpreterBuilder"), stock(interpreter, "GridExecutor")
        heard = [Patch(builder, name, self._heard(stock(builder, name), on)) for name, on in _LISTENERS.items()]
        return [*heard, Patch(executor, "__call__", self._launched(stock(executor, "__call__")))]

    def _heard(self, operation: Callable[..., Any], listener: Callable[..., None]) -> Callable[..., Any]:
        def heard(builder: Any, *arguments: Any, **named: Any) -> Any:
            if self.launch is not None:
                listener(self.launch, *arguments, **named)
            return operation(builder, *arguments, **named)

        return heard

    def _launched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        # Positional only, for a kernel's argument may have any name.
        def launched(executor: Any, /, *arguments: Any, **named: Any) -> Any:
            self.launch = _Launch()
            try:
                result = call(executor, *arguments, **named)
                self.report.add(executor.fn.__name__, self.launch.traffic())
            finally:
                self.launch = None
            return result

        return launched


class _OperatorMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators of torch, except those with which the interpreter itself copies arguments."""

    def __init__(self, meter: _Meter, call: Callable[[Any, Any, Any], Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._meter, self._call = meter, call

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (operator := written_in_python(func)) is not None:
            with self:
                return operator(*args, **(kwargs or {}))
        result = (self._call if self._meter.launch is None else _called)(func, args, kwargs or {})
        if self._meter.launch is None:
            name = func.overloadpacket.__name__
            inputs, outputs = _tensors((args, kwargs)), _tensors(result)
            storages = {tensor.untyped_storage().data_ptr() for tensor in inputs}
            views = all(tensor.untyped_storage().data_ptr() in storages for tensor in outputs)
            if not (name.startswith(("empty", "new_empty")) or (views and not func._schema.is_mutable)):
                read = _bytes(_tensors((args[1:], kwargs)) if name in _OVERWRITING else inputs)
                written = _bytes(outputs)
                traffic = Traffic(launches=1, read=read, written=written, requested=read + written)
                _add(self._meter.report.operators, name, traffic)
        return result


def _called(func: Any, args: Any, kwargs: Any) -> Any:
    return func(*args, **kwargs)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return list({id(leaf): leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}.values())


def _bytes(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
