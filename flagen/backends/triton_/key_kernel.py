"""The kernels of a plan whose decay is a vector over the keys, as source lines in the order of its equations."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from flagen.backends.printed import Printed, common_factor, product
from flagen.backends.triton_.chunk_printer import ChunkPrinter
from flagen.backends.triton_.device import OF_CHUNKS
from flagen.backends.triton_.kernel import Docs, function_context
from flagen.backends.triton_.key_describe import output_docs, prepare_docs, states_docs, walk_docs
from flagen.backends.triton_.key_rows import LOG2_E, Array, KeyRows, Score, arrays, decay_tiles, indented, scores_of
from flagen.backends.triton_.launched import title_of
from flagen.backends.triton_.lines import live, names_in
from flagen.backends.triton_.rows import DOT, PrintedKernel, RowWriter, heads, key_heads, other_sizes, pointers, scalars
from flagen.backends.triton_.walk import WalkKernel
from flagen.backends.triton_.walk_equations import WalkPrinter
from flagen.diagnostics import InternalError
from flagen.kernel import walks
from flagen.kernel.ir import Program
from flagen.kernel.walks import Decay
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.row_planner import RowLoad
from flagen.plan.rows import TOKEN
from flagen.plan.tiles import Value


def key_kernel_context(plan: KeyKernelPlan, program: Program, *, keeps: bool) -> Mapping[str, object]:
    """Every value `triton/key_kernels.py.j2` uses; the fused walk `keeps` what a backward takes from it."""
    docs = {"states": states_docs(plan), "output": output_docs(plan)}
    if not plan.right:
        docs = {"": walk_docs(plan, keeps=keeps), **docs}
    return {
        "name": plan.spec.name,
        "key": plan.key,
        "value": plan.value,
        "device": OF_CHUNKS,
        "kernels": [_function(program, name, said) for name, said in docs.items()],
        "decays": plan.log_decay is not None,
        "leaf": plan.log_decay is not None and not plan.leaf.is_one,
        "leaf_levels": _leaf_levels(plan),
        "whole_keys": plan.whole_keys,
        "right": plan.right,
        "reflects": plan.delta is not None and not plan.contracts,
        "delta": plan.delta is not None,
        "folded": plan.folded,
    }


def key_prepare_context(plan: KeyKernelPlan, program: Program) -> Mapping[str, object]:
    """Every value `triton/key_prepare.py.j2` uses."""
    kernel = _function(program, "prepare", prepare_docs(plan))
    return {"name": plan.spec.name, "device": OF_CHUNKS, "kernel": kernel}


def _function(program: Program, name: str, docs: Docs) -> Mapping[str, object]:
    return function_context(title_of(program, name), program.kernel(name), docs, ChunkPrinter)


def _leaf_levels(plan: KeyKernelPlan) -> str:
    """The levels that one product anchored at the middle stands for, as a Python expression."""
    levels = {dtype: rows.bit_length() - 1 for dtype, rows in plan.leaf.rows.items()}
    if len(set(levels.values())) == 1:
        return str(levels["float32"])
    listed = ", ".join(f"torch.{dtype}: {level}" for dtype, level in levels.items())
    return f"{{{listed}}}[dtype]"


class Walk(WalkKernel[KeyKernelPlan]):
    """A kernel that has the state of a sequence."""

    def _raw(self, load: RowLoad) -> bool:
        vector = self.plan.vector("v")
        return isinstance(vector, Value) and vector.name == load.source.name

    def scratch(self) -> tuple[str, ...]:
        return tuple(array.name for array in arrays(self.plan))

    def tiles(self) -> tuple[str, ...]:
        return (self.key, self.value, "CHUNK", f"BLOCK_{self.key}", f"BLOCK_{self.value}", "PRECISION")

    def operand_arrays(self) -> tuple[str, ...]:
        return tuple(array.name for array in arrays(self.plan) if not array.single)

    @property
    def keeps_updates(self) -> bool:
        return self.plan.delta is not None and not self.plan.folded

    def loaded(self) -> list[str]:
        return [*self.loads(self.plan.walk), *map(self._load_array, arrays(self.plan)), *self.operands("v"), ""]

    def _load_array(self, array: Array) -> str:
        return array.loaded(self.axes.index(TOKEN), self.axes.index(self.key), self.axes.mask(self.key))

    @property
    def equations(self) -> WalkPrinter:
        """The printer of the equations of this walk."""
        called = {"R": "R", "U": "U", "O0": "read", "S1": self.state}
        return WalkPrinter(KeyPlacement(self, self.state, {"S0": "S_operand", "U": "U_operand"}), called)

    def solved(self) -> list[str]:
        """U = (I - L)^{-1} (z + N v + S y); folded, what is read of S for it alone."""
        found = walks.solved(self.plan.chunk.form.system)
        if found is None:
            return []
        if self.plan.folded:
            return [f"U_operand = tl.dot(S_operand, tl.trans(y_from_start), {DOT}).to(dtype)"]
        return [*self.equations.solved(found), "U_operand = U.to(dtype)"]

    def read(self) -> list[str]:
        read = walks.read(self.plan.chunk.form.system)
        return self.equations.sum(read.without("A0") if self.plan.folded else read)

    def next_state(self) -> list[str]:
        return self.equations.sum(walks.next_state(self.plan.chunk.form.system))


@dataclass(frozen=True)
class KeyPlacement:
    """Rows come decayed from the preparation, to the chunk's start or its end.

    given: what tiles over the values are called as operands.
    """

    kernel: RowWriter[KeyKernelPlan]
    state: str
    given: Mapping[str, str]

    @property
    def plan(self) -> KeyKernelPlan:
        return self.kernel.plan

    def tile(self, tensor: str) -> Printed | None:
        assert tensor == "z"
        delta = self.plan.delta
        return None if delta is None or delta.z is None else self.kernel.sum_term(delta.z)

    def values(self, tensor: str) -> str:
        return self.given.get(tensor) or self.kernel.operand(tensor)

    def wide(self, tensor: str) -> str:
        raise InternalError(f"rows that multiply {tensor} have their decays")

    def rows(self, tensor: str) -> str:
        apart = self.plan.delta is not None and not self.plan.folded
        matrices = {"N": "erased_writes", "A0": "scores", "B0": "write_scores" if apart else "scores"}
        prepared = {"y": "y_from_start", "q0": "q_from_start", "w": "w_to_end", "k": "k_to_end"}
        return matrices.get(tensor) or prepared[tensor]

    def factor(self, tensor: str, decay: Decay) -> Printed | None:
        return None

    def spread(self, text: str, factor: Printed | None, tensor: str) -> Printed:
        return Printed(text)

    def whole(self, decay: Decay) -> str:
        return f"{self.state} * whole[None, :]" if decay == "whole" else self.state


@dataclass(frozen=True)
class Pass:
    """What is done before a pass over the keys, with each block of them, and after it."""

    before: list[str]
    block: list[str]
    after: list[str]


class Prepare(KeyRows, PrintedKernel[KeyKernelPlan]):
    """The kernel that prepares all chunks at once, in passes over the keys, block by block. The first ones add up the
    products of rows; the last writes the rows themselves, decayed to the ends of the chunk."""

    def __init__(self, plan: KeyKernelPlan) -> None:
        super().__init__(plan, plan.prepare.part)
        self.scores = scores_of(plan)

    def parameters(self) -> list[str]:
        plan = self.plan
        prepared = [array.name for array in arrays(plan)]
        names = [*pointers(plan, plan.prepare.part), "cu_seqlens", "chunk_sequence", "first_chunk", *prepared]
        known = [*heads(plan.prepare.part), plan.key, *other_sizes((plan.key,), plan.prepare.part)]
        known += ["CHUNK", f"BLOCK_{plan.key}", *decay_tiles(plan), "PRECISION"]
        sizes = [f"{name}: tl.constexpr" for name in known]
        return [*(f"{name}_ptr" for name in names), *scalars(plan, plan.prepare.part), "T", *sizes]

    @property
    def kernel(self) -> str:
        return f"chunk_{self.plan.spec.name}_prepare_kernel"

    def context(self) -> Mapping[str, object]:
        """What a template needs to know of the kernel."""
        rounds = any(".to(dtype)" in line for line in self.lines())
        dtype_of = next(array.name for array in arrays(self.plan) if not array.single) if rounds else None
        anchored = "LEAF" in names_in(*self.lines())
        known = {"key_heads": key_heads(*self.parts), "dtype_of": dtype_of, "leaf": anchored}
        sections = {"once": self.once(), "passes": self.passes()}
        return {"kernel": self.kernel, "parameters": self.parameters(), **known, **sections}

    def lines(self) -> list[str]:
        return [*self.once(), *(line for each in self.passes() for line in (*each.before, *each.block, *each.after))]

    def once(self) -> list[str]:
        prepare = self.plan.prepare
        return self.fixed(prepare.once, reads_head=prepare.part.reads_head) + self.rows(prepare.rows)

    def passes(self) -> list[Pass]:
        """Four matrices of products do not fit into registers beside one another: those of rows that erase come first,
        and with them the inverse."""
        together = len(self.scores) <= 2
        readers = [tuple(self.readers)] if together else [("y",), ("q",)]
        adding = [self._adding(roles, first=roles == readers[0]) for roles in readers]
        return [*(each for each in adding if each.block or each.after), Pass([], self._of_block(self._ends()), [])]

    def _adding(self, readers: Collection[str], *, first: bool) -> Pass:
        """Add up what `readers` see; the first pass also adds up what else is summed over the keys."""
        scores = [score for score in self.scores if score.reader in readers]
        sums = self.plan.prepare.sums if first else ()
        lines = [f"{total.target} += {self.printers[TOKEN].over(total.value, (TOKEN,))}" for total in sums]
        lines += self._products(scores) if scores else []
        totals = [*(score.name for score in scores), *(total.target for total in sums)]
        return Pass(
            before=[
                *(f"{score.name} = tl.zeros((CHUNK, CHUNK), tl.float32)" for score in scores),
                *(f"{total.target} = tl.zeros((CHUNK,), tl.float32)" for total in sums),
            ],
            block=self._of_block(lines, totals, first=first),
            after=[*(self._numbers() if first else []), *self._scaled(scores), *self._matrices(readers)],
        )

    def _of_block(self, lines: Sequence[str], totals: Sequence[str] = (), *, first: bool = False) -> list[str]:
        """`lines`, after the rows of a block of keys that they need. Of all keys at once, there are the rows still."""
        if self.plan.whole_keys:
            return [*(self.of_keys() if first else []), *lines]
        return live([*self.of_keys(), *lines], totals)

    # -------------------------------------------------------------------------------------------------------- products

    def _products(self, scores: Sequence[Score]) -> list[str]:
        if self.plan.log_decay is None:
            readers = {score.reader for score in scores}
            lines = [f"{name}_operand = {name}.to(dtype)" for name in self._operands(*sorted(readers), "w", "k")]
            for score in scores:
                reader, writer = f"{self.operand(score.reader)}_operand", f"{self.operand(score.writer)}_operand"
                lines.append(self._added(score, self._sees(score.reader), reader, writer))
            return lines
        if self.plan.leaf.is_one:
            return [*self._diagonals(scores), "for level in range(LEVELS):", *indented(self._level(scores))]
        return [*self._leaf(scores), "for level in range(LEAF_LEVELS, LEVELS):", *indented(self._level(scores))]

    def _diagonals(self, scores: Sequence[Score]) -> list[str]:
        """What a read sees of its own token, which does not decay."""
        if not self.plan.reads_itself:
            return []
        found = [score for score in scores if score.reader == "q"]
        products = [(score, f"{self.operand('q')} * {self.operand(score.writer)}") for score in found]
        return [
            f"{score.name} += tl.where({self.rows_where('==')}, tl.sum({product}, axis=1)[:, None], 0.0)"
            for score, product in products
        ]

    def _leaf(self, scores: Sequence[Score]) -> list[str]:
        """All pairs of rows in a block, which meet at its middle."""
        readers = self._readers(scores)
        moments = set(readers.values())
        lines = [
            f"exponent = from_middle({self.row_index}, log_decay, LEAF, TERMS)",
            *(["reading = tl.exp2(exponent)"] if True in moments else []),
            *([f"reading_before = tl.exp2(exponent - log_decay * {LOG2_E})"] if False in moments else []),
            "writing = tl.exp2(-exponent)",
            f"near = {self.row_index}[:, None] // LEAF == {self.row_index}[None, :] // LEAF",
        ]
        for role, after in readers.items():
            factor = "reading" if after else "reading_before"
            lines.append(f"{role}_reading = ({self.operand(role)} * {factor}).to(dtype)")
        lines += [f"{name}_writing = ({name} * writing).to(dtype)" for name in self._operands("w", "k")]
        for score in scores:
            product = f"tl.dot({score.reader}_reading, tl.trans({self.operand(score.writer)}_writing), {DOT})"
            lines.append(f"{score.name} += tl.where(near & ({self._sees(score.reader)}), {product}, 0.0)")
        return lines

    def _level(self, scores: Sequence[Score]) -> list[str]:
        """The pairs of rows of one level: those of an upper half read what those of its lower half wrote."""
        row, readers = self.row_index, self._readers(scores)
        first = next(iter(readers.values()))
        shared = [role for role, after in readers.items() if after == first]
        apart = [role for role in readers if role not in shared]
        lines = [f"decay = decay_to_cut({row}, level, log_decay, {int(first)}, TERMS)"]
        lines += [f"{name}_decayed = ({name} * decay).to(dtype)" for name in self._operands(*shared, "w", "k")]
        for role in apart:
            lines += [
                f"erased_decay = decay_to_cut({row}, level, log_decay, {int(readers[role])}, TERMS)",
                f"{role}_erasing = ({self.operand(role)} * erased_decay).to(dtype)",
            ]
        lines.append(f"seen = seen_across_cut({row}, level)")
        for score in scores:
            reader = f"{score.reader}_erasing" if score.reader in apart else f"{self.operand(score.reader)}_decayed"
            lines.append(self._added(score, "seen", reader, f"{self.operand(score.writer)}_decayed"))
        return lines

    def _added(self, score: Score, seen: str, reader: str, writer: str) -> str:
        return f"{score.name} += tl.where({seen}, tl.dot({reader}, tl.trans({writer}), {DOT}), 0.0)"

    def _operands(self, *roles: str) -> list[str]:
        """What the vectors of these roles are called, each once."""
        return list(dict.fromkeys(self.operand(role) for role in roles if self.plan.vector(role) is not None))

    def _readers(self, scores: Sequence[Score]) -> dict[str, bool]:
        """The rows that read in `scores`, and whether the decay of their own token counts."""
        reading = {score.reader for score in scores}
        return {role: after for role, after in self.readers.items() if role in reading}

    def _sees(self, role: str) -> str:
        return self.rows_where(">=" if role == "q" and self.plan.reads_itself else ">")

    # -------------------------------------------------------------------------------------------------------- matrices

    def _numbers(self) -> list[str]:
        lines = []
        for number in self.plan.prepare.numbers:
            lines.append(f"{number.target} = {self.printers[TOKEN].assigned(number.value)}")
            lines.append(self._stored(Array(number.target, ("CHUNK",), single=True)))
        return lines

    def _scaled(self, scores: Sequence[Score]) -> list[str]:
        lines = []
        for score in scores:
            factor = common_factor(self.factor(score.reader), self.factor(score.writer, columns=True))
            lines += [f"{score.name} *= {factor.text}"] if factor else []
        return lines

    def _matrices(self, readers: Collection[str]) -> list[str]:
        """What is made of the scores of these rows. They are stored before the inverse takes their registers."""
        plan, lines = self.plan, []
        if plan.folded and "q" in readers:
            lines += [
                "read_erased = scores.to(dtype)",
                f"scores = tl.dot(read_erased, erased_writes, write_scores, {DOT})",
            ]
        squares = {array.name: array for array in arrays(plan) if array.dims == ("CHUNK", "CHUNK")}
        done = [score.name for score in self.scores if score.reader in readers]
        lines += [self._stored(squares[name]) for name in done if name in squares]
        if "y" in readers:
            lines.append("inverse = invert(L, CHUNK, PRECISION)")
            lines += [self._stored(squares["inverse"])] if "inverse" in squares else []
        if plan.folded and "y" in readers:
            lines += [
                "inverse = inverse.to(dtype)",
                f"erased_writes = tl.dot(inverse, erased_writes.to(dtype), erased_writes, {DOT}).to(dtype)",
            ]
        return lines

    def _ends(self) -> list[str]:
        """The rows decayed from the start of the chunk, or to its end."""
        plan = self.plan
        lines = self._end_factors()
        if plan.delta is not None:
            erase = "" if plan.log_decay is None else "from_start" if plan.erase_after else "from_start_before"
            lines.append(f"y_from_start = {self._decayed('y', erase)}")
            if plan.folded:
                lines.append(f"y_from_start = tl.dot(inverse, y_from_start.to(dtype), y_from_start, {DOT}).to(dtype)")
        if not plan.right:
            read = "" if plan.log_decay is None else "from_start" if plan.read_after else "from_start_before"
            lines.append(f"q_from_start = {self._decayed('q', read)}")
        if plan.folded:
            lines.append(f"q_from_start = tl.dot(read_erased, y_from_start, q_from_start, {DOT})")
        lines += [self._stored(array) for array in arrays(plan) if array.name.endswith("from_start")][::-1]
        if plan.log_decay is not None:
            lines.append(f"to_end = decay_over({self.rows_where('<')}, log_decay, TERMS)")
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
        found = [moments[moment] for moment in (True, False) if moment in self.readers.values()]
        return [f"{name} = decay_over({self.rows_where(reads)}, log_decay, TERMS)" for name, reads in found]

    def _decayed(self, role: str, decay: str) -> str:
        """The rows of `role` with all their factors."""
        return product(Printed(self.operand(role)), self.factor(role), Printed(decay) if decay else None).text

    def _stored(self, array: Array) -> str:
        place, mask = array.place(self.row_index, self.key_index, self.axes.mask(self.key))
        masked = f", mask={mask}" if mask else ""
        return f"tl.store({array.name}_ptr + {place}, {array.name}.to({array.name}_ptr.dtype.element_ty){masked})"
