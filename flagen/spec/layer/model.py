"""A spec's layer as data: the module around the operator, frozen and fully checked.

Expressions here are about numbers and tensors of a whole module, so they have no named dims: the operator's are in
`flagen.spec.model`. What is known when a layer is constructed (config, dims, `layer_idx`) decides every condition.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from flagen.diagnostics import NOWHERE, Span

Scalar = int | float | str | bool | None
Constant = Scalar | tuple[Scalar, ...]
"""What a config can be given: a number, a text, a truth value, nothing, or several of them."""

# ------------------------------------------------------------------------------------------------------ expressions


@dataclass(frozen=True)
class Value:
    """A literal: an int stays an int, a float a float."""

    value: Scalar
    span: Span = field(default=NOWHERE, compare=False)


NameKind = Literal["config", "dim", "param", "input", "local", "constant", "module"]


@dataclass(frozen=True)
class Name:
    """A declared name. `layer_idx` is a config; `x`, what the layer is given, is a local; `inf`, `pi` and, in an init,
    `index` are constants. A module is a name only where another one is to be the same."""

    name: str
    kind: NameKind
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class Unary:
    op: Literal["-", "not"]
    value: Expr
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class Binary:
    """Arithmetic: of numbers, or of tensors that broadcast as PyTorch's do."""

    op: Literal["+", "-", "*", "/", "//", "%", "**"]
    left: Expr
    right: Expr
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class Compare:
    """One comparison; with `is` and `is not`, `right` is None's `Value`."""

    op: Literal["==", "!=", "<", "<=", ">", ">=", "is", "is not"]
    left: Expr
    right: Expr
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class Logic:
    """`a and b and c`, `a or b`: as Python's, the value is that of the operand that decides."""

    op: Literal["and", "or"]
    values: tuple[Expr, ...]
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class IfElse:
    """`then if condition else otherwise`; the condition is known when the layer is constructed, except that it may ask
    whether an input is None."""

    condition: Expr
    then: Expr
    otherwise: Expr
    span: Span = field(default=NOWHERE, compare=False)


MAX_ITERATIONS = "max_iterations"
"""What the forms by chunks of an operator that solves systems take besides. A layer says it; other forms go without."""


CallKind = Literal["constructor", "function", "init", "module", "recurrence"]


@dataclass(frozen=True)
class Call:
    """What is called: a module constructor, function or init rule of the vocabulary, a module of the layer, or
    `recurrence` or a name of `uses`."""

    name: str
    kind: CallKind
    args: tuple[Expr, ...] = ()
    keywords: tuple[tuple[str, Expr], ...] = ()
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class Several:
    """`(a, b)`: several values."""

    items: tuple[Expr, ...]
    span: Span = field(default=NOWHERE, compare=False)


Expr = Value | Name | Unary | Binary | Compare | Logic | IfElse | Call | Several


def children(expr: Expr) -> tuple[Expr, ...]:
    """The direct operands of `expr`, in the order in which they are written."""
    match expr:
        case Value() | Name():
            return ()
        case Unary(_, value):
            return (value,)
        case Binary(_, left, right) | Compare(_, left, right):
            return (left, right)
        case Logic(_, values) | Several(values):
            return values
        case IfElse(condition, then, otherwise):
            return (then, condition, otherwise)
        case Call(_, _, args, keywords):
            return (*args, *(value for _, value in keywords))


def walk(expr: Expr) -> Iterator[Expr]:
    """`expr` and everything below it, parents first."""
    yield expr
    for child in children(expr):
        yield from walk(child)


# ----------------------------------------------------------------------------------------------------- declarations


