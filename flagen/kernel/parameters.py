"""The parameters of a kernel over the rows of chunks, read off what it does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from flagen.kernel.ir import Array, Kernel, Load, Routine, Run, Space, Statement, accesses_in, statements_in, values_of
from flagen.kernel.passes import counts_chunks
from flagen.kernel.recurrent import tensors_of
from flagen.kernel.rows import CHUNK_SEQUENCE, CU_SEQLENS, PACKING, RowLowering
from flagen.plan.kernel_names import kernel_name
from flagen.plan.tiles import Size, Value
from flagen.spec.model import Dims, Spec

SHARES = "shares"
"""How many blocks there are that have shares of a sum."""


def assembled(
    rows: RowLowering[Any],
    body: Sequence[Statement],
    *,
    name: str,
    run: Run,
    dims: Dims,
    tiles: Sequence[str],
    order: Iterable[str],
    block_of: str | None = None,
    of_key_heads: bool = False,
) -> Kernel:
    """A kernel with a body; `order`: that of its arrays behind the tensors of the call; `dims`, `tiles`: the sizes that
    it is compiled for, whether its expressions name them or not."""
    spec, steps = rows.plan.spec, (rows.steps,) if rows.steps else ()
    heads = ("H", "HV") if of_key_heads else _heads(body)
    sizes, lanes = _with_pairs(spec, dims, tiles)
    return Kernel(
        name=name,
        run=run,
        block_of=block_of,
        order=rows.order,
        arrays=_arrays(spec, body, order, *_packing(run, body)),
        numbers=_numbers(spec, body),
        lengths=("T",),
        sizes=(*_other_sizes(spec, body, (*sizes, *steps)), *steps, *heads, *sizes, *lanes),
        names=rows.names,
        body=tuple(body),
        of_key_heads=of_key_heads,
        steps=rows.steps,
    )


def routine_of(
    rows: RowLowering[Any],
    body: Sequence[Statement],
    *,
    name: str,
    carried: tuple[str, ...],
    docs: str,
    dims: Dims,
    tiles: Sequence[str],
    order: Iterable[str],
    place: tuple[Space, ...],
    lanes: Dims,
) -> Routine:
    """A routine with a body, in the same way."""
    spec, steps = rows.plan.spec, (rows.steps,) if rows.steps else ()
    sizes, words = _with_pairs(spec, dims, tiles)
    return Routine(
        name=name,
        carried=carried,
        arrays=_arrays(spec, body, order),
        numbers=_numbers(spec, body),
        sizes=(*_other_sizes(spec, body, (*sizes, *steps)), *steps, *_heads(body), *sizes, *words),
        docs=docs,
        body=tuple(body),
        place=place,
        lanes=lanes,
    )


def _with_pairs(spec: Spec, dims: Dims, tiles: Sequence[str]) -> tuple[Dims, tuple[str, ...]]:
    """The sizes that a kernel is compiled for, with those of the two dims that one has the pairs of."""
    sides = tuple(side for dim in dims for side in spec.pairs.get(dim, ()))
    return (*sides, *dims), (*(f"BLOCK_{side}" for side in sides), *tiles)


def _arrays(spec: Spec, body: Sequence[Statement], order: Iterable[str], *others: Array) -> tuple[Array, ...]:
    """Those that a body names, and `others`."""
    found = {access.array.name: access.array for access in accesses_in(body)}
    found |= {array.name: array for array in others}
    names = (*(kernel_name(tensor.name) for tensor in tensors_of(spec)), *order)
    return tuple(found[name] for name in names if name in found)


def _packing(run: Run, body: Sequence[Statement]) -> tuple[Array, ...]:
    """What says where sequences and their chunks begin."""
    if not counts_chunks(run, body):
        return (CU_SEQLENS,)
    return tuple(array for array in PACKING if run == "chunk" or array != CHUNK_SEQUENCE)


def _numbers(spec: Spec, body: Sequence[Statement]) -> tuple[str, ...]:
    """The Python numbers among the params that expressions read; how many blocks there are that have shares."""
    read = {tile.name for tile in values_of(body) if isinstance(tile, Value)}
    declared = (kernel_name(param.name) for param in spec.params if not param.is_tensor)
    shares = any(isinstance(statement, Load) and statement.shares for statement in statements_in(body))
    return (*(name for name in declared if name in read), *((SHARES,) if shares else ()))


def _named(body: Iterable[Statement]) -> frozenset[str]:
    """The sizes that expressions name."""
    return frozenset(tile.name for tile in values_of(body) if isinstance(tile, Size))


def _heads(body: Sequence[Statement]) -> tuple[str, ...]:
    key_heads = any("key_head" in access.array.spaces for access in accesses_in(body))
    return ("H", "HV") if key_heads or "H" in _named(body) else ("HV",)


def _other_sizes(spec: Spec, body: Iterable[Statement], known: Sequence[str]) -> list[str]:
    """Those of the spec that expressions name beside what is known."""
    declared = {*spec.dims, *(() if spec.steps is None else (spec.steps.symbol,))}
    return sorted(_named(body) & declared - {*known})
