"""The module around an operator, as steps: which block each statement stands in, and in which order.

A spec's layer chooses with conditional expressions, each in its place. Code that a person writes has blocks: what
several statements choose by the same condition stands under one `if`. So the expressions are taken apart into steps,
and steps with one condition are brought together where nothing between them minds.

What keeps something from token to token, and the operator, come to stand alone in their statement, since they return
what they keep as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from flagen.plan.layer_needs import Needs, needs_of
from flagen.plan.model import Plan, Unavailable
from flagen.spec.layer.model import (
    Assign,
    Binary,
    Call,
    Compare,
    Expr,
    IfElse,
    Layer,
    LayerParam,
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
from flagen.spec.renaming import as_written


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


def plan_layer(layer: Layer, plan: Plan, others: Mapping[str, Plan]) -> LayerPlan:
    """The steps of `layer`, whose operator `plan` is of; `others` are the plans of what it uses beside, by name."""
    keeps = {module.name: _keeps(module.value) for module in layer.modules}
    order = _called_first(layer)
    by_call = sorted(keeps, key=lambda name: order.get(name, len(order)))
    keeping: dict[str, Kept] = {name: kept for name in by_call if (kept := keeps[name]) in ("inputs", "token")}
    operators = (
        Operator("recurrence", as_written(plan.spec), False, _forms(plan)),
        *(Operator(use.name, as_written(others[use.name].spec), True, _forms(others[use.name])) for use in layer.uses),
    )
    called = {call.name for statement in layer.forward for call in walk(statement.value) if isinstance(call, Call)}
    forward = _Forward(layer, {operator.name: operator.spec for operator in operators}, keeping)
    return LayerPlan(
        layer,
        tuple(operator for operator in operators if operator.name in called),
        in_order(map(_param, layer.params)),
        in_order(step for module in layer.modules for step in _module(module.name, module.value)),
        forward.steps(),
        keeping,
        frozenset(name for name, kept in keeps.items() if kept == "position"),
        needs_of(layer, {operator.name: operator.spec.params for operator in operators}),
    )


def reads(step: Step) -> frozenset[str]:
    """The names of locals and inputs that a step reads."""
    if isinstance(step, Set):
        return _named(step.value)
    inner = (reads(part) for part in (*step.then, *step.otherwise))
    return _named(step.condition).union(*inner)


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


def _forms(plan: Plan) -> tuple[Form, ...]:
    available: list[tuple[Form, object]] = [
        ("naive_chunk", plan.chunk),
        ("fused_recurrent", plan.fused),
        ("chunk", plan.chunk_kernel),
    ]
    return ("naive_recurrent", *(form for form, found in available if not isinstance(found, Unavailable)))


def _keeps(value: Expr) -> Literal["inputs", "token", "position"] | None:
    constructors = (node.name for node in walk(value) if isinstance(node, Call) and node.kind == "constructor")
    return next((CONSTRUCTORS[name].keeps for name in constructors if CONSTRUCTORS[name].keeps), None)


# ------------------------------------------------------------------------------------------------------ declarations


def _param(param: LayerParam) -> Step:
    there = Set((param.name,), param.init)
    return there if param.condition is None else Choose(param.condition, (there,), ())


def _module(name: str, value: Expr) -> tuple[Step, ...]:
    """The declaration of a module; none where it is None."""
    if isinstance(value, IfElse):
        return _choice(value.condition, _module(name, value.then), _module(name, value.otherwise))
    return () if isinstance(value, Value) else (Set((name,), value),)


def _called_first(layer: Layer) -> dict[str, int]:
    """The modules in the order in which `forward` calls them."""
    called = (node for statement in layer.forward for node in walk(statement.value) if isinstance(node, Call))
    return {name: place for place, name in enumerate(dict.fromkeys(call.name for call in called))}


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


def _choice(condition: Expr, then: tuple[Step, ...], otherwise: tuple[Step, ...]) -> tuple[Step, ...]:
    return (Choose(condition, then, otherwise),) if then or otherwise else ()


def in_order(steps: Iterable[Step]) -> tuple[Step, ...]:
    """Steps of which neighbours with one condition are brought together: what is registered keeps its order."""
    found: list[Step] = []
    for step in steps:
        last = found[-1] if found else None
        if isinstance(step, Choose) and isinstance(last, Choose) and last.condition == step.condition:
            found[-1] = _joined(last, step, in_order)
        else:
            found.append(step)
    return tuple(found)


def _joined(first: Choose, second: Choose, together: Callable[[Iterable[Step]], tuple[Step, ...]]) -> Choose:
    then, otherwise = (*first.then, *second.then), (*first.otherwise, *second.otherwise)
    return Choose(first.condition, together(then), together(otherwise))


# ----------------------------------------------------------------------------------------------------------- forward


def brought_together(steps: Iterable[Step]) -> tuple[Step, ...]:
    """Steps of which those with one condition stand in one block, the first one's, unless something between minds."""
    found: list[Step] = []
    for step in steps:
        place = _place_of(step, found)
        if place is None:
            found.append(step)
            continue
        block = found[place]
        assert isinstance(block, Choose) and isinstance(step, Choose)
        found[place] = _joined(block, step, brought_together)
    return tuple(found)


def _place_of(step: Step, before: Sequence[Step]) -> int | None:
    """Where there is a block that `step` can join: it passes what it neither reads from, nor writes to."""
    if not isinstance(step, Choose):
        return None
    for place in reversed(range(len(before))):
        other = before[place]
        decides = _named(step.condition) & writes(other)
        if isinstance(other, Choose) and other.condition == step.condition and not decides:
            return place
        if reads(step) & writes(other) or writes(step) & (reads(other) | writes(other)):
            return None
    return None


