"""Every kind of node that kernels have is interpreted in some test: what prints Triton is seen to print all of them."""

from __future__ import annotations

from collections.abc import Iterator

from flagen.kernel.ir import Add, Choose, Fill, If, Kernel, Load, Loop, accesses_in, statements_in, values_of
from flagen.plan.tiles import (
    Arithmetic,
    Call,
    Compare,
    Cumulative,
    Edge,
    Function,
    Normalize,
    OfAngles,
    OfPairs,
    Rotated,
    Scan,
    Shifted,
)
from tests.layers.test_operators import INTERPRETED as LAYERS_INTERPRETED
from tests.specs import FRONT_ENDS, OPERATORS
from tests.tiers import INTERPRETED
from tests.vectorized.known import kernels_of

Kind = tuple[object, ...]


def kinds(name: str) -> set[Kind]:
    """The kinds of nodes in the kernels of a spec."""
    return {kind for launchable in kernels_of(name).values() for kind in _kinds(launchable.kernel)}


def _kinds(kernel: Kernel) -> Iterator[Kind]:
    for statement in statements_in(kernel.body):
        yield (type(statement), *_of_statement(statement))
    for tile in values_of(kernel.body):
        yield (type(tile), *_of_tile(tile))
    for access in accesses_in(kernel.body):
        given = (bool(access.places), bool(access.ends), access.where is not None, len(access.rows))
        yield ("access", *given, access.in_memory_order, access.address)


def _of_statement(statement: object) -> Iterator[object]:
    match statement:
        case Loop(over, _, reverse):
            yield from (over, reverse, statement.but_last, statement.counted, bool(statement.wanted))
            yield from (bool(statement.first), statement.keeps)
        case Load(_, _, fill, once, wide, shares):
            yield from (bool(fill), once, wide, shares)
        case Fill(_, _, number, ends):
            yield from (number is None, ends)
        case Add(subtracts=subtracts):
            yield subtracts
        case If(conditions):
            yield frozenset((type(each), getattr(each, "given", None)) for each in conditions)
        case Choose(condition):
            yield type(condition)


def _of_tile(tile: object) -> Iterator[object]:
    match tile:
        case Function(name) | Call(name) | Normalize(name):
            yield name
        case Arithmetic(op) | Compare(op):
            yield op
        case Rotated(half=half) | OfAngles(half=half):
            yield half
        case OfPairs(second=second):
            yield second
        case Scan(combine, reverse=reverse):
            yield from (combine, reverse)
        case Shifted(reverse=reverse) | Edge(reverse=reverse) | Cumulative(reverse=reverse):
            yield reverse


def test_every_kind_of_node_is_interpreted():
    seen = {kind for name in (*INTERPRETED, *LAYERS_INTERPRETED) for kind in kinds(name)}
    others = {name: kinds(name) - seen for name in (*OPERATORS, *FRONT_ENDS)}
    assert not {name: missing for name, missing in others.items() if missing}


def test_every_one_of_the_interpreted_is_there_for_something():
    """The eight stand for structures; the others are for nodes that no other has."""
    named = (*INTERPRETED, *LAYERS_INTERPRETED)
    for name in (*INTERPRETED[8:], *LAYERS_INTERPRETED):
        assert kinds(name) - {kind for other in named if other != name for kind in kinds(other)}, name
