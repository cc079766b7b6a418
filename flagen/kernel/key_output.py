"""Lowers the kernel that puts out what a right read reads: a vector over the keys, decayed on its own side of the
products."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from flagen.kernel.ir import Add, Fill, Kernel, Let, Load, Loop, Note, Operands, Scale, Statement
from flagen.kernel.key_rows import SQUARE, KeyRows, decay_sizes, prepared
from flagen.kernel.key_walks import walked
from flagen.kernel.parameters import assembled
from flagen.kernel.passes import live
from flagen.kernel.rows import PACKING, ZERO, is_input, local, rounded
from flagen.kernel.state_walk import put
from flagen.plan.backward_levels import OUTPUT
from flagen.plan.key_kernel import KeyKernelPlan
from flagen.plan.row_planner import RowLoad, RowSet
from flagen.plan.rows import TOKEN, WRITTEN
from flagen.plan.schedule import Load as Loaded
from flagen.plan.schedule import Set
from flagen.plan.tiles import Along, Both, Dot, Negative, Select, Sum, Tile, Value


class RightOutput(KeyRows):
    """Owns a block of keys of one chunk, for which it passes over the values once."""

    def __init__(self, plan: KeyKernelPlan) -> None:
        assert plan.outputs is not None
        super().__init__(plan, plan.outputs, plan.prepare.part)
        self.part = plan.outputs
        self.key_roles = ("w", "k")
        writers = {"w": "scores", "k": "write_scores" if plan.delta is not None else "scores"}
        self.writers = {role: name for role, name in writers.items() if plan.vector(role) is not None}
        self.left = {array.name: array for array in walked(plan, life="residual")}
        self.over_read = (TOKEN, self.key)

    def raw(self, load: RowLoad) -> bool:
        plain = [self.plan.vector(role) for role in ("q", "v")]
        return any(isinstance(tile, Value) and tile.name == load.source.name for tile in plain)

    def kernel(self) -> Kernel:
        body = (
            *self._once(),
            *self._over_values(),
            Note(),
            *self._keys(),
            *self._decayed_reads(),
            *self._put(),
        )
        names = (array.name for array in (*PACKING, *prepared(self.plan), *self.left.values()))
        kernel = assembled(
            self,
            (Operands(self.left["states"]), *live(body, ())),
            name="output",
            run="chunk",
            dims=(self.key, self.value),
            tiles=("CHUNK", f"BLOCK_{self.key}", f"BLOCK_{self.value}", *decay_sizes(self.plan), "PRECISION"),
            order=(*names, OUTPUT),
            block_of=self.key,
        )
        return replace(kernel, whole=self.plan.whole_keys)

    def _once(self) -> Iterator[Statement]:
        """What is the same for every block of values, and every key."""
        actions = (*self.part.once, *self.plan.prepare.once)
        yield from self.fixed(action for action in actions if not _over(action, self.value, self.key))

    def _numbers(self) -> Iterator[Statement]:
        """What has neither values nor keys: one number for each row."""
        yield from (self.prepared_load(array) for array in prepared(self.plan) if array.dims == (TOKEN,))
        rows = (row for row in self.part.rows if not _over(row, self.value, self.key))
        yield from self.of_rows(dict.fromkeys((*self.plan.prepare.rows, *rows)))

    # ---------------------------------------------------------------------------------------------------------- values

    def _over_values(self) -> Iterator[Statement]:
        """Scores of the reads with what was written, and their reads of the state before the chunk."""
        yield from (Fill(name, SQUARE) for name in dict.fromkeys(self.writers.values()))
        yield Fill("read", self.over_read)
        yield from self._numbers()
        block = (
            *self.fixed(action for action in self.part.once if _over(action, self.value)),
            *self.of_rows(row for row in self.part.rows if _over(row, self.value)),
            *self._operand(),
            *self._state_and_updates(),
            *self._scores(),
        )
        yield Loop("block", block, dim=self.value)

    def _operand(self) -> Iterator[Statement]:
        """The reads, where they are no plain inputs."""
        tile = self.plan.vector("q")
        if tile is not None and not is_input(tile):
            yield Let("q_operand", rounded(self.tile(tile, TOKEN)))

    def _state_and_updates(self) -> Iterator[Statement]:
        called = {"states": "S_operand", "U": "U_operand"}
        for name, array in self.left.items():
            yield Load(called[name], self.chunk_access(array), wide=False)

    def _scores(self) -> Iterator[Statement]:
        q = self.operand("q") if is_input(self.plan.vector("q")) else local("q_operand", (self.value, TOKEN))
        state = local("S_operand", (self.value, self.key))
        yield Let("read", Dot(q, state, self.value, local("read", self.over_read), self.over_read))
        for role, name in self.writers.items():
            written = Along(self._written(role), (self.value, WRITTEN))
            yield Let(name, Dot(q, written, self.value, local(name, SQUARE), SQUARE))

    def _written(self, role: str) -> Tile:
        """What is written along the rows of a role: U, or v."""
        vector = self.plan.vector("v")
        if role == "w" or vector is None:
            return local("U_operand", (self.value, TOKEN))
        return self.operand("v") if is_input(vector) else rounded(self.tile(vector, TOKEN))

    # ------------------------------------------------------------------------------------------------------------ keys

    def _keys(self) -> Iterator[Statement]:
        """The rows of the block of keys."""
        yield from self.fixed(action for action in self.part.once if _over(action, self.key))
        yield from self.of_rows(row for row in self.part.rows if _over(row, self.key))
        yield from self.of_keys()

    def _decayed_reads(self) -> Iterator[Statement]:
        """What is read of the chunk itself: scores times rows, whose decay belongs to the keys, not to the scores."""
        plan = self.plan
        for role, name in self.writers.items():
            scale = self.scale(role)
            if scale is not None:
                yield Scale(name, self.written(scale), SQUARE)
        sees = self.rows_where(">=" if plan.reads_itself else ">")
        if plan.log_decay is None:
            yield from self._reads(sees)
            return
        yield Scale("read", self.decay_over(">=" if plan.read_after else ">"), self.over_read)
        if plan.leaf.is_one:
            yield from self._diagonals() if plan.reads_itself else ()
        else:
            yield from self._leaf(sees)
        level = (
            Let("decay", self.decay_to_cut(after=plan.read_after)),
            Let("seen", self.seen_across_cut()),
            *self._reads(local("seen", SQUARE), "decay", "decay"),
        )
        yield Loop("level", level, first="" if plan.leaf.is_one else "LEAF_LEVELS")

    def _diagonals(self) -> Iterator[Statement]:
        here = self.rows_where("==")
        for role, name in self.writers.items():
            own = Sum(Select(here, local(name, SQUARE), ZERO, SQUARE), WRITTEN, (TOKEN,))
            yield Add("read", self.product(own, self.operand(role)), self.over_read)

    def _leaf(self, sees: Tile) -> Iterator[Statement]:
        exponent = local("exponent", self.over_read)
        yield Let("exponent", self.from_middle())
        yield Let("writing", self.exponential(Negative(exponent, exponent.dims)))
        yield Let("near", Both(self.near(), sees, SQUARE))
        yield Let("reading", self.exponential(exponent if self.plan.read_after else self.before(exponent)))
        yield from self._reads(local("near", SQUARE), "reading", "writing")

    def _reads(self, seen: Tile, reading: str = "", writing: str = "") -> Iterator[Statement]:
        """Scores where they are `seen` times rows, each with its decay."""
        for role, name in self.writers.items():
            factors = (local(factor, self.over_read) if factor else None for factor in (reading, writing))
            of_reader, of_writer = factors
            scores = rounded(Select(seen, local(name, SQUARE), ZERO, SQUARE))
            rows = self.written(rounded(self.product(self.operand(role), of_writer)))
            read = Dot(scores, rows, WRITTEN, None, self.over_read)
            yield Add("read", read if of_reader is None else self.product(of_reader, read), self.over_read)

    def _put(self) -> Iterator[Statement]:
        scale = self.scale("q")
        if scale is not None:
            yield Scale("read", scale, self.over_read)
        yield from put(self)


def _over(action: Loaded | Set | RowLoad | RowSet, *dims: str) -> bool:
    """Whether a tile lies over one of `dims`."""
    over: Iterable[str] = action.value.dims if isinstance(action, Set | RowSet) else action.source.dims
    return not set(over).isdisjoint(dims)
