"""What a layer needs of its arguments, that no spec says and every spec shows by how it uses them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from flagen.spec.layer.model import (
    MAX_ITERATIONS,
    Binary,
    Call,
    Config,
    Expr,
    IfElse,
    Layer,
    Logic,
    Name,
    Unary,
    Value,
    children,
    expressions,
    may_be_none,
    walk,
)
from flagen.spec.model import Param


@dataclass(frozen=True)
class Needs:
    """What a layer's constructor and its `forward` need.

    Attributes:
        sizes: configs that count something, so that they are integers from 1 on: what is always there, what something
            else would stand for if they were 0, and what is divided by.
        conditional: those that count something which is there under a condition, and the condition.
        unset: those of them that may be None.
        activations: configs that name an activation.
        inputs: inputs that may be left out, each with the condition under which it may not.
    """

    sizes: tuple[str, ...]
    conditional: tuple[tuple[str, Expr], ...]
    unset: frozenset[str]
    activations: tuple[str, ...]
    inputs: tuple[tuple[str, Expr], ...]


def needs_of(layer: Layer, params: Mapping[str, Iterable[Param]]) -> Needs:
    """What `layer` needs, around recurrences that have these `params`."""
    nodes = [node for expr in expressions(layer) for node in walk(expr)]
    counts = [config.name for config in layer.config if _counts(config) and not config.ignored]
    counted = {*_factors_of_shapes(layer), *_replaced(nodes), *_divisors(nodes, params)}
    sizes = tuple(name for name in counts if name in counted)
    sometimes = dict(_factors_under_conditions(layer))
    conditional = tuple((name, sometimes[name]) for name in counts if name in sometimes and name not in counted)
    unset = frozenset(name for name in sizes if name in may_be_none(layer) or name in _replaced(nodes))
    dims = {dim.name: dim.value for dim in layer.dims}
    named = {name for node in nodes for name in _names_of_activation(node, dims)}
    activations = tuple(config.name for config in layer.config if config.name in named and not config.one_of)
    return Needs(sizes, conditional, unset, activations, tuple(_needed_inputs(layer)))


# ------------------------------------------------------------------------------------------------------------- configs


def _counts(config: Config) -> bool:
    if config.type is not None:
        return config.type == "int"
    return isinstance(config.default, int) and not isinstance(config.default, bool)


def _factors_of_shapes(layer: Layer) -> Iterator[str]:
    """Configs that are factors of a shape, or of a part of it, of what there is whatever the config."""
    dims = {dim.name: dim.value for dim in layer.dims}
    shapes = [size for param in layer.params if param.condition is None for size in param.shape]
    shapes += [arg for module in layer.modules for arg in _given(module.value)]
    for shape in shapes:
        yield from _factors(shape, dims)


def _factors_under_conditions(layer: Layer) -> Iterator[tuple[str, Expr]]:
    """Configs that are factors of what there is under a condition on configs, and the condition."""
    dims = {dim.name: dim.value for dim in layer.dims}
    for module in layer.modules:
        if not isinstance(module.value, IfElse) or module.value.otherwise != Value(None):
            continue
        if all(node.kind == "config" for node in walk(module.value.condition) if isinstance(node, Name)):
            for arg in _given(module.value.then):
                yield from ((name, module.value.condition) for name in _factors(arg, dims))


def _given(expr: Expr) -> tuple[Expr, ...]:
    """What a constructor is given."""
    return (*expr.args, *(value for _, value in expr.keywords)) if isinstance(expr, Call) else ()


def _factors(expr: Expr, dims: dict[str, Expr]) -> Iterator[str]:
    match expr:
        case Name(name, "config"):
            yield name
        case Name(name, "dim"):
            yield from _factors(dims[name], dims)
        case Binary("+" | "*" | "//", left, right):
            yield from (*_factors(left, dims), *_factors(right, dims))
        case Binary("-", left, _):
            yield from _factors(left, dims)
        case Logic("or", values):
            yield from (name for value in values for name in _factors(value, dims))
        case IfElse(_, then, otherwise):
            yield from (*_factors(then, dims), *_factors(otherwise, dims))


def _replaced(nodes: list[Expr]) -> set[str]:
    """Configs that have another one in their place where they are nothing."""
    values = [value for node in nodes if isinstance(node, Logic) and node.op == "or" for value in node.values[:-1]]
    return {value.name for value in values if isinstance(value, Name) and value.kind == "config"}


def _divisors(nodes: list[Expr], params: Mapping[str, Iterable[Param]]) -> Iterator[str]:
    """Configs that something is divided by; in the recurrence that is a number which it declares as above 0, and how
    many steps solve a system."""
    for node in nodes:
        if isinstance(node, Binary) and node.op in ("/", "//", "%") and isinstance(node.right, Name):
            yield node.right.name
        if isinstance(node, Call) and node.kind == "recurrence":
            positive = {MAX_ITERATIONS, *(param.name for param in params[node.name] if param.range.low > 0)}
            yield from (value.name for name, value in node.keywords if name in positive and isinstance(value, Name))


def _names_of_activation(node: Expr, dims: dict[str, Expr]) -> Iterator[str]:
    """The configs of which one names the activation, of a call of `act`."""
    if isinstance(node, Call) and node.name == "act" and node.kind == "function":
        yield from _chosen(dict(node.keywords).get("name", node.args[-1]), dims)


def _chosen(expr: Expr, dims: dict[str, Expr]) -> Iterator[str]:
    """The configs that are the value of an expression, whatever it depends on."""
    match expr:
        case Name(name, "config"):
            yield name
        case Name(name, "dim"):
            yield from _chosen(dims[name], dims)
        case IfElse(_, then, otherwise):
            yield from (*_chosen(then, dims), *_chosen(otherwise, dims))


# -------------------------------------------------------------------------------------------------------------- inputs


def _needed_inputs(layer: Layer) -> Iterator[tuple[str, Expr]]:
    for given in layer.inputs:
        if given.default is not None:
            continue
        found: list[Expr] = []
        for statement in layer.forward:
            found += (where for where in _read(statement.value, given.name, ()) if where not in found)
            if given.name in statement.targets:
                break
        if found:
            yield given.name, found[0] if len(found) == 1 else Logic("or", tuple(found))


def _read(expr: Expr, name: str, under: tuple[Expr, ...]) -> Iterator[Expr]:
    """The conditions under which an expression reads the input `name` without asking whether it is there."""
    match expr:
        case Name(read, "input") if read == name:
            if not any(_asks(condition, name) for condition in under):
                yield Logic("and", under) if len(under) > 1 else under[0] if under else Value(True)
        case IfElse(condition, then, otherwise):
            yield from _read(then, name, (*under, condition))
            yield from _read(otherwise, name, (*under, Unary("not", condition)))
        case _:
            for child in children(expr):
                yield from _read(child, name, under)


def _asks(condition: Expr, name: str) -> bool:
    return any(isinstance(node, Name) and node.name == name for node in walk(condition))
