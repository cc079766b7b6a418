"""The contexts of the files of the backward for decays of each key: its kernels, and the function that launches
them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flagen.backends.triton_.backward_launcher import SHARED_CONTEXT, backward_signature, gradients_of_call, own_names
from flagen.backends.triton_.chunk_launcher import (
    Launch,
    Scratch,
    array_like,
    chunk_launcher_context,
    launch_arguments,
    prepared_arrays,
)
from flagen.backends.triton_.chunk_printer import ChunkPrinter
from flagen.backends.triton_.device import OF_CHUNKS
from flagen.backends.triton_.kernel import Docs, function_context
from flagen.backends.triton_.key_backward_walks import (
    OwnOutputs,
    Scale,
    TurnedOutput,
    kernels_of,
    matrices,
)
from flagen.backends.triton_.key_describe import (
    gradients_docs,
    output_docs,
    prepare_docs,
    reverse_docs,
    scale_docs,
    states_docs,
    turned_docs,
    walk_docs,
)
from flagen.backends.triton_.key_kernel import Prepare, Walk
from flagen.backends.triton_.key_rows import scores_of
from flagen.backends.triton_.launched import Launchable, Launched, title_of
from flagen.backends.triton_.walk import documented, state_context
from flagen.kernel.ir import Program
from flagen.plan.backward_levels import R_GRADIENT
from flagen.plan.free_names import final_of
from flagen.plan.key_backward import KeyBackwardPlan

Contexts = Mapping[str, tuple[str, Mapping[str, object]]]
"""The template of each file and every value that it uses, by the file's module."""


def key_backward_contexts(plan: KeyBackwardPlan, program: Program) -> Contexts:
    """The files of the backward."""
    return {**kernel_contexts(plan, program), "chunk_backward": ("key_backward", _launcher_context(plan, program))}


def kernel_contexts(plan: KeyBackwardPlan, program: Program) -> Contexts:
    """The files of its kernels."""
    return {
        "chunk_backward_prepare": ("key_backward_prepare", _prepare_context(plan)),
        "chunk_backward_walks": ("key_backward_walks", _walks_context(plan, program)),
        "chunk_backward_gradients": ("key_backward_gradients", _gradients_context(plan, program)),
    }


def _function(program: Program, name: str, docs: Docs) -> Mapping[str, object]:
    """A kernel, as templates print it."""
    return function_context(title_of(program, name), program.kernel(name), docs, ChunkPrinter)


# ------------------------------------------------------------------------------------------------------------- kernels


def _prepare_context(plan: KeyBackwardPlan) -> Mapping[str, object]:
    own, _ = kernels_of(plan)
    documented: list[tuple[Prepare, Mapping[str, object]]] = []
    if plan.own_walk:
        documented.append((own, prepare_docs(plan.forward)))
    if not plan.puts_out:
        documented.append((Scale(plan.forward), scale_docs(plan.forward)))
    return {
        "name": plan.forward.spec.name,
        "key": plan.forward.key,
        "device": OF_CHUNKS,
        "kernels": [{**kernel.context(), "docs": docs} for kernel, docs in documented],
        "key_index": own.key_index,
        "key_mask": own.axes.mask(plan.forward.key),
        "whole_keys": plan.forward.whole_keys,
    }


def _walks_context(plan: KeyBackwardPlan, program: Program) -> Mapping[str, object]:
    _, states = kernels_of(plan)
    output = TurnedOutput(plan.forward) if plan.puts_out else None
    own: list[tuple[Walk, Mapping[str, object]]] = []
    if plan.puts_out:
        own = [(states, turned_docs(plan.forward))]
    elif plan.prepares:
        own = [(OwnOutputs(plan.forward), walk_docs(plan.forward)), (states, states_docs(plan.forward))]
    walks = [documented(walk, docs) for walk, docs in own]
    return {
        **state_context(plan.forward, states),
        "device": OF_CHUNKS,
        "transposed": plan.forward.chunk.normal_form.transposed,
        "whole_keys": plan.whole_keys,
        "additive": plan.forward.delta is None,
        "folded": plan.prepares,
        "steps": None,
        "walks": walks,
        "output": None if output is None else {**output.context(), "docs": output_docs(plan.forward)},
        "reverse": _function(program, "reverse", reverse_docs(plan.forward)),
    }


def _gradients_context(plan: KeyBackwardPlan, program: Program) -> Mapping[str, object]:
    return {
        "name": plan.rows.spec.name,
        "device": OF_CHUNKS,
        "gradients": _function(program, "gradients", gradients_docs(plan.rows, decays=plan.decays)),
    }


# ------------------------------------------------------------------------------------------------------------ launches


