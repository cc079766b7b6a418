"""Rung 0 for levels: chunks, run on columns and put together, are the recurrence. In exact arithmetic.

The recurrence of columns has a chunk form that is proved as that of any other spec. What is left is what
`flagen.algebra.levels` says of chunks: that tokens and states are sums of columns, which pair is at which level, what a
block of chunks hands on, and what becomes of levels that were there when the call began; and that of a call from its
sequence's first token a run over blocks reads all that there is of a level.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gmpy2 import mpq

from flagen.algebra.exact import Dual, Tensor, scalar
from flagen.algebra.levels import LevelForm
from flagen.algebra.recurrence import Setting
from flagen.algebra.staged_proof import ATTEMPTS, Sample, Tensors, equal
from flagen.diagnostics import InternalError

SIZE, TOKENS = 4, 13
"""Tokens of a chunk, and of a call."""
CASES = ((0, 5), (4, 5), (9, 5), (6, 2))
"""Positions at which calls begin, at a chunk's beginning and within one, and levels: the last takes what is older."""

Vector = tuple[mpq, ...]
Matrix = tuple[Vector, ...]


def prove_levels(form: LevelForm, *, seed: int = 0) -> tuple[str, ...]:
    """Prove that chunks, run on columns, are the recurrence, and so are runs over blocks; what was proved, a line each.

    Raises:
        InternalError: they are not, with the tensor that differs.
    """
    for begun, levels in CASES:
        _prove_at_a_point(form, _Call, begun, levels, seed)
    for levels in (5, 2):
        _prove_at_a_point(form, _Runs, 0, levels, seed)
    begins = ", ".join(f"{begun} with {levels} levels" for begun, levels in CASES)
    where = f"random rational points, {TOKENS} tokens in chunks of {SIZE}, begun at"
    state = form.levels.state
    return (
        f"levels of {state} by columns of chunks = recurrence: {where} {begins}",
        f"levels of {state} by runs over blocks = recurrence: {where} 0 from no state with 5 levels, with 2 levels",
    )


def _prove_at_a_point(form: LevelForm, call: type[_Call], begun: int, levels: int, seed: int) -> None:
    """Prove that a call is the recurrence at a random point where nothing is divided by zero."""
    name = form.spec.name
    for attempt in range(ATTEMPTS):
        numbers = random.Random(f"{name} {begun} {levels} {seed + attempt}")
        try:
            difference = call(form, begun, levels, numbers).difference()
        except ZeroDivisionError:  # an unlucky point: a denominator of the spec is 0 there
            continue
        if difference:
            message = f"{name}: {difference} (begun at {begun}, seed {seed + attempt}); nothing was written."
            raise InternalError(f"{message}\n{form.dump()}")
        return
    raise InternalError(f"{name}: no random point without a zero denominator found")


def level_of(token: int, earlier: int, highest: int) -> int:
    """The level of an earlier token for a later one."""
    return min((token ^ earlier).bit_length(), highest)


@dataclass
class _Block:
    """What a block of chunks has written, [K, V], and what it makes of the state before it, [K, K]; its tokens, each
    with what it reads of that state, [K]."""

    written: Matrix
    carried: Matrix
    readers: dict[int, Vector] = field(default_factory=dict)


