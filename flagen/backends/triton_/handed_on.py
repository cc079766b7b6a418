"""What a call of the chunk kernels leaves for its backward: arrays that the gradient would have to compute again. By
default those that are small against the inputs, on request the states as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flagen.backends.text import tuple_of
from flagen.backends.triton_.backward_launcher import own_names, stored_states
from flagen.backends.triton_.chunk_launcher import (
    Backward,
    Kept,
    Launch,
    launch_arguments,
    left_of_keys,
    prepared_arrays,
)
from flagen.backends.triton_.launched import Launched
from flagen.backends.triton_.operator import Operator
from flagen.kernel.forward_rows import kept
from flagen.kernel.ir import Program
from flagen.kernel.key_backward import KEEPING
from flagen.kernel.key_rows import matrices
from flagen.kernel.mixes import WEIGHTS
from flagen.kernel.rows import RowPlan, steps_symbol
from flagen.plan.backward_levels import OUTPUT
from flagen.plan.chunk_backward import ChunkBackwardPlan
from flagen.plan.free_names import free_name
from flagen.plan.key_backward import KeyBackwardPlan
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.model import LevelPlan, Plan, RankPlan, SolvedPlan, StagedPlan
from flagen.plan.right_backward import RightBackwardPlan
from flagen.plan.scan_backward import ScanBackwardPlan
from flagen.plan.schedule import declared_names
from flagen.plan.unavailable import Unavailable

CHUNK_SIZE = "chunk_size=chunk_size"


def backward_of(
    plan: ChunkBackwardPlan | KeyBackwardPlan | RightBackwardPlan, program: Program | None = None
) -> Backward:
    """The backward of a call of the chunk kernels: what it takes from them; `program`: those kernels, where they are
    data."""
    if isinstance(plan, RightBackwardPlan):
        return _of_right_reads(plan)
    arrays = _handed_on(plan)
    if isinstance(plan, ChunkBackwardPlan) and plan.rider is not None:
        return Backward(arrays, _keywords_of_rider(plan, arrays), takes_output=True)
    if not (isinstance(plan, KeyBackwardPlan) and plan.prepares):
        return Backward(arrays, _keywords(plan, arrays))
    keeping = () if program is None else _keeping(plan, program, arrays)
    return Backward(arrays, _keywords(plan, arrays), keeping)


def keeps_states(plan: Plan) -> bool:
    """Whether a call of the chunk kernels of `plan` can keep its states for the gradient."""
    backward = plan.chunk_backward
    if isinstance(backward, RankPlan):
        return keeps_states(backward.within)
    return not isinstance(backward, Unavailable | ScanBackwardPlan | StagedPlan | LevelPlan | SolvedPlan) and bool(
        backward_of(backward).kept
    )


def _of_right_reads(plan: RightBackwardPlan) -> Backward:
    """States and U, which every call leaves for its outputs. The matrices of the backward are of the gradient of the
    output."""
    rows = plan.forward
    shapes = dict(zip(("states", "U"), _by_chunks(rows), strict=True))
    left = tuple(Kept(x.name, x.inside, shapes[x.inside], x.dtype, "STATES") for x in left_of_keys(rows))
    return Backward(left, (CHUNK_SIZE, _passed(own_names(plan.turned)["saved"], left, rows)))


def _handed_on(plan: ChunkBackwardPlan | KeyBackwardPlan) -> tuple[Kept, ...]:
    return _for_key_decays(plan) if isinstance(plan, KeyBackwardPlan) else _for_scalar_decays(plan)


def _for_scalar_decays(plan: ChunkBackwardPlan) -> tuple[Kept, ...]:
    """Matrices and decays of the chunks, then states and U, in the order in which they are taken."""
    rows, steps = plan.forward, plan.forward.spec.steps
    stored = stored_states(plan)
    several = "" if rows.mixed is None else f"{len(rows.mixed.states)}, "
    states = f"{stored}, args.HV, {several}args.{rows.value}, args.{rows.key}"
    tokens = f"args.tokens * {steps.argument}" if steps and steps_symbol(rows) else "args.tokens"
    updates = f"args.batch, {tokens}, args.HV, args.{rows.value}"
    prepared = (array for array in _prepared(rows) if array.inside in kept(rows))
    if plan.rider is None:
        return (*prepared, *_walked(rows, states, updates))
    taken = set(declared_names(rows.spec))
    column = Kept(
        free_name("kept_column", taken), "column", "args.batch, args.tokens, args.HV", "torch.float32", "PREPARED", True
    )
    vectors = f"{stored}, args.HV, args.{rows.key}"
    name = free_name("kept_column_states", taken)
    of_rider = Kept(name, "column_states", vectors, "torch.float32", "STATES", walked=True)
    return (column, *_walked(rows, states, updates), of_rider)


def _for_key_decays(plan: KeyBackwardPlan) -> tuple[Kept, ...]:
    """Matrices of the chunks; then scaled rows, every state and U. Where the forward kernels fold the inverse into
    rows, the backward has no use for these, and all of its own is kept with the states."""
    rows = plan.forward
    square = matrices(rows)
    small, scaled = [], []
    for array in _prepared(rows):
        if array.inside in square:
            small.append(array)
        else:
            scaled.append(replace(array, kept_in="STATES"))
    if plan.prepares:
        taken = set(declared_names(rows.spec))
        own = (replace(x, name=free_name(f"kept_{x.inside}", taken), walked=True) for x in (*small, *scaled))
        return tuple(replace(x, kept_in="STATES") for x in (*own, *_walked(rows, *_by_chunks(rows))))
    return (*small, *scaled, *_walked(rows, *_by_chunks(rows)))


def _keeping(plan: KeyBackwardPlan, program: Program, arrays: Sequence[Kept]) -> tuple[tuple[str, Launch], ...]:
    """Preparation and walk that keep what is not folded."""
    rows, known = plan.forward, {f"{array.inside}_ptr": array.name for array in arrays}
    prepare, walk = (Launched(program, name) for name in KEEPING)
    walks = "args.runs * args.HV * blocks"
    return (
        (
            "chunk_backward_prepare",
            Launch(prepare.kernel, "chunks * args.HV", launch_arguments(rows, prepare, known), "prepare_tiles"),
        ),
        ("chunk_backward_walks", Launch(walk.kernel, walks, launch_arguments(rows, walk, known), "walk_tiles")),
    )


def _by_chunks(rows: KeyKernelPlan) -> tuple[str, str]:
    """The shapes of all states and of all U."""
    states = f"chunks, args.HV, args.{rows.value}, args.{rows.key}"
    updates = f'chunks, args.HV, args.{rows.value}, walk_tiles["CHUNK"]'
    return states, updates


def _small(plan: ChunkBackwardPlan | KeyBackwardPlan) -> int:
    """How many arrays there are that are small against the inputs."""
    return len(matrices(plan.forward) if isinstance(plan, KeyBackwardPlan) else kept(plan.forward))


def _prepared(rows: RowPlan) -> list[Kept]:
    return [
        Kept(
            array.name,
            array.inside,
            f"chunks, args.HV, {', '.join(array.shape)}",
            array.dtype,
            "PREPARED",
            walked=array.inside == WEIGHTS,
        )
        for array in prepared_arrays(rows)
    ]


def _walked(rows: RowPlan, states: str, updates: str) -> list[Kept]:
    """What only the walk writes."""
    taken = set(declared_names(rows.spec))
    arrays = [Kept(free_name("kept_states", taken), "states", states, "dtype", "STATES", walked=True)]
    if rows.delta is not None:
        arrays.append(Kept(free_name("kept_U", taken), "U", updates, "dtype", "STATES", walked=True))
    return arrays


def _keywords(plan: ChunkBackwardPlan | KeyBackwardPlan, arrays: Sequence[Kept]) -> tuple[str, ...]:
    """What the backward takes beside what was passed to the call, in the names that there are in its operator."""
    own, small = own_names(plan), _small(plan)
    groups = (("prepared", arrays[:small]), ("saved", arrays[small:]))
    return (CHUNK_SIZE, *(_passed(own[name], group, plan.forward) for name, group in groups if group))


def _keywords_of_rider(plan: ChunkBackwardPlan, arrays: Sequence[Kept]) -> tuple[str, ...]:
    """The same where a vector state rides along: its reads and the output, which every call keeps, come first."""
    own, (column, *states) = own_names(plan), arrays
    keep = Operator(plan.forward.spec, "chunk", "").keep
    kept_column = f"{own['column']}={column.name} if {keep} else None"
    return (f"o={OUTPUT}", kept_column, CHUNK_SIZE, _passed(own["saved"], states, plan.forward))


def _passed(keyword: str, arrays: Sequence[Kept], rows: RowPlan) -> str:
    """What was kept, if it was, as an argument."""
    keep = Operator(rows.spec, "chunk", "").keep
    is_kept = keep if arrays[0].kept_in == "PREPARED" else f"{keep} == operators.STATES"
    return f"{keyword}={tuple_of(array.name for array in arrays)} if {is_kept} else None"
