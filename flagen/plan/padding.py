"""What stands in the lanes that pad a tile to a power of two, and which of those must be cleared.

Padding is harmless as long as nothing mixes it into real lanes. Only sums, matrix products and the row maps do. What
they meet in the padding is worked out here by evaluating every expression on padding instead of on data: a masked load
fills it with zeros, `exp` makes ones of them, a state that starts at -inf has -inf there. Where a zero is certain,
nothing is done; elsewhere the lanes are masked, so that not even an infinity or a NaN in the padding can leak.

One class describes all lanes that pad at least the dims of a given set, and nothing but those of a given value's:

    a float   every such lane holds exactly this
    FINITE    no lane is infinite or NaN, as long as the data are finite
    ANYTHING  nothing is known
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import combinations

from flagen.diagnostics import InternalError
from flagen.functions import operation
from flagen.plan.tiles import (
    Along,
    Arithmetic,
    Constant,
    Function,
    Head,
    Lane,
    Masked,
    MatMul,
    Negative,
    Normalize,
    OfAngles,
    OfPairs,
    Once,
    Paired,
    Product,
    Rotated,
    Size,
    StateTile,
    Sum,
    Tile,
    Value,
    Widened,
    is_static,
    operands,
    rebuild,
)
from flagen.spec.model import Dims, Input, Param, Spec


class Unknown(Enum):
    FINITE = "finite"
    ANYTHING = "anything"


FINITE, ANYTHING = Unknown.FINITE, Unknown.ANYTHING
Padding = float | Unknown
Lanes = frozenset[str]
"""The dims that are padded in the lanes in question."""

_EXACT_BITS = 10
"""A number counts as exact when it is a small multiple of 2 ** -10: then rounding has no part in whether it is zero."""


@dataclass
class PaddingRules:
    """Masks a kernel's expressions, one after the other in the order they run.

    A state's padding has one class for the whole kernel: the value it starts with, where no statement ever changes
    that; otherwise anything at all, since whatever grows from token to token can overflow. So the statements have to be
    gone through until nothing changes any more (`settle`), and once more to mask them.
    """

    spec: Spec
    _states: dict[tuple[str, Lanes], Padding] = field(default_factory=dict)
    _values: dict[tuple[str, Lanes], Padding] = field(default_factory=dict)
    _known: dict[tuple[int, Lanes], tuple[Tile, Padding]] = field(default_factory=dict)
    """What was found since the last assignment, by identity: a tree that shares parts is looked at once a part."""

    def __post_init__(self) -> None:
        for state in self.spec.states:
            for lanes in _subsets(state.dims):
                self._states[state.name, lanes] = _number(state.init)

    def settle(self, assignments: Iterable[tuple[str, Tile]]) -> None:
        """Find the padding of every state that `assignments`, in order, leave behind token after token."""
        statements = tuple(assignments)
        before: dict[tuple[str, Lanes], Padding] = {}
        while before != self._states:
            before = dict(self._states)
            for target, value in statements:
                self.assign(target, self.mask(value))

    def assign(self, target: str, value: Tile) -> None:
        """Note that `target`, a state or a new name, holds `value` from here on."""
        is_state = any(state.name == target for state in self.spec.states)
        self._known.clear()
        for lanes in _subsets(value.dims):
            found = self.padding(value, lanes)
            if not is_state:
                self._values[target, lanes] = found
            elif not isinstance(found, float) or found != self._states[target, lanes]:
                self._states[target, lanes] = ANYTHING
        if not is_state:
            self._values[target, frozenset()] = self.padding(value, frozenset())

    def note(self, name: str, dims: Dims, padding: Padding, where: Lanes = frozenset()) -> None:
        """Note that `name`, over `dims`, holds finite data, and `padding` in the lanes that pad `where`, or any dim."""
        self._known.clear()
        self._values[name, frozenset()] = FINITE
        self._values |= {(name, lanes): padding for lanes in _subsets(dims) if where <= lanes}

    def hold(self, name: str, state: str) -> None:
        """Note that `name` holds `state` as it is at some time."""
        (decl,) = (declared for declared in self.spec.states if declared.name == state)
        self._known.clear()
        self._values[name, frozenset()] = ANYTHING if math.isinf(decl.init) else FINITE
        self._values |= {(name, lanes): self._states[state, lanes] for lanes in _subsets(decl.dims)}

    def mask(self, tile: Tile) -> Tile:
        """`tile` with its padding masked wherever it would leak into a real lane."""
        tile = rebuild(tile, self.mask)
        match tile:
            case Sum(value, dim, dims):
                return Sum(self._filled(value, dim, 0.0), dim, dims)
            case MatMul(left, right, dim, dims):
                lanes = frozenset((dim,))
                if _product((self.padding(left, lanes), self.padding(right, lanes))) == 0:
                    return tile
                return MatMul(self._filled(left, dim, 0.0), self._filled(right, dim, 0.0), dim, dims)
            case OfPairs(gradient, other, second, dims):
                pairs, side = tile.pairs, other.dims[-1]
                if self.padding(gradient, frozenset((pairs,))) == 0 and is_finite(
                    self.padding(other, frozenset((side,)))
                ):
                    return tile
                return OfPairs(self._filled(gradient, pairs, 0.0), self._filled(other, side, 0.0), second, dims)
            case Normalize(function, value, dims):
                fill = -math.inf if function == "softmax" else 0.0
                return Normalize(function, self._filled(value, dims[-1], fill), dims)  # A row is along the last one.
        return tile

    def _filled(self, value: Tile, dim: str, fill: float) -> Tile:
        return value if self.padding(value, frozenset((dim,))) == fill else Masked(value, dim, fill, value.dims)

    def padding(self, tile: Tile, lanes: Lanes) -> Padding:
        """What `tile` holds in the lanes that pad all of `lanes`; of dims it lacks, its data are meant."""
        key = id(tile), lanes & set(tile.dims)
        if key not in self._known:
            self._known[key] = tile, self._padding(tile, key[1])
        return self._known[key][1]

    def _padding(self, tile: Tile, lanes: Lanes) -> Padding:
        match tile:
            case Constant(number):
                return _number(float(number))
            case Size() | Head():
                return FINITE
        if not lanes:
            return ANYTHING if self._may_be_infinite(tile) else FINITE
        match tile:
            case Value(name, "input" | "param"):
                return 0.0
            case Value(name):
                return self._values.get((name, lanes), ANYTHING)
            case StateTile(name):
                return self._states[name, lanes]
            case Masked(value, dim, fill):
                return fill if dim in lanes else self.padding(value, lanes)
            case Normalize("softmax", value):
                # Padding of the dim that it sums over is -inf; padding rows are softmaxes of their own.
                found = self.padding(value, lanes)
                return 0.0 if found == -math.inf else FINITE if is_finite(found) else ANYTHING
            case Normalize("l2norm", value):
                return _product((self.padding(value, lanes), FINITE))
            case Rotated(value, angle):
                # Channels are made of two, or stay: padding of padding. No padding of angles turns anything.
                return _product((self.padding(value, lanes), self.padding(angle, lanes), FINITE))
            case OfAngles(gradient, turned):
                return (
                    0.0
                    if tile.pair in lanes
                    else _product((self.padding(gradient, lanes), self.padding(turned, lanes)))
                )
            case Paired(left, right, dims):
                rest = lanes - {dims[-1]}
                sides = tuple((side, frozenset((side.dims[-1],))) for side in (left, right))
                if dims[-1] not in lanes:
                    return _product((self.padding(left, rest), self.padding(right, rest)))
                # Either side pads such a pair, or both do: zeros of both, where no side is infinite.
                own = [self.padding(side, rest | last) for side, last in sides]
                real = [self.padding(side, rest) for side, _ in sides]
                return 0.0 if own == [0.0, 0.0] and all(map(is_finite, real)) else ANYTHING
            case OfPairs(gradient, other, _, dims):
                rest = lanes - {dims[-1]}
                if dims[-1] not in lanes:
                    return _product((self.padding(gradient, rest), self.padding(other, rest), FINITE))
                return _product((self.padding(gradient, rest | {tile.pairs}), self.padding(other, rest)))
            case Along(value, dims):
                names = dict(zip(dims, value.dims, strict=True))
                return self.padding(value, frozenset(names.get(dim, dim) for dim in lanes))
            case Widened(Lane()):
                return FINITE
            case Sum(value, dim):
                return _summed(self.padding(value, lanes), self.padding(value, lanes | {dim}))
            case MatMul(left, right, dim):
                inner = (lanes, lanes | {dim})
                return _summed(*(_product((self.padding(left, at), self.padding(right, at))) for at in inner))
        return _combined(tile, tuple(self.padding(operand, lanes) for operand in operands(tile)))

    def _may_be_infinite(self, tile: Tile) -> bool:
        """Whether an infinity in real lanes of `tile` is legal data, and not an overflow."""
        match tile:
            case Value(name, "input" | "param"):
                declared: tuple[Input | Param, ...] = (*self.spec.inputs, *self.spec.params)
                interval = next(decl.range for decl in declared if decl.name == name)
                # `range: [-.inf, 0]` is a log of something that may be zero; no range at all says nothing.
                return math.isinf(interval.low) and not math.isinf(interval.high)
            case Value(name):
                return self._values.get((name, frozenset()), ANYTHING) is ANYTHING
            case StateTile(name):
                return any(math.isinf(state.init) for state in self.spec.states if state.name == name)
            case Function(name) if (known := operation(name)) is not None:
                if known.finite_at_minus_infinity:
                    return False
                # The log of a zero is data, too.
                of_zero = len(known.arguments) == 1 and known.at(0.0) == -math.inf
                return of_zero or any(map(self._may_be_infinite, operands(tile)))
            case Constant(number):
                return math.isinf(number)
        return any(self._may_be_infinite(operand) for operand in operands(tile))


def _combined(tile: Tile, paddings: tuple[Padding, ...]) -> Padding:
    """What an elementwise operation makes of the padding of its operands."""
    match tile:
        case Negative():
            return _negated(paddings[0])
        case Product():
            return _product(paddings)
        case Arithmetic("+"):
            return _sum(*paddings)
        case Arithmetic("-"):
            return _sum(paddings[0], _negated(paddings[1]))
        case Arithmetic("/", _, right) if is_static(right) and paddings[1] != 0:
            return _product((paddings[0], FINITE))  # A size is no zero, and neither is a constant of the language.
        case Arithmetic("/"):
            return _quotient(*paddings)
        case Arithmetic("**"):
            return ANYTHING
        case Function(name):
            known = _all_known(paddings)
            if known is not None:
                return _evaluated(name, known)
            found = operation(name)
            finite = found is not None and found.finite and all(map(is_finite, paddings))
            return FINITE if finite else ANYTHING
        case Once():
            return _product((paddings[0], FINITE))
    raise InternalError(f"no rule for the padding of {tile!r}")


def _negated(padding: Padding) -> Padding:
    return -padding if isinstance(padding, float) else padding


def _product(paddings: Iterable[Padding]) -> Padding:
    factors = tuple(paddings)
    if not all(map(is_finite, factors)):
        return ANYTHING
    if 0.0 in factors:
        return 0.0
    known = _all_known(factors)
    return FINITE if known is None else _number(math.prod(known))


def _sum(left: Padding, right: Padding) -> Padding:
    known = _all_known((left, right))
    if known is not None:
        return _number(sum(known))
    for term, other in ((left, right), (right, left)):
        if isinstance(term, float) and math.isinf(term) and is_finite(other):
            return term
    return FINITE if is_finite(left) and is_finite(right) else ANYTHING


def _quotient(left: Padding, right: Padding) -> Padding:
    if not isinstance(right, float) or math.isinf(right) or right == 0:
        return ANYTHING
    return _product((left, _number(1 / right)))


def _summed(*lanes: Padding) -> Padding:
    """What a sum leaves in padded lanes of the dims it keeps, from those it runs over."""
    if all(padding == 0.0 for padding in lanes):
        return 0.0
    return FINITE if all(map(is_finite, lanes)) else ANYTHING


def _evaluated(name: str, numbers: tuple[float, ...]) -> Padding:
    found = operation(name)
    value = None if found is None else found.at(*numbers)
    return ANYTHING if value is None else _number(value)


def _number(value: float) -> Padding:
    """`value` where a kernel certainly gets the very same one, else no more than whether it is finite."""
    if isinstance(value, complex) or math.isnan(value):
        return ANYTHING
    scaled = value * 2**_EXACT_BITS
    if math.isinf(value) or (abs(scaled) < 2.0 ** (2 * _EXACT_BITS) and scaled == int(scaled)):
        return float(value)
    return FINITE if abs(value) < 1e30 else ANYTHING


def _all_known(paddings: Iterable[Padding]) -> tuple[float, ...] | None:
    every = tuple(paddings)
    known = tuple(padding for padding in every if isinstance(padding, float))
    return known if len(known) == len(every) else None


def is_finite(padding: Padding) -> bool:
    """Whether no such lane holds an infinity or a NaN."""
    return math.isfinite(padding) if isinstance(padding, float) else padding is FINITE


def _subsets(dims: Dims) -> Iterator[Lanes]:
    for count in range(1, len(dims) + 1):
        yield from map(frozenset, combinations(dims, count))
