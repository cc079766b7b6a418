"""Sizes that follow from others: what they come to, which are a multiple of which, and sizes that go together.

A size is a quotient of two polynomials in the sizes that calls give, with exact coefficients. Two of them are the same
where one's numerator times the other's denominator is the same polynomial either way.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, islice
from typing import Protocol

from flagen.diagnostics import InternalError, Span
from flagen.spec.limits import (
    MAX_SIZE_BITS,
    MAX_SIZE_DEGREE,
    MAX_SIZE_POWER,
    MAX_SIZE_SEARCH,
    MAX_SIZE_TERMS,
    MAX_SIZE_TRIALS,
)
from flagen.spec.model import Binary, Call, Expr, Following, Name, Negate, Number, Operator, dims_in, sizes_in

Monomial = tuple[tuple[str, int], ...]
"""A product of sizes, each with its power, in order of their names."""


class NotASize(Exception):
    """An expression, or a part of one, that is never a size; `span` says which."""

    def __init__(self, span: Span, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.span = span
        self.message = message
        self.hint = hint


class Follows(Protocol):
    """A spec, or the symbols of one that is being read: what knows the sizes that follow, in an order of their own."""

    @property
    def following(self) -> Sequence[Following]: ...


@dataclass(frozen=True)
class Polynomial:
    """A sum of monomials with coefficients other than zero."""

    terms: Mapping[Monomial, Fraction]

    def __add__(self, other: Polynomial) -> Polynomial:
        return _sum((*self.terms.items(), *other.terms.items()))

    def __mul__(self, other: Polynomial) -> Polynomial:
        return _sum(
            (_product(left, right), a * b) for left, a in self.terms.items() for right, b in other.terms.items()
        )

    @property
    def constant(self) -> Fraction | None:
        """The number that this is for any sizes, if it is one."""
        if not self.terms:
            return Fraction(0)
        return self.terms.get(()) if len(self.terms) == 1 else None

    def multiple_of(self, other: Polynomial) -> Fraction | None:
        """The number that `other` has to be multiplied by for this, if there is one; neither is zero."""
        if self.terms.keys() != other.terms.keys():
            return None
        factors = {value / other.terms[monomial] for monomial, value in self.terms.items()}
        return factors.pop() if len(factors) == 1 else None

    @property
    def sign(self) -> int:
        """1 or -1 where all terms have this sign, and so has their sum for any sizes; else 0."""
        signs = {value > 0 for value in self.terms.values()}
        return (1 if signs.pop() else -1) if len(signs) == 1 else 0

    @property
    def too_long(self) -> bool:
        """Whether arithmetic on this may take long."""
        degree = max((sum(power for _, power in monomial) for monomial in self.terms), default=0)
        largest = max((max(abs(value.numerator), value.denominator) for value in self.terms.values()), default=0)
        return len(self.terms) > MAX_SIZE_TERMS or degree > MAX_SIZE_DEGREE or largest.bit_length() > MAX_SIZE_BITS


ONE = Polynomial({(): Fraction(1)})


@dataclass(frozen=True)
class Quotient:
    """One polynomial over another, which is not zero as such. OverflowError where one of them is too long."""

    over: Polynomial
    under: Polynomial = ONE

    def __post_init__(self) -> None:
        if self.over.too_long or self.under.too_long:
            raise OverflowError

    def __add__(self, other: Quotient) -> Quotient:
        return Quotient(self.over * other.under + other.over * self.under, self.under * other.under)

    def __neg__(self) -> Quotient:
        return Quotient(self.over * Polynomial({(): Fraction(-1)}), self.under)

    def __mul__(self, other: Quotient) -> Quotient:
        return Quotient(self.over * other.over, self.under * other.under)

    def __pow__(self, power: int) -> Quotient:
        result, base = Quotient(ONE), self if power >= 0 else self.inverse
        for _ in range(abs(power)):
            result *= base
        return result

    @property
    def inverse(self) -> Quotient:
        return Quotient(self.under, self.over)

    def multiple_of(self, other: Quotient) -> Fraction | None:
        """The number that `other` has to be multiplied by for this, if it is the same for any sizes."""
        return (self.over * other.under).multiple_of(other.over * self.under)

    @property
    def constant(self) -> Fraction | None:
        """The number that this is for any sizes, if it is one."""
        return Fraction(0) if not self.over.terms else self.multiple_of(Quotient(ONE))


def ratio(known: Follows, dim: str, other: str) -> Fraction | None:
    """The number that the size of `dim` is a multiple of that of `other` by, whatever sizes a call has; None where it
    is not the same in all calls.

    With `dims: {R: K / 2, K2: K}`, R is half of K, and of K2; K2 is once K.
    """
    sizes = quotients(known.following)
    left, right = (sizes.get(name) or _named(name) for name in (dim, other))
    return left.multiple_of(right)


def in_order(following: Sequence[Following]) -> tuple[tuple[Following, ...], tuple[tuple[Following, ...], ...]]:
    """Sizes that follow from others, each behind those it follows from; and the cycles of those that never come."""
    entries = {entry.name: entry for entry in following}
    missing = {name: _among(entry, entries) for name, entry in entries.items()}
    users: dict[str, list[str]] = {name: [] for name in entries}
    for name, sources in missing.items():
        for source in sources:
            users[source].append(name)
    ready = [name for name, sources in missing.items() if not sources]
    for name in ready:
        for user in users[name]:
            missing[user].remove(name)
            if not missing[user]:
                ready.append(user)
    left = {name: entry for name, entry in entries.items() if missing[name]}
    return tuple(entries[name] for name in ready), tuple(_cycles(left))


def _cycles(left: Mapping[str, Following]) -> Iterator[tuple[Following, ...]]:
    """The cycles among sizes of which each follows from another of them."""
    seen: set[str] = set()
    for name in left:
        path: list[str] = []
        while name not in seen:
            seen.add(name)
            path.append(name)
            name = _among(left[name], left)[0]
        if name in path:
            yield tuple(left[each] for each in path[path.index(name) :])


def _among(entry: Following, entries: Mapping[str, Following]) -> list[str]:
    """Those of `entries` that a size follows from."""
    return [source for source in dims_in(entry.value) if source in entries]


def quotients(following: Iterable[Following]) -> dict[str, Quotient]:
    """Each size in terms of those that calls give; what it follows from comes before it."""
    sizes: dict[str, Quotient] = {}
    for entry in following:
        sizes[entry.name] = quotient(entry.value, sizes)
    return sizes


def quotient(expr: Expr, sizes: Mapping[str, Quotient]) -> Quotient:
    """What an expression comes to, names among `sizes` replaced by what they are.

    Raises:
        NotASize: it is not made of sizes and numbers by arithmetic alone.
    """
    try:
        match expr:
            case Number(Fraction() as value):
                return Quotient(_sum([((), value)]))
            case Name(name, "size"):
                return sizes.get(name) or _named(name)
            case Negate(value):
                return -quotient(value, sizes)
            case Binary("**", left, right):
                return _powered(quotient(left, sizes), _power(right, sizes), expr)
            case Binary(op, left, right):
                return _combined(op, quotient(left, sizes), quotient(right, sizes), expr)
    except OverflowError:
        raise NotASize(expr.span, "this is too long for a size") from None
    floor = isinstance(expr, Call) and expr.function == "floor"
    hint = "leave out `floor`: a call in which the size is no integer is refused" if floor else ""
    raise NotASize(expr.span, "a size is made of others and of numbers with `+`, `-`, `*`, `/` and `**`", hint)


def origins_of(following: Iterable[Following]) -> dict[str, tuple[str, ...]]:
    """The dims of arguments that each size which follows from others follows from in the end."""
    origins: dict[str, tuple[str, ...]] = {}
    for entry in following:
        found = (origin for dim in dims_in(entry.value) for origin in origins.get(dim, (dim,)))
        origins[entry.name] = tuple(dict.fromkeys(found))
    return origins


class NoneFit(Exception):
    """No small sizes make what follows from them positive integers; `entry` is the first that fails."""

    def __init__(self, entry: Following) -> None:
        super().__init__(f"no small sizes make {entry.name} a positive integer")
        self.entry = entry


def fitting(known: Follows, wanted: Mapping[str, int]) -> dict[str, int]:
    """The sizes nearest to those that are wanted of which each is what it follows from, larger ones before smaller; if
    there are none near, the smallest.

    `wanted` has every dim that calls give, and H and HV, which stay what they are, where sizes follow from them.

    Raises:
        NoneFit: there are no small ones either.
    """
    return _fitting(known.following, wanted)


def small_fitting(known: Follows, wanted: Mapping[str, int]) -> dict[str, int]:
    """The same for proofs, which know sizes by their names alone: what is one number in all calls, as `L: 64`, is as
    long as wanted; several such numbers are as small as they can be in the same proportions. `wanted` has every dim."""
    numbers = {entry.name: entry.value.value for entry in known.following if isinstance(entry.value, Number)}
    if len(numbers) == 1:
        return _fitting((entry for entry in known.following if entry.name not in numbers), wanted)
    common = math.gcd(*map(int, numbers.values())) if numbers else 1
    smaller = {name: Number(Fraction(number) / common) for name, number in numbers.items()}
    return _fitting((replace(entry, value=smaller.get(entry.name, entry.value)) for entry in known.following), wanted)


def _fitting(following: Iterable[Following], wanted: Mapping[str, int]) -> dict[str, int]:
    sizes = dict(wanted)
    for group in _groups(following):
        sizes = group.fitting(sizes)
    return sizes


@dataclass(frozen=True)
class _Group:
    """Sizes that follow from what others of the group do, too, and all that they follow from."""

    entries: tuple[Following, ...]
    sources: tuple[str, ...]

    def fitting(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """The nearest sizes with those of this group."""
        free = [name for name in self.sources if name not in ("H", "HV")]
        most, count = 0, MAX_SIZE_TRIALS // len(self.entries)
        near = islice(_near([wanted[name] for name in free]), count)
        for trial in chain(near, islice(_near([2] * len(free)), count)):
            sizes = {**wanted, **dict(zip(free, trial, strict=True))}
            fit = _follow(self.entries, sizes)
            if fit == len(self.entries):
                return sizes
            most = max(most, fit)
        raise NoneFit(self.entries[most])


def _groups(following: Iterable[Following]) -> list[_Group]:
    groups: list[_Group] = []
    for entry in following:
        names = {entry.name, *dims_in(entry.value)}
        met = [group for group in groups if names & {*group.sources, *(each.name for each in group.entries)}]
        groups = [group for group in groups if group not in met]
        entries = (*(each for group in met for each in group.entries), entry)
        sources = (*(name for group in met for name in group.sources), *sizes_in(entry.value))
        computed = {each.name for each in entries}
        groups.append(_Group(entries, tuple(name for name in dict.fromkeys(sources) if name not in computed)))
    return groups


def _near(wanted: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Sizes at a growing distance from those that are wanted."""
    if not wanted:
        yield ()
        return
    for distance in range(MAX_SIZE_SEARCH):
        for steps in _steps(len(wanted), distance):
            sizes = tuple(size + step for size, step in zip(wanted, steps, strict=True))
            if min(sizes) > 0:
                yield sizes


