"""The plan of a layer, as data: the steps that `flagen.plan.layer_planner` takes its statements apart into."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flagen.plan.layer_needs import Needs
from flagen.spec.layer.model import (
    Binary,
    Call,
    Compare,
    Expr,
    IfElse,
    Layer,
    Logic,
    Name,
    Several,
    Unary,
    Value,
    children,
    walk,
)
from flagen.spec.layer.vocabulary import CONSTRUCTORS
from flagen.spec.model import Spec


@dataclass(frozen=True)
class Set:
    """`targets = value`. A module that keeps something is called at the top of a value or not at all, and so is an
    operator."""

    targets: tuple[str, ...]
    value: Expr

    def dump(self) -> list[str]:
        return [f"{', '.join(self.targets)} = {_shown(self.value)}"]


@dataclass(frozen=True)
class Choose:
    """Steps under a condition, and those in its absence."""

    condition: Expr
    then: tuple[Step, ...]
    otherwise: tuple[Step, ...]

    def dump(self) -> list[str]:
        lines = [f"if {_shown(self.condition)}:", *(f"    {line}" for step in self.then for line in step.dump())]
        if self.otherwise:
            lines += ["else:", *(f"    {line}" for step in self.otherwise for line in step.dump())]
        return lines


Step = Set | Choose

Kept = Literal["inputs", "token"]
Form = Literal["naive_recurrent", "naive_chunk", "fused_recurrent", "chunk"]


@dataclass(frozen=True)
class Operator:
    """An operator that the layer calls: its name in the section, its spec, whether that is another package's, and its
    forms."""

    name: str
    spec: Spec
    elsewhere: bool
    forms: tuple[Form, ...]


@dataclass(frozen=True)
class LayerPlan:
    """A layer in the order in which it is written down.

    `keeping` are the modules that keep something from token to token, and what each keeps, in the order in which
    `forward` calls them, which is that of a cache; `placed` those that need to know where a token is; `needs` is what
    is checked of arguments.
    """

    layer: Layer
    operators: tuple[Operator, ...]
    params: tuple[Step, ...]
    modules: tuple[Step, ...]
    forward: tuple[Step, ...]
    keeping: Mapping[str, Kept]
    placed: frozenset[str]
    needs: Needs

    def dump(self) -> str:
        """The steps as text."""
        parts = [("params", self.params), ("modules", self.modules), ("forward", self.forward)]
        return "\n\n".join(
            "\n".join([name, *(f"  {line}" for step in steps for line in step.dump())]) for name, steps in parts
        )


def reads(step: Step) -> frozenset[str]:
    """The names of locals and inputs that a step reads."""
    if isinstance(step, Set):
        return names_read(step.value)
    inner = (reads(part) for part in (*step.then, *step.otherwise))
    return names_read(step.condition).union(*inner)


def writes(step: Step) -> frozenset[str]:
    """The names that a step assigns."""
    if isinstance(step, Set):
        return frozenset(step.targets)
    return frozenset().union(*(writes(part) for part in (*step.then, *step.otherwise)))


def calls(steps: Iterable[Step]) -> Iterator[Call]:
    """Every call in some steps."""
    for step in steps:
        if isinstance(step, Set):
            yield from (node for node in walk(step.value) if isinstance(node, Call))
        else:
            yield from calls((*step.then, *step.otherwise))


def may_have(module: Call, below: str) -> bool:
    """Whether a module can have a parameter of this path below it, however its switches stand."""
    return below in CONSTRUCTORS[module.name].weights(_given(module))


def conditions_of(module: Call, below: str) -> tuple[Expr, ...]:
    """What has to hold for a module to have that parameter: its switches that it would not have it without."""
    word = CONSTRUCTORS[module.name]
    given = _given(module)
    switches = {key: value for key, value in _bound(module).items() if isinstance(given[key], bool)}
    without = (key for key in switches if below not in word.weights({**given, key: False}))
    return tuple(switches[key] for key in without if not isinstance(switches[key], Value))


def _bound(module: Call) -> dict[str, Expr]:
    """The arguments of a constructor by the names of what they are for."""
    names = (parameter.name for parameter in CONSTRUCTORS[module.name].given)
    return {**dict(zip(names, module.args, strict=False)), **dict(module.keywords)}


def _given(module: Call) -> dict[str, Any]:
    """Arguments of which sizes are 1, and switches that depend are on."""
    found: dict[str, Any] = {}
    bound = _bound(module)
    for parameter in CONSTRUCTORS[module.name].given:
        value = bound.get(parameter.name)
        if isinstance(value, Value):
            found[parameter.name] = value.value
        elif value is None:
            found[parameter.name] = parameter.default if parameter.optional else 1
        else:
            found[parameter.name] = True if isinstance(parameter.default, bool) else 1
    return found


def in_order(steps: Iterable[Step]) -> tuple[Step, ...]:
    """Steps of which neighbours with one condition are brought together: what is registered keeps its order."""
    found: list[Step] = []
    for step in steps:
        last = found[-1] if found else None
        if isinstance(step, Choose) and isinstance(last, Choose) and last.condition == step.condition:
            found[-1] = joined(last, step, in_order)
        else:
            found.append(step)
    return tuple(found)


def joined(first: Choose, second: Choose, together: Callable[[Iterable[Step]], tuple[Step, ...]]) -> Choose:
    """Two choices by one condition as one, whose branches are put `together`."""
    then, otherwise = (*first.then, *second.then), (*first.otherwise, *second.otherwise)
    return Choose(first.condition, together(then), together(otherwise))


def has_tensor(expr: Expr) -> bool:
    """Whether an expression is of tensors, and not of numbers alone."""
    tensors = ("param", "input", "local")
    match expr:
        case Name(kind=kind):
            return kind in tensors
        case Call(kind=kind) if kind in ("module", "recurrence"):
            return True
        case IfElse(_, then, otherwise):
            return has_tensor(then) or has_tensor(otherwise)
        case _:
            return any(map(has_tensor, children(expr)))


def names_read(expr: Expr) -> frozenset[str]:
    """The locals and inputs that an expression names."""
    return frozenset(node.name for node in walk(expr) if isinstance(node, Name) and node.kind in ("local", "input"))


def _shown(expr: Expr) -> str:
    """An expression as text, for a person to read."""
    match expr:
        case Value(value):
            return repr(value)
        case Name(name):
            return name
        case Unary(op, value):
            return f"{op}{' ' * (op == 'not')}{_operand(value)}"
        case Binary(op, left, right) | Compare(op, left, right):
            return f"{_operand(left)} {op} {_operand(right)}"
        case Logic(op, values):
            return f" {op} ".join(map(_operand, values))
        case IfElse(condition, then, otherwise):
            return f"{_operand(then)} if {_operand(condition)} else {_operand(otherwise)}"
        case Call(name, _, args, keywords):
            given = (*map(_shown, args), *(f"{key}={_shown(value)}" for key, value in keywords))
            return f"{name}({', '.join(given)})"
        case Several(items):
            return f"({', '.join(map(_shown, items))})"


def _operand(expr: Expr) -> str:
    alone = isinstance(expr, Value | Name | Call | Several)
    return _shown(expr) if alone else f"({_shown(expr)})"
