"""The contexts of the files of the backward for decays of each key: its kernels, and the function that launches
them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from flagen.backends.triton_.backward_launcher import (
    SHARED_CONTEXT,
    backward_signature,
    gradients_of_call,
    own_names,
    tiles_of_kernels,
)
from flagen.backends.triton_.chunk_launcher import (
    Launch,
    Scratch,
    array_like,
    call_context,
    launch_arguments,
    prepared_arrays,
)
from flagen.backends.triton_.chunk_printer import ChunkPrinter
from flagen.backends.triton_.device import OF_CHUNKS
from flagen.backends.triton_.kernel import Docs, function_context
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
from flagen.backends.triton_.launched import Launchable, Launched, title_of
from flagen.backends.triton_.tiling_printer import tiling_context
from flagen.kernel.ir import Program
from flagen.kernel.key_backward import KEEPING
from flagen.kernel.key_rows import matrices, scores_of
from flagen.plan.backward_levels import R_GRADIENT
from flagen.plan.free_names import final_of
from flagen.plan.key_backward import KeyBackwardPlan
from flagen.plan.tiling import gradients_tiling

Contexts = Mapping[str, tuple[str, Mapping[str, object]]]
"""The template of each file and every value that it uses, by the file's module."""


def key_backward_contexts(plan: KeyBackwardPlan, forward: Program, program: Program) -> Contexts:
    """The files of the backward; `forward`: the kernels of the call."""
    launcher = _launcher_context(plan, program)
    return {**kernel_contexts(plan, forward, program), "chunk_backward": ("key_backward", launcher)}


def kernel_contexts(plan: KeyBackwardPlan, forward: Program, program: Program) -> Contexts:
    """The files of its kernels."""
    gradients = [_function(program, "gradients", gradients_docs(plan.rows, decays=plan.decays))]
    of_file = {
        "prepare": _prepare_kernels(plan, program),
        "walks": _walk_kernels(plan, forward, program),
        "gradients": gradients,
    }
    known = {
        "name": plan.forward.spec.name,
        "device": OF_CHUNKS,
        "tiling": tiling_context(gradients_tiling(plan)),
    }
    used = {"prepare": ("name", "device"), "walks": tuple(known), "gradients": ("name", "device")}
    return {
        f"chunk_backward_{file}": (
            f"key_backward_{file}",
            {**{name: known[name] for name in used[file]}, "kernels": kernels},
        )
        for file, kernels in of_file.items()
    }


def _function(program: Program, name: str, docs: Docs) -> Mapping[str, object]:
    """A kernel, as templates print it."""
    return function_context(title_of(program, name), program.kernel(name), docs, ChunkPrinter)


# ------------------------------------------------------------------------------------------------------------- kernels


def _prepare_kernels(plan: KeyBackwardPlan, program: Program) -> list[Mapping[str, object]]:
    prepare, *_ = program.ways[0]
    own = [_function(program, prepare, prepare_docs(plan.forward))] if plan.own_walk else []
    return own if plan.puts_out else [*own, _function(program, "scale", scale_docs(plan.forward))]


def _walk_kernels(plan: KeyBackwardPlan, forward: Program, program: Program) -> list[Mapping[str, object]]:
    """The walks, and what puts out what is read from the left."""
    rows, (_, walk, *_) = plan.forward, program.ways[0]
    kernels = []
    if plan.puts_out:
        kernels = [_function(program, walk, turned_docs(rows)), _function(program, "turned_output", output_docs(rows))]
    elif plan.prepares:
        _, keeping = KEEPING
        kept = _function(forward, keeping, walk_docs(rows, keeps=True))
        kernels = [kept, _function(program, walk, states_docs(rows))]
    return [*kernels, _function(program, "reverse", reverse_docs(rows))]


# ------------------------------------------------------------------------------------------------------------ launches


def _launcher_context(plan: KeyBackwardPlan, program: Program) -> Mapping[str, object]:
    """Every value `triton/key_backward.py.j2` uses."""
    shared, own = call_context(plan.forward), own_names(plan)
    squares, scaled = prepared(plan)
    walked = walked_arrays(plan, own)
    scale = launch_of(plan, Launched(program, "scale"), "chunks * args.HV", own, "prepare_tiles")
    return {
        **{name: shared[name] for name in (*SHARED_CONTEXT, "config_lines")},
        **backward_signature(plan.forward),
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
        **tiles_of_kernels(["prepare", "walk"], reverse=False),
        "of_walks": '"initial_state"',
    }


def prepared(plan: KeyBackwardPlan) -> tuple[list[Scratch], list[Scratch]]:
    """The matrices of the chunks, and the scaled rows."""
    square = matrices(plan.forward)
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
    prepare, states = (Launched(program, name) for name in program.ways[0][:2])
    chunks, walks = "chunks * args.HV", "args.runs * args.HV * blocks"
    return {
        "imports": _imports(plan, program),
        "gradients_module": ".chunk_backward_walks",
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
    prepare, walk, *_ = program.ways[0]
    own = "chunk_backward_"
    modules = {"gradients": f"{own}gradients", "scale": f"{own}prepare", "reverse": f"{own}walks"}
    modules |= {"turned_output": f"{own}walks"}
    modules |= {prepare: f"{own}prepare", walk: f"{own}walks"} if plan.own_walk else {}
    modules |= {} if plan.own_walk else {prepare: "chunk_prepare", walk: "chunk_kernels"}
    order = (f"{own}gradients", f"{own}prepare", f"{own}walks", "chunk_kernels", "chunk_prepare")
    launched = {module: sorted(_launched(program, modules, module)) for module in order}
    return [(module, names) for module, names in launched.items() if names]


def _launched(program: Program, modules: Mapping[str, str], module: str) -> Iterator[str]:
    return (title_of(program, kernel.name) for kernel in program.kernels if modules[kernel.name] == module)


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