@dataclass(frozen=True)
class Config:
    """An argument of the constructor. `type` is what it is given, besides None where it `may_be_none`; without a word
    in the spec it is the default's type, and None where the default says nothing of it. Of one that is `required` the
    default is an example, with which the layer is checked."""

    name: str
    default: Constant
    type: Literal["int", "float", "bool", "str"] | None
    description: str = ""
    one_of: tuple[Scalar, ...] = ()
    ignored: bool = False
    """Whether it is taken and has no effect."""
    required: bool = False
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class Dim:
    """A name for what is computed once from the config: a size, a choice."""

    name: str
    value: Expr
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class Require:
    """What has to hold of config and dims. `text` is the source."""

    condition: Expr
    text: str
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class LayerParam:
    """A parameter of the layer itself; there only where `condition` holds, if it has one."""

    name: str
    shape: tuple[Expr, ...]
    init: Expr
    weight_decay: bool = True
    dtype: Literal["float32"] | None = None
    condition: Expr | None = None
    description: str = ""
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class Module:
    """A module of the layer, under the name that its parameters have in the state_dict. `value` is a call of a
    constructor, the name of an earlier module, None, or a choice between such."""

    name: str
    value: Expr
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class Init:
    """How a parameter of a module starts, other than its module would start it: where `condition` holds, if it has one,
    and where there is such a parameter. `path` is `dt_proj.bias`."""

    path: str
    value: Expr
    weight_decay: bool = True
    condition: Expr | None = None
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class LayerInput:
    """A further argument of forward: one value a token (masked and packed as the hidden states are), or one for all."""

    name: str
    default: Scalar
    per: Literal["token", "layer"] = "token"
    description: str = ""
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class Assign:
    """`targets = value`; one target, or several for the parts of a value. `text` is the source."""

    targets: tuple[str, ...]
    value: Expr
    text: str
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class Use:
    """The operators of another spec under a name. The spec itself, where it was found, is in `Spec.used`."""

    name: str
    package: str
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class Kept:
    """The entry of the cache that a state is kept in."""

    state: str
    entry: Literal["recurrent_state", "attn_state", "ffn_state"]
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class Layer:
    """A whole layer, checked: every name resolves and is used, and on every path exactly one operator runs once.

    `config` has `layer_idx`, last where the spec doesn't place it. `params` and `modules` are in the order of
    registration. `forward` ends with the assignment of `y`, what the layer gives back before the `outputs`.
    """

    class_name: str
    notes: str
    """Text for the class's docstring, beside the spec's own `description`."""
    config: tuple[Config, ...]
    kwargs: bool
    """Whether the constructor takes keywords that it doesn't know, and ignores them."""
    dims: tuple[Dim, ...]
    attributes: tuple[Dim, ...]
    """What the module keeps under other names than those of the config, which it keeps all."""
    require: tuple[Require, ...]
    params: tuple[LayerParam, ...]
    modules: tuple[Module, ...]
    init: tuple[Init, ...]
    inputs: tuple[LayerInput, ...]
    outputs: tuple[str, ...]
    mask: Literal["unpad", "multiply"]
    cache: tuple[Kept, ...]
    """Which entry of the cache has which state, where the spec says so."""
    uses: tuple[Use, ...]
    forward: tuple[Assign, ...]
    span: Span = field(default=NOWHERE, compare=False)
    written: Mapping[str, str] = field(default_factory=dict, compare=False)
    """What its author calls what has another name here (`flagen.spec.layer.renaming`)."""


def expressions(layer: Layer) -> Iterator[Expr]:
    """All that a layer computes, from its dims to `forward`."""
    yield from (dim.value for dim in (*layer.dims, *layer.attributes))
    yield from (require.condition for require in layer.require)
    yield from (param.init for param in layer.params)
    yield from (module.value for module in layer.modules)
    yield from (init.value for init in layer.init)
    yield from (statement.value for statement in layer.forward)


def may_be_none(layer: Layer) -> frozenset[str]:
    """The configs that are None by default, or of which the layer asks whether they are."""
    nodes = (node for expr in expressions(layer) for node in walk(expr))
    asked = (node.left for node in nodes if isinstance(node, Compare) and node.op in ("is", "is not"))
    names = {name.name for name in asked if isinstance(name, Name) and name.kind == "config"}
    return frozenset(names | {config.name for config in layer.config if config.default is None})
