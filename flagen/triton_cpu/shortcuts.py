"""What the interpreter works out again and again with the same result, worked out once.

Nothing here changes a result. Most of the interpreter's time goes not into numbers but into what surrounds them, and
most of that is waste:

- Every sum, difference and product of integers is computed a second time in int64 to see whether it overflows, and the
  finding is dropped unless assertions are on (`options.debug`).
- Every call of one jitted function by another replaces the builtins of `triton.language` once more, though the launch
  has done so already.
- Every tensor and every type of a block is made up anew, with all its sizes wrapped and its name spelled out.
- Operands are cast and broadcast to what they have in common, though mostly they have the same type already, and
  numpy broadcasts by itself.
- Every call of a builtin goes through three functions, and its named arguments through two copies.
- Whatever a builtin is given is tried for being one of the compiler's constants, which the interpreter rarely has.
- A table of numpy's types is filled for each look into it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
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
    builder = stock(interpreter, "InterpreterBuilder")
    overflow, operands = "binary_op_sanitize_overflow_impl", "binary_op_type_checking_impl"
    return [
        Patch(semantics, overflow, _where_assertions_are_on(stock(semantics, overflow))),
        Patch(semantics, operands, _operands(stock(semantics, operands))),
        Patch(semantics, "broadcast_impl_value", _unlike(stock(semantics, "broadcast_impl_value"))),
        Patch(builder, "create_expand_dims", _expanded(stock(builder, "create_expand_dims"))),
        Patch(interpreter, "_patch_attr", _called_at_once(stock(interpreter, "_patch_attr"))),
        Patch(core, "_unwrap_if_constexpr", _unwrapped(stock(core, "_unwrap_if_constexpr"))),
        Patch(executor, "__call__", patched_modules.launched(stock(executor, "__call__"))),
        Patch(interpreter, "_patch_lang", patched_modules.once(stock(interpreter, "_patch_lang"))),
        Patch(core.block_type, "__init__", _block(stock(core.block_type, "__init__"))),
        Patch(core.tensor, "__init__", _tensor(stock(core.tensor, "__init__"))),
        Patch(core.dtype, "__eq__", _identical_or(stock(core.dtype, "__eq__"))),
        Patch(interpreter, "_validate_np_data_size", _fits(stock(interpreter, "_validate_np_data_size"))),
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
        sizes = shape if type(shape) is list else getattr(shape, "values", shape)
        sizes = tuple([size if type(size) is int else getattr(size, "value", size) for size in sizes])
        if sizes not in made:
            stock_init(self, element_ty, shape)
            made[sizes] = self.__dict__
            made[sizes][_SIZES] = sizes
        self.__dict__ = made[sizes]

    return init


def _sizes(type: Any) -> tuple[int, ...] | None:
    """Those of a block; of a scalar there are none."""
    sizes: tuple[int, ...] | None = type.__dict__.get(_SIZES)
    return sizes


@cache
def _common(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...] | None:
    """The sizes that two blocks are broadcast to; None where that takes more thought, or an error to be raised."""
    fit = len(left) == len(right) and all(x == y or 1 in (x, y) for x, y in zip(left, right, strict=True))
    return tuple(y if x == 1 else x for x, y in zip(left, right, strict=True)) if fit else None


def _unlike(stock_broadcast: Callable[..., Any]) -> Callable[..., Any]:
    """Broadcast operands of unlike sizes."""

    def broadcast(self: Any, left: Any, right: Any) -> Any:
        sizes, others = _sizes(left.type), _sizes(right.type)
        if sizes is None or others is None:
            return stock_broadcast(self, left, right)
        if sizes == others:
            return left, right
        common = _common(sizes, others)
        if common is None:
            return stock_broadcast(self, left, right)

        def spread(x: Any, own: tuple[int, ...]) -> Any:
            if own == common:
                return x
            handle = self.builder.create_broadcast(x.handle, common)
            return tl.tensor(handle, tl.block_type(x.type.scalar, list(common)))

        return spread(left, sizes), spread(right, others)

    return broadcast


_WIDE_FLOATS = frozenset({"fp32", "fp64"})
_FLOATS = frozenset({"fp16", "bf16", *_WIDE_FLOATS})
_SIGNED = frozenset({"int8", "int16", "int32", "int64"})
_DIVIDED = _WIDE_FLOATS | _SIGNED


def _operands(stock_check: Callable[..., Any]) -> Callable[..., Any]:
    """Operands of one type, a tensor and a number that takes its type, and a pointer and an offset are told at once.

    Nothing is spread over the sizes they have in common: what takes both is a function of numpy's, which does so.
    """
    known: dict[Any, Any] = {}

    def check(
        self: Any,
        left: Any,
        right: Any,
        allow_left_pointer: bool = False,
        allow_right_pointer: bool = False,
        arithmetic: bool = True,
        divides: bool = False,
    ) -> Any:
        found = None
        if type(left) is tl.tensor:
            scalar = left.type.scalar
            if type(right) is tl.tensor:
                other = right.type.scalar
                alike = scalar is other and type(scalar) is tl.dtype
                offset = allow_left_pointer and type(scalar) is tl.pointer_type and other.name in _SIGNED
                if offset or (alike and (not divides or scalar.name in _DIVIDED)):
                    found = _of_common_sizes(left, right)
            elif arithmetic and _takes(scalar, right, divides):
                found = _of_common_sizes(left, _constant(self, right, scalar, known, stock_check))
        elif type(right) is tl.tensor and arithmetic and _takes(right.type.scalar, left, divides):
            found = _of_common_sizes(_constant(self, left, right.type.scalar, known, stock_check), right)
        if found is not None:
            return found
        return stock_check(self, left, right, allow_left_pointer, allow_right_pointer, arithmetic, divides)

    return check


def _constant(
    semantics: Any, number: float, scalar: Any, known: dict[Any, Any], stock_check: Callable[..., Any]
) -> Any:
    """A number as a tensor's elements, which may be `known`; but for 0.0, of which there are two."""
    key = type(number), number, scalar.name
    if key in known:
        return known[key]
    _, made = stock_check(semantics, semantics.scalar_constant(0, scalar), number)
    if type(number) is int or number != 0:
        known[key] = made
    return made


