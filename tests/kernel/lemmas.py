"""What is taken for granted of where programs stand (see `tests.kernel.bounds`), from the formulas that are printed: it
comes from products, of which z3 is told no more than this."""

from __future__ import annotations

from collections.abc import Iterator

import z3

from tests.kernel.bounds import Fact, from_zero


def _lemmas() -> Iterator[tuple[str, list[Fact], Fact]]:
    a, b, size, count, x = z3.Ints("a b size count x")
    blocks = [a >= 0, a < b, b < count, size >= 1]
    # Blocks of a dim, sequences of a batch, segments of one sequence and those of a batch: one after the other.
    yield "the b-th stretch begins where the a-th has ended", blocks, a * size + size <= b * size
    yield "the last stretch ends with the whole", blocks, b * size + size <= count * size
    length, start = z3.Ints("length start")
    segments = [length >= 0, size >= 1, count * size >= length, (count - 1) * size < length, *from_zero(a, count)]
    first, end = start + a * size, start + length
    last = z3.If(first + size < end, first + size, end)
    inside = z3.And(start <= first, first < last, last <= end, last <= first + size)
    yield "a segment has a token, and none beyond its sequence", segments, inside
    stretches = [length >= 0, size >= 1, (count - 1) * size <= length, length < count * size, *from_zero(a, count)]
    yield "a stretch begins with a place of its sequence", stretches, z3.And(start <= first, first <= end)
    one_has_it = z3.Implies(a == count - 1, end < first + size)
    yield "the last stretch has the place behind the last token", stretches, one_has_it
    yield from _lemmas_of_chunks()
    group, heads, head = z3.Ints("group heads head")
    key_head = [group >= 1, heads >= 1, *from_zero(head, group * heads), x * group <= head, head < x * group + group]
    yield "the key head of a value head", key_head, z3.And(*from_zero(x, heads))
    rows, row, elements, element = z3.Ints("rows row elements element")
    short = [*from_zero(row, rows), *from_zero(element, elements), rows * elements < 2**31]
    yield "an element of a short array", short, z3.And(*from_zero(row * elements + element, z3.IntVal(2**31)))
    limit, lane, stride = z3.Ints("limit lane stride")
    lanes = [
        limit >= 1,
        limit <= 2**15,
        *from_zero(x, limit),
        *from_zero(lane, z3.IntVal(2**15)),
        stride >= 1,
        stride <= 2**15,
    ]
    yield "a lane, masked or not", lanes, z3.And(*from_zero((x + lane) * stride + (x + lane), z3.IntVal(2**31)))


CHUNKS_FOLLOW = "the chunks of a sequence have rows before those of a later one, and before the end"


def _lemmas_of_chunks() -> Iterator[tuple[str, list[Fact], Fact]]:
    """Of a sequence whose first token is in the `chunk`-th stretch of `size` tokens of the batch; that of a later one,
    or the end of all, is in the `stretch`-th."""
    size, sequence, later, length, count, x = z3.Ints("size sequence later length count x")
    first, other, chunk, stretch = z3.Ints("first other chunk stretch")
    facts = [size >= 1, length >= 0, count >= 0, first >= 0, *from_zero(first - chunk * size, size)]
    facts += [count * size >= length, (count - 1) * size < length]
    follows = [sequence < later, first + length <= other, *from_zero(other - stretch * size, size)]
    rows = chunk + sequence + count <= stretch + later
    yield CHUNKS_FOLLOW, [*facts, *follows], rows
    start = first + x * size
    within = [*facts, *from_zero(x, count)]
    yield "a chunk begins with a token of its sequence", within, z3.And(first <= start, start < first + length)
    yield from _lemmas_of_aligned_chunks()


ALIGNED_FOLLOW = "chunks counted from before a sequence have rows before those of a later one, and before the end"


def _lemmas_of_aligned_chunks() -> Iterator[tuple[str, list[Fact], Fact]]:
    """The same where `begun` tokens of the first chunk came before the sequence, which has some tokens."""
    size, sequence, later, length, count, x, begun = z3.Ints("size sequence later length count x begun")
    first, other, chunk, stretch = z3.Ints("first other chunk stretch")
    facts = [size >= 1, length >= 1, count >= 0, first >= 0, *from_zero(first - chunk * size, size)]
    facts += [*from_zero(begun, size), count * size >= begun + length, (count - 1) * size < begun + length]
    follows = [sequence < later, first + length <= other, *from_zero(other - stretch * size, size)]
    yield ALIGNED_FOLLOW, [*facts, *follows], chunk + 2 * sequence + count <= stretch + 2 * later
    start = z3.If(x * size > begun, first + x * size - begun, first)
    within = [*facts, *from_zero(x, count)]
    title = "a chunk that is counted from before its sequence begins with a token of it"
    yield title, within, z3.And(first <= start, start < first + length)


LEMMAS = {title: (facts, claim) for title, facts, claim in _lemmas()}
