"""Which tiles of a kernel are the same in exact arithmetic: those with one number.

A kernel is followed statement by statement; what names hold is numbered by what it is made of. Casts are none here, nor
are clamps of log decays, far below what a proof has.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any

from flagen.kernel.ir import (
    Access,
    Add,
    Apply,
    Bind,
    Choose,
    Fill,
    If,
    Kernel,
    Let,
    Load,
    Loop,
    Scale,
    Statement,
    Store,
    statements_in,
)
from flagen.plan.tiles import (
    Along,
    Arithmetic,
    AtLeast,
    Call,
    Compare,
    Constant,
    Coordinate,
    Cumulative,
    Dot,
    Lane,
    Negative,
    Product,
    Rounded,
    Size,
    Spread,
    StateTile,
    Sum,
    Tile,
    Value,
    Whole,
    Widened,
)

Names = dict[str, int]
"""What each name holds, by its number."""

Path = tuple[int, ...]
"""A statement and those around it, by identity, the outermost first."""


class Numbering:
    """The numbers of a kernel's tiles wherever it stands."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._numbers: dict[Hashable, int] = {}
        self.zero, self.one = self._number(("constant", 0)), self._number(("constant", 1))
        self._stored = {s.target.array for s in statements_in(kernel.body) if isinstance(s, Store)}
        self._before: dict[Path, tuple[Names, Path]] = {}
        self._turns: Path = ()
        self._body(kernel.body, {}, ())

    def are_one(self, around: Sequence[Statement], now: Statement | None) -> bool:
        """Whether the last of some statements, which are `around` it, and another one in its place leave the same
        behind."""
        *_, was = around
        if not isinstance(was, Let | Bind | Add | Scale | Fill | Choose | Load | Store):
            return False
        names, self._turns = self._before[tuple(map(id, around))]
        return self._left(was, names) == self._left(now, names)

    def _left(self, statement: Statement | None, names: Names) -> tuple[Names, Hashable]:
        after = dict(names)
        match statement:
            case None:
                return after, None
            case Store(target, value):
                return after, (self._access(target, names), self.of(value, names))
        self._statement(statement, after, ())
        return after, None

    def _number(self, key: Hashable) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    # ------------------------------------------------------------------------------------------------------ statements

    def _body(self, body: Iterable[Statement], names: Names, path: Path) -> None:
        for statement in body:
            here = (*path, id(statement))
            self._before[here] = dict(names), self._turns
            self._statement(statement, names, here)

    def _statement(self, statement: Statement, names: Names, path: Path) -> None:
        match statement:
            case Load(target, source, fill, once, _, shares):
                one = self._number(object()) if source.array in self._stored else self._access(source, names)
                names[target] = self._number(("load", one, fill, once, shares, self._turns))
            case Let(target, value):
                names[target] = self.of(value, names)
            case Bind(targets, (Call() as call,)):
                names |= {name: self._number((name, self.of(call, names))) for name in targets}
            case Bind(targets, values):
                names |= dict(zip(targets, [self.of(value, names) for value in values], strict=False))
            case Add(target, value, dims, subtracts):
                terms = self._held(names, target), self.of(value, names)
                names[target] = self._sum("-" if subtracts else "+", *terms, dims)
            case Scale(target, value, dims):
                names[target] = self._product([self._held(names, target), self.of(value, names)], dims)
            case Fill(target, dims, number, ends):
                filled = self._number(("constant", number or 0))
                names[target] = self._number(("filled", filled, dims)) if ends and number else filled
            case Choose(condition, target, value):
                names[target] = self._merged(condition, self._held(names, target), self.of(value, names))
            case Apply(routine):
                inner = {name: names[name] for name in routine.carried if name in names}
                self._body(routine.body, inner, path)
                names |= {name: inner[name] for name in routine.carried if name in inner}
            case Loop(_, body, whole=True):
                self._body(body, names, path)  # There is one turn.
            case Loop():
                self._loop(statement, names, path)
            case If(conditions, then, otherwise):
                here, other = dict(names), dict(names)
                self._body(then, here, path)
                self._body(otherwise, other, path)
                for name in {**here, **other}:
                    both = self._held(here, name), self._held(other, name)
                    names[name] = self._merged(conditions, *both)

    def _merged(self, condition: Hashable, here: int, other: int) -> int:
        return here if here == other else self._number(("if", condition, here, other, self._turns))

    def _loop(self, loop: Loop, names: Names, path: Path) -> None:
        """Names that a turn changes are taken for one as long as each turn makes them one again."""
        outside, changed = self._turns, [*dict.fromkeys(_changed(loop.body))]
        groups = {name: str(names.get(name)) for name in changed}
        self._turns = (*outside, id(loop))
        while True:
            start = {name: self._number(("turn", group, self._turns)) for name, group in groups.items()}
            after = {**names, **start}
            if loop.over in ("member", "level", "below"):
                after[loop.over] = self._number(("which", self._turns))
            self._body(loop.body, after, path)
            finer = {name: f"{group} {after.get(name)}" for name, group in groups.items()}
            if len({*finer.values()}) == len({*groups.values()}):
                break
            groups = finer
        self._turns = outside
        names |= {name: self._number(("after", id(loop), number)) for name, number in start.items()}

    # ----------------------------------------------------------------------------------------------------------- tiles

    def _access(self, access: Access, names: Names) -> Hashable:
        said = (field.name for field in fields(access) if field.name not in ("places", "ends", "where"))
        tiles = tuple(self.of(tile, names) for tile in access.tiles)
        return (
            tuple(getattr(access, name) for name in said),
            tiles,
            tuple(name for name, _ in access.places),
            self._turns,
        )

    def of(self, tile: Tile, names: Names) -> int:
        """The number of a tile, where names hold those."""

        def of(part: Tile) -> int:
            return self.of(part, names)

        match tile:
            case Value(name) | StateTile(name, False):
                return self._held(names, name)
            case StateTile(name, True):
                return self._held(names, f"{name}_prev")
            case Constant(value) | Whole(value):
                return self._number(("constant", value))
            case Rounded(value) | Widened(value) | AtLeast(value):
                return of(value)
            case Product(factors, dims):
                return self._product(list(map(of, factors)), dims)
            case Arithmetic("+" | "-" as op, left, right, dims):
                return self._sum(op, of(left), of(right), dims)
            case Sum(value) | Cumulative(value) | Along(value) | Negative(value) if of(value) == self.zero:
                return self.zero
            case Spread(value):
                return of(value)
            case Dot(left, right, dim, onto, dims):
                product = self._number(("dot", of(left), of(right), dim, dims))
                return product if onto is None else self._sum("+", of(onto), product, dims)
            case Compare(">=", left, right, dims) if _is_most(left, right):
                return of(Compare("==", left, right, dims))
            case Compare("<=", left, right, dims) if _is_never(left, right):
                return of(Compare("<", left, right, dims))
            case Coordinate() | Lane() | Size():
                return self._number((tile, self._turns))
        return self._number((type(tile), *(self._field(getattr(tile, field.name), names) for field in fields(tile))))

    def _field(self, value: Any, names: Names) -> Hashable:
        if isinstance(value, Tile):
            return "tile", self.of(value, names)
        if isinstance(value, tuple) and value and isinstance(value[0], Tile):
            return tuple(self.of(part, names) for part in value)
        found: Hashable = value
        return found

    def _product(self, factors: Iterable[int], dims: Hashable) -> int:
        kept = sorted(factor for factor in factors if factor != self.one)
        if self.zero in kept or not kept:
            return self.zero if kept else self.one
        return kept[0] if len(kept) == 1 else self._number(("product", tuple(kept), dims))

    def _sum(self, op: str, left: int, right: int, dims: Hashable) -> int:
        if right == self.zero:
            return left
        if left == self.zero and op == "+":
            return right
        return self._number((op, left, right, dims))

    def _held(self, names: Names, name: str) -> int:
        return names[name] if name in names else self._number(("name", name))


def _is_most(left: Tile, right: Tile) -> bool:
    """Whether a number is never greater than another one: what is left of it modulo two, the place of a chunk."""
    match left, right:
        case Arithmetic("%", _, Whole(modulus)), Whole(most):
            return most == modulus - 1
        case Coordinate("chunk of sequence"), Arithmetic("-", Coordinate("chunks of sequence"), Whole(1)):
            return True
    return False


def _is_never(left: Tile, right: Tile) -> bool:
    """Whether two numbers are never the same: the first row of a token, and the number of rows, a power of two. If rows
    end with a token, so do lanes."""
    match left, right:
        case Product((Lane("token"), Size())), Size("CHUNK"):
            return True
    return False


def _changed(body: Iterable[Statement]) -> Iterator[str]:
    """The names to which a body gives values; those of routines are their own, but for what these carry."""
    for statement in body:
        match statement:
            case Load(target) | Let(target) | Add(target) | Scale(target) | Fill(target) | Choose(_, target):
                yield target
            case Bind(targets):
                yield from targets
            case Apply(routine):
                yield from routine.carried
            case Loop(_, inner):
                yield from _changed(inner)
            case If(_, then, otherwise):
                yield from _changed((*then, *otherwise))
