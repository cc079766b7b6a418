"""What a layer's parts mean together: what is used, what is known when, which operator runs, what fits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from flagen.spec.layer.model import (
    Assign,
    Binary,
    Call,
    Compare,
    Constant,
    Expr,
    IfElse,
    Layer,
    Logic,
    Name,
    Unary,
    children,
    walk,
)
from flagen.spec.layer.numbers import NoValue, Numbers, shortened
from flagen.spec.layer.operators import bind_operator, operator_parameters
from flagen.spec.layer.paths import miscounted, operator_calls
from flagen.spec.layer.scope import RESULT, LayerScope
from flagen.spec.layer.trial import Trial
from flagen.spec.layer.vocabulary import NUMBER_FUNCTIONS
from flagen.spec.model import Spec
from flagen.spec.names import did_you_mean, listed, quoted
from flagen.spec.report import Report

_MOST_TRIALS = 40
_CERTAIN = frozenset(("E407", "E808", "E809", "E810"))
"""What doesn't fit with another config than the default: anything else may be that config's fault."""

Operators = Mapping[str, Spec | None]
"""The spec behind each operator's name; None where it is not known, or not sound."""


def check_layer(layer: Layer, operators: Operators, scope: LayerScope, report: Report) -> None:
    """Check a layer of which every part could be read."""
    if not layer.forward:
        return
    _check_used(layer, scope, report)
    _check_values_used(layer, report)
    known = _check_conditions(layer, report)
    _check_mask(layer, report)
    if (wrong := miscounted(layer.forward)) is not None:
        report.error("E806", wrong.span, wrong.message, wrong.hint)
    _check_operator_calls(layer, operators, report)
    _check_cache(layer, operators.get("recurrence"), report)
    if known:
        _check_trials(layer, operators, report)


# ------------------------------------------------------------------------------------------------------------- usage


def _check_used(layer: Layer, scope: LayerScope, report: Report) -> None:
    where = {"module": "`forward` never calls it", "operator": "`forward` never calls it"}
    for declared in scope.of_kind("config", "dim", "param", "module", "input", "operator"):
        if not declared.used and declared.name != "recurrence":
            hint = where.get(declared.kind, "remove it, or use it")
            if declared.kind == "config":
                hint = "remove it; one that is taken and has no effect is `ignored: true`"
            message = f"`{declared.name}`, {declared.described}, is never used"
            report.error("E305", declared.span, message, hint)


def _check_values_used(layer: Layer, report: Report) -> None:
    """Whatever a statement assigns reaches `y`, an output, or another value that does."""
    if all(RESULT not in statement.targets for statement in layer.forward):
        span = layer.forward[-1].span
        report.error("E804", span, f"no statement of `forward` assigns `{RESULT}`, what the layer gives back", "")
        return
    live = {RESULT, *layer.outputs}
    for statement in reversed(layer.forward):
        used = live.intersection(statement.targets)
        for name in statement.targets:
            if name not in used:
                message = f"the value of `{name}` is never used"
                report.error("E305", statement.span, message, "remove it, or use it")
        live -= set(statement.targets)
        live |= {node.name for node in walk(statement.value) if isinstance(node, Name)}


# -------------------------------------------------------------------------------------------------------- conditions


def _check_conditions(layer: Layer, report: Report) -> bool:
    """Conditions ask for what is known when a layer is constructed. Whether all of them do."""
    wrong = [expr for statement in layer.forward for expr in _unknown_conditions(statement.value)]
    inputs = {decl.name for decl in layer.inputs}
    for expr in wrong:
        asked = next((node for node in walk(expr) if isinstance(node, Name) and node.name in inputs), None)
        hint = "a condition is over config and dims"
        if asked is not None:
            hint = f"of an input one can ask whether `{asked.name} is None`"
        message = f"`{shortened(expr)}` is not known when the layer is constructed"
        report.error("E805", expr.span, message, hint)
    return not wrong


def _unknown_conditions(expr: Expr) -> Iterator[Expr]:
    """The parts of conditions that ask for a value of `forward`."""
    match expr:
        case IfElse(condition, then, otherwise):
            yield from _asking(condition)
            yield from _unknown_conditions(then)
            yield from _unknown_conditions(otherwise)
        case Unary("not") | Compare() | Logic():
            yield from _asking(expr)
        case _:
            for child in children(expr):
                yield from _unknown_conditions(child)


def _asking(condition: Expr) -> Iterator[Expr]:
    match condition:
        case Unary("not", value):
            yield from _asking(value)
        case Logic(_, values):
            for value in values:
                yield from _asking(value)
        case Compare("is" | "is not", Name(_, "input"), _):
            return
        case Compare(_, left, right) | Binary(_, left, right):
            yield from _asking(left)
            yield from _asking(right)
        case IfElse(inner, then, otherwise):
            for part in (inner, then, otherwise):
                yield from _asking(part)
        case Name(_, "param" | "input" | "local"):
            yield condition
        case Call(name, kind, args) if kind == "function" and name in NUMBER_FUNCTIONS:
            for arg in args:
                yield from _asking(arg)
        case Call():
            yield condition
        case _:
            for child in children(condition):
                yield from _asking(child)


