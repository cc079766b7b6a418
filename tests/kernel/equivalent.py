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
from flagen.plan.tiles import Arithmetic, Masked, Product, StateTile, Tile, Value, tiles_in
from tests.kernel.mutants import Mutant


def harmless(kernel: Kernel, mutant: Mutant) -> str | None:
    """Why what a mutant of `kernel` says is as good as what it said; None where it is a mistake."""
    match mutant.was:
        case Loop("token") if mutant.changes("but_last") and not _stores(mutant.was.body):
            return "nobody asks for what the last segment leaves"
        case Loop("micro_step") if mutant.changes("reverse") and _starts_afresh(mutant.was.body):
            return "an order of micro-steps that take nothing from one another"
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
    own = {_target(statement) for statement in statements}
    sums = {statement.target for statement in statements if isinstance(statement, Add)}
    made: set[str | None] = set()
    for statement in statements:
        read = _read_by(statement)
        if (read & own) - made or read & (sums - made):
            return False
        made.add(_target(statement))
    return True


def _leaves_the_first_block(kernel: Kernel, name: str) -> bool:
    """Whether anything but the name itself, and what the first block stores, is made of what it holds."""
    inside = {
        id(s) for c in statements_in(kernel.body) if isinstance(c, If) and FirstBlock() in c.conditions for s in c.then
    }
    return any(
        name in _read_by(statement) and _target(statement) != name and id(statement) not in inside
        for statement in statements_in(kernel.body)
    )


def _is_zero_beyond(kernel: Kernel, value: Tile, dim: str) -> bool:
    """Whether it is a product with something that was loaded, and is zero beyond the end of `dim`."""
    zero = {s.target for s in statements_in(kernel.body) if isinstance(s, Load) and s.fill == 0}

    def factors(tile: Tile) -> Iterator[Tile]:
        match tile:
            case Product(parts):
                for part in parts:
                    yield from factors(part)
            case Arithmetic("/", left):
                yield from factors(left)
            case _:
                yield tile

    return any(isinstance(f, Value | StateTile) and f.name in zero and dim in f.dims for f in factors(value))


def _still_the_same(kernel: Kernel, names: set[str], mutant: Mutant) -> bool:
    """Whether two names are made one before a loop and at the end of each turn, and neither changes before this."""
    loop = next((s for s in mutant.around if isinstance(s, Loop)), None)
    if loop is None:
        return False
    ones = [s for s in statements_in(kernel.body) if isinstance(s, Let) and {s.target} | _read_by(s) == names]
    changes = [place for place, s in enumerate(loop.body) if _target(s) in names]
    here = next(place for place, s in enumerate(loop.body) if s is mutant.around[1])
    return bool(changes) and len(ones) >= 2 and loop.body[changes[-1]] in ones and here <= changes[0]
