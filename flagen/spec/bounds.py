"""The warning about a state that may grow, with a hint that ends it: each one is tried before it is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations, product
from math import inf

from flagen.spec.growth import Growth, followed, given_below, grows, growths, range_of
from flagen.spec.model import Call, Expr, Interval, Name, Number, Spec
from flagen.spec.names import quoted
from flagen.spec.printer import to_source
from flagen.spec.report import Report

_ANY = Interval()
_LOG, _POSITIVE, _UNIT = Interval(high=0.0), Interval(low=0.0), Interval(0.0, 1.0)
_MOST_NAMES = 3
_MOST_SHOWN = 80
_ZERO, _ONE = Number(0), Number(1)


def warn_growing(spec: Spec, report: Report) -> None:
    """A factor of a state that may exceed 1 may let the state grow without bound; so may a decay without an upper bound
    where what it does to the state is not followed."""
    for growth in growths(spec):
        message = f"the state `{growth.state}` may grow without bound: {_named(spec, growth)} {_lies(growth.interval)}"
        report.warn("W701", growth.span, message, _hint(spec, growth))
    known = followed(spec)
    for entry in spec.derived:
        interval = range_of(spec, entry.value)
        if entry.section == "decay" and entry.name not in known and interval.high == inf:
            growth = Growth("", entry.value, entry.name, entry.value, interval, entry.span)
            message = f"the decay `{entry.name}` has no upper bound, so the state may grow without one"
            report.warn("W701", entry.span, message, _hint(spec, growth))


def _named(spec: Spec, growth: Growth) -> str:
    if any(entry.name == growth.name and entry.section == "decay" for entry in spec.derived):
        return f"the decay `{growth.name}`"
    return f"its factor `{growth.name}`" if growth.name else f"its factor {quoted(to_source(growth.factor))}"


def _lies(interval: Interval) -> str:
    return f"is {interval.low:g}" if interval.low == interval.high else f"lies in {interval}"


def _hint(spec: Spec, growth: Growth) -> str:
    value, rewritten = growth.value, _rewritten(spec, growth.value)
    if rewritten is None:
        return "a factor of at most 1 in magnitude keeps a state bounded"
    declared = _declared(spec)
    bound = f"`{to_source(rewritten)}`"
    if isinstance(value, Name) and value.name in declared:
        if declared[value.name].high <= 0:
            return f"a log decay acts through its exponential: write {bound}"
        if declared[value.name] == _ANY:
            log = f"a log decay has `range: [-.inf, 0]`, and acts through `exp({value.name})`"
            return f"declare the range of `{value.name}`, such as `range: [0, 1]`; {log}"
    ranges = _ranges(spec, growth)
    if ranges and isinstance(value, Call) and rewritten in value.args:
        return f"{ranges} for a log decay; what lies in [0, 1] is a decay itself: write {bound}"
    bound = f"bound it: {bound}" if len(bound) <= _MOST_SHOWN else "bound it with `clamp`"
    return f"{ranges}, or {bound}" if ranges else bound


def _ranges(spec: Spec, growth: Growth) -> str:
    """Which ranges to declare so that the factor is bounded; nothing where no ranges do it."""
    declared = _declared(spec)
    numbers = {param.name for param in spec.params if not param.is_tensor}
    names = given_below(spec, growth.value)
    free = [name for name in names if declared[name] == _ANY]
    wrong = [name for name in names if name not in free]
    # What is finite as it is depends on no range that is missing.
    unbounded = inf in (growth.interval.high, -growth.interval.low)
    for group in (*_groups(free if unbounded else []), *_groups(wrong)):
        if len(group) > 1 and numbers.intersection(group):
            continue  # What two numbers are to each other no range tells.
        for chosen in product((_LOG, _POSITIVE, _UNIT), repeat=len(group)):
            if not grows(range_of(spec, growth.value, dict(zip(group, chosen, strict=True)))):
                shown = [f"`range: {_yaml(interval)}`" for interval in chosen]
                return f"declare {' and '.join(f'{text} of `{name}`' for text, name in zip(shown, group, strict=True))}"
    return ""


def _groups(names: list[str]) -> Iterator[tuple[str, ...]]:
    for size in range(1, _MOST_NAMES + 1):
        yield from combinations(names, size)


def _rewritten(spec: Spec, value: Expr) -> Expr | None:
    """An expression near to `value` that does not exceed 1 in magnitude; None for a number."""
    tries: list[Expr] = []
    match value:
        case Number():
            return None
        case Name(name) if _declared(spec).get(name, _ANY).high <= 0:
            tries = [Call("exp", (value,))]
        case Call("exp", (Name() as exponent,)) if range_of(spec, exponent).low >= 0:
            tries = [exponent]
    if isinstance(value, Call) and value.function == "exp":
        tries.append(Call("exp", (Call("minimum", (*value.args, _ZERO)),)))
    tries += [Call("minimum", (value, _ONE)), Call("clamp", (value, _ZERO, _ONE))]
    return next(expr for expr in tries if not grows(range_of(spec, expr)))


def _declared(spec: Spec) -> Mapping[str, Interval]:
    return {decl.name: decl.range for decl in spec.inputs} | {param.name: param.range for param in spec.params}


def _yaml(interval: Interval) -> str:
    return str(interval).replace("inf", ".inf")
