"""What kernels over rows have printed is where `RowBounds` takes their accesses to be, in as many bits as it needs.

Parts in 32 bits are shown to be less than the number of elements that the rows of a chunk have of an array, all heads
together, or of those of one of its rows, if these are no tokens'. It is taken for granted that they are fewer than 2^31
(64 rows of 256 elements: 131,071 heads), and that sequences of a batch do not have between 2^31 - `CHUNK` and 2^31
tokens: `tl.cdiv` counts their chunks in 32 bits.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial

import pytest
import z3

from flagen.backends.triton_.chunk_printer import CHUNK_ROW, ChunkPrinter
from flagen.backends.triton_.routine_printer import RoutinePrinter
from flagen.kernel.ir import (
    Access,
    If,
    Index,
    Kernel,
    Load,
    Loop,
    Routine,
    Space,
    Statement,
    Store,
    routines_in,
    statements_in,
)
from flagen.kernel.rows import PACKING
from flagen.plan.rows import ROW, TOKEN
from flagen.plan.tiles import Arithmetic, Compare, Lane, Product, Size, Tile, Whole
from tests.kernel.bounds import WIDE, Fact, Number, verdict
from tests.kernel.printed import Polynomial, Printed, Text, name, whole
from tests.kernel.test_all_sizes import SPECS, lowered
from tests.kernel.test_all_sizes_of_rows import rows_in
from tests.tiers import variants

MISTAKEN = ("gated_delta_product", "kda", "momentum_delta_rule")
"""Of those with addresses of all three kinds, and with chunks that share a slot."""

STARTS = ("start", "earlier", "later")
ROWS_BESIDE = {"earlier": "chunk_row - HV", "later": "chunk_row + HV"}
"""The row of a chunk beside a program's own, by where that starts."""
FIXED = frozenset({"value_head", "key_head", "block", "blocks", "start", "end_token", "sequence", "chunk", "within"})


