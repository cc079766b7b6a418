"""The context of `chunk_backward.py`: the function that launches the backward kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flagen.backends.signature import Parameter, parameters
from flagen.backends.triton_.backward_gradients import Gradients
from flagen.backends.triton_.backward_kernel import tiles_reverse
from flagen.backends.triton_.backward_walks import Reverse, States, kept
from flagen.backends.triton_.chunk_launcher import Launch, chunk_launcher_context, launch_arguments, prepared_arrays, state_sizes
from flagen.backends.triton_.kernel import tensor_names
from flagen.backends.triton_.names import free_name
from flagen.backends.triton_.rows import RowKernel, RowPlan, steps_symbol
from flagen.plan.chunk_backward import BLOCK, KEYS, SHARED, ChunkBackwardPlan
from flagen.plan.key_backward import KeyBackwardPlan
from flagen.plan.schedule import declared_names


def backward_launcher_context(plan: ChunkBackwardPlan) -> Mapping[str, object]:
    """Every value `triton/chunk_backward.py.j2` uses."""
    forward = plan.forward
    shared = chunk_launcher_context(forward)
    own = own_names(plan)
    walks = "args.runs * args.HV * blocks"
    return {
        **{name: shared[name] for name in (*SHARED_CONTEXT, "steps", "prepared", "scratch")},
        **backward_signature(forward),
        **gradients_of_call(plan),
        "own": own,
        "key": plan.rows.key,
        "tiles": "walk_tiles, _" if forward.prepare is None else "prepare_tiles, walk_tiles",
        "every": plan.every,
        "rows_shape": f"args.batch, {_rows(plan)}, args.HV, args.{plan.rows.value}",
        "along_keys": [gradient.name for gradient in plan.stored if gradient.level == KEYS],
        "along_values": [gradient.name for gradient in plan.stored if gradient.level == BLOCK],
        "states": _launch(plan, States(plan), walks, own),
        "reverse": _launch(plan, Reverse(plan), walks, own, "reverse_tiles" if tiles_reverse(plan) else "walk_tiles"),
        "tiles_reverse": tiles_reverse(plan),
        "handed_on": [array.name for array in prepared_arrays(forward) if array.inside in kept(forward)],
        "gradients": _gradients_launch(plan, own),
    }


SHARED_CONTEXT = """
    name title paper equations check value defaults output_shape vectors others
    config_arguments precision precision_note
    """.split()
"""What is as for the forward call."""


def backward_signature(forward: RowPlan) -> Mapping[str, object]:
    """What the function takes beside the gradients of what the forward call returned."""
    given = [p for p in parameters(forward.spec) if p.name != "output_final_state"]
    every = (*given, Parameter("chunk_size", "int", str(forward.size), True, "as in the forward call."))
    return {
        "signature": [
            *(p.declaration for p in every if not p.keyword),
            "*",
            *(p.declaration for p in every if p.keyword),
        ],
        "tensors": tensor_names(forward.spec),
        "state_shape": state_sizes(forward.state),
    }


def gradients_of_call(plan: ChunkBackwardPlan | KeyBackwardPlan) -> Mapping[str, Any]:
    """What gradients there are, and in what shape a kernel leaves them."""
    spec = plan.rows.spec
    return {
        "inputs": [decl.name for decl in spec.inputs],
        "params": [p.name for p in spec.params if p.is_tensor],
        "named": {gradient.name: gradient.called for gradient in plan.stored},
        "partial": {
            gradient.name: "args.H" if gradient.level in (SHARED, KEYS) else "args.HV"
            for gradient in plan.stored
            if any(param.name == gradient.name for param in spec.params)
        },
        "per_head": [param.name for param in spec.params if param.per_head],
        "repeated": (),
    }


def own_names(plan: ChunkBackwardPlan | KeyBackwardPlan) -> Mapping[str, str]:
    """What the function calls what is its own."""
    wanted = "do d_final_state d_initial_state prepared saved states state_gradients U R_gradient".split()
    taken = {*declared_names(plan.rows.spec), *(gradient.called for gradient in plan.stored)}
    return {name: free_name(name, taken) for name in wanted}


def _launch(
    plan: ChunkBackwardPlan, kernel: RowKernel[Any], grid: str, own: Mapping[str, str], tiles: str = "walk_tiles"
) -> Launch:
    final = own["d_final_state"]
    arrays = {
        **{f"{name}_ptr": own[name] for name in ("do", "states", "state_gradients", "U", "R_gradient")},
        **{f"{gradient.called}_ptr": gradient.called for gradient in plan.stored},
        "final_gradient_ptr": f"None if {final} is None else {final}.contiguous()",
        "initial_gradient_ptr": own["d_initial_state"],
    }
    return Launch(kernel.kernel, grid, launch_arguments(plan.forward, kernel, arrays), tiles)


def _gradients_launch(plan: ChunkBackwardPlan, own: Mapping[str, str]) -> Launch:
    """The last kernel has the rows of the walks, and tiles of its own."""
    launch = _launch(plan, Gradients(plan), "chunks * args.H", own)
    tiles = ("CHUNK", *(["BLOCK_TOKENS"] if steps_symbol(plan.rows) else []))
    rows = [f'{name}=walk_tiles["{name}"]' for name in tiles]
    return Launch(launch.kernel, launch.grid, [*launch.arguments, *rows], "")


def _rows(plan: ChunkBackwardPlan) -> str:
    """How many rows a batch entry has."""
    steps = plan.rows.spec.steps
    return f"args.tokens * {steps.argument}" if steps and steps_symbol(plan.rows) else "args.tokens"
