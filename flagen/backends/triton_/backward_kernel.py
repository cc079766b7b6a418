"""The contexts of the files with the backward kernels of scalar decays."""

from __future__ import annotations

from collections.abc import Mapping

from flagen.backends.triton_.backward_describe import gradients_docs, reverse_docs, states_docs
from flagen.backends.triton_.chunk_printer import ChunkPrinter
from flagen.backends.triton_.device import OF_CHUNKS
from flagen.backends.triton_.kernel import function_context
from flagen.backends.triton_.launched import routine_context, title_of
from flagen.backends.triton_.tiling_printer import tiling_context
from flagen.kernel.ir import Program, Routine, routines_in
from flagen.plan.chunk_backward import ChunkBackwardPlan
from flagen.plan.tiling import gradients_tiling, reverse_tiling


def backward_kernel_contexts(plan: ChunkBackwardPlan, program: Program) -> Mapping[str, Mapping[str, object]]:
    """Every value that the template of each file uses, by the file's module."""
    files = {"chunk_backward_walks": _walks_context(plan, program)}
    if _across(program):
        files["chunk_backward_across"] = _across_context(plan, program)
    return {**files, "chunk_backward_gradients": _gradients_context(plan, program)}


def _walks_context(plan: ChunkBackwardPlan, program: Program) -> Mapping[str, object]:
    docs = {"kept_states": states_docs(plan), "reverse": reverse_docs(plan)}
    kernels, of_reverse = [program.kernel(name) for name in docs], reverse_tiling(plan)
    return {
        **_shared_context(plan),
        "tiling": None if of_reverse is None else tiling_context(of_reverse),
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
        "mixed": plan.rows.mixed is not None,
    }


def _across(program: Program) -> list[Routine]:
    """How the last kernel comes by states: matrices first."""
    return sorted(routines_in(program.kernel("gradients").body), key=lambda routine: -len(routine.lanes))


def _gradients_context(plan: ChunkBackwardPlan, program: Program) -> Mapping[str, object]:
    kernel = program.kernel("gradients")
    return {
        **_shared_context(plan),
        "tiling": tiling_context(gradients_tiling(plan)),
        "across": sorted(routine.name for routine in _across(program)),
        "kernel": function_context(title_of(program, kernel.name), kernel, gradients_docs(plan), ChunkPrinter),
    }


def _shared_context(plan: ChunkBackwardPlan) -> Mapping[str, object]:
    """What all three files use."""
    return {"name": plan.rows.spec.name, "device": OF_CHUNKS}
