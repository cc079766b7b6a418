"""Changes of a kernel that are no mistakes: it gives the same, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from flagen.kernel.ir import (
    Add,
    Choose,
    Fill,
    FirstBlock,
    If,
    Kernel,
    Let,
    Load,
    Loop,
    Statement,
    Store,
    statements_in,
)
from flagen.plan.tiles import Arithmetic, Masked, Negative, Product, StateTile, Tile, Value, tiles_in
from tests.kernel.mutants import Mutant


def harmless(kernel: Kernel, mutant: Mutant) -> str | None:
    """Why what a mutant of `kernel` says is as good as what it said; None where it is a mistake."""
    match mutant.was:
        case Loop("token") if mutant.changes("but_last") and not _stores(mutant.was.body):
            return "nobody asks for what the last segment leaves"
        case Loop() if mutant.changes("reverse") and _starts_afresh(mutant.was.body):
            return "an order of turns that take nothing from one another"
        case Load() if mutant.changes("once") and kernel.block_of is None:
            return "what comes in once where there is one block"
        case Load(target) if mutant.changes("once") and not _leaves_the_first_block(kernel, target):
            return "what the first block alone stores, and no other asks for"
        case Masked(value, dim, fill) if fill == 0 and _is_zero_beyond(kernel, value, dim):
            return "a mask over what is zero there"
        case Value(name) if isinstance(mutant.now, Value) and _still_the_same(kernel, {name, mutant.now.name}, mutant):
            return "two names of one tile, as long as neither has changed"
    return None


def _stores(body: Iterable[Statement]) -> bool:
    return any(isinstance(statement, Store) for statement in statements_in(body))


def _target(statement: Statement) -> str | None:
    return statement.target if isinstance(statement, Let | Load | Fill | Choose) else None


def _values(statement: Statement) -> Iterator[Tile]:
    if isinstance(statement, Let | Add | Choose | Store):
        yield from tiles_in(statement.value)


def _read_by(statement: Statement) -> set[str]:
    return {tile.name for tile in _values(statement) if isinstance(tile, Value | StateTile)}


def _starts_afresh(body: Iterable[Statement]) -> bool:
    """Whether a turn reads nothing that another has made; what it only adds to, no turn reads."""
    statements = list(statements_in(body))
    sums = {_summed(statement) for statement in statements} - {None}
    own = {_target(statement) for statement in statements} - sums
    made: set[str | None] = set()
    for statement in statements:
        read = _read_by(statement) - {_summed(statement)}
        if read & sums or (read & own) - made:
            return False
        made.add(_target(statement))
    return True


def _summed(statement: Statement) -> str | None:
    """What the statement adds to."""
    match statement:
        case Add(target):
            return target
        case Let(target, Arithmetic("+", Value(name) | StateTile(name), rest)) if name == target:
            others = {tile.name for tile in tiles_in(rest) if isinstance(tile, Value | StateTile)}
            return None if target in others else target
    return None


def _leaves_the_first_block(kernel: Kernel, name: str) -> bool:
    """Whether something that other blocks store is made of what it holds."""
    conditional = [s for s in statements_in(kernel.body) if isinstance(s, If) and FirstBlock() in s.conditions]
    inside = {id(statement) for s in conditional for statement in s.then}
    reached, grown = set[str | None](), {name}
    while grown - reached:
        reached |= grown
        readers = [s for s in statements_in(kernel.body) if _read_by(s) & reached and id(s) not in inside]
        if any(isinstance(statement, Store) for statement in readers):
            return True
        grown = {_target(s) or _summed(s) for s in readers}
    return False


def _is_zero_beyond(kernel: Kernel, value: Tile, dim: str) -> bool:
    """Whether it is certain to be zero beyond the end of `dim`."""
    match value:
        case Masked(_, over, 0.0) if over == dim:
            return True
        case Masked(inner) | Negative(inner) | Arithmetic("/", inner):
            return _is_zero_beyond(kernel, inner, dim)
        case Product(factors):
            return any(_is_zero_beyond(kernel, factor, dim) for factor in factors)
        case Value(name) | StateTile(name) if dim in value.dims:
            made = [s for s in statements_in(kernel.body) if _target(s) == name]
            return bool(made) and all(
                _is_zero_beyond(kernel, s.value, dim) if isinstance(s, Let) else isinstance(s, Load) and s.fill == 0
                for s in made
                if not (isinstance(s, Let) and name in _read_by(s))
            )
    return False


def _still_the_same(kernel: Kernel, names: set[str], mutant: Mutant) -> bool:
    """Whether the last change of two names, be it in the turn before, has made them one."""
    loop = next((s for s in mutant.around if isinstance(s, Loop)), None)
    if loop is None:
        return False
    place = next(place for place, s in enumerate(loop.body) if s is mutant.around[1])
    before = [s for s in (*loop.body[place:], *loop.body[:place]) if _target(s) in names]
    made_one = [s for s in statements_in(kernel.body) if isinstance(s, Let) and {s.target} | _read_by(s) == names]
    return bool(before) and before[-1] in made_one and isinstance(before[-1].value, Value | StateTile)
