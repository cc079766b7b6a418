"""The contexts of kernels, and that of `fused_recurrent_kernels.py`, which has the recurrent one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flagen.backends.torch_.common import equations
from flagen.backends.triton_.describe import ownership, traffic
from flagen.backends.triton_.device import OF_A_TOKEN
from flagen.backends.triton_.kernel_printer import KernelPrinter
from flagen.backends.triton_.tiling_printer import tiling_context
from flagen.kernel.ir import Kernel, Program
from flagen.plan.fused import FusedPlan
from flagen.plan.recurrent_tiling import fused_tiling
from flagen.spec.model import Spec


@dataclass(frozen=True)
class Docs:
    """What a kernel's docstring says: what a program does, equations, and some paragraphs; before the equations what
    leads to them, behind them what follows from them."""

    title: str
    equations: Sequence[str]
    texts: Sequence[str]
    lead: str = ""
    leads_on: str = ""
    further: Sequence[str] = ()


def function_context(
    title: str, kernel: Kernel, docs: Docs, printed_by: type[KernelPrinter] = KernelPrinter
) -> Mapping[str, object]:
    """What the macro of `triton/_kernel.py.j2` uses of a kernel."""
    printer = printed_by(kernel)
    return {
        "title": title,
        "docs": docs,
        "parameters": printer.parameters(),
        "not_specialized": ", ".join(f'"{length}"' for length in kernel.lengths),
        "lines": list(printer.lines()),
    }


def kernel_context(plan: FusedPlan, program: Program) -> Mapping[str, object]:
    """Every value `triton/fused_recurrent_kernels.py.j2` uses."""
    (kernel,) = program.kernels
    docs = Docs(
        "Walk one sequence of one value head from its first token to its last.",
        equations(plan.spec),
        (ownership(plan), traffic(plan)),
    )
    return {
        "name": plan.spec.name,
        "device": OF_A_TOKEN,
        "tiling": tiling_context(fused_tiling(plan)),
        "kernel": function_context(f"{program.name}_kernel", kernel, docs),
    }


def tensor_names(spec: Spec) -> tuple[str, ...]:
    """Inputs and tensor params, in the order of the signature's tensors."""
    return (*(decl.name for decl in spec.inputs), *(param.name for param in spec.params if param.is_tensor))
