"""Exact arithmetic: rationals with tangents, and spec expressions evaluated over them.

A proof at a random rational point needs every function of the language at rational arguments. Functions that leave the
rationals (`exp`, `sigmoid`, `rsqrt` …) become oracles: a random rational for each (function, arguments) pair, the same
one every time it is asked for. The derivation never uses what such a function *is*, so an identity that holds under the
oracle holds for the function.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, lru_cache

from gmpy2 import mpq

from flagen.diagnostics import InternalError
from flagen.functions import FUNCTIONS
from flagen.spec.formulas import definition_of, formula
from flagen.spec.model import (
    Binary,
    Call,
    Contract,
    Dims,
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
    walk,
)
from flagen.spec.ranges import interval_of

Tangents = tuple[mpq, ...]


class Dual:
    """A rational and its derivatives along a fixed list of directions."""

    __slots__ = ("tangents", "value")

    def __init__(self, value: mpq, tangents: Tangents = ()) -> None:
        self.value = value
        self.tangents = tangents  # empty where the value is constant

    def __add__(self, other: Dual) -> Dual:
        return Dual(self.value + other.value, _combine(self.tangents, 1, other.tangents, 1))

    def __sub__(self, other: Dual) -> Dual:
        return Dual(self.value - other.value, _combine(self.tangents, 1, other.tangents, -1))

    def __neg__(self) -> Dual:
        return Dual(-self.value, tuple(-t for t in self.tangents))

    def __mul__(self, other: Dual) -> Dual:
        return Dual(self.value * other.value, _combine(self.tangents, other.value, other.tangents, self.value))

    def __truediv__(self, other: Dual) -> Dual:
        quotient = self.value / other.value
        return Dual(quotient, _combine(self.tangents, 1 / other.value, other.tangents, -quotient / other.value))


def _combine(left: Tangents, a: mpq | int, right: Tangents, b: mpq | int) -> Tangents:
    """a * left + b * right."""
    if not right:
        return tuple([a * t for t in left]) if left else ()
    if not left:
        return tuple([b * t for t in right])
    return tuple([a * s + b * t for s, t in zip(left, right, strict=True)])


ZERO = Dual(mpq(0))
ONE = Dual(mpq(1))


@dataclass(frozen=True)
class Tensor:
    """A tensor over named dims: one number for each index tuple."""

    dims: Dims
    data: Mapping[tuple[int, ...], Dual]

    def at(self, dims: Dims, index: tuple[int, ...]) -> Dual:
        """The element at `index` over `dims`, which may be more dims, or in another order, than the tensor's."""
        if dims == self.dims:
            return self.data[index]
        return self.data[tuple([index[dims.index(dim)] for dim in self.dims])]


def scalar(value: Dual) -> Tensor:
    return Tensor((), {(): value})


_NUMERATORS = (1, 2, 3, 4, 6, 8, 9, 12)
_DENOMINATORS = (5, 7)


@cache
def decimal(value: float) -> mpq:
    """The short fraction that a spec's author wrote as `value`, not the long one that the float is."""
    return mpq(Fraction(repr(value)))


@dataclass
class Oracle:
    """Random but consistent values for functions that leave the rationals."""

    random: random.Random
    known: dict[tuple[object, ...], mpq] = field(default_factory=dict)

    def rational(self, low: float = -math.inf, high: float = math.inf) -> mpq:
        """A small rational strictly inside the range, and no integer where that is unbounded or narrow: a spec's own
        constants are integers more often than not, and must not meet it in a denominator (`1 - x`, `x / (1 + y)`)."""
        step = mpq(self.random.choice(_NUMERATORS), self.random.choice(_DENOMINATORS))
        if math.isinf(low) and math.isinf(high):
            return step * self.random.choice((-1, 1))
        if math.isinf(high):
            return decimal(low) + step
        if math.isinf(low):
            return decimal(high) - step
        return decimal(low) + (decimal(high) - decimal(low)) * step / (step + 1)

    def __call__(self, function: str, args: tuple[Dual, ...]) -> Dual:
        values = tuple(arg.value for arg in args)
        value = self._ask((function, values))
        slopes = FUNCTIONS[function].slopes if function in FUNCTIONS else ()
        tangents: Tangents = ()
        for place, arg in enumerate(args):
            if arg.tangents:
                slope = value if slopes[place : place + 1] == ("y",) else self._ask((function, place, values))
                tangents = _combine(tangents, 1, arg.tangents, slope)
        return Dual(value, tangents)

    def _ask(self, question: tuple[object, ...]) -> mpq:
        if question not in self.known:
            # Positive, as decays are, and never 1: `1 - sigmoid(x)` is no zero. Which number it is does not matter.
            self.known[question] = mpq(self.random.choice(_NUMERATORS), self.random.choice(_DENOMINATORS))
        return self.known[question]


