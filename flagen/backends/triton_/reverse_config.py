"""Block sizes and warps of the kernel that transposes statements: a function that goes beside it.

The numbers come from compiling every committed variant for sm_80 and sm_90 (decision 054).
"""

from __future__ import annotations

from collections.abc import Iterator

from flagen.backends.triton_.config import MIN_MATRIX_BLOCK, sum_of_blocks
from flagen.kernel.reverse import held_tiles, matrix_dims
from flagen.plan.reverse_mode import ReversePlan
from flagen.plan.split import Split
from flagen.spec.model import Dims

VALUES, VALUES_PER_WARP = 12288, 1536
"""How much of the tiles a program holds, and a warp: three tiles of 128 x 32 in 8 warps, 48 values a thread."""


def config_lines(plan: ReversePlan) -> Iterator[str]:
    """The body of `launch_config`, up to its `return`."""
    split, tiles = plan.forward.split, held_tiles(plan)
    for dim in plan.forward.order:
        if split is None or dim != split.dim:
            yield f"BLOCK_{dim} = {_padded(plan, dim)}"
    if split is not None:
        yield from _block_of(plan, split, tiles)
    total = sum_of_blocks(tiles)
    yield "# More than 8 warps leave a thread too few registers for what it needs besides."
    yield f"num_warps = triton.next_power_of_2(min(8, max(1, {total} // {VALUES_PER_WARP})))"


def _block_of(plan: ReversePlan, split: Split, tiles: list[Dims]) -> Iterator[str]:
    cut = [[dim for dim in dims if dim != split.dim] for dims in tiles if split.dim in dims]
    if len(cut) < len(tiles):
        yield f"# Every block of {split.dim} does what does not have {split.dim} over again: few blocks."
        limit = str(MIN_MATRIX_BLOCK if matrix_dims(plan) else 64)
    else:
        yield f"# As many indices of {split.dim} as registers hold: every block has its share of the other gradients."
        limit = f"min(128, max(8, triton.next_power_of_2({VALUES} // {sum_of_blocks(cut)} + 1) // 2))"
    block = f"min({_padded(plan, split.dim)}, {limit})"
    if split.dim in matrix_dims(plan):
        block = f"max({MIN_MATRIX_BLOCK}, {block})"
    yield f"BLOCK_{split.dim} = {block}"


def _padded(plan: ReversePlan, dim: str) -> str:
    power = f"triton.next_power_of_2({dim})"
    return f"max({MIN_MATRIX_BLOCK}, {power})" if dim in matrix_dims(plan) else power
