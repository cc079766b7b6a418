"""The context of `fused_recurrent_backward_kernels.py`: the four kernels of a backward plan as source lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flagen.backends.printed import SUM
from flagen.backends.text import tuple_of
from flagen.backends.triton_.actions import INDENT, ActionWriter
from flagen.backends.triton_.axes import Axes
from flagen.backends.triton_.device import OF_A_TOKEN
from flagen.backends.triton_.fused_backward_config import config_lines
from flagen.backends.triton_.fused_backward_describe import docs, row_lines
from flagen.backends.triton_.lines import names_in
from flagen.backends.triton_.printer import literal
from flagen.plan.backward_actions import (
    Action,
    Add,
    AtEnd,
    ButAtEnd,
    Give,
    Kernel,
    Leave,
    Steps,
    Take,
)
from flagen.plan.free_names import free_name, initial_name
from flagen.plan.fused_backward import FusedBackwardPlan
from flagen.plan.rows import values_in
from flagen.plan.schedule import Load, Set
from flagen.plan.tiles import Tile

WALKS, SEGMENTS = ("states", "reverse"), ("reads", "gradients")
"""The kernels that walk whole sequences, and those that have a program for each segment."""

ARRAYS = {
    "states": ("states",),
    "reverse": ("state_gradients", "final_gradient", "initial_gradient"),
    "reads": ("states", "state_gradients"),
    "gradients": ("state_gradients",),
}
"""The arrays of states that each kernel reads or writes."""


def backward_kernels_context(plan: FusedBackwardPlan) -> Mapping[str, object]:
    """Every value `triton/fused_recurrent_backward_kernels.py.j2` uses."""
    writers = {name: SegmentKernel(plan, name) for name in (*WALKS, *SEGMENTS)}
    contexts = {name: writer.context() for name, writer in writers.items()}
    return {
        "name": plan.forward.spec.name,
        "key": plan.key,
        "value": plan.value,
        "sizes": plan.forward.spec.dims,
        "device": OF_A_TOKEN,
        "config": list(config_lines(plan)),
        "kernels": contexts,
        "rows": row_lines(plan),
    }


class SegmentKernel(ActionWriter):
    """Writes one of the kernels."""

    def __init__(self, plan: FusedBackwardPlan, name: str) -> None:
        spec = plan.forward.spec
        axes = Axes(spec.dims, plan.names)
        super().__init__(spec, axes, plan.output_gradient, "segment_row", blocked=not plan.whole_values)
        self.plan, self.name = plan, name
        self.kernel: Kernel = getattr(plan, name)

    @property
    def title(self) -> str:
        return f"fused_recurrent_{self.spec.name}_{self.name}_kernel"

    def context(self) -> Mapping[str, object]:
        """What the template uses of this kernel."""
        (state,) = self.spec.states
        tile = plan_state(self.plan, self.name)
        return {
            "title": self.title,
            "docs": docs(self.plan, self.name),
            "parameters": self.parameters(),
            "program": list(self._program()),
            "axes": list(self._axis_lines()),
            "tile": tile,
            "kept": self.kernel.kept,
            "once": list(self.lines(self.kernel.once)),
            "token": list(self.lines(self.kernel.token)),
            "after": list(self.lines(self.kernel.after)),
            "initial": f"{initial_name(state.name, self.plan.names)}_ptr",
            "start": self._start(),
            "shape": self._shape(),
            "own": {name: f"{own_name(self.plan, name)}_ptr" for name in OWN},
            "state_mask": self.axes.within(state.dims),
            "state_address": self.axes.address("state_row", state.dims),
            "segment_address": self.axes.address("segment_row", state.dims),
        }

    def every_line(self) -> list[str]:
        return list(self.lines((*self.kernel.once, *self.kernel.token, *self.kernel.after)))

    # ------------------------------------------------------------------------------------------------------ parameters

    def pointers(self) -> list[str]:
        """What the kernel reads and writes: tensors of the call, vectors, states, offsets, gradients."""
        actions = list(self.kernel.actions())
        loaded = [action.source.name for action in actions if isinstance(action, Load)]
        vectors = [action.vector.name for action in actions if isinstance(action, Take | Leave)]
        given = [action.gradient.called for action in actions if isinstance(action, Give)]
        initial = [initial_name(self.spec.states[0].name, self.plan.names)] if self.name == "states" else []
        arrays = [own_name(self.plan, name) for name in ARRAYS[self.name]]
        if self.name == "reads" and not any(isinstance(action, AtEnd) for action in actions):
            arrays.remove(own_name(self.plan, "state_gradients"))
        offsets = ["cu_seqlens", *(["segment_sequence"] if self.name in SEGMENTS else []), "first_segment"]
        return list(dict.fromkeys((*loaded, *vectors, *initial, *arrays, *offsets, *given)))

    def numbers(self) -> list[str]:
        """The Python numbers among the params that expressions read."""
        read = {value.name for tile in self._tiles() for value in values_in(tile)}
        return [param.name for param in self.spec.params if not param.is_tensor and param.name in read]

    def sizes(self) -> list[str]:
        """What the kernel is compiled for, beside its blocks."""
        steps = [self.spec.steps.symbol] if self.spec.steps is not None and self._has_steps() else []
        return [*steps, *(["H"] if self.kernel.needs_key_heads else []), "HV", *self.spec.dims, "SEGMENT"]

    def parameters(self) -> list[str]:
        constants = (*self.sizes(), *(f"BLOCK_{dim}" for dim in self.spec.dims))
        pointers = (f"{name}_ptr" for name in self.pointers())
        return [*pointers, *self.numbers(), "T", *(f"{name}: tl.constexpr" for name in constants)]

    def _has_steps(self) -> bool:
        symbol = self.spec.steps.symbol if self.spec.steps is not None else ""
        return any(isinstance(action, Steps) for action in self.kernel.actions()) or any(
            getattr(tile, "name", None) == symbol for tile in self.kernel.tiles()
        )

    def _tiles(self) -> Iterator[Tile]:
        for action in self.kernel.actions():
            if isinstance(action, Set | Add | ButAtEnd):
                yield action.value

    # ----------------------------------------------------------------------------------------------------------- lines

    def _program(self) -> Iterator[str]:
        """Which sequence or segment, head and block a program has."""
        run = "sequence" if self.name in WALKS else "segment"
        yield "program = tl.program_id(0)"
        if self.blocked:
            yield f"blocks = tl.cdiv({self.plan.value}, BLOCK_{self.plan.value})"
            yield "block = program % blocks"
            yield "value_head = program // blocks % HV"
            yield f"{run} = (program // (blocks * HV)).to(tl.int64)"
        else:
            yield "value_head = program % HV"
            yield f"{run} = (program // HV).to(tl.int64)"
        if self.kernel.loads_key_heads:
            yield "key_head = value_head // (HV // H)"
        if self.kernel.reads_head:
            yield "head = value_head.to(tl.float32)"

    def _axis_lines(self) -> Iterator[str]:
        used = {*names_in(*self.every_line()), *map(self.axes.mask, self.spec.states[0].dims)}
        for dim in self.spec.dims:
            if self.axes.mask(dim) not in used:
                continue
            start = f"block * BLOCK_{dim} + " if dim == self.plan.value and self.blocked else ""
            yield f"{self.axes.index(dim)} = {start}tl.arange(0, BLOCK_{dim})"
            yield f"{self.axes.mask(dim)} = {self.axes.index(dim)} < {dim}"

    def _start(self) -> str:
        """The state of a sequence that is given none; its padding is zero."""
        (state,) = self.spec.states
        init = literal(state.init).text
        if state.init == 0:
            return f"tl.zeros({self._shape()}, tl.float32)"
        return f"tl.where({self.axes.within(state.dims)}, tl.full({self._shape()}, {init}, tl.float32), 0.0)"

    def _shape(self) -> str:
        return tuple_of(f"BLOCK_{dim}" for dim in self.axes.sorted(self.spec.states[0].dims))

    def other(self, action: Action) -> Iterator[str]:
        match action:
            case AtEnd(body):
                yield "if token == end_token - 1:"
                yield from (INDENT + line for line in self._state_loaded())
                yield from (INDENT + line for line in self.lines(body))
            case ButAtEnd(target, value):
                kept = f"{target} - {self.print.printed(value).within(SUM + 1)}"
                yield f"{target} = tl.where(token == end_token - 1, {target}, {kept})"
            case _:
                yield from super().other(action)

    def _state_loaded(self) -> Iterator[str]:
        (state,) = self.spec.states
        address = self.axes.address("segment_row", state.dims)
        pointer = f"{own_name(self.plan, 'state_gradients')}_ptr"
        mask = self.axes.within(state.dims)
        yield f"{self.plan.state_gradient} = tl.load({pointer} + {address}, mask={mask}, other=0.0)"


OWN = ("states", "state_gradients", "final_gradient", "initial_gradient")


def own_name(plan: FusedBackwardPlan, name: str) -> str:
    """What launcher and kernels call one of their own arrays."""
    return free_name(name, plan.names)


def plan_state(plan: FusedBackwardPlan, name: str) -> str:
    """The tile that a kernel walks with."""
    return plan.state if name in ("states", "reads") else plan.state_gradient
