"""Lowers the preparation of chunks for decays of each key: products of rows, and the rows decayed to a chunk's ends."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from flagen.kernel.ir import Add, Fill, Kernel, Let, Loop, Note, Operands, Scale, Statement, Store
from flagen.kernel.key_rows import SQUARE, KeyRows, Score, decay_sizes, prepared, scores_of
from flagen.kernel.parameters import assembled
from flagen.kernel.passes import live, rounds
from flagen.kernel.rows import CHUNK, PACKING, PRECISION, ZERO, call, local, rounded
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.rows import BETWEEN, TOKEN, WRITTEN
from flagen.plan.tiles import Along, Both, Comparison, Dot, Negative, Select, Sum, Tile, Value


class Prepare(KeyRows):
    """The kernel that prepares all chunks at once, in passes over the keys, block by block. The first ones add up the
    products of rows; the last writes the rows themselves, decayed to the ends of the chunk."""

    def __init__(self, plan: KeyKernelPlan) -> None:
        super().__init__(plan, plan.prepare.part)
        self.scores = scores_of(plan)
        self.arrays = {array.name: array for array in prepared(plan)}

    def kernel(self) -> Kernel:
        return assembled(
            self,
            self._body(),
            name="prepare",
            run="chunk",
            dims=(self.key,),
            order=(*(array.name for array in PACKING), *self.arrays),
            tiles=("CHUNK", f"BLOCK_{self.key}", *decay_sizes(self.plan), "PRECISION"),
        )

    def _body(self) -> tuple[Statement, ...]:
        prepare = self.plan.prepare
        body = (*self.fixed(prepare.once), *self.of_rows(prepare.rows), *self.passes())
        operands = next(array for array in self.arrays.values() if array.own_dtype)
        return (Operands(operands), *body) if rounds(body) else body

    def passes(self) -> Iterator[Statement]:
        """Four matrices of products do not fit into registers beside one another: those of rows that erase come first,
        and with them the inverse."""
        together = len(self.scores) <= 2
        readers = [tuple(self.readers)] if together else [("y",), ("q",)]
        for roles in readers:
            yield from self.adding(roles, first=roles == readers[0])
        yield Note()
        yield from self.of_block(self.ends())

    def adding(self, readers: Collection[str], *, first: bool) -> Iterator[Statement]:
        """Add up what `readers` see; the first pass also adds up what else is summed over the keys."""
        scores = [score for score in self.scores if score.reader in readers]
        sums = self.plan.prepare.sums if first else ()
        block: list[Statement] = [Add(x.target, self.tile(x.value, TOKEN), (TOKEN,)) for x in sums]
        block += self._products(scores) if scores else []
        after = [*(self._numbers() if first else []), *self._scaled(scores), *self._matrices(readers)]
        pass_over_keys = self.of_block(block, [*(s.name for s in scores), *(x.target for x in sums)], first=first)
        if not pass_over_keys and not after:
            return
        yield Note()
        yield from (Fill(score.name, SQUARE) for score in scores)
        yield from (Fill(total.target, (TOKEN,)) for total in sums)
        yield from pass_over_keys
        yield from [Note(), *after] if after else []

    def of_block(
        self, body: Iterable[Statement], totals: Iterable[str] = (), *, first: bool = False
    ) -> tuple[Statement, ...]:
        """`body`, after the rows of a block of keys that it needs. Of all keys at once, there are the rows still."""
        if self.plan.whole_keys:
            return (*(self.of_keys() if first else ()), *body)
        needed = live((*self.of_keys(), *body), totals)
        return (Loop("block", needed, dim=self.key),) if needed else ()

    # -------------------------------------------------------------------------------------------------------- products

    def _products(self, scores: Sequence[Score]) -> Iterator[Statement]:
        plan = self.plan
        if plan.log_decay is None:
            yield from self._undecayed(scores)
            return
        yield from self._diagonals(scores) if plan.leaf.is_one else self._leaf(scores)
        first = "" if plan.leaf.is_one else "LEAF_LEVELS"
        yield Loop("level", tuple(self._level(scores)), first=first)

    def _undecayed(self, scores: Sequence[Score]) -> Iterator[Statement]:
        readers = {score.reader for score in scores}
        for name in self._operands(*sorted(readers), "w", "k"):
            yield Let(f"{name}_operand", rounded(self._rows(name)))
        for score in scores:
            reader, writer = (self._rows(f"{self.called_as(role)}_operand") for role in (score.reader, score.writer))
            yield self._added(score, self.rows_where(self._sees(score.reader)), reader, writer)

    def _diagonals(self, scores: Sequence[Score]) -> Iterator[Statement]:
        """What a read sees of its own token, which does not decay."""
        if not self.plan.reads_itself:
            return
        for score in scores:
            if score.reader == "q":
                products = self.product(self.operand("q"), self.operand(score.writer))
                own = Select(self.rows_where("=="), Sum(products, self.key, (TOKEN,)), ZERO, SQUARE)
                yield Add(score.name, own, SQUARE)

    def _leaf(self, scores: Sequence[Score]) -> Iterator[Statement]:
        """All pairs of rows in a block, which meet at its middle."""
        readers, exponent = self._readers(scores), self._rows("exponent")
        yield Let("exponent", self.from_middle())
        if True in readers.values():
            yield Let("reading", self.exponential(exponent))
        if False in readers.values():
            yield Let("reading_before", self.exponential(self.before(exponent)))
        yield Let("writing", self.exponential(Negative(exponent, exponent.dims)))
        yield Let("near", self.near())
        for role, after in readers.items():
            factor = self._rows("reading" if after else "reading_before")
            yield Let(f"{role}_reading", rounded(self.product(self.operand(role), factor)))
        for name in self._operands("w", "k"):
            yield Let(f"{name}_writing", rounded(self.product(self._rows(name), self._rows("writing"))))
        for score in scores:
            seen = Both(local("near", SQUARE), self.rows_where(self._sees(score.reader)), SQUARE)
            reader, writer = f"{score.reader}_reading", f"{self.called_as(score.writer)}_writing"
            yield self._added(score, seen, self._rows(reader), self._rows(writer))

    def _level(self, scores: Sequence[Score]) -> Iterator[Statement]:
        """The pairs of rows of one level: those of an upper half read what those of its lower half wrote."""
        readers = self._readers(scores)
        first = next(iter(readers.values()))
        shared = [role for role, after in readers.items() if after == first]
        apart = [role for role in readers if role not in shared]
        yield Let("decay", self.decay_to_cut(after=first))
        for name in self._operands(*shared, "w", "k"):
            yield Let(f"{name}_decayed", rounded(self.product(self._rows(name), self._rows("decay"))))
        for role in apart:
            yield Let("erased_decay", self.decay_to_cut(after=readers[role]))
            yield Let(f"{role}_erasing", rounded(self.product(self.operand(role), self._rows("erased_decay"))))
        yield Let("seen", self.seen_across_cut())
        for score in scores:
            reader = f"{score.reader}_erasing" if score.reader in apart else f"{self.called_as(score.reader)}_decayed"
            writer = self._rows(f"{self.called_as(score.writer)}_decayed")
            yield self._added(score, local("seen", SQUARE), self._rows(reader), writer)

    def _added(self, score: Score, seen: Tile, reader: Tile, writer: Tile) -> Statement:
        products = self.dot(reader, self.written(writer), self.key)
        return Add(score.name, Select(seen, products, ZERO, SQUARE), SQUARE)

    def _rows(self, name: str) -> Value:
        """A tile over the rows and keys."""
        return local(name, self.log_decay.dims)

    def called_as(self, role: str) -> str:
        """What the vectors of a role are called."""
        return self.operand(role).name

    def _operands(self, *roles: str) -> list[str]:
        """What the vectors of these roles are called, each once."""
        return list(dict.fromkeys(self.called_as(role) for role in roles if self.plan.vector(role) is not None))

    def _readers(self, scores: Sequence[Score]) -> dict[str, bool]:
        """The rows that read in `scores`, and whether the decay of their own token counts."""
        reading = {score.reader for score in scores}
        return {role: after for role, after in self.readers.items() if role in reading}

    def _sees(self, role: str) -> Comparison:
        return ">=" if role == "q" and self.plan.reads_itself else ">"

    # -------------------------------------------------------------------------------------------------------- matrices

    def _numbers(self) -> Iterator[Statement]:
        for number in self.plan.prepare.numbers:
            yield Let(number.target, self.tile(number.value, TOKEN))
            yield self.stored(number.target)

    def _scaled(self, scores: Sequence[Score]) -> Iterator[Statement]:
        for score in scores:
            reader, writer = self.scale(score.reader), self.scale(score.writer)
            factors = [x for x in (reader, writer and self.written(writer)) if x is not None]
            if factors:
                yield Scale(score.name, self.product(*factors), SQUARE)

    def _matrices(self, readers: Collection[str]) -> Iterator[Statement]:
        """What is made of the scores of these rows. They are stored before the inverse takes their registers."""
        if self.plan.folded and "q" in readers:
            yield Let("read_erased", rounded(local("scores", SQUARE)))
            erased, writes = local("erased_writes", SQUARE), local("write_scores", SQUARE)
            yield Let("scores", self._of_matrices(local("read_erased", SQUARE), erased, writes))
        yield from (self.stored(score.name) for score in self.scores if self._is_kept(score, readers))
        if "y" in readers:
            yield Let("inverse", call("invert", local("L", SQUARE), CHUNK, PRECISION, dims=SQUARE))
            if "inverse" in self.arrays:
                yield self.stored("inverse")
        if self.plan.folded and "y" in readers:
            yield Let("inverse", rounded(local("inverse", SQUARE)))
            erased = local("erased_writes", SQUARE)
            product = self._of_matrices(local("inverse", SQUARE), rounded(erased), erased)
            yield Let("erased_writes", rounded(product))

    def _is_kept(self, score: Score, readers: Collection[str]) -> bool:
        return score.reader in readers and score.name in self.arrays

    def _of_matrices(self, left: Tile, right: Tile, onto: Tile) -> Tile:
        """The product of two matrices of scores, added onto a third one."""
        left, right = Along(left, (TOKEN, BETWEEN)), Along(right, (BETWEEN, WRITTEN))
        return Dot(left, right, BETWEEN, onto, SQUARE)

    # ------------------------------------------------------------------------------------------------------------ ends

    def ends(self) -> Iterator[Statement]:
        """The rows decayed from the start of the chunk, or to its end."""
        plan = self.plan
        yield from self._end_factors()
        if plan.delta is not None:
            yield Let("y_from_start", self.scaled("y", self._from_start(plan.erase_after)))
            if plan.folded:
                rows = self._rows("y_from_start")
                yield Let("y_from_start", rounded(self._onto_rows("inverse", rounded(rows), rows)))
        if not plan.right:
            yield Let("q_from_start", self.scaled("q", self._from_start(plan.read_after)))
        if plan.folded:
            erased, rows = self._rows("y_from_start"), self._rows("q_from_start")
            yield Let("q_from_start", self._onto_rows("read_erased", erased, rows))
        yield from (self.stored(name) for name in reversed(self.arrays) if name.endswith("from_start"))
        to_end = None if plan.log_decay is None else self._rows("to_end")
        if plan.log_decay is not None:
            yield Let("to_end", self.decay_over("<"))
        if plan.delta is not None:
            yield Let("w_to_end", rounded(self.scaled("w", to_end)))
        if plan.write_key is not None:
            yield Let("k_to_end", self.scaled("k", to_end))
        if plan.folded:
            yield Let("k_to_end", self._folded_writes())
        yield from (self.stored(name) for name in self.arrays if name.endswith("to_end"))
        if plan.log_decay is not None:
            yield Let("whole", self.across())
            yield self.stored("whole")

    def _end_factors(self) -> Iterator[Statement]:
        if self.plan.log_decay is None:
            return
        if True in self.readers.values():
            yield Let("from_start", self.decay_over(">="))
        if False in self.readers.values():
            yield Let("from_start_before", self.decay_over(">"))

    def _from_start(self, after: bool) -> Tile | None:
        """The decay of rows that read from the chunk's start."""
        if self.plan.log_decay is None:
            return None
        return self._rows("from_start" if after else "from_start_before")

    def _onto_rows(self, matrix: str, rows: Tile, onto: Tile) -> Tile:
        """A matrix of scores times rows that were written, added onto rows that read."""
        return Dot(local(matrix, SQUARE), self.written(rows), WRITTEN, onto, onto.dims)

    def _folded_writes(self) -> Tile:
        """The rows that write, and what is erased of them again."""
        onto, erased = self.written(self._rows("k_to_end")), local("erased_writes", SQUARE)
        return Along(Dot(erased, self._rows("w_to_end"), TOKEN, onto, onto.dims), self.log_decay.dims)

    def stored(self, name: str) -> Statement:
        array = self.arrays[name]
        return Store(self.chunk_access(array), local(name, array.dims))
