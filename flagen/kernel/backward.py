"""Lowers what both backwards of the recurrent operators are planned in: actions, to statements on arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from flagen.diagnostics import InternalError
from flagen.kernel.ir import (
    Add,
    Array,
    Fill,
    Given,
    If,
    Let,
    Load,
    Loop,
    Space,
    Statement,
    Store,
    access,
)
from flagen.kernel.recurrent import array_of, kept
from flagen.plan import backward_actions as actions
from flagen.plan import schedule
from flagen.plan.backward_actions import Action, Gradient, Vector
from flagen.plan.tiles import Tile, Value
from flagen.spec.model import Dims, Input, Spec

FIRST_SEGMENT = Array("first_segment", ("border",), life="begin", optional=True)
SEGMENT_SEQUENCE = Array("segment_sequence", ("segment",), life="begin", optional=True)


@dataclass(frozen=True)
class Lowering:
    """Lowers the actions of kernels whose programs own blocks of a dim, if they are `blocked`.

    output_gradient: the vector that comes from outside; kernels leave the others for one another.
    row_of_params: where a program stores its share of the gradient of a param.
    """

    spec: Spec
    order: Dims
    output_gradient: Vector
    row_of_params: tuple[Space, ...]
    blocked: bool

    def statements(self, todo: Iterable[Action]) -> Iterator[Statement]:
        for action in todo:
            yield from self._statement(action)

    def _statement(self, action: Action) -> Iterator[Statement]:
        match action:
            case schedule.Load(source):
                yield Load(source.name, access(array_of(source)))
            case actions.Take(vector):
                yield Load(vector.name, access(self.vector(vector)))
            case schedule.Set(target, value):
                yield Let(target, value)
            case actions.Add(target, value, dims):
                yield Add(target, value, self.sorted(dims))
            case actions.Zero(target, dims):
                yield Fill(target, dims)
            case schedule.Keep(state):
                yield kept(self.spec, self.order, state)
            case actions.Leave(vector):
                yield Store(access(self.vector(vector)), self.local(vector.name, vector.dims))
            case actions.Give(gradient, dims):
                array = self.gradient(gradient)
                store = Store(access(array, loop=gradient.loop), self.local(gradient.called, dims))
                yield If((Given(array),), (store,))
            case actions.Steps(body, backwards):
                yield Loop("micro_step", tuple(self.statements(body)), reverse=backwards)
            case _:
                yield from self.other(action)

    def other(self, action: Action) -> Iterator[Statement]:
        """What only some kernels do."""
        raise InternalError(f"no statement for {action!r}")

    def sorted(self, dims: Iterable[str]) -> Dims:
        found = set(dims)
        return tuple(dim for dim in self.order if dim in found)

    def local(self, name: str, dims: Iterable[str]) -> Tile:
        return Value(name, "local", self.sorted(dims))

    def shares(self, shared: bool) -> tuple[Space, ...]:
        """Of what every block has a part of the sum, each stores its own."""
        return ("block",) if shared and self.blocked else ()

    def vector(self, vector: Vector) -> Array:
        """What one kernel leaves for another, or the gradient of the output."""
        rows: dict[str, tuple[Space, ...]] = {
            "segment": ("segment", "head"),
            "token": ("token", "head"),
            "step": ("token", "micro_step", "head"),
        }
        spaces = (*rows[vector.per], *self.shares(vector.shared))
        if vector == self.output_gradient:
            return Array(vector.name, spaces, vector.dims, "cotangent", schedule.OUTPUT, own_dtype=True)
        return Array(vector.name, spaces, vector.dims)

    def gradient(self, gradient: Gradient) -> Array:
        """Where the gradient of an input or param goes, if it is wanted: shares of value heads, loops and blocks."""
        source = gradient.source
        rows = self.row_of_params
        if isinstance(source, Input):
            rows = ("token", "micro_step", "head") if source.per == "step" else ("token", "head")
        loops: tuple[Space, ...] = ("loop",) if gradient.loops > 1 else ()
        spaces = (*rows, *loops, *self.shares(gradient.shared))
        return Array(
            name=gradient.called,
            spaces=spaces,
            dims=source.dims,
            life="gradient",
            of=source.name,
            own_dtype=True,
            optional=True,
            loops=gradient.loops,
        )


def unique(arrays: Iterable[Array]) -> tuple[Array, ...]:
    """Each of some arrays once, in the order in which they are met."""
    return tuple(dict.fromkeys(arrays))
