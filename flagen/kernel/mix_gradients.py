"""The gradients of the numbers by which states are mixed, read and written, from those of what reaches what in a chunk.

The levels of `flagen.kernel.mixes` in reverse. What went up is not kept: at each level it is found again from the level
of single tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from flagen.kernel.ir import Apply, Bind, Let, Loop, Routine, Statement
from flagen.kernel.mixes import (
    LEVEL,
    OWN,
    ROW,
    SEEN,
    SQUARE,
    Mixes,
    carry,
    end,
    other,
    pairs_of,
    plus,
    product,
    start,
    written,
)
from flagen.kernel.parameters import routine_of
from flagen.kernel.passes import live
from flagen.kernel.rows import ZERO, call, local, times
from flagen.plan.backward_levels import number_gradient
from flagen.plan.mixed import Numbers, into_name, mix_name, of_name, varies
from flagen.plan.rows import TOKEN, WRITTEN
from flagen.plan.tiles import Along, Arithmetic, Lane, Masked, Product, Select, Sum, Tile, Value

BELOW = Value("below", "local", ())


def gradient_of(value: Value) -> Value:
    """The gradient of a number of each row."""
    return local(number_gradient(value.name), ROW)


def weights_gradient(reader: str, writer: str) -> Value:
    """That of what rows have of others; of no others does it count."""
    return local(f"weights_{reader}{writer}_gradient", SQUARE)


class MixGradients:
    """Lowers them, where the gradients of weights, and of what is read of the chunk's start and left at its end, are
    there by name; `varied`: the numbers that have one."""

    def __init__(self, mixes: Mixes, varied: frozenset[str]) -> None:
        self.mixes, self.mixed, self.varied = mixes, mixes.mixed, varied
        self.pairs = pairs_of(self.mixed)

    def statements(self) -> Iterator[Statement]:
        mixes = self.mixes
        yield from (*mixes.numbers(), Apply(self._routine()), *mixes.tokens(), *self._tokens())

    def _routine(self) -> Routine:
        """From the gradients of numbers of the chunk to those of numbers of tokens: a function, as long as it is."""
        mixes = self.mixes
        of_halves = (*mixes.of_rows, *(carry(p, r) for p, r in mixes.pairs))
        given = (name for name, tile in self.mixed.named() if varies(tile))
        found = (weights_gradient(*pair).name for pair in self.pairs)
        carried = (*(gradient_of(value).name for value in of_halves), *given, *found)
        below = Loop("below", tuple(mixes.level(BELOW)))
        body = (Loop("level", (*mixes.tokens(), below, *self._level()), reverse=True),)
        return routine_of(
            mixes.rows,
            live(body, carried),
            name="down_to_tokens",
            carried=carried,
            docs="The gradients of numbers of tokens, from those of weights, and of numbers at the ends of a chunk.",
            dims=(),
            tiles=("CHUNK", "LEVELS"),
            order=(),
            place=(),
            lanes=(),
        )

    # ----------------------------------------------------------------------------------------------------------- levels

    def _level(self) -> Iterator[Statement]:
        """The gradients of numbers of halves, from those of both together."""
        upper, lane = local("upper", ROW), Lane(TOKEN, ROW)
        yield Let(SEEN.name, call("seen_across_cut", lane, LEVEL, dims=SQUARE))
        yield Let("upper", call("is_upper", lane, LEVEL, dims=ROW))
        for p, r in self.mixes.pairs:
            yield Let(other(p, r).name, call("of_other_half", carry(p, r), lane, LEVEL, dims=ROW))
        for p, r in self.mixes.pairs:
            yield Let(gradient_of(other(p, r)).name, self._either(upper, *self._of_other(p, r)))
        for pair in self.pairs:
            yield Let(_met(*pair).name, Select(SEEN, weights_gradient(*pair), ZERO, SQUARE))
        for role in self.mixed.of:
            places = self.mixed.starts(role)
            yield self._bound([start(role, p) for p in places], [self._of_start(upper, role, p) for p in places])
        for role in self.mixed.into:
            places = self.mixed.ends(role)
            yield self._bound([end(role, p) for p in places], [self._of_end(upper, role, p) for p in places])
        yield self._bound(
            [carry(p, r) for p, r in self.mixes.pairs], [self._of_mix(upper, *x) for x in self.mixes.pairs]
        )

    def _bound(self, values: Sequence[Value], tiles: Sequence[Tile]) -> Statement:
        return Bind(tuple(gradient_of(value).name for value in values), tuple(tiles))

    def _either(self, upper: Tile, top: Tile | None, bottom: Tile | None) -> Tile:
        return Select(upper, top or ZERO, bottom or ZERO, ROW)

    def _of_other(self, p: int, r: int) -> tuple[Tile | None, Tile | None]:
        """The gradient of what rows took of the other half: of those of upper halves, and of lower ones."""
        mixed, reaches, places = self.mixed, self.mixed.reaches, self.mixed.places
        above: list[Tile | None] = [
            times(start(role, p), gradient_of(start(role, r))) for role in mixed.of if p in mixed.starts(role)
        ]
        above += [times(carry(m, p), gradient_of(carry(m, r))) for m in places if {(m, p), (m, r)} <= reaches]
        below: list[Tile | None] = [
            times(gradient_of(end(role, p)), end(role, r)) for role in mixed.into if r in mixed.ends(role)
        ]
        below += [times(gradient_of(carry(p, m)), carry(r, m)) for m in places if {(p, m), (r, m)} <= reaches]
        return plus(*above), plus(*below)

    def _of_start(self, upper: Tile, role: str, place: int) -> Tile:
        """The gradient of what a row reads of the start of its half."""
        taken = plus(
            *(
                times(gradient_of(start(role, r)), other(place, r))
                for r in self.mixed.starts(role)
                if (place, r) in self.mixed.reaches
            )
        )
        found = [self._either(upper, taken, gradient_of(start(role, place)))]
        for writer in self.mixed.into:
            if place in self.mixed.ends(writer):
                share = Product((_met(role, writer), written(end(writer, place))), SQUARE)
                found.append(Sum(share, WRITTEN, ROW))
        return _total(found)

    def _of_end(self, upper: Tile, role: str, place: int) -> Tile:
        """The gradient of what there is of a row at the end of its half."""
        left = plus(
            *(
                times(other(p, place), gradient_of(end(role, p)))
                for p in self.mixed.ends(role)
                if (p, place) in self.mixed.reaches
            )
        )
        found = [self._either(upper, gradient_of(end(role, place)), left)]
        for reader in self.mixed.of:
            if place in self.mixed.starts(reader):
                share = Product((_met(reader, role), start(reader, place)), SQUARE)
                found.append(Along(Sum(share, TOKEN, (WRITTEN,)), ROW))
        return _total(found)

    def _of_mix(self, upper: Tile, p: int, r: int) -> Tile:
        """The gradient of the mix of a half: of its own rows, and of those of the other one."""
        reaches, places = self.mixed.reaches, self.mixed.places
        above = plus(*(times(gradient_of(carry(p, m)), other(r, m)) for m in places if {(p, m), (r, m)} <= reaches))
        below = plus(*(times(other(m, p), gradient_of(carry(m, r))) for m in places if {(m, p), (m, r)} <= reaches))
        others = call("of_other_half", gradient_of(other(p, r)), Lane(TOKEN, ROW), LEVEL, dims=ROW)
        return Arithmetic("+", self._either(upper, above, below), others, ROW)

    # ----------------------------------------------------------------------------------------------------------- tokens

    def _tokens(self) -> Iterator[Statement]:
        """The gradients of the numbers of tokens."""
        mixed = self.mixed
        of = {role: self._numbers(of_name, role, numbers) for role, numbers in mixed.of.items()}
        into = {role: self._numbers(into_name, role, numbers) for role, numbers in mixed.into.items()}
        for writer in mixed.into:
            seen = Select(OWN, weights_gradient("q", writer), ZERO, SQUARE)
            yield Let(_own(writer).name, Sum(seen, WRITTEN, ROW))
        found: dict[str, Tile | None] = {}
        for role in mixed.of:
            for p in mixed.places:
                found[of_name(role, p)] = self._of_read(role, p, into)
        for role in mixed.into:
            for p in mixed.places:
                ends = gradient_of(end(role, p)) if p in mixed.ends(role) else None
                found[into_name(role, p)] = plus(ends, product(_own(role), of["q"][p]))
        for p, r in self.mixes.pairs:
            taken = of["q"][p] if r in mixed.starts("q") else None
            found[mix_name(p, r)] = plus(gradient_of(carry(p, r)), product(taken, gradient_of(start("q", r))))
        for name, tile in found.items():
            if name in self.varied:
                yield Let(number_gradient(name), Masked(tile or ZERO, TOKEN, 0.0, ROW))

    def _of_read(self, role: str, place: int, into: Mapping[str, Numbers]) -> Tile | None:
        """The gradient of a number by which a state is read; behind the token's own mix, the token's own rows too."""
        starts = self.mixed.starts(role)
        if role != "q":
            return gradient_of(start(role, place)) if place in starts else None
        reached = (r for r in starts if (place, r) in self.mixed.reaches)
        before = (times(carry(place, r), gradient_of(start(role, r))) for r in reached)
        return plus(*before, *(product(_own(writer), into[writer][place]) for writer in self.mixed.into))

    def _numbers(self, name: object, role: str, numbers: Numbers) -> Numbers:
        assert callable(name)
        return tuple(self.mixes.number(name(role, place), tile) for place, tile in enumerate(numbers))


def _met(reader: str, writer: str) -> Value:
    return local(f"met_{reader}{writer}", SQUARE)


def _own(writer: str) -> Value:
    return local(f"own_{writer}", ROW)


def _total(tiles: Sequence[Tile]) -> Tile:
    first, *rest = tiles
    for tile in rest:
        first = Arithmetic("+", first, tile, ROW)
    return first