def _launcher_context(plan: KeyBackwardPlan, program: Program) -> Mapping[str, object]:
    """Every value `triton/key_backward.py.j2` uses."""
    forward, shared, own = plan.forward, chunk_launcher_context(plan.forward), own_names(plan)
    squares, scaled = prepared(plan)
    walked = walked_arrays(plan, own)
    scale = launch_of(plan, Scale(forward), "chunks * args.HV", own, "prepare_tiles")
    return {
        **{name: shared[name] for name in (*SHARED_CONTEXT, "config_lines")},
        **backward_signature(forward),
        **gradients_of_call(plan),
        **launches(plan, program, own),
        "own": own,
        "matrices": squares,
        "scaled": scaled,
        "kept": [array.name for array in (*scaled, *walked)],
        "handed_on": [
            (own["prepared"], f"{_listed(squares)} of each chunk; None to prepare the chunks again."),
            (own["saved"], f"{_listed([*scaled, *walked])} of each chunk; None to scale rows and walk again."),
        ],
        "scale": scale,
        "members": "args.HV // args.H",
        "configured": "prepare, walk",
        "of_walks": '"initial_state"',
    }


def prepared(plan: KeyBackwardPlan) -> tuple[list[Scratch], list[Scratch]]:
    """The matrices of the chunks, and the scaled rows."""
    square = [array.name for array in matrices(plan.forward)]
    arrays = prepared_arrays(plan.forward)
    return [x for x in arrays if x.inside in square], [x for x in arrays if x.inside not in square]


def walked_arrays(plan: KeyBackwardPlan, own: Mapping[str, str]) -> list[Scratch]:
    """What the walk over states leaves."""
    forward = plan.forward
    states = Scratch(own["states"], "states", [f"args.{forward.value}", f"args.{forward.key}"], "dtype")
    if forward.delta is None:
        return [states]
    return [states, Scratch(own["U"], "U", [f"args.{forward.value}", 'walk_tiles["CHUNK"]'], "dtype")]


def _matrix_gradients(plan: KeyBackwardPlan) -> list[Scratch]:
    rows = 'walk_tiles["CHUNK"]'
    scores = scores_of(plan.forward)
    return [array_like(plan.forward, f"{score.name}_gradient", [rows, rows], "dtype") for score in scores]


def launches(plan: KeyBackwardPlan, program: Program, own: Mapping[str, str]) -> Mapping[str, object]:
    """The four kernels, what they leave for one another, and where they come from."""
    prepare, states = kernels_of(plan)
    chunks, walks = "chunks * args.HV", "args.runs * args.HV * blocks"
    return {
        "imports": _imports(plan, program),
        "gradients_module": ".chunk_backward_walks",
        "tiles_reverse": False,
        "delta": plan.forward.delta is not None,
        "walked": walked_arrays(plan, own),
        "matrix_gradients": _matrix_gradients(plan),
        "prepare": launch_of(plan, prepare, chunks, own, "prepare_tiles"),
        "states": launch_of(plan, states, walks, own, "walk_tiles"),
        "reverse": launch_of(plan, Launched(program, "reverse"), walks, own, "walk_tiles"),
        "gradients": _gradients_launch(plan, program, own),
    }


def _listed(arrays: Sequence[Scratch]) -> str:
    return ", ".join(array.name for array in arrays)


def _imports(plan: KeyBackwardPlan, program: Program) -> list[tuple[str, list[str]]]:
    """The modules of the package with kernels, and what of them is launched."""
    prepare, states = kernels_of(plan)
    found = {
        "chunk_backward_gradients": [title_of(program, "gradients")],
        "chunk_backward_prepare": [] if plan.puts_out else [Scale(plan.forward).kernel],
        "chunk_backward_walks": [title_of(program, "reverse")],
        "chunk_kernels": [],
    }
    found.setdefault("chunk_backward_prepare" if plan.own_walk else "chunk_prepare", []).append(prepare.kernel)
    found["chunk_backward_walks" if plan.own_walk else "chunk_kernels"].append(states.kernel)
    if plan.puts_out:
        found["chunk_backward_walks"].append(TurnedOutput(plan.forward).kernel)
    return [(module, sorted(names)) for module, names in found.items() if names]


def launch_of(plan: KeyBackwardPlan, kernel: Launchable, grid: str, own: Mapping[str, str], tiles: str) -> Launch:
    """The launch of `kernel`, whose parameters say what it is handed."""
    final, (state,) = own["d_final_state"], plan.forward.spec.states
    arrays = {
        **{f"{array.inside}_ptr": array.name for array in (*walked_arrays(plan, own), *_matrix_gradients(plan))},
        **{f"{name}_ptr": own[name] for name in ("do", "state_gradients", R_GRADIENT)},
        **{f"{gradient.called}_ptr": gradient.called for gradient in plan.stored},
        "final_gradient_ptr": f"None if {final} is None else {final}.contiguous()",
        "initial_gradient_ptr": own["d_initial_state"],
        f"{final_of(plan.forward.spec, state)}_ptr": "None",
    }
    return Launch(kernel.kernel, grid, launch_arguments(plan.forward, kernel, arrays), tiles)


def _gradients_launch(plan: KeyBackwardPlan, program: Program, own: Mapping[str, str]) -> Launch:
    """The last kernel has the rows of the walks, the decays of the preparation, and tiles of its own."""
    kernel = Launched(program, "gradients")
    launch = launch_of(plan, kernel, "chunks * args.H", own, "")
    sizes = [name for name in ("CHUNK", "LEVELS", "LEAF_LEVELS", "TERMS") if name in kernel.data.sizes]
    rows = [f'{name}=prepare_tiles["{name}"]' for name in sizes]
    return Launch(launch.kernel, launch.grid, [*launch.arguments, *rows], "")
