"""Block sizes and warps of the kernel that transposes statements: a function that goes beside it.

The numbers come from compiling every committed variant for sm_80 and sm_90 (decision 054).
"""

from __future__ import annotations

from collections.abc import Iterator

from flagen.backends.triton_.config import MIN_MATRIX_BLOCK, sum_of_blocks
from flagen.plan.reverse_mode import ReversePlan
from flagen.plan.tiles import MAX_DIMS
from flagen.spec.model import Dims, Input, Param


def config_lines(plan: ReversePlan) -> Iterator[str]:
    """The body of `launch_config`, up to its `return`."""
    split = plan.forward.split
    for dim in plan.forward.order:
        if split is None or dim != split.dim:
            yield f"BLOCK_{dim} = {_padded(plan, dim)}"
    tiles = _large(plan)
    if split is not None:
        indices = sum_of_blocks([[dim for dim in dims if dim != split.dim] for dims in tiles if split.dim in dims])
        block = f"max(16, triton.next_power_of_2({_VALUES} // {indices}))"
        yield f"BLOCK_{split.dim} = min({_padded(plan, split.dim)}, {block})"
    total = sum_of_blocks(tiles)
    yield f"num_warps = triton.next_power_of_2(min(16, max(1, {total} // {_VALUES_PER_WARP})))"


_VALUES = 16384
_VALUES_PER_WARP = 4096


def _large(plan: ReversePlan) -> list[Dims]:
    """The tiles that a program holds at one time, of those with the most dims: a state before and after a statement and
    its gradient; an input or param and its gradient."""
    spec = plan.forward.spec
    tiles = [state.dims for state in spec.states for _ in range(3)]
    declared: tuple[Input | Param, ...] = (*spec.inputs, *spec.params)
    tiles += [decl.dims for decl in declared if len(decl.dims) == MAX_DIMS for _ in range(2)]
    most = max(len(dims) for dims in tiles)
    return [dims for dims in tiles if len(dims) == most]


def _padded(plan: ReversePlan, dim: str) -> str:
    power = f"triton.next_power_of_2({dim})"
    return f"max({MIN_MATRIX_BLOCK}, {power})" if dim in plan.matrix_dims | plan.forward.matrix_dims else power
