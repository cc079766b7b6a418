"""What rows of a chunk that read and rows that were written get from one another, in the last kernel of the backward of
scalar decays: through matrices of scores, whose gradients are products over the values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from flagen.kernel.column_gradients import Scores
from flagen.kernel.gradient_sums import GradientSums
from flagen.kernel.ir import Add, Fill, Let, Loop, Statement
from flagen.kernel.mix_gradients import weights_gradient
from flagen.kernel.mixes import plus, weights
from flagen.kernel.rows import DTYPE, PRECISION, call, common, local, rounded, times
from flagen.plan.backward_levels import BLOCK, KEYS, R_GRADIENT, ROLES, SHARED
from flagen.plan.row_planner import Part
from flagen.plan.rows import TOKEN, WRITTEN
from flagen.plan.tiles import Arithmetic, Dot, Tile, Value, Whole


class ScoreGradients(GradientSums):
    """Lowers it: in each block of the keys anew, or once for all of them."""

    # ---------------------------------------------------------------------------------------------------------- blocks

    def blocks(self, dim: str, body: Iterable[Statement], *, wanted: str = "", keeps: bool = False) -> Statement:
        whole = dim == self.key and self.backward.whole_keys
        return Loop("block", tuple(body), dim=dim, whole=whole, keeps=keeps, wanted=wanted)

    def of_block(self, part: Part) -> Iterator[Statement]:
        """What is loaded of a block of values."""
        yield from self.given(part, BLOCK)
        if self.plan.write_key is not None:
            yield from self.operands("v")
        yield from self.read_gradient()
        yield from self.stored_rows("U")
        yield from self.stored_rows(R_GRADIENT)

    def vectors(self) -> Iterator[Statement]:
        """The rows with what scales them, as operands."""
        for role in self.roles:
            if (scale := self.own_scale(role)) is not None:
                yield Let(self.vector(role).name, rounded(times(self.wide(self.operand(role)), scale)))

    # -------------------------------------------------------------------------------------------- in each block of keys

    def onto_rows(self, matrix: Scores, heads: Part) -> Iterator[Statement]:
        """Through one matrix after the other: two at a time would not fit the registers."""
        gradient = self._gradient(matrix)
        yield Fill(gradient.name, gradient.dims)
        product = Let(gradient.name, self._over_values(matrix, gradient))
        yield self.blocks(self.value, (*self.of_block(heads), product))
        yield from self._decayed_gradient(matrix)
        if self.backward.decays:
            keys = self._over_keys(matrix, None)
            yield from self._sum_of_pairs((times(keys, gradient),), self._last_token(matrix), gradient)
        yield self._operand_of(matrix)
        yield from self.through(matrix)

    def through(self, matrix: Scores) -> Iterator[Statement]:
        """What rows get through the operand that a matrix' gradient is."""
        operand = self._operand(matrix)
        reader, writer = self.part(matrix.reader), self.part(matrix.writer)
        written = self.written(self.vector(matrix.writer))
        yield Let(reader.name, Dot(operand, written, WRITTEN, reader, reader.dims))
        yield Let(writer.name, self.onto_written(operand, self.vector(matrix.reader), writer))

    # ------------------------------------------------------------------------------------------------ once for all keys

    def pairs_of_keys(self) -> Iterator[Statement]:
        """What rows that read have in common with rows that were written: over all keys."""
        if not self.backward.decays:
            return
        yield Fill("pair_sum", (TOKEN,))
        products: list[Statement] = []
        for matrix in self.matrices:
            keys = self._keys(matrix)
            yield Fill(keys.name, keys.dims)
            products.append(Let(keys.name, self._over_keys(matrix, keys)))
        yield self.blocks(
            self.key, (*self.given(self.parts[0], SHARED, KEYS), *self.operands(*ROLES), *self.vectors(), *products)
        )

    def all_gradients(self) -> Iterator[Statement]:
        """The gradients of all matrices, where the values are there in one block, and their pairs."""
        for matrix in self.matrices:
            yield Let(matrix.gradient, self._over_values(matrix, None))
            yield from self._decayed_gradient(matrix)
        if self.backward.decays:
            of_token: dict[Tile, list[Scores]] = {}
            for matrix in self.matrices:
                of_token.setdefault(self._last_token(matrix), []).append(matrix)
            for last, matrices in of_token.items():
                shares = [times(self._keys(matrix), self._gradient(matrix)) for matrix in matrices]
                yield from self._sum_of_pairs(shares, last, self._gradient(matrices[0]))
        yield from map(self._operand_of, self.matrices)

    # --------------------------------------------------------------------------------------------------------- matrices

    def _gradient(self, matrix: Scores) -> Value:
        return local(matrix.gradient, self.square(matrix))

    def _operand(self, matrix: Scores) -> Value:
        return local(f"{matrix.name}_operand", self.square(matrix))

    def _keys(self, matrix: Scores) -> Value:
        return local(f"{matrix.name}_keys", self.square(matrix))

    def _operand_of(self, matrix: Scores) -> Statement:
        return Let(self._operand(matrix).name, rounded(self._gradient(matrix)))

    def _over_values(self, matrix: Scores, onto: Tile | None) -> Tile:
        """What the gradients of rows that read have in common with what rows wrote."""
        values = self.written(self.values_of(matrix.writer))
        return Dot(self.values_of(matrix.reader), values, self.value, onto, self.square(matrix))

    def _over_keys(self, matrix: Scores, onto: Tile | None) -> Tile:
        """What rows that read have in common with rows that were written."""
        reader, writer = self.vector(matrix.reader), self.written(self.vector(matrix.writer))
        return Dot(reader, writer, self.key, onto, self.square(matrix))

    def _decayed_gradient(self, matrix: Scores) -> Iterator[Statement]:
        """A matrix' gradient, from that product: with the decay between rows, and nothing of what is not seen."""
        yield from self.column_onto_scores(matrix)
        yield from self.load_weights(matrix)
        scale, gradient = self.values_scale(matrix), self._gradient(matrix)
        decayed = times(self.decayed(matrix, gradient), None if scale is None else self.written(scale))
        yield Let(matrix.gradient, self.masked(matrix, decayed))

    def _last_token(self, matrix: Scores) -> Tile:
        """Up to which token what a row reads has decayed."""
        last = self.lane(TOKEN) if matrix.reader == "q" else self.token_of_rows()
        return Arithmetic("-", last, Whole(1), last.dims) if self.reads_before(matrix.reader) else last

    def _sum_of_pairs(self, shares: Iterable[Tile], last: Tile, square: Value) -> Iterator[Statement]:
        """What a decay has a part in: pairs of a row that reads after it and one written before it.

        What rows have in common with their gradients has all other pairs in it, too, and twice: they cancel but for
        their rounding, which is the same for all earlier tokens.
        """
        pairs = plus(*shares)
        assert pairs is not None
        yield Let("pairs", pairs)
        found = local("pairs", square.dims), last, self.token_of_rows(), self.lane(TOKEN), PRECISION, DTYPE
        yield Add("pair_sum", call("sum_of_pairs", *found, dims=(TOKEN,)), (TOKEN,))

    # ------------------------------------------------------------------------------------------ weights of many states

    def load_weights(self, matrix: Scores) -> Iterator[Statement]:
        """The weights of several states in the place of a decay."""
        if self.mixes is not None:
            yield from self.mixes.load(weights(matrix.reader, matrix.writer))

    def weights_gradients(self, part: Part) -> Iterator[Statement]:
        """The gradients of the weights of several states: what is read of values times what is read of keys."""
        if not self.backward.numbers:
            return
        found = [(matrix, weights_gradient(matrix.reader, matrix.writer)) for matrix in self.matrices]
        for matrix, gradient in found:
            yield from (Fill(gradient.name, gradient.dims), Fill(f"{matrix.name}_keys", gradient.dims))
        of_values = []
        for matrix, gradient in found:
            values = self.written(self.values_of(matrix.writer))
            product = Dot(self.values_of(matrix.reader), values, self.value, gradient, gradient.dims)
            of_values.append(Let(gradient.name, product))
        yield self.blocks(self.value, (*self.of_block(part), *of_values))
        of_keys: list[Statement] = [*self.given(self.parts[0], SHARED, KEYS), *self.operands(*ROLES)]
        for matrix, gradient in found:
            keys = local(f"{matrix.name}_keys", gradient.dims)
            reader, writer = self.operand(matrix.reader), self.written(self.operand(matrix.writer))
            of_keys.append(Let(keys.name, Dot(reader, writer, self.key, keys, keys.dims)))
        yield self.blocks(self.key, of_keys)
        for matrix, gradient in found:
            writer_scale = self.scale("v" if matrix.writer == "k" else matrix.writer)
            scales = common(self.scale(matrix.reader), writer_scale and self.written(writer_scale))
            yield Let(gradient.name, times(gradient, local(f"{matrix.name}_keys", gradient.dims), scales))
