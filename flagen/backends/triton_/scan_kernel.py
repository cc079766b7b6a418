"""The contexts of `chunk_kernels.py` and `chunk_backward_kernels.py` where states are elementwise scans."""

from __future__ import annotations

from collections.abc import Mapping

from flagen.backends.torch_.common import equations
from flagen.backends.triton_.device import OF_PIECES, OF_SCANS
from flagen.backends.triton_.kernel import Docs, function_context
from flagen.backends.triton_.scan_describe import (
    of_pieces,
    ownership,
    reverse_lines,
    traffic,
    traffic_back,
    transposed,
)
from flagen.backends.triton_.tiling_printer import tiling_context
from flagen.kernel.ir import Program
from flagen.plan.pieces import PieceBackwardPlan, PieceKernelPlan
from flagen.plan.recurrent_tiling import piece_tiling, scan_tiling
from flagen.plan.scan_backward import ScanBackwardPlan
from flagen.plan.scan_kernel import ScanKernelPlan

_AT_ONCE = "Take some tokens of one sequence of one value head, and of those around them what they are made of."


def scan_kernel_context(plan: ScanKernelPlan, backward: ScanBackwardPlan, program: Program) -> Mapping[str, object]:
    """Every value `triton/scan_kernels.py.j2` uses."""
    walked = "Walk the chunks of one sequence of one value head, all tokens of a chunk at once."
    if isinstance(plan, PieceKernelPlan):
        texts = (ownership(plan), of_pieces(plan), traffic(plan, backward.kept))
        return {
            "what": program.name,
            **_context(plan, program, Docs(walked, equations(plan.spec), texts), backward=False),
        }
    docs = Docs(
        _AT_ONCE if plan.is_window else walked,
        equations(plan.spec),
        (ownership(plan), traffic(plan, () if plan.is_window else backward.kept)),
    )
    return {"what": program.name, **_context(plan, program, docs, backward=False)}


def scan_backward_context(plan: ScanBackwardPlan, program: Program) -> Mapping[str, object]:
    """The same for the kernel of the gradients."""
    what, walked = f"the gradients of chunk_{plan.spec.name}", "Walk the chunks of one sequence of one value head"
    if isinstance(plan, PieceBackwardPlan):
        texts = (ownership(plan.forward), transposed(plan), traffic_back(plan))
        docs = Docs(f"{walked} back, all tokens of a chunk at once.", equations(plan.spec), texts)
        return {"what": what, **_context(plan.forward, program, docs, backward=True)}
    lines, about = reverse_lines(plan), (ownership(plan.forward), traffic_back(plan))
    if plan.forward.is_window:
        docs = Docs(_AT_ONCE, lines, about, "The states are evaluated again. Then, from the last state to the first,")
    else:
        again = "The states of a chunk are scanned again from the one before it."
        back = f"{walked} from the last to the first, all tokens of a chunk at once."
        docs = Docs(back, lines, about, f"{again} Then, from the last state to the first,")
    return {"what": what, **_context(plan.forward, program, docs, backward=True)}


def _context(plan: ScanKernelPlan, program: Program, docs: Docs, *, backward: bool) -> Mapping[str, object]:
    (kernel,) = program.kernels
    rule, device = scan_tiling(plan, backward=backward), OF_SCANS
    if isinstance(plan, PieceKernelPlan):
        rule, device = piece_tiling(plan), OF_PIECES
    return {
        "device": device,
        "tiling": tiling_context(rule),
        "kernel": function_context(f"{program.name}_kernel", kernel, docs),
    }
