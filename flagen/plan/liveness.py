"""Which actions of a backward kernel are needed: those that make what is stored, or what another such action reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from flagen.plan.backward_actions import Action, Add, Give, Recall, Steps, Store, Take, Zero
from flagen.plan.rows import values_in
from flagen.plan.schedule import Keep, Load, Set
from flagen.plan.tiles import StateTile, tiles_in


def needed(actions: Iterable[Action], wanted: Iterable[str]) -> tuple[Action, ...]:
    """`actions` without those that make nothing that `wanted`, what is stored, or later actions need."""
    return tuple(_kept(tuple(actions), set(wanted)))


def _kept(actions: tuple[Action, ...], wanted: set[str]) -> list[Action]:
    """The same; `wanted` gets what they need."""
    kept: list[Action] = []
    for action in reversed(actions):
        match action:
            case Steps(body):
                before: set[str] = set()
                while before != wanted:
                    # What one micro-step leaves, the next one may need.
                    before = set(wanted)
                    inner = _kept(body, wanted)
                if inner:
                    kept.append(replace(action, body=tuple(inner)))
                continue
            case Set(name) | Add(name) | Zero(name) | Recall(_, name) if name not in wanted:
                continue
            case Load(source) if source.name not in wanted:
                continue
            case Take(vector) if vector.name not in wanted:
                continue
            case Keep(state) if f"{state}_prev" not in wanted:
                continue
        wanted.update(names_read((action,)))
        kept.append(action)
    return kept[::-1]


def names_read(actions: Iterable[Action]) -> Iterator[str]:
    """The names that `actions` read."""
    for action in actions:
        match action:
            case Set(_, value) | Add(_, value):
                yield from (leaf.name for leaf in values_in(value))
                states = (part for part in tiles_in(value) if isinstance(part, StateTile))
                yield from (f"{state.name}_prev" if state.previous else state.name for state in states)
                if isinstance(action, Add):
                    yield action.target
            case Keep(state):
                yield state
            case Store(_, called):
                yield called
            case Give(gradient):
                yield gradient.called
            case Steps(body):
                yield from names_read(body)
