"""The spec as data: a frozen, fully checked tree that every later stage reads.

Its expressions are those of `flagen.spec.expressions`, and are had from here. Positions take no part in equality.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from flagen.diagnostics import NOWHERE, Source, Span
from flagen.intervals import Interval
from flagen.spec.dims import behind_sources, with_last
from flagen.spec.expressions import (
    REDUCTIONS,
    ROTATIONS,
    ROW_MAPS,
    Binary,
    Call,
    Contract,
    Dims,
    Expr,
    Index,
    Name,
    NameKind,
    Negate,
    Number,
    Operator,
    Outer,
    Over,
    Pairs,
    Reduce,
    Rotate,
    RowMap,
    Solution,
    StateRead,
    Transpose,
    children,
    dims_in,
    sizes_in,
    walk,
)
from flagen.spec.layer.model import Layer

__all__ = [
    "REDUCTIONS",
    "ROTATIONS",
    "ROW_MAPS",
    "Assign",
    "Binary",
    "Call",
    "ChunkHints",
    "Contract",
    "Derived",
    "Dims",
    "Expr",
    "First",
    "Following",
    "Index",
    "Input",
    "Interval",
    "Levels",
    "Name",
    "NameKind",
    "Negate",
    "Number",
    "Operator",
    "Outer",
    "Over",
    "Pairs",
    "Param",
    "Reduce",
    "Repeat",
    "Rotate",
    "RowMap",
    "Solution",
    "Spec",
    "State",
    "StateRead",
    "Statement",
    "Steps",
    "Transpose",
    "children",
    "dims_in",
    "sizes_in",
    "walk",
]


@dataclass(frozen=True)
class Following:
    """A dim whose size follows from those of others, and from `H` and `HV`."""

    name: str
    value: Expr
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class State:
    name: str
    dims: Dims
    init: float
    span: Span = field(default=NOWHERE, compare=False)
    meaning: str = ""
    """What the state before a token is, where no one declared it: `prev(k, 2)`."""
    shape: Dims = ()
    """The dims that callers know, where two of them are one of `dims`."""

    @property
    def declared(self) -> Dims:
        """The dims that callers know."""
        return self.shape or self.dims


@dataclass(frozen=True)
class Input:
    name: str
    dims: Dims
    heads: Literal["H", "HV"]
    per: Literal["token", "step"]
    range: Interval
    description: str
    span: Span = field(default=NOWHERE, compare=False)
    wide: bool = False
    """Given in the dtype of the states, whatever that of the others is: only what a stage gets from another is."""


@dataclass(frozen=True)
class Param:
    """A param with dims or `per_head` is a tensor (`is_tensor`) and is differentiated; a plain scalar is a number."""

    name: str
    dims: Dims
    per_head: bool
    default: Expr | None
    range: Interval
    description: str
    span: Span = field(default=NOWHERE, compare=False)

    @property
    def is_tensor(self) -> bool:
        return self.per_head or bool(self.dims)


@dataclass(frozen=True)
class Steps:
    """The micro-step count: `symbol` in the spec, `argument` in the generated signature."""

    symbol: str
    argument: str
    default: int | None
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class Derived:
    """A name of `let`, `decay` or `gate`; `per` is "step" where it depends on a per-step input."""

    name: str
    section: Literal["let", "decay", "gate"]
    value: Expr
    per: Literal["token", "step"]
    range: Interval
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class Assign:
    """`target = value`; the target is a state (`to_state`), a local name, or the output `o`. `text` is the source."""

    target: str
    value: Expr
    to_state: bool
    text: str
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class Repeat:
    """`repeat: n` / `do:`; runs its body once for each micro-step of the token."""

    body: tuple[Assign, ...]
    span: Span = field(default=NOWHERE, compare=False)


Statement = Assign | Repeat


@dataclass(frozen=True)
class First:
    """The local `name` of the update that is 1 at the first token of each `every` tokens, as the state `source` counts
    them, else 0."""

    name: str
    every: Expr
    source: str
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class Levels:
    """The state `state` is kept in levels, along its dim `dim`, as the state `source` counts tokens. `scales` are what
    the output reads them by; `whole` is the recurrence of their sum: what the spec would be without levels."""

    state: str
    dim: str
    source: str
    scales: tuple[Expr, ...]
    whole: Spec
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True)
class ChunkHints:
    size: int | None = None
    subchunk: int | None = None


@dataclass(frozen=True)
class Spec:
    """A whole spec, checked: every name resolves, every shape fits, nothing is unused."""

    name: str
    title: str
    paper: str
    description: str
    class_name: str
    states: tuple[State, ...]
    inputs: tuple[Input, ...]
    params: tuple[Param, ...]
    steps: Steps | None
    derived: tuple[Derived, ...]
    update: tuple[Statement, ...]
    output: tuple[Assign, ...]
    chunk: ChunkHints
    version: int
    """That of the language."""
    source: Source = field(compare=False, repr=False)
    sha256: str = field(compare=False, default="")
    layer: Layer | None = None
    """The module around the operator, where the spec has one."""
    used: Mapping[str, Spec] = field(default_factory=dict, compare=False, repr=False)
    """The specs whose operators the layer uses, by what it calls these; none where only this spec's text was read."""
    recurrence_of: Spec | None = field(default=None, compare=False, repr=False)
    """The spec whose recurrence this is: this one has none of its own, and is a layer around that one's operators."""
    wide_outputs: frozenset[str] = frozenset()
    """The outputs that have the dtype of the states: only stages have such, for others to go on with."""
    written: Mapping[str, str] = field(default_factory=dict, compare=False)
    """What its author calls what has another name here (`flagen.spec.renaming`)."""
    following: tuple[Following, ...] = ()
    """The sizes that follow from others, each behind those it follows from."""
    firsts: tuple[First, ...] = ()
    """Where mini-batches begin."""
    levels: Levels | None = None
    """The state that is kept in levels."""
    pairs: Mapping[str, Dims] = field(default_factory=dict, compare=False)
    """The dims that are pairs of two others (`flagen.algebra.products`)."""

    @property
    def dims(self) -> Dims:
        """Every dim's name, in order of first declaration (states, inputs, params), each behind those it follows
        from."""
        declared = [decl.dims for decl in self.states] + [decl.dims for decl in self.inputs]
        declared += [decl.dims for decl in self.params]
        declared += [tuple(entry.name for entry in self.following)]
        sources = {entry.name: dims_in(entry.value) for entry in self.following}
        return behind_sources((dim for dims in declared for dim in dims), sources)

    @property
    def end_of_update(self) -> Span:
        """Where it says what a token does at last; of a part of a spec that does nothing, where its state is."""
        return self.update[-1].span if self.update else self.states[0].span

    @property
    def axes(self) -> Dims:
        """The dims that something has, those whose channels turn behind others of the same tensor; the other dims are
        numbers that expressions and other sizes name."""
        had = {dim for state in self.states for dim in state.dims}
        had |= {dim for decl in self.inputs for dim in decl.dims} | {dim for decl in self.params for dim in decl.dims}
        every = (statement.body if isinstance(statement, Repeat) else (statement,) for statement in self.update)
        values = [assign.value for body in every for assign in body]
        values += [*(assign.value for assign in self.output), *(entry.value for entry in self.derived)]
        had |= {dim for value in values for part in walk(value) for dim in part.dims}
        turned = (part.dims for value in values for part in walk(value) if isinstance(part, Rotate))
        return with_last(tuple(dim for dim in self.dims if dim in had), turned)

    @property
    def row_dims(self) -> frozenset[str]:
        """The dims along which inputs have several rows a token."""
        return frozenset(decl.dims[0] for decl in self.inputs if len(decl.dims) > 1)

    @property
    def output_dims(self) -> Dims:
        return self.output[-1].value.dims

    @property
    def has_value_heads(self) -> bool:
        """Whether some input declares HV; otherwise HV is H."""
        return any(decl.heads == "HV" for decl in self.inputs)
