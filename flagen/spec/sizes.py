"""Sizes that follow from others: what they come to, and which are a multiple of which.

A size is a quotient of two polynomials in the sizes that calls give, with exact coefficients. Two of them are the same
where one's numerator times the other's denominator is the same polynomial either way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from flagen.diagnostics import Span
from flagen.spec.limits import MAX_SIZE_BITS, MAX_SIZE_DEGREE, MAX_SIZE_POWER, MAX_SIZE_TERMS
from flagen.spec.model import Binary, Expr, Following, Name, Negate, Number, names_in_size

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
    return [source for source in names_in_size(entry.value) if source in entries]


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
    raise NotASize(expr.span, "a size is made of others and of numbers with `+`, `-`, `*`, `/` and `**`")


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
