"""Where programs over rows stand, as they have it printed, is where `RowBounds` takes them to be.

Lines are evaluated on integers, from `tl.program_id` on; a quotient is a number of which there is known what a quotient
is. What is taken for granted is what a launcher hands on, and that there are as many value heads in each group.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Iterator
from functools import cache

import pytest
import z3

from flagen.backends.triton_.chunk_printer import ChunkPrinter
from flagen.kernel.ir import Kernel
from tests.kernel.bounds import Fact, Number, from_zero, verdict
from tests.kernel.test_all_sizes import SPECS, lowered
from tests.kernel.test_all_sizes_of_rows import rows_in
from tests.tiers import variants

MISTAKEN = ("gated_delta_product", "momentum_delta_rule")
"""That mistakes are made in: they have blocks, key heads, and chunks that share a slot."""

SIZES = ("N", "T", "TOKENS", "HV", "H")
"""Those that are there whatever a kernel is compiled for."""

NAMES = frozenset(
    "program block blocks value_head key_head sequence chunk chunks chunks_before within first_token start end_token"
    " first last".split()
)
"""What says where a program stands."""


class Places:
    """The values of the names that lines give one, where sequences are `packed` or not."""

    def __init__(self, lines: Iterable[str], sizes: Iterable[str], *, packed: bool) -> None:
        self.packed, self.sizes = packed, frozenset(sizes)
        self.values: dict[str, Number] = {name: z3.Int(name) for name in SIZES}
        self.facts: list[Fact] = [size >= 1 for size in self.values.values()]
        self.facts.append(self.values["HV"] == self.values["H"] * z3.Int("group"))
        self._quotients = {"HV // H": (z3.Int("group"), z3.IntVal(0))}
        self._body(ast.parse("\n".join(lines)).body)

    def __str__(self) -> str:
        return str((self.packed, self.values, self.facts))

    def _body(self, body: Iterable[ast.stmt]) -> None:
        for statement in body:
            match statement:
                case ast.Assign([ast.Name(target)], value) if target in NAMES:
                    found = self._value(value)
                    if found is not None:
                        self.values[target] = found
                case ast.If(ast.Compare(ast.Name("cu_seqlens_ptr"), [ast.Is()]), then, otherwise):
                    self._body(otherwise if self.packed else then)

    def _value(self, node: ast.expr) -> Number | None:
        match node:
            case ast.Constant(int() as number):
                return z3.IntVal(number)
            case ast.Name(name) if name in self.sizes - self.values.keys():
                self.values[name] = z3.Int(name)
                self.facts.append(self.values[name] >= 1)
                return self.values[name]
            case ast.Name(name):
                return self.values.get(name)
            case ast.Call(ast.Attribute(value, "to")):
                return self._value(value)
            case ast.Call(ast.Attribute(attr="program_id")):
                return z3.Int("program")
            case ast.Call(ast.Attribute(attr="load"), [ast.BinOp() as address]):
                return z3.Int(ast.unparse(address))
            case ast.BinOp(number, ast.FloorDiv(), ast.BinOp(one, ast.Mult(), other)):  # A test below shows it.
                return self._value(ast.BinOp(ast.BinOp(number, ast.FloorDiv(), one), ast.FloorDiv(), other))
        operands = [self._value(each) for each in _operands(node)]
        if len(operands) != 2 or None in operands:
            return None
        left, right = operands
        match node:
            case ast.BinOp(op=ast.Add()):
                return left + right
            case ast.BinOp(op=ast.Sub()):
                return left - right
            case ast.BinOp(op=ast.Mult()):
                return left * right
            case ast.BinOp(op=ast.FloorDiv()):
                return self.divided(left, right)[0]
            case ast.BinOp(op=ast.Mod()):
                return self.divided(left, right)[1]
            case ast.Call(ast.Attribute(attr="cdiv")):
                return self.divided(left + right - 1, right)[0]
            case ast.Call(ast.Attribute(attr="minimum")):
                return z3.If(left < right, left, right)
            case ast.Call(ast.Attribute(attr="maximum")):
                return z3.If(left < right, right, left)
        return None

    def divided(self, left: Number, right: Number) -> tuple[Number, Number]:
        """A quotient, and what is left over."""
        key = f"{left} // {right}"
        if key not in self._quotients:
            number = len(self._quotients)
            quotient, left_over = z3.Ints(f"quotient.{number} left_over.{number}")
            self.facts += (left == quotient * right + left_over, *from_zero(left_over, right))
            self._quotients[key] = quotient, left_over
        return self._quotients[key]


def _operands(node: ast.expr) -> Iterator[ast.expr]:
    match node:
        case ast.BinOp(left, _, right):
            yield from (left, right)
        case ast.Call(_, args):
            yield from args


Claims = Iterator[tuple[str, Fact]]


class Program:
    """A program of a kernel that is one of its grid, and what is granted of that."""

    def __init__(self, kernel: Kernel, lines: Iterable[str], *, packed: bool) -> None:
        self.kernel, self.packed = kernel, packed
        self.places = Places(lines, kernel.sizes, packed=packed)
        self.at = self.places.values
        self.tokens, self.group = self.at["TOKENS"], z3.Int("group")
        self.granted: list[Fact] = [self.group >= 1]
        self.program, self.blocks = z3.Int("program"), self.at.get("blocks", z3.IntVal(1))
        self.first, self.end = (z3.Int(f"cu_seqlens_ptr + sequence{after}") for after in ("", " + 1"))
        self.before, self.chunks = z3.Int("first_chunk_ptr + sequence"), z3.Int("chunks of sequence")
        if packed:
            self.granted += (self.first >= 0, self.end >= self.first, self.before >= 0)
            self.granted += (self.chunks * self.tokens >= self.end - self.first, self.chunks >= 0)
            self.granted.append((self.chunks - 1) * self.tokens < self.end - self.first)

    @property
    def chunks_of_batch(self) -> Number:
        """How many chunks each sequence of a batch has."""
        return self.places.divided(self.at["T"] + self.tokens - 1, self.tokens)[0]

    def launched(self, runs: Number) -> None:
        """There are programs for so many runs, and each head and block of them."""
        heads = self.at["H" if self.kernel.of_key_heads else "HV"]
        self.granted += from_zero(self.program, runs * heads * self.blocks)

    def of_grid(self, run: Number, runs: Number) -> Claims:
        """Each program has one place, and each place one program."""
        heads = self.at["H" if self.kernel.of_key_heads else "HV"]
        head, block = self.at["key_head" if self.kernel.of_key_heads else "value_head"], self.at.get("block", 0)
        yield "the program", self.program == (run * heads + head) * self.blocks + block
        yield "its run", z3.And(*from_zero(run, runs))
        yield "its head", z3.And(*from_zero(head, heads))
        yield "its block", z3.And(block >= 0, block < self.blocks)
        if "key_head" in self.at and not self.kernel.of_key_heads:
            key_head = self.at["key_head"]
            own = z3.And(key_head * self.group <= head, head < key_head * self.group + self.group)
            yield "its key head", z3.And(*from_zero(key_head, self.at["H"]), own)


def at_chunk(program: Program) -> Claims:
    """A program that has a chunk."""
    at, tokens, chunk = program.at, program.tokens, program.at["chunk"]
    first, end, before = program.first, program.end, program.before
    runs = z3.Int("chunks")
    if program.packed:
        program.granted += from_zero(chunk - before, program.chunks)
    else:
        chunks = program.chunks_of_batch
        runs, (sequence, _) = at["N"] * chunks, program.places.divided(chunk, chunks)
        first, end, before = sequence * at["T"], (sequence + 1) * at["T"], sequence * chunks
    program.launched(runs)
    yield from program.of_grid(chunk, runs)
    within, start = chunk - before, at["start"]
    if not program.packed:
        yield "its sequence", z3.And(*from_zero(sequence, at["N"]), at.get("sequence", sequence) == sequence)
    yield "its tokens", z3.And(start == first + within * tokens, first <= start, start < end, at["end_token"] == end)
    if "last" in at:
        turn = z3.Int("turn")
        neighbour = at["first"] + turn * tokens
        earlier = z3.And(neighbour == start - tokens, neighbour >= first, within % 2 == 1)
        yield "the place of its chunk", at["within"] == within
        yield "an earlier chunk", z3.Implies(z3.And(turn >= 0, neighbour < start), earlier)
        neighbour = at["last"] - turn * tokens
        later = z3.And(neighbour == start + tokens, neighbour < end, within % 2 == 0)
        yield "a later chunk", z3.Implies(z3.And(turn >= 0, turn * tokens < at["last"] - start), later)


def at_sequence(program: Program) -> Claims:
    """A program that walks a sequence."""
    at, sequence = program.at, program.at["sequence"]
    program.launched(at["N"])
    yield from program.of_grid(sequence, at["N"])
    first, end, before = program.first, program.end, program.before
    if not program.packed:
        first, end, before = sequence * at["T"], sequence * at["T"] + at["T"], sequence * program.chunks_of_batch
    yield "its tokens", z3.And(at["first_token"] == first, at["end_token"] == end)
    if "chunk" in at:
        yield "its first chunk", at["chunk"] == before


def stands_at(program: Program) -> Claims:
    return at_chunk(program) if program.kernel.run == "chunk" else at_sequence(program)


def test_a_quotient_by_a_product_is_that_by_its_factors() -> None:
    x, one, other, first, second, both = z3.Ints("x one other first second both")
    steps = (*from_zero(x - first * one, one), *from_zero(first - second * other, other))
    facts = [one >= 1, other >= 1, *steps, *from_zero(x - both * (one * other), one * other)]
    assert verdict(facts, both == second) == "follows"


def test_a_row_is_a_micro_step_of_a_token() -> None:
    """As its lane is: so a row is of a token before the end where it is before the end of rows."""
    steps, start, end, lane, token, step = z3.Ints("steps start end lane token step")
    facts = [steps >= 1, start >= 0, lane >= 0, lane == token * steps + step, *from_zero(step, steps)]
    row = start * steps + lane
    assert verdict(facts, row == (start + token) * steps + step) == "follows"
    assert verdict(facts, z3.And(token >= 0, token <= lane)) == "follows"
    assert verdict(facts, (row < end * steps) == (start + token < end)) == "follows"


@variants(sorted(SPECS))
@pytest.mark.parametrize("packed", [False, True], ids=["a batch", "packed"])
def test_a_program_stands_where_it_is_taken_to_be(name: str, packed: bool) -> None:
    for kernel in rows_in(lowered(name)):
        program = Program(kernel, ChunkPrinter(kernel).lines(), packed=packed)
        for title, claim in stands_at(program):
            assert verdict((*program.places.facts, *program.granted), claim) == "follows", f"{kernel.name}: {title}"


MISTAKES = {
    "a chunk of another sequence": (r"chunk // chunks \* T", "chunk // chunks * chunks"),
    "a start too late": (r"^( *start = .*)$", r"\1 + 1"),
    "an end too late": (r"^( *end_token = .*)$", r"\1 + 1"),
    "heads of one program": (r"program // H(V?)\)", r"program // H\1 + 1)"),
    "a head too many": (r"^( *\w+_head = program .*%) (\w+)$", r"\1 (\2 + 1)"),
    "another group": (r"value_head // \(HV // H\)", "value_head // H"),
    "an earlier chunk that is none": (r"^( *first = .*)$", r"\1 - TOKENS"),
    "a later chunk that is none": (r"tl\.minimum\(first \+ TOKENS", "tl.maximum(first + TOKENS"),
    "a later chunk of another slot": (r"\(first \+ TOKENS,", "(first + 2 * TOKENS,"),
    "only full chunks": (r"tl\.cdiv\(T, TOKENS\)", "T // TOKENS"),
}


@cache
def prologues() -> Collection[tuple[Kernel, bool]]:
    """Kernels that mistakes are made in, and whether sequences are packed: one of those that say the same."""
    found = {}
    kernels = (kernel for name in MISTAKEN for kernel in rows_in(lowered(name)))
    for kernel in (kernel for kernel in kernels if kernel.name in ("", "output", "gradients")):
        for packed in (False, True):
            places = Places(ChunkPrinter(kernel).lines(), kernel.sizes, packed=packed)
            found[str(places)] = kernel, packed
    return found.values()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_where_it_stands_is_refused(mistake: str) -> None:
    old, new = MISTAKES[mistake]
    made = refused = 0
    for kernel, packed in prologues():
        right = list(ChunkPrinter(kernel).lines())
        wrong = "\n".join(re.sub(old, new, line) for line in right).split("\n")
        program = Program(kernel, wrong, packed=packed)
        if str(program.places) != str(Places(right, kernel.sizes, packed=packed)):
            made += 1
            claims = [claim for _, claim in stands_at(program)]
            facts = (*program.places.facts, *program.granted)
            refused += any(verdict(facts, claim) == "does not follow" for claim in claims)
    assert refused == made > 0
