"""The contexts of the files with the backward kernels: the adjoint of a chunk plan as source lines, in the order of its
equations."""

from __future__ import annotations

from collections.abc import Mapping

from flagen.backends.triton_.backward_describe import gradients_docs, reverse_docs, states_docs
from flagen.backends.triton_.backward_gradients import Gradients
from flagen.backends.triton_.backward_rows import Across, AcrossColumn
from flagen.backends.triton_.chunk_kernel import ScalarDecayRows
from flagen.backends.triton_.chunk_printer import ChunkPrinter
from flagen.backends.triton_.device import OF_CHUNKS
from flagen.backends.triton_.kernel import function_context
from flagen.backends.triton_.launched import routine_context, title_of
from flagen.backends.triton_.rows import steps_symbol
from flagen.kernel.ir import Program, routines_in
from flagen.plan.chunk_backward import ChunkBackwardPlan
from flagen.plan.kernel_names import kernel_name

Sections = Mapping[str, list[str]]


def backward_kernel_contexts(plan: ChunkBackwardPlan, program: Program) -> Mapping[str, Mapping[str, object]]:
    """Every value that the template of each file uses, by the file's module."""
    return {
        "chunk_backward_walks": _walks_context(plan, program),
        "chunk_backward_across": _across_context(plan),
        "chunk_backward_gradients": _gradients_context(plan),
    }


def _walks_context(plan: ChunkBackwardPlan, program: Program) -> Mapping[str, object]:
    kernels = {name: program.kernel(name) for name in ("kept_states", "reverse")}
    docs = {"kept_states": states_docs(plan), "reverse": reverse_docs(plan)}
    return {
        "name": plan.rows.spec.name,
        "key": plan.rows.key,
        "device": OF_CHUNKS,
        "tiles_reverse": tiles_reverse(plan),
        "routines": [
            routine_context(kernel, routine) for kernel in kernels.values() for routine in routines_in(kernel.body)
        ],
        "kernels": [
            function_context(title_of(program, name), kernel, docs[name], ChunkPrinter)
            for name, kernel in kernels.items()
        ],
    }


def tiles_reverse(plan: ChunkBackwardPlan) -> bool:
    """Whether the walk in reverse has tiles of its own: it computes scores, of as many tokens as rows."""
    return plan.rows.delta is not None and steps_symbol(plan.rows) is None


def _across_context(plan: ChunkBackwardPlan) -> Mapping[str, object]:
    after, before = Across(plan, after=True), Across(plan, after=False)
    steps: dict[str, Sections] = {
        name: {"step_parameters": across.step(declared=True), **across.sections()}
        for name, across in (("after", after), ("before", before))
    }
    riders: dict[str, Sections] = {}
    if plan.rider is not None:
        for name in ("after", "before"):
            column = AcrossColumn(plan, after=name == "after")
            riders[name] = {"step_parameters": column.step(declared=True), **column.sections()}
    return {
        **_shared_context(plan, after),
        **steps,
        "masks_tokens": _masks_tokens(steps),
        "riders": riders,
        "column_state": kernel_name(plan.forward.rider.state.name) if plan.forward.rider is not None else "",
    }


def _gradients_context(plan: ChunkBackwardPlan) -> Mapping[str, object]:
    gradients, rows = Gradients(plan), plan.rows
    sections, matrices = gradients.sections(), gradients.matrices()
    text = _lines(sections, *matrices)
    return {
        **_shared_context(plan, gradients),
        "gradients": {
            "kernel": gradients.kernel,
            "docs": gradients_docs(plan),
            "parameters": gradients.parameters(),
            **sections,
        },
        "scores": matrices,
        "state_after": Across(plan, after=True).step(declared=False),
        "gradient_before": Across(plan, after=False).step(declared=False),
        "every": plan.every,
        "whole_keys": plan.whole_keys,
        "prepared": rows.prepare is not None,
        "writes": rows.write_key is not None,
        "crowded": rows.crowded,
        "written_key": "" if rows.write_key is None else gradients.operand("k"),
        "sums_ends": any("end_sums" in line for line in text),
        "rides": plan.rider is not None,
        "numbers_chunks": any("chunk_row" in line for line in _lines(sections)),
    }


def _shared_context(plan: ChunkBackwardPlan, kernel: ScalarDecayRows) -> Mapping[str, object]:
    """What all three files use."""
    rows, axes = plan.rows, kernel.axes
    return {
        "name": rows.spec.name,
        "key": rows.key,
        "value": rows.value,
        "steps": steps_symbol(rows),
        "device": OF_CHUNKS,
        "S": kernel.name(rows.state.name),
        "key_index": axes.index(rows.key),
        "value_index": axes.index(rows.value),
        "key_mask": axes.mask(rows.key),
        "value_mask": axes.mask(rows.value),
    }


def _masks_tokens(kernels: Mapping[str, Sections]) -> Mapping[str, bool]:
    """Which kernels ask which tokens there are, beside the rows."""
    return {name: any("token_mask" in line for line in _lines(sections)) for name, sections in kernels.items()}


def _lines(*sections: Sections) -> list[str]:
    return [line for section in sections for lines in section.values() for line in lines]
