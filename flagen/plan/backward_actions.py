"""What the kernels of a recurrent backward do, an action at a time; `Load`, `Set` and `Keep` are the forward one's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from flagen.plan.schedule import Keep, Load, Set
from flagen.plan.show import show
from flagen.plan.tiles import Head, Size, Tile, tiles_in
from flagen.spec.model import Dims, Input, Param

Scope = Literal["call", "token", "step"]
SCOPES: tuple[Scope, ...] = ("call", "token", "step")
"""How often something is evaluated, the rarest first."""

Per = Literal["token", "step", "segment"]


@dataclass(frozen=True)
class Vector:
    """A vector or number that one kernel leaves for another, for each token, micro-step or (`segment`) segment; `dims`
    are in the order of memory.

    `shared`: every block of values has its own share of it.
    """

    name: str
    dims: Dims
    per: Per
    shared: bool


@dataclass(frozen=True)
class Gradient:
    """The gradient of the input or param `source`, called `called` over `dims`; `shared` as for vectors.

    Where `loops` loops over micro-steps read an input, each has a share of its own, and this is that of number `loop`.
    """

    source: Input | Param
    called: str
    dims: Dims
    shared: bool
    loop: int = 0
    loops: int = 1


@dataclass(frozen=True)
class Take:
    """Load a vector that another kernel has left."""

    vector: Vector


@dataclass(frozen=True)
class Leave:
    """Store the vector of this name."""

    vector: Vector


@dataclass(frozen=True)
class Zero:
    """Start a sum."""

    target: str
    dims: Dims


@dataclass(frozen=True)
class Add:
    """Add `value` to a sum over `dims`, the same along those that it lacks."""

    target: str
    value: Tile
    dims: Dims


@dataclass(frozen=True)
class Give:
    """Store a gradient, if it is wanted; what the kernel has of it is over `dims`, and the same along those that it
    lacks."""

    gradient: Gradient
    dims: Dims


@dataclass(frozen=True)
class Steps:
    """Run `body` for each micro-step of the token, or for the last one first."""

    body: tuple[Action, ...]
    backwards: bool


@dataclass(frozen=True)
class AtEnd:
    """Run `body` for the last token of a segment, with the gradient of the state after it."""

    body: tuple[Action, ...]


@dataclass(frozen=True)
class ButAtEnd:
    """Subtract `value` from `target`, but not for the last token of a segment."""

    target: str
    value: Tile


@dataclass(frozen=True)
class Store:
    """Store the tile `called` for this program's own use: `state` as it is before this token, or this micro-step of the
    loop of number `loop`."""

    state: str
    called: str
    per: Literal["token", "step"]
    loop: int = 0


@dataclass(frozen=True)
class Recall:
    """Load what `Store` has stored, and call it `called`."""

    state: str
    called: str
    per: Literal["token", "step"]
    loop: int = 0


@dataclass(frozen=True)
class Wait:
    """Wait until every thread of the program has stored, or loaded, what it had to."""


Action = Load | Set | Keep | Take | Leave | Zero | Add | Give | Steps | AtEnd | ButAtEnd | Store | Recall | Wait


@dataclass(frozen=True)
class Kernel:
    """What a program does once, for each token, and after its last token.

    kept: a tile that it keeps from token to token beside the one it walks with, and which that is.
    """

    once: tuple[Action, ...]
    token: tuple[Action, ...]
    after: tuple[Action, ...] = ()
    kept: tuple[str, str] | None = None

    def actions(self) -> Iterator[Action]:
        """Every action, with those inside of others."""
        for action in (*self.once, *self.token, *self.after):
            yield from _with_inner(action)

    def tiles(self) -> Iterator[Tile]:
        """Every expression and every part of one."""
        for action in self.actions():
            if isinstance(action, Set | Add | ButAtEnd):
                yield from tiles_in(action.value)

    @property
    def ends(self) -> bool:
        """Whether it does something of its own at a segment's last token."""
        return any(isinstance(action, AtEnd | ButAtEnd) for action in self.actions())

    @property
    def reads_head(self) -> bool:
        """Whether an expression names `head`."""
        return any(isinstance(tile, Head) for tile in self.tiles())

    @property
    def needs_key_heads(self) -> bool:
        """Whether the kernel has to know H: it loads a row of each key head, or an expression names the size."""
        named = any(isinstance(tile, Size) and tile.name == "H" for tile in self.tiles())
        return named or self.loads_key_heads

    @property
    def loads_key_heads(self) -> bool:
        """Whether an input has a row for each key head."""
        loads = (action.source for action in self.actions() if isinstance(action, Load))
        return any(isinstance(source, Input) and source.heads == "H" for source in loads)


def _with_inner(action: Action) -> Iterator[Action]:
    yield action
    if isinstance(action, Steps | AtEnd):
        for inner in action.body:
            yield from _with_inner(inner)


_PER = {"token": "token", "step": "micro-step"}


def dump_lines(actions: Iterable[Action], indent: str) -> Iterator[str]:
    """`actions` as text, a line each."""
    for action in actions:
        match action:
            case Load(source):
                yield f"{indent}load {source.name} [{', '.join(source.dims)}]"
            case Set(target, value):
                yield f"{indent}{target} = {show(value)}"
            case Keep(state):
                yield f"{indent}{state}_prev = {state}"
            case Store(state, called, per):
                yield f"{indent}store {called}, {state} before the {_PER[per]}"
            case Recall(state, called, per):
                yield f"{indent}{called} = {state} before the {_PER[per]}, as stored"
            case Wait():
                yield f"{indent}wait for all threads"
            case Take(vector):
                yield f"{indent}take {vector.name} [{', '.join(vector.dims)}]"
            case Leave(vector):
                yield f"{indent}leave {vector.name} [{', '.join(vector.dims)}] for each {vector.per}"
            case Zero(target):
                yield f"{indent}{target} = 0"
            case Add(target, value):
                yield f"{indent}{target} += {show(value)}"
            case Give(gradient):
                yield f"{indent}store {gradient.called}"
            case Steps(body, backwards):
                yield f"{indent}for each micro-step{', the last one first' if backwards else ''}:"
                yield from dump_lines(body, indent + "    ")
            case AtEnd(body):
                yield f"{indent}at the segment's last token:"
                yield from dump_lines(body, indent + "    ")
            case ButAtEnd(target, value):
                yield f"{indent}{target} -= {show(value)}, but not at the segment's last token"
