"""Block sizes and warps of a fused recurrent kernel: a small function that goes into `fused_recurrent_kernels.py`.

The numbers come from compiling every committed variant for sm_80, sm_90, sm_100 and gfx942 (see
`tests/backends/test_triton_offline.py` and the decision record on splitting the state).
"""

from __future__ import annotations

from collections.abc import Iterator

from flagen.backends.printed import product_of, total_of
from flagen.plan.fused import FusedPlan
from flagen.plan.split import Split
from flagen.spec.model import Dims

MIN_MATRIX_BLOCK = 16
"""`tl.dot` takes no smaller operands."""


def config_lines(plan: FusedPlan) -> Iterator[str]:
    """The body of `launch_config`, up to its `return`."""
    split, order = plan.split, plan.order
    whole = [dim for dim in order if split is None or dim != split.dim]
    for dim in whole:
        yield f"BLOCK_{dim} = {_padded(plan, dim)}"
    if split is not None:
        yield from _block_of(plan, split)
    yield f"num_warps = {_warps(plan)}"


def _block_of(plan: FusedPlan, split: Split) -> Iterator[str]:
    tiles = [[d for d in dims if d != split.dim] for dims in _large(plan) if split.dim in dims]
    indices = f"1024 // {sum_of_blocks(tiles)}"
    if len(tiles) > 1:  # The sum of their blocks may be no power of two.
        indices = f"triton.next_power_of_2({indices})"
    if split.partial:
        yield f"# Every block of {split.dim} writes an output of its own: twice as many indices, half as many outputs."
        limits = f"max(16, {indices})"
    elif any(split.dim not in dims for dims in _large(plan)):
        yield f"# Every block of {split.dim} computes what does not have {split.dim} over again: few blocks."
        limits = "64"
    else:
        yield f"# Small blocks of {split.dim}: many programs hide latency; eight float32 are one sector of memory."
        limits = f"128, max(8, {indices})"
    block = f"min({_padded(plan, split.dim)}, {limits})"
    if split.dim in plan.matrix_dims:
        block = f"max({MIN_MATRIX_BLOCK}, {block})"
    yield f"BLOCK_{split.dim} = {block}"


def _warps(plan: FusedPlan) -> str:
    large = _large(plan)
    if not large or not large[0]:
        return "1"
    total = product_of(*(f"BLOCK_{dim}" for dim in large[0])) if len(large) == 1 else sum_of_blocks(large)
    warps = f"min(16, max(1, {total} // {_values_per_warp(plan)}))"
    return warps if len(large) == 1 else f"triton.next_power_of_2({warps})"


def _values_per_warp(plan: FusedPlan) -> int:
    """How much of the state a warp holds: 64 values a thread; `tl.dot` in full precision needs the registers itself."""
    return 512 if plan.matrix_dims else 2048


def _large(plan: FusedPlan) -> list[Dims]:
    """The tiles that decide how many registers a program needs: those with the most dims."""
    most = max(len(dims) for dims in plan.tiles)
    return [dims for dims in plan.tiles if len(dims) == most]


def sum_of_blocks(tiles: list[list[str]] | list[Dims]) -> str:
    """How many values tiles over these dims have together."""
    counts: dict[str, int] = {}
    for dims in tiles:
        product = product_of(*(f"BLOCK_{dim}" for dim in dims))
        counts[product] = counts.get(product, 0) + 1
    terms = [product if count == 1 else f"{count} * {product}" for product, count in counts.items()]
    return terms[0] if len(terms) == 1 and "*" not in terms[0] else f"({total_of(*terms)})"


def _padded(plan: FusedPlan, dim: str) -> str:
    power = f"triton.next_power_of_2({dim})"
    return f"max({MIN_MATRIX_BLOCK}, {power})" if dim in plan.matrix_dims else power
