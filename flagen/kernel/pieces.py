"""Lowers the plans of mini-batches: a kernel that walks a sequence piece by piece, and one that walks back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from flagen.kernel import scan
from flagen.kernel.ir import Add, Array, Let, Loop, Program, Statement, Store
from flagen.kernel.passes import live
from flagen.kernel.recurrent import initial_array
from flagen.plan.free_names import initial_name
from flagen.plan.pieces import Carried, PieceBackwardPlan, PieceKernelPlan
from flagen.plan.rows import TOKEN, WRITTEN
from flagen.plan.tiles import Dot, MatMul, Tile, rebuild
from flagen.spec.model import State


def piece_forward(plan: PieceKernelPlan, backward: PieceBackwardPlan) -> Program:
    """The kernel of `chunk_<name>`, which keeps what that of its gradients asks for."""
    return Program(f"chunk_{plan.spec.name}", (Forward(plan).kernel(backward.kept),))


def piece_backward(plan: PieceBackwardPlan) -> Program:
    """The kernel of `chunk_backward_<name>`."""
    return Program(f"chunk_backward_{plan.spec.name}", (Backward(plan).kernel(),))


class Forward(scan.Forward):
    """The kernel of the results: it walks the pieces of a sequence."""

    plan: PieceKernelPlan

    def statement(self, action: scan.Action) -> Iterator[Statement]:
        yield from map(_multiplied, super().statement(action))

    def sizes(self) -> tuple[str, ...]:
        return _sizes(self.plan)

    def chunk(self) -> Iterable[Statement]:
        body = (*super().chunk(), *(self.leave(carried) for carried in self.plan.carried))
        return live(body, [name for _, name in self.plan.first])

    def leave(self, carried: Carried) -> Let:
        """What a state is after a piece is what it is before the next one."""
        return Let(carried.before, self.local(carried.after, carried.state.dims))

    def loop(self, chunk: tuple[Statement, ...]) -> Loop:
        return Loop("chunk", chunk, aligned=self.first[self.plan.form.first.source])


class Backward(scan.Backward):
    """The kernel of the gradients: it walks them from the last to the first."""

    back: PieceBackwardPlan

    def statement(self, action: scan.Action) -> Iterator[Statement]:
        yield from map(_multiplied, super().statement(action))

    def sizes(self) -> tuple[str, ...]:
        return _sizes(self.back.forward)

    @property
    def handed_on(self) -> list[tuple[State, str]]:
        found = super().handed_on + [(each.state, each.gradient) for each in self.back.forward.carried]
        return sorted(found, key=lambda each: self.spec.states.index(each[0]))

    def loop(self, chunk: tuple[Statement, ...]) -> Loop:
        return Loop("chunk", chunk, reverse=True, aligned=self.first[self._count.name])

    @property
    def _count(self) -> State:
        """The state that counts tokens."""
        source = self.back.forward.form.first.source
        return next(state for state in self.spec.states if state.name == source)

    def starts(self) -> tuple[Statement, ...]:
        """How many tokens there were before the first one: where pieces begin follows from that."""
        return (self.start(self._count, self._count_initial),)

    @property
    def begin(self) -> tuple[Array, ...]:
        return (*super().begin, self._count_initial)

    @property
    def _count_initial(self) -> Array:
        return initial_array(self._count, initial_name(self._count.name, self.names))


def _sizes(plan: PieceKernelPlan) -> tuple[str, ...]:
    dims = (dim for dim in plan.order[1:] if dim != WRITTEN)
    return (*dims, "CHUNK", "LENGTH", "PRECISION", "TURNED")


def _multiplied(statement: Statement) -> Statement:
    """`statement` with its products of matrices on tensor cores."""
    match statement:
        case Let(_, value) | Add(_, value) | Store(_, value):
            return replace(statement, value=_on_tensor_cores(value))
    return statement


def _on_tensor_cores(tile: Tile) -> Tile:
    tile = rebuild(tile, _on_tensor_cores)
    if not isinstance(tile, MatMul):
        return tile
    row, column = tile.dims
    few = row in (TOKEN, WRITTEN) and column not in (TOKEN, WRITTEN)
    return Dot(tile.left, tile.right, tile.dim, None, tile.dims, few_rows=few)
