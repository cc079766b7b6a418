"""The context of `kernels.py`: the fused recurrent kernel of a plan as source lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flagen.backends.text import tuple_of
from flagen.backends.torch_.common import equations
from flagen.backends.triton_.axes import Axes
from flagen.backends.triton_.config import config_lines
from flagen.backends.triton_.describe import ownership, traffic
from flagen.backends.triton_.device import OF_A_TOKEN
from flagen.backends.triton_.names import final_name, initial_name
from flagen.backends.triton_.printer import Printer, literal
from flagen.plan.fused import FusedPlan
from flagen.plan.schedule import OUTPUT, Action, Keep, Load, Set, Steps
from flagen.spec.model import Input, Param, Spec

INDENT = "    "


@dataclass(frozen=True)
class StateCode:
    """The source that starts a state in registers and puts it back into memory."""

    name: str
    is_new: str
    start: str
    load: str
    is_wanted: str
    store: str


def kernel_context(plan: FusedPlan) -> Mapping[str, object]:
    """Every value `triton/kernels.py.j2` uses."""
    writer = KernelWriter(plan)
    spec = plan.spec
    once, token = list(writer.lines(plan.schedule.once)), list(writer.lines(plan.schedule.token))
    return {
        "name": spec.name,
        "device": OF_A_TOKEN,
        "config": list(config_lines(plan)),
        "sizes": plan.order,
        "parameters": kernel_parameters(plan),
        "equations": equations(spec),
        "ownership": ownership(plan),
        "traffic": traffic(plan),
        "program": list(writer.program()),
        "axes": list(writer.axis_lines()),
        "states": list(writer.states()),
        "once": once,
        "token": token,
    }


def kernel_parameters(plan: FusedPlan) -> tuple[str, ...]:
    """The kernel's parameters: pointers, scalars, then what is known at compile time."""
    spec = plan.spec
    pointers = [f"{name}_ptr" for name in tensor_names(spec)]
    initial = [f"{initial_name(state.name, plan.names)}_ptr" for state in spec.states]
    final = [f"{final_name(state.name, plan.names)}_ptr" for state in spec.states]
    scalars = [param.name for param in spec.params if not param.is_tensor]
    return (
        *pointers,
        *initial,
        "cu_seqlens_ptr",
        f"{OUTPUT}_ptr",
        *final,
        *scalars,
        "T",
        *(f"{name}: tl.constexpr" for name in compile_time_sizes(plan)),
        *(f"BLOCK_{dim}: tl.constexpr" for dim in plan.order),
    )


def tensor_names(spec: Spec) -> tuple[str, ...]:
    """Inputs and tensor params, in the order of the signature's tensors."""
    return (*(decl.name for decl in spec.inputs), *(param.name for param in spec.params if param.is_tensor))


def compile_time_sizes(plan: FusedPlan) -> tuple[str, ...]:
    """The sizes of a call that the kernel is compiled for; its blocks follow from them."""
    steps = () if plan.spec.steps is None else (plan.spec.steps.symbol,)
    heads = ("H", "HV") if plan.needs_key_heads else ("HV",)
    return (*steps, *heads, *plan.order)


