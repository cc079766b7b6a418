"""The context of `chunk_kernels.py`: the kernels of a chunk plan as source lines, in the order of its equations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flagen.backends.printed import Printed, common_factor, product
from flagen.backends.triton_.chunk_describe import output_docs, prepare_docs, states_docs, walk_docs
from flagen.backends.triton_.device import OF_CHUNKS
from flagen.backends.triton_.rows import (
    DOT,
    ROLES,
    PrintedKernel,
    RowWriter,
    heads,
    key_heads,
    other_sizes,
    pointers,
    scalars,
    steps_symbol,
)
from flagen.backends.triton_.walk import Form, WalkKernel, walks_context
from flagen.backends.triton_.walk_equations import WalkPrinter
from flagen.kernel import walks
from flagen.kernel.walks import Decay
from flagen.plan.chunk_backward import STATES_EVERY
from flagen.plan.chunk_kernel import ChunkKernelPlan
from flagen.plan.rows import ROW, TOKEN
from flagen.spec.model import State


def chunk_kernel_context(plan: ChunkKernelPlan, *, keeps: bool) -> Mapping[str, object]:
    """Every value `triton/chunk_kernels.py.j2` uses; the fused walk `keeps` what a backward takes from it."""
    _, walk, states, output = kernels_of(plan, keeps=keeps)
    return {
        **walks_context(plan, [(walk, walk_docs(plan)), (states, states_docs(plan))], (output, output_docs(plan))),
        "steps": steps_symbol(plan),
        "transposed": False,
        "prepares": plan.prepare is not None,
        "crowded": plan.crowded,
        "reflects": plan.delta is not None and not plan.contracts,
        "widest": "32 if single else 64" if plan.delta is None else f"32 if single or {plan.key} > 128 else 64",
    }


def chunk_prepare_context(plan: ChunkKernelPlan) -> Mapping[str, object]:
    """Every value `triton/chunk_prepare.py.j2` uses."""
    prepare, *_ = kernels_of(plan)
    assert prepare is not None
    return {
        "name": plan.spec.name,
        "key": plan.key,
        "steps": steps_symbol(plan),
        "device": OF_CHUNKS,
        "prepare": {**prepare.context(), "docs": prepare_docs(plan)},
        "key_index": prepare.axes.index(plan.key),
        "key_mask": prepare.axes.mask(plan.key),
        "row_index": prepare.axes.index(plan.row_axis),
    }


def kernels_of(plan: ChunkKernelPlan, *, keeps: bool = False) -> tuple[Prepare | None, Walk, Walk, Walk]:
    """What prepares the chunks, if anything does; what then runs: the first kernel, or the other two."""
    prepare = None if plan.prepare is None else Prepare(plan, *plan.prepare)
    output = Walk(plan, Form.OUTPUT, keeps=keeps)
    return prepare, Walk(plan, Form.FUSED, keeps=keeps), Walk(plan, Form.STATES), output


def scratch(plan: ChunkKernelPlan) -> tuple[str, ...]:
    """What the prepared chunks are kept in."""
    if plan.prepare is None:
        return ()
    writes = ("write_scores", "erased_writes") if plan.write_key is not None else ()
    decays = ("from_start", "to_end") if plan.row_decay is not None else ()
    return ("inverse", "scores", *writes, *decays)


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


class Walk(ScalarDecayRows, WalkKernel[ChunkKernelPlan]):
    """A kernel that has the state of a sequence."""

    def scratch(self) -> tuple[str, ...]:
        return scratch(self.plan)

    def steps(self) -> list[str]:
        symbol = steps_symbol(self.plan)
        return [symbol] if symbol else []

    def tiles(self) -> tuple[str, ...]:
        return tiles(self.plan, self.plan.key, self.plan.value)

    def operand_arrays(self) -> tuple[str, ...]:
        return tuple(decl.name for decl in self.plan.spec.inputs if decl.dims)

    @property
    def keeps_updates(self) -> bool:
        return self.plan.delta is not None

    def rider(self) -> State | None:
        return None if self.plan.rider is None else self.plan.rider.state

    def kept_state(self) -> list[str]:
        """As the walk over states stores them: every second one, from the first chunk of a sequence on."""
        key, value = self.axes.index(self.key), self.axes.index(self.value)
        mask = f"({value} < rows_stored)[:, None] & {self.axes.mask(self.key)}[None, :]"
        return [
            f"rows_stored = tl.where((start - first_token) // TOKENS % {STATES_EVERY} == 0, {self.value}, 0)",
            f"state_row = (chunk - 1 + sequence) // {STATES_EVERY} * HV + value_head",
            f"state_place = state_row * ({self.value} * {self.key}) + {value}[:, None] * {self.key} + {key}[None, :]",
            f"tl.store(states_ptr + state_place, S_operand, mask={mask})",
            *self._kept_column_state(),
        ]

    def kept_updates(self) -> list[str]:
        """As the walk over states stores them: by tokens, like the values."""
        if not self.keeps_updates:
            return []
        place = "row" if self.grouped else "token"
        offset, mask = self.tile(f"{place} * HV + value_head", self.row, (self.value,))
        return [f"tl.store(U_ptr + {offset}, U_operand, mask={mask})"]

    def loaded(self) -> list[str]:
        rows = self.loads(self.plan.walk)
        if self.plan.delta is not None:
            return [*rows, *self.load_scratch(), *self.operands(*ROLES), ""]
        decays = [*self.decays(), *self._ends()]
        return [*rows, *self.operands(*ROLES), "", *decays, "", *self._column(), *self._scores()]

    def _column(self) -> list[str]:
        """What tokens read of the vector state that rides along, as it is before the chunk, and what that writes to
        it. All of that before the matrix products, which take the registers."""
        rider = self.rider()
        if rider is None:
            return []
        key, mask, name = self.axes.index(self.key), self.axes.mask(self.key), self.name(rider.name)
        place = f"column_states_ptr + chunk_row * {self.key} + {key}"
        start = "" if self.plan.row_decay is None else " * from_start"
        read = f"column = tl.sum({self.operand('q')}.to(tl.float32) * {name}[None, :], axis=1){start}"
        match self.form:
            case Form.FUSED:
                return [read, f"column_written = {self.column_written()}"]
            case Form.STATES:
                return [f"tl.store({place}, {name}, mask={self.in_first_block()})", *self.next_column_state()]
            case Form.OUTPUT:
                return [f"{name} = tl.load({place}, mask={mask}, other=0.0)", read]

    def next_rider(self) -> list[str]:
        return self.next_column_state("column_written")

    def _kept_column_state(self) -> list[str]:
        """How a fused walk leaves behind the vector state before a chunk, where it does the matrix."""
        rider, key = self.rider(), self.axes.index(self.key)
        if rider is None:
            return []
        wanted = f"{key} < tl.where((rows_stored > 0) & (block == 0), {self.key}, 0)"
        place = f"column_states_ptr + state_row * {self.key} + {key}"
        return [f"tl.store({place}, {self.name(rider.name)}, mask={wanted})"]

    def kept_column(self) -> list[str]:
        if self.plan.rider is None:
            return []
        place = "column_ptr + (token * HV + value_head)"
        return [f"tl.store({place}, column, mask=token < tl.where(block == 0, end_token, 0))"]

    def load_scratch(self, *wanted: str) -> list[str]:
        """What was prepared of a chunk, or what of it is `wanted`, but for what comes later."""
        row, token = self.axes.index(self.row), self.axes.index(TOKEN)
        square = f"{row}[:, None] * CHUNK + {row}[None, :]"
        if self.grouped:
            scores = f"chunk_row * (BLOCK_TOKENS * CHUNK) + {token}[:, None] * CHUNK + {row}[None, :]"
        else:
            scores = f"chunk_row * (CHUNK * CHUNK) + {square}"
        places = {
            "inverse": f"chunk_row * (CHUNK * CHUNK) + {square}",
            "scores": scores,
            "write_scores": scores,
            "erased_writes": f"chunk_row * (CHUNK * CHUNK) + {square}",
            "from_start": f"chunk_row * CHUNK + {row}",
        }
        late = ("from_start", "to_end") if self.plan.erases_before else ("to_end",)
        early = [name for name in wanted or scratch(self.plan) if name not in late]
        lines = [f"{name} = tl.load({name}_ptr + {places[name]})" for name in early]
        if self.plan.row_decay is not None and self.grouped and "scores" in early:
            first = f"{token} * {steps_symbol(self.plan)}"
            place = f"from_start_ptr + chunk_row * CHUNK + {first}"
            lines.append(f"from_start_read = tl.load({place}, mask={first} < CHUNK, other=0.0)")
        if self.plan.erases_before and "from_start" in (wanted or scratch(self.plan)):
            place = f"from_start_ptr + {places['from_start']} - 1"
            lines.append(f"{BEFORE} = tl.load({place}, mask={row} > 0, other=1.0)")
        return lines

    def _ends(self) -> list[str]:
        if self.plan.row_decay is None:
            return []
        return [*FACTORS, "whole = tl.exp2(coarse_end + fine_end)", f"decay = {self.between('q')}"]

    def _scores(self) -> list[str]:
        rider, scale = self.plan.rider, self.scale("v")
        if rider is None:
            return self.scores("scores", "q", "k", None, scale)
        if rider.scale is None or rider.shares:
            # What scales the values alone comes after the sum.
            own = scale if rider.shares else None
            lines = [*self.scores("scores", "q", "k", None, own), "column += tl.sum(scores, axis=1)"]
        else:
            written = product(Printed("scores"), self.column_scale_of(columns=True))
            lines = [*self.scores("scores", "q", "k", None, None), f"column += tl.sum({written.text}, axis=1)"]
        if scale and not rider.shares:
            lines.append(f"scores *= {scale.of_columns().text}")
        return lines

    @property
    def equations(self) -> WalkPrinter:
        """The printer of the equations of this walk."""
        called = {"R": "R", "U": "U", "O0": "read", "S1": self.state}
        return WalkPrinter(ScalarPlacement(self, self.state, {"S0": "S_operand", "U": "U_operand"}, {"U": "U"}), called)

    def solved(self) -> list[str]:
        """R = z + N v + e^Γ S y, and U = (I - L)^{-1} R."""
        found = walks.solved(self.plan.chunk.form.system)
        return [] if found is None else [*self.equations.solved(found), "U_operand = U.to(dtype)"]

    def read(self) -> list[str]:
        lines = []
        if self.plan.erases_before:  # Not at once: the erasures have another, and registers are scarce.
            lines.append(f"from_start = tl.load(from_start_ptr + chunk_row * CHUNK + {self.axes.index(self.row)})")
        lines += self.equations.sum(walks.read(self.plan.chunk.form.system))
        scale = self.scale("q")
        if scale:
            lines.append(f"read = {self.rows_by('read', scale, TOKEN, (self.value, TOKEN)).text}")
            if self.plan.rider is not None:
                lines.append(f"column *= {scale.text}")
        return lines

    def next_state(self) -> list[str]:
        lines = []
        if self.plan.delta is not None and self.plan.row_decay is not None:
            # Not before they are needed: registers are scarce until here.
            lines += [
                f"to_end = tl.load(to_end_ptr + chunk_row * CHUNK + {self.axes.index(self.row)})",
                "whole = tl.load(from_start_ptr + chunk_row * CHUNK + CHUNK - 1)",
            ]
        return [*lines, *self.equations.sum(walks.next_state(self.plan.chunk.form.system))]


@dataclass(frozen=True)
class ScalarPlacement:
    """Rows stay as they are; their numbers, decays among them, multiply what comes out of a read, and what goes into a
    write.

    given: what tiles over the values are called as operands; `unrounded` before that, where they were found here.
    """

    kernel: ScalarDecayRows
    state: str
    given: Mapping[str, str]
    unrounded: Mapping[str, str]

    @property
    def plan(self) -> ChunkKernelPlan:
        return self.kernel.plan

    def tile(self, tensor: str) -> Printed | None:
        assert tensor == "z"
        delta = self.plan.delta
        return None if delta is None or delta.z is None else self.kernel.sum_term(delta.z)

    def values(self, tensor: str) -> str:
        return self.given.get(tensor) or self.kernel.operand(tensor)

    def wide(self, tensor: str) -> str:
        return self.unrounded.get(tensor) or self.kernel.operand(tensor)

    def rows(self, tensor: str) -> str:
        write_scores = "scores.to(dtype)" if self.plan.delta is None else "write_scores"
        matrices = {"N": "erased_writes", "A0": "scores", "B0": write_scores}
        return matrices.get(tensor) or self.kernel.operand(_role(tensor))

    def factor(self, tensor: str, decay: Decay) -> Printed | None:
        role = _role(tensor)
        # What tokens read is scaled when all of it is there; a write's number is that of its value.
        scale = None if role == "q" else self.kernel.scale("v" if role == "k" else role)
        decays = {"from start": self.kernel.start_of(role), "to end": Printed("to_end"), "none": None}
        return common_factor(scale, decays[decay])

    def spread(self, text: str, factor: Printed | None, tensor: str) -> Printed:
        axis = self.kernel.axis_of(_role(tensor))
        return self.kernel.rows_by(text, factor, axis, (self.plan.value, axis))

    def whole(self, decay: Decay) -> str:
        return f"whole * {self.state}" if decay == "whole" else self.state


def _role(tensor: str) -> str:
    """The role of the rows that equations call so."""
    return "q" if tensor == "q0" else tensor


class Prepare(ScalarDecayRows, PrintedKernel[ChunkKernelPlan]):
    """The kernel that prepares all chunks at once. It loads nothing before it is needed: registers are scarce."""

    def parameters(self) -> list[str]:
        plan = self.plan
        names = [*pointers(plan, *self.parts), "cu_seqlens", "chunk_sequence", "first_chunk", *scratch(plan)]
        symbol = steps_symbol(plan)
        known = [*([symbol] if symbol else []), *heads(*self.parts), *tiles(plan, plan.key)]
        sizes = [f"{name}: tl.constexpr" for name in (*other_sizes(known, *self.parts), *known)]
        return [*(f"{name}_ptr" for name in names), *scalars(plan, *self.parts), "T", *sizes]

    @property
    def kernel(self) -> str:
        return f"chunk_{self.plan.spec.name}_prepare_kernel"

    def context(self) -> Mapping[str, object]:
        """What a template needs to know of the kernel."""
        return {"parameters": self.parameters(), "key_heads": key_heads(*self.parts), **self.sections()}

    def lines(self) -> list[str]:
        return [line for lines in self.sections().values() for line in lines]

    def sections(self) -> dict[str, list[str]]:
        sections = {
            "once": self.once(),
            "loads": self.loads(self.parts[0]),
            "decays": [*self.decays(), *self._ends()],
            "vectors": self.loads(self.parts[1]),
            "operands": self.operands("q", "w", "k"),
            "scores": self._scores(),
            "erasures": self._erasures(),
        }
        rounding = (lines for lines in sections.values() if any(".to(dtype)" in line for line in lines))
        if (first := next(rounding, None)) is not None:
            first.insert(0, "dtype = inverse_ptr.dtype.element_ty")
        return sections

    def _ends(self) -> list[str]:
        if self.plan.row_decay is None:
            return []
        row = self.axes.index(self.row)
        return [
            *FACTORS,
            f"tl.store(from_start_ptr + chunk_row * CHUNK + {row}, from_start)",
            f"tl.store(to_end_ptr + chunk_row * CHUNK + {row}, to_end)",
        ]

    def _scores(self) -> list[str]:
        lines = [f"decay = {self.between('q')}"] if self.plan.row_decay is not None else []
        lines += self.scores("scores", "q", "w", None, self.scale("w"))
        lines.append(self._store("scores", TOKEN))
        if self.plan.write_key is not None:
            lines += self.scores("write_scores", "q", "k", None, self.scale("v"))
            lines.append(self._store("write_scores", TOKEN))
        return lines

    def _erasures(self) -> list[str]:
        lines = [*self.loads(self.parts[2]), *self.operands("y")]
        if self.plan.row_decay is not None and (self.grouped or self.plan.erases_before):
            lines.append(f"decay = {self.between('y')}")
        if self.plan.write_key is not None:
            lines += self.scores("erased_writes", "y", "k", self.scale("y"), self.scale("v"))
            lines.append(self._store("erased_writes", self.row))
        return lines + self.scores("L", "y", "w", self.scale("y"), self.scale("w"))

    def _store(self, name: str, axis: str) -> str:
        size = "BLOCK_TOKENS" if axis != self.row else "CHUNK"
        place = f"{self.axes.index(axis)}[:, None] * CHUNK + {self.axes.index(self.row)}[None, :]"
        return f"tl.store({name}_ptr + chunk_row * ({size} * CHUNK) + {place}, {name}.to({name}_ptr.dtype.element_ty))"


BEFORE = "from_start_before"
"""The decay from a chunk's start to where erasures read, before that of their own token."""

FACTORS = (
    "from_start = tl.exp2(coarse_sum + fine_sum)",
    "to_end = tl.exp2((coarse_end - coarse_sum) + (fine_end - fine_sum))",
)
