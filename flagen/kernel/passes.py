"""Questions about a kernel, answered from its data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from flagen.kernel.ir import (
    Access,
    Add,
    Apply,
    Array,
    Bind,
    Choose,
    Fill,
    Given,
    If,
    Kernel,
    Let,
    Load,
    Loop,
    Note,
    Operands,
    Run,
    Scale,
    Statement,
    Store,
    accesses_in,
    statements_in,
    values_of,
)
from flagen.plan.rows import ROW, TOKEN
from flagen.plan.tiles import Edge, Head, InSequence, Lane, Masked, Rounded, Scan, Shifted, Size, Value
from flagen.spec.model import Spec


def has_key_heads(kernel: Kernel) -> bool:
    """Whether it loads a row of each key head."""
    return any("key_head" in access.array.spaces for access in accesses_in(kernel.body))


def is_aligned(kernel: Kernel) -> bool:
    """Whether its chunks are counted from the tokens that there were before a sequence."""
    return any(isinstance(s, Loop) and bool(s.aligned) for s in statements_in(kernel.body))


def evaluates_head(kernel: Kernel) -> bool:
    """Whether an expression names the value head."""
    return any(isinstance(tile, Head) for tile in values_of(kernel.body))


def counts_chunks(run: Run, body: Iterable[Statement]) -> bool:
    """Whether a kernel has to know which chunk of all is which."""
    spaces = {space for access in accesses_in(body) for space in access.array.spaces}
    return run == "chunk" or bool(spaces & {"counted_chunk", "slot"})


def dims_with_ends(kernel: Kernel) -> frozenset[str]:
    """The dims whose ends a kernel has to know: it loads, stores or masks a tile over them."""
    found = {dim for access in accesses_in(kernel.body) for dim in (*access.array.dims, *access.within)}
    return frozenset(found | {tile.dim for tile in values_of(kernel.body) if isinstance(tile, Masked)})


def dims_counted(kernel: Kernel) -> frozenset[str]:
    """The dims along which an expression counts places."""
    return frozenset(tile.axis for tile in values_of(kernel.body) if isinstance(tile, Lane))


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


def tokens_ago(kernel: Kernel) -> tuple[int, ...]:
    """How many tokens before those of the program's lanes, or behind them, others are that it asks for."""
    found = {access.ago for access in accesses_in(kernel.body)}
    found |= {tile.ago for tile in values_of(kernel.body) if isinstance(tile, InSequence)}
    return tuple(sorted(found - {0}, reverse=True))


def live(body: Sequence[Statement], wanted: Iterable[str]) -> tuple[Statement, ...]:
    """A body without tiles that neither `wanted` nor a later statement reads: what it stores and hands on is the same.

    `wanted`: what is read behind the body, and in a loop at its start.
    """
    kept, _ = _live(body, frozenset(wanted))
    return kept


def _live(body: Sequence[Statement], wanted: frozenset[str]) -> tuple[tuple[Statement, ...], frozenset[str]]:
    """What is needed of a body, and what that reads of what was there before it."""
    kept, used = list[Statement](), wanted
    for statement in reversed(body):
        found, used = _needed(statement, used)
        kept += () if found is None else (found,)
    return tuple(reversed(kept)), used


def _needed(statement: Statement, used: frozenset[str]) -> tuple[Statement | None, frozenset[str]]:
    """What is needed of a statement behind which `used` is read, and what is read before it."""
    match statement:
        case Let(target) | Load(target) | Fill(target):
            return (statement, used - {target} | _read(statement)) if target in used else (None, used)
        case Add(target) | Scale(target) | Choose(_, target):
            return (statement, used | _read(statement)) if target in used else (None, used)
        case Bind(targets):
            return (statement, used - {*targets} | _read(statement)) if used & {*targets} else (None, used)
        case Apply(routine):
            needed = bool(used & {*routine.carried}) or _stores(routine.body)
            return (statement, used | {*routine.carried}) if needed else (None, used)
        case If(conditions, then, otherwise):
            kept_then, by_then = _live(then, used)
            kept_otherwise, by_otherwise = _live(otherwise, used)
            if kept_then:
                return If(conditions, kept_then, kept_otherwise), by_then | by_otherwise
            return (statement, used | by_otherwise | _read(statement)) if kept_otherwise else (None, used)
        case Loop(_, inner):
            return _needed_of_loop(statement, inner, used)
    return statement, used | _read(statement)


