"""Triton without a GPU: an interpreter whose numbers can be believed, a meter of traffic, an offline compiler.

    repair, dots_as_compiled, autotune_choice   the interpreter made honest: `repair()`, once, under TRITON_INTERPRET=1
    flagen.triton_cpu.meter                     bytes, flops and launches of the kernels run in the interpreter
    flagen.triton_cpu.offline                   registers, spills, shared memory and matrix instructions of a kernel

The interpreter and the compiler need separate processes: Triton decides at import whether `@triton.jit` interprets.
Nothing on flagen's build path imports this package.
"""

from flagen.triton_cpu.border import InterpreterOffError, InterpreterOnError, UnsupportedTritonError
from flagen.triton_cpu.dots import dots_as_compiled
from flagen.triton_cpu.launches import autotune_choice
from flagen.triton_cpu.repair import repair

__all__ = [
    "InterpreterOffError",
    "InterpreterOnError",
    "UnsupportedTritonError",
    "autotune_choice",
    "dots_as_compiled",
    "repair",
]
