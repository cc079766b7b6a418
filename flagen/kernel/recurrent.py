"""Lowers the plans of the recurrent operators: what is evaluated when becomes loops, and names become arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from flagen.kernel.ir import (
    Array,
    Fill,
    FirstBlock,
    Given,
    If,
    Kernel,
    Let,
    Load,
    Loop,
    Note,
    Program,
    Row,
    Space,
    Statement,
    Store,
    access,
)
from flagen.kernel.passes import plain_sizes
from flagen.plan import schedule
from flagen.plan.free_names import final_name, initial_name
from flagen.plan.fused import FusedPlan
from flagen.plan.tiles import StateTile, Tile, Value
from flagen.spec.model import Dims, Input, Param, Spec, State

STAGES = 3
"""Tokens under way at once: the rows of the next ones are fetched while one is computed."""
FETCHED = "In stages: the rows of the next tokens are fetched while this one is computed."

CU_SEQLENS = Array("cu_seqlens", ("border",), life="begin", optional=True)


# ------------------------------------------------------------------------------------------------------ of a call


def array_of(source: Input | Param) -> Array:
    """A tensor of the call."""
    if isinstance(source, Param):
        rows: tuple[Space, ...] = ("head",) if source.per_head else ()
        return Array(source.name, rows, source.dims, "argument", source.name, own_dtype=True)
    step: tuple[Space, ...] = ("micro_step",) if source.per == "step" else ()
    head: Space = "head" if source.heads == "HV" else "key_head"
    return Array(source.name, ("token", *step, head), source.dims, "argument", source.name, own_dtype=True)


def initial_array(state: State, name: str) -> Array:
    return Array(name, ("sequence", "head"), state.dims, "argument", state.name, own_dtype=True, optional=True)


def final_array(state: State, name: str) -> Array:
    return Array(name, ("sequence", "head"), state.dims, "result", state.name, optional=True)


def tensors_of(spec: Spec) -> tuple[Array, ...]:
    """Inputs and tensor params, in the order of the signature's tensors."""
    return (*map(array_of, spec.inputs), *(array_of(param) for param in spec.params if param.is_tensor))


def state_tile(state: State, order: Dims) -> Tile:
    return StateTile(state.name, False, tuple(dim for dim in order if dim in state.dims))


# ------------------------------------------------------------------------------------------------------------- forward


def fused_recurrent(plan: FusedPlan) -> Program:
    """The kernel of `fused_recurrent_<name>`."""
    spec, split = plan.spec, plan.split
    output = _output(plan)
    initial = [initial_array(state, initial_name(state.name, plan.names)) for state in spec.states]
    final = [final_array(state, final_name(state.name, plan.names)) for state in spec.states]
    steps = () if spec.steps is None else (spec.steps.symbol,)
    body: tuple[Statement, ...] = (
        Note(),
        *_forward(plan, plan.schedule.once, output),
        Note(),
        Row("state_row", ("sequence", "head")),
        *(_start(state, array) for state, array in zip(spec.states, initial, strict=True)),
        Note(),
        Loop("token", tuple(_forward(plan, plan.schedule.token, output)), stages=STAGES, note=FETCHED),
        Note(),
        *(_finish(plan, state, array) for state, array in zip(spec.states, final, strict=True)),
    )
    kernel = Kernel(
        name="",
        run="sequence",
        block_of=None if split is None else split.dim,
        order=plan.order,
        arrays=(*tensors_of(spec), *initial, CU_SEQLENS, output, *final),
        numbers=tuple(param.name for param in spec.params if not param.is_tensor),
        lengths=("T",),
        sizes=(*plain_sizes(body, spec), *steps, *(("H", "HV") if plan.needs_key_heads else ("HV",)), *plan.order),
        names=plan.names,
        body=body,
    )
    return Program(f"fused_recurrent_{spec.name}", (kernel,))


def _output(plan: FusedPlan) -> Array:
    """The output; where its sum is over blocks, each has a share."""
    shares: tuple[Space, ...] = ("block",) if plan.split is not None and plan.split.partial else ()
    rows: tuple[Space, ...] = ("token", "head", *shares)
    return Array(schedule.OUTPUT, rows, plan.spec.output_dims, "result", schedule.OUTPUT, own_dtype=True)


def _start(state: State, initial: Array) -> Statement:
    """The state before the first token."""
    given = Load(state.name, access(initial), fill=state.init)
    return If((Given(initial, False),), (Fill(state.name, state.dims, state.init),), (given,))


def _finish(plan: FusedPlan, state: State, final: Array) -> Statement:
    once = () if _owned_by_all(plan, state.dims) else (FirstBlock(),)
    return If((Given(final), *once), (Store(access(final), state_tile(state, plan.order)),))


def _forward(plan: FusedPlan, todo: Iterable[schedule.Action], output: Array) -> Iterator[Statement]:
    for action in todo:
        match action:
            case schedule.Load(source):
                yield Load(source.name, access(array_of(source)))
            case schedule.Set(target, value):
                yield Let(target, value)
                if target == schedule.OUTPUT:
                    store = Store(access(output), Value(target, "local", value.dims))
                    shared = "block" not in output.spaces and not _owned_by_all(plan, plan.spec.output_dims)
                    yield If((FirstBlock(),), (store,)) if shared else store
            case schedule.Keep(state):
                yield kept(plan.spec, plan.order, state)
            case schedule.Steps(body):
                yield Loop("micro_step", tuple(_forward(plan, body, output)))


def kept(spec: Spec, order: Dims, state: str) -> Let:
    """The state as it is at the start of the token, under a name of its own."""
    (declared,) = (each for each in spec.states if each.name == state)
    return Let(f"{state}_prev", state_tile(declared, order))


def _owned_by_all(plan: FusedPlan, dims: Dims) -> bool:
    """Whether every program has a part of its own of what lies over `dims`."""
    return plan.split is None or plan.split.dim in dims