def _takes(scalar: Any, number: Any, divides: bool) -> bool:
    """Whether what meets a tensor is a number that takes the type of its elements, whatever the number is."""
    if type(number) is int and scalar.name in _SIGNED:
        return True
    return type(number) in (int, float) and scalar.name in (_WIDE_FLOATS if divides else _FLOATS)


def _of_common_sizes(left: Any, right: Any) -> Any:
    """Two tensors with their numbers as they are, said to have the sizes that they have in common; None if unknown."""
    sizes, others = _sizes(left.type), _sizes(right.type)
    if sizes == others:
        return left, right
    common = sizes if others is None else others if sizes is None else _common(sizes, others)
    if common is None:
        return None
    if sizes != common:
        left = tl.tensor(left.handle, tl.block_type(left.type.scalar, list(common)))
    if others != common:
        right = tl.tensor(right.handle, tl.block_type(right.type.scalar, list(common)))
    return left, right


def _expanded(stock_expansion: Callable[..., Any]) -> Callable[..., Any]:
    def create_expand_dims(self: Any, handle: Any, axis: Any) -> Any:
        if type(axis) is not int or not 0 <= axis <= handle.data.ndim:
            return stock_expansion(self, handle, axis)
        return interpreter.TensorHandle(handle.data[(slice(None),) * axis + (None,)], handle.dtype.scalar)

    return create_expand_dims


def _called_at_once(stock_patch: Callable[..., None]) -> Callable[..., None]:
    """A builtin knows the interpreter without asking whether somebody said so."""
    wrapper = tl.core.builtin(lambda: None).__code__

    def patch_attribute(owner: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        if getattr(member, "__code__", None) is not wrapper:
            stock_patch(owner, name, member, builder, scope)
            return
        function = member.__wrapped__

        def call(*arguments: Any, **named: Any) -> Any:
            named["_semantic"] = interpreter.interpreter_semantic
            return function(*arguments, **named)

        scope.set_attr(owner, name, call)

    return patch_attribute


def _unwrapped(stock_unwrap: Callable[[Any], Any]) -> Callable[[Any], Any]:
    plain = frozenset({tl.tensor, int, float, bool, str, type(None)})
    return lambda x: x if type(x) in plain else stock_unwrap(x)


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


_BYTES = {"int1": 1, "int32": 4, "int64": 8, "bf16": 2, "fp16": 2, "fp32": 4, "fp64": 8}


def _fits(stock_check: Callable[..., bool]) -> Callable[..., bool]:
    def fits(np_array: Any, tl_dtype: Any) -> bool:
        if type(tl_dtype) is tl.dtype and np_array.itemsize <= _BYTES.get(tl_dtype.name, 0):
            return True
        return stock_check(np_array, tl_dtype)

    return fits


def _numpy_type(stock_type: Callable[[Any], Any]) -> Callable[[Any], Any]:
    known: dict[str, np.dtype[Any]] = {}

    def numpy_type(tt_dtype: Any) -> Any:
        name = tt_dtype.scalar.name
        if name not in known:
            known[name] = stock_type(tt_dtype)
        return known[name]

    return numpy_type
