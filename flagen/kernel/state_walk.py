"""What the kernels of all families do with the state of a sequence: where it comes from and goes, what is put out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from enum import Enum
from typing import Any

from flagen.kernel.ir import Array, Fill, Given, If, Let, Load, Note, Statement, Store, access
from flagen.kernel.recurrent import final_array, initial_array
from flagen.kernel.rows import RowLowering, local
from flagen.plan.free_names import final_of, initial_of
from flagen.plan.rows import TOKEN
from flagen.plan.schedule import OUTPUT
from flagen.spec.model import State

IN_MEMORY_ORDER = "In the order of memory, not in that of the state: offsets of its own need no registers in the loop."


class Form(Enum):
    """What a kernel leaves behind: outputs; the state before each chunk; outputs, from these."""

    FUSED = ""
    STATES = "states"
    OUTPUT = "output"


def start_of(rows: RowLowering[Any], state: State) -> Statement:
    """The state that a run starts from."""
    name, first = rows.name(state.name), initial_array(state, initial_of(rows.plan.spec, state))
    given = Load(name, access(first), wide=True)
    return If((Given(first, False),), (Fill(name, state.dims, state.init),), (given,))


def end_of(rows: RowLowering[Any], state: State) -> Statement:
    """The matrix state that it ends with."""
    last, dims = final_array(state, final_of(rows.plan.spec, state)), rows.sorted(state.dims)
    target, value = access(last), local(rows.name(state.name), dims)
    if last.dims == dims:
        return If((Given(last),), (Store(target, value),))
    stored = Store(replace(target, in_memory_order=True), value)
    return If((Given(last),), (Note(IN_MEMORY_ORDER), stored))


def put(rows: RowLowering[Any]) -> Iterator[Statement]:
    """The output, of what tokens read."""
    array = Array(OUTPUT, ("token", "head"), rows.plan.spec.output_dims, "result", OUTPUT, own_dtype=True)
    value, target = rows.tile(rows.plan.output, TOKEN), replace(rows.rows_of(array, TOKEN), address="rows")
    yield from (Let(OUTPUT, value), Store(target, local(OUTPUT, value.dims)))
