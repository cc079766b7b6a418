"""Changes of a kernel that are no mistakes: it gives the same, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from itertools import pairwise

from flagen.kernel.ir import (
    Access,
    Add,
    Alone,
    Apply,
    Bind,
    Choose,
    Fill,
    FirstBlock,
    If,
    Kernel,
    Let,
    Load,
    Loop,
    Scale,
    Statement,
    Store,
    statements_in,
    values_of,
)
from flagen.plan.rows import MEMBER, ROW, TOKEN
from flagen.plan.tiles import (
    Along,
    Arithmetic,
    Both,
    Call,
    Compare,
    Constant,
    Coordinate,
    Cumulative,
    Dot,
    Edge,
    Function,
    Head,
    Lane,
    Masked,
    MatMul,
    Negative,
    Normalize,
    Once,
    Product,
    Rounded,
    Scan,
    Select,
    Shifted,
    Spread,
    StateTile,
    Sum,
    Tile,
    Value,
    Whole,
    Widened,
    operands,
    tiles_in,
)
from tests.kernel.mutants import Mutant
from tests.kernel.numbering import Numbering


def harmless(numbering: Numbering, mutant: Mutant) -> str | None:
    """Why what a mutant of the kernel with this numbering says is as good as what it said; None where it is a
    mistake."""
    kernel = numbering.kernel
    match mutant.was:
        case Loop("token") if mutant.changes("but_last") and _leaves_nothing_behind_segments(kernel, mutant.around):
            return "nobody asks for what the last segment leaves"
        case Loop() if mutant.changes("reverse") and _starts_afresh(mutant.was.body):
            return "an order of turns that take nothing from one another"
        case Load() if mutant.changes("once") and kernel.block_of is None:
            return "what comes in once where there is one block"
        case Load(target) if mutant.changes("once") and not _leaves_the_first_block(kernel, target):
            return "what the first block alone stores, and no other asks for"
        case Masked(value, dim, fill) if _beyond(value, dim, _known_beyond(kernel, dim)) == fill:
            return "a mask over what is nothing else there"
        case Masked(_, dim) if not _is_asked_for_beyond(kernel, mutant.around[-1], mutant.was, dim):
            return "a mask over lanes of which nothing is made that is stored"
        case Let(target, Masked(Value(name), dim) as tile) if (name, mutant.now) == (
            target,
            None,
        ) and not _is_asked_for_beyond(kernel, mutant.was, tile, dim):
            return "a mask over lanes of which nothing is made that is stored"
        case Let(target, value) if mutant.now is None and _is_all_that_it_is(kernel, target, value):
            return "what it was before"
        case Load(_, source, 0.0) if mutant.changes("once") and _is_for_the_first_block(source):
            return "what only the first block loads"
        case Access() as was if (
            isinstance(mutant.instead, Load)
            and mutant.instead.shares
            and (was.of_first_share == mutant.now.of_first_share)
        ):
            return "the shares of all blocks, whichever of them is named"
        case Access() if _loses_an_end_of_rows(mutant) and _is_before_another(mutant.around):
            if not kernel.steps:
                return "an end of rows in a chunk before another one, which is full"
            if not _is_asked_for_in_its_routine(kernel, mutant.around):
                return "an end of rows that are multiplied by zero"
        case Select(Compare("==", Lane(axis)), value) if (
            axis == MEMBER and mutant.now == value and _alone(mutant.around)
        ):
            return "the lane of a value head that has its key head for itself"
        case Value(name) if isinstance(mutant.now, Value) and _is_only_masked(kernel, name, mutant.now.name):
            return "two names of one tile, between which there is a mask over what is nothing else there"
    if numbering.are_one(mutant.around, mutant.instead):
        return "the same number: another name for it, a cast, something zero"
    return None


def _is_all_that_it_is(kernel: Kernel, name: str, tile: Tile) -> bool:
    """Whether a name is the same tile wherever it is made, of nothing that changes."""
    makers = [statement for statement in statements_in(kernel.body) if name in _changed(statement)]
    changing = Value | StateTile | Coordinate | Head
    return all(maker == Let(name, tile) for maker in makers) and not any(
        isinstance(t, changing) for t in tiles_in(tile)
    )


def _is_for_the_first_block(access: Access) -> bool:
    """Whether it has lanes in the first block alone."""
    ends = [end for _, end in access.ends if isinstance(end, Select)]
    return _holds_first(access.where) or any(_holds_first(end.where) and end.other == Whole(0) for end in ends)


def _holds_first(condition: Tile | None) -> bool:
    """Whether something holds in the first block alone."""
    match condition:
        case Both(left, right):
            return _holds_first(left) or _holds_first(right)
    return condition == Compare("==", Coordinate("block"), Whole(0), ())


def _loses_an_end_of_rows(mutant: Mutant) -> bool:
    lost = {*mutant.was.within} - {*mutant.now.within}
    return mutant.changes("within") and lost <= {TOKEN, ROW}


def _is_before_another(around: Sequence[Statement]) -> bool:
    return any(isinstance(statement, Loop) and statement.over == "earlier" for statement in around)


def _alone(around: Sequence[Statement]) -> bool:
    """Whether it is said where a key head has one value head."""
    return any(
        isinstance(outer, If) and any(isinstance(each, Alone) for each in outer.conditions) and inner in outer.then
        for outer, inner in pairwise(around)
    )


def _leaves_nothing_behind_segments(kernel: Kernel, around: Sequence[Statement]) -> bool:
    """Whether the last one of a loop over tokens stores nothing, and nobody takes from it what it has made: segments
    come one after the other, and nothing after them."""
    segments, *_, tokens = around
    if any(isinstance(s, Store) for s in statements_in((tokens,))) or (isinstance(segments, Loop) and segments.reverse):
        return False
    made = {name for statement in statements_in((tokens,)) for name in _changed(statement)}
    behind = kernel.body[[statement is segments for statement in kernel.body].index(True) + 1 :]
    return not any(_read_by(statement) & made for statement in statements_in(behind))


def _given(statement: Statement) -> set[str]:
    """The names that hold something else behind it, whatever they held."""
    match statement:
        case Let(target) | Load(target) | Fill(target) | Choose(_, target):
            return {target}
        case Bind(targets):
            return {*targets}
    return set()


def _changed(statement: Statement) -> set[str]:
    return {statement.target} if isinstance(statement, Add | Scale) else _given(statement)


def _read_by(statement: Statement) -> set[str]:
    """The names in its tiles, and what it multiplies."""
    if isinstance(statement, Loop | If | Apply):
        return set()
    names = {tile.name for tile in values_of((statement,)) if isinstance(tile, Value | StateTile)}
    return names | ({statement.target} if isinstance(statement, Scale) else set())


def _starts_afresh(body: Iterable[Statement]) -> bool:
    """Whether a turn reads nothing that another has made; what it only adds to, no turn reads."""
    statements = list(statements_in(body))
    sums = {_summed(statement) for statement in statements} - {None}
    own = {name for statement in statements for name in _given(statement)} - sums
    made: set[str] = set()
    for statement in statements:
        read = _read_by(statement) - {_summed(statement)}
        if read & sums or (read & own) - made:
            return False
        made |= _given(statement)
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
    stores = [s for s in statements_in(kernel.body) if isinstance(s, Store)]
    inside |= {id(store) for store in stores if _is_for_the_first_block(store.target)}
    reached, grown = set[str](), {name}
    while grown - reached:
        reached |= grown
        readers = [s for s in statements_in(kernel.body) if _read_by(s) & reached and id(s) not in inside]
        if any(isinstance(statement, Store) for statement in readers):
            return True
        grown = {name for s in readers for name in _changed(s)}
    return False


Numbers = Mapping[str, float | None]


def _beyond(tile: Tile, dim: str, known: Numbers) -> float | None:
    """The number that a tile is certain to be beyond the end of `dim`, where numbers have no infinities, and names are
    `known` to be there."""

    def beyond(part: Tile) -> float | None:
        return _beyond(part, dim, known)

    match tile:
        case Constant(value):
            return float(value)
        case Masked(value, over, fill):
            return fill if over == dim or beyond(value) == fill else None
        case Spread(value) | Rounded(value) | Widened(value):
            return beyond(value)
        case Edge(value, axis) if axis != dim:
            return beyond(value)
        case Negative(value) | Arithmetic("/", value) | Once(value) | Normalize("l2norm", value):
            return 0.0 if beyond(value) == 0 else None
        case Sum(value, over) if over != dim:
            return 0.0 if beyond(value) == 0 else None
        case Arithmetic("+" | "-", left, right):
            return 0.0 if beyond(left) == beyond(right) == 0 else None
        case Scan("affine" | "phase", _, left, right, axis) | Shifted(left, right, axis) if axis != dim:
            return 0.0 if beyond(left) == beyond(right) == 0 else None
        case Product(factors):
            return 0.0 if any(beyond(factor) == 0 for factor in factors) else None
        case Function("exp" | "exp2", (argument,)):
            return 1.0 if beyond(argument) == 0 else None
        case Value(name) | StateTile(name) if dim in tile.dims:
            return known.get(name)
    return None


def _known_beyond(kernel: Kernel, dim: str) -> Numbers:
    """What each name is beyond the end of `dim`, in whatever turn of a loop: zero, until something else is found."""
    statements = list(statements_in(kernel.body))
    known: dict[str, float | None] = {name: 0.0 for statement in statements for name in _changed(statement)}
    before: Numbers = {}
    while known != before:
        before = dict(known)
        for name in known:
            found = {
                _made_beyond(statement, name, dim, before) for statement in statements if name in _changed(statement)
            }
            made = found.pop() if len(found) == 1 else None
            known[name] = made if before[name] in (0, made) else None
    return known


def _made_beyond(statement: Statement, name: str, dim: str, known: Numbers) -> float | None:
    """What a statement makes of a name beyond the end of `dim`."""
    match statement:
        case Bind(targets, values) if len(targets) == len(values):
            return _beyond(values[targets.index(name)], dim, known)
        case Scale(target, value):
            return 0.0 if known[target] == 0 or _beyond(value, dim, known) == 0 else None
        case Let(_, value):
            return _beyond(value, dim, known)
        case Add(target, value) | Choose(_, target, value):
            return 0.0 if known[target] == _beyond(value, dim, known) == 0 else None
        case Load(_, source, fill, once):
            return fill if dim in source.within and (fill == 0 or not once) else None
        case Fill(_, _, number, ends):
            return 0.0 if number is None or ends else number
    return None


def _is_asked_for_beyond(kernel: Kernel, statement: Statement, tile: Tile, dim: str) -> bool:
    """Whether what is stored is made of the lanes that a tile of a statement has beyond the end of `dim`."""
    known = _known_beyond(kernel, dim)
    names = _names_asked_for(kernel, dim, known)
    return any(asked for part, asked in _asked_for(statement, dim, names, known) if part == tile)


def _is_asked_for_in_its_routine(kernel: Kernel, around: Sequence[Statement]) -> bool:
    """Whether what a routine carries is made of rows that a tile loaded there has beyond the last one."""
    match around:
        case (*_, Apply(routine), Load(target)):
            within = replace(kernel, body=routine.body)
            return target in _names_asked_for(within, ROW, _known_beyond(within, ROW))
    return True


def _names_asked_for(kernel: Kernel, dim: str, known: Numbers) -> Set[str]:
    """The names of whose lanes beyond the end of `dim` something is made that is stored."""
    names, before = set[str](), None
    while names != before:
        before = set(names)
        parts = [part for other in statements_in(kernel.body) for part in _asked_for(other, dim, names, known)]
        names |= {part.name for part, asked in parts if asked and isinstance(part, Value | StateTile)}
    return names


def _asked_for(statement: Statement, dim: str, names: Set[str], known: Numbers) -> Iterator[tuple[Tile, bool]]:
    """Each tile of a statement, and whether its lanes beyond the end of `dim` are asked for; those of `names` are."""
    match statement:
        case Store(target, value):
            yield from _parts_asked_for(value, dim, dim not in target.within, known)
        case Let(target, value) | Add(target, value) | Scale(target, value) | Choose(_, target, value):
            yield from _parts_asked_for(value, dim, target in names, known)
        case Bind(targets, values):
            for value in values:
                yield from _parts_asked_for(value, dim, bool(names & {*targets}), known)
    match statement:
        case Load(_, access) | Store(access):
            for place in access.tiles:
                yield from _parts_asked_for(place, dim, True, known)


def _parts_asked_for(tile: Tile, dim: str, asked: bool, known: Numbers) -> Iterator[tuple[Tile, bool]]:
    """A tile and its parts: with what is zero there a factor makes nothing, and rows behind a row come from others only
    in reverse."""
    yield tile, asked
    match tile:
        case Product(factors):
            for factor in factors:
                others = (other for other in factors if other is not factor)
                counts = asked and not any(_beyond(other, dim, known) == 0 for other in others)
                yield from _parts_asked_for(factor, dim, counts, known)
            return
        case Masked(_, over) if over == dim:
            asked = False
        case Sum(_, over) | MatMul(_, _, over) if over == dim:
            asked = True
        case Dot(left, right, over, onto) if over == dim:
            yield from () if onto is None else _parts_asked_for(onto, dim, asked, known)
            yield from _parts_asked_for(left, dim, _beyond(right, dim, known) != 0, known)
            yield from _parts_asked_for(right, dim, _beyond(left, dim, known) != 0, known)
            return
        case Normalize() | Along() | Call():
            asked = True
        case Edge(_, axis, reverse) if axis == dim:
            asked = not reverse
        case Scan(axis=axis, reverse=True) | Shifted(axis=axis, reverse=True) | Cumulative(_, axis, True) if (
            axis == dim
        ):
            asked = True
    for part in operands(tile):
        yield from _parts_asked_for(part, dim, asked, known)


def _is_only_masked(kernel: Kernel, *names: str) -> bool:
    """Whether one of two names is given the other's tile and nothing else, with a mask over what is its fill there."""
    for one, other in (names, names[::-1]):
        made = [s.value for s in statements_in(kernel.body) if isinstance(s, Let) and s.target == one]
        match made:
            case [Masked(Value(name), dim, fill)] if name == other and _known_beyond(kernel, dim)[name] == fill:
                return True
    return False