@dataclass(frozen=True)
class Scope:
    """What names mean at one place: tensors by name, states by name, dim sizes, and the oracle."""

    names: Mapping[str, Tensor]
    states: Mapping[str, Tensor]
    sizes: Mapping[str, int]
    oracle: Oracle

    def indices(self, dims: Dims) -> Iterator[tuple[int, ...]]:
        return itertools.product(*(range(self.sizes[dim]) for dim in dims))

    def build(self, dims: Dims, element: Callable[[tuple[int, ...]], Dual]) -> Tensor:
        return Tensor(dims, {index: element(index) for index in self.indices(dims)})


def evaluate(expr: Expr, scope: Scope) -> Tensor:
    """`expr` in `scope`, exactly."""
    match expr:
        case Number(value):
            return scalar(_number(value, scope.oracle))
        case Name(name, "size") if name in scope.sizes:
            return scalar(Dual(mpq(scope.sizes[name])))
        case Name(name):
            return scope.names[name]
        case StateRead(name, previous):
            return scope.states[f"{name}_prev" if previous else name]
        case Negate(value):
            return _map(lambda args: -args[0], (evaluate(value, scope),), expr.dims, scope)
        case Binary(op, left, right):
            sides = (evaluate(left, scope), evaluate(right, scope))
            return _map(lambda args: _binary(op, args[0], args[1], scope.oracle), sides, expr.dims, scope)
        case Contract(left, right):
            return _contract(evaluate(left, scope), evaluate(right, scope), expr, scope)
        case Transpose(value):
            tensor = evaluate(value, scope)
            return Tensor(expr.dims, {index[::-1]: element for index, element in tensor.data.items()})
        case Outer(left, right):
            one, other = evaluate(left, scope), evaluate(right, scope)
            split = len(one.dims)
            return scope.build(expr.dims, lambda index: one.data[index[:split]] * other.data[index[split:]])
        case Call() if (meant := _meant(_ById(expr))) is not None:
            return evaluate(meant, scope)
        case Call(function, args):
            tensors = tuple(evaluate(arg, scope) for arg in args)
            return _map(lambda values: call(function, values, scope.oracle), tensors, expr.dims, scope)
        case Reduce(function, value, dim):
            return _reduce(function, evaluate(value, scope), dim, scope)
        case RowMap(function, value):
            return _row_map(function, evaluate(value, scope), scope)
        case Rotate(value, angle, half):
            return _rotate(evaluate(value, scope), evaluate(angle, scope), half, scope)
        case Over(value):
            return Tensor(expr.dims, evaluate(value, scope).data)
        case Pairs(left, right):
            one, other = evaluate(left, scope), evaluate(right, scope)
            every = itertools.product(one.data.values(), other.data.values())
            return Tensor(expr.dims, {(place,): x * y for place, (x, y) in enumerate(every)})
        case Index():
            return scope.build(expr.dims, lambda index: Dual(mpq(index[0])))
        case Solution(matrix, right, shift):
            added = scalar(ZERO) if shift is None else evaluate(shift, scope)
            return _solution(evaluate(matrix, scope), evaluate(right, scope), added, scope)


def _number(value: Fraction | float, oracle: Oracle) -> Dual:
    if isinstance(value, Fraction):
        return Dual(mpq(value.numerator, value.denominator))
    if math.isfinite(value):
        return Dual(decimal(value))
    return oracle("infinite", (Dual(mpq(1 if value > 0 else -1)),))


@dataclass(frozen=True, eq=False)
class _ById:
    """An expression that is the same as another one only if it is that one: what is found out about it is kept."""

    of: Expr

    def __hash__(self) -> int:
        return id(self.of)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and self.of is other.of


@lru_cache(maxsize=1 << 14)
def _meant(known: _ById) -> Expr | None:
    """What a call is evaluated as, if that is another expression: of constants the number that everybody makes of it,
    be it rounded, or what the table of functions defines it as."""
    call = known.of
    assert isinstance(call, Call)
    if is_constant(call):
        return Number(interval_of(call, {}).high)
    return definition_of(call)


def is_constant(expr: Expr) -> bool:
    """Whether nothing is in it that a call is given."""
    return all(isinstance(part, Number | Negate | Binary | Call) for part in walk(expr))


def _map(f: Callable[[tuple[Dual, ...]], Dual], tensors: tuple[Tensor, ...], dims: Dims, scope: Scope) -> Tensor:
    return scope.build(dims, lambda index: f(tuple(tensor.at(dims, index) for tensor in tensors)))


def _contract(left: Tensor, right: Tensor, expr: Contract, scope: Scope) -> Tensor:
    split = len(left.dims) - 1
    size = range(scope.sizes[expr.dim])

    def element(index: tuple[int, ...]) -> Dual:
        head, tail = index[:split], index[split:]
        return total(left.data[(*head, i)] * right.data[(i, *tail)] for i in size)

    return scope.build(expr.dims, element)


def total(values: Iterable[Dual]) -> Dual:
    result = ZERO
    for value in values:
        result = result + value
    return result


def _binary(op: str, left: Dual, right: Dual, oracle: Oracle) -> Dual:
    match op:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "/":
            return left / right
        case "**":
            return _power(left, right, oracle)
    raise InternalError(f"no exact arithmetic for {op}")