def _steps(count: int, distance: int) -> Iterator[tuple[int, ...]]:
    """Steps up and down that come to a distance together, those up first."""
    if count == 1:
        yield from ((distance,), (-distance,))[: 1 + (distance > 0)]
        return
    for first in sorted(range(-distance, distance + 1), reverse=True):
        yield from ((first, *others) for others in _steps(count - 1, distance - abs(first)))


def _follow(entries: Sequence[Following], sizes: dict[str, int]) -> int:
    """Add the sizes that follow to `sizes`, until one is none; how many are."""
    for count, entry in enumerate(entries):
        size = size_at(entry.value, sizes)
        if size is None:
            return count
        sizes[entry.name] = size
    return len(entries)


def size_at(expr: Expr, sizes: Mapping[str, int]) -> int | None:
    """What a size comes to; None where that is no positive integer."""
    try:
        size = _value(expr, sizes)
    except ZeroDivisionError:
        return None
    return int(size) if size.denominator == 1 and size > 0 else None


_OPERATORS: Mapping[Operator, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": operator.pow,
}


def _value(expr: Expr, sizes: Mapping[str, int]) -> Fraction:
    """A size in numbers."""
    match expr:
        case Number(Fraction() as value):
            return value
        case Name(name):
            return Fraction(sizes[name])
        case Negate(value):
            return -_value(value, sizes)
        case Binary(op, left, right):
            return _OPERATORS[op](_value(left, sizes), _value(right, sizes))
    raise InternalError(f"no size has {expr!r}")


