"""The context of `fused_recurrent_backward_kernels.py` where statements are transposed: two kernels as source lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flagen.backends.text import tuple_of
from flagen.backends.torch_.common import equations
from flagen.backends.triton_.actions import ActionWriter
from flagen.backends.triton_.axes import Axes
from flagen.backends.triton_.describe import listed
from flagen.backends.triton_.device import OF_A_TOKEN
from flagen.backends.triton_.lines import names_in
from flagen.backends.triton_.printer import literal
from flagen.backends.triton_.reverse_config import config_lines, stages
from flagen.plan.backward_actions import Action, Kernel, Recall, Store, Take, Wait
from flagen.plan.free_names import final_name, free_name, initial_name
from flagen.plan.reverse_mode import Carried, ReversePlan
from flagen.plan.rows import values_in
from flagen.plan.schedule import Load
from flagen.plan.tiles import Size


@dataclass(frozen=True)
class Arrays:
    """What the arrays of a state are called: as it is before each segment, before each token of one, before each
    micro-step of a token, before and after a sequence, and the gradients of the last two."""

    segments: str
    tokens: str
    steps: str
    initial: str
    final_gradient: str
    initial_gradient: str


def arrays_of(plan: ReversePlan, state: str) -> Arrays:
    initial, final = initial_name(state, plan.names), final_name(state, plan.names)
    made = (f"{state}_segments", f"{state}_tokens", f"{state}_steps")
    segments, tokens, steps = (free_name(name, plan.names) for name in made)
    gradients = (free_name(f"d{name}", plan.names) for name in (final, initial))
    return Arrays(segments, tokens, steps, initial, *gradients)


@dataclass(frozen=True)
class StateCode:
    """The source around a state and its gradient; `is_owned` is empty where every program has a part of its own."""

    name: str
    initial: str
    start: str
    load: str
    recall_segment: str
    is_owned: str
    store_segment: str
    store_token: str
    gradient: str
    final_gradient: str
    zeros: str
    load_gradient: str
    initial_gradient: str
    store_gradient: str


def reverse_kernels_context(plan: ReversePlan) -> Mapping[str, object]:
    """Every value `triton/reverse_kernels.py.j2` uses."""
    writers = {name: ReverseKernel(plan, name) for name in ("states", "gradients")}
    return {
        "name": plan.forward.spec.name,
        "sizes": plan.forward.order,
        "device": OF_A_TOKEN,
        "config": list(config_lines(plan)),
        "kernels": {name: writer.context() for name, writer in writers.items()},
        "stages": stages(plan),
    }


class ReverseKernel(ActionWriter):
    """Writes one of the kernels; `gradients` walks forward as `states` does."""

    def __init__(self, plan: ReversePlan, name: str) -> None:
        spec, self.split = plan.forward.spec, plan.forward.split
        axes = Axes(plan.forward.order, plan.names)
        super().__init__(spec, axes, plan.output_gradient, "state_row", blocked=self.split is not None)
        self.plan, self.name = plan, name
        self.goes_back = name == "gradients"
        own: Kernel = getattr(plan, name)
        self.kernel = Kernel(own.once, (*plan.states.token, *own.token), own.after) if self.goes_back else own
        self.own = own

    @property
    def title(self) -> str:
        return f"fused_recurrent_{self.spec.name}_{self.name}_kernel"

    def context(self) -> Mapping[str, object]:
        """What the template uses of this kernel."""
        return {
            "title": self.title,
            "docs": self._docs(),
            "parameters": self.parameters(),
            "program": list(self._program()),
            "axes": list(self._axis_lines()),
            "once": list(self.lines(self.own.once)),
            "walk": list(self.lines(self.plan.states.token)),
            "token": list(self.lines(self.own.token)),
            "after": list(self.lines(self.own.after)),
            "states": [self._code(carried) for carried in self.plan.carried],
        }

    def every_line(self) -> list[str]:
        return list(self.lines((*self.kernel.once, *self.kernel.token, *self.kernel.after)))

    # ------------------------------------------------------------------------------------------------------ parameters

    def pointers(self) -> list[str]:
        """What the kernel reads and writes: tensors of the call, states, their gradients, offsets, gradients."""
        actions = list(self.kernel.actions())
        arrays = [arrays_of(self.plan, carried.name) for carried in self.plan.carried]
        found = [action.source.name for action in actions if isinstance(action, Load)]
        found += [action.vector.name for action in actions if isinstance(action, Take)]
        if not self.goes_back:
            found += [each.initial for each in arrays]
        found += [each.segments for each in arrays]
        if self.goes_back:
            found += [each.tokens for each in arrays]
            found += [arrays_of(self.plan, name).steps for name in sorted(self.plan.stored_by_step)]
            found += [each.final_gradient for each in arrays]
            found += [each.initial_gradient for each in arrays]
        found += ["cu_seqlens", "first_segment"]
        if self.goes_back:
            found += [gradient.called for gradient in self.plan.given]
        return list(dict.fromkeys(found))

    def numbers(self) -> list[str]:
        """The Python numbers among the params that expressions read."""
        read = {leaf.name for tile in self.kernel.tiles() for leaf in values_in(tile)}
        return [param.name for param in self.spec.params if not param.is_tensor and param.name in read]

    def sizes(self) -> list[str]:
        """What the kernel is compiled for, beside its blocks."""
        symbol = "" if self.spec.steps is None else self.spec.steps.symbol
        named = any(isinstance(tile, Size) and tile.name == symbol for tile in self.kernel.tiles())
        steps = [symbol] if named or symbol in names_in(*self.every_line()) else []
        return [*steps, *(["H"] if self.kernel.needs_key_heads else []), "HV", *self.spec.dims]

    def parameters(self) -> list[str]:
        constants = (*self.sizes(), *(f"BLOCK_{dim}" for dim in self.spec.dims))
        pointers = (f"{name}_ptr" for name in self.pointers())
        return [*pointers, *self.numbers(), "T", "SEGMENT", *(f"{name}: tl.constexpr" for name in constants)]

    # ----------------------------------------------------------------------------------------------------------- lines

    def _program(self) -> Iterator[str]:
        """Which sequence, head and block a program has."""
        yield "program = tl.program_id(0)"
        if self.split is None:
            yield "value_head = program % HV"
            yield "sequence = (program // HV).to(tl.int64)"
        else:
            yield f"blocks = tl.cdiv({self.split.dim}, BLOCK_{self.split.dim})"
            yield "block = program % blocks"
            yield "value_head = program // blocks % HV"
            yield "sequence = (program // (blocks * HV)).to(tl.int64)"
        if self.kernel.loads_key_heads:
            yield "key_head = value_head // (HV // H)"
        if self.kernel.reads_head:
            yield "head = value_head.to(tl.float32)"

    def _axis_lines(self) -> Iterator[str]:
        masks = (self.axes.mask(dim) for state in self.spec.states for dim in state.dims)
        used = {*names_in(*self.every_line()), *masks}
        for dim in self.plan.forward.order:
            if self.axes.mask(dim) not in used:
                continue
            start = f"block * BLOCK_{dim} + " if self.split is not None and dim == self.split.dim else ""
            yield f"{self.axes.index(dim)} = {start}tl.arange(0, BLOCK_{dim})"
            yield f"{self.axes.mask(dim)} = {self.axes.index(dim)} < {dim}"

    def other(self, action: Action) -> Iterator[str]:
        match action:
            case Store(state, called, per, loop):
                yield self._put(self._array(state, per), self._own_row(state, per, loop), state, called)
            case Recall(state, called, per, loop):
                row = self._own_row(state, per, loop, backwards=True)
                yield f"{called} = {self._got(self._array(state, per), row, state)}"
            case Wait():
                yield "tl.debug_barrier()"
            case _:
                yield from super().other(action)

    # ---------------------------------------------------------------------------------------------------------- states

    def _code(self, carried: Carried) -> StateCode:
        state = carried.state
        arrays = arrays_of(self.plan, state.name)
        blocks = tuple_of(f"BLOCK_{dim}" for dim in self.axes.sorted(state.dims))
        # Of what all blocks have, each has a share of the gradient; that of the last state comes in once.
        row = self.share("state_row") if carried.shared else "state_row"
        gradient = self.loaded(carried.gradient, "state_row", state.dims).partition(" = ")[2]
        gradient = gradient.replace(f"{carried.gradient}_ptr", f"{arrays.final_gradient}_ptr", 1)
        stored = f"{carried.gradient}.to({arrays.initial_gradient}_ptr.dtype.element_ty)"
        return StateCode(
            name=state.name,
            initial=f"{arrays.initial}_ptr",
            start=f"tl.full({blocks}, {literal(state.init).text}, tl.float32)",
            load=f"{self._got(arrays.initial, 'state_row', state.name)}.to(tl.float32)",
            recall_segment=self._got(arrays.segments, "segment_row", state.name),
            is_owned="block == 0" if carried.shared else "",
            store_segment=self._put(arrays.segments, "segment_row", state.name, state.name),
            store_token=self._put(arrays.tokens, self._own_row(state.name, "token"), state.name, state.name),
            gradient=carried.gradient,
            final_gradient=f"{arrays.final_gradient}_ptr",
            zeros=self.zeros(state.dims),
            load_gradient=f"tl.where(block == 0, {gradient}, 0.0)" if carried.shared else gradient,
            initial_gradient=f"{arrays.initial_gradient}_ptr",
            store_gradient=self.stored(f"{arrays.initial_gradient}_ptr", row, state.dims, stored),
        )

    def _array(self, state: str, per: str) -> str:
        arrays = arrays_of(self.plan, state)
        return arrays.steps if per == "step" else arrays.tokens

    def _own_row(self, state: str, per: str, loop: int = 0, *, backwards: bool = False) -> str:
        """The row of a state in what a program keeps for itself; steps are counted `backwards` where they run so."""
        (carried,) = (each for each in self.plan.carried if each.name == state)
        program = self.share("state_row") if carried.shared else "state_row"
        program = program if program.isidentifier() else f"({program})"
        if per == "token":
            return f"{program} * SEGMENT + token - segment_start"
        assert self.spec.steps is not None
        n = self.spec.steps.symbol
        if self.plan.loops > 1:
            program = f"({program} * {self.plan.loops} + {loop})"
        return f"{program} * {n} + {f'({n} - 1 - micro_step)' if backwards else 'micro_step'}"

    def _put(self, array: str, row: str, state: str, value: str) -> str:
        return self.stored(f"{array}_ptr", row, self._dims(state), value)

    def _got(self, array: str, row: str, state: str) -> str:
        (decl,) = (declared for declared in self.spec.states if declared.name == state)
        mask = self.axes.within(decl.dims)
        padded = f", mask={mask}, other={literal(decl.init).text}" if mask else ""
        return f"tl.load({array}_ptr + {self.axes.address(row, decl.dims)}{padded})"

    def _dims(self, state: str) -> tuple[str, ...]:
        return next(declared.dims for declared in self.spec.states if declared.name == state)

    # ------------------------------------------------------------------------------------------------------------ docs

    def _docs(self) -> Mapping[str, object]:
        return {"title": _TITLE[self.name], "equations": equations(self.spec), "text": self._text()}

    def _text(self) -> str:
        states = listed(state.name for state in self.spec.states)
        if self.split is None:
            owned = f"A program owns {states} of one head of one sequence"
        else:
            cut = listed(state.name for state in self.spec.states if self.split.dim in state.dims)
            whole = listed(state.name for state in self.spec.states if self.split.dim not in state.dims)
            dim = self.split.dim
            owned = f"A program owns BLOCK_{dim} indices of {dim} of {cut}, of one head of one sequence"
            owned += f", and computes the whole of {whole}" if whole else ""
        return f"{owned}{_TEXT[self.name]}"


_TITLE = {
    "states": "Walk one sequence of one value head from its first token to its last but one segment.",
    "gradients": "Walk one sequence of one value head back, segment by segment, with the gradient of the state.",
}

_TEXT = {
    "states": "; it stores what it owns as it is before each segment of SEGMENT tokens.",
    "gradients": (
        ". It walks each segment forward first and stores what it owns before each token, for itself. Going back it"
        " evaluates the statements of a token once more, and takes the gradient of what each has made to what that was"
        " made of, the last one first. A gradient of what other programs read, too, is a share of a sum; one whose"
        " pointer is None is not stored."
    ),
}
