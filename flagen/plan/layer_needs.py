"""What a layer needs of its arguments, that no spec says and every spec shows by how it uses them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flagen.spec.layer.model import (
    Binary,
    Call,
    Compare,
    Config,
    Expr,
    IfElse,
    Layer,
    Logic,
    Name,
    Unary,
    Value,
    children,
    walk,
)


@dataclass(frozen=True)
class Needs:
    """What a layer's constructor and its `forward` need.

    Attributes:
        sizes: configs that count something which is always there, so that they are integers from 1 on.
        unset: those of them that may be None.
        activations: configs that name an activation.
        inputs: inputs that may be left out, each with the condition under which it may not.
    """

    sizes: tuple[str, ...]
    unset: frozenset[str]
    activations: tuple[str, ...]
    inputs: tuple[tuple[str, Expr], ...]


def needs_of(layer: Layer) -> Needs:
    """What `layer` needs."""
    factors = set(_factors_of_shapes(layer))
    sizes = tuple(config.name for config in layer.config if config.name in factors and _counts(config))
    nodes = [node for expr in _expressions(layer) for node in walk(expr)]
    by_default = {config.name for config in layer.config if config.default is None}
    unset = frozenset(name for name in sizes if name in by_default or name in _asked_for(nodes))
    dims = {dim.name: dim.value for dim in layer.dims}
    named = {name for node in nodes for name in _names_of_activation(node, dims)}
    activations = tuple(config.name for config in layer.config if config.name in named and not config.one_of)
    return Needs(sizes, unset, activations, tuple(_needed_inputs(layer)))


# ------------------------------------------------------------------------------------------------------------- configs


def _counts(config: Config) -> bool:
    if config.type is not None:
        return config.type == "int"
    return isinstance(config.default, int) and not isinstance(config.default, bool)


def _factors_of_shapes(layer: Layer) -> Iterator[str]:
    """Configs that are factors of a shape, or of a part of it, of what there is whatever the config."""
    dims = {dim.name: dim.value for dim in layer.dims}
    shapes = [size for param in layer.params if param.condition is None for size in param.shape]
    made = [module.value for module in layer.modules if isinstance(module.value, Call)]
    shapes += [arg for call in made for arg in (*call.args, *(value for _, value in call.keywords))]
    for shape in shapes:
        yield from _factors(shape, dims)


def _factors(expr: Expr, dims: dict[str, Expr]) -> Iterator[str]:
    match expr:
        case Name(name, "config"):
            yield name
        case Name(name, "dim"):
            yield from _factors(dims[name], dims)
        case Binary("+" | "*" | "//", left, right):
            yield from (*_factors(left, dims), *_factors(right, dims))
        case Logic("or", values):
            yield from (name for value in values for name in _factors(value, dims))
        case IfElse(_, then, otherwise):
            yield from (*_factors(then, dims), *_factors(otherwise, dims))


def _asked_for(nodes: list[Expr]) -> set[str]:
    """Configs of which a layer asks whether they are None, or that have another one in their place."""
    asked = [node.left for node in nodes if isinstance(node, Compare) and node.op in ("is", "is not")]
    asked += [value for node in nodes if isinstance(node, Logic) and node.op == "or" for value in node.values[:-1]]
    return {node.name for node in asked if isinstance(node, Name)}


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


def _expressions(layer: Layer) -> Iterator[Expr]:
    yield from (dim.value for dim in (*layer.dims, *layer.attributes))
    yield from (require.condition for require in layer.require)
    yield from (module.value for module in layer.modules)
    yield from (statement.value for statement in layer.forward)


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
