"""The contexts of the files of the backward for decays of each key: its kernels, and the function that launches
them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flagen.backends.triton_.backward_launcher import SHARED_CONTEXT, backward_signature, gradients_of_call, own_names
from flagen.backends.triton_.chunk_launcher import (
    Launch,
    Scratch,
    array_like,
    chunk_launcher_context,
    launch_arguments,
    prepared_arrays,
)
from flagen.backends.triton_.helpers import row_helpers_for
from flagen.backends.triton_.key_backward_gradients import KeyGradients
from flagen.backends.triton_.key_backward_walks import OwnOutputs, Reverse, kernels_of, matrices
from flagen.backends.triton_.key_describe import (
    gradients_docs,
    prepare_docs,
    reverse_docs,
    scale_docs,
    states_docs,
    walk_docs,
)
from flagen.backends.triton_.key_kernel import Prepare, Walk
from flagen.backends.triton_.key_rows import scores_of
from flagen.backends.triton_.lines import names_in
from flagen.backends.triton_.rows import RowKernel
from flagen.backends.triton_.walk import documented, state_context
from flagen.plan.chunk_backward import R_GRADIENT
from flagen.plan.key_backward import KeyBackwardPlan

IMPORTED = {"decay_over", "decay_to_cut", "from_middle", "invert", "seen_across_cut"}
"""What `chunk_prepare.py` has that other files use."""


def key_backward_contexts(plan: KeyBackwardPlan) -> Mapping[str, tuple[str, Mapping[str, object]]]:
    """The template of each file and every value that it uses, by the file's module."""
    return {
        "chunk_backward_prepare": ("key_backward_prepare", _prepare_context(plan)),
        "chunk_backward_walks": ("key_backward_walks", _walks_context(plan)),
        "chunk_backward_gradients": ("key_backward_gradients", _gradients_context(plan)),
        "chunk_backward": ("key_backward", _launcher_context(plan)),
    }


# ------------------------------------------------------------------------------------------------------------- kernels


def _prepare_context(plan: KeyBackwardPlan) -> Mapping[str, object]:
    own, _, scale = kernels_of(plan)
    documented: list[tuple[Prepare, Mapping[str, object]]] = [(scale, scale_docs(plan.forward))]
    if plan.prepares:
        documented.insert(0, (own, prepare_docs(plan.forward)))
    lines = [line for kernel, _ in documented for line in kernel.lines()]
    return {
        "name": plan.forward.spec.name,
        "key": plan.forward.key,
        "helpers": row_helpers_for(lines),
        "imported": sorted(IMPORTED & names_in(*lines)),
        "kernels": [{**kernel.context(), "docs": docs} for kernel, docs in documented],
        "key_index": scale.key_index,
        "key_mask": scale.axes.mask(plan.forward.key),
        "whole_keys": plan.forward.whole_keys,
    }


def _walks_context(plan: KeyBackwardPlan) -> Mapping[str, object]:
    _, states, _ = kernels_of(plan)
    reverse = Reverse(plan)
    own: list[tuple[Walk, Mapping[str, object]]] = []
    if plan.prepares:
        own = [(OwnOutputs(plan.forward), walk_docs(plan.forward)), (states, states_docs(plan.forward))]
    walks = [documented(walk, docs) for walk, docs in own]
    lines = [*reverse.lines(), *(line for walk, _ in own for line in walk.lines())]
    transposed = plan.forward.chunk.normal_form.transposed
    value, key = f"{states.axes.index(plan.forward.value)}[:, None]", f"{states.axes.index(plan.forward.key)}[None, :]"
    return {
        **state_context(plan.forward, states),
        "helpers": row_helpers_for(lines),
        "transposed": transposed,
        "whole_keys": plan.whole_keys,
        "additive": plan.forward.delta is None,
        "steps": None,
        "walks": walks,
        "reverse": {**reverse.context(), "docs": reverse_docs(plan.forward)},
        "state_place": f"{value} * {plan.forward.key} + {key}"
        if transposed
        else f"{key} * {plan.forward.value} + {value}",
    }


def _gradients_context(plan: KeyBackwardPlan) -> Mapping[str, object]:
    gradients, rows = KeyGradients(plan), plan.rows
    lines = gradients.lines()
    context = gradients.context()
    return {
        "name": rows.spec.name,
        "key": rows.key,
        "value": rows.value,
        "helpers": row_helpers_for(lines),
        "imported": sorted(IMPORTED & names_in(*lines)),
        "leaf": "LEAF" in names_in(*lines),
        "key_index": gradients.key_index,
        "value_index": gradients.axes.index(rows.value),
        "key_mask": gradients.axes.mask(rows.key),
        "value_mask": gradients.axes.mask(rows.value),
        "gradients": {**context, "docs": gradients_docs(rows, decays=plan.decays)},
    }


