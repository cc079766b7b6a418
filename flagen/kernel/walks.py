"""What a walk over the chunks does with the state, read off the equations that are proved.

A walk forward finds R, U, what tokens read and the next state from the chunk form; a walk in reverse finds the
gradients of U, R and the state from its adjoint. Each of their terms is a product of a tile over the values (the state,
U, v, or a gradient of one of them) and either rows or a matrix of scores, with at most one decay: from the chunk's
start, to its end, or across all of it. That is all a backend has to know to print them, wherever it takes rows and
decays from.

Of states that numbers mix, a term with registers is one term for each of them, in which numbers have the place of the
decay: one for each row, or one for all of the chunk.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from flagen.algebra.equations import Equation, Exponent, Factor, Solve, System, Term
from flagen.diagnostics import InternalError

Decay = Literal["none", "from start", "to end", "whole"]


@dataclass(frozen=True)
class Tile:
    """A tile over the values as it stands, decayed, or times `number`."""

    tensor: str
    decay: Decay
    number: str = ""


@dataclass(frozen=True)
class Product:
    """`values` times rows, or times a `matrix` of scores; `reads`: the result has an entry for each of its rows, and is
    summed over what a row runs along; `number`: what else multiplies each row."""

    values: str
    by: str
    matrix: bool
    reads: bool
    decay: Decay
    number: str = ""


@dataclass(frozen=True)
class Sum:
    """What a tensor is the sum of, in this order."""

    target: str
    terms: tuple[Tile | Product, ...]

    def without(self, matrix: str) -> Sum:
        """The sum without the products with a matrix: for where rows have it in them."""
        return Sum(self.target, tuple(t for t in self.terms if not (isinstance(t, Product) and t.by == matrix)))


@dataclass(frozen=True)
class Inverted:
    """The solution of (I - L) X = right, or of its transpose, from the inverse."""

    target: str
    right: str
    transposed: bool


Solved = tuple[Sum, Inverted]
"""The right side of the triangular solve, and its solution."""


def solved(system: System) -> Solved | None:
    """R and U; None where no row erases."""
    return _solved(system, "R", "U")


def read(system: System, number: int = 0) -> Sum:
    """What the tokens read with one of the reads."""
    return _sum(_equation(system, f"O{number}"))


def next_states(system: System) -> tuple[Sum, ...]:
    """The state after the chunk, or each of several."""
    return tuple(_sum(equation) for equation in _of_each(system, "S1"))


def solved_back(adjoint: System) -> Solved | None:
    """The gradients of U, first what comes from the state, and of R; None where no row erases."""
    return _solved(adjoint, "dU", "dR", "dS1")


def states_before(adjoint: System) -> tuple[Sum, ...]:
    """The gradient of the state before the chunk, or of each of several, first what comes from that after it, then from
    reads, then rows."""
    return tuple(_ordered(_sum(equation), "dS1", "dO0", "dR") for equation in _of_each(adjoint, "dS0"))


def of_each_register(system: System, registers: int, present: Callable[[str], bool]) -> System:
    """The equations of registers as those of so many states, S0_0, S0_1 and so on; without terms whose number is not
    `present`, since it is zero."""
    statements = [
        each
        for statement in system.statements
        for each in (_apart(statement, registers, present) if isinstance(statement, Equation) else (statement,))
    ]
    return replace(system, statements=tuple(statements))


_REGISTERS = ("p", "r")


def _apart(equation: Equation, registers: int, present: Callable[[str], bool]) -> Iterator[Equation]:
    """An equation for each register that it is of."""
    for of in _places(equation.target.index, registers):
        terms = []
        for term in equation.terms:
            summed = {letter for factor in term.factors for letter in factor.index} - of.keys()
            for places in _places(sorted(summed), registers):
                factors = tuple(_at(factor, of | places) for factor in term.factors)
                numbers = (factor for factor in factors if _is_number(factor))
                if all(present(factor.tensor) for factor in numbers):
                    terms.append(replace(term, factors=factors))
        yield Equation(_at(equation.target, of), tuple(terms))


def _places(letters: Iterable[str], registers: int) -> Iterator[dict[str, int]]:
    """Which registers the letters that are some may stand for."""
    found = [letter for letter in letters if letter in _REGISTERS]
    for places in itertools.product(range(registers), repeat=len(found)):
        yield dict(zip(found, places, strict=True))


def _at(factor: Factor, places: Mapping[str, int]) -> Factor:
    """A tensor of registers as that of some of them."""
    name = "_".join((factor.tensor, *(str(places[letter]) for letter in factor.index if letter in places)))
    return Factor(name, tuple(letter for letter in factor.index if letter not in places))


def _is_number(factor: Factor) -> bool:
    """Whether it is one number for each row, or for the chunk."""
    return len(factor.index) < 2


def _solved(system: System, right: str, solution: str, *first: str) -> Solved | None:
    if not system.defines(solution):
        return None
    statement = system.equation(solution)
    assert isinstance(statement, Solve)
    return _ordered(_sum(_equation(system, right)), *first), Inverted(solution, right, statement.transposed)


def _equation(system: System, name: str) -> Equation:
    statement = system.equation(name)
    if not isinstance(statement, Equation):
        raise InternalError(f"{statement} is no sum")
    return statement


def _of_each(system: System, name: str) -> Iterator[Equation]:
    """How a state comes about, or each register of it."""
    if system.defines(name):
        yield _equation(system, name)
        return
    names = itertools.takewhile(system.defines, (f"{name}_{place}" for place in itertools.count()))
    yield from (_equation(system, each) for each in names)


def _ordered(found: Sum, *first: str) -> Sum:
    """The terms in the order of the tensors over the values that `first` lists, then the others."""

    def place(term: Tile | Product) -> int:
        values, *_ = (term.tensor if isinstance(term, Tile) else term.values).split("_")
        return first.index(values) if values in first else len(first)

    return Sum(found.target, tuple(sorted(found.terms, key=place)))


def _sum(equation: Equation) -> Sum:
    (row,) = (index for index in equation.target.index if index != "y")
    return Sum(equation.target.tensor, tuple(_term(term, row) for term in equation.terms))


def _term(term: Term, row: str) -> Tile | Product:
    if term.sign < 0 or term.mask is not None:
        raise InternalError(f"{term} is no term of a walk")
    number = next((factor.tensor for factor in term.factors if _is_number(factor)), "")
    factors = [factor for factor in term.factors if not _is_number(factor)]
    if len(factors) == 1:
        (tile,) = factors
        return Tile(tile.tensor, _decay(term.exponents, None), number)
    (values,) = (factor for factor in factors if "y" in factor.index)
    (by,) = (factor for factor in factors if factor is not values)
    matrix = "x" not in by.index
    decay = _decay(term.exponents, None if matrix else by)
    return Product(values.tensor, by.tensor, matrix, by.index[0] == row, decay, number)


def _decay(exponents: tuple[Exponent, ...], rows: Factor | None) -> Decay:
    """Which decay stands before a tile (`rows` is None) or before a product with rows."""
    signs = {(exponent.sign, exponent.offset) for exponent in exponents}
    if not signs:
        return "none"
    if rows is None and signs == {(1, "Gend")}:
        return "whole"
    if rows is not None and signs == {(1, f"G{rows.tensor}")}:
        return "from start"
    if rows is not None and signs == {(1, "Gend"), (-1, f"G{rows.tensor}")}:
        return "to end"
    raise InternalError(f"a walk has no decay {' '.join(map(str, exponents))}")