def as_fraction(expr: Expr) -> tuple[Expr, Expr]:
    """A size as one expression over another, in neither of which anything is divided."""
    match expr:
        case Number(Fraction() as value):
            return Number(Fraction(value.numerator)), Number(Fraction(value.denominator))
        case Name():
            return expr, _ONE
        case Negate(value):
            over, under = as_fraction(value)
            return Negate(over), under
        case Binary("**", left, right):
            over, under = (_to_the(part, abs(_power(right, {}))) for part in as_fraction(left))
            return (over, under) if _power(right, {}) >= 0 else (under, over)
        case Binary(op, left, right):
            return _joined(op, as_fraction(left), as_fraction(right))
    raise InternalError(f"no size has {expr!r}")


def check_size(value: Quotient, span: Span) -> None:
    """Raise NotASize where a size is no positive integer whatever others are."""
    constant = value.constant
    if constant is not None and (constant <= 0 or constant.denominator > 1):
        raise NotASize(span, f"a size is a positive integer, and this is {constant}")
    if value.over.sign * value.under.sign < 0:
        raise NotASize(span, "a size is a positive integer, and this is never positive")


def _power(expr: Expr, sizes: Mapping[str, Quotient]) -> int:
    power = quotient(expr, sizes).constant
    if power is None or power.denominator > 1:
        hint = "let the power follow from its root, as in `K: R ** 2`" if power is not None else ""
        raise NotASize(expr.span, "an exponent in a size is an integer", hint)
    if abs(power) > MAX_SIZE_POWER:
        raise NotASize(expr.span, f"an exponent in a size is at most {MAX_SIZE_POWER} in magnitude")
    return int(power)


