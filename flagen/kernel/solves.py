"""Lowers the kernels that solve a system for every token: a walk that leaves the matrix before each chunk, then steps
of conjugate gradients for all tokens of a chunk at once.

What a step reads is what a chunk form reads: of the matrix before the chunk, decayed, and of the chunk's own rows by
scores. A program has all of a chunk, and x, the residual and the direction of each of its tokens, until it is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

from flagen.kernel.chunk_walk import Walk
from flagen.kernel.forward_rows import ForwardRows
from flagen.kernel.ir import (
    Access,
    Add,
    Array,
    Fill,
    Kernel,
    Let,
    Load,
    Loop,
    Note,
    Operands,
    Program,
    Statement,
    Store,
    access,
)
from flagen.kernel.passes import live, with_arrays
from flagen.kernel.recurrent import array_of
from flagen.kernel.rows import ITERATIONS, PACKING, ZERO, local, rounded, times
from flagen.kernel.state_walk import Form
from flagen.plan.free_names import free_name
from flagen.plan.kernel_names import kernel_name
from flagen.plan.rows import TOKEN, WRITTEN
from flagen.plan.schedule import OUTPUT, declared_names
from flagen.plan.solves import SolutionRows
from flagen.plan.tiles import Along, Arithmetic, Compare, Constant, Function, Select, Sum, Tile
from flagen.spec.model import Dims, Input

NOTHING = 2.0**-92
"""What the square of a residual has to exceed, beside that of a right side of about 1: the fourth power of float32's
precision."""


def solution_chunk(plan: SolutionRows, name: str) -> Program:
    """The kernels of `chunk_<name>`."""
    walk = Walk(plan.walk, Form.STATES).kernel()
    kernels = (walk, Solve(plan).kernel())
    return Program(
        f"chunk_{name}",
        tuple(with_arrays(kernel, lambda array: _of_system(plan, array)) for kernel in kernels),
        (tuple(kernel.name for kernel in kernels),),
    )


def _of_system(plan: SolutionRows, array: Array) -> Array:
    """An array of the read as one of the system: an input of its own for the keys is the system's."""
    source = plan.read.sources.get(array.of)
    return array if source is None or array.life != "argument" else replace(array, of=source.name)