class KernelWriter:
    """Writes the parts of one kernel."""

    def __init__(self, plan: FusedPlan) -> None:
        self.plan = plan
        self.spec = plan.spec
        self.axes = Axes(plan.order, frozenset(plan.names))
        self.print = Printer(self.axes)

    def program(self) -> Iterator[str]:
        """Which sequence, head and block a program has: blocks of a head are neighbours, then heads, for the cache."""
        split = self.plan.split
        yield "program = tl.program_id(0)"
        if split is None:
            yield "value_head = program % HV"
            yield "sequence = (program // HV).to(tl.int64)"
        else:
            yield f"blocks = tl.cdiv({split.dim}, BLOCK_{split.dim})"
            yield "block = program % blocks"
            yield "value_head = program // blocks % HV"
            yield "sequence = (program // (blocks * HV)).to(tl.int64)"
        if any(decl.heads == "H" for decl in self.spec.inputs):
            yield "key_head = value_head // (HV // H)"
        if self.plan.reads_head:
            yield "head = value_head.to(tl.float32)"

    def axis_lines(self) -> Iterator[str]:
        split = self.plan.split
        for dim in self.plan.order:
            start = f"block * BLOCK_{dim} + " if split is not None and dim == split.dim else ""
            yield f"{self.axes.index(dim)} = {start}tl.arange(0, BLOCK_{dim})"
            yield f"{self.axes.mask(dim)} = {self.axes.index(dim)} < {dim}"

    def states(self) -> Iterator[StateCode]:
        for state in self.spec.states:
            blocks = [f"BLOCK_{dim}" for dim in self.axes.sorted(state.dims)]
            init = literal(state.init).text
            address = self.axes.address("state_row", state.dims)
            mask = self.axes.within(state.dims)
            given = f"{initial_name(state.name, self.plan.names)}_ptr"
            wanted = f"{final_name(state.name, self.plan.names)}_ptr"
            yield StateCode(
                name=state.name,
                is_new=f"{given} is None",
                start=f"tl.full({tuple_of(blocks)}, {init}, tl.float32)",
                load=f"tl.load({given} + {address}{f', mask={mask}, other={init}' if mask else ''}).to(tl.float32)",
                is_wanted=f"{wanted} is not None" + ("" if self._owned_by_all(state.dims) else " and block == 0"),
                store=f"tl.store({wanted} + {address}, {state.name}{f', mask={mask}' if mask else ''})",
            )

    def lines(self, actions: tuple[Action, ...]) -> Iterator[str]:
        """The source of `actions`, one statement a line."""
        for action in actions:
            match action:
                case Load(source):
                    yield f"{source.name} = {self._load(source)}"
                case Set(target, value):
                    yield f"{target} = {self.print.assigned(value)}"
                    if target == OUTPUT:
                        yield from self._store_output()
                case Keep(state):
                    yield f"{state}_prev = {state}"
                case Steps(body):
                    assert self.spec.steps is not None
                    # Unrolled, so that the loads of one step run under the arithmetic of the step before.
                    yield f"for micro_step in tl.static_range({self.spec.steps.symbol}):"
                    if any(isinstance(inner, Load) for inner in body):
                        yield f"{INDENT}row = token * {self.spec.steps.symbol} + micro_step"
                    yield from (INDENT + line for line in self.lines(body))

    def _load(self, source: Input | Param) -> str:
        row = self._row(source) if isinstance(source, Input) else ("value_head" if source.per_head else "")
        address = self.axes.address(row, source.dims)
        mask = f", mask={self.axes.within(source.dims)}, other=0.0" if source.dims else ""
        return f"tl.load({source.name}_ptr + {address}{mask}).to(tl.float32)"

    def _row(self, decl: Input) -> str:
        heads, head = ("HV", "value_head") if decl.heads == "HV" else ("H", "key_head")
        return f"{'token' if decl.per == 'token' else 'row'} * {heads} + {head}"

    def _store_output(self) -> Iterator[str]:
        dims, split = self.spec.output_dims, self.plan.split
        row = "token * HV + value_head"
        if split is not None and split.partial:
            row = f"({row}) * blocks + block"
        mask = f", mask={self.axes.within(dims)}" if dims else ""
        target = f"{OUTPUT}_ptr + {self.axes.address(row, dims)}"
        store = f"tl.store({target}, {OUTPUT}.to({OUTPUT}_ptr.dtype.element_ty){mask})"
        if (split is not None and split.partial) or self._owned_by_all(dims):
            yield store
        else:
            yield "if block == 0:"
            yield INDENT + store

    def _owned_by_all(self, dims: tuple[str, ...]) -> bool:
        """Whether every program has a part of its own of what lies over `dims`."""
        return self.plan.split is None or self.plan.split.dim in dims
