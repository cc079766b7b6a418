"""Blocks and warps of the kernels of elementwise scans: a small function that goes into the file beside the kernel.

The numbers come from compiling the committed variants for sm_80, sm_90, sm_100 and gfx942 (see the decision record on
elementwise scans): a thread holds about twenty tiles of a chunk at once, so eight to sixteen values of each fit.
"""

from __future__ import annotations

from collections.abc import Iterator

from flagen.plan.scan_kernel import ScanKernelPlan
from flagen.spec.model import Dims


def config_lines(plan: ScanKernelPlan, *, backward: bool) -> Iterator[str]:
    """The body of `launch_config`, up to its `return`."""
    dims = plan.order[1:]
    for dim in dims:
        if dim != plan.split:
            yield f"BLOCK_{dim} = triton.next_power_of_2({dim})"
    wide = _widest(plan)
    if plan.split is not None:
        whole = " * ".join(["CHUNK", *(f"BLOCK_{dim}" for dim in wide if dim != plan.split)])
        values = _values(len(wide), backward=backward)
        least = 4 if len(wide) > 1 else 16
        if backward and len(wide) > 1:
            yield f"# Every block of {plan.split} writes shares of the gradients that lack it: few blocks."
        yield (f"BLOCK_{plan.split} = min(triton.next_power_of_2({plan.split}), max({least}, {values} // ({whole})))")
    tile = " * ".join(["CHUNK", *(f"BLOCK_{dim}" for dim in wide)])
    each = 32 * (8 if backward else 16)
    yield f"num_warps = min(16, max(1, {tile} // {each}))"


def _values(dims: int, *, backward: bool) -> int:
    """How many values a tile has, where that can be chosen."""
    if dims > 1:
        return 4096
    return 1024 if backward else 2048


def _widest(plan: ScanKernelPlan) -> Dims:
    """The dims of the largest tile that has a row for every token."""
    tiles = [state.dims for state in plan.spec.states] + [decl.dims for decl in plan.spec.inputs]
    tiles += [result.dims for result in plan.plan.results]
    return max(tiles, key=lambda dims: (len(dims), plan.split in dims))
