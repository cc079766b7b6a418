"""Lowers the backward of a right read: a left read of the same states, whose gradient is what was read with."""

from __future__ import annotations

from dataclasses import replace

from flagen.kernel.ir import Array, Program
from flagen.kernel.key_backward import key_chunk_backward
from flagen.kernel.passes import with_arrays
from flagen.plan.backward_levels import OUTPUT
from flagen.plan.right_backward import RightBackwardPlan


def right_chunk_backward(plan: RightBackwardPlan) -> Program:
    """The kernels of the turned recurrence, with what its arrays are of this one."""
    program = key_chunk_backward(plan.turned)

    def meant(array: Array) -> Array:
        match array.life:
            case "argument" if array.of == plan.reader:
                return replace(array, life="cotangent", of=OUTPUT)
            case "cotangent" if array.of == OUTPUT:
                return replace(array, life="argument", of=plan.reads)
            case "result" if array.of == OUTPUT:
                return replace(array, life="gradient", of=plan.reads, optional=True)
        return array

    return replace(program, kernels=tuple(with_arrays(kernel, meant) for kernel in program.kernels))
