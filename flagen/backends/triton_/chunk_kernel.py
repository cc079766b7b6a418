"""The context of `chunk_kernels.py`: the kernels of a chunk plan as source lines, in the order of its equations."""

from __future__ import annotations

from collections.abc import Mapping

from flagen.backends.printed import Printed, common_factor, product
from flagen.backends.triton_.chunk_describe import output_docs, prepare_docs, states_docs, walk_docs
from flagen.backends.triton_.chunk_printer import ChunkPrinter
from flagen.backends.triton_.device import OF_CHUNKS
from flagen.backends.triton_.kernel import Docs, function_context
from flagen.backends.triton_.launched import title_of
from flagen.backends.triton_.rows import (
    DOT,
    RowWriter,
    steps_symbol,
)
from flagen.kernel.ir import Program
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.rows import ROW, TOKEN


def chunk_kernel_context(plan: ChunkKernelPlan, program: Program, *, keeps: bool) -> Mapping[str, object]:
    """Every value `triton/chunk_kernels.py.j2` uses; the fused walk `keeps` what a backward takes from it."""
    docs = {"": walk_docs(plan, keeps=keeps), "states": states_docs(plan), "output": output_docs(plan)}
    return {
        "name": plan.spec.name,
        "key": plan.key,
        "value": plan.value,
        "steps": steps_symbol(plan),
        "device": OF_CHUNKS,
        "prepares": plan.prepare is not None,
        "crowded": plan.crowded,
        "reflects": plan.delta is not None and not plan.contracts,
        "widest": "32 if single else 64" if plan.delta is None else f"32 if single or {plan.key} > 128 else 64",
        "kernels": [_function(program, name, said) for name, said in docs.items()],
    }


def chunk_prepare_context(plan: ChunkKernelPlan, program: Program) -> Mapping[str, object]:
    """Every value `triton/chunk_prepare.py.j2` uses."""
    return {"name": plan.spec.name, "device": OF_CHUNKS, "kernel": _function(program, "prepare", prepare_docs(plan))}


def _function(program: Program, name: str, docs: Docs) -> Mapping[str, object]:
    return function_context(title_of(program, name), program.kernel(name), docs, ChunkPrinter)


def tiles(plan: ChunkKernelPlan, *dims: str) -> tuple[str, ...]:
    """The sizes that a kernel over `dims` is compiled for."""
    tokens = ["BLOCK_TOKENS"] if steps_symbol(plan) else []
    return (*dims, "CHUNK", *tokens, *(f"BLOCK_{dim}" for dim in dims), "PRECISION")