class _Call(Sample):
    """A random call, run by the recurrence and by its chunks."""

    def __init__(self, form: LevelForm, begun: int, levels: int, numbers: random.Random) -> None:
        super().__init__(form.spec, 1, numbers)
        self.form, self.begun = form, begun
        self.value = form.value
        followed = {entry.name for entry in form.spec.following}
        self.sizes |= {form.levels.dim: levels} if form.levels.dim not in followed else {}
        self.highest = self.sizes[form.levels.dim] - 1
        self.tokens = [{i.name: self.random(i.dims, i.range) for i in form.spec.inputs} for _ in range(TOKENS)]
        self.first = self.random((form.levels.dim, form.key, self.value))
        self.outputs: dict[int, Vector] = {}
        zero = self._zero(self.sizes[form.key], self.sizes[self.value])
        self.last = [zero] * (self.highest + 1)

    def difference(self) -> str | None:
        """What differs, if anything does."""
        levels, position = self.form.levels, self.begun
        whole = Setting(self.form.spec, self.sizes, self.constants, self.oracle)
        states: Tensors = {levels.state: self.first, levels.source: scalar(Dual(mpq(position)))}
        expected = []
        for token in self.tokens:
            output, states = whole.step(whole.token(token, []), states)
            expected.append(output)
        self._run()
        for number, output in enumerate(expected):
            found = self._tensor((self.value,), {(v,): x for v, x in enumerate(self.outputs[position + number])})
            if not equal(found, output):
                return f"the output of token {number} is not the recurrence's"
        last: dict[tuple[int, ...], mpq] = {
            (p, *at): x for p, matrix in enumerate(self.last) for at, x in _elements(matrix)
        }
        if not equal(self._tensor((levels.dim, self.form.key, self.value), last), states[levels.state]):
            return "the state behind the call is not the recurrence's"
        return None

    # ------------------------------------------------------------------------------------------------------- by chunks

    def _run(self) -> None:
        end = self.begun + TOKENS - 1
        blocks = {number: self._chunk(number) for number in range(self.begun // SIZE, end // SIZE + 1)}
        before, inside = self._before(), SIZE.bit_length() - 1
        number, earlier = self.begun // SIZE, self.begun - 1
        if earlier >= 0 and earlier // SIZE < number:  # The chunk before is over, with all that is inside chunks.
            number -= 1
            keys = self.sizes[self.form.key]
            unit = tuple(tuple(mpq(int(x == z)) for z in range(keys)) for x in range(keys))
            blocks[number] = _Block(self._zero(keys, self.sizes[self.value]), unit)
        for level in range(self.highest + 1):
            while level > inside:
                inside += 1
                blocks = self._twice_as_long(blocks, inside)
            self._take(blocks[self._block_of(number, inside)], before[level], level, end)
        while len(blocks) > 1:
            inside += 1
            blocks = self._twice_as_long(blocks, inside)

    def _block_of(self, chunk: int, inside: int) -> int:
        """The block of a chunk, whose tokens see one another at levels up to `inside`."""
        return chunk >> (inside - SIZE.bit_length() + 1)

    def _before(self) -> list[Matrix]:
        """The levels before the call; all of them are the last one, where it begins the sequence."""
        keys, values = self.sizes[self.form.key], self.sizes[self.value]
        of = [
            tuple(tuple(self.first.data[(p, x, v)].value for v in range(values)) for x in range(keys))
            for p in range(self.highest + 1)
        ]
        if self.begun:
            return of
        total = of[0]
        for matrix in of[1:]:
            total = _sum(total, matrix)
        return [self._zero(keys, values)] * self.highest + [total]

    def _take(self, block: _Block, state: Matrix, level: int, end: int) -> None:
        """What is at a level before the call is read in the block that has begun, and then is part of it."""
        for token, reader in block.readers.items():
            at = max(level, level_of(token, self.begun - 1, self.highest))
            self._read(token, at, _times((reader,), state)[0])
        left = _times(block.carried, state)
        if end in block.readers:
            at = max(level, level_of(end, self.begun - 1, self.highest))
            self.last[at] = _sum(self.last[at], left)
        block.written = _sum(block.written, left)

    def _twice_as_long(self, blocks: Mapping[int, _Block], level: int) -> dict[int, _Block]:
        """Two neighbours each as one; tokens of the right one read what the left one has written."""
        at = min(level, self.highest)
        longer: dict[int, _Block] = {}
        for number, block in blocks.items():
            left, right = blocks.get(number & ~1), blocks.get(number | 1)
            if left is None or right is None:
                longer[number >> 1] = block
                continue
            for token, reader in right.readers.items() if number & 1 else ():
                self._read(token, at, _times((reader,), left.written)[0])
            left_over = _times(right.carried, left.written)
            if number & 1 and max(right.readers) == self.begun + TOKENS - 1:
                self.last[at] = _sum(self.last[at], left_over)
            moved = {token: _times((reader,), left.carried)[0] for token, reader in right.readers.items()}
            longer[number >> 1] = _Block(
                _sum(left_over, right.written), _times(right.carried, left.carried), left.readers | moved
            )
        return longer

    def _read(self, token: int, level: int, row: Vector) -> None:
        """A token reads something at a level."""
        amount = self.tokens[token - self.begun][self.form.scales].data[(level,)].value
        known = self.outputs.get(token, (mpq(0),) * len(row))
        self.outputs[token] = tuple(one + amount * other for one, other in zip(known, row, strict=True))

    def _chunk(self, number: int) -> _Block:
        """A chunk, run on columns. Its tokens have read one another then."""
        keys, width = self.sizes[self.form.key], SIZE + self.sizes[self.form.key]
        columns = Setting(self.form.columns, {**self.sizes, self.value: width}, self.constants, self.oracle)
        (declared,) = self.form.columns.states
        start = {(x, SIZE + x): mpq(1) for x in range(keys)}
        every = [(x, c) for x in range(keys) for c in range(width)]
        states: Tensors = {
            declared.name: self._tensor((self.form.key, self.value), {at: start.get(at, mpq(0)) for at in every})
        }
        own = range(max(number * SIZE, self.begun), min(number * SIZE + SIZE, self.begun + TOKENS))
        readers: dict[int, Vector] = {}
        for token in own:
            ones: dict[tuple[int, ...], mpq] = {(c,): mpq(int(c == token % SIZE)) for c in range(width)}
            inputs = {decl.name: self.tokens[token - self.begun][decl.name] for decl in self.form.columns.inputs}
            inputs[self.form.values] = self._tensor((self.value,), ones)
            output, states = columns.step(columns.token(inputs, []), states)
            read = [output.data[(c,)].value for c in range(width)]
            readers[token] = tuple(read[SIZE:])
            for earlier in own:
                values = self._values(earlier)
                amount = read[earlier % SIZE]
                self._read(token, level_of(token, earlier, self.highest), tuple(amount * v for v in values))
        last = states[declared.name]
        rows = [[last.at((self.form.key, self.value), (x, c)).value for c in range(width)] for x in range(keys)]
        written = self._zero(keys, self.sizes[self.value])
        end = self.begun + TOKENS - 1
        for token in own:
            part = tuple(tuple(row[token % SIZE] * v for v in self._values(token)) for row in rows)
            written = _sum(written, part)
            if end in own:
                at = level_of(end, token, self.highest)
                self.last[at] = _sum(self.last[at], part)
        return _Block(written, tuple(tuple(row[SIZE:]) for row in rows), readers)

    def _values(self, token: int) -> Vector:
        values = self.tokens[token - self.begun][self.form.values]
        return tuple(values.data[(v,)].value for v in range(self.sizes[self.value]))

    @staticmethod
    def _tensor(dims: tuple[str, ...], elements: Mapping[tuple[int, ...], mpq]) -> Tensor:
        return Tensor(dims, {index: Dual(value) for index, value in elements.items()})

    @staticmethod
    def _zero(rows: int, columns: int) -> Matrix:
        return ((mpq(0),) * columns,) * rows


class _Runs(_Call):
    """A random call from no state, run by its chunks, and above them by blocks: of each level a run of the whole
    state's recurrence, with the values of left halves alone."""

    def __init__(self, form: LevelForm, begun: int, levels: int, numbers: random.Random) -> None:
        super().__init__(form, begun, levels, numbers)
        self.first = self._zeros((form.levels.dim, form.key, self.value))

    def _run(self) -> None:
        for number in range((TOKENS - 1) // SIZE + 1):
            self._chunk(number)
        for level in range(SIZE.bit_length(), (TOKENS - 1).bit_length() + 1):
            for start in range(0, TOKENS, 1 << level):
                self._block(level, range(start, min(start + (1 << level), TOKENS)))

    def _block(self, level: int, tokens: range) -> None:
        """A run over a block, of what its right half reads and its last token leaves at a level."""
        whole = Setting(self.form.columns, self.sizes, self.constants, self.oracle)
        (declared,) = self.form.columns.states
        states: Tensors = {declared.name: self._zeros((self.form.key, self.value))}
        at, half = min(level, self.highest), tokens.start + (1 << level - 1)
        for token in tokens:
            inputs = {decl.name: self.tokens[token][decl.name] for decl in self.form.columns.inputs}
            if token >= half:
                inputs[self.form.values] = self._zeros((self.value,))
            output, states = whole.step(whole.token(inputs, []), states)
            if token >= half:
                self._read(token, at, tuple(output.data[(v,)].value for v in range(self.sizes[self.value])))
        if half < tokens.stop == TOKENS:
            left, dims = states[declared.name], (self.form.key, self.value)
            places = [[(x, v) for v in range(self.sizes[self.value])] for x in range(self.sizes[self.form.key])]
            matrix = tuple(tuple(left.at(dims, place).value for place in row) for row in places)
            self.last[at] = _sum(self.last[at], matrix)

    def _zeros(self, dims: tuple[str, ...]) -> Tensor:
        points = itertools.product(*(range(self.sizes[dim]) for dim in dims))
        return self._tensor(dims, dict.fromkeys(points, mpq(0)))


def _elements(matrix: Matrix) -> Iterator[tuple[tuple[int, ...], mpq]]:
    for x, row in enumerate(matrix):
        yield from (((x, v), value) for v, value in enumerate(row))


def _sum(one: Matrix, other: Matrix) -> Matrix:
    return tuple(tuple(a + b for a, b in zip(row, also, strict=True)) for row, also in zip(one, other, strict=True))


def _times(one: Sequence[Vector], other: Matrix) -> Matrix:
    columns = tuple(zip(*other, strict=True))
    return tuple(
        tuple(sum((a * b for a, b in zip(row, column, strict=True)), mpq(0)) for column in columns) for row in one
    )
