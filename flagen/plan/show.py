"""Planned expressions as text for a person: `flagen explain` shows them; nothing reads them back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

from flagen.plan.tiles import (
    Along,
    Arithmetic,
    AtLeast,
    Both,
    Call,
    Compare,
    Constant,
    Coordinate,
    Cumulative,
    Dot,
    Edge,
    Either,
    Function,
    Head,
    InSequence,
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
    Rounded,
    Scan,
    Select,
    Shifted,
    Size,
    Spread,
    StateTile,
    Sum,
    Tile,
    Value,
    Whole,
    Widened,
    operands,
    rebuild,
)
from flagen.printing import ATOM, SIGN, Printed, joined, negative


def show(tile: Tile) -> str:
    """`tile` in the notation of the spec language, with `sum_K`, `where_K` and the like for what it lacks."""
    return _shown(tile).text


def values_renamed(tile: Tile, names: Mapping[str, str]) -> Tile:
    """`tile` with each of `names` called what they say."""
    if isinstance(tile, Value):
        return replace(tile, name=names.get(tile.name, tile.name))
    return rebuild(tile, lambda operand: values_renamed(operand, names))


def _shown(tile: Tile) -> Printed:
    match tile:
        case Constant(value):
            text = str(value) if isinstance(value, Fraction) and value.denominator == 1 else f"{float(value):g}"
            return Printed(text, SIGN if value < 0 else ATOM)
        case Size(name) | Value(name):
            return Printed(name)
        case Head():
            return Printed("head")
        case StateTile(name, previous):
            return Printed(f"{name}_prev" if previous else name)
        case Negative(value):
            return negative(_shown(value))
        case Product(factors):
            return joined("*", *map(_shown, factors))
        case Arithmetic(op, left, right):
            return joined(op, _shown(left), _shown(right))
        case Function(name, args):
            return Printed(f"{name}({', '.join(map(show, args))})")
        case Sum(value, dim):
            return Printed(f"sum_{dim}({show(value)})")
        case MatMul(left, right, dim):
            return Printed(f"matmul_{dim}({show(left)}, {show(right)})")
        case Normalize(function, value):
            return Printed(f"{function}({show(value)})")
        case Rotated(value, angle, half=half):
            return Printed(f"{'rotate_half' if half else 'rotate'}({show(value)}, {show(angle)})")
        case OfAngles(gradient, turned):
            return Printed(f"of_angles({show(gradient)}, {show(turned)})")
        case Paired(left, right):
            return Printed(f"pairs({show(left)}, {show(right)})")
        case OfPairs(gradient, other):
            return Printed(f"of_pairs({show(gradient)}, {show(other)})")
        case Masked(value, dim, fill):
            return Printed(f"where_{dim}({show(value)}, else {fill:g})")
        case Once(value):
            return Printed(f"once({show(value)})")
        case Spread(value):
            return _shown(value)
        case Scan(combine):
            *parts, start = map(show, operands(tile))
            return Printed(f"{combine} scan({', '.join(parts)}, from {start})")
        case Shifted(value, first):
            return Printed(f"shifted({show(value)}, from {show(first)})")
        case Edge(value, reverse=reverse):
            return Printed(f"{'first' if reverse else 'last'}({show(value)})")
        case InSequence(place, ago):
            return Printed(f"is_{place}{f'({ago} ago)' if ago else ''}")
        case Along(value) | Rounded(value) | Widened(value):
            return _shown(value)
        case AtLeast(value, least):
            return Printed(f"maximum({show(value)}, {least:g})")
        case Cumulative(value):
            return Printed(f"sums({show(value)})")
        case Whole(value):
            return Printed(str(value))
        case Coordinate(of):
            return Printed(of.replace(" ", "_"))
        case Lane(axis):
            return Printed(f"{axis.replace(' ', '_')}_index")
        case Compare(op, left, right):
            return joined(op, _shown(left), _shown(right))
        case Both(left, right):
            return joined("and", _shown(left), _shown(right))
        case Either(left, right):
            return joined("or", _shown(left), _shown(right))
        case Select(where, value, other):
            return Printed(f"where({show(where)}, {show(value)}, {show(other)})")
        case Dot(left, right, _, onto):
            product = Printed(f"dot({show(left)}, {show(right)})")
            return product if onto is None else joined("+", _shown(onto), product)
        case Call(function, args):
            return Printed(f"{function}({', '.join(map(show, args))})")
