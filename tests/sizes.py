"""Sizes of calls: those that a test would like, or a few more, so that what follows from them comes out whole."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from itertools import product

from flagen.spec.model import Binary, Expr, Name, Negate, Number, Spec

MORE = 6
"""How far above the size that was asked for a size is looked for."""


def given_dims(spec: Spec) -> list[str]:
    """The dims whose sizes are told by what a call is given, in the order of `spec.dims`."""
    following = {entry.name for entry in spec.following}
    return [dim for dim in spec.dims if dim not in following]


def fitting(spec: Spec, wanted: Mapping[str, int], heads: Mapping[str, int]) -> dict[str, int]:
    """The size of every dim: those that are `wanted`, or as little more as it takes; `heads` are H and HV."""
    if not spec.following:
        return dict(wanted)
    for more in sorted(product(range(MORE + 1), repeat=len(wanted)), key=sum):
        sizes = {dim: size + extra for (dim, size), extra in zip(wanted.items(), more, strict=True)}
        found = _with_following(spec, {**heads, **sizes})
        if found is not None:
            return {dim: found[dim] for dim in spec.dims}
    raise AssertionError(f"no sizes near {dict(wanted)} fit {spec.name}")


def _with_following(spec: Spec, sizes: Mapping[str, int]) -> dict[str, int] | None:
    found = dict(sizes)
    for entry in spec.following:
        size = value(entry.value, found)
        if size is None or size < 1 or size.denominator > 1:
            return None
        found[entry.name] = int(size)
    return found


def value(expr: Expr, sizes: Mapping[str, int]) -> Fraction | None:
    """What an expression of sizes comes to; None where that divides by zero."""
    match expr:
        case Number(number):
            return Fraction(number)
        case Name(name):
            return Fraction(sizes[name])
        case Negate(inner):
            found = value(inner, sizes)
            return None if found is None else -found
        case Binary(op, left, right):
            one, other = value(left, sizes), value(right, sizes)
            if one is None or other is None or (op == "/" and not other) or (op == "**" and other < 0 and not one):
                return None
            match op:
                case "+":
                    return one + other
                case "-":
                    return one - other
                case "*":
                    return one * other
                case "/":
                    return one / other
                case "**":
                    return one ** int(other)
    raise AssertionError(f"{expr} is no size")
