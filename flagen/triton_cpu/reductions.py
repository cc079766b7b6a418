"""Reductions and scans of bfloat16 in the interpreter.

Stock Triton sums, compares and accumulates the uint16 bit patterns. A compiled kernel reduces in the tensor's own type,
rounding at every step, so that a long bfloat16 sum loses bits that one rounded at the end would keep; the repaired
interpreter loses them too. The order of a compiled reduction depends on its layout. Sums here halve the axis, scans go
from one end to the other: an order a compiler may choose, not the one it does.

Reductions and scans with another combine function run through that function, and are right once arithmetic is. But
stock Triton calls it for one element of a scan at a time, which takes seconds for a tile. Here scans go by doubling,
all lanes at once: another order that a compiler may choose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from flagen.triton_cpu.arithmetic import is_bfloat16, widened
from flagen.triton_cpu.border import Patch, interpreter, stock, tl
from flagen.triton_cpu.rounding import Float32, rounded_to_bfloat16, to_bfloat16


def patches() -> list[Patch]:
    """The reductions and scans for which the interpreter has a numpy shortcut."""
    reduce_ops, scan_ops = stock(interpreter, "ReduceOps"), stock(interpreter, "ScanOps")
    return [
        Patch(reduce_ops, "sum", _sum(stock(reduce_ops, "sum"))),
        Patch(reduce_ops, "min_max", _min_max(stock(reduce_ops, "min_max"))),
        Patch(scan_ops, "cumsum", _scan(stock(scan_ops, "cumsum"), np.add)),
        Patch(scan_ops, "cumprod", _scan(stock(scan_ops, "cumprod"), np.multiply)),
        Patch(scan_ops, "generic_scan", _by_doubling(stock(scan_ops, "generic_scan"))),
    ]


def _sum(stock_sum: Callable[..., Any]) -> Callable[..., Any]:
    def sum_(self: Any, tensor: Any) -> Any:
        if not is_bfloat16(tensor.handle):
            return stock_sum(self, tensor)
        values = widened(tensor.handle)
        total = _halving_sum(values.reshape(-1) if self.axis is None else np.moveaxis(values, self.axis, 0))
        if self.keep_dims:
            total = total.reshape(_kept_shape(values.shape, self.axis))
        return self.to_tensor(to_bfloat16(total), tensor.dtype)

    return sum_


def _halving_sum(values: Float32) -> Float32:
    """The sum over the first axis, whose length is a power of two as every Triton block's is."""
    while len(values) > 1:
        half = len(values) // 2
        values = rounded_to_bfloat16(values[:half] + values[half:])
    return np.asarray(values[0])


def _kept_shape(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    if axis is None:
        return (1,) * len(shape)
    kept = list(shape)
    kept[axis] = 1
    return tuple(kept)


def _min_max(stock_min_max: Callable[..., Any]) -> Callable[..., Any]:
    def min_max(self: Any, tensors: Any, *operations: Any, **named: Any) -> Any:
        tensor = tensors[0] if isinstance(tensors, tuple) else tensors
        if not is_bfloat16(tensor.handle):
            return stock_min_max(self, tensors, *operations, **named)
        result = stock_min_max(self, self.to_tensor(widened(tensor.handle), tl.float32), *operations, **named)
        if isinstance(result, tuple):
            value, index = result
            return _narrowed_tensor(self, value), index
        return _narrowed_tensor(self, result)

    return min_max


def _narrowed_tensor(operation: Any, tensor: Any) -> Any:
    bits = to_bfloat16(tensor.handle.data)
    # The interpreter keeps a scalar in an array of one element, and tells it from a block by its type.
    return operation.to_tensor(bits if tensor.type.is_block() else bits[0], tl.bfloat16)


def _scan(stock_scan: Callable[..., Any], combine: Callable[[Float32, Float32], Float32]) -> Callable[..., Any]:
    def scan(self: Any, tensor: Any) -> Any:
        if not is_bfloat16(tensor.handle):
            return stock_scan(self, tensor)
        values = np.moveaxis(widened(tensor.handle).copy(), self.axis, 0)
        for row in range(1, len(values)):
            values[row] = rounded_to_bfloat16(combine(values[row - 1], values[row]))
        return [self.to_tensor(to_bfloat16(np.moveaxis(values, 0, self.axis)), tensor.dtype)]

    return scan


def _by_doubling(_: Callable[..., Any]) -> Callable[..., Any]:
    def generic_scan(self: Any, tensors: Any) -> list[Any]:
        every = [np.moveaxis(tensor.handle.data, self.axis, 0).copy() for tensor in tensors]
        shift = 1
        while shift < len(every[0]):
            before = (np.roll(values, shift, axis=0) for values in every)
            joined = self.combine_fn.fn(*_blocks(self, tensors, before), *_blocks(self, tensors, every))
            for values, result in zip(every, joined if isinstance(joined, tuple) else (joined,), strict=True):
                values[shift:] = result.handle.data.reshape(values.shape)[shift:]
            shift *= 2
        scanned = (np.ascontiguousarray(np.moveaxis(values, 0, self.axis)) for values in every)
        return [self.to_tensor(values, tensor.dtype) for values, tensor in zip(scanned, tensors, strict=True)]

    return generic_scan


def _blocks(operation: Any, tensors: Any, arrays: Iterable[Any]) -> list[Any]:
    """Arrays as one-dimensional blocks of the types of `tensors`."""
    return [operation.to_tensor(x.reshape(-1), tensor.dtype) for x, tensor in zip(arrays, tensors, strict=True)]
