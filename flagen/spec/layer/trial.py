"""A layer with one config, on paper: what it is constructed of, and the shape of every value that flows through it.

What does not fit here does not fit in PyTorch either: with these numbers the layer could not be made, or not be called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from flagen.diagnostics import Span
from flagen.spec.layer.construction import Construction
from flagen.spec.layer.expressions import bind
from flagen.spec.layer.findings import Finding
from flagen.spec.layer.held import NOT_GIVEN, UNKNOWN, Held, NotGiven, Tensor, as_given, as_held, described
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
    Several,
    Unary,
    Value,
    walk,
)
from flagen.spec.layer.numbers import CONSTANTS, NoValue, arithmetic, function, shortened
from flagen.spec.layer.operators import Fit, bind_operator
from flagen.spec.layer.shapes import Misfit, Shape, broadcast
from flagen.spec.layer.shapes import shown as shape_shown
from flagen.spec.layer.vocabulary import FUNCTIONS, NUMBER_FUNCTIONS
from flagen.spec.layer.words import Function
from flagen.spec.model import Spec


class _Stop(Exception):
    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.finding = finding


@dataclass
class Trial:
    """What a layer is with `config`. The layer cannot be made where there are findings before `call`."""

    layer: Layer
    operators: Mapping[str, Spec | None]
    config: Mapping[str, Constant]
    inputs_given: bool = True
    construction: Construction = field(init=False)
    values: dict[str, Held] = field(default_factory=dict)
    hidden: Tensor = UNKNOWN
    """What `forward` is given."""
    lines: list[tuple[Assign, tuple[Held, ...]]] = field(default_factory=list)
    """Every statement with what it assigns."""

    def __post_init__(self) -> None:
        self.construction = Construction(self.layer, self.config)

    @property
    def findings(self) -> list[Finding]:
        """What has been found not to fit so far."""
        return self.construction.findings.found

    def call(self) -> None:
        """Go through `forward`, and find what does not fit."""
        width = self._width()
        self.hidden = self.values["x"] = UNKNOWN if width is None else Tensor(("B", "T", width))
        for decl in self.layer.inputs:
            self.values[decl.name] = UNKNOWN if self.inputs_given else NOT_GIVEN
        for statement in self.layer.forward:
            value = self._safely(statement.value)
            self._assign(statement, value)
        result = self.values.get("y")
        if width is not None and isinstance(result, Tensor) and result.shape not in (None, ("B", "T", width)):
            message = f"the layer gives back [B, T, {width}], as it is given, and `y` is {shape_shown(result.shape)}"
            self.construction.findings.add("E808", self.layer.forward[-1].span, message)

    def _width(self) -> int | None:
        """The channels of the hidden states: what most modules that are called with `x` take, else `hidden_size`."""
        taken: list[Constant] = []
        for call in (node for statement in self.layer.forward for node in walk(statement.value)):
            match call:
                case Call(name, "module", (Name("x"), *_)) if (made := self.construction.modules.get(name)) is not None:
                    taken += [made.given[key] for key in ("inner", "size") if key in made.given]
        width = max(taken, key=taken.count) if taken else self.config.get("hidden_size")
        return width if isinstance(width, int) and not isinstance(width, bool) else None

    def _assign(self, statement: Assign, value: Held) -> None:
        names = statement.targets
        if len(names) == 1:
            self.values[names[0]] = value
            self.lines.append((statement, (value,)))
            return
        parts: tuple[Held, ...] = value if isinstance(value, tuple) else (UNKNOWN,) * len(names)
        if not isinstance(value, tuple) and value != UNKNOWN:
            self.construction.findings.add(
                "E810", statement.value.span, f"{described(value)} in place of {len(names)} values"
            )
        elif len(parts) != len(names):
            self.construction.findings.add("E808", statement.span, f"{len(parts)} values for {len(names)} names")
            parts = (UNKNOWN,) * len(names)
        self.values |= dict(zip(names, parts, strict=True))
        self.lines.append((statement, parts))

    def _safely(self, expr: Expr) -> Held:
        try:
            return self.held(expr)
        except NoValue as problem:
            self.construction.findings.no_value(problem)
        except _Stop as stop:
            self.construction.findings.add(
                stop.finding.code, stop.finding.span, stop.finding.message, stop.finding.hint
            )
        return UNKNOWN

    def held(self, expr: Expr) -> Held:
        """What an expression of `forward` is; stops at what does not fit."""
        match expr:
            case Value(value):
                return value
            case Name(name):
                return self._named(name, expr.span)
            case Unary("-", value):
                held = self.held(value)
                return -held if isinstance(held, int | float) else Tensor(self._shape(held, value))
            case Binary(op, left, right):
                return self._binary(op, left, right, expr.span)
            case Unary() | Compare() | Logic():
                return self._condition(expr)
            case IfElse(condition, then, otherwise):
                holds = self._condition(condition)
                return UNKNOWN if isinstance(holds, Tensor) else self.held(then if holds else otherwise)
            case Several(items):
                return tuple(self.held(item) for item in items)
            case Call():
                return self._call(expr)

    def _named(self, name: str, span: Span) -> Held:
        if name in self.values:
            return self.values[name]
        if name in self.construction.params:
            return Tensor(self.construction.params[name])
        if name in self.construction.numbers.values:
            return self.construction.numbers.values[name]
        if name in CONSTANTS:
            return CONSTANTS[name]
        raise _Stop(Finding("E809", span, f"`{name}` is not there", "use it under the same condition"))

    def _binary(self, op: str, left: Expr, right: Expr, span: Span) -> Held:
        a, b = self.held(left), self.held(right)
        if isinstance(a, int | float) and isinstance(b, int | float):
            return arithmetic(op, a, b, span)
        shapes = self._shape(a, left), self._shape(b, right)
        return Tensor(self._fitting(span, lambda known: broadcast(*known), shapes))

    def _condition(self, expr: Expr) -> Constant | Tensor:
        """The value of a condition; UNKNOWN where it asks for what is not known when a layer is constructed."""
        match expr:
            case Unary("not", value):
                inner = self._condition(value)
                return inner if isinstance(inner, Tensor) else not inner
            case Compare("is" | "is not" as op, Name(name, "input" | "local"), _):
                held = self.values.get(name)
                absent = held is None or isinstance(held, NotGiven)
                return absent == (op == "is")
            case Logic(op, values):
                decided: Constant | Tensor = None
                for operand in values:
                    decided = self._condition(operand)
                    if isinstance(decided, Tensor) or bool(decided) == (op == "or"):
                        break
                return decided
        try:
            return self.construction.numbers.of(expr)
        except NoValue as problem:
            if _reads_tensors(expr):
                return UNKNOWN
            raise problem

    def _shape(self, held: Held, expr: Expr) -> Shape | None:
        """The shape of what is computed with; a number has none."""
        if isinstance(held, Tensor):
            return held.shape
        if isinstance(held, NotGiven):
            return None
        if isinstance(held, int | float):
            return ()
        raise _Stop(
            Finding("E810", expr.span, f"`{shortened(expr)}` is {described(held)}, and nothing to compute with")
        )

    def _fitting(
        self, span: Span, result: Callable[[list[Shape]], Shape], shapes: tuple[Shape | None, ...]
    ) -> Shape | None:
        known = [shape for shape in shapes if shape is not None]
        if len(known) < len(shapes):
            return None
        try:
            return result(known)
        except Misfit as misfit:
            raise _Stop(Finding("E808", span, misfit.message, misfit.hint)) from None

    def _call(self, call: Call) -> Held:
        if call.kind == "module":
            return self._module_call(call)
        if call.kind == "recurrence":
            return self._operator_call(call)
        word = FUNCTIONS.get(call.name)
        if word is None:
            return self.construction.numbers.called(call.name, call.args, call.keywords, call.span)
        return self._function_call(word, call)

    def _function_call(self, word: Function, call: Call) -> Held:
        bound, _ = bind(call.args, call.keywords, word.given)
        held = {parameter.name: self.held(bound[parameter.name]) for parameter in word.tensors}
        first = held[word.tensors[0].name]
        if word.name in NUMBER_FUNCTIONS and isinstance(first, int | float):
            return function(word.name, first, call.span)
        given: dict[str, object] = {parameter.name: parameter.default for parameter in word.known}
        given |= {name: self._shape(value, bound[name]) for name, value in held.items()}
        known = all(given[name] is not None for name in held)
        for parameter in word.known:
            if parameter.name in bound:
                given[parameter.name] = self._known(bound[parameter.name], parameter.name)
        if not known:
            parts = given.get("sizes")
            return (UNKNOWN,) * len(parts) if isinstance(parts, tuple) else UNKNOWN
        try:
            return as_held(word.result(given))
        except Misfit as misfit:
            raise _Stop(Finding("E808", call.span, f"`{word.name}`: {misfit.message}", misfit.hint)) from None

    def _known(self, expr: Expr, name: str) -> Constant:
        """A size, a text: what is known when a layer is constructed."""
        try:
            if name == "n":
                return self.construction.numbers.size(expr)
            if name == "sizes" and isinstance(expr, Several):
                return tuple(self.construction.numbers.size(item) for item in expr.items)
            return self.construction.numbers.of(expr)
        except NoValue as problem:
            if _reads_tensors(expr):
                message = f"`{name}` is known when a layer is constructed, and `{shortened(expr)}` is not"
                raise _Stop(Finding("E810", expr.span, message)) from None
            raise problem

    def _module_call(self, call: Call) -> Held:
        made = self.construction.modules.get(call.name)
        if made is None:
            hint = "call it under the condition that it is made under"
            raise _Stop(Finding("E809", call.span, f"the module `{call.name}` is not there", hint))
        bound, problem = bind(call.args, call.keywords, made.word.called)
        if problem:
            names = ", ".join(parameter.name for parameter in made.word.called)
            hint = f"it is `{made.word.name}`, and called with ({names})"
            raise _Stop(Finding("E407", call.span, f"`{call.name}` {problem}", hint))
        shapes: dict[str, Shape | None] = {}
        for name, arg in bound.items():
            shapes[name] = self._shape(self.held(arg), arg)
        if any(shape is None for shape in shapes.values()):
            return (UNKNOWN, UNKNOWN) if made.word.keeps == "position" else UNKNOWN
        try:
            return as_held(made.word.result(made.given, shapes))
        except Misfit as misfit:
            raise _Stop(Finding("E808", call.span, f"`{call.name}`: {misfit.message}", misfit.hint)) from None

    def _operator_call(self, call: Call) -> Held:
        spec = self.operators.get(call.name)
        if spec is None:
            for arg in (*call.args, *(value for _, value in call.keywords)):
                self.held(arg)
            return UNKNOWN
        bound, problem = bind_operator(spec, call)
        if problem:
            return UNKNOWN  # Reported where all calls of operators are checked.
        given = {name: (self.held(arg), arg.span) for name, arg in bound.items()}
        fit = Fit(spec, {name: as_given(held) for name, (held, _) in given.items()})
        for name, message, hint in fit.problems():
            self.construction.findings.add("E808", given[name][1], message, hint)
        return Tensor(fit.result())

    def chosen(self, expr: Expr) -> Expr:
        """`expr` without its choices, which this config makes."""
        match expr:
            case IfElse(condition, then, otherwise):
                holds = self._condition(condition)
                if isinstance(holds, Tensor):
                    return replace(expr, then=self.chosen(then), otherwise=self.chosen(otherwise))
                return self.chosen(then if holds else otherwise)
            case Unary(_, value):
                return replace(expr, value=self.chosen(value))
            case Binary(_, left, right):
                return replace(expr, left=self.chosen(left), right=self.chosen(right))
            case Several(items):
                return replace(expr, items=tuple(map(self.chosen, items)))
            case Call(_, _, args, keywords):
                named = tuple((name, self.chosen(value)) for name, value in keywords)
                return replace(expr, args=tuple(map(self.chosen, args)), keywords=named)
            case _:
                return expr


def _reads_tensors(expr: Expr) -> bool:
    """Whether an expression of `forward` reads what is not known when a layer is constructed."""
    return any(
        (isinstance(node, Name) and node.kind in ("param", "input", "local"))
        or (isinstance(node, Call) and (node.kind != "function" or node.name not in NUMBER_FUNCTIONS))
        for node in walk(expr)
    )