def _needed_of_loop(
    loop: Loop, inner: Sequence[Statement], used: frozenset[str]
) -> tuple[Statement | None, frozenset[str]]:
    """What a turn leaves is read behind the loop, or in the next turn."""
    kept, before = _live(inner, used)
    while not before <= used:
        used |= before
        kept, before = _live(inner, used)
    return (replace(loop, body=kept) if any(not isinstance(s, Note) for s in kept) else None), used


def _read(statement: Statement) -> frozenset[str]:
    """The tiles that a statement reads."""
    return frozenset(tile.name for tile in values_of((statement,)) if isinstance(tile, Value))


def _stores(body: Iterable[Statement]) -> bool:
    return any(isinstance(statement, Store) for statement in statements_in(body))


def without_routines(body: Iterable[Statement]) -> tuple[Statement, ...]:
    """A body without what it leaves to routines."""
    return tuple(_without_routines(body))


def _without_routines(body: Iterable[Statement]) -> Iterator[Statement]:
    for statement in body:
        match statement:
            case Loop(_, inner):
                yield replace(statement, body=without_routines(inner))
            case If(_, then, otherwise):
                yield replace(statement, then=without_routines(then), otherwise=without_routines(otherwise))
            case Apply():
                pass
            case _:
                yield statement


def with_arrays(kernel: Kernel, change: Callable[[Array], Array]) -> Kernel:
    """A kernel in which each array is what `change` makes of it."""
    arrays = tuple(map(change, kernel.arrays))
    return replace(kernel, arrays=arrays, body=_with_arrays(kernel.body, change))


def _with_arrays(body: Iterable[Statement], change: Callable[[Array], Array]) -> tuple[Statement, ...]:
    def at(access: Access) -> Access:
        return replace(access, array=change(access.array))

    def within(statement: Statement) -> Statement:
        match statement:
            case Load(_, source):
                return replace(statement, source=at(source))
            case Store(target):
                return replace(statement, target=at(target))
            case Operands(array):
                return Operands(change(array))
            case Loop(_, inner):
                return replace(statement, body=_with_arrays(inner, change))
            case If(conditions, then, otherwise):
                asked = tuple(replace(c, array=change(c.array)) if isinstance(c, Given) else c for c in conditions)
                return If(asked, _with_arrays(then, change), _with_arrays(otherwise, change))
        return statement

    return tuple(map(within, body))


def reads_steps(body: Iterable[Statement]) -> bool:
    """Whether it loads or stores a row of each micro-step of a token."""
    return any(access.array.spaces[:2] == ("token", "micro_step") for access in accesses_in(body))


def numbers_read(body: Iterable[Statement], spec: Spec) -> tuple[str, ...]:
    """The Python numbers among the params that expressions read."""
    read = {tile.name for tile in values_of(body) if isinstance(tile, Value)}
    return tuple(param.name for param in spec.params if not param.is_tensor and param.name in read)


def sizes_read(body: Iterable[Statement], spec: Spec) -> tuple[str, ...]:
    """Micro-steps, heads and sizes that are only numbers, where the kernel has to know them."""
    statements = tuple(body)
    named = {tile.name for tile in values_of(statements) if isinstance(tile, Size)}
    loops = any(isinstance(s, Loop) and s.over == "micro_step" and s.body for s in statements_in(statements))
    steps = () if spec.steps is None else (spec.steps.symbol,)
    heads = "H" in named or any("key_head" in found.array.spaces for found in accesses_in(statements))
    return (
        *plain_sizes(statements, spec),
        *(steps if loops or named & {*steps} else ()),
        *(("H",) if heads else ()),
        "HV",
    )


def rounds(body: Iterable[Statement]) -> bool:
    """Whether it rounds operands of products."""
    return any(isinstance(tile, Rounded) for tile in values_of(body))


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


def plain_sizes(body: Iterable[Statement], spec: Spec) -> tuple[str, ...]:
    """The sizes that expressions name and nothing has as a dim."""
    named = {tile.name for tile in values_of(tuple(body)) if isinstance(tile, Size)}
    return tuple(sorted(named & {*spec.dims} - {*spec.axes}))
