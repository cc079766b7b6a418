"""A small language of tensor equations over the rows of a chunk: the chunk form and its adjoint are written in it.

A term is a product of tensors at named indices, a product of decays e^{±offset}, and at most one mask; indices that the
equation's left side does not have are summed. The language is closed under transposition, so the adjoint of a system is
a system of the same kind (`flagen.algebra.adjoint`). It is evaluated exactly by `flagen.algebra.exact`, and printed by
the backends.

Indices, by what they run over:

    i j     delta rows of the chunk, in (token, micro-step, row) order
    m       write rows
    t       tokens
    x       key channels; where keys are pairs, of a and b, channels of either side
    y       value channels
    p r     registers: states that numbers mix
    s       micro-steps
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

Letters = tuple[str, ...]

FAMILY: Mapping[str, str] = {
    "i": "delta",
    "j": "delta",
    "m": "write",
    "t": "token",
    "x": "key",
    "a": "first of pair",
    "b": "second of pair",
    "y": "value",
    "p": "register",
    "r": "register",
    "s": "step",
}
"""What each index runs over."""


@dataclass(frozen=True)
class Factor:
    """A tensor at named indices, e.g. `w[j, x]`."""

    tensor: str
    index: Letters

    def renamed(self, names: Mapping[str, str]) -> Factor:
        return replace(self, index=tuple(names.get(letter, letter) for letter in self.index))

    def __str__(self) -> str:
        return f"{self.tensor}[{','.join(self.index)}]"


@dataclass(frozen=True)
class Exponent:
    """A factor e^{sign * offset[row]}. `row` is empty for the offset of the chunk's end."""

    sign: Literal[1, -1]
    offset: str
    row: str

    def renamed(self, names: Mapping[str, str]) -> Exponent:
        return replace(self, row=names.get(self.row, self.row))

    def __str__(self) -> str:
        where = f"[{self.row}]" if self.row else ""
        return f"{'+' if self.sign > 0 else '-'} {self.offset}{where}"


@dataclass(frozen=True)
class Mask:
    """1 where the write of row `column` is visible to the read `reader` of row `row`, else 0."""

    reader: str
    row: str
    column: str

    def renamed(self, names: Mapping[str, str]) -> Mask:
        return replace(self, row=names.get(self.row, self.row), column=names.get(self.column, self.column))

    def __str__(self) -> str:
        return f"[{self.column} seen by {self.reader}, {self.row}]"


@dataclass(frozen=True)
class Term:
    factors: tuple[Factor, ...]
    exponents: tuple[Exponent, ...] = ()
    mask: Mask | None = None
    sign: Literal[1, -1] = 1

    @property
    def letters(self) -> frozenset[str]:
        rows = {e.row for e in self.exponents if e.row}
        masked = {self.mask.row, self.mask.column} if self.mask else set()
        return frozenset({letter for f in self.factors for letter in f.index} | rows | masked)

    def renamed(self, names: Mapping[str, str]) -> Term:
        return Term(
            tuple(f.renamed(names) for f in self.factors),
            tuple(e.renamed(names) for e in self.exponents),
            None if self.mask is None else self.mask.renamed(names),
            self.sign,
        )

    def tensors(self) -> tuple[str, ...]:
        return tuple(f.tensor for f in self.factors)

    def __str__(self) -> str:
        parts = [str(self.mask)] if self.mask else []
        parts += [str(f) for f in self.factors]
        if self.exponents:
            parts.append(f"exp({' '.join(str(e) for e in self.exponents).removeprefix('+ ')})")
        return ("-" if self.sign < 0 else "") + " ".join(parts)


@dataclass(frozen=True)
class Equation:
    """`target = sum of terms`; an empty sum is zero."""

    target: Factor
    terms: tuple[Term, ...]

    def __str__(self) -> str:
        return f"{self.target} = {' + '.join(str(term) for term in self.terms) or '0'}".replace("+ -", "- ")


@dataclass(frozen=True)
class Solve:
    """`target = (I - matrix)^{-1} right`, or with the transposed matrix; `matrix` is strictly lower triangular."""

    target: Factor
    matrix: str
    right: str
    transposed: bool = False

    def __str__(self) -> str:
        power = "-T" if self.transposed else "-1"
        return f"{self.target} = (I - {self.matrix})^{power} {self.right}"