class ScalarDecayRows(RowWriter[ChunkKernelPlan]):
    """What the kernels of a plan have in common."""

    def decays(self) -> list[str]:
        """Sums of the log decays of a chunk, and the factors at its ends."""
        if self.plan.row_decay is None:
            return []
        lines = []
        if self.plan.token_decay is not None:
            lines += [
                f"coarse, fine = split_log_decay({self.print(self.plan.token_decay, TOKEN)})",
                "coarse_read, fine_read = tl.cumsum(coarse, axis=0), tl.cumsum(fine, axis=0)",
            ]
        decay = self.print(self.plan.row_decay, self.row)
        if self.plan.token_decay is not None:
            # The decay comes before the first row of each token.
            decay = f"tl.where({self.axes.index(ROW)} % {steps_symbol(self.plan)} == 0, {decay}, 0.0)"
        return [
            *lines,
            f"coarse, fine = split_log_decay({decay})",
            "coarse_sum, fine_sum = tl.cumsum(coarse, axis=0), tl.cumsum(fine, axis=0)",
            "coarse_end, fine_end = tl.sum(coarse, axis=0), tl.sum(fine, axis=0)",
            *(["coarse_before, fine_before = coarse_sum - coarse, fine_sum - fine"] if self.plan.erases_before else []),
        ]

    def between(self, reader: str) -> str:
        """The decay from each row to where the rows of `reader` read: a matrix."""
        after = "read" if reader == "q" and self.grouped else "sum"
        moment = "before" if self.reads_before(reader) else after
        coarse, fine = f"coarse_{moment}", f"fine_{moment}"
        return f"tl.exp2(({coarse}[:, None] - coarse_sum[None, :]) + ({fine}[:, None] - fine_sum[None, :]))"

    def reads_before(self, reader: str) -> bool:
        """Whether the rows of `reader` read before their token's decay."""
        return reader == "y" and self.plan.erases_before

    def start_of(self, reader: str) -> Printed | None:
        """The decay from the chunk's start to where the rows of `reader` read."""
        if self.plan.row_decay is None:
            return None
        if reader == "q":
            return Printed("from_start_read" if self.grouped else "from_start")
        return Printed(BEFORE if self.reads_before(reader) else "from_start")

    def moments(self) -> list[str]:
        """The decays from the chunk's start to where rows read that read at another moment than they write."""
        read = ["from_start_read = tl.exp2(coarse_read + fine_read)"] if self.grouped else []
        return [*read, *([f"{BEFORE} = tl.exp2(coarse_before + fine_before)"] if self.plan.erases_before else [])]

    def seen(self) -> str:
        """Which rows a token's read sees."""
        rows = f"{self.axes.index(self.row)}[None, :]"
        if self.grouped:
            rows = f"{rows} // {steps_symbol(self.plan)}"
        return f"{self.axes.index(TOKEN)}[:, None] >= {rows}"

    def scores(
        self, name: str, reader: str, writer: str, of_reader: Printed | None, of_writer: Printed | None
    ) -> list[str]:
        """Masked products of each reading row with each writing row, scaled and decayed."""
        products = Printed(f"tl.dot({self.operand(reader)}, tl.trans({self.operand(writer)}), {DOT})")
        # Factors first: a product of products would hold two more tiles at a time.
        factor = common_factor(
            of_reader and of_reader.of_rows(),
            of_writer and of_writer.of_columns(),
            None if self.plan.row_decay is None else Printed("decay"),
        )
        row = self.axes.index(self.row)
        mask = self.seen() if reader == "q" else f"{row}[:, None] > {row}[None, :]"
        return [
            f"{name} = {product(products, factor).text}",
            f"{name} = tl.where({mask}, {name}, 0.0)",
        ]

    def column_scale(self) -> Printed | None:
        """What the column is for each row, or for all of them; None where it is 1."""
        rider = self.plan.rider
        return None if rider is None or rider.scale is None else self.printers[self.row].printed(rider.scale)

    def column_scale_of(self, *, columns: bool, decay: Printed | None = None) -> Printed | None:
        """The same, decayed, spread over a tile whose rows, or `columns`, these are."""
        rider, factor = self.plan.rider, common_factor(self.column_scale(), decay)
        varies = decay is not None or (rider is not None and rider.scale is not None and bool(rider.scale.dims))
        if factor is None or not varies:
            return factor
        return factor.of_columns() if columns else factor.of_rows()

    def next_column_state(self, written: str = "") -> list[str]:
        """The vector state that rides along, after the chunk, in which `written` is written to it."""
        rider = self.plan.rider
        if rider is None:
            return []
        name = self.name(rider.state.name)
        kept = name if self.plan.row_decay is None else f"whole * {name}"
        return [f"{name} = {kept} + {written or self.column_written()}"]

    def column_written(self) -> str:
        """What a chunk writes to the vector state."""
        factor = self.column_scale_of(columns=False, decay=None if self.plan.row_decay is None else Printed("to_end"))
        written = product(Printed(f"{self.operand('k')}.to(tl.float32)"), factor)
        return f"tl.sum({written.text}, axis=0)"

    def column_read_gradient(self) -> str:
        """What the tokens of a chunk read gives to the gradient of the vector state before it."""
        scaled = product(Printed("column_gradient"), common_factor(self.scale("q"), self.start_of("q")))
        q = Printed(f"{self.operand('q')}.to(tl.float32)")
        return f"tl.sum({product(q, scaled.of_rows()).text}, axis=0)"


BEFORE = "from_start_before"
"""The decay from a chunk's start to where erasures read, before that of their own token."""

FACTORS = (
    "from_start = tl.exp2(coarse_sum + fine_sum)",
    "to_end = tl.exp2((coarse_end - coarse_sum) + (fine_end - fine_sum))",
)
