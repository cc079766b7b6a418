"""The plan of `chunk_<name>` where the output is the solution of a system: a walk that leaves the matrix before each
chunk, then conjugate gradients for the tokens of all chunks at once, each step a read of the chunk.

Decided here: the rows of the read, once for a walk that has blocks of the values, and once for a program that has all
of a chunk's keys and values, so that a vector over the one is a vector over the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from flagen.algebra.chunk import chunk_form
from flagen.algebra.orient import normal_form
from flagen.algebra.solved_read import SystemRead
from flagen.plan import chunk_kernel
from flagen.plan.chunk import plan_chunk
from flagen.plan.chunk_families import SIZES
from flagen.plan.chunk_kernel import ChunkKernelPlan, ScalarDecayPlanner
from flagen.plan.row_planner import NoKernel


@dataclass(frozen=True)
class SolutionRows:
    """The read of a system, and its rows in either kernel: `walk` has blocks of the values, `solve` all of a chunk."""

    read: SystemRead
    walk: ChunkKernelPlan
    solve: ChunkKernelPlan

    def dump(self) -> str:
        """The plan as text: the launches, then the rows."""
        read, rows = self.read, self.solve
        lines = [
            f"a walk that leaves the matrix before each chunk, in blocks of {rows.value}, then steps of conjugate "
            f"gradients, all chunks at once; at most {rows.size} tokens a chunk",
            f"    right side = {read.right.name}",
            f"    diagonal = {read.shift.name}",
            *rows.dump().splitlines()[1:-1],
        ]
        return "\n".join(lines)


def plan_solution(read: SystemRead) -> SolutionRows:
    """The rows of `read`.

    Raises:
        NoKernel: an expression keeps them out of the kernels.
    """
    chunk = plan_chunk(chunk_form(normal_form(read.spec)))
    nf = chunk.normal_form
    if not chunk_kernel.fits(nf) or nf.has_delta:
        raise NoKernel("the matrix of the system is not written by one row a token", nf.spec.end_of_update)
    size = max(size for size in SIZES if size <= max(chunk.size, SIZES[0]))
    return SolutionRows(
        read, chunk_kernel.plan_scalar_decay(chunk, size), ScalarDecayPlanner(chunk, rows_first=True).plan(size)
    )
