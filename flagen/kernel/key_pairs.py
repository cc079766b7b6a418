"""What the rows of a chunk get from one another, lowered: level by level, as the preparation takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from flagen.kernel.ir import Access, Add, Array, Let, Load, Loop, Statement
from flagen.kernel.key_backward_rows import BackwardRows
from flagen.kernel.key_rows import LEAF, SQUARE, Score, scores_of
from flagen.kernel.rows import local, rounded, times, whole
from flagen.plan.backward_levels import ROLES
from flagen.plan.key_backward import KeyBackwardPlan
from flagen.plan.rows import TOKEN, WRITTEN
from flagen.plan.tiles import Along, Arithmetic, Both, Dot, Negative, Product, Tile, Value
from flagen.spec.model import Dims

PARTS = {"q": "read_part", "y": "erased_part", "w": "written_part", "k": "values_part"}
"""What each row along the keys gets, before what scales it."""


class Pairs(BackwardRows):
    """Lowers what the gradient of each matrix means for the rows that read in it, and for those that wrote."""

    def __init__(self, plan: KeyBackwardPlan) -> None:
        super().__init__(plan, plan.rows, plan.values, plan.written, plan.keys, plan.heads)
        self.matrices = scores_of(self.plan)
        self.roles = [role for role in ROLES if self.plan.vector(role) is not None]

    @property
    def over_keys(self) -> Dims:
        """The axes of a block of keys of all rows."""
        return (TOKEN, self.key)

    def full(self, role: str) -> Value:
        """The rows of `role` with all their factors."""
        if self.plan.scale(role) is None:
            return self.operand(role)
        return local(f"{role}_scaled", self.over_keys)

    def part(self, role: str) -> Value:
        """What the rows of `role` get."""
        return local(PARTS[role], self.over_keys)

    def common(self, role: str) -> str:
        """Where what rows have in common with their gradients is added up: a read before its own decay apart."""
        return "common" if self.readers.get(role, True) else "common_before"

    def matrix_gradient(self, matrix: Score) -> Access:
        """The gradient of a matrix of scores, which one kernel stores and reads again."""
        array = Array(f"{matrix.name}_gradient", ("counted_chunk", "head"), SQUARE)
        return self.chunk_access(array)

    def pairs(self) -> Iterator[Statement]:
        """What rows of a chunk get from one another."""
        yield from self._of_own_token()
        yield from self._of_token_before()
        if self.plan.log_decay is None:
            yield from self._without_decays()
        elif self.plan.leaf.is_one:
            yield Loop("level", tuple(self._level()), keeps=False)
        else:
            yield from self._leaf()
            yield Loop("level", tuple(self._level()), first="LEAF_LEVELS", keeps=False)

    def _without_decays(self) -> Iterator[Statement]:
        names = {role: f"{self.full(role).name}_operand" for role in self.roles}
        yield from self._operands(names, {})
        for matrix in self.matrices:
            reader, writer = self._of(names, matrix.reader), self._of(names, matrix.writer)
            yield from self._pair(matrix, self._earlier(), reader, writer)

    def _operands(self, names: Mapping[str, str], factors: Mapping[str, Tile]) -> Iterator[Statement]:
        """The rows of each role times its factor as operands; the same rows have one name."""
        for name in dict.fromkeys(names.values()):
            role = next(role for role in names if names[role] == name)
            yield Let(name, rounded(times(self.full(role), factors.get(role))))

    def _of(self, names: Mapping[str, str], role: str) -> Value:
        return local(names[role], self.over_keys)

    def _of_own_token(self) -> Iterator[Statement]:
        """What a read sees of its own token, which does not decay."""
        if not self.plan.reads_itself:
            return
        own, row = local("own_gradient", (TOKEN,)), self.lane(TOKEN)
        for matrix in self.matrices:
            if matrix.reader == "q":
                yield Load(own.name, replace(self.matrix_gradient(matrix), places=((WRITTEN, row),)), wide=True)
                yield self._adds(self.part("q"), times(own, self.full(matrix.writer)))
                yield self._adds(self.part(matrix.writer), times(own, self.full("q")))

    def _of_token_before(self) -> Iterator[Statement]:
        """What those read before their own decay of the token just before, which does not decay between the two either:
        beside strong decays it would drown what has to do with them."""
        for matrix in filter(self._apart, self.matrices):
            seen = self.compared(self.lane(TOKEN), "==", self._row_behind())
            reader, writer = rounded(self.full(matrix.reader)), rounded(self.full(matrix.writer))
            yield from self._pair(matrix, seen, reader, writer, decays=False)

    def _row_behind(self) -> Tile:
        """The row behind that of each column."""
        return Arithmetic("+", self.lane(WRITTEN), whole(1), (WRITTEN,))

    def _apart(self, matrix: Score) -> bool:
        """Whether rows next to one another are kept out of what decays."""
        return self.backward.decays and self.plan.leaf.is_one and not self.readers[matrix.reader]

    def _earlier(self) -> Tile:
        return self.rows_where(">")

    def _leaf(self) -> Iterator[Statement]:
        """All pairs of rows in a block, which meet at its middle."""
        over, row, moments = self.over_keys, self.lane(TOKEN), set(self.readers.values())
        exponent = local("exponent", over)
        yield Let("exponent", self.from_middle())
        if True in moments:
            yield Let("reading", self.exponential(exponent))
        if False in moments:
            yield Let("reading_before", self.exponential(self.before(exponent)))
        yield Let("writing", self.exponential(Negative(exponent, over)))
        leaf = Product((Arithmetic("//", row, LEAF, (TOKEN,)), LEAF), (TOKEN,))
        near = local("near", SQUARE)
        yield Let("near", Both(self.compared(leaf, "<=", self.lane(WRITTEN)), self._earlier(), SQUARE))
        reading = {role: local("reading" if after else "reading_before", over) for role, after in self.readers.items()}
        writers = [role for role in ("w", "k") if role in self.roles]
        factors: dict[str, Tile] = {**reading, **dict.fromkeys(writers, local("writing", over))}
        names = {role: f"{role}_reading" for role in reading} | {role: f"{role}_writing" for role in writers}
        yield from self._operands(names, factors)
        for matrix in self.matrices:
            reader, writer = self._of(names, matrix.reader), self._of(names, matrix.writer)
            yield from self._pair(matrix, near, reader, writer, factors[matrix.reader], factors[matrix.writer])

    def _level(self) -> Iterator[Statement]:
        """The pairs of rows of one level: those of an upper half read what those of its lower half wrote."""
        over, row, first = self.over_keys, self.lane(TOKEN), self.readers["q"]
        decay, seen, apart = local("decay", over), local("seen", SQUARE), local("seen_apart", SQUARE)
        yield Let("decay", self.decay_to_cut(after=first))
        names = {role: f"{self.full(role).name}_decayed" for role in self.roles}
        factors: dict[str, Tile] = dict.fromkeys(self.roles, decay)
        if self.readers.get("y", first) != first:
            factors["y"], names["y"] = local("erased_decay", over), f"{self.full('y').name}_erasing"
            yield Let("erased_decay", self.decay_to_cut(after=self.readers["y"]))
        yield Let("seen", self.seen_across_cut())
        if any(map(self._apart, self.matrices)):
            yield Let("seen_apart", Both(seen, self.compared(row, ">", self._row_behind()), SQUARE))
        yield from self._operands(names, factors)
        for matrix in self.matrices:
            reader, writer = self._of(names, matrix.reader), self._of(names, matrix.writer)
            here = apart if self._apart(matrix) else seen
            yield from self._pair(matrix, here, reader, writer, factors[matrix.reader], decay)

    def _pair(
        self,
        matrix: Score,
        seen: Tile,
        reader: Tile,
        writer: Tile,
        reading: Tile | None = None,
        writing: Tile | None = None,
        *,
        decays: bool = True,
    ) -> Iterator[Statement]:
        """What the rows of one matrix get from one another; what they then have in common with their gradients is made
        of the same rounded rows, so that what they share cancels in the sums over tokens."""
        over, decays = self.over_keys, decays and self.backward.decays
        pairs, common = local("pairs", SQUARE), local("common", over)
        onto_reader, onto_writer = local("onto_reader", over), local("onto_writer", over)
        yield Load("pairs", replace(self.matrix_gradient(matrix), where=seen), wide=False)
        yield Let("onto_reader", self.dot(pairs, self.written(writer), WRITTEN))
        yield self._adds(self.part(matrix.reader), times(onto_reader, reading))
        if decays:
            yield self._adds(local(self.common(matrix.reader), over), Product((reader, onto_reader), over))
        yield Let("onto_writer", self.unwritten(Dot(pairs, reader, TOKEN, None, (WRITTEN, self.key))))
        yield self._adds(self.part(matrix.writer), times(onto_writer, writing))
        if decays:
            yield Add(common.name, Product((writer, onto_writer), over), over, subtracts=True)

    def unwritten(self, tile: Tile) -> Tile:
        """`tile`, whose columns of scores are read as rows."""
        return Along(tile, tuple(TOKEN if dim == WRITTEN else dim for dim in tile.dims))

    def _adds(self, target: Value, value: Tile) -> Statement:
        return Add(target.name, value, target.dims)
