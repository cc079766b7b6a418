"""The parameters of a kernel over the rows of chunks, read off what it does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from flagen.kernel.ir import Array, Kernel, Run, Statement, accesses_in, values_of
from flagen.kernel.passes import counts_chunks
from flagen.kernel.recurrent import tensors_of
from flagen.kernel.rows import CHUNK_SEQUENCE, CU_SEQLENS, PACKING, RowLowering
from flagen.plan.kernel_names import kernel_name
from flagen.plan.tiles import Size, Value
from flagen.spec.model import Dims, Spec


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
    return Kernel(
        name=name,
        run=run,
        block_of=block_of,
        order=rows.order,
        arrays=tuple(_arrays(spec, run, body, order)),
        numbers=_numbers(spec, body),
        lengths=("T",),
        sizes=(*_other_sizes(spec, body, (*dims, *steps)), *steps, *heads, *dims, *tiles),
        names=rows.names,
        body=tuple(body),
        of_key_heads=of_key_heads,
        steps=rows.steps,
    )


def _arrays(spec: Spec, run: Run, body: Sequence[Statement], order: Iterable[str]) -> Iterator[Array]:
    """Those that a body names, and what says where sequences and their chunks begin."""
    found = {access.array.name: access.array for access in accesses_in(body)}
    found[CU_SEQLENS.name] = CU_SEQLENS
    if counts_chunks(run, body):
        found |= {array.name: array for array in PACKING if run == "chunk" or array != CHUNK_SEQUENCE}
    for name in (*(kernel_name(tensor.name) for tensor in tensors_of(spec)), *order):
        if name in found:
            yield found[name]


def _numbers(spec: Spec, body: Iterable[Statement]) -> tuple[str, ...]:
    """The Python numbers among the params that expressions read."""
    read = {tile.name for tile in values_of(body) if isinstance(tile, Value)}
    declared = (kernel_name(param.name) for param in spec.params if not param.is_tensor)
    return tuple(name for name in declared if name in read)


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
