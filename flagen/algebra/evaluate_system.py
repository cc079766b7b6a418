"""Evaluates a system of chunk equations in exact arithmetic, by definition: one loop over all indices per term."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import itemgetter

from gmpy2 import mpq

from flagen.algebra.equations import (
    FAMILY,
    Equation,
    Exponent,
    Factor,
    Letters,
    OffsetGradient,
    Solve,
    Statement,
    System,
    Term,
    Weights,
    WeightsGradient,
)
from flagen.algebra.evaluate_weights import evaluate_weights, evaluate_weights_gradient
from flagen.algebra.timeline import OutOfOrder, Timeline, Values, indices


def run(system: System, timeline: Timeline, given: Mapping[str, Values]) -> dict[str, Values]:
    """Every tensor of `system`, from the `given` ones.

    Raises:
        OutOfOrder: a statement has a decay from a write to a read that comes before it.
    """
    values: dict[str, Values] = dict(given)
    for statement in system.statements:
        try:
            values[statement.target.tensor] = _statement(statement, timeline, values)
        except OutOfOrder:
            raise OutOfOrder(f"a read that sees a write stands before it in the decays: {statement}") from None
    return values


def _statement(statement: Statement, timeline: Timeline, values: Mapping[str, Values]) -> Values:
    match statement:
        case Equation():
            return _equation(statement, timeline, values)
        case Solve():
            return _solve(statement, timeline, values)
        case Weights():
            return evaluate_weights(statement, timeline, values)
        case WeightsGradient():
            return evaluate_weights_gradient(statement, timeline, values)
        case OffsetGradient():
            return _offset_gradient(statement, timeline, values)


def decay_gradient(system: System, timeline: Timeline, values: Mapping[str, Values]) -> list[list[mpq]]:
    """dL/dg of each micro-step, by key channel (one entry for a scalar decay): every offset that includes it."""
    channels = timeline.sizes["key"] if any("x" in index for index in system.offsets.values()) else 1
    gradient = [[mpq(0)] * channels for _ in timeline.decays]
    for offset, index in system.offsets.items():
        rows = range(len(timeline.counts[offset])) if index[:1] not in ((), ("x",)) else (0,)
        for row in rows:
            for channel in range(channels):
                key = tuple(row if letter != "x" else channel for letter in index)
                for step in range(timeline.counts[offset][row]):
                    gradient[step][channel] += values[f"d{offset}"][key]
    return gradient


def _equation(equation: Equation, timeline: Timeline, values: Mapping[str, Values]) -> Values:
    result = {index: mpq(0) for index in indices(equation.target.index, timeline)}
    for term in equation.terms:
        letters = tuple(sorted(term.letters | set(equation.target.index)))
        target = _part(equation.target.index, letters)
        factors = [(values[factor.tensor], _part(factor.index, letters)) for factor in term.factors]
        visible = _visible(term, letters, timeline)
        for index in indices(letters, timeline):
            if not visible(index):
                continue
            product = mpq(term.sign)
            for tensor, own in factors:
                product *= tensor[own(index)]
            if product and term.exponents:
                product *= _decay(term.exponents, dict(zip(letters, index, strict=True)), timeline)
            result[target(index)] += product
    return result


def _part(index: Letters, letters: Letters) -> Callable[[tuple[int, ...]], tuple[int, ...]]:
    """From the values of a term's letters to a tensor's index."""
    places = [letters.index(letter) for letter in index]
    if len(places) > 1:
        return itemgetter(*places)
    return lambda values: tuple([values[place] for place in places])


def _visible(term: Term, letters: Letters, timeline: Timeline) -> Callable[[tuple[int, ...]], bool]:
    """Whether the mask of a term lets it through where its letters have these values."""
    mask = term.mask
    if mask is None:
        return lambda index: True
    column, row = letters.index(mask.column), letters.index(mask.row)
    writes, seen = timeline.writes[FAMILY[mask.column]], timeline.seen[mask.reader]
    return lambda index: writes[index[column]] < seen[index[row]]


def _decay(exponents: tuple[Exponent, ...], at: Mapping[str, int], timeline: Timeline) -> mpq:
    start, stop = 0, 0
    for exponent in exponents:
        count = timeline.counts[exponent.offset][at[exponent.row] if exponent.row else 0]
        if exponent.sign > 0:
            stop = count
        else:
            start = count
    return timeline.between(start, stop, at.get("x", 0))


def _solve(solve: Solve, timeline: Timeline, values: Mapping[str, Values]) -> Values:
    """By substitution: the matrix is strictly lower triangular."""
    matrix, right = values[solve.matrix], values[solve.right]
    rows, channels = (timeline.sizes[FAMILY[letter]] for letter in solve.target.index)
    result: Values = {}
    for channel in range(channels):
        for row in range(rows) if not solve.transposed else reversed(range(rows)):
            earlier = range(row) if not solve.transposed else range(row + 1, rows)
            known = mpq(0)
            for other in earlier:
                entry = matrix[(other, row) if solve.transposed else (row, other)]
                known += entry * result[(other, channel)]
            result[(row, channel)] = right[(row, channel)] + known
    return result


def _offset_gradient(statement: OffsetGradient, timeline: Timeline, values: Mapping[str, Values]) -> Values:
    result = {index: mpq(0) for index in indices(statement.target.index, timeline)}
    for sign, left, right in statement.pairs:
        for index in indices(left.index, timeline):
            at = dict(zip(left.index, index, strict=True))
            key = tuple(at[letter] for letter in statement.target.index)
            result[key] += sign * values[left.tensor][index] * values[right.tensor][_at(right, at)]
    return result


def _at(factor: Factor, at: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(at[letter] for letter in factor.index)