_ONE = Number(Fraction(1))


def _joined(op: Operator, left: tuple[Expr, Expr], right: tuple[Expr, Expr]) -> tuple[Expr, Expr]:
    match op:
        case "*":
            return _times(left[0], right[0]), _times(left[1], right[1])
        case "/":
            return _times(left[0], right[1]), _times(left[1], right[0])
    if left[1] == right[1]:
        return Binary(op, left[0], right[0]), left[1]
    return Binary(op, _times(left[0], right[1]), _times(right[0], left[1])), _times(left[1], right[1])


def _times(left: Expr, right: Expr) -> Expr:
    if isinstance(left, Number) and isinstance(right, Number):
        return Number(left.value * right.value)
    if _ONE in (left, right):
        return left if right == _ONE else right
    return Binary("*", left, right)


def _to_the(expr: Expr, power: int) -> Expr:
    return expr if expr == _ONE or power == 1 else Binary("**", expr, Number(Fraction(power)))


def _combined(op: str, left: Quotient, right: Quotient, expr: Expr) -> Quotient:
    match op:
        case "+":
            return left + right
        case "-":
            return left + -right
        case "*":
            return left * right
    _check_divisor(right, expr)
    return left * right.inverse


def _powered(value: Quotient, power: int, expr: Expr) -> Quotient:
    if power < 0:
        _check_divisor(value, expr)
    return value**power


def _check_divisor(value: Quotient, expr: Expr) -> None:
    if not value.over.terms:
        raise NotASize(expr.span, "this divides by zero")


def _named(name: str) -> Quotient:
    return Quotient(Polynomial({((name, 1),): Fraction(1)}))


def _sum(terms: Iterable[tuple[Monomial, Fraction]]) -> Polynomial:
    total: dict[Monomial, Fraction] = {}
    for monomial, value in terms:
        total[monomial] = total.get(monomial, Fraction(0)) + value
    return Polynomial({monomial: value for monomial, value in total.items() if value})


def _product(left: Monomial, right: Monomial) -> Monomial:
    powers: dict[str, int] = {}
    for name, power in (*left, *right):
        powers[name] = powers.get(name, 0) + power
    return tuple(sorted(powers.items()))
