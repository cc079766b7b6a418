"""The files of `chunk_<name>` where states are elementwise scans."""

from __future__ import annotations

from flagen.backends.protocol import Rendering
from flagen.backends.triton_.scan_kernel import scan_backward_context, scan_kernel_context
from flagen.backends.triton_.scan_launcher import scan_backward_launcher_context, scan_launcher_context
from flagen.kernel.ir import Program
from flagen.plan.scan_backward import ScanBackwardPlan
from flagen.plan.scan_kernel import ScanKernelPlan


def scan_kernel_renderings(
    plan: ScanKernelPlan, backward: ScanBackwardPlan, program: Program, back: Program
) -> tuple[Rendering, ...]:
    """`chunk.py`, `chunk_backward.py` and their kernels, of a package or of a part of one.

    Beside one another and `.chunk` (see `flagen.backends.torch_.scan`), they import `.arguments` and `.operators`.
    """
    kernels, launcher = "triton/scan_kernels.py.j2", scan_launcher_context(plan, backward, program, back)
    return (
        Rendering("chunk_kernels.py", kernels, scan_kernel_context(plan, backward, program)),
        Rendering("chunk.py", "triton/scan.py.j2", launcher),
        Rendering("chunk_backward_kernels.py", kernels, scan_backward_context(backward, back)),
        Rendering("chunk_backward.py", "triton/scan_backward.py.j2", scan_backward_launcher_context(backward, back)),
    )