class Solve(ForwardRows):
    """The kernel that solves."""

    def __init__(self, plan: SolutionRows) -> None:
        super().__init__(plan.solve, plan.solve.walk)
        self.read, self.key, self.value = plan.read, plan.solve.key, plan.solve.value
        self.vectors: Dims = (TOKEN, self.value)

    def kernel(self) -> Kernel:
        own = (self.right.array.name, self._shift.array.name)
        left = ("states", OUTPUT)
        order = (*own, *(array.name for array in PACKING), *left)
        body = live((Operands(self._states.array), *self._body()), ())
        kernel = self.assembled("solve", "chunk", body, (self.key, self.value), order)
        return replace(kernel, numbers=(*kernel.numbers, ITERATIONS))

    # ---------------------------------------------------------------------------------------------------------- arrays

    @property
    def _states(self) -> Access:
        """The matrix before a chunk, as the walk leaves it."""
        return self.of_chunk("states", (self.value, self.key))

    @cached_property
    def _taken(self) -> set[str]:
        return {kernel_name(name) for name in declared_names(self.plan.spec)}

    @property
    def right(self) -> Access:
        """The right side of each token, which the gradient of a solution may be as well: one for each value head."""
        of = self.read.right
        array = Array(
            free_name("right_side", self._taken), ("token", "head"), of.dims, "argument", of.name, own_dtype=True
        )
        return self.rows_of(array, TOKEN)

    @property
    def _shift(self) -> Access:
        """What is added to the diagonal, for each token or head."""
        array = replace(array_of(self.read.shift), name=free_name("shift", self._taken))
        return self.rows_of(array, TOKEN) if isinstance(self.read.shift, Input) else access(array)

    # ------------------------------------------------------------------------------------------------------ statements

    def _body(self) -> Iterator[Statement]:
        yield from (*self.once(*self.parts), *self.loads(self.plan.walk), *self.operands("k", "v"), Note())
        if self.plan.row_decay is not None:
            yield from (*self.decays(), *self.factors(), Let("decay", self.between("q")))
        yield from (self._weights(), Load("S_operand", self._states, wide=False))
        yield from (Load("right_side", self.right, wide=True), Load("shift", self._shift, wide=True), Note())
        yield from self._start()
        yield Loop("iteration", tuple(self._step()))
        yield Note()
        target = Array(OUTPUT, ("token", "head"), self.read.output, "result", OUTPUT, own_dtype=True)
        value = times(self._of_tokens("solution"), local("right_size", (TOKEN,)))
        put = Along(self._of_tokens(OUTPUT), (TOKEN, *self.read.output))
        yield from (Let(OUTPUT, value), Store(self.rows_of(target, TOKEN), put))

    def _of_tokens(self, name: str) -> Tile:
        return local(name, self.vectors)

    def _weights(self) -> Statement:
        """What multiplies the product of a token's direction with each of the keys that it sees."""
        dims, scale = (TOKEN, WRITTEN), self.scale("v")
        factors = [
            *([] if scale is None else [self.written(scale)]),
            *([] if self.plan.row_decay is None else [local("decay", dims)]),
        ]
        weight = times(*factors) if factors else Constant(1.0)
        return Let("weights", Select(self.seen("q"), weight, ZERO, dims))

    def _start(self) -> Iterator[Statement]:
        """From 0, with right sides scaled to about 1."""
        size = local("right_size", (TOKEN,))
        right = self._of_tokens("right_side")
        yield Let("right_size", Sum(Function("abs", (right,), right.dims), self.value, (TOKEN,)))
        scaled = Arithmetic("/", right, size, self.vectors)
        yield Let("residual", Select(Compare(">", size, ZERO, (TOKEN,)), scaled, ZERO, self.vectors))
        yield Fill("solution", self.vectors)
        yield Let("search", self._of_tokens("residual"))
        yield self._square()

    def _square(self) -> Statement:
        """The square of each token's residual."""
        residual = self._of_tokens("residual")
        return Let("residual_square", Sum(times(residual, residual), self.value, (TOKEN,)))

    def _step(self) -> Iterator[Statement]:
        """A step of conjugate gradients; where there is no residual, nothing."""
        square, before = local("residual_square", (TOKEN,)), local("residual_square_before", (TOKEN,))
        search, product = self._of_tokens("search"), self._of_tokens("search_product")
        yield from self._product()
        curvature = Sum(times(search, product), self.value, (TOKEN,))
        yield Let("search_step", self._where_left(Arithmetic("/", square, curvature, (TOKEN,)), ZERO))
        step = local("search_step", (TOKEN,))
        yield Add("solution", times(search, step), self.vectors)
        yield Add("residual", times(product, step), self.vectors, subtracts=True)
        yield from (Let("residual_square_before", square), self._square())
        turned = times(search, Arithmetic("/", square, before, (TOKEN,)))
        next_search = Arithmetic("+", self._of_tokens("residual"), turned, self.vectors)
        yield Let("search", self._where_left(next_search, search))

    def _where_left(self, value: Tile, other: Tile) -> Tile:
        """A tile where there is a residual, and another where there is none."""
        left = Compare(">", local("residual_square", (TOKEN,)), Constant(NOTHING), (TOKEN,))
        return Select(left, value, other, value.dims)

    def _product(self) -> Iterator[Statement]:
        """What the system's matrix makes of the direction of each token."""
        search, keys = self._of_tokens("search"), (TOKEN, self.key)
        scores = self.dot(rounded(Along(search, keys)), self.written(self.operand("k")), self.key)
        yield Let("scores", times(scores, local("weights", (TOKEN, WRITTEN))))
        started = search if self.plan.row_decay is None else times(search, local("from_start", (TOKEN,)))
        matrix = local("S_operand", (self.value, self.key))
        yield Let("search_product", self.dot(rounded(Along(started, keys)), matrix, self.key))
        written = self.written(self.operand("v"))
        onto = self._of_tokens("search_product")
        yield Let("search_product", self.dot(rounded(local("scores", (TOKEN, WRITTEN))), written, WRITTEN, onto))
        shift = local("shift", self._sorted_shift)
        yield Add("search_product", times(search, shift), self.vectors)

    @property
    def _sorted_shift(self) -> Dims:
        return self.sorted(self._shift.dims)
