"""Small mistakes, made one at a time and everywhere they can be made: what a proof is worth is what it catches.

A mutant that says the same thing in other words is marked with the reason why; the proof has to accept it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from flagen.algebra.equations import (
    FAMILY,
    Equation,
    Factor,
    Letters,
    Mask,
    OffsetGradient,
    Solve,
    Statement,
    System,
    Term,
    Weights,
    WeightsGradient,
)
from flagen.algebra.normal_form import Block, DeltaRow, MicroStep, NormalForm, Numbers, Position
from flagen.algebra.scan import ZERO
from flagen.algebra.timeline import Timeline
from flagen.spec.model import Binary, Negate

T = TypeVar("T")


@dataclass(frozen=True)
class Mutant(Generic[T]):
    """`value` differs from the original in `what`; `same_because` it is the same all the same, if it is."""

    what: str
    value: T
    same_because: str | None = None


def changed(items: tuple[T, ...], place: int, *new: T) -> tuple[T, ...]:
    """`items` with `new` in place of the one at `place`."""
    return (*items[:place], *new, *items[place + 1 :])


# -------------------------------------------------------------------------------------------------- chunk form, adjoint


def of_system(system: System, nf: NormalForm) -> Iterator[Mutant[System]]:
    """Every term of `system`, which comes from `nf`, with a wrong sign, factor, decay or mask, or missing; every solve
    transposed."""
    for place, statement in enumerate(system.statements):
        for mutant in _of_statement(system, place, statement, nf):
            statements = changed(system.statements, place, mutant.value)
            what = f"{statement.target}: {mutant.what}"
            yield Mutant(what, replace(system, statements=statements), mutant.same_because)


def _of_statement(system: System, place: int, statement: Statement, nf: NormalForm) -> Iterator[Mutant[Statement]]:
    match statement:
        case Equation(_, terms):
            known = _known(system, place)
            for number, term in enumerate(terms):
                yield Mutant(f"without {term}", replace(statement, terms=changed(terms, number)))
                for mutant in _of_term(system, term, known, nf):
                    equation = replace(statement, terms=changed(terms, number, mutant.value))
                    yield Mutant(f"{term}: {mutant.what}", equation, mutant.same_because)
        case Solve():
            yield Mutant("transposed", replace(statement, transposed=not statement.transposed))
        case Weights():
            yield from _of_weights(system, statement, nf)
        case WeightsGradient(_, uses):
            for number, use in enumerate(uses):
                yield Mutant(f"without {use}", replace(statement, uses=changed(uses, number)))
        case OffsetGradient(_, pairs):
            for number, (sign, left, right) in enumerate(pairs):
                yield Mutant("negated", replace(statement, pairs=changed(pairs, number, (-sign, left, right))))
                yield Mutant("without a pair", replace(statement, pairs=changed(pairs, number)))


def _of_weights(system: System, weights: Weights, nf: NormalForm) -> Iterator[Mutant[Statement]]:
    """A reader or a writer with the numbers of another, or at its place; or what it does not see is not hidden."""
    if weights.mask is not None:
        yield Mutant("unmasked", replace(weights, mask=None))

    def others(end: Factor) -> Iterator[str]:
        for tensor, index in system.inputs.items():
            if tensor != end.tensor and _families(index) == _families(end.index):
                yield tensor

    if (reader := weights.reader) is not None:
        for tensor in others(reader):
            yield Mutant(f"{tensor} for {reader.tensor}", replace(weights, reader=replace(reader, tensor=tensor)))
            at = f"G{tensor[1:]}"
            yield Mutant(f"to {at}", replace(weights, upto=at), _same_offsets(nf, at, weights.upto))
    if (writer := weights.writer) is not None:
        for tensor in others(writer):
            yield Mutant(f"{tensor} for {writer.tensor}", replace(weights, writer=replace(writer, tensor=tensor)))
            at = f"G{tensor[1:]}"
            yield Mutant(f"after {at}", replace(weights, since=at), _same_offsets(nf, at, weights.since))


def _of_term(system: System, term: Term, known: dict[str, Letters], nf: NormalForm) -> Iterator[Mutant[Term]]:
    yield Mutant("negated", replace(term, sign=-term.sign))
    if term.mask is not None:
        yield from _of_mask(system, term, term.mask, nf)
    for number, exponent in enumerate(term.exponents):
        yield Mutant(f"without exp({exponent})", replace(term, exponents=changed(term.exponents, number)))
        for offset, index in system.offsets.items():
            if offset != exponent.offset and _row(index) == _family(exponent.row):
                exponents = changed(term.exponents, number, replace(exponent, offset=offset))
                same = _same_offsets(nf, offset, exponent.offset)
                yield Mutant(f"exp({exponent}) at {offset}", replace(term, exponents=exponents), same)
    for number, factor in enumerate(term.factors):
        for tensor, index in known.items():
            if tensor != factor.tensor and _families(index) == _families(factor.index):
                factors = changed(term.factors, number, replace(factor, tensor=tensor))
                yield Mutant(f"{tensor} for {factor.tensor}", replace(term, factors=factors))


def _of_mask(system: System, term: Term, mask: Mask, nf: NormalForm) -> Iterator[Mutant[Term]]:
    twice = _masked_twice(system, term)
    yield Mutant("unmasked", replace(term, mask=None), twice)
    for number, read in enumerate(nf.reads):
        reader = f"q{number}"
        if mask.reader.startswith("q") and reader != mask.reader:
            sees_more = read.position > nf.reads[int(mask.reader[1:])].position
            masked = replace(term, mask=replace(mask, reader=reader))
            yield Mutant(f"masked by {reader}", masked, twice if sees_more else None)


def _same_offsets(nf: NormalForm, one: str, other: str) -> str | None:
    if {one, other} == {"Gw", "Gy"} and all(row.after_decay for step in nf.steps for row in step.deltas):
        return "a row that reads after the decay reads where it writes"
    return None


def _masked_twice(system: System, term: Term) -> str | None:
    """The cotangent of masked scores is masked where it is defined and where it is used; either mask does, where no
    decay has to be kept from running backwards."""
    scores = ("dL", "dN", "dA", "dB")
    defined = {statement.target: statement for statement in system.statements}
    if any(isinstance(defined.get(factor), Weights) for factor in term.factors):
        return "what a reader does not see has the weight 0"
    for name in (factor.tensor for factor in term.factors):
        if name.startswith(scores) and _masks(system, name):
            return f"{name} is masked where it is defined"
    target = next(s.target.tensor for s in system.statements if isinstance(s, Equation) and term in s.terms)
    if target.startswith(scores) and not term.exponents and all(_uses_masked(system, target)):
        return f"{target} is masked wherever it is used"
    return None


def _masks(system: System, name: str) -> bool:
    definition = system.equation(name)
    return isinstance(definition, Equation) and all(term.mask for term in definition.terms)


def _uses_masked(system: System, name: str) -> Iterator[bool]:
    for statement in system.statements:
        if isinstance(statement, Equation):
            yield from (term.mask is not None for term in statement.terms if name in term.tensors())


def _known(system: System, place: int) -> dict[str, Letters]:
    """The tensors that a statement may name, with their indices: what is given, and what is defined before it."""
    # The right side of the solve goes when the solve is split; it is no tensor of its own.
    return dict(system.inputs) | {
        s.target.tensor: s.target.index for s in system.statements[:place] if s.target.tensor not in ("R", "Rbar")
    }


def _family(letter: str) -> str:
    return FAMILY[letter] if letter else ""


def _families(index: Letters) -> tuple[str, ...]:
    return tuple(FAMILY[letter] for letter in index)


def _row(index: Letters) -> str:
    return _family(index[0]) if index and index[0] != "x" else ""


# ---------------------------------------------------------------------------------------------------------- normal form


def of_normal_form(nf: NormalForm) -> Iterator[Mutant[NormalForm]]:
    """Every row, decay and read of `nf` with a mistake in it."""
    yield Mutant("output: negated", replace(nf, output=Negate(nf.output)))
    for number, read in enumerate(nf.reads):
        negated = replace(read, q=Negate(read.q))
        yield Mutant(f"{read.name}: negated", replace(nf, reads=changed(nf.reads, number, negated)))
        for mistaken in _of_numbers(read.of):
            reads = changed(nf.reads, number, replace(read, of=mistaken.value))
            yield Mutant(f"{read.name}, of: {mistaken.what}", replace(nf, reads=reads))
        for position in _near(nf, read.position):
            moved = replace(read, position=position)
            what = f"{read.name}: {nf.describe(position)}, not {nf.describe(read.position)}"
            yield Mutant(what, replace(nf, reads=changed(nf.reads, number, moved)))
    for number, block in enumerate(nf.blocks):
        for mutant in _of_block(nf, block):
            yield Mutant(mutant.what, replace(nf, blocks=changed(nf.blocks, number, mutant.value)), mutant.same_because)


def _near(nf: NormalForm, position: Position) -> Iterator[Position]:
    """The moments of a token's update that a read can have, but for its own."""
    moments = [Position(0, 0), nf.end]
    if nf.blocks and nf.blocks[0].steps[0].decay is not None:
        moments.append(Position(0, 0, after_decay=True))
    yield from (moment for moment in moments if moment != position)


