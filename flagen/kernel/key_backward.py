"""Lowers the backward of chunk kernels for decays of each key: what comes before its last kernel, and the program.

The rows are prepared again, with nothing folded into them, or only scaled where the forward call hands its matrices on;
a walk forward stores the states, and one in reverse their gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

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
    Program,
    Row,
    Statement,
    Store,
)
from flagen.kernel.key_backward_rows import BackwardRows
from flagen.kernel.key_gradients import KeyGradients
from flagen.kernel.key_prepare import Prepare
from flagen.kernel.key_rows import prepared
from flagen.kernel.key_walks import KeyPlacement, Walk, walked
from flagen.kernel.parameters import assembled
from flagen.kernel.passes import live
from flagen.kernel.rows import CU_SEQLENS, FIRST_CHUNK, local, rounded
from flagen.kernel.state_walk import Form
from flagen.kernel.walk import WalkLowering
from flagen.plan.backward_levels import OUTPUT_GRADIENT, R_GRADIENT, READ_GRADIENT
from flagen.plan.key_backward import KeyBackwardPlan
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.rows import TOKEN
from flagen.plan.tiles import Value
from flagen.spec.model import Dims

STATE_GRADIENT = "S_gradient"
KEEPING = ("unfolded", "keeping")
"""The kernels of a call that keeps what is not folded, where the others fold."""


class Reverse(BackwardRows):
    """Walks the chunks backward with the gradient of the state, in the layout of the forward walks."""

    def __init__(self, plan: KeyBackwardPlan) -> None:
        super().__init__(plan, plan.forward, plan.reverse)

    def kernel(self) -> Kernel:
        given = (self.output_gradient, self.final_gradient, CU_SEQLENS, FIRST_CHUNK, *prepared(self.plan))
        left = (self.state_gradients, self.right_gradient, self.initial_gradient)
        return assembled(
            self,
            live(tuple(self._body()), ()),
            name="reverse",
            run="sequence",
            dims=(self.key, self.value),
            tiles=("CHUNK", f"BLOCK_{self.key}", f"BLOCK_{self.value}", "PRECISION"),
            order=(array.name for array in (*given, *left)),
            block_of=self.value,
        )

    def _body(self) -> Iterator[Statement]:
        final, initial = self.final_gradient, self.initial_gradient
        yield Operands(self.state_gradients)
        yield from self.once(*self.parts)
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
        yield from map(self.prepared_load, prepared(self.plan))
        yield Note()
        yield Let("S_operand", rounded(self._gradient))
        yield Store(self.chunk_access(self.state_gradients), local("S_operand", self._over_state))
        yield Let("read_operand", rounded(read))
        yield from self._solved()
        yield from self._equations.states(walks.states_before(self.plan.chunk.adjoint))

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


# ------------------------------------------------------------------------------------------- what is computed once more


class Scale(Prepare):
    """Scales the rows of all chunks, whose matrices are known."""

    def __init__(self, plan: KeyKernelPlan) -> None:
        super().__init__(plan)
        self.scores = ()

    def kernel(self) -> Kernel:
        """The kernel, which is not compiled for what only products of rows need."""
        kernel, products = super().kernel(), ("LEVELS", "LEAF_LEVELS", "PRECISION")
        return replace(kernel, name="scale", sizes=tuple(size for size in kernel.sizes if size not in products))

    def passes(self) -> Iterator[Statement]:
        yield from self.adding((), first=True)
        yield from (Note(), *self.of_block(self.ends()))


class Turned(Walk):
    """Reads from the left, if that is wanted, and, walking with the state, stores it and U."""

    def __init__(self, plan: KeyKernelPlan, form: Form) -> None:
        super().__init__(plan, form, keeps=True)
        self.left = {array.name: array for array in walked(plan, life="residual")}

    def leave(self, name: str) -> Iterator[Statement]:
        """There are always states and U to leave."""
        return (inner for statement in super().leave(name) if isinstance(statement, If) for inner in statement.then)

    def put_out(self) -> Iterator[Statement]:
        for statement in super().put_out():
            match statement:
                case Store(target):
                    yield If((Given(target.array),), (statement,))
                case _:
                    yield statement


def with_keeping(program: Program, plan: KeyBackwardPlan) -> Program:
    """The kernels of a call, and beside them those that keep what its backward takes, where the others fold."""
    if not plan.prepares:
        return program
    kernels = (Prepare(plan.forward).kernel(), Walk(plan.forward, Form.FUSED, keeps=True).kernel())
    keeping = (replace(kernel, name=name) for kernel, name in zip(kernels, KEEPING, strict=True))
    return replace(program, kernels=(*program.kernels, *keeping), ways=(*program.ways, KEEPING))


def own_kernels(plan: KeyBackwardPlan) -> tuple[Kernel, ...]:
    """What prepares the chunks and walks with the state: the forward kernels, where they do nothing else; where they
    fold, or read from the right, kernels of the backward's own; then what does a part of it, where the rest was kept.
    """
    forward = plan.forward
    prepare, states = Prepare(forward).kernel(), Walk(forward, Form.STATES).kernel()
    if plan.puts_out:
        walk = replace(Turned(forward, Form.FUSED).kernel(), name="turned_walk")
        output = Turned(forward, Form.OUTPUT).kernel()
        return replace(prepare, name="turned_prepare"), walk, replace(output, name="turned_output")
    if plan.prepares:
        prepare, states = replace(prepare, name=KEEPING[0]), replace(states, name="kept_states")
    return prepare, states, Scale(forward).kernel()


def key_chunk_backward(plan: KeyBackwardPlan) -> Program:
    """The kernels of `chunk_backward_<name>`, and how they run: with nothing kept; with the matrices of the chunks, so
    that only rows are scaled again; with the states and all else. A read that was turned is put out each time."""
    own, gradients = own_kernels(plan), (Reverse(plan).kernel(), KeyGradients(plan).kernel())
    first, walk, other = (kernel.name for kernel in own)
    last = tuple(kernel.name for kernel in gradients)
    ways = (
        ((first, walk, *last), (first, other, *last))
        if plan.puts_out
        else ((first, walk, *last), (other, walk, *last), last)
    )
    return Program(f"chunk_backward_{plan.forward.spec.name}", (*own, *gradients), ways)
