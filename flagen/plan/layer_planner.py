"""Plans the module around an operator: which block each statement stands in, and in which order.

A spec's layer chooses with conditional expressions, each in its place. Code that a person writes has blocks: what
several statements choose by the same condition stands under one `if`. So the expressions are taken apart into steps,
and steps with one condition are brought together where no step between them depends on the order.

What keeps something from token to token, and the operator, come to stand alone in their statement, since they return
what they keep as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from flagen.plan.layer import (
    Choose,
    Form,
    Kept,
    LayerPlan,
    Operator,
    Set,
    Step,
    has_tensor,
    in_order,
    joined,
    names_read,
    reads,
    writes,
)
from flagen.plan.layer_needs import needs_of
from flagen.plan.model import Plan
from flagen.plan.unavailable import Unavailable
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
    walk,
)
from flagen.spec.layer.vocabulary import CONSTRUCTORS
from flagen.spec.model import Spec
from flagen.spec.renaming import as_written


def plan_layer(layer: Layer, plan: Plan, others: Mapping[str, Plan]) -> LayerPlan:
    """The steps of `layer`, whose operator `plan` is of; `others` are the plans of what it uses beside, by name."""
    keeps = {module.name: _keeps(module.value) for module in layer.modules}
    order = _called_first(layer)
    by_call = sorted(keeps, key=lambda name: order.get(name, len(order)))
    keeping: dict[str, Kept] = {name: kept for name in by_call if (kept := keeps[name]) in ("inputs", "token")}
    operators = (
        _own(plan),
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


def _own(plan: Plan) -> Operator:
    """What `recurrence` calls: the operator of the package, or that of the spec whose recurrence this is."""
    other = plan.spec.recurrence_of
    return Operator("recurrence", other or as_written(plan.spec), other is not None, _forms(plan))


def _forms(plan: Plan) -> tuple[Form, ...]:
    """The forms of an operator that a layer can choose from."""
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


def _choice(condition: Expr, then: tuple[Step, ...], otherwise: tuple[Step, ...]) -> tuple[Step, ...]:
    return (Choose(condition, then, otherwise),) if then or otherwise else ()


# ----------------------------------------------------------------------------------------------------------- forward


def brought_together(steps: Iterable[Step]) -> tuple[Step, ...]:
    """Steps of which those with one condition stand in one block, the first one's, unless a step between them depends
    on the order."""
    found: list[Step] = []
    for step in steps:
        place = _place_of(step, found)
        if place is None:
            found.append(step)
            continue
        block = found[place]
        assert isinstance(block, Choose) and isinstance(step, Choose)
        found[place] = joined(block, step, brought_together)
    return tuple(found)


def _place_of(step: Step, before: Sequence[Step]) -> int | None:
    """Where there is a block that `step` can join: it passes what it neither reads from, nor writes to."""
    if not isinstance(step, Choose):
        return None
    for place in reversed(range(len(before))):
        other = before[place]
        decides = names_read(step.condition) & writes(other)
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