def _of_block(nf: NormalForm, block: Block) -> Iterator[Mutant[Block]]:
    if block.lead is not None:
        yield Mutant("without the decay before the first micro-step", replace(block, lead=None))
        first = replace(block.steps[0], decay=block.lead)
        yield Mutant("every micro-step decays", replace(block, lead=None, steps=changed(block.steps, 0, first)))
    for number, step in enumerate(block.steps):
        for mutant in _of_step(nf, step):
            yield Mutant(
                mutant.what, replace(block, steps=changed(block.steps, number, mutant.value)), mutant.same_because
            )


def _of_step(nf: NormalForm, step: MicroStep) -> Iterator[Mutant[MicroStep]]:
    if step.decay is not None:
        yield Mutant("without decay", replace(step, decay=None))
        squared = replace(step.decay, factor=Binary("*", step.decay.factor, step.decay.factor))
        yield Mutant("decayed twice", replace(step, decay=squared))
    for number, row in enumerate(step.deltas):
        yield Mutant("without a delta row", replace(step, deltas=changed(step.deltas, number)))
        for mutant in _of_delta(nf, row):
            deltas = changed(step.deltas, number, mutant.value)
            yield Mutant(f"delta row: {mutant.what}", replace(step, deltas=deltas), mutant.same_because)
    for number, write in enumerate(step.writes):
        negated = replace(write, k=Negate(write.k))
        yield Mutant("without a write row", replace(step, writes=changed(step.writes, number)))
        yield Mutant("write row: negated", replace(step, writes=changed(step.writes, number, negated)))
        for mistaken in _of_numbers(write.into):
            writes = changed(step.writes, number, replace(write, into=mistaken.value))
            yield Mutant(f"write row, into: {mistaken.what}", replace(step, writes=writes))
    for number, numbers in enumerate(step.mix):
        for mistaken in _of_numbers(numbers):
            yield Mutant(f"mix: {mistaken.what}", replace(step, mix=changed(step.mix, number, mistaken.value)))


