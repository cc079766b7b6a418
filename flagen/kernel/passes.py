"""Questions about a kernel, answered from its data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flagen.kernel.ir import (
    Add,
    Apply,
    Bind,
    Fill,
    Given,
    If,
    Kernel,
    Let,
    Load,
    Loop,
    Operands,
    Scale,
    Statement,
    accesses_in,
    statements_in,
    values_of,
)
from flagen.plan.rows import ROW, TOKEN
from flagen.plan.tiles import Edge, Head, Lane, Masked, Scan, Shifted, Size, Value
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


@dataclass(frozen=True)
class Named:
    """What of its axes a kernel names: the index of each lane, the token or row that a lane has, and which lanes lie
    within an axis."""

    indices: frozenset[str]
    rows: frozenset[str]
    masks: frozenset[str]


def axes_named(body: Iterable[Statement]) -> Named:
    """What statements name of axes."""
    statements = tuple(body)
    indices, rows, masks = set[str](), set[str](), set[str]()
    for found in accesses_in(statements):
        placed, ends = dict(found.places), dict(found.ends)
        indices |= {dim for dim in found.array.dims if dim not in placed} | {*ends}
        rows |= {*found.rows}
        masks |= {dim for dim in found.within if dim not in ends}
    for tile in values_of(statements):
        match tile:
            case Lane(axis):
                indices.add(axis)
            case Masked(_, dim):
                masks.add(dim)
    rows |= masks & {TOKEN, ROW}
    return Named(frozenset(indices | rows | masks), frozenset(rows), frozenset(masks))


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
            case Let(target) | Load(target) | Fill(target) | Add(target) | Scale(target) if target not in used:
                continue
            case Bind(targets) if not used & {*targets}:
                continue
            case Let(target) | Load(target) | Fill(target):
                used.discard(target)
            case Bind(targets):
                used -= {*targets}
            case Apply(routine):
                used |= {*routine.carried}
                kept.append(statement)
                continue
        used |= {s.target for s in statements_in((statement,)) if isinstance(s, Add | Scale)}
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


def arrays_named(body: Iterable[Statement]) -> frozenset[str]:
    """The arrays that it loads, stores, asks for, or takes its operands' dtype from."""
    statements = tuple(statements_in(body))
    found = {access.array.name for access in accesses_in(statements)}
    for statement in statements:
        match statement:
            case If(conditions):
                found |= {condition.array.name for condition in conditions if isinstance(condition, Given)}
            case Operands(array):
                found.add(array.name)
    return frozenset(found)
