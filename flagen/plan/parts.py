"""Parts of expressions that a kernel would evaluate more than once, evaluated once, under names of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from flagen.plan import backward_actions, scan_backward
from flagen.plan.backward_actions import Add, Recall, Steps, Take, Zero
from flagen.plan.scan_backward import Give, WalkBack
from flagen.plan.scan_kernel import Store, Walk
from flagen.plan.schedule import Load, Set, fresh
from flagen.plan.tiles import (
    Function,
    MatMul,
    Normalize,
    OfAngles,
    OfPairs,
    Paired,
    Rotated,
    Sum,
    Tile,
    Value,
    is_static,
    operands,
    rebuild,
    tiles_in,
)

Action = backward_actions.Action | scan_backward.Action | Store
A = TypeVar("A", bound=Action)
Key = tuple[Tile, tuple[int, ...]]
"""A tile, and how often each name in it had got a value before: two tiles of one key have one value."""


def with_tiles(action: A, change: Callable[[Tile], Tile]) -> A:
    """`action` with `change` applied to each tile that it evaluates."""
    found: dict[str, Any] = {name: change(tile) for name, tile in _tiles_of(action)}
    return replace(action, **found)


def _tiles_of(action: Action) -> Iterator[tuple[str, Tile]]:
    """The tiles that it evaluates, each with the name of its attribute."""
    for name in _evaluated(action):
        if (tile := getattr(action, name)) is not None:
            yield name, tile


def _evaluated(action: Action) -> tuple[str, ...]:
    """The attributes that are tiles which it evaluates."""
    match action:
        case Set() | Add() | Give() | Store():
            return ("value",)
        case Walk():
            return ("factor", "term")
        case WalkBack():
            return ("slope", "term", "reaching")
    return ()


def with_parts(actions: Sequence[A], taken: set[str]) -> tuple[A | Set, ...]:
    """`actions` with a name for each part that costs something and that several of them, or one twice, evaluate.

    Names are added to `taken`. A loop over micro-steps has parts of its own.
    """
    counted = _Counts()
    counted.count(actions)
    constant = {name for name, times in counted.values.items() if times == 1}
    naming = _Naming({key for key, times in counted.times.items() if times > 1}, constant, taken)
    return tuple(naming.rewritten(actions))


def _costs(tile: Tile) -> bool:
    """Whether a part is worth a name: products and sums of names are not."""
    kinds = Function | Sum | MatMul | Normalize | Rotated | OfAngles | Paired | OfPairs
    costly = (part for part in tiles_in(tile) if isinstance(part, kinds))
    return not is_static(tile) and any(not isinstance(part, Function) or part.name != "square" for part in costly)


@dataclass
class _Walk:
    """Follows which value a name has at the time."""

    values: dict[str, int] = field(default_factory=dict)

    def key(self, tile: Tile) -> Key:
        names = sorted({part.name for part in tiles_in(tile) if isinstance(part, Value)})
        return tile, tuple(self.values.get(name, 0) for name in names)

    def pass_by(self, action: Action) -> None:
        """Whatever `action` makes has another value from now on."""
        for name in _made(action):
            self.values[name] = self.values.get(name, 0) + 1


def _made(action: Action) -> Iterable[str]:
    match action:
        case Set(name) | Add(name) | Zero(name) | Recall(_, name):
            yield name
        case Load(source):
            yield source.name
        case Take(vector):
            yield vector.name
        case scan_backward.Take(_, name) | Give(_, _, name):
            yield name
        case Walk(state, before=before):
            yield from (state.name, *(() if before is None else (before,)))
        case WalkBack(after=after, before=before, target=target):
            yield from (after, before, target)
        case Steps(body):
            for inner in body:
                yield from _made(inner)


@dataclass
class _Counts(_Walk):
    times: dict[Key, int] = field(default_factory=dict)

    def count(self, actions: Iterable[Action]) -> None:
        for action in actions:
            for _, tile in _tiles_of(action):
                self._count(tile)
            self.pass_by(action)

    def _count(self, tile: Tile) -> None:
        key = self.key(tile)
        self.times[key] = self.times.get(key, 0) + 1
        if self.times[key] == 1:
            for operand in operands(tile):
                self._count(operand)


class _Naming(_Walk):
    def __init__(self, shared: set[Key], constant: set[str], taken: set[str]) -> None:
        super().__init__()
        self.shared, self.constant, self.taken = shared, constant, taken
        self.names: dict[Key, str] = {}
        self.found: list[Any] = []

    def rewritten(self, actions: Iterable[Action]) -> list[Any]:
        for action in actions:
            match action:
                case Set(target, value) if target in self.constant and self._is_new(value):
                    self.found.append(Set(target, self._of_operands(value, f"{target}_part")))
                    self.names[self.key(value)] = target
                case Steps(body):
                    self.found.append(replace(action, body=with_parts(body, self.taken)))
                case _:
                    wanted = f"{next(iter(_made(action)), '')}_part"
                    self.found.append(with_tiles(action, partial(self._named, wanted=wanted)))
            self.pass_by(action)
        return self.found

    def _is_new(self, tile: Tile) -> bool:
        """Whether `tile` is to have a name, and has none yet."""
        key = self.key(tile)
        return key in self.shared and key not in self.names and _costs(tile)

    def _named(self, tile: Tile, wanted: str) -> Tile:
        key = self.key(tile)
        if key not in self.names and not self._is_new(tile):
            return self._of_operands(tile, wanted)
        if key not in self.names:
            value = self._of_operands(tile, wanted)
            self.names[key] = fresh(wanted, self.taken)
            self.found.append(Set(self.names[key], value))
        return Value(self.names[key], "local", tile.dims)

    def _of_operands(self, tile: Tile, wanted: str) -> Tile:
        return rebuild(tile, lambda operand: self._named(operand, wanted))
