"""Which tiles and how many warps kernels that solve systems are launched with."""

from __future__ import annotations

from flagen.plan.solves import SolutionRows
from flagen.plan.tiling import Choice, Tiles, Tiling

_DOCS = (
    "Tiles and warps of the kernels for these sizes.\n\n"
    "All products are of float32. A program that solves has all of a matrix beside a chunk's keys: it lies in shared\n"
    "memory, where there is no room for more rows."
)


def solution_tiling(plan: SolutionRows) -> Tiling:
    """The rule for the walk, and for the kernel that solves."""
    key, value = plan.solve.key, plan.solve.value
    rows = Choice("CHUNK", "min(chunk_size, 32)")
    whole = [Choice(f"BLOCK_{dim}", f"max(16, triton.next_power_of_2({dim}))") for dim in (key, value)]
    narrow = Choice(f"BLOCK_{value}", f'min(32, solve["BLOCK_{value}"])')
    warps = Choice("num_warps", f"4 if {value} <= 64 else 8")
    body = (
        Tiles("solve", (rows, *whole, warps, Choice("num_stages", "1"))),
        Tiles("walk", (narrow,), base="solve"),
    )
    parameters = (f"{key}: int", f"{value}: int", "chunk_size: int")
    returns = "tuple[dict[str, int], dict[str, int]]"
    return Tiling("launch_config", parameters, returns, _DOCS, body)
