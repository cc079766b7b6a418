"""What the interpreter works out again and again with the same result, worked out once.

Nothing here changes a result. Most of the interpreter's time goes not into numbers but into what surrounds them, and
most of that is waste:

- Every sum, difference and product of integers is computed a second time in int64 to see whether it overflows, and the
  finding is dropped unless assertions are on (`options.debug`).
- Every call of one jitted function by another replaces the builtins of `triton.language` once more, though the launch
  has done so already.
- Every tensor and every type of a block is made up anew, with all its sizes wrapped and its name spelled out.
- The sizes of two blocks are compared one by one to see how to broadcast them, where mostly they are the same.
- A table of numpy's types is filled for each look into it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flagen.triton_cpu.border import Patch, interpreter, semantic, stock, tl

_BLOCKS = "_flagen_blocks"
_SIZES = "_flagen_sizes"
_TENSORS = "_flagen_tensors"


def patches() -> list[Patch]:
    """The interpreter's checks, its launches, and the types and tensors of the language."""
    core, executor = tl.core, stock(interpreter, "GridExecutor")
    patched_modules = _PatchedModules()
    semantics = stock(semantic, "TritonSemantic")
    check = "binary_op_sanitize_overflow_impl"
    return [
        Patch(semantics, check, _where_assertions_are_on(stock(semantics, check))),
        Patch(semantics, "broadcast_impl_value", _unlike(stock(semantics, "broadcast_impl_value"))),
        Patch(executor, "__call__", patched_modules.launched(stock(executor, "__call__"))),
        Patch(interpreter, "_patch_lang", patched_modules.once(stock(interpreter, "_patch_lang"))),
        Patch(core.block_type, "__init__", _block(stock(core.block_type, "__init__"))),
        Patch(core.tensor, "__init__", _tensor(stock(core.tensor, "__init__"))),
        Patch(core.dtype, "__eq__", _identical_or(stock(core.dtype, "__eq__"))),
        Patch(interpreter, "_get_np_dtype", _numpy_type(stock(interpreter, "_get_np_dtype"))),
    ]


def _where_assertions_are_on(stock_check: Callable[..., None]) -> Callable[..., None]:
    def check(self: Any, *arguments: Any) -> None:
        if self.builder.options.debug:
            stock_check(self, *arguments)

    return check


class _Nothing:
    """What a launch has to undo of a patch that was in force already."""

    def restore(self) -> None:
        pass


class _PatchedModules:
    """The modules of jitted functions that this launch has replaced the builtins for; none between launches."""

    def __init__(self) -> None:
        self._seen: dict[int, Any] | None = None

    def launched(self, stock_call: Callable[..., Any]) -> Callable[..., Any]:
        # Positional only, for a kernel's argument may have any name.
        def call(executor: Any, /, *arguments: Any, **named: Any) -> Any:
            before, self._seen = self._seen, {}
            try:
                return stock_call(executor, *arguments, **named)
            finally:
                self._seen = before

        return call

    def once(self, stock_patch: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def patch(function: Any) -> Any:
            names = function.__globals__
            if self._seen is None:
                return stock_patch(function)
            if id(names) in self._seen:
                return _Nothing()
            self._seen[id(names)] = names
            return stock_patch(function)

        return patch


def _block(stock_init: Callable[..., None]) -> Callable[..., None]:
    """Types of blocks of the same element and sizes share what they are made of."""

    def init(self: Any, element_ty: Any, shape: Any) -> None:
        made = element_ty.__dict__.setdefault(_BLOCKS, {})
        sizes = tuple(getattr(size, "value", size) for size in getattr(shape, "values", shape))
        if sizes not in made:
            stock_init(self, element_ty, shape)
            made[sizes] = self.__dict__
            made[sizes][_SIZES] = sizes
        self.__dict__ = made[sizes]

    return init


def _unlike(stock_broadcast: Callable[..., Any]) -> Callable[..., Any]:
    """Broadcast operands of unlike sizes; of a scalar nothing is known here."""

    def broadcast(self: Any, left: Any, right: Any) -> Any:
        sizes = left.type.__dict__.get(_SIZES)
        if sizes is not None and sizes == right.type.__dict__.get(_SIZES):
            return left, right
        return stock_broadcast(self, left, right)

    return broadcast


def _tensor(stock_init: Callable[..., None]) -> Callable[..., None]:
    """But for its handle, a tensor is made of what its type tells."""

    def init(self: Any, handle: Any, type: Any) -> None:
        made = type.__dict__.get(_TENSORS)
        if made is None:
            stock_init(self, handle, type)
            made = type.__dict__[_TENSORS] = {name: value for name, value in self.__dict__.items() if name != "handle"}
        self.__dict__.update(made)
        self.handle = handle

    return init


def _identical_or(stock_eq: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    return lambda self, other: self is other or stock_eq(self, other)


def _numpy_type(stock_type: Callable[[Any], Any]) -> Callable[[Any], Any]:
    known: dict[str, np.dtype[Any]] = {}

    def numpy_type(tt_dtype: Any) -> Any:
        name = tt_dtype.scalar.name
        if name not in known:
            known[name] = stock_type(tt_dtype)
        return known[name]

    return numpy_type
