"""Blocks and warps of the kernels of elementwise scans: a small function that goes into the file beside the kernel.

The numbers come from compiling the committed variants for sm_80, sm_90, sm_100 and gfx942 (see the decision record on
elementwise scans): a thread holds up to twenty tiles of a chunk at once, so eight to sixteen values of each fit.
"""

from __future__ import annotations

from collections.abc import Iterator

from flagen.backends.printed import product_of
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
        whole = product_of("CHUNK", *(f"BLOCK_{dim}" for dim in wide if dim != plan.split))
        values = 4096 if len(wide) > 1 else 1024
        if backward and len(wide) > 1:
            yield f"# Every block of {plan.split} writes shares of the gradients that lack it: few blocks."
        most = f"max({1 if len(wide) > 1 else 16}, {values} // ({whole}))"
        yield f"BLOCK_{plan.split} = min(triton.next_power_of_2({plan.split}), {most})"
    tile = product_of("CHUNK", *(f"BLOCK_{dim}" for dim in wide))
    each = 256 if len(wide) < 2 and backward else 512
    yield f"num_warps = min({8 if backward else 16}, max(1, {tile} // {each}))"


def _widest(plan: ScanKernelPlan) -> Dims:
    """The dims of the largest tile that has a row for every token."""
    tiles = [state.dims for state in plan.spec.states] + [decl.dims for decl in plan.spec.inputs]
    tiles += [result.dims for result in plan.plan.results]
    return max(tiles, key=lambda dims: (len(dims), plan.split in dims))
