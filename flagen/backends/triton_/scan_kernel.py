"""The contexts of `chunk_kernels.py` and `chunk_backward_kernels.py` where states are elementwise scans."""

from __future__ import annotations

from collections.abc import Mapping

from flagen.backends.torch_.common import equations
from flagen.backends.triton_.device import OF_SCANS
from flagen.backends.triton_.kernel import Docs, function_context
from flagen.backends.triton_.scan_describe import ownership, reverse_lines, traffic, traffic_back
from flagen.backends.triton_.tiling_printer import tiling_context
from flagen.kernel.ir import Program
from flagen.plan.recurrent_tiling import scan_tiling
from flagen.plan.scan_backward import ScanBackwardPlan
from flagen.plan.scan_kernel import ScanKernelPlan

_AT_ONCE = "Take some tokens of one sequence of one value head, and of those around them what they are made of."


def scan_kernel_context(plan: ScanKernelPlan, backward: ScanBackwardPlan, program: Program) -> Mapping[str, object]:
    """Every value `triton/scan_kernels.py.j2` uses."""
    walked = "Walk the chunks of one sequence of one value head, all tokens of a chunk at once."
    docs = Docs(
        _AT_ONCE if plan.is_window else walked,
        equations(plan.spec),
        (ownership(plan), traffic(plan, () if plan.is_window else backward.kept)),
    )
    return {"what": program.name, **_context(plan, program, docs, backward=False)}


def scan_backward_context(plan: ScanBackwardPlan, program: Program) -> Mapping[str, object]:
    """The same for the kernel of the gradients."""
    lines, texts = reverse_lines(plan), (ownership(plan.forward), traffic_back(plan))
    if plan.forward.is_window:
        docs = Docs(_AT_ONCE, lines, texts, "The states are evaluated again. Then, from the last state to the first,")
    else:
        walked = "Walk the chunks of one sequence of one value head from the last to the first, all tokens of a chunk"
        again = "The states of a chunk are scanned again from the one before it."
        docs = Docs(f"{walked} at once.", lines, texts, f"{again} Then, from the last state to the first,")
    what = f"the gradients of chunk_{plan.spec.name}"
    return {"what": what, **_context(plan.forward, program, docs, backward=True)}


def _context(plan: ScanKernelPlan, program: Program, docs: Docs, *, backward: bool) -> Mapping[str, object]:
    (kernel,) = program.kernels
    return {
        "device": OF_SCANS,
        "tiling": tiling_context(scan_tiling(plan, backward=backward)),
        "kernel": function_context(f"{program.name}_kernel", kernel, docs),
    }
