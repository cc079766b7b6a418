"""What a walk over the chunks does with the state, read off the equations that are proved.

A walk forward finds R, U, what tokens read and the next state from the chunk form; a walk in reverse finds the
gradients of U, R and the state from its adjoint. Each of their terms is a product of a tile over the values (the state,
U, v, or a gradient of one of them) and either rows or a matrix of scores, with at most one decay: from the chunk's
start, to its end, or across all of it. That is all a backend has to know to print them, wherever it takes rows and
decays from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flagen.algebra.equations import Equation, Exponent, Factor, Solve, System, Term
from flagen.diagnostics import InternalError

Decay = Literal["none", "from start", "to end", "whole"]


@dataclass(frozen=True)
class Tile:
    """A tile over the values as it stands, decayed."""

    tensor: str
    decay: Decay


@dataclass(frozen=True)
class Product:
    """`values` times rows, or times a `matrix` of scores; `reads`: the result has an entry for each of its rows, and is
    summed over what a row runs along."""

    values: str
    by: str
    matrix: bool
    reads: bool
    decay: Decay


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


def next_state(system: System) -> Sum:
    """The state after the chunk."""
    return _sum(_equation(system, "S1"))


def solved_back(adjoint: System) -> Solved | None:
    """The gradients of U, first what comes from the state, and of R; None where no row erases."""
    return _solved(adjoint, "dU", "dR", "dS1")


def state_before(adjoint: System) -> Sum:
    """The gradient of the state before the chunk, first what comes from that after it, then from reads, then rows."""
    return _ordered(_sum(_equation(adjoint, "dS0")), "dS1", "dO0", "dR")


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


def _ordered(found: Sum, *first: str) -> Sum:
    """The terms in the order of the tensors over the values that `first` lists, then the others."""

    def place(term: Tile | Product) -> int:
        values = term.tensor if isinstance(term, Tile) else term.values
        return first.index(values) if values in first else len(first)

    return Sum(found.target, tuple(sorted(found.terms, key=place)))


def _sum(equation: Equation) -> Sum:
    (row,) = (index for index in equation.target.index if index != "y")
    return Sum(equation.target.tensor, tuple(_term(term, row) for term in equation.terms))


def _term(term: Term, row: str) -> Tile | Product:
    if term.sign < 0 or term.mask is not None:
        raise InternalError(f"{term} is no term of a walk")
    if len(term.factors) == 1:
        (tile,) = term.factors
        return Tile(tile.tensor, _decay(term.exponents, None))
    (values,) = (factor for factor in term.factors if "y" in factor.index)
    (by,) = (factor for factor in term.factors if factor is not values)
    matrix = "x" not in by.index
    return Product(values.tensor, by.tensor, matrix, by.index[0] == row, _decay(term.exponents, None if matrix else by))


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