@dataclass(frozen=True)
class Weights:
    """What reaches a reader of what a writer left in the registers: `reader` times the mixes between them times
    `writer`, both a number for each register.

    The mixes are those of the micro-steps that the offset `upto` counts and `since` does not. Without a reader they
    reach every register at the chunk's end, and without a writer they start from every register before the chunk.
    """

    target: Factor
    mixes: Factor
    reader: Factor | None
    upto: str
    writer: Factor | None
    since: str
    mask: Mask | None = None

    def __str__(self) -> str:
        row = f"[{self.reader.index[0]}]" if self.reader else ""
        column = f"[{self.writer.index[0]}]" if self.writer else ""
        since = f" after {self.since}{column}" if self.since else ""
        ends = (self.reader, f"{self.mixes.tensor}(to {self.upto}{row}{since})", self.writer)
        parts = [str(self.mask)] if self.mask else []
        return f"{self.target} = {' '.join([*parts, *(str(end) for end in ends if end)])}"


@dataclass(frozen=True)
class WeightsGradient:
    """The gradient of what stands in `uses` as their reader, their writer or their mixes."""

    target: Factor
    uses: tuple[Weights, ...]

    def __str__(self) -> str:
        name = self.target.tensor.removeprefix("d")
        through = ", ".join(f"d{use.target}" for use in self.uses)
        return f"{self.target} = derivative by {name} of what weighs {through}"


@dataclass(frozen=True)
class OffsetGradient:
    """`target[row (, x)] = sum over signed pairs of factor * cotangent`: how a decay offset's gradient comes out of
    tensors that are there already."""

    target: Factor
    pairs: tuple[tuple[Literal[1, -1], Factor, Factor], ...]

    def __str__(self) -> str:
        text = " ".join(f"{'+' if sign > 0 else '-'} {left} {right}" for sign, left, right in self.pairs)
        return f"{self.target} = {text.removeprefix('+ ')}"


Statement = Equation | Solve | Weights | WeightsGradient | OffsetGradient


def called(statement: Statement, names: Mapping[str, str]) -> Statement:
    """`statement` with its tensors, and the offsets that have their names, called as `names` says."""
    offsets = {f"G{tensor}": f"G{name}" for tensor, name in names.items()}

    def factor(of: Factor) -> Factor:
        return replace(of, tensor=names.get(of.tensor, of.tensor))

    def term(of: Term) -> Term:
        exponents = tuple(replace(e, offset=offsets.get(e.offset, e.offset)) for e in of.exponents)
        return replace(of, factors=tuple(map(factor, of.factors)), exponents=exponents, mask=masked(of.mask))

    def masked(of: Mask | None) -> Mask | None:
        return None if of is None else replace(of, reader=names.get(of.reader, of.reader))

    def weights(of: Weights) -> Weights:
        ends = (end if end is None else factor(end) for end in (of.reader, of.writer))
        reader, writer = ends
        upto, since = (offsets.get(offset, offset) for offset in (of.upto, of.since))
        return Weights(factor(of.target), factor(of.mixes), reader, upto, writer, since, masked(of.mask))

    match statement:
        case Equation(target, terms):
            return Equation(factor(target), tuple(map(term, terms)))
        case Solve(target, matrix, right, transposed):
            return Solve(factor(target), names.get(matrix, matrix), names.get(right, right), transposed)
        case Weights():
            return weights(statement)
        case WeightsGradient(target, uses):
            return WeightsGradient(factor(target), tuple(map(weights, uses)))
        case OffsetGradient(target, pairs):
            return OffsetGradient(factor(target), tuple((sign, factor(x), factor(y)) for sign, x, y in pairs))


@dataclass(frozen=True)
class System:
    """Equations in an order in which each uses only what stands before it.

    `inputs` maps each given tensor to its indices; `offsets` lists the decay offsets and the rows they belong to.
    """

    inputs: Mapping[str, Letters]
    offsets: Mapping[str, Letters]
    statements: tuple[Statement, ...]

    def equation(self, tensor: str) -> Statement:
        """The statement that defines `tensor`."""
        return next(s for s in self.statements if s.target.tensor == tensor)

    def defines(self, tensor: str) -> bool:
        return any(s.target.tensor == tensor for s in self.statements)

    def dump(self) -> str:
        given = ", ".join(f"{name}[{','.join(index)}]" for name, index in self.inputs.items())
        return "\n".join([f"given {given}", *(str(statement) for statement in self.statements)])