class PrintedRows:
    """A kernel over rows, or a routine of one, as it is printed."""

    def __init__(self, kernel: Kernel, routine: Routine | None = None, change: Callable[[str], str] = str) -> None:
        self.kernel, self.routine = kernel, routine
        self.printer = ChunkPrinter(kernel) if routine is None else RoutinePrinter(kernel, routine)
        self.axes = self.printer.axes
        sizes = (kernel if routine is None else routine).sizes
        lanes = {self.axes.index(axis) for axis in kernel.order}
        known = {size: Printed(name(size), 0) for size in sizes}
        self.sizes = {*sizes, "blocks", "shares"}
        known |= {length: Printed(name(length), 32) for length in (*kernel.lengths, *kernel.numbers)}
        if routine is not None:
            given = ("start", "end_token", "chunk_row", "value_head", "key_head", "block")
            known |= {each: Printed(name(each), 64 if number < 3 else 32) for number, each in enumerate(given)}
            known |= {each: Printed(name(each), 32) for each in ("blocks", *map(self.axes.index, routine.lanes))}
        self.text = Text([*map(change, self.printer.lines())], known, frozenset(lanes), FIXED)
        begins = {array.name for array in PACKING}
        self.lines = [line for line in self.text.accesses if line.array not in begins]

    @property
    def accesses(self) -> Iterator[tuple[Access, bool]]:
        """Each in the order that they are printed in, and whether it is the sum of what blocks have left."""
        return _accesses_in(self.kernel.body if self.routine is None else self.routine.body)

    # -------------------------------------------------------------------------------------------------------- addresses

    def address(self, access: Access, *, shares: bool) -> Polynomial:
        """The number of an element: that of its row, and its place in that."""
        found, spaces = whole(0), access.array.spaces
        at = list(zip(spaces, access.at, strict=True))
        if self.routine is not None and spaces[:2] == CHUNK_ROW:
            found, at = name("chunk_row"), at[2:]
        for space, index in at:
            found = found * self._extent(space, access, shares=shares)
            found += whole(0) if shares and space == "block" else self._coordinate(index, access)
        placed = dict(access.places)
        for dim in access.array.dims:
            found = found * name(self.axes.size(dim)) + self._expression(placed.get(dim, Lane(dim, (dim,))), access)
        return found

    def _extent(self, space: Space, access: Access, *, shares: bool) -> Polynomial:
        if space == "loop":
            return whole(access.array.loops)
        names: dict[Space, str] = {"head": "HV", "key_head": "H", "block": "shares" if shares else "blocks"}
        return name(names.get(space, space))

    def _coordinate(self, index: Index, access: Access) -> Polynomial:
        chunk, within, sequence, start = map(name, ("chunk", "within", "sequence", "start"))
        walks = self.kernel.run == "sequence"
        counted = any(s.counted for s in statements_in(self.kernel.body) if isinstance(s, Loop))
        match index.space:
            case "token" if index.axis == TOKEN:
                return start + self._lane(TOKEN, access)
            case "token" if index.axis == ROW:
                step = name(self.kernel.steps)
                if access.address == "from start":
                    return start + self._lane(ROW, access) // step
                return (start * step + self._lane(ROW, access)) // step
            case "row" if index.axis == ROW:
                return start * name(self.kernel.steps) + self._lane(ROW, access)
            case "counted_chunk":
                return chunk + within if counted else chunk
            case "slot" if walks and not counted:
                return (chunk + sequence) // whole(2)
            case "slot":
                return (chunk + sequence - (whole(0) if walks else within)) // whole(2) + within // whole(2)
            case "sequence" | "key_head" | "block":
                return name(index.space)
            case "head":
                return name("value_head")
            case "loop" if index.number is not None:
                return whole(index.number)
        raise AssertionError(index)

    def _over(self, access: Access) -> tuple[str, ...]:
        return access.dims if access.in_memory_order else self.axes.sorted(access.dims)

    def _lane(self, axis: str, access: Access) -> Polynomial:
        return name(f"{self.axes.index(axis)}@{self._over(access).index(axis)}")

    def _expression(self, tile: Tile, access: Access) -> Polynomial:
        match tile:
            case Lane(axis):
                return self._lane(axis, access)
            case Whole(value):
                return whole(value)
            case Size(size):
                return name(size)
            case Product((left, right)):
                return self._expression(left, access) * self._expression(right, access)
            case Arithmetic("-", left, right):
                return self._expression(left, access) - self._expression(right, access)
        raise AssertionError(tile)

    # ------------------------------------------------------------------------------------------------------------- mask

    def mask(self, access: Access) -> frozenset[str]:
        """What holds of an element: its lanes are before the ends, and it is where the access says."""
        ends, steps = dict(access.ends), name(self.kernel.steps)
        found = set()
        start, end = name("start"), name("tl.minimum(end_token, start + TOKENS)" if self.kernel.steps else "end_token")
        for dim in access.within:
            lane = self._lane(dim, access)
            if dim in ends:
                found |= self._conditions(f"{self.axes.index(dim)} < {self.printer.print(ends[dim])}", dim, access)
            elif dim == TOKEN:
                found.add(f"{start + lane} < {end}")
            elif dim == ROW:
                found.add(f"{start * steps + lane} < {end * steps}")
            else:
                found.add(f"{lane} < {name(dim)}")
        if access.where is not None:
            where = self.printer.print.over(access.where, self._over(access))
            found |= self._conditions(where, self._over(access)[0], access)
        return frozenset(found)

    def _conditions(self, text: str, axis: str, access: Access) -> frozenset[str]:
        conditions = self.text.conditions(ast.parse(text, mode="eval").body)
        return frozenset(self.text.placed(each, self._over(access).index(axis)) for each in conditions)

    # ------------------------------------------------------------------------------------------------------------ width

    def limit(self, access: Access, *, shares: bool) -> Polynomial:
        """What has less than 2^31 elements: a chunk's rows of an array with all heads, and all that is no row of
        tokens, sequences, chunks or slots."""
        spaces, found = access.array.spaces, whole(1)
        if access.rows:
            found = name("CHUNK")
        if access.rows or not WIDE & {*spaces}:
            for space in spaces[1 if access.rows else 0 :]:
                found *= self._extent(space, access, shares=shares)
        for dim in access.array.dims:
            found *= name(self.axes.size(dim))
        return found

    def unmasked(self, access: Access, names: Iterable[str]) -> Iterator[Fact]:
        """What holds where an element is loaded or stored."""
        over = self._over(access)
        extents = {f"{self.axes.index(axis)}@{at}": axis for at, axis in enumerate(over)}
        for each in sorted(names):
            x = z3.Int(each)
            if each in extents:
                axis = extents[each]
                bound = self.axes.size(axis)
                yield from (x >= 0, x < z3.Int(bound))
                if axis == TOKEN and TOKEN in access.within:
                    yield x < z3.Int("CHUNK")
            elif each in ("value_head", "key_head", "block"):
                yield from (x >= 0, x < z3.Int({"value_head": "HV", "key_head": "H", "block": "blocks"}[each]))
            elif each in self.sizes:
                yield x >= 1
            for row in extents:
                if f"1 {row}) // " in each:
                    yield from (x >= 0, x <= z3.Int(row), z3.Int(row) < z3.Int("CHUNK"))
        if isinstance(access.where, Compare) and access.places:
            left, right = (number_of(self._expression(t, access)) for t in (access.where.left, access.where.right))
            yield {"<": left < right, ">": left > right}[access.where.op]


def number_of(value: Polynomial) -> Number:
    terms = (z3.Product(z3.IntVal(number), *map(z3.Int, names)) for names, number in value.terms.items())
    return z3.Sum(z3.IntVal(0), *terms)