# ------------------------------------------------------------------------------------------------------------ launches


def _launcher_context(plan: KeyBackwardPlan) -> Mapping[str, object]:
    """Every value `triton/key_backward.py.j2` uses."""
    forward, shared = plan.forward, chunk_launcher_context(plan.forward)
    own = own_names(plan)
    prepare, states, scale = kernels_of(plan)
    square = [array.name for array in matrices(forward)]
    arrays = prepared_arrays(forward)
    squares = [array for array in arrays if array.inside in square]
    scaled = [array for array in arrays if array.inside not in square]
    walked = [Scratch(own["states"], "states", [f"args.{forward.value}", f"args.{forward.key}"], "dtype")]
    if forward.delta is not None:
        walked.append(Scratch(own["U"], "U", [f"args.{forward.value}", 'walk_tiles["CHUNK"]'], "dtype"))
    rows = 'walk_tiles["CHUNK"]'
    gradients = [array_like(forward, f"{score.name}_gradient", [rows, rows], "dtype") for score in scores_of(forward)]
    known = [*walked, *gradients]
    chunks, walks = "chunks * args.HV", "args.runs * args.HV * blocks"
    return {
        **{name: shared[name] for name in (*SHARED_CONTEXT, "config_lines")},
        **backward_signature(forward),
        **gradients_of_call(plan),
        "own": own,
        "key": forward.key,
        "imports": _imports(plan),
        "delta": forward.delta is not None,
        "matrices": squares,
        "scaled": scaled,
        "walked": walked,
        "kept": [array.name for array in (*scaled, *walked)],
        "handed_on": [
            (own["prepared"], f"{_listed(squares)} of each chunk; None to prepare the chunks again."),
            (own["saved"], f"{_listed([*scaled, *walked])} of each chunk; None to scale rows and walk again."),
        ],
        "matrix_gradients": gradients,
        "prepare": _launch(plan, prepare, chunks, own, known, "prepare_tiles"),
        "scale": _launch(plan, scale, chunks, own, known, "prepare_tiles"),
        "states": _launch(plan, states, walks, own, known, "walk_tiles"),
        "reverse": _launch(plan, Reverse(plan), walks, own, known, "walk_tiles"),
        "gradients": _gradients_launch(plan, own, known),
    }


def _listed(arrays: Sequence[Scratch]) -> str:
    return ", ".join(array.name for array in arrays)


def _imports(plan: KeyBackwardPlan) -> list[tuple[str, list[str]]]:
    """The modules of the package with kernels, and what of them is launched."""
    prepare, states, scale = kernels_of(plan)
    found = {
        "chunk_backward_gradients": [KeyGradients(plan).kernel],
        "chunk_backward_prepare": [scale.kernel],
        "chunk_backward_walks": [Reverse(plan).kernel, "gradients_config"],
        "chunk_kernels": ["launch_config"],
    }
    found.setdefault("chunk_backward_prepare" if plan.prepares else "chunk_prepare", []).append(prepare.kernel)
    found["chunk_backward_walks" if plan.prepares else "chunk_kernels"].append(states.kernel)
    return [(module, sorted(names)) for module, names in found.items()]


def _launch(
    plan: KeyBackwardPlan,
    kernel: RowKernel[Any],
    grid: str,
    own: Mapping[str, str],
    known: Sequence[Scratch],
    tiles: str,
) -> Launch:
    final, (state,) = own["d_final_state"], plan.forward.spec.states
    arrays = {
        **{f"{array.inside}_ptr": array.name for array in known},
        **{f"{name}_ptr": own[name] for name in ("do", "state_gradients", R_GRADIENT)},
        **{f"{gradient.called}_ptr": gradient.called for gradient in plan.stored},
        "final_gradient_ptr": f"None if {final} is None else {final}.contiguous()",
        "initial_gradient_ptr": own["d_initial_state"],
        f"{state.name}_final_ptr": "None",
    }
    return Launch(kernel.kernel, grid, launch_arguments(plan.forward, kernel, arrays), tiles)


def _gradients_launch(plan: KeyBackwardPlan, own: Mapping[str, str], known: Sequence[Scratch]) -> Launch:
    """The last kernel has the rows of the walks, the decays of the preparation, and tiles of its own."""
    launch = _launch(plan, KeyGradients(plan), "chunks * args.H", own, known, "")
    compiled = [parameter.partition(":")[0] for parameter in KeyGradients(plan).parameters()]
    sizes = [name for name in ("CHUNK", "LEVELS", "LEAF_LEVELS", "TERMS") if name in compiled]
    rows = [f'{name}=prepare_tiles["{name}"]' for name in sizes]
    return Launch(launch.kernel, launch.grid, [*launch.arguments, *rows], "")
