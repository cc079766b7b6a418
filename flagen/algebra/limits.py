"""How large an expression the derivation takes on: bounds that no honest recurrence meets, and that keep one that
multiplies without end (each local naming the one before it twice) cheap to refuse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from flagen.spec.model import Binary, Contract, Expr, Name, Negate, Outer, Reduce, StateRead, Transpose, children

MAX_NODES = 5000
"""Nodes of an expression with its locals written out."""

MAX_LEVELS = 128
"""Levels of its tree."""

MAX_TERMS = 1000
"""Terms of an expression that is multiplied out."""

MAX_FACTORS = 64
"""Factors of one of them."""


class Extent(NamedTuple):
    """How large an expression is."""

    nodes: int
    levels: int

    @property
    def problem(self) -> str | None:
        """Why this is too large, or None."""
        if self.nodes > MAX_NODES or self.levels > MAX_LEVELS:
            return "with its locals written out, this is too large an expression"
        return None


def extent(expr: Expr, of_locals: Mapping[str, Extent]) -> Extent:
    """How large `expr` is, its locals written out."""
    if isinstance(expr, Name) and expr.name in of_locals:
        return of_locals[expr.name]
    parts = [extent(part, of_locals) for part in children(expr)]
    return Extent(1 + sum(part.nodes for part in parts), 1 + max((part.levels for part in parts), default=0))


def product_problem(expr: Expr, *, sums_stay: bool) -> str | None:
    """Why `expr` is too large to be multiplied out, or None. `sums_stay`: a sum that is a scalar or a vector and reads
    no state counts as one factor."""
    size = _multiplied_out(expr, sums_stay)
    if size.terms > MAX_TERMS:
        return f"this multiplies out to more than {MAX_TERMS} terms"
    if size.factors > MAX_FACTORS:
        return f"this is a product of more than {MAX_FACTORS} factors"
    return None


class _Product(NamedTuple):
    """At most how many terms there are, how many factors one of them has, and whether there is a state among them."""

    terms: int
    factors: int
    state: bool


def _multiplied_out(expr: Expr, sums_stay: bool) -> _Product:
    parts = [_multiplied_out(part, sums_stay) for part in children(expr)]
    state = isinstance(expr, StateRead) or any(part.state for part in parts)
    match expr:
        case Binary("+" | "-") if state or len(expr.dims) > 1 or not sums_stay:
            return _Product(sum(part.terms for part in parts), max(part.factors for part in parts), state)
        case Binary("*") | Outer() | Contract():
            return _Product(math.prod(part.terms for part in parts), sum(part.factors for part in parts), state)
        case Binary("/"):
            return _Product(parts[0].terms, parts[0].factors + 1, state)
        case Negate() | Transpose() | Reduce("sum" | "mean"):
            return parts[0]
    return _Product(1, 1, state)
