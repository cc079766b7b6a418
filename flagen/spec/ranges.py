"""Interval propagation: from the declared ranges of inputs and params to the range of an expression.

Sound up to the rounding of one operation: whatever values the names take within their ranges, the expression lies
within its interval wherever it is defined. An infinite end is a limit that may be attained (a log decay of -inf), and
zero times infinity is zero: the product of a factor that is zero.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType

from flagen.spec.model import (
    Binary,
    Call,
    Contract,
    Expr,
    Interval,
    Name,
    Negate,
    Number,
    Outer,
    Reduce,
    RowMap,
    StateRead,
    Transpose,
)

EVERYTHING = Interval()
_SIZE = Interval(1.0, math.inf)
_HEAD = Interval(0.0, math.inf)
_INFINITY = math.inf
_NO_LESS = frozenset(("maximum", "logaddexp", "softplus", "relu", "abs"))
"""Functions that are never less than any of their arguments."""
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
            return _negate(interval_of(value, ranges, definitions))
        case Transpose(value):
            return interval_of(value, ranges, definitions)
        case Binary("*", left, right) if left == right:
            return _square(interval_of(left, ranges, definitions))
        case Binary(op, left, right):
            found = _BINARY[op](interval_of(left, ranges, definitions), interval_of(right, ranges, definitions))
            return _within(found, _related(expr, lambda part: interval_of(part, ranges, definitions), definitions))
        case Outer(left, right):
            return _multiply(interval_of(left, ranges, definitions), interval_of(right, ranges, definitions))
        case Contract(left, right):
            first, second = interval_of(left, ranges, definitions), interval_of(right, ranges, definitions)
            return _any_sum(_square(first) if left == right else _multiply(first, second))
        case Reduce(function, value):
            return _REDUCE[function](interval_of(value, ranges, definitions))
        case RowMap(function, value):
            return _row_map(function, interval_of(value, ranges, definitions))
        case Call(function, args):
            return _CALLS[function](*(interval_of(arg, ranges, definitions) for arg in args))


def _within(found: Interval, known: Interval) -> Interval:
    """Where a value lies that both say something about."""
    low, high = max(found.low, known.low), min(found.high, known.high)
    return Interval(low, high) if low <= high else found


def _to_float(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return _INFINITY if value > 0 else -_INFINITY  # type: ignore[operator]


def _hull(values: Iterable[float]) -> Interval:
    """The smallest interval around `values`; where one of them is undefined, everything."""
    points = list(values)
    return EVERYTHING if any(math.isnan(point) for point in points) else Interval(min(points), max(points))


# ------------------------------------------------------------------------------------------------------- arithmetic


def _negate(x: Interval) -> Interval:
    # `0.0 -` rather than `-`, so that no end is a negative zero.
    return Interval(0.0 - x.high, 0.0 - x.low)


def _add(a: Interval, b: Interval) -> Interval:
    low, high = a.low + b.low, a.high + b.high
    return Interval(-_INFINITY if math.isnan(low) else low, _INFINITY if math.isnan(high) else high)


def _subtract(a: Interval, b: Interval) -> Interval:
    return _add(a, _negate(b))


def _times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def _multiply(a: Interval, b: Interval) -> Interval:
    return _hull(_times(x, y) for x in (a.low, a.high) for y in (b.low, b.high))


def _square(x: Interval) -> Interval:
    magnitude = _absolute(x)
    return Interval(_times(magnitude.low, magnitude.low), _times(magnitude.high, magnitude.high))


def _divide(a: Interval, b: Interval) -> Interval:
    return _multiply(a, _reciprocal(b))


def _reciprocal(x: Interval) -> Interval:
    if x.low < 0 < x.high or x.low == x.high == 0:
        return EVERYTHING
    if x.high <= 0:
        return _negate(_reciprocal(_negate(x)))
    return Interval(1 / x.high, 1 / x.low if x.low > 0 else _INFINITY)


def _power(base: Interval, exponent: Interval) -> Interval:
    constant = exponent.low if exponent.low == exponent.high else None
    if base.low >= 0:
        # Monotone in each argument while the other stands still: the extremes are at the corners.
        return _hull(_real_power(b, e) for b in (base.low, base.high) for e in (exponent.low, exponent.high))
    if constant is None or not math.isfinite(constant) or constant != int(constant):
        return EVERYTHING
    if constant < 0:
        return _reciprocal(_power(base, Interval(-constant, -constant)))
    if constant % 2 == 0:
        return _power(_absolute(base), exponent)
    return Interval(_odd_power(base.low, constant), _odd_power(base.high, constant))


def _real_power(base: float, exponent: float) -> float:
    """`base ** exponent` for a base of at least zero, infinite where it overflows."""
    if base == 0 and exponent < 0:
        return _INFINITY
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return _INFINITY


def _odd_power(base: float, exponent: float) -> float:
    return math.copysign(_real_power(abs(base), exponent), base)


_BINARY: dict[str, Callable[[Interval, Interval], Interval]] = {
    "+": _add,
    "-": _subtract,
    "*": _multiply,
    "/": _divide,
    "**": _power,
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
        smallest = isinstance(left, Call) and left.function == "minimum" and right in left.args
        return Interval(high=0.0) if smallest or left in _no_greater(right, definitions) else EVERYTHING
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
        return EVERYTHING if share == EVERYTHING else _multiply(share, range_of(factor))
    return EVERYTHING


def _part(part: Expr, whole: list[Expr], range_of: Callable[[Expr], Interval]) -> Interval:
    """The range of x / (x + y + ...), `whole` being the terms of the sum, where all have one sign."""
    x, others = range_of(part), [range_of(term) for term in whole]
    del others[whole.index(part)]
    if x.high <= 0 and all(other.high <= 0 for other in others):
        x, others = _negate(x), [_negate(other) for other in others]
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
    return meant.args if isinstance(meant, Call) and meant.function in _NO_LESS else ()


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
    magnitude = _absolute(x)
    return Interval(magnitude.low, 0.0 if magnitude.high == 0 else _INFINITY)


_REDUCE: dict[str, Callable[[Interval], Interval]] = {"sum": _any_sum, "mean": _mean, "norm": _norm}


def _row_map(function: str, x: Interval) -> Interval:
    if function == "softmax":
        return Interval(0.0, 1.0)
    return Interval(0.0 if x.low >= 0 else -1.0, 0.0 if x.high <= 0 else 1.0)


# ----------------------------------------------------------------------------------------- elementwise functions


def _increasing(function: Callable[[float], float]) -> Callable[[Interval], Interval]:
    return lambda x: Interval(function(x.low), function(x.high))


def _increasing_above(bound: float, function: Callable[[float], float]) -> Callable[[Interval], Interval]:
    """An increasing function that is defined from `bound` up: of the range only that part counts."""

    def interval(x: Interval) -> Interval:
        return EVERYTHING if x.high < bound else Interval(function(max(x.low, bound)), function(x.high))

    return interval


def _exp(x: float) -> float:
    """`exp`, never zero for a finite argument and never infinite for one."""
    if math.isinf(x):
        return 0.0 if x < 0 else _INFINITY
    try:
        return math.exp(x) or 5e-324
    except OverflowError:
        return sys.float_info.max


def _exp_interval(x: Interval) -> Interval:
    # Below what underflows the bound is zero, above what overflows there is none.
    low, high = _exp(x.low), _exp(x.high)
    return Interval(0.0 if low == 5e-324 else low, _INFINITY if high == sys.float_info.max else high)


def _log(x: float) -> float:
    return -_INFINITY if x == 0 else math.log(x)


def _log1p(x: float) -> float:
    return -_INFINITY if x == -1 else math.log1p(x)


def _expm1(x: float) -> float:
    try:
        return math.expm1(x)
    except OverflowError:
        return _INFINITY


def _sigmoid(x: float) -> float:
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    return _exp(x) / (1 + _exp(x)) if x > -_INFINITY else 0.0


def _softplus(x: float) -> float:
    return x if x == _INFINITY else max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _silu(x: float) -> float:
    return 0.0 if x == -_INFINITY else x if x == _INFINITY else x * _sigmoid(x)


_SILU_LEAST_AT = -1.2784645427610738
_SILU_LEAST = -0.2784645427610738


def _silu_interval(x: Interval) -> Interval:
    ends = (_silu(x.low), _silu(x.high))
    # Falls up to its one minimum, rises from there on.
    return Interval(_SILU_LEAST if x.low <= _SILU_LEAST_AT <= x.high else min(ends), max(ends))


def _absolute(x: Interval) -> Interval:
    ends = (abs(x.low), abs(x.high))
    return Interval(0.0 if x.low <= 0 <= x.high else min(ends), max(ends))


def _sign(x: Interval) -> Interval:
    return Interval(float((x.low > 0) - (x.low < 0)), float((x.high > 0) - (x.high < 0)))


def _rsqrt(x: Interval) -> Interval:
    if x.high <= 0:
        return EVERYTHING
    low = max(x.low, 0.0)
    return Interval(1 / math.sqrt(x.high), 1 / math.sqrt(low) if low > 0 else _INFINITY)


def _minimum(a: Interval, b: Interval) -> Interval:
    return Interval(min(a.low, b.low), min(a.high, b.high))


def _maximum(a: Interval, b: Interval) -> Interval:
    return Interval(max(a.low, b.low), max(a.high, b.high))


def _clamp(x: Interval, lo: Interval, hi: Interval) -> Interval:
    return _minimum(_maximum(x, lo), hi)


def _logaddexp(a: Interval, b: Interval) -> Interval:
    return Interval(_log_sum(a.low, b.low), _log_sum(a.high, b.high))


def _log_sum(a: float, b: float) -> float:
    return max(a, b) if math.isinf(a) or math.isinf(b) else max(a, b) + math.log1p(math.exp(-abs(a - b)))


_CALLS: dict[str, Callable[..., Interval]] = {
    "exp": _exp_interval,
    "log": _increasing_above(0.0, _log),
    "log1p": _increasing_above(-1.0, _log1p),
    "expm1": _increasing(_expm1),
    "sqrt": _increasing_above(0.0, math.sqrt),
    "rsqrt": _rsqrt,
    "abs": _absolute,
    "sign": _sign,
    "sigmoid": _increasing(_sigmoid),
    "logsigmoid": _increasing(lambda x: 0.0 - _softplus(0.0 - x)),
    "softplus": _increasing(_softplus),
    "tanh": _increasing(math.tanh),
    "silu": _silu_interval,
    "relu": _increasing(lambda x: max(x, 0.0)),
    "minimum": _minimum,
    "maximum": _maximum,
    "clamp": _clamp,
    "logaddexp": _logaddexp,
}
