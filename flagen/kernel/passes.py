"""Questions about a kernel, answered from its data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flagen.kernel.ir import (
    Add,
    Fill,
    Kernel,
    Let,
    Load,
    Loop,
    Statement,
    accesses_in,
    statements_in,
    values_of,
)
from flagen.plan.tiles import Edge, Head, Masked, Scan, Shifted, Size, Value
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


def edges_named(kernel: Kernel) -> tuple[bool, bool]:
    """Whether it asks which token of a chunk is the first, and which is the last."""
    ends = set()
    for tile in values_of(kernel.body):
        match tile:
            case Scan(reverse=reverse) | Shifted(reverse=reverse):
                ends.add("last" if reverse else "first")
            case Edge(reverse=reverse):
                ends.add("first" if reverse else "last")
    return "first" in ends, "last" in ends


def live(body: Sequence[Statement], wanted: Iterable[str]) -> tuple[Statement, ...]:
    """A body without tiles that neither `wanted` nor a later statement reads: what it stores and hands on is the same.

    `wanted`: what is read behind the body, and in a loop at its start.
    """
    used = set(wanted)
    kept: list[Statement] = []
    for statement in reversed(body):
        match statement:
            case Let(target) | Load(target) | Fill(target) if target not in used:
                continue
            case Add(target) if target not in used:
                continue
            case Let(target) | Load(target) | Fill(target):
                used.discard(target)
        used |= {tile.name for tile in values_of((statement,)) if isinstance(tile, Value)}
        kept.append(statement)
    return tuple(reversed(kept))


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
