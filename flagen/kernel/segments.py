"""Lowers the backward of a recurrent operator that has a normal form: four kernels, two of them segment by segment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flagen.kernel.backward import FIRST_SEGMENT, SEGMENT_SEQUENCE, Lowering, unique
from flagen.kernel.ir import (
    Array,
    Choose,
    Fill,
    Given,
    If,
    Kernel,
    LastToken,
    Let,
    Life,
    Load,
    Loop,
    Note,
    Program,
    Row,
    Run,
    Statement,
    Store,
    access,
    accesses_in,
)
from flagen.kernel.passes import numbers_read, sizes_read
from flagen.kernel.recurrent import CU_SEQLENS, FETCHED, STAGES, initial_array, tensors_of
from flagen.plan import backward_actions as actions
from flagen.plan.backward_actions import Action
from flagen.plan.free_names import free_name, initial_name
from flagen.plan.fused_backward import FusedBackwardPlan
from flagen.plan.tiles import Arithmetic


class StateArrays:
    """The arrays of the state and of its gradient: those of a call, and what kernels leave for one another."""

    def __init__(self, plan: FusedBackwardPlan) -> None:
        (state,) = plan.forward.spec.states

        def array(name: str, run: Run, life: Life = "scratch") -> Array:
            of_call = life != "scratch"
            of = state.name if of_call else ""
            free = free_name(name, plan.names)
            return Array(free, (run, "head"), state.dims, life, of, own_dtype=of_call, optional=of_call)

        self.initial = initial_array(state, initial_name(state.name, plan.names))
        self.states = array("states", "segment")
        self.state_gradients = array("state_gradients", "segment")
        self.final_gradient = array("final_gradient", "sequence", "cotangent")
        self.initial_gradient = array("initial_gradient", "sequence", "gradient")


def segment_backward(plan: FusedBackwardPlan) -> Program:
    """The kernels of `fused_recurrent_backward_<name>`: `states`, `reverse`, `reads` and `gradients`."""
    lowering = _Lowering(plan)
    kernels = (lowering.states(), lowering.reverse(), lowering.reads(), lowering.gradients())
    return Program(f"fused_recurrent_{plan.forward.spec.name}", kernels)


class _Lowering(Lowering):
    def __init__(self, plan: FusedBackwardPlan) -> None:
        spec = plan.forward.spec
        super().__init__(spec, spec.axes, plan.output_gradient, ("segment", "head"), blocked=not plan.whole_values)
        self.plan, self.arrays = plan, StateArrays(plan)
        (self.state,) = spec.states
        self.S, self.dS = self.local(plan.state, self.state.dims), self.local(plan.state_gradient, self.state.dims)

    def states(self) -> Kernel:
        """Walks forward: the state before each segment."""
        own, arrays, S = self.plan.states, self.arrays, self.plan.state
        init = self.state.init
        start = Fill(S, self.state.dims) if init == 0 else Fill(S, self.state.dims, init, ends=True)
        tokens = Loop("token", tuple(self.statements(own.token)), stages=STAGES, note=FETCHED)
        body = (
            Note(),
            Row("state_row", ("sequence", "head")),
            If((Given(arrays.initial, False),), (start,), (Load(S, access(arrays.initial)),)),
            Note(),
            Loop("segment", (Store(access(arrays.states), self.S), tokens)),
        )
        return self._kernel("states", own, body, (arrays.initial, arrays.states))

    def reverse(self) -> Kernel:
        """Walks back: the gradient of the state after each segment."""
        own, arrays, dS = self.plan.reverse, self.arrays, self.plan.state_gradient
        given = Given(arrays.final_gradient, False)
        tokens = Loop("token", tuple(self.statements(own.token)), reverse=True, stages=STAGES)
        body = (
            Note(),
            Row("state_row", ("sequence", "head")),
            If((given,), (Fill(dS, self.state.dims),), (Load(dS, access(arrays.final_gradient)),)),
            Note(),
            Loop("segment", (Store(access(arrays.state_gradients), self.dS), tokens), reverse=True),
            Note(),
            If((Given(arrays.initial_gradient),), (Store(access(arrays.initial_gradient), self.dS),)),
        )
        states = (arrays.state_gradients, arrays.final_gradient, arrays.initial_gradient)
        return self._kernel("reverse", own, body, states)

    def reads(self) -> Kernel:
        """Inside of a segment, forward: the gradients of what reads the state."""
        return self._inside("reads", self.plan.reads, self.plan.state, self.arrays.states, reverse=False)

    def gradients(self) -> Kernel:
        """Inside of a segment, backward: those of what is written, and of what a caller passed."""
        array = self.arrays.state_gradients
        return self._inside("gradients", self.plan.gradients, self.plan.state_gradient, array, reverse=True)

    def _inside(self, name: str, own: actions.Kernel, tile: str, array: Array, *, reverse: bool) -> Kernel:
        keep = [] if own.kept is None else [Let(own.kept[0], self.local(own.kept[1], self.state.dims))]
        tokens = Loop("token", tuple(self.statements(own.token)), reverse=reverse, stages=STAGES)
        body = (
            Note(),
            Load(tile, access(array)),
            *keep,
            Note(),
            tokens,
            Note(),
            *self.statements(own.after),
        )
        return self._kernel(name, own, body, (self.arrays.states, self.arrays.state_gradients))

    def other(self, action: Action) -> Iterator[Statement]:
        match action:
            case actions.AtEnd(body):
                gradient = Load(self.plan.state_gradient, access(self.arrays.state_gradients))
                yield If((LastToken(),), (gradient, *self.statements(body)))
            case actions.ButAtEnd(target, value):
                less = Arithmetic("-", self.local(target, value.dims), value, value.dims)
                yield Choose(LastToken(), target, less)
            case _:
                yield from super().other(action)

    def _kernel(self, name: str, own: actions.Kernel, body: Sequence[Statement], states: Sequence[Array]) -> Kernel:
        """A kernel with its parameters: tensors of the call, vectors, states, where sequences begin, gradients."""
        every = (*self.statements(own.once), *body)
        touched = unique(found.array for found in accesses_in(every))
        gradients = [array for array in touched if array.life == "gradient" and array not in states]
        tensors = [array for array in touched if array in tensors_of(self.spec)]
        vectors = [array for array in touched if array not in (*tensors, *gradients, *states)]
        run: Run = "sequence" if name in ("states", "reverse") else "segment"
        begins = (CU_SEQLENS, *([SEGMENT_SEQUENCE] if run == "segment" else []), FIRST_SEGMENT)
        return Kernel(
            name=name,
            run=run,
            block_of=self.plan.value if self.blocked else None,
            order=self.order,
            arrays=(*tensors, *vectors, *(array for array in states if array in touched), *begins, *gradients),
            numbers=numbers_read(every, self.spec),
            lengths=("T",),
            sizes=(*sizes_read(every, self.spec), *self.order, "SEGMENT"),
            names=self.plan.names,
            body=every,
        )
