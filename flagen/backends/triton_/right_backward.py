"""The contexts of the files of the backward of a right read: the kernels of a left read, and the function that launches
them with what was read with and the gradient of the output in each other's place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from flagen.backends.triton_.backward_launcher import (
    SHARED_CONTEXT,
    backward_signature,
    of_call,
    own_names,
    states_of_call,
    tiles_of_kernels,
)
from flagen.backends.triton_.chunk_launcher import Launch, call_context
from flagen.backends.triton_.key_backward import (
    Contexts,
    kernel_contexts,
    launch_of,
    launches,
    prepared,
    walked_arrays,
)
from flagen.backends.triton_.launched import Launched
from flagen.kernel.ir import Program
from flagen.plan.free_names import free_name
from flagen.plan.right_backward import RightBackwardPlan
from flagen.plan.schedule import declared_names


def right_backward_contexts(plan: RightBackwardPlan, forward: Program, program: Program) -> Contexts:
    """The files of the backward; `forward`: the kernels of the call."""
    kernels = kernel_contexts(plan.turned, forward, program)
    return {**kernels, "chunk_backward": ("right_backward", _launcher_context(plan, program))}


def _launcher_context(plan: RightBackwardPlan, program: Program) -> Mapping[str, object]:
    """Every value `triton/right_backward.py.j2` uses."""
    turned, shared = plan.turned, call_context(plan.forward)
    own, gradients = own_names(turned), of_call(turned)
    called = [gradient.called for gradient in turned.stored]
    d_read = free_name(f"d_{plan.reads}", {*declared_names(turned.rows.spec), *called})
    output = launch_of(turned, Launched(program, "turned_output"), "chunks * args.HV * blocks", own, "walk_tiles")
    known = {**launches(turned, program, own), "output": output}
    gradients = replace(
        gradients,
        spec=plan.forward.spec,
        named={**gradients.named, plan.reads: d_read},
        partial=gradients.partial if plan.shares_keys else dict.fromkeys(gradients.partial, "args.HV"),
        repeated=plan.repeated,
    )
    kept = [array.name for array in walked_arrays(turned, own)]
    swapped = {
        kernel: _swapped(plan, launch, own["do"], d_read)
        for kernel, launch in known.items()
        if isinstance(launch, Launch)
    }
    return {
        **{name: shared[name] for name in SHARED_CONTEXT},
        "config_lines": call_context(turned.forward)["config_lines"],
        **backward_signature(plan.forward),
        **gradients.context(),
        **states_of_call(turned),
        **known,
        **swapped,
        "own": own,
        "turned": _turned(plan, own["do"]),
        "read_gradient": d_read,
        "prepared": [array for group in prepared(turned) for array in group],
        "kept": kept,
        "saved": f"{', '.join(kept)} of each chunk; None to walk again.",
        "members": "args.HV // args.H" if plan.shares_keys else "1",
        **tiles_of_kernels(["prepare", "walk", "_"], reverse=False),
        "of_walks": f'"initial_state", "{plan.reads}"',
    }


def _turned(plan: RightBackwardPlan, do: str) -> str:
    """What the kernels have to do with the recurrence."""
    (output,) = plan.turned.rows.spec.output
    return (
        f"The kernels are those of {output.text}, with {plan.reader} = {do} and {plan.reads} for the gradient of o."
        f" What that adds to a loss is the same number, {do}^T S {plan.reads}: all else has the same gradients, and"
        f" its o is the gradient of {plan.reads}."
    )


def _swapped(plan: RightBackwardPlan, launch: Launch, do: str, d_read: str) -> Launch:
    """The launch with what each array of the turned recurrence is; heads are value heads if these share nothing."""
    handed = {plan.reader: do, do: plan.reads, "o": d_read}
    if not plan.shares_keys:
        handed |= {"H=args.H": "H=args.HV", "chunks * args.H": "chunks * args.HV"}
    arguments = [handed.get(argument, argument) for argument in launch.arguments]
    return replace(launch, grid=handed.get(launch.grid, launch.grid), arguments=arguments)
