"""Lowers the kernels that have the state where decays are of each key, between what is prepared and the output.

Fused, one kernel walks over the chunks of a sequence and puts out what its tokens read. Split, a walk leaves the state
before each chunk (and U, where rows erase) in memory, and a kernel of its own puts out all chunks at once: more bytes,
but less to do one after the other, where there are too few sequences and heads to fill a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from flagen.diagnostics import InternalError
from flagen.kernel import walks
from flagen.kernel.ir import (
    Access,
    Array,
    Given,
    If,
    Kernel,
    Let,
    Life,
    Load,
    Loop,
    Note,
    Operands,
    Row,
    Space,
    Statement,
    Store,
)
from flagen.kernel.key_rows import SQUARE, prepared
from flagen.kernel.parameters import assembled
from flagen.kernel.passes import arrays_named, live, rounds
from flagen.kernel.rows import PACKING, RowLowering, local, rounded, times
from flagen.kernel.state_walk import Form, end_of, put, start_of
from flagen.kernel.walk import WalkLowering
from flagen.plan.backward_levels import OUTPUT
from flagen.plan.free_names import final_of, initial_of
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.row_planner import RowLoad
from flagen.plan.rows import TOKEN
from flagen.plan.tiles import Dot, Tile, Value


def walked(plan: KeyKernelPlan, *, life: Life = "scratch", optional: bool = False) -> tuple[Array, ...]:
    """The state before each chunk, and U, which the outputs need beside it where rows erase and nothing is folded."""
    left = {"states": (plan.value, plan.key)}
    if plan.delta is not None and not plan.folded:
        left["U"] = (plan.value, TOKEN)
    spaces: tuple[Space, ...] = ("counted_chunk", "head")
    return tuple(Array(name, spaces, dims, life, name, optional=optional) for name, dims in left.items())


class Walk(RowLowering[KeyKernelPlan]):
    """A kernel of `form` that has the state; one that `keeps` can leave behind, besides, what the backward would have
    to compute again."""

    def __init__(self, plan: KeyKernelPlan, form: Form, *, keeps: bool = False) -> None:
        super().__init__(plan, plan.walk)
        self.form, self.keeps = form, keeps
        self.key, self.value = plan.key, plan.value
        self.state = self.name(plan.state.name)
        self.over_state, self.over_updates = (self.value, self.key), (self.value, TOKEN)
        # Right reads have no other walk: every call leaves what the backward takes.
        kept = form is Form.FUSED or plan.right
        left = walked(plan, life="residual" if kept else "scratch", optional=form is Form.FUSED)
        self.left = {array.name: array for array in left}

    def raw(self, load: RowLoad) -> bool:
        """Only values are operands as they are."""
        vector = self.plan.vector("v")
        return isinstance(vector, Value) and vector.name == load.source.name

    def kernel(self) -> Kernel:
        spec, state, body = self.plan.spec, self.plan.state, self._with_dtype(tuple(self._body()))
        names = (array.name for array in (*PACKING, *prepared(self.plan), *self.left.values()))
        return assembled(
            self,
            body,
            name=self.form.value,
            run="chunk" if self.form is Form.OUTPUT else "sequence",
            dims=(self.key, self.value),
            tiles=("CHUNK", f"BLOCK_{self.key}", f"BLOCK_{self.value}", "PRECISION"),
            order=(initial_of(spec, state), *names, OUTPUT, final_of(spec, state)),
            block_of=self.value,
        )

    def _with_dtype(self, body: tuple[Statement, ...]) -> tuple[Statement, ...]:
        """What operands are rounded to: the dtype of what is prepared, or of states that are left."""
        if not rounds(body):
            return body
        named = arrays_named(body)
        operands = (*(array for array in prepared(self.plan) if array.own_dtype), self.left["states"])
        return (Operands(next(array for array in operands if array.name in named)), *body)

    def _body(self) -> Iterator[Statement]:
        once = tuple(self.once(*self.parts))
        if self.form is Form.OUTPUT:
            yield from live((*once, *self._chunk()), ())
            return
        turn = Loop("chunk", live(tuple(self._chunk()), (self.state,)))
        yield from live((*once, turn), (self.state,))[:-1]
        state = self.plan.state
        yield from (Note(), Row("state_start", ("sequence", "head"), state.dims), start_of(self, state), Note())
        yield from (turn, Note(), end_of(self, state))

    def _chunk(self) -> Iterator[Statement]:
        """The statements for one chunk; an empty line between the parts of its equations."""
        yield from (*self.loads(self.plan.walk), *map(self._prepared, prepared(self.plan)), *self.operands("v"), Note())
        if self.form is Form.OUTPUT:
            yield from (self._load_left(name) for name in self.left)
            yield from self.put_out()
            return
        yield Let("S_operand", rounded(local(self.state, self.over_state)))
        yield from self.leave("states")
        yield from self._solved()
        yield from self.leave("U")
        yield from self.put_out() if self.form is Form.FUSED else ()
        yield from self._equations.states(walks.next_states(self.plan.chunk.form.system))

    # ---------------------------------------------------------------------------------------------- from chunk to chunk

    def _prepared(self, array: Array) -> Statement:
        return Load(array.name, self._of(array), wide=False)

    def _of(self, array: Array) -> Access:
        return replace(self.of_chunk(array.name, array.dims), array=array)

    def _load_left(self, name: str) -> Statement:
        called = "S_operand" if name == "states" else "U_operand"
        return Load(called, self._of(self.left[name]), wide=False)

    def leave(self, name: str) -> Iterator[Statement]:
        """Store the state before the chunk, or U: for the outputs, or, fused, for a backward that asks for it."""
        if name not in self.left:
            return
        array = self.left[name]
        stored = Store(self._of(array), local("S_operand" if name == "states" else "U_operand", array.dims))
        if self.form is Form.STATES:
            yield stored
        elif self.keeps:
            yield If((Given(array),), (stored,))

    # ------------------------------------------------------------------------------------------------------- equations

    @cached_property
    def _equations(self) -> WalkLowering:
        given = {"S0": local("S_operand", self.over_state), "U": local("U_operand", self.over_updates)}
        placement = KeyPlacement(self, local(self.state, self.over_state), given)
        called = {"R": "R", "U": "U", "O0": "read", "S1": self.state}
        return WalkLowering(placement, called, self.value, self.row)

    def _solved(self) -> Iterator[Statement]:
        """U = (I - L)^{-1} (z + N v + S y); folded, what is read of S for it alone."""
        found = walks.solved(self.plan.chunk.form.system)
        if found is None:
            return
        if self.plan.folded:
            state, rows = local("S_operand", self.over_state), local("y_from_start", (TOKEN, self.key))
            yield Let("U_operand", rounded(Dot(state, rows, self.key, None, self.over_updates)))
            return
        yield from self._equations.solved(found)
        yield Let("U_operand", rounded(local("U", self.over_updates)))

    def put_out(self) -> Iterator[Statement]:
        """What tokens read, and put out."""
        read = walks.read(self.plan.chunk.form.system)
        yield from self._equations.sum(read.without("A0") if self.plan.folded else read)
        yield from put(self)


@dataclass(frozen=True)
class KeyPlacement:
    """Rows come decayed from the preparation, to the chunk's start or its end.

    given: what tiles over the values are called as operands.
    """

    kernel: RowLowering[KeyKernelPlan]
    state: Tile
    given: Mapping[str, Tile]

    @property
    def plan(self) -> KeyKernelPlan:
        return self.kernel.plan

    def tile(self, tensor: str) -> Tile | None:
        assert tensor == "z"
        delta = self.plan.delta
        return None if delta is None or delta.z is None else self.kernel.tile(delta.z, TOKEN)

    def values(self, tensor: str) -> Tile:
        return self.given.get(tensor) or self.kernel.operand(tensor)

    def wide(self, tensor: str) -> Tile:
        raise InternalError(f"rows that multiply {tensor} have their decays")

    def rows(self, tensor: str) -> Tile:
        apart = self.plan.delta is not None and not self.plan.folded
        matrices = {"N": "erased_writes", "A0": "scores", "B0": "write_scores" if apart else "scores"}
        prepared = {"y": "y_from_start", "q0": "q_from_start", "w": "w_to_end", "k": "k_to_end"}
        if tensor in matrices:
            return local(matrices[tensor], SQUARE)
        return local(prepared[tensor], (TOKEN, self.plan.key))

    def factor(self, term: walks.Product) -> Tile | None:
        return None

    def whole(self, term: walks.Tile) -> Tile:
        return times(self.state, local("whole", (self.plan.key,))) if term.decay == "whole" else self.state
