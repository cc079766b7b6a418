"""Interval propagation: from the declared ranges of inputs and params to the range of an expression.

Sound up to the rounding of one operation: whatever values the names take within their ranges, the expression lies
within its interval wherever it is defined. An infinite end is a limit that may be attained (a log decay of -inf), and
zero times infinity is zero: the product of a factor that is zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from flagen.functions import FUNCTIONS
from flagen.intervals import EVERYTHING, Interval, absolute, add, divide, multiply, negate, power, square, subtract
from flagen.spec.model import (
    Binary,
    Call,
    Contract,
    Expr,
    Index,
    Name,
    Negate,
    Number,
    Outer,
    Over,
    Pairs,
    Reduce,
    Rotate,
    RowMap,
    Solution,
    StateRead,
    Transpose,
)

_SIZE = Interval(1.0, math.inf)
_HEAD = Interval(0.0, math.inf)
_INFINITY = math.inf
_MOST_TERMS = 64


def interval_of(
    expr: Expr, ranges: Mapping[str, Interval], definitions: Mapping[str, Expr] = MappingProxyType({})
) -> Interval:
    """The range of `expr`. `ranges` gives that of names; a name without one may have any value, but a size is at least
    1 and `head` at least 0. A state is looked up by its name (`S`), before the token as well as now. `definitions` says
    what names stand for, where that tells more than their ranges: that `f / total` is a part of a whole."""
    match expr:
        case Number(value):
            return Interval(_to_float(value), _to_float(value))
        case Name(name, kind):
            unknown = _SIZE if kind == "size" else _HEAD if kind == "head" else EVERYTHING
            return ranges.get(name, unknown)
        case StateRead(name):
            return ranges.get(name, EVERYTHING)
        case Negate(value):
            return negate(interval_of(value, ranges, definitions))
        case Transpose(value):
            return interval_of(value, ranges, definitions)
        case Binary("*", left, right) if left == right:
            return square(interval_of(left, ranges, definitions))
        case Binary(op, left, right):
            found = _BINARY[op](interval_of(left, ranges, definitions), interval_of(right, ranges, definitions))
            return _within(found, _related(expr, lambda part: interval_of(part, ranges, definitions), definitions))
        case Outer(left, right) | Pairs(left, right):
            return multiply(interval_of(left, ranges, definitions), interval_of(right, ranges, definitions))
        case Contract(left, right):
            first, second = interval_of(left, ranges, definitions), interval_of(right, ranges, definitions)
            return _any_sum(square(first) if left == right else multiply(first, second))
        case Reduce(function, value):
            return _REDUCE[function](interval_of(value, ranges, definitions))
        case RowMap(function, value):
            return _row_map(function, interval_of(value, ranges, definitions))
        case Rotate(value):
            return _rotated(interval_of(value, ranges, definitions))
        case Over(value):
            return interval_of(value, ranges, definitions)
        case Index():
            return Interval(0.0, math.inf)
        case Solution():
            return Interval()
        case Call(function, args):
            return FUNCTIONS[function].interval(*(interval_of(arg, ranges, definitions) for arg in args))


def _within(found: Interval, known: Interval) -> Interval:
    """Where a value lies that both say something about."""
    low, high = max(found.low, known.low), min(found.high, known.high)
    return Interval(low, high) if low <= high else found


def _to_float(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return _INFINITY if value > 0 else -_INFINITY  # type: ignore[operator]


_BINARY: dict[str, Callable[[Interval, Interval], Interval]] = {
    "+": add,
    "-": subtract,
    "*": multiply,
    "/": divide,
    "**": power,
}

# ------------------------------------------------------------------------------- what two sides have in common


def _related(expr: Binary, range_of: Callable[[Expr], Interval], definitions: Mapping[str, Expr]) -> Interval:
    """What the sides of `expr` tell together, which their ranges alone do not:

    x / (x + y)         within [0, 1] where x and y have one sign: a part of its whole
    x / maximum(x, y)   within [0, 1] where both are positive
    x - maximum(x, y)   never positive; nor is x - logaddexp(x, y), the log of a part of its whole
    """
    left, right = expr.left, expr.right
    if expr.op == "-":
        below = isinstance(left, Call) and FUNCTIONS[left.function].order < 0 and right in left.args
        return Interval(high=0.0) if below or left in _no_greater(right, definitions) else EVERYTHING
    if expr.op != "/":
        return EVERYTHING
    if left in _no_greater(right, definitions) and range_of(left).low >= 0 <= range_of(right).low:
        return Interval(0.0, 1.0)
    terms = list(_terms(right, definitions))
    if left in terms:
        return _part(left, terms, range_of)
    if isinstance(left, Binary) and left.op == "*" and (left.left in terms or left.right in terms):
        part, factor = (left.left, left.right) if left.left in terms else (left.right, left.left)
        share = _part(part, terms, range_of)
        return EVERYTHING if share == EVERYTHING else multiply(share, range_of(factor))
    return EVERYTHING


def _part(part: Expr, whole: list[Expr], range_of: Callable[[Expr], Interval]) -> Interval:
    """The range of x / (x + y + ...), `whole` being the terms of the sum, where all have one sign."""
    x, others = range_of(part), [range_of(term) for term in whole]
    del others[whole.index(part)]
    if x.high <= 0 and all(other.high <= 0 for other in others):
        x, others = negate(x), [negate(other) for other in others]
    if x.low < 0 or any(other.low < 0 for other in others):
        return EVERYTHING
    low, high = sum(other.low for other in others), sum(other.high for other in others)
    return Interval(_share(x.low, high, 0.0), _share(x.high, low, 1.0))


def _share(x: float, y: float, limit: float) -> float:
    """x / (x + y) of two values that are not negative; `limit` where it has none."""
    return limit if math.isinf(x + y) or x + y == 0 else x / (x + y)


def _no_greater(expr: Expr, definitions: Mapping[str, Expr]) -> tuple[Expr, ...]:
    """Expressions that are never greater than `expr`."""
    meant = _meaning(expr, definitions)
    return meant.args if isinstance(meant, Call) and FUNCTIONS[meant.function].order > 0 else ()


def _terms(expr: Expr, definitions: Mapping[str, Expr]) -> Iterator[Expr]:
    """The terms of a sum, and of the sums that names in it stand for; of a very long one, some are sums still."""
    pending = [expr]
    for _ in range(_MOST_TERMS):
        if not pending:
            return
        term = pending.pop()
        meant = _meaning(term, definitions)
        if isinstance(meant, Binary) and meant.op == "+":
            pending += [meant.right, meant.left]
        else:
            yield term
    yield from pending


def _meaning(expr: Expr, definitions: Mapping[str, Expr]) -> Expr:
    return definitions.get(expr.name, expr) if isinstance(expr, Name) else expr


# ------------------------------------------------------------------------------------------------------- reductions


def _any_sum(x: Interval) -> Interval:
    """A sum of any positive number of terms: a dim has at least one element, and no known size."""
    return Interval(x.low if x.low >= 0 else -_INFINITY, x.high if x.high <= 0 else _INFINITY)


def _mean(x: Interval) -> Interval:
    return x


def _norm(x: Interval) -> Interval:
    magnitude = absolute(x)
    return Interval(magnitude.low, 0.0 if magnitude.high == 0 else _INFINITY)


_REDUCE: dict[str, Callable[[Interval], Interval]] = {"sum": _any_sum, "mean": _mean, "norm": _norm}


def _rotated(x: Interval) -> Interval:
    """A pair keeps its length: at most the root of two times the larger of its numbers."""
    most = math.sqrt(2) * absolute(x).high
    return Interval(-most, most)


def _row_map(function: str, x: Interval) -> Interval:
    if function == "softmax":
        return Interval(0.0, 1.0)
    return Interval(0.0 if x.low >= 0 else -1.0, 0.0 if x.high <= 0 else 1.0)
