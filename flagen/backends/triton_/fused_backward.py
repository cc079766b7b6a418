"""The context of `fused_recurrent_backward_kernels.py`: the kernels of both backwards of a recurrent operator."""

from __future__ import annotations

from collections.abc import Mapping

from flagen.backends.text import listed
from flagen.backends.torch_.common import equations
from flagen.backends.triton_.device import OF_A_TOKEN
from flagen.backends.triton_.fused_backward_describe import docs, row_lines
from flagen.backends.triton_.kernel import Docs, function_context
from flagen.backends.triton_.tiling_printer import tiling_context
from flagen.kernel.ir import Kernel, Program
from flagen.plan.fused_backward import FusedBackwardPlan
from flagen.plan.recurrent_tiling import fused_backward_tiling, reverse_mode_tiling
from flagen.plan.reverse_mode import ReversePlan


def title_of(program: Program, kernel: Kernel) -> str:
    """What the function of a kernel is called."""
    return f"{program.name}_{kernel.name}_kernel"


def backward_kernels_context(plan: FusedBackwardPlan, program: Program) -> Mapping[str, object]:
    """Every value `triton/fused_recurrent_backward_kernels.py.j2` uses."""
    return {
        "name": plan.forward.spec.name,
        "device": OF_A_TOKEN,
        "tiling": tiling_context(fused_backward_tiling(plan)),
        "kernels": [
            function_context(title_of(program, kernel), kernel, docs(plan, kernel.name)) for kernel in program.kernels
        ],
        "rows": row_lines(plan),
    }


def reverse_kernels_context(plan: ReversePlan, program: Program) -> Mapping[str, object]:
    """Every value `triton/reverse_kernels.py.j2` uses."""
    return {
        "name": plan.forward.spec.name,
        "device": OF_A_TOKEN,
        "tiling": tiling_context(reverse_mode_tiling(plan)),
        "kernels": [
            function_context(title_of(program, kernel), kernel, _reverse_docs(plan, kernel.name))
            for kernel in program.kernels
        ],
    }


def _reverse_docs(plan: ReversePlan, name: str) -> Docs:
    spec, split = plan.forward.spec, plan.forward.split
    states = listed(state.name for state in spec.states)
    if split is None:
        owned = f"A program owns {states} of one head of one sequence"
    else:
        cut = listed(state.name for state in spec.states if split.dim in state.dims)
        whole = listed(state.name for state in spec.states if split.dim not in state.dims)
        owned = f"A program owns BLOCK_{split.dim} indices of {split.dim} of {cut}, of one head of one sequence"
        owned += f", and computes the whole of {whole}" if whole else ""
    return Docs(_TITLE[name], equations(spec), (f"{owned}{_TEXT[name]}",))


_TITLE = {
    "states": "Walk one sequence of one value head from its first token to its last but one segment.",
    "gradients": "Walk one sequence of one value head back, segment by segment, with the gradient of the state.",
}

_TEXT = {
    "states": "; it stores what it owns as it is before each segment of SEGMENT tokens.",
    "gradients": (
        ". It walks each segment forward first and stores what it owns before each token, for itself. Going back it"
        " evaluates the statements of a token once more, and takes the gradient of what each has made to what that was"
        " made of, the last one first. A gradient of what other programs read, too, is a share of a sum; one whose"
        " pointer is None is not stored."
    ),
}
