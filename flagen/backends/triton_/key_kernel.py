"""The kernels of a plan whose decay is a vector over the keys, as source lines in the order of its equations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flagen.backends.torch_.common import equations
from flagen.backends.triton_.helpers import row_helpers_for
from flagen.backends.triton_.key_describe import prepare_docs, walk_docs
from flagen.backends.triton_.printer import literal
from flagen.backends.triton_.rows import DOT, ROLES, RowKernel, heads, pointers, scalars
from flagen.diagnostics import InternalError
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.row_planner import Part, RowLoad, RowSet
from flagen.plan.rows import TOKEN
from flagen.plan.schedule import Load, Set
from flagen.plan.tiles import Arithmetic, Tile, Value

INDENT = "    "


@dataclass(frozen=True)
class Array:
    """What the preparation leaves for the walk: `dims` follow those of chunks and heads."""

    name: str
    dims: tuple[str, ...]
    single: bool = False


@dataclass(frozen=True)
class Score:
    """Products of each row of `reader` with each row of `writer`."""

    name: str
    reader: str
    writer: str


def key_kernel_context(plan: KeyKernelPlan) -> Mapping[str, object]:
    """Every value `triton/key_kernels.py.j2` uses."""
    walk, prepare = Walk(plan), Prepare(plan)
    text = [line for kernel in (prepare, walk) for lines in kernel.sections().values() for line in lines]
    (state,) = plan.spec.states
    return {
        "name": plan.spec.name,
        "equations": equations(plan.spec),
        "key": plan.key,
        "value": plan.value,
        "helpers": row_helpers_for(text),
        "prepare": prepare.context(),
        "prepare_docs": prepare_docs(plan),
        "walk": walk.context(),
        "walk_docs": walk_docs(plan),
        "S": walk.name(state.name),
        "initial": f"{state.name}_initial_ptr",
        "final": f"{state.name}_final_ptr",
        "init": literal(state.init)[0],
        "key_index": walk.axes.index(plan.key),
        "value_index": walk.axes.index(plan.value),
        "key_mask": walk.axes.mask(plan.key),
        "value_mask": walk.axes.mask(plan.value),
        "decays": plan.log_decay is not None,
        "leaf": plan.log_decay is not None and not plan.leaf.is_one,
        "delta": plan.delta is not None,
        "leaf_levels": _leaf_levels(plan),
        "transposed": plan.chunk.normal_form.transposed,
        "steps": None,
        "operand": arrays(plan)[0].name,
        "whole_keys": plan.whole_keys,
        "reflects": plan.delta is not None and not plan.contracts,
    }


def _leaf_levels(plan: KeyKernelPlan) -> str:
    """The levels that one product anchored at the middle stands for, as a Python expression."""
    levels = {dtype: rows.bit_length() - 1 for dtype, rows in plan.leaf.rows.items()}
    if len(set(levels.values())) == 1:
        return str(levels["float32"])
    listed = ", ".join(f"torch.{dtype}: {level}" for dtype, level in levels.items())
    return f"{{{listed}}}[dtype]"


def scores_of(plan: KeyKernelPlan) -> tuple[Score, ...]:
    """The matrices of a chunk: what the reads see, then what the erasures see."""
    erasing, writing = plan.delta is not None, plan.write_key is not None
    read_writes = Score("write_scores" if erasing else "scores", "q", "k")
    return (
        *([Score("scores", "q", "w")] if erasing else []),
        *([read_writes] if writing else []),
        *([Score("erased_writes", "y", "k")] if erasing and writing else []),
        *([Score("L", "y", "w")] if erasing else []),
    )


def arrays(plan: KeyKernelPlan) -> tuple[Array, ...]:
    """What the prepared chunks are kept in."""
    square, rows = ("CHUNK", "CHUNK"), ("CHUNK", plan.key)
    erasing, writing = plan.delta is not None, plan.write_key is not None
    found = [Array("q_from_start", rows), Array("scores", square)]
    if erasing:
        found += [Array("y_from_start", rows), Array("w_to_end", rows)]
        found += [] if plan.folded else [Array("inverse", square)]
    if writing:
        found += [Array("k_to_end", rows)]
    if erasing and writing and not plan.folded:
        found += [Array("write_scores", square), Array("erased_writes", square)]
    if plan.log_decay is not None:
        found.append(Array("whole", (plan.key,), single=True))
    return (*found, *(Array(number.target, ("CHUNK",), single=True) for number in plan.numbers))


def compile_time(plan: KeyKernelPlan, part: Part) -> tuple[str, ...]:
    """Every size that a kernel is compiled for."""
    values, blocks, decays = [], [], []
    if part is plan.walk:
        values, blocks = [plan.value], [f"BLOCK_{plan.value}"]
    elif plan.log_decay is not None:
        decays = ["LEVELS", *([] if plan.leaf.is_one else ["LEAF_LEVELS"]), "TERMS"]
    return (*heads(part), plan.key, *values, "CHUNK", f"BLOCK_{plan.key}", *blocks, *decays, "PRECISION")


class Walk(RowKernel[KeyKernelPlan]):
    """The kernel that walks the chunks of a sequence with the state in registers."""

    def __init__(self, plan: KeyKernelPlan) -> None:
        super().__init__(plan, plan.walk)
        self.value, self.key = plan.value, plan.key
        self.state = self.name(plan.spec.states[0].name)

    def _raw(self, load: RowLoad) -> bool:
        vector = self.plan.vector("v")
        return isinstance(vector, Value) and vector.name == load.source.name

    def parameters(self) -> list[str]:
        plan, (state,) = self.plan, self.plan.spec.states
        prepared = [array.name for array in arrays(plan)]
        names = [*pointers(plan, plan.walk), f"{state.name}_initial", "cu_seqlens", "first_chunk", *prepared]
        names += ["o", f"{state.name}_final"]
        sizes = [f"{name}: tl.constexpr" for name in compile_time(plan, plan.walk)]
        return [*(f"{name}_ptr" for name in names), *scalars(plan, plan.walk), "T", *sizes]

    def sections(self) -> dict[str, list[str]]:
        return {
            "once": self.once(),
            "loads": [*self.loads(self.plan.walk), *map(self._load_array, arrays(self.plan))],
            "operands": self.operands("v"),
            "decays": [],
            "scores": [],
            "solve": self._solve(),
            "read": self._read(),
            "output": self._output(),
            "next_state": self._next_state(),
        }

    def _load_array(self, array: Array) -> str:
        place, mask = array_place(array, self.axes.index(TOKEN), self.axes.index(self.key), self.axes.mask(self.key))
        masked = f", mask={mask}, other=0.0" if mask else ""
        return f"{array.name} = tl.load({array.name}_ptr + {place}{masked})"

    def _solve(self) -> list[str]:
        """U = (I - L)^{-1} (z + N v + S y); folded, what is read of S for it alone."""
        plan = self.plan
        if plan.delta is None:
            return []
        erased = f"tl.dot(S_operand, tl.trans(y_from_start), {DOT})"
        if plan.folded:
            return [f"U_operand = {erased}.to(dtype)"]
        terms = []
        if plan.delta.z is not None:
            over = (self.value, TOKEN)
            terms.append(self.axes.spread(self._sum_term(plan.delta.z), self.axes.sorted(plan.delta.z.dims), over))
        if plan.write_key is not None:
            terms.append(f"tl.dot({self.operand('v')}, tl.trans(erased_writes), {DOT})")
        return [
            f"R = {' + '.join((*terms, erased))}",
            f"U = tl.dot(R.to(dtype), tl.trans(inverse), R, {DOT})",
            "U_operand = U.to(dtype)",
        ]

    def _sum_term(self, tile: Tile) -> str:
        text = self.print(tile, TOKEN)
        return (
            f"({text})" if isinstance(tile, Arithmetic) or (len(tile.dims) == 1 and not text.isidentifier()) else text
        )

    def _read(self) -> list[str]:
        plan = self.plan
        lines = [f"read = tl.dot(S_operand, tl.trans(q_from_start), {DOT})"]
        if plan.delta is not None and not plan.folded:
            lines.append(f"read = tl.dot(U_operand, tl.trans(scores), read, {DOT})")
        if plan.write_key is not None:
            scores = "write_scores" if plan.delta is not None and not plan.folded else "scores"
            lines.append(f"read = tl.dot({self.operand('v')}, tl.trans({scores}), read, {DOT})")
        return lines

    def _output(self) -> list[str]:
        offset, mask = self.tile("token * HV + value_head", TOKEN, (self.value,))
        return [
            f"o = {self.print(self.plan.output, TOKEN)}",
            f"tl.store(o_ptr + {offset}, o.to(o_ptr.dtype.element_ty), mask={mask})",
        ]

    def _next_state(self) -> list[str]:
        S = self.state
        kept = S if self.plan.log_decay is None else f"{S} * whole[None, :]"
        lines = []
        if self.plan.delta is not None:
            lines.append(f"{S} = tl.dot(U_operand, w_to_end, {kept}, {DOT})")
            kept = S
        if self.plan.write_key is not None:
            lines.append(f"{S} = tl.dot({self.operand('v')}, k_to_end, {kept}, {DOT})")
        return lines


class Prepare(RowKernel[KeyKernelPlan]):
    """The kernel that prepares all chunks at once: it passes over the keys twice, block by block. First it adds up the
    products of rows; then it writes the rows themselves, decayed to the ends of the chunk."""

    def __init__(self, plan: KeyKernelPlan) -> None:
        super().__init__(plan, plan.prepare.part)
        self.key = plan.key
        self.row_index, self.key_index = self.axes.index(TOKEN), self.axes.index(plan.key)
        self.scores = scores_of(plan)

    def _raw(self, load: RowLoad) -> bool:
        return False

    def parameters(self) -> list[str]:
        plan = self.plan
        prepared = [array.name for array in arrays(plan)]
        names = [*pointers(plan, plan.prepare.part), "cu_seqlens", "chunk_sequence", "first_chunk", *prepared]
        sizes = [f"{name}: tl.constexpr" for name in compile_time(plan, plan.prepare.part)]
        return [*(f"{name}_ptr" for name in names), *scalars(plan, plan.prepare.part), "T", *sizes]

    def sections(self) -> dict[str, list[str]]:
        prepare = self.plan.prepare
        return {
            "once": self._once(prepare.once, reads_head=prepare.part.reads_head) + self._rows(prepare.rows),
            "totals": self._totals(),
            "products": [*self._of_keys(), *self._sums(), *self._products()],
            "numbers": self._numbers(),
            "matrices": [*self._scaled_scores(), *self._matrices()],
            "ends": [*([] if self.plan.whole_keys else self._of_keys()), *self._ends()],
        }

    # ----------------------------------------------------------------------------------------------------------- loads

    def _once(self, actions: Sequence[Load | Set], *, reads_head: bool = False) -> list[str]:
        lines = ["head = value_head.to(tl.float32)"] if reads_head else []
        for action in actions:
            if isinstance(action, Load):
                lines.append(f"{self.name(action.source.name)} = {self._param(action.source)}")
            else:
                lines.append(f"{self.name(action.target)} = {self.printers[''].assigned(action.value)}")
        return lines

    def _rows(self, rows: Sequence[RowLoad | RowSet]) -> list[str]:
        return self.loads(Part((), tuple(rows), reads_head=False, numbers=frozenset()))

    def _of_keys(self) -> list[str]:
        """The rows of a block of keys, in float32."""
        prepare = self.plan.prepare
        lines = [*self._once(prepare.key_once), *self._rows(prepare.key_rows)]
        done: set[Tile] = set()
        for role in ROLES[:-1]:
            tile = self.plan.vector(role)
            if tile is not None and not isinstance(tile, Value) and tile not in done:
                done.add(tile)
                lines.append(f"{self.operand(role)} = {self.print(tile, TOKEN)}")
        return [*lines, *self._log_decay()]

    def _log_decay(self) -> list[str]:
        decay = self.plan.log_decay
        if decay is None:
            return []
        text = self.print(decay, TOKEN)
        lines = [f"log_decay = tl.maximum({text}, -111.0, propagate_nan=tl.PropagateNan.ALL)"]
        if self.key not in decay.dims:
            lines.append(f"log_decay = tl.broadcast_to(log_decay[:, None], (CHUNK, BLOCK_{self.key}))")
        return lines

    # -------------------------------------------------------------------------------------------------------- products

    def _totals(self) -> list[str]:
        """What is added up block by block of keys."""
        sums = [] if self.plan.whole_keys else [total.target for total in self.plan.prepare.sums]
        return [
            *(f"{score.name} = tl.zeros((CHUNK, CHUNK), tl.float32)" for score in self.scores),
            *(f"{name} = tl.zeros((CHUNK,), tl.float32)" for name in sums),
        ]

    def _sums(self) -> list[str]:
        return [f"{total.target} += {self.print(total.value, TOKEN)}" for total in self.plan.prepare.sums]

    def _products(self) -> list[str]:
        if self.plan.log_decay is None:
            rounded = [f"{name}_operand = {name}.to(dtype)" for name in self._operands("q", "y", "w", "k")]
            return [*rounded, *(self._added(score, self._sees(score.reader), "operand") for score in self.scores)]
        if self.plan.leaf.is_one:
            return [*self._diagonals(), "for level in range(LEVELS):", *indented(self._level())]
        return [*self._leaf(), "for level in range(LEAF_LEVELS, LEVELS):", *indented(self._level())]

    def _diagonals(self) -> list[str]:
        """What a read sees of its own token, which does not decay."""
        if not self.plan.reads_itself:
            return []
        products = [(score, f"{self.operand('q')} * {self.operand(score.writer)}") for score in self._of("q")]
        return [
            f"{score.name} += tl.where({self._rows_where('==')}, tl.sum({product}, axis=1)[:, None], 0.0)"
            for score, product in products
        ]

    def _leaf(self) -> list[str]:
        """All pairs of rows in a block, which meet at its middle."""
        before = [f"(exponent - log_decay * {LOG2_E})"] if False in self._moments() else []
        lines = [
            f"exponent = from_middle({self.row_index}, log_decay, LEAF, TERMS)",
            *(["reading = tl.exp2(exponent)"] if True in self._moments() else []),
            *(f"reading_before = tl.exp2{text}" for text in before),
            "writing = tl.exp2(-exponent)",
            f"near = {self.row_index}[:, None] // LEAF == {self.row_index}[None, :] // LEAF",
        ]
        readers = {"q": self.plan.read_after, **({"y": self.plan.erase_after} if self.plan.delta else {})}
        for role, after in readers.items():
            name = self.operand(role)
            lines.append(f"{name}_reading = ({name} * {'reading' if after else 'reading_before'}).to(dtype)")
        lines += [f"{name}_writing = ({name} * writing).to(dtype)" for name in self._operands("w", "k")]
        for score in self.scores:
            product = (
                f"tl.dot({self.operand(score.reader)}_reading, tl.trans({self.operand(score.writer)}_writing), {DOT})"
            )
            lines.append(f"{score.name} += tl.where(near & ({self._sees(score.reader)}), {product}, 0.0)")
        return lines

    def _level(self) -> list[str]:
        """The pairs of rows of one level: those of an upper half read what those of its lower half wrote."""
        plan, row = self.plan, self.row_index
        lines = [
            f"first, end, seen_first, seen_end = halve({row}, level, {int(plan.read_after)})",
            "decay = decay_over(between(first, end, CHUNK), log_decay, TERMS)",
        ]
        operands = self._operands("q", "w", "k")
        if plan.delta is not None and plan.erase_after == plan.read_after:
            operands = self._operands("q", "y", "w", "k")
        elif plan.delta is not None:
            lines += [
                f"first, end, seen_first, seen_end = halve({row}, level, {int(plan.erase_after)})",
                "erased_decay = decay_over(between(first, end, CHUNK), log_decay, TERMS)",
            ]
        lines += [f"{name}_decayed = ({name} * decay).to(dtype)" for name in operands]
        if plan.delta is not None and plan.erase_after != plan.read_after:
            y = self.operand("y")
            lines.append(f"{y}_erasing = ({y} * erased_decay).to(dtype)")
        lines.append("seen = between(seen_first, seen_end, CHUNK)")
        return [*lines, *(self._added(score, "seen", "decayed") for score in self.scores)]

    def _added(self, score: Score, seen: str, suffix: str) -> str:
        plan = self.plan
        moved = score.reader == "y" and suffix == "decayed" and plan.erase_after != plan.read_after
        reader, writer = f"{self.operand(score.reader)}_{'erasing' if moved else suffix}", self.operand(score.writer)
        return f"{score.name} += tl.where({seen}, tl.dot({reader}, tl.trans({writer}_{suffix}), {DOT}), 0.0)"

    def _operands(self, *roles: str) -> list[str]:
        """What the vectors of these roles are called, each once."""
        return list(dict.fromkeys(self.operand(role) for role in roles if self.plan.vector(role) is not None))

    def _of(self, reader: str) -> list[Score]:
        return [score for score in self.scores if score.reader == reader]

    def _moments(self) -> set[bool]:
        """Whether there are rows that read after the decay of their token, and rows that read before."""
        return {self.plan.read_after, *([self.plan.erase_after] if self.plan.delta is not None else [])}

    def _sees(self, role: str) -> str:
        return self._rows_where(">=" if role == "q" and self.plan.reads_itself else ">")

    def _rows_where(self, comparison: str) -> str:
        return f"{self.row_index}[:, None] {comparison} {self.row_index}[None, :]"

    # -------------------------------------------------------------------------------------------------------- matrices

    def _numbers(self) -> list[str]:
        lines = []
        for number in self.plan.prepare.numbers:
            lines.append(f"{number.target} = {self.printers[TOKEN].assigned(number.value)}")
            lines.append(self._stored(Array(number.target, ("CHUNK",), single=True)))
        return lines

    def _scaled_scores(self) -> list[str]:
        lines = []
        for score in self.scores:
            factors = [*self.factor(score.reader, "[:, None]"), *self.factor(score.writer, "[None, :]")]
            lines += [f"{score.name} *= {' * '.join(factors)}"] if factors else []
        return lines

    def _matrices(self) -> list[str]:
        plan = self.plan
        lines = ["inverse = invert(L, CHUNK, PRECISION)"] if plan.delta is not None else []
        if plan.folded:
            lines += [
                "inverse = inverse.to(dtype)",
                f"erased_writes = tl.dot(inverse, erased_writes.to(dtype), erased_writes, {DOT}).to(dtype)",
                "read_erased = scores.to(dtype)",
                f"scores = tl.dot(read_erased, erased_writes, write_scores, {DOT})",
            ]
        stored = [array for array in arrays(plan) if array.dims == ("CHUNK", "CHUNK")]
        return [*lines, *map(self._stored, stored)]

    def _ends(self) -> list[str]:
        """The rows decayed from the start of the chunk, or to its end."""
        plan = self.plan
        lines = self._end_factors()
        if plan.delta is not None:
            erase = "" if plan.log_decay is None else "from_start" if plan.erase_after else "from_start_before"
            lines.append(f"y_from_start = {self._decayed('y', erase)}")
            if plan.folded:
                lines.append(f"y_from_start = tl.dot(inverse, y_from_start.to(dtype), y_from_start, {DOT}).to(dtype)")
        read = "" if plan.log_decay is None else "from_start" if plan.read_after else "from_start_before"
        lines.append(f"q_from_start = {self._decayed('q', read)}")
        if plan.folded:
            lines.append(f"q_from_start = tl.dot(read_erased, y_from_start, q_from_start, {DOT})")
        lines += [self._stored(array) for array in arrays(plan) if array.name.endswith("from_start")][::-1]
        if plan.log_decay is not None:
            lines.append(f"to_end = decay_over({self._rows_where('<')}, log_decay, TERMS)")
        to_end = "" if plan.log_decay is None else "to_end"
        if plan.delta is not None:
            lines.append(f"w_to_end = ({self._decayed('w', to_end)}).to(dtype)")
        if plan.write_key is not None:
            lines.append(f"k_to_end = {self._decayed('k', to_end)}")
        if plan.folded:
            lines.append(f"k_to_end = tl.dot(tl.trans(erased_writes), w_to_end, k_to_end, {DOT})")
        lines += [self._stored(array) for array in arrays(plan) if array.name.endswith("to_end")]
        if plan.log_decay is not None:
            lines.append(f"whole = tl.exp2(tl.sum(log_decay, axis=0) * {LOG2_E})")
            lines.append(self._stored(Array("whole", (self.key,), single=True)))
        return lines

    def _end_factors(self) -> list[str]:
        if self.plan.log_decay is None:
            return []
        moments = {True: ("from_start", ">="), False: ("from_start_before", ">")}
        found = [moments[moment] for moment in (True, False) if moment in self._moments()]
        return [f"{name} = decay_over({self._rows_where(reads)}, log_decay, TERMS)" for name, reads in found]

    def _decayed(self, role: str, decay: str) -> str:
        """The rows of `role` with all their factors."""
        factors = [self.operand(role), *self.factor(role, "[:, None]"), *([decay] if decay else [])]
        return " * ".join(factors)

    def _stored(self, array: Array) -> str:
        place, mask = array_place(array, self.row_index, self.key_index, self.axes.mask(self.key))
        masked = f", mask={mask}" if mask else ""
        return f"tl.store({array.name}_ptr + {place}, {array.name}.to({array.name}_ptr.dtype.element_ty){masked})"


LOG2_E = "1.4426950408889634"


def array_place(array: Array, row: str, key: str, key_mask: str) -> tuple[str, str]:
    """The offsets of a chunk's part of `array`, and the mask that they need."""
    match array.dims:
        case ("CHUNK",):
            return f"chunk_row * CHUNK + {row}", ""
        case ("CHUNK", "CHUNK"):
            return f"chunk_row * (CHUNK * CHUNK) + {row}[:, None] * CHUNK + {row}[None, :]", ""
        case ("CHUNK", dim):
            return f"chunk_row * (CHUNK * {dim}) + {row}[:, None] * {dim} + {key}[None, :]", f"{key_mask}[None, :]"
        case (dim,):
            return f"chunk_row * {dim} + {key}", key_mask
    raise InternalError(f"no place for {array}")


def indented(lines: list[str]) -> list[str]:
    return [INDENT + line for line in lines]
