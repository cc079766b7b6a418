"""The contexts of the files with the backward kernels: the adjoint of a chunk plan as source lines, in the order of its
equations."""

from __future__ import annotations

from collections.abc import Mapping

from flagen.backends.triton_.backward_describe import gradients_docs, reverse_docs, states_docs
from flagen.backends.triton_.backward_gradients import Gradients
from flagen.backends.triton_.backward_rows import Across, AcrossColumn
from flagen.backends.triton_.backward_walks import Reverse, States
from flagen.backends.triton_.chunk_kernel import ScalarDecayRows
from flagen.backends.triton_.device import OF_CHUNKS
from flagen.backends.triton_.lines import names_in
from flagen.backends.triton_.printer import literal
from flagen.backends.triton_.rows import steps_symbol
from flagen.plan.chunk_backward import ChunkBackwardPlan
from flagen.plan.free_names import initial_of
from flagen.plan.kernel_names import kernel_name

Sections = Mapping[str, list[str]]


def backward_kernel_contexts(plan: ChunkBackwardPlan) -> Mapping[str, Mapping[str, object]]:
    """Every value that the template of each file uses, by the file's module."""
    return {
        "chunk_backward_walks": _walks_context(plan),
        "chunk_backward_across": _across_context(plan),
        "chunk_backward_gradients": _gradients_context(plan),
    }


def _walks_context(plan: ChunkBackwardPlan) -> Mapping[str, object]:
    states, reverse = States(plan), Reverse(plan)
    walks: Mapping[str, States | Reverse] = {"states": states, "reverse": reverse}
    kernels: dict[str, Sections] = {
        name: {
            "parameters": kernel.parameters(),
            "step_parameters": kernel.step(declared=True),
            "step_arguments": kernel.step(declared=False),
            "carried": kernel.carried,
            **kernel.rider_lines(),
            **kernel.sections(),
        }
        for name, kernel in walks.items()
    }
    state = plan.rows.state
    return {
        **_shared_context(plan, states),
        "states": {"kernel": states.kernel, "docs": states_docs(plan), **kernels["states"]},
        "reverse": {"kernel": reverse.kernel, "docs": reverse_docs(plan), **kernels["reverse"]},
        "masks_tokens": _masks_tokens(kernels),
        "key_heads": {name: "key_head" in names_in(*_lines(kernel.sections())) for name, kernel in walks.items()},
        "tiles_reverse": tiles_reverse(plan),
        "prepared": plan.rows.prepare is not None,
        "every": plan.every,
        "initial": f"{initial_of(plan.rows.spec, state)}_ptr",
        "init": literal(state.init).text,
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
