"""Block sizes and warps of the kernels of the recurrent backward: a function that goes beside them.

The numbers come from compiling every committed variant for sm_80 and sm_90 (decision 052).
"""

from __future__ import annotations

from collections.abc import Iterator

from flagen.plan.fused_backward import FusedBackwardPlan


def config_lines(plan: FusedBackwardPlan) -> Iterator[str]:
    """The body of `launch_config`: first the blocks of the walks, then those of the kernels of segments."""
    key, value = f"BLOCK_{plan.key}", f"BLOCK_{plan.value}"
    size = f"triton.next_power_of_2({plan.value})"
    yield f"{key} = triton.next_power_of_2({plan.key})"
    others = [dim for dim in plan.forward.spec.dims if dim not in (plan.key, plan.value)]
    for dim in others:
        yield f"BLOCK_{dim} = triton.next_power_of_2({dim})"
    blocks = ", ".join(_entry(block) for block in (key, value, *(f"BLOCK_{dim}" for dim in others)))
    if plan.whole_values:
        yield f"{value} = {size}"
        yield f"walk = inside = {{{blocks}, {_warps(key, value)}}}"
    else:
        yield f"{value} = min({size}, 128, max(8, 1024 // {key}))"
        yield f"walk = {{{blocks}, {_warps(key, value)}}}"
        yield f"{value} = min({size}, max(16, {_values_inside(plan)} // {key}))"
        yield f"inside = {{{blocks}, {_warps(key, value)}}}"
    yield "return walk, inside"


def _values_inside(plan: FusedBackwardPlan) -> int:
    """How much of the state a program of a segment has; half of it where it keeps a second tile."""
    return 8192 if plan.reads.kept or plan.gradients.kept else 16384


def _entry(block: str) -> str:
    return f'"{block}": {block}'


def _warps(key: str, value: str) -> str:
    """64 values of the state a thread leave registers for the token's rows."""
    return f'"num_warps": min(16, max(1, {key} * {value} // 2048))'
