"""The contexts of the files with the backward kernels of scalar decays."""

from __future__ import annotations

from collections.abc import Mapping

from flagen.backends.triton_.backward_describe import gradients_docs, reverse_docs, states_docs
from flagen.backends.triton_.chunk_printer import ChunkPrinter
from flagen.backends.triton_.device import OF_CHUNKS
from flagen.backends.triton_.kernel import function_context
from flagen.backends.triton_.launched import routine_context, title_of
from flagen.kernel.ir import Program, Routine, routines_in
from flagen.kernel.rows import steps_symbol
from flagen.plan.chunk_backward import ChunkBackwardPlan


def backward_kernel_contexts(plan: ChunkBackwardPlan, program: Program) -> Mapping[str, Mapping[str, object]]:
    """Every value that the template of each file uses, by the file's module."""
    return {
        "chunk_backward_walks": _walks_context(plan, program),
        "chunk_backward_across": _across_context(plan, program),
        "chunk_backward_gradients": _gradients_context(plan, program),
    }


def tiles_reverse(plan: ChunkBackwardPlan) -> bool:
    """Whether the walk in reverse has tiles of its own: it computes scores, of as many tokens as rows."""
    return plan.rows.delta is not None and not steps_symbol(plan.rows)


def _walks_context(plan: ChunkBackwardPlan, program: Program) -> Mapping[str, object]:
    docs = {"kept_states": states_docs(plan), "reverse": reverse_docs(plan)}
    kernels = [program.kernel(name) for name in docs]
    return {
        **_shared_context(plan),
        "key": plan.rows.key,
        "tiles_reverse": tiles_reverse(plan),
        "routines": [routine_context(kernel, routine) for kernel in kernels for routine in routines_in(kernel.body)],
        "kernels": [
            function_context(title_of(program, kernel.name), kernel, docs[kernel.name], ChunkPrinter)
            for kernel in kernels
        ],
    }


def _across_context(plan: ChunkBackwardPlan, program: Program) -> Mapping[str, object]:
    kernel = program.kernel("gradients")
    return {
        **_shared_context(plan),
        "routines": [routine_context(kernel, routine) for routine in _across(program)],
    }


def _across(program: Program) -> list[Routine]:
    """How the last kernel comes by states: matrices first."""
    return sorted(routines_in(program.kernel("gradients").body), key=lambda routine: -len(routine.lanes))


def _gradients_context(plan: ChunkBackwardPlan, program: Program) -> Mapping[str, object]:
    rows, kernel = plan.rows, program.kernel("gradients")
    return {
        **_shared_context(plan),
        "key": rows.key,
        "value": rows.value,
        "steps": kernel.steps,
        "across": sorted(routine.name for routine in _across(program)),
        "kernel": function_context(title_of(program, kernel.name), kernel, gradients_docs(plan), ChunkPrinter),
        "whole_keys": plan.whole_keys,
        "prepared": rows.prepare is not None,
        "crowded": rows.crowded,
    }


def _shared_context(plan: ChunkBackwardPlan) -> Mapping[str, object]:
    """What all three files use."""
    return {"name": plan.rows.spec.name, "device": OF_CHUNKS}