class _Forward:
    """Takes the statements of `forward` apart."""

    def __init__(self, layer: Layer, operators: Mapping[str, Spec], keeping: Mapping[str, Kept]) -> None:
        self.layer = layer
        self.operators = operators
        self.keeping = keeping
        self.taken = {"x", *(name for statement in layer.forward for name in statement.targets)}
        self.taken |= {config.name for config in layer.config} | {dim.name for dim in layer.dims}
        self.taken |= {param.name for param in layer.params} | {module.name for module in layer.modules}
        self.taken |= {given.name for given in layer.inputs}

    def steps(self) -> tuple[Step, ...]:
        return brought_together(step for statement in self.layer.forward for step in self.statement(statement))

    def statement(self, statement: Assign) -> list[Step]:
        return self.assign(statement.targets, statement.value)

    def assign(self, targets: tuple[str, ...], value: Expr) -> list[Step]:
        """The steps of `targets = value`."""
        if targets == tuple(item.name for item in _items(value) if isinstance(item, Name)):
            return []
        if isinstance(value, IfElse) and has_tensor(value):
            then, otherwise = self.assign(targets, value.then), self.assign(targets, value.otherwise)
            return list(_choice(value.condition, tuple(then), tuple(otherwise)))
        before: list[Step] = []
        if self.alone(value):
            assert isinstance(value, Call)
            value = self.inside(value, _Names(self, targets, value), before)
        else:
            value = self.taken_out(value, _Names(self, targets, value), before)
        return [*before, Set(targets, value)]

    def alone(self, value: Expr) -> bool:
        """Whether a value stands alone in its statement."""
        if not isinstance(value, Call):
            return False
        return value.kind == "recurrence" or (value.kind == "module" and value.name in self.keeping)

    def taken_out(self, expr: Expr, names: _Names, before: list[Step]) -> Expr:
        """`expr` without what has to stand alone, nor choices that hold such: that is assigned before."""
        if self.alone(expr) or (isinstance(expr, IfElse) and any(map(_runs, walk(expr)))):
            name = names.next(expr)
            before += self.assign((name,), expr)
            return Name(name, "local", expr.span)
        return self.inside(expr, names, before)

    def inside(self, expr: Expr, names: _Names, before: list[Step]) -> Expr:
        """`expr` with the same done to its operands."""

        def operand(value: Expr) -> Expr:
            return self.taken_out(value, names, before)

        match expr:
            case Value() | Name():
                return expr
            case Unary(value=value):
                return replace(expr, value=operand(value))
            case Binary(left=left, right=right) | Compare(left=left, right=right):
                return replace(expr, left=operand(left), right=operand(right))
            case Logic(values=values):
                return replace(expr, values=tuple(map(operand, values)))
            case Several(items):
                return replace(expr, items=tuple(map(operand, items)))
            case IfElse(condition, then, otherwise):
                return replace(expr, condition=condition, then=operand(then), otherwise=operand(otherwise))
            case Call(name, kind, args, keywords):
                spec = self.operators.get(name) if kind == "recurrence" else None
                found = []
                for place, arg in enumerate(args):
                    names.wanted = spec.inputs[place].name if spec is not None and place < len(spec.inputs) else ""
                    found.append(operand(arg))
                named = tuple((key, operand(value)) for key, value in keywords)
                names.wanted = ""
                return replace(expr, args=tuple(found), keywords=named)


class _Names:
    """Names for what is taken out of a statement: the operator's for what goes to it; else the statement's own target,
    or what the first of its modules is called, where these are free."""

    def __init__(self, forward: _Forward, targets: tuple[str, ...], value: Expr) -> None:
        self.forward = forward
        self.targets = targets
        self.whole = value
        self.wanted = ""
        self.given: set[str] = set()

    def next(self, part: Expr) -> str:
        if isinstance(part, Call) and self.forward.keeping.get(part.name) == "token":
            return part.name
        modules = (node.name for node in walk(part) if isinstance(node, Call) and node.kind == "module")
        module = next(modules, "value")
        wanted = [self.wanted] if self.wanted else []
        if len(self.targets) == 1 and not self.elsewhere(self.targets[0], part):
            wanted.append(self.targets[0])
        argument = self.argument(part)
        if argument is not None and not self.elsewhere(argument, part):
            wanted.append(argument)
        wanted += [module.split("_")[0], f"of_{module}", *(f"of_{module}_{number}" for number in range(2, 99))]
        mine = {*self.targets, argument}
        free = (name for name in wanted if name not in self.given and (name in mine or name not in self.forward.taken))
        name = next(name for name in free if name.isidentifier() and not self.elsewhere(name, part))
        self.given.add(name)
        return name

    def elsewhere(self, name: str, part: Expr) -> bool:
        """Whether the statement reads `name` outside of `part`."""
        count = sum(isinstance(node, Name) and node.name == name for node in walk(self.whole))
        return count > sum(isinstance(node, Name) and node.name == name for node in walk(part))

    def argument(self, part: Expr) -> str | None:
        """The local that `part` alone is made from, where nothing reads it any more."""
        if not isinstance(part, Call) or len(part.args) != 1 or not isinstance(part.args[0], Name):
            return None
        name = part.args[0].name
        later = [s for s in self.forward.layer.forward if self.whole is not s.value]
        read = any(isinstance(node, Name) and node.name == name for s in later for node in walk(s.value))
        return None if read or name == "x" or part.args[0].kind != "local" else name


def _runs(expr: Expr) -> bool:
    """Whether a module or an operator is called."""
    return isinstance(expr, Call) and expr.kind in ("module", "recurrence")


def _items(value: Expr) -> tuple[Expr, ...]:
    return value.items if isinstance(value, Several) else (value,)


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


def _named(expr: Expr) -> frozenset[str]:
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
