"""Operators of torch without their numbers: tensors of the right shapes and strides, whose elements nobody computes.

    with without_numbers():
        o, state = chunk_kda(q, k, v, g, beta)

What a launcher launches, and what operators move, hangs on shapes, and on whole numbers such as where packed sequences
begin or how many tokens came before them. So operators on whole numbers alone run as ever, and on a few numbers, and
views do; any other one that takes a tensor of floating point is asked on the device `meta` what it would return, and
leaves memory that was never written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._library import custom_ops
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from flagen.triton_cpu.border import stock

_META = torch.device("meta")
_FEW = 1024
"""Elements of memory with which it is computed all the same: such as a count for each sequence and head."""


_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class NumberDecidesError(RuntimeError):
    """Something asked for an element of a tensor that has none."""


@contextmanager
def without_numbers() -> Iterator[None]:
    """Within it, operators leave tensors of floating point without numbers.

    Raises:
        NumberDecidesError: a number of floating point is asked for.
    """
    with _WithoutNumbers():  # type: ignore[no-untyped-call]
        yield


class _WithoutNumbers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Has operators leave tensors without numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (operator := written_in_python(func)) is not None:
            with self:
                return operator(*args, **(kwargs or {}))
        return shaped(func, args, kwargs or {})


def written_in_python(func: Any) -> Any:
    """The function that an operator of torch is, where it is one (`torch.library.custom_op`): nothing that runs behind
    torch's dispatcher would be seen."""
    operator = stock(custom_ops, "OPDEFS").get(func.overloadpacket._qualified_op_name)
    return None if operator is None else stock(operator, "_init_fn")


def shaped(func: Any, args: Any, kwargs: Any) -> Any:
    """What an operator returns, without numbers where these are of floating point.

    Raises:
        NumberDecidesError: a number of floating point is asked for.
    """
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if _is_view(func):
        return func(*args, **kwargs)
    if not any(tensor.is_floating_point() for tensor in tensors) or all(map(has_numbers, tensors)):
        return _computed(func, args, kwargs)
    written = _overwritten(func, args)
    if written is not None:
        return written
    if not any(str(returned.type) in ("Tensor", "List[Tensor]") for returned in func._schema.returns):
        if _memory((args, kwargs)) & _NUMBERLESS:
            raise NumberDecidesError(f"{func} asks for a number of floating point")
        return func(*args, **kwargs)
    leaves, tree = tree_flatten((args, kwargs))
    known = (func, tree, tuple([_described(leaf) for leaf in leaves]))
    if known not in _KNOWN:
        devices = {"device": _META} if kwargs.get("device") is not None else {}
        given, named = tree_map(_on_meta, (args, {**kwargs, **devices}))
        returned = func(*given, **named)
        _KNOWN[known] = None if _memory((given, named)) & _memory(returned) else returned
    if _KNOWN[known] is None:
        return func(*args, **kwargs)
    if any(leaf.dtype in _WHOLE for leaf in tree_leaves(_KNOWN[known]) if isinstance(leaf, Tensor)):
        if _memory((args, kwargs)) & _NUMBERLESS:
            raise NumberDecidesError(f"{func} makes whole numbers of numbers of floating point")
        return _computed(func, args, kwargs)
    return tree_map(_unwritten, _KNOWN[known])


_NUMBERLESS: set[int] = set()
"""Storages that nobody has written. One that is gone may be that of another tensor, which costs time and no more."""


def _computed(func: Any, args: Any, kwargs: Any) -> Any:
    returned = func(*args, **kwargs)
    _NUMBERLESS.difference_update(_memory(returned) - _memory((args, kwargs)))
    return returned


def _memory(tree: object) -> set[int]:
    """The storages of tensors."""
    return {leaf.untyped_storage()._cdata for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}


_KNOWN: dict[object, Any] = {}
"""What operators return on the device `meta`, by what they are given: the same for each of many sequences; None where
that has the memory of what they are given, which their schemas do not always say."""


def _described(leaf: object) -> object:
    """All of a leaf that the shape of a result may depend on."""
    if isinstance(leaf, Tensor):
        return leaf.dtype, tuple(leaf.shape), leaf.stride()
    return type(leaf), repr(leaf) if isinstance(leaf, float | torch.Generator) else leaf


def has_numbers(tensor: Tensor) -> bool:
    """Whether it is one of those few that are computed all the same."""
    storage = tensor.untyped_storage()
    return storage.nbytes() <= _FEW * tensor.element_size() and storage._cdata not in _NUMBERLESS


def _is_view(func: Any) -> bool:
    """Whether what it returns is the memory of what it is given."""
    aliases = [argument.alias_info for argument in func._schema.arguments if argument.alias_info is not None]
    return bool(aliases) and not any(alias.is_write for alias in aliases)


def _overwritten(func: Any, args: Any) -> Tensor | None:
    """The tensor that it writes over and returns, if that is all it does."""
    arguments, returns = func._schema.arguments, func._schema.returns
    written = [
        place for place, each in enumerate(arguments) if each.alias_info is not None and each.alias_info.is_write
    ]
    found: Tensor | None = args[0] if written == [0] and len(returns) == 1 else None
    return found


def _on_meta(leaf: object) -> object:
    if not isinstance(leaf, Tensor):
        return leaf
    return torch.empty_strided(leaf.size(), leaf.stride(), dtype=leaf.dtype, device=_META)


def _unwritten(leaf: object) -> object:
    if not isinstance(leaf, Tensor):
        return leaf
    memory = torch.empty_strided(leaf.size(), leaf.stride(), dtype=leaf.dtype)
    _NUMBERLESS.add(memory.untyped_storage()._cdata)
    return memory
