"""Questions about a kernel, answered from its data."""

from __future__ import annotations

from collections.abc import Iterable

from flagen.kernel.ir import Kernel, Loop, Statement, accesses_in, statements_in, values_of
from flagen.plan.tiles import Head, Masked, Size, Value
from flagen.spec.model import Spec


def has_key_heads(kernel: Kernel) -> bool:
    """Whether it loads a row of each key head."""
    return any("key_head" in access.array.spaces for access in accesses_in(kernel.body))


def evaluates_head(kernel: Kernel) -> bool:
    """Whether an expression names the value head."""
    return any(isinstance(tile, Head) for tile in values_of(kernel.body))


def dims_with_ends(kernel: Kernel) -> frozenset[str]:
    """The dims whose ends a kernel has to know: it loads, stores or masks a tile over them."""
    found = {dim for access in accesses_in(kernel.body) for dim in (*access.array.dims, *access.within)}
    return frozenset(found | {tile.dim for tile in values_of(kernel.body) if isinstance(tile, Masked)})


def reads_steps(body: Iterable[Statement]) -> bool:
    """Whether it loads or stores a row of each micro-step of a token."""
    return any(access.array.spaces[:2] == ("token", "micro_step") for access in accesses_in(body))


def numbers_read(body: Iterable[Statement], spec: Spec) -> tuple[str, ...]:
    """The Python numbers among the params that expressions read."""
    read = {tile.name for tile in values_of(body) if isinstance(tile, Value)}
    return tuple(param.name for param in spec.params if not param.is_tensor and param.name in read)


def sizes_read(body: Iterable[Statement], spec: Spec) -> tuple[str, ...]:
    """Micro-steps and heads, where the kernel has to know them."""
    statements = tuple(body)
    named = {tile.name for tile in values_of(statements) if isinstance(tile, Size)}
    loops = any(isinstance(s, Loop) and s.over == "micro_step" and s.body for s in statements_in(statements))
    steps = () if spec.steps is None else (spec.steps.symbol,)
    heads = "H" in named or any("key_head" in found.array.spaces for found in accesses_in(statements))
    return (*(steps if loops or named & {*steps} else ()), *(("H",) if heads else ()), "HV")
