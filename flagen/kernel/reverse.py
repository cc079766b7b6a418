"""Lowers the backward of a recurrent operator by its own statements: a kernel walks forward, another goes back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flagen.kernel.backward import FIRST_SEGMENT, Lowering, unique
from flagen.kernel.ir import (
    Array,
    Barrier,
    Fill,
    FirstBlock,
    Given,
    If,
    Kernel,
    Life,
    Load,
    Loop,
    Note,
    Program,
    Row,
    Space,
    Statement,
    Store,
    access,
    accesses_in,
)
from flagen.kernel.passes import numbers_read, sizes_read
from flagen.kernel.recurrent import CU_SEQLENS, STAGES, initial_array, tensors_of
from flagen.plan import backward_actions as actions
from flagen.plan.backward_actions import Action
from flagen.plan.free_names import final_name, free_name, initial_name
from flagen.plan.reverse_mode import Carried, ReversePlan


class StateArrays:
    """The arrays of a state: as it is before each segment, before each token of one, before each micro-step of a token,
    before and after a sequence, and the gradients of the last two."""

    def __init__(self, plan: ReversePlan, carried: Carried) -> None:
        state, names = carried.state, plan.names
        own: tuple[Space, ...] = ("sequence", "head", *(("block",) if carried.shared else ()))
        loops: tuple[Space, ...] = ("loop",) if plan.loops > 1 else ()
        initial, final = initial_name(state.name, names), final_name(state.name, names)

        def array(name: str, *spaces: Space, life: Life = "scratch") -> Array:
            of_call = life != "scratch"
            of, free = state.name if of_call else "", free_name(name, names)
            return Array(free, spaces, state.dims, life, of, own_dtype=of_call, optional=of_call, loops=plan.loops)

        self.initial = initial_array(state, initial)
        self.segments = array(f"{state.name}_segments", "segment", "head")
        self.tokens = array(f"{state.name}_tokens", *own, "place")
        self.steps = array(f"{state.name}_steps", *own, *loops, "micro_step")
        self.final_gradient = array(f"d{final}", "sequence", "head", life="cotangent")
        self.initial_gradient = array(f"d{initial}", *own, life="gradient")

    def of(self, per: str) -> Array:
        return self.steps if per == "step" else self.tokens


_BUT_LAST = (
    "Nobody asks for what the last segment leaves. In stages: the rows of the next tokens are fetched meanwhile."
)


def reverse_backward(plan: ReversePlan) -> Program:
    """The kernels of `fused_recurrent_backward_<name>`: `states` and `gradients`."""
    lowering = _Lowering(plan)
    return Program(f"fused_recurrent_{plan.forward.spec.name}", (lowering.states(), lowering.gradients()))


class _Lowering(Lowering):
    def __init__(self, plan: ReversePlan) -> None:
        spec, split = plan.forward.spec, plan.forward.split
        super().__init__(
            spec, plan.forward.order, plan.output_gradient, ("sequence", "head"), blocked=split is not None
        )
        self.plan, self.split = plan, split
        self.arrays = {carried.name: StateArrays(plan, carried) for carried in plan.carried}
        self.inits = {state.name: state.init for state in spec.states}

    def states(self) -> Kernel:
        """Walks forward: every state before each segment."""
        own, carried = self.plan.states, self.plan.carried
        tokens = Loop("token", tuple(self.statements(own.token)), stages=STAGES, but_last=True, note=_BUT_LAST)
        body = (
            *self.statements(own.once),
            Note(),
            Row("state_row", ("sequence", "head")),
            *map(self._start, carried),
            Note(),
            Loop("segment", (*map(self._store_segment, carried), tokens)),
        )
        states = [each.initial for each in self._every()]
        states += [each.segments for each in self._every()]
        return self._kernel("states", body, states)

    def gradients(self) -> Kernel:
        """Segment by segment, the last one first: forward with the states, then back with their gradients."""
        own, walk, carried = self.plan.gradients, self.plan.states.token, self.plan.carried
        stored = Barrier("Every thread has stored its part of the states, and each may load any.")
        taken = Barrier("The next segment's states go where these were.")
        forward = (*map(self._store_token, carried), *self.statements(walk))
        segment = (
            *map(self._recall_segment, carried),
            Loop("token", forward, stages=STAGES),
            stored,
            Loop("token", tuple(self.statements(own.token)), reverse=True, stages=stages_back(self.plan)),
            taken,
        )
        body = (
            *self.statements(own.once),
            Note(),
            Row("state_row", ("sequence", "head")),
            *map(self._start_gradient, carried),
            Note(),
            Loop("segment", segment, reverse=True),
            Note(),
            *map(self._store_gradient, carried),
            *self.statements(own.after),
        )
        states = [each.segments for each in self._every()]
        states += [each.tokens for each in self._every()]
        states += [self.arrays[name].steps for name in sorted(self.plan.stored_by_step)]
        states += [each.final_gradient for each in self._every()]
        states += [each.initial_gradient for each in self._every()]
        return self._kernel("gradients", body, states)

    # ---------------------------------------------------------------------------------------------------------- states

    def _every(self) -> tuple[StateArrays, ...]:
        return tuple(self.arrays.values())

    def _load(self, state: str, called: str, array: Array) -> Load:
        return Load(called, access(array), fill=self.inits[state])

    def _start(self, carried: Carried) -> Statement:
        state, initial = carried.state, self.arrays[carried.name].initial
        start = Fill(state.name, state.dims, state.init)
        return If((Given(initial, False),), (start,), (self._load(state.name, state.name, initial),))

    def _store_segment(self, carried: Carried) -> Statement:
        array = self.arrays[carried.name].segments
        store = Store(access(array), self.local(carried.name, carried.state.dims))
        return If((FirstBlock(),), (store,)) if carried.shared else store

    def _recall_segment(self, carried: Carried) -> Statement:
        return self._load(carried.name, carried.name, self.arrays[carried.name].segments)

    def _store_token(self, carried: Carried) -> Statement:
        return Store(access(self.arrays[carried.name].tokens), self.local(carried.name, carried.state.dims))

    def _start_gradient(self, carried: Carried) -> Statement:
        """Of a state that all blocks have, each has a share of the gradient; that of the last state comes in once."""
        final = self.arrays[carried.name].final_gradient
        given = Load(carried.gradient, access(final), once=carried.shared)
        return If((Given(final, False),), (Fill(carried.gradient, carried.state.dims),), (given,))

    def _store_gradient(self, carried: Carried) -> Statement:
        array = self.arrays[carried.name].initial_gradient
        return If((Given(array),), (Store(access(array), self.local(carried.gradient, carried.state.dims)),))

    def other(self, action: Action) -> Iterator[Statement]:
        match action:
            case actions.Store(state, called, per, loop):
                array = self.arrays[state].of(per)
                yield Store(access(array, loop=loop), self.local(called, array.dims))
            case actions.Recall(state, called, per, loop):
                yield Load(called, access(self.arrays[state].of(per), loop=loop), fill=self.inits[state])
            case actions.Wait():
                yield Barrier()
            case _:
                yield from super().other(action)

    def _kernel(self, name: str, body: Sequence[Statement], states: Sequence[Array]) -> Kernel:
        """A kernel with its parameters: tensors of the call, states, where sequences begin, gradients."""
        touched = unique(found.array for found in accesses_in(body))
        tensors = [array for array in touched if array in tensors_of(self.spec)]
        coming = [array for array in touched if array == self.vector(self.output_gradient)]
        given = tuple(map(self.gradient, self.plan.given)) if name == "gradients" else ()
        return Kernel(
            name=name,
            run="sequence",
            block_of=None if self.split is None else self.split.dim,
            order=self.order,
            arrays=(*tensors, *coming, *states, CU_SEQLENS, FIRST_SEGMENT, *given),
            numbers=numbers_read(body, self.spec),
            lengths=("T", "SEGMENT"),
            sizes=(*sizes_read(body, self.spec), *self.spec.axes),
            names=self.plan.names,
            body=tuple(body),
        )


# ------------------------------------------------------------------------------------------------------------ schedule


def stages_back(plan: ReversePlan) -> int:
    """How many tokens are under way at once, going back: loads of the next one under the arithmetic of this one.

    A state that is fetched ahead takes shared memory: none is left for that where every program has all of one, nor
    where there are matrix products. With micro-steps one loop stores states and loads them: what it fetched could be
    old.
    """
    split = plan.forward.split
    whole = split is None or any(split.dim not in dims for dims in plan.held_tiles)
    return 1 if whole or plan.matrix_dims or plan.stored_by_step else 2
