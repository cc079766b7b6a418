"""Lowers the backward of chunk kernels for decays of each key: what comes before its last kernel, and the program.

The rows are prepared again, with nothing folded into them, or only scaled where the forward call hands its matrices on;
a walk forward stores the states, and one in reverse their gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flagen.diagnostics import InternalError
from flagen.kernel import walks
from flagen.kernel.ir import (
    Access,
    Array,
    Fill,
    Given,
    If,
    Index,
    Kernel,
    Let,
    Life,
    Load,
    Loop,
    Note,
    Operands,
    Row,
    Statement,
    Store,
)
from flagen.kernel.key_rows import SQUARE, KeyRows, prepared
from flagen.kernel.passes import live, numbers_read, sizes_read
from flagen.kernel.rows import CU_SEQLENS, FIRST_CHUNK, local, rounded, times, used_in
from flagen.kernel.walk import WalkLowering
from flagen.kernel.walks import Decay
from flagen.plan.backward_levels import OUTPUT_GRADIENT, R_GRADIENT, READ_GRADIENT
from flagen.plan.key_backward import KeyBackwardPlan
from flagen.plan.rows import TOKEN
from flagen.plan.tiles import Tile, Value
from flagen.spec.model import Dims

STATE_GRADIENT = "S_gradient"


class Reverse(KeyRows):
    """Walks the chunks backward with the gradient of the state, in the layout of the forward walks."""

    def __init__(self, plan: KeyBackwardPlan) -> None:
        super().__init__(plan.forward, plan.reverse)
        self.backward = plan

    def kernel(self) -> Kernel:
        body = live(tuple(self._body()), ())
        heads = tuple(name for name in sizes_read(body, self.plan.spec) if name in ("H", "HV"))
        return Kernel(
            name="reverse",
            run="sequence",
            block_of=self.value,
            order=self.order,
            arrays=used_in(self._arrays(), (*body, *_packed())),
            numbers=numbers_read(body, self.plan.spec),
            lengths=("T",),
            sizes=(*heads, self.key, self.value, "CHUNK", f"BLOCK_{self.key}", f"BLOCK_{self.value}", "PRECISION"),
            names=self.names,
            body=body,
        )

    def _body(self) -> Iterator[Statement]:
        final, initial = self.final_gradient, self.initial_gradient
        yield Operands(self.state_gradients)
        yield Note()
        yield Row("state_start", ("sequence", "head"), self.plan.state.dims)
        zero = Fill(STATE_GRADIENT, self._over_state)
        yield If((Given(final, False),), (zero,), (Load(STATE_GRADIENT, self._state_of(final), wide=True),))
        yield Note()
        yield Loop("chunk", tuple(self._chunk()), reverse=True, counted=True)
        yield Note()
        yield If((Given(initial),), (Store(self._state_of(initial), self._gradient),))

    def _chunk(self) -> Iterator[Statement]:
        """What is done with one chunk, from its end to its start."""
        read = local(READ_GRADIENT, (self.value, TOKEN))
        yield from self.loads(self.parts[0])
        yield Load(OUTPUT_GRADIENT, self.rows_of(self.output_gradient, TOKEN), wide=True)
        yield Let(READ_GRADIENT, self.tile(self.backward.walk_read, TOKEN))
        yield from self.prepared_loads()
        yield Note()
        yield Let("S_operand", rounded(self._gradient))
        yield Store(self.chunk_access(self.state_gradients), local("S_operand", self._over_state))
        yield Let("read_operand", rounded(read))
        yield from self._solved()
        yield from self._equations.sum(walks.state_before(self.plan.chunk.adjoint))

    def _solved(self) -> Iterator[Statement]:
        """dR = (I - L)^-T (A^T dread + w dS)."""
        found = walks.solved_back(self.plan.chunk.adjoint)
        if found is None:
            return
        of_updates, solution = found
        yield from self._equations.sum(of_updates)
        solved = self._equations.inverted(solution)
        yield Let(R_GRADIENT, rounded(solved.value))
        yield Store(self.chunk_access(self.right_gradient), local(R_GRADIENT, (self.value, TOKEN)))

    @property
    def _equations(self) -> WalkLowering:
        """The lowering of the equations of this walk."""
        rows = (self.value, TOKEN)
        given = {
            "dS1": local("S_operand", self._over_state),
            "dO0": local("read_operand", rows),
            "dR": local(R_GRADIENT, rows),
        }
        called = {"dU": "U_gradient", "dR": R_GRADIENT, "dS0": STATE_GRADIENT}
        return WalkLowering(KeyPlacement(self, self._gradient, given), called, self.value, TOKEN)

    @property
    def _over_state(self) -> Dims:
        return (self.value, self.key)

    @property
    def _gradient(self) -> Value:
        """The gradient of the state, as it is carried from chunk to chunk."""
        return local(STATE_GRADIENT, self._over_state)

    # ---------------------------------------------------------------------------------------------------------- arrays

    def _arrays(self) -> tuple[Array, ...]:
        """What it may take and leave, in the order of its parameters."""
        spec = self.plan.spec
        tensors = (*spec.inputs, *(param for param in spec.params if param.is_tensor))
        left = (self.state_gradients, self.right_gradient, self.initial_gradient)
        begin = (CU_SEQLENS, FIRST_CHUNK)
        return (
            *map(self.array, tensors),
            self.output_gradient,
            self.final_gradient,
            *begin,
            *prepared(self.plan),
            *left,
        )

    @property
    def output_gradient(self) -> Array:
        """The gradient of the output."""
        return Array("do", ("token", "head"), (self.value,), "cotangent", "o", own_dtype=True)

    @property
    def state_gradients(self) -> Array:
        """Those of the states after the chunks."""
        return Array("state_gradients", ("counted_chunk", "head"), self._over_state)

    @property
    def right_gradient(self) -> Array:
        """That of the right side of the triangular solve."""
        return Array(R_GRADIENT, ("counted_chunk", "head"), (self.value, TOKEN))

    @property
    def final_gradient(self) -> Array:
        """The gradient of the last state of a sequence."""
        return self._of_sequence("final_gradient", "cotangent")

    @property
    def initial_gradient(self) -> Array:
        """That of the first one."""
        return self._of_sequence("initial_gradient", "gradient")

    def _of_sequence(self, name: str, life: Life) -> Array:
        state = self.plan.state
        return Array(name, ("sequence", "head"), state.dims, life, state.name, own_dtype=True, optional=True)

    def _state_of(self, array: Array) -> Access:
        """The state of a sequence."""
        return Access(array, tuple(map(Index, array.spaces)), (self.key, self.value))


@dataclass(frozen=True)
class KeyPlacement:
    """Rows come decayed from the preparation, to the chunk's start or its end.

    given: what tiles over the values are called as operands.
    """

    kernel: KeyRows
    state: Tile
    given: Mapping[str, Tile]

    def tile(self, tensor: str) -> Tile | None:
        assert tensor == "z"
        delta = self.kernel.plan.delta
        return None if delta is None or delta.z is None else self.kernel.tile(delta.z, TOKEN)

    def values(self, tensor: str) -> Tile:
        return self.given.get(tensor) or self.kernel.operand(tensor)

    def wide(self, tensor: str) -> Tile:
        raise InternalError(f"rows that multiply {tensor} have their decays")

    def rows(self, tensor: str) -> Tile:
        plan = self.kernel.plan
        apart = plan.delta is not None and not plan.folded
        matrices = {"N": "erased_writes", "A0": "scores", "B0": "write_scores" if apart else "scores"}
        rows = {"y": "y_from_start", "q0": "q_from_start", "w": "w_to_end", "k": "k_to_end"}
        return local(matrices[tensor], SQUARE) if tensor in matrices else local(rows[tensor], (TOKEN, self.kernel.key))

    def factor(self, tensor: str, decay: Decay) -> Tile | None:
        return None

    def whole(self, decay: Decay) -> Tile:
        return times(self.state, local("whole", (self.kernel.key,))) if decay == "whole" else self.state


def _packed() -> tuple[Statement, ...]:
    return tuple(If((Given(array),), ()) for array in (CU_SEQLENS, FIRST_CHUNK))
