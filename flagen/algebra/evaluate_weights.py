"""Evaluates what of each writer's row reaches each reader through the mixes of registers, and the gradients of that, by
definition: products of the matrices between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from gmpy2 import mpq

from flagen.algebra.equations import FAMILY, Factor, Weights, WeightsGradient
from flagen.algebra.timeline import OutOfOrder, Timeline, Values, indices

Vector = tuple[mpq, ...]
Matrix = tuple[Vector, ...]


def evaluate_weights(weights: Weights, timeline: Timeline, values: Mapping[str, Values]) -> Values:
    result = {index: mpq(0) for index in indices(weights.target.index, timeline)}
    mixes = _Mixes(timeline, values[weights.mixes.tensor])
    for entry in _entries(weights, timeline, values):
        result[entry.index] = _dot(entry.reader, _times(mixes.between(entry.start, entry.stop), entry.writer))
    return result


def evaluate_weights_gradient(statement: WeightsGradient, timeline: Timeline, values: Mapping[str, Values]) -> Values:
    """Of a product by one of its factors: what stands before that, times what stands behind it."""
    result = {index: mpq(0) for index in indices(statement.target.index, timeline)}
    name = statement.target.tensor.removeprefix("d")
    for use in statement.uses:
        mixes = _Mixes(timeline, values[use.mixes.tensor])
        for entry in _entries(use, timeline, values):
            slope = values[f"d{use.target.tensor}"][entry.index]
            if name == use.mixes.tensor:
                for step in range(entry.start, entry.stop):
                    left = _times(_transposed(mixes.between(step + 1, entry.stop)), entry.reader)
                    right = _times(mixes.between(entry.start, step), entry.writer)
                    for p, one in enumerate(left):
                        for r, other in enumerate(right):
                            result[(step, p, r)] += slope * one * other
            elif use.reader is not None and name == use.reader.tensor:
                for p, amount in enumerate(_times(mixes.between(entry.start, entry.stop), entry.writer)):
                    result[(entry.at_reader, p)] += slope * amount
            else:
                through = _transposed(mixes.between(entry.start, entry.stop))
                for p, amount in enumerate(_times(through, entry.reader)):
                    result[(entry.at_writer, p)] += slope * amount
    return result


@dataclass(frozen=True)
class _Entry:
    """An entry of the weights: the numbers of its reader and its writer, of which rows they are, and the micro-steps
    from start (inclusive) to stop (exclusive) between them."""

    index: tuple[int, ...]
    at_reader: int
    at_writer: int
    reader: Vector
    writer: Vector
    start: int
    stop: int


def _entries(weights: Weights, timeline: Timeline, values: Mapping[str, Values]) -> Iterator[_Entry]:
    """The entries that no mask hides. Where there is no reader or no writer, each register is one in its place; of a
    writer alone the row stands first, [writer, register]."""
    registers = range(timeline.sizes["register"])

    def numbers(end: Factor | None, place: int) -> Vector:
        if end is None:
            return tuple(mpq(int(p == place)) for p in registers)
        return tuple(values[end.tensor][(place, p)] for p in registers)

    for index in indices(weights.target.index, timeline):
        if (mask := weights.mask) is not None:
            written = timeline.writes[FAMILY[mask.column]][index[1]]
            if written >= timeline.seen[mask.reader][index[0]]:
                continue
        writer_first = weights.reader is None and weights.writer is not None
        at_reader, at_writer = index[::-1] if writer_first else index
        yield _Entry(
            index,
            at_reader,
            at_writer,
            numbers(weights.reader, at_reader),
            numbers(weights.writer, at_writer),
            timeline.counts[weights.since][at_writer] if weights.writer is not None else 0,
            timeline.counts[weights.upto][at_reader if weights.reader is not None else 0],
        )


@dataclass
class _Mixes:
    """Products of the mixes of successive micro-steps, the last one leftmost."""

    timeline: Timeline
    mixes: Values
    known: dict[tuple[int, int], Matrix] = field(default_factory=dict)

    def between(self, start: int, stop: int) -> Matrix:
        """From micro-step start (inclusive) to stop (exclusive)."""
        if stop < start:
            raise OutOfOrder
        if (start, stop) not in self.known:
            registers = range(self.timeline.sizes["register"])
            if start == stop:
                product = tuple(tuple(mpq(int(p == r)) for r in registers) for p in registers)
            else:
                last = tuple(tuple(self.mixes[(stop - 1, p, r)] for r in registers) for p in registers)
                before = _transposed(self.between(start, stop - 1))
                product = _transposed(tuple(_times(last, column) for column in before))
            self.known[(start, stop)] = product
        return self.known[(start, stop)]


def _times(matrix: Matrix, column: Vector) -> Vector:
    return tuple(_dot(row, column) for row in matrix)


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


def _dot(left: Iterable[mpq], right: Iterable[mpq]) -> mpq:
    return sum((x * y for x, y in zip(left, right, strict=True) if x and y), mpq(0))