# --------------------------------------------------------------------------------------------------- mask and cache


def _check_mask(layer: Layer, report: Report) -> None:
    masked = [call for statement in layer.forward for call in _called(statement, "masked")]
    if layer.mask == "unpad" and masked:
        message = "with `mask: unpad` there is no token without a value: nothing is masked"
        report.error("E811", masked[0].span, message, "leave it out, or write `mask: multiply`")
    if layer.mask == "multiply" and not masked:
        message = "`mask: multiply` and no `masked(...)` in `forward`"
        hint = "masked(x) is zero where there is no token; `mask: unpad` leaves these tokens out"
        report.error("E811", layer.forward[0].span, message, hint)


def _called(statement: Assign, name: str) -> Iterator[Call]:
    for node in walk(statement.value):
        if isinstance(node, Call) and node.name == name and node.kind == "function":
            yield node


def _check_cache(layer: Layer, spec: Spec | None, report: Report) -> None:
    if spec is None:
        return
    states = [state.name for state in spec.states]
    for kept in layer.cache:
        if kept.state not in states:
            hint = did_you_mean(kept.state, states, f"the states are {listed(states)}")
            report.error("E304", kept.span, f"unknown state {quoted(kept.state)}", hint)


# --------------------------------------------------------------------------------------------------------- operators


def _check_operator_calls(layer: Layer, operators: Operators, report: Report) -> None:
    for call in operator_calls(layer.forward):
        spec = operators.get(call.name)
        if spec is None:
            continue
        _, problem = bind_operator(spec, call)
        if problem:
            names = ", ".join(map(str, operator_parameters(spec)))
            hint = f"it is `{call.name}({names})`" if len(names) <= 160 else ""
            report.error("E807", call.span, f"`{call.name}` {problem}", hint)


# ------------------------------------------------------------------------------------------------------------ trials


@dataclass(frozen=True)
class _Case:
    """A config to try, and how it differs from the default one."""

    differs: str
    config: Mapping[str, Constant]
    inputs_given: bool = False


def _check_trials(layer: Layer, operators: Operators, report: Report) -> None:
    """Make the layer on paper and go through `forward`: as it is by default, and with every switch the other way."""
    told: set[tuple[str, object]] = set()
    paths: dict[str, bool] = {}
    default: dict[str, Constant] = {config.name: config.default for config in layer.config}
    plain = Trial(layer, operators, default, inputs_given=False)
    for case in _cases(layer, default, plain.construction.numbers):
        trial = Trial(layer, operators, case.config, case.inputs_given) if case.differs else plain
        made = not trial.findings
        for path, there in trial.construction.started.items():
            paths[path] = there or paths.get(path, False)
        if made:
            trial.call()
        if case.differs and not all(finding.code in _CERTAIN for finding in trial.findings):
            continue
        for finding in trial.findings:
            if (finding.code, finding.span) not in told:
                told.add((finding.code, finding.span))
                message = finding.message + (f", with {case.differs}" if case.differs else "")
                report.error(finding.code, finding.span, message, finding.hint)
        if not made and not case.differs:
            return
    for init in layer.init:
        if not paths.get(init.path, True):
            hint = "a path is a module's name, then the parameter's, as in the state_dict"
            report.error("E304", init.span, f"there is no parameter {quoted(init.path)}", hint)


def _cases(layer: Layer, default: dict[str, Constant], numbers: Numbers) -> Iterator[_Case]:
    yield _Case("", default)
    yield from islice(_other_cases(layer, default, numbers), _MOST_TRIALS)


def _other_cases(layer: Layer, default: dict[str, Constant], numbers: Numbers) -> Iterator[_Case]:
    yield _Case("`layer_idx=0`", default | {"layer_idx": 0})
    given = f" and {listed(decl.name for decl in layer.inputs)} given" if layer.inputs else ""
    yield _Case(f"`layer_idx=1`{given}", default | {"layer_idx": 1}, inputs_given=True)
    for config in layer.config:
        values: tuple[Constant, ...] = config.one_of
        if isinstance(config.default, bool):
            values = (not config.default,)
        for value in values:
            if value != config.default:
                yield _Case(f"`{config.name}={value!r}`", default | {config.name: value})
    for dim in layer.dims:
        match dim.value:
            case Logic("or", (Name(name, "config"), *rest)) if default[name] is None and rest:
                yield from _twice(name, rest[-1], default, numbers)


def _twice(name: str, otherwise: Expr, default: dict[str, Constant], numbers: Numbers) -> Iterator[_Case]:
    """A size that follows another one unless it is given: as twice that one."""
    with suppress(NoValue):
        value = numbers.of(otherwise)
        if isinstance(value, int) and not isinstance(value, bool):
            yield _Case(f"`{name}={2 * value}`", default | {name: 2 * value})