def _accesses_in(body: Iterable[Statement]) -> Iterator[tuple[Access, bool]]:
    for statement in body:
        match statement:
            case Load(_, source):
                yield source, statement.shares
            case Store(target):
                yield target, False
            case Loop(_, inner):
                yield from _accesses_in(inner)
            case If(_, then, otherwise):
                yield from _accesses_in((*then, *otherwise))


def printed_in(kernel: Kernel) -> Iterator[PrintedRows]:
    yield PrintedRows(kernel)
    yield from (PrintedRows(kernel, routine) for routine in routines_in(kernel.body))


def wrong(printed: PrintedRows) -> Iterator[str]:
    """What is printed of an access that it does not say, or that does not fit."""
    for line, (access, shares) in zip(printed.lines, printed.accesses, strict=True):
        if line.array != access.array.name or line.address.value != printed.address(access, shares=shares):
            yield f"{access.array.name} is elsewhere"
        if line.mask != printed.mask(access):
            yield f"{access.array.name} is masked otherwise"
        limit = printed.limit(access, shares=shares)
        for part in line.address.narrow:
            x, facts = number_of(part), list(printed.unmasked(access, part.names | limit.names))
            if verdict(facts, z3.And(x >= 0, x < number_of(limit))) != "follows":
                yield f"{access.array.name} does not fit"
    for _, given in printed.text.calls:
        for told in given.keys() & {*STARTS, "end_token", "chunk_row", *ROWS_BESIDE.values()}:
            if given[told] is None or given[told].bits < 64:
                yield f"{told} is told in 32 bits"


@variants(sorted(SPECS))
def test_an_address_is_that_of_its_row_and_lanes_and_fits(name: str) -> None:
    """What is no longer than rows of a chunk is in 32 bits, and the rest in 64."""
    for kernel in rows_in(lowered(name)):
        for printed in printed_in(kernel):
            assert list(wrong(printed)) == []


@variants(sorted(SPECS))
def test_a_routine_is_told_where_it_stands(name: str) -> None:
    """All that it is told has the name that it has there, but for where its chunk starts."""
    for kernel in rows_in(lowered(name)):
        routines = {routine.name: RoutinePrinter(kernel, routine) for routine in routines_in(kernel.body)}
        calls = [call for call in PrintedRows(kernel).text.calls if call[0] in routines]
        assert {function for function, _ in calls} == routines.keys()
        for function, told in calls:
            names = [parameter.partition(":")[0] for parameter in routines[function].parameters()]
            pairs = [(one, two) for one, two in zip(names, told, strict=True) if one != two]
            others = [two for one, two in pairs if one == "start"]
            assert {*others} <= {*STARTS}
            assert [two for _, two in pairs if two not in STARTS] in ([], [ROWS_BESIDE.get(x) for x in others])


MISTAKES = {
    "a chunk's number in 32 bits": (r"^chunk = \(program // (\w+)\)\.to\(tl\.int64\)", r"chunk = program // \1"),
    "a sequence's number in 32 bits": (r"^(sequence = \(program // \(blocks \* HV\)\))\.to\(tl\.int64\)", r"\1"),
    "a chunk's start in 32 bits": (r"^( *)(start = .*)$", r"\1\2\n\1start = program"),
    "a row of another head": (r"\* HV \+ value_head", "* HV + key_head"),
    "rows of fewer heads": (r"\* HV\b", "* H"),
    "a tile transposed": (r"\[:, None\] \* (\w+) \+", r"[None, :] * \1 +"),
    "elements too far apart": (r"(_index\[:, None\]) \* (\w+)", r"\1 * 2 * \2"),
    "rows of another token": (r"^( *token = start)", r"\1 + 1"),
    "rows of another step": (r"^( *row = start \* \w+)", r"\1 + 1"),
    "no end of the sequence": (r"^( *token_mask = token) < \w+", r"\1 < start + CHUNK"),
    "an end too late": (r"^( *\w+_mask = \w+_index) < (\w+)", r"\1 < \2 + 1"),
    "a slot of each chunk": (r"within // 2", "within"),
}


@cache
def right_ones() -> tuple[PrintedRows, ...]:
    kernels = (kernel for variant in MISTAKEN for kernel in rows_in(lowered(variant)))
    return tuple(printed for kernel in kernels for printed in printed_in(kernel))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_printed_wrong_is_refused(mistake: str) -> None:
    old, new = MISTAKES[mistake]
    made = 0
    for right in right_ones():
        if any(re.search(old, line) for line in right.text.lines):
            made += 1
            now = PrintedRows(right.kernel, right.routine, partial(re.sub, old, new))
            assert any(wrong(now)), f"{now.kernel.name}: {mistake}"
    assert made > 1