def _power(base: Dual, exponent: Dual, oracle: Oracle) -> Dual:
    n = exponent.value
    if exponent.tangents or not abs(n) <= 16 or n != int(n):
        return oracle("power", (base, exponent))
    result = ONE
    for _ in range(abs(int(exponent.value))):
        result = result * base
    return result if exponent.value >= 0 else ONE / result


def call(function: str, args: tuple[Dual, ...], oracle: Oracle) -> Dual:
    row = FUNCTIONS.get(function)
    if row is None or not row.rational:
        return oracle(function, args)
    value = mpq(row.value(*(arg.value for arg in args)))
    names = {name: Dual(arg.value) for name, arg in zip(row.arguments, args, strict=True)} | {"y": Dual(value)}
    tangents: Tangents = ()
    for arg, slope in zip(args, row.slopes, strict=True):
        if arg.tangents and (factor := at_point(formula(slope), names, oracle).value):
            tangents = _combine(tangents, 1, arg.tangents, factor)
    return Dual(value, tangents)


def at_point(pattern: Expr, names: Mapping[str, Dual], oracle: Oracle) -> Dual:
    """A formula of the table of functions at a point."""
    return _at_point(_ById(pattern))(names, oracle)


_AtPoint = Callable[[Mapping[str, Dual], Oracle], Dual]


@lru_cache(maxsize=1 << 10)
def _at_point(known: _ById) -> _AtPoint:
    """The formula as a function of its arguments."""
    match known.of:
        case Number(number):
            return lambda names, oracle: _number(number, oracle)
        case Name(name):
            return lambda names, oracle: names[name]
        case Negate(value):
            negated = _at_point(_ById(value))
            return lambda names, oracle: -negated(names, oracle)
        case Binary(op, left, right):
            one, other = _at_point(_ById(left)), _at_point(_ById(right))
            return lambda names, oracle: _binary(op, one(names, oracle), other(names, oracle), oracle)
        case Call(function, args):
            if (meant := _meant(known)) is not None:
                return _at_point(_ById(meant))
            inner = [_at_point(_ById(arg)) for arg in args]
            return lambda names, oracle: call(function, tuple([arg(names, oracle) for arg in inner]), oracle)
    raise InternalError(f"no formula has {known.of!r}")


def _reduce(function: str, value: Tensor, dim: str | None, scope: Scope) -> Tensor:
    summed = value.dims if dim is None else (dim,)
    kept = tuple(d for d in value.dims if d not in summed)
    squares = function == "norm"

    def element(index: tuple[int, ...]) -> Dual:
        terms = (value.at((*kept, *summed), (*index, *inner)) for inner in scope.indices(summed))
        amount = total(x * x for x in terms) if squares else total(terms)
        if function == "mean":
            return amount / Dual(mpq(math.prod(scope.sizes[d] for d in summed)))
        return scope.oracle("sqrt", (amount,)) if squares else amount

    return scope.build(kept, element)


def _rotate(value: Tensor, angle: Tensor, half: bool, scope: Scope) -> Tensor:
    size = scope.sizes[value.dims[-1]]
    turned = dict(value.data)
    for (i,), phi in angle.data.items():
        cos, sin = (call(function, (phi,), scope.oracle) for function in ("cos", "sin"))
        for row in {index[:-1] for index in value.data}:
            first, second = ((*row, i), (*row, i + size // 2)) if half else ((*row, 2 * i), (*row, 2 * i + 1))
            x, y = value.data[first], value.data[second]
            turned[first], turned[second] = x * cos - y * sin, x * sin + y * cos
    return Tensor(value.dims, turned)


def _solution(matrix: Tensor, right: Tensor, shift: Tensor, scope: Scope) -> Tensor:
    """The x of `matrix @ x + shift * x = right`, by elimination.

    Raises:
        ZeroDivisionError: there is not one.
    """
    size = range(scope.sizes[matrix.dims[0]])
    rows = [
        [
            *(matrix.data[i, j] + shift.at(right.dims, (i,)) if i == j else matrix.data[i, j] for j in size),
            right.data[i,],
        ]
        for i in size
    ]
    for i in size:
        pivot = next((j for j in size[i:] if rows[j][i].value), i)
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for j in size:
            if j != i:
                factor = rows[j][i] / rows[i][i]
                rows[j] = [mine - factor * other for mine, other in zip(rows[j], rows[i], strict=True)]
    return Tensor(matrix.dims[1:], {(i,): rows[i][-1] / rows[i][i] for i in size})


def _row_map(function: str, value: Tensor, scope: Scope) -> Tensor:
    if function == "softmax":
        weights = {index: scope.oracle("exp", (x,)) for index, x in value.data.items()}
        whole = total(weights.values())
        return Tensor(value.dims, {index: weight / whole for index, weight in weights.items()})
    squared = total(x * x for x in value.data.values()) + Dual(mpq(1, 10**6))
    factor = scope.oracle("rsqrt", (squared,))
    return Tensor(value.dims, {index: x * factor for index, x in value.data.items()})
