"""What an operator costs: flops, bytes and state, for a token and a value head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from flagen.algebra.equations import FAMILY, Equation, Solve, Statement, Term, Weights
from flagen.plan.chunk import ITERATIONS, ChunkPlan
from flagen.plan.model import LevelPlan, MiniBatchPlan, StagedPlan
from flagen.plan.scan import ScanPlan
from flagen.plan.unavailable import Unavailable
from flagen.spec.model import (
    Binary,
    Call,
    Contract,
    Dims,
    Expr,
    Index,
    Name,
    Number,
    Outer,
    Pairs,
    Reduce,
    Repeat,
    Rotate,
    RowMap,
    Solution,
    Spec,
    children,
)
from flagen.spec.sizes import fitting

Chunks = ChunkPlan | ScanPlan | StagedPlan | MiniBatchPlan | LevelPlan | Unavailable

LEVELS = 16
"""Of a state that is kept in levels: enough to tell 32 thousand tokens apart."""

HALF, SINGLE = 2, 4
"""Bytes of an element of an input in bf16, and of a state."""


@dataclass(frozen=True)
class Cost:
    """Costs of one token of one value head, every dim of one size.

    recurrent_flops: the update and the output, statement by statement.
    chunk_flops: the chunk form's matrix products and its solve, or all of an elementwise scan's; a token's share of a
        chunk; None without one.
    bytes_moved: inputs read and output written once, in bf16: what no kernel can go below.
    state_bytes: the state, in float32.
    """

    size: int
    steps: int
    recurrent_flops: int
    chunk_flops: int | None
    bytes_moved: int
    state_bytes: int


def cost(spec: Spec, chunk: Chunks | None, size: int, pairs: Mapping[str, Dims] | None = None) -> Cost:
    """The cost of `spec` with every dim of `size` that does not follow from others and is not of levels, at its default
    number of micro-steps; `pairs`: the dims of its stages, or of its chunk form, that are pairs of its own."""
    levels = {} if spec.levels is None else {spec.levels.dim: LEVELS}
    sizes = fitting(spec, {**dict.fromkeys(spec.dims, size), **levels, "H": 1, "HV": 1})
    sizes = {**sizes, **{dim: sizes[one] * sizes[other] for dim, (one, other) in (pairs or {}).items()}}
    steps = (spec.steps.default or 1) if spec.steps else 1
    return Cost(
        size=size,
        steps=steps,
        recurrent_flops=_recurrent_flops(spec, sizes, steps),
        chunk_flops=_flops_of_chunk(spec, chunk, sizes, steps),
        bytes_moved=bytes_moved(spec, sizes, steps),
        state_bytes=state_bytes(spec, sizes),
    )


def bytes_moved(spec: Spec, sizes: Mapping[str, int], steps: int) -> int:
    """Inputs read and output written once, a token."""
    inputs = sum(math.prod(sizes[d] for d in i.dims) * (steps if i.per == "step" else 1) for i in spec.inputs)
    return HALF * (inputs + math.prod(sizes[d] for d in spec.output_dims))


def state_bytes(spec: Spec, sizes: Mapping[str, int]) -> int:
    """All states of a head."""
    return SINGLE * sum(math.prod(sizes[d] for d in state.dims) for state in spec.states)


def _flops_of_chunk(spec: Spec, chunk: Chunks | None, sizes: Mapping[str, int], steps: int) -> int | None:
    match chunk:
        case ChunkPlan():
            return _chunk_flops(chunk, sizes, steps)
        case ScanPlan():
            # The statements as they are, and three flops for each product of two elements of a scan.
            products = sum(math.prod(sizes[dim] for dim in state.dims) for state in spec.states)
            return _recurrent_flops(spec, sizes, steps) + 3 * math.ceil(math.log2(chunk.size)) * products
        case MiniBatchPlan(_, within):
            return _flops_of_chunk(within.spec, within.chunk, sizes, steps)
        case LevelPlan():
            return _flops_of_levels(chunk, sizes, steps)
        case StagedPlan(_, stages):
            return sum(_flops_of_chunk(stage.spec, stage.plan.chunk, sizes, steps) or 0 for stage in stages)
    return None


def _flops_of_levels(levels: LevelPlan, sizes: Mapping[str, int], steps: int) -> int:
    """Of columns, then of the products that put them together: at each level above a chunk's half of all tokens read a
    state, and what they read of earlier ones is moved to the beginning of a longer block."""
    form, columns, size = levels.form, levels.columns, levels.size
    keys, values = sizes[form.key], sizes[form.value]
    above = max(0, sizes[form.levels.dim] - size.bit_length())
    of_columns = _flops_of_chunk(columns.spec, columns.chunk, {**sizes, form.value: size + keys}, steps) or 0
    inside = size + 2 * size * values + 2 * keys * values
    of_blocks = 2 * keys * keys * (keys + values) // size
    return of_columns + inside + above * keys * (keys + values) + of_blocks


def _recurrent_flops(spec: Spec, sizes: Mapping[str, int], steps: int) -> int:
    total = sum(_flops(derived.value, sizes) * (steps if derived.per == "step" else 1) for derived in spec.derived)
    for statement in spec.update:
        if isinstance(statement, Repeat):
            total += steps * sum(_flops(inner.value, sizes) for inner in statement.body)
        else:
            total += _flops(statement.value, sizes)
    return total + sum(_flops(statement.value, sizes) for statement in spec.output)


def _flops(expr: Expr, sizes: Mapping[str, int]) -> int:
    """One flop an addition, a multiplication or a function of one element; a contraction is both."""
    elements = math.prod(sizes[dim] for dim in expr.dims)
    inner = sum(_flops(child, sizes) for child in children(expr))
    match expr:
        case Number() | Name() | Index():
            return 0
        case Contract():
            return inner + 2 * elements * sizes[expr.dim]
        case Binary() | Outer() | Pairs() | Call():
            return inner + elements
        case Reduce(_, value) | RowMap(_, value):
            return inner + math.prod(sizes[dim] for dim in value.dims)
        case Rotate(value, angle):
            # Of each pair with an angle a sine, a cosine, four products and two sums.
            return inner + 8 * math.prod(sizes[dim] for dim in angle.dims)
        case Solution():
            # An elimination, and what it leaves to be put in.
            return inner + 2 * elements**3 // 3 + 2 * elements**2
    return inner


def _chunk_flops(chunk: ChunkPlan, sizes: Mapping[str, int], steps: int) -> int:
    rows = (chunk.rows.fixed + chunk.rows.repeated * steps) * chunk.size
    nf = chunk.normal_form
    extents = {"delta": rows, "write": rows, "token": chunk.size, "key": sizes[nf.key], "value": sizes[nf.value]}
    extents |= {"register": len(nf.registers), "step": rows}
    sides = nf.spec.pairs.get(nf.key, ())
    extents |= {f"{place} of pair": sizes[side] for place, side in zip(("first", "second"), sides, strict=False)}
    steps_of_solution = 1 if chunk.solved is None else ITERATIONS
    statements = (*chunk.before, *chunk.after * steps_of_solution, *(s for s in chunk.scan if s.target.tensor == "S1"))
    return sum(_statement_flops(statement, extents) for statement in statements) // chunk.size


def _term_flops(term: Term, extents: Mapping[str, int]) -> int:
    """Of a product; a score of pairs is a product of two."""
    others = math.prod(extents[FAMILY[letter]] for letter in term.letters - {"a", "b"})
    sides = [extents[FAMILY[letter]] for letter in ("a", "b") if letter in term.letters]
    return 2 * others * (sum(sides) if sides else 1)


def _statement_flops(statement: Statement, extents: Mapping[str, int]) -> int:
    match statement:
        case Equation(_, terms):
            products = [term for term in terms if len(term.factors) > 1]
            return sum(_term_flops(term, extents) for term in products)
        case Weights(target, reader=None, writer=writer):
            # Every row mixes what is kept for each writer, or for each register before the chunk.
            columns = extents[FAMILY[target.index[0] if writer is not None else target.index[1]]]
            return 2 * extents["register"] ** 2 * columns * extents["step"]
        case Weights(target):
            return 2 * extents["register"] * math.prod(extents[FAMILY[letter]] for letter in target.index)
        case Solve(target):
            rows, channels = (extents[FAMILY[x]] for x in target.index)
            return rows * rows * channels
    return 0