def _of_numbers(numbers: Numbers) -> Iterator[Mutant[Numbers]]:
    """The numbers of registers, one of them negated, or in the place of the next."""
    for place, number in enumerate(numbers):
        if number != ZERO:
            yield Mutant("negated", changed(numbers, place, Negate(number)))
    if len(set(numbers)) > 1:
        yield Mutant("exchanged", (*numbers[1:], numbers[0]))


def _of_delta(nf: NormalForm, row: DeltaRow) -> Iterator[Mutant[DeltaRow]]:
    yield Mutant("y negated", replace(row, y=Negate(row.y)))
    yield Mutant("w negated", replace(row, w=Negate(row.w)))
    if row.z is not None:
        yield Mutant("z negated", replace(row, z=Negate(row.z)))
        yield Mutant("without z", replace(row, z=None))
    yield Mutant("w and y exchanged", replace(row, w=row.y, y=row.w))
    for mistaken in _of_numbers(row.of):
        yield Mutant(f"of: {mistaken.what}", replace(row, of=mistaken.value))
    for mistaken in _of_numbers(row.into):
        yield Mutant(f"into: {mistaken.what}", replace(row, into=mistaken.value))
    same = "nothing decays" if nf.decay_kind == "none" and not nf.registers else None
    yield Mutant("the other side of the decay", replace(row, after_decay=not row.after_decay), same)


# ------------------------------------------------------------------------------------------------------------- timeline


def of_timeline(timeline: Timeline) -> Iterator[Mutant[Timeline]]:
    """Every reader seeing one micro-step more or less, every offset counting one decay more or less."""
    for by in (-1, 1):
        for reader, rows in timeline.seen.items():
            seen = {**timeline.seen, reader: _shifted(rows, by, timeline)}
            yield Mutant(f"{reader} sees {by:+d}", replace(timeline, seen=seen))
        for offset, rows in timeline.counts.items():
            counts = {**timeline.counts, offset: _shifted(rows, by, timeline)}
            yield Mutant(f"{offset} counts {by:+d}", replace(timeline, counts=counts))


def _shifted(rows: tuple[int, ...], by: int, timeline: Timeline) -> tuple[int, ...]:
    """`rows` moved by so many micro-steps, as far as there are any in the chunk."""
    return tuple(min(max(row + by, 0), len(timeline.decays)) for row in rows)
