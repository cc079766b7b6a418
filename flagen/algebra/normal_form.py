"""The normal form: what every affine matrix-state recurrence of the language comes down to.

    u_t = z_t + S_{t-1}^T y_t                                delta rows
    S_t = Diag(e^{g_t}) S_{t-1} + w_t u_t^T + k_t v_t^T      and write rows
    left read  S^T q          right read  S q                after the update, before it, or between micro-steps

A state is *oriented* first: decay and erase act on its key dim. A token is a sequence of micro-steps; `repeat` blocks
run theirs once for each of the n steps. `flagen.algebra.orient` finds this form; here it is only described.

Several matrix states that numbers mix are *registers*, X[p] for each of them (`flagen.algebra.registers` finds them):

    u_t = z_t + (sum_p c_t[p] X_{t-1}[p])^T y_t
    X_t[p] = Diag(e^{g_t}) sum_r A_t[p, r] X_{t-1}[r] + a_t[p] w_t u_t^T          reads: (sum_p b_t[p] X[p])^T q

One state is one register with A = a = b = c = 1, and nothing is said of these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from flagen.spec.model import Binary, Expr, Negate, Pairs, Spec, State
from flagen.spec.printer import to_source


@dataclass(frozen=True)
class Decay:
    """What multiplies the state before a micro-step writes.

    `factor` is e^g as the spec has it, `log` is g. `per_key` tells whether g is a vector over the key dim (else a
    scalar).
    """

    factor: Expr
    log: Expr
    per_key: bool


Numbers = tuple[Expr, ...]
"""A number for each register; empty where there is one state, which has the number 1."""


@dataclass(frozen=True)
class DeltaRow:
    """u = z + S^T y, then S += w u^T. `after_decay`: y reads the state after this micro-step's decay. Of registers,
    y reads them times `of`, and they get what is written times `into`."""

    w: Expr
    y: Expr
    z: Expr | None
    after_decay: bool
    of: Numbers = ()
    into: Numbers = ()


@dataclass(frozen=True)
class WriteRow:
    """S += k v^T; `k` is None where the write is the same for every key channel, `v` likewise for values. Registers get
    it times `into`."""

    k: Expr
    v: Expr
    into: Numbers = ()


@dataclass(frozen=True)
class MicroStep:
    """What a micro-step does. `mix`: what each register gets of each, row by row, beside the decay."""

    decay: Decay | None
    deltas: tuple[DeltaRow, ...]
    writes: tuple[WriteRow, ...]
    mix: tuple[Numbers, ...] = ()


@dataclass(frozen=True)
class Block:
    """Micro-steps run in order, once for a token, or (`repeated`) once for each of its n steps.

    `lead` decays the state once, before the first micro-step; only a repeated block has one (elsewhere it is the first
    micro-step's own decay).
    """

    steps: tuple[MicroStep, ...]
    repeated: bool
    lead: Decay | None = None


@dataclass(frozen=True, order=True)
class Position:
    """A point in a token's update: before micro-step `step` of block `block`, or (`after_decay`) between that
    micro-step's decay and its writes. (number of blocks, 0) is the end of the token."""

    block: int
    step: int
    after_decay: bool = False


@dataclass(frozen=True)
class Read:
    """`name` stands for S^T q (left, over the value dim) or S q (right, over the key dim) in the output expression; of
    registers, S is the sum of them times `of`."""

    name: str
    q: Expr
    side: Literal["left", "right"]
    position: Position
    of: Numbers = ()


@dataclass(frozen=True)
class Column:
    """A vector state that rides on the matrix: it decays as that does, is written along the vector of the same keys by
    the number `scale` (1 where that is None), and `read` is what the output calls the number that the same q reads."""

    state: State
    scale: Expr | None
    read: str


@dataclass(frozen=True)
class NormalForm:
    """A spec's recurrence, sorted. `key` and `value` are the oriented state's dims; `transposed`: the declared state is
    [value, key]. `output` is what becomes `o`, in terms of the reads' names and the token's inputs. A spec of several
    states has a `column`, or they are `registers`."""

    spec: Spec
    key: str
    value: str
    transposed: bool
    blocks: tuple[Block, ...]
    reads: tuple[Read, ...]
    output: Expr
    column: Column | None = None
    registers: tuple[State, ...] = ()

    @property
    def state(self) -> State:
        """The matrix state, or the first of the registers."""
        return next(state for state in self.spec.states if len(state.dims) == 2)

    @property
    def steps(self) -> tuple[MicroStep, ...]:
        return tuple(step for block in self.blocks for step in block.steps)

    @property
    def has_delta(self) -> bool:
        return any(step.deltas for step in self.steps)

    @property
    def has_write(self) -> bool:
        return any(step.writes for step in self.steps)

    @property
    def has_erased_write(self) -> bool:
        """Whether delta rows bring a z of their own (or are all there is, so that something does)."""
        return any(row.z is not None for step in self.steps for row in step.deltas) or not self.has_write

    @property
    def factored(self) -> tuple[str, ...]:
        """The rows along keys that are pairs, where each of them is made of two vectors: scores of such are products of
        scores. None where channels decay one by one, for then a score is a sum over all of them."""
        if self.key not in self.spec.pairs or self.decay_kind == "key" or self.registers:
            return ()
        deltas = [row for step in self.steps for row in step.deltas]
        rows = {"w": [row.w for row in deltas], "y": [row.y for row in deltas]}
        rows["k"] = [row.k for step in self.steps for row in step.writes]
        rows |= {f"q{number}": [read.q] for number, read in enumerate(self.reads) if read.side == "left"}
        found = [name for name, each in rows.items() if each and all(factors_of(expr) is not None for expr in each)]
        read, written = ([name for name in found if (name in "wk") == writes] for writes in (False, True))
        return tuple(found) if read and written else ()

    @property
    def decays(self) -> tuple[Decay, ...]:
        leads = [block.lead for block in self.blocks if block.lead]
        return (*leads, *(step.decay for step in self.steps if step.decay))

    @property
    def log_decays(self) -> tuple[Expr, ...]:
        return tuple(decay.log for decay in self.decays)

    @property
    def decay_kind(self) -> Literal["none", "scalar", "key"]:
        if not self.decays:
            return "none"
        return "key" if any(decay.per_key for decay in self.decays) else "scalar"

    @property
    def slots(self) -> int:
        """Rows that one micro-step may bring at once: the most delta rows, or write rows, of any."""
        return max([1, *(len(s.deltas) for s in self.steps), *(len(s.writes) for s in self.steps)])

    @property
    def end(self) -> Position:
        return Position(len(self.blocks), 0)

    def dump(self) -> str:
        """The normal form as text, a line a row."""
        side = f"S is [{self.key}, {self.value}]" + (", the declared state transposed" if self.transposed else "")
        lines = [f"normal form of {self.spec.name}: {side}; decay: {self.decay_kind}"]
        if self.registers:
            lines.append(f"registers X: {', '.join(state.name for state in self.registers)}")
        for number, block in enumerate(self.blocks):
            times = f"repeated {self.spec.steps.symbol} times" if block.repeated and self.spec.steps else "once"
            lines.append(f"block {number} ({times})")
            if block.lead:
                lines.append(f"  before its first micro-step: S = Diag(exp(g)) S     g = {to_source(block.lead.log)}")
            for step in block.steps:
                lines += [f"  {line}" for line in _dump_step(step)]
        for read in self.reads:
            form = "S.T @ q" if read.side == "left" else "S @ q"
            of = f", S = {_numbers(read.of)} X" if read.of else ""
            lines.append(f"{read.name} = {form}, {self.describe(read.position)}     q = {to_source(read.q)}{of}")
        if self.column is not None:
            scale = "1" if self.column.scale is None else to_source(self.column.scale)
            lines.append(f"{self.column.state.name} is a column of S, of the value {scale}; read as {self.column.read}")
        lines.append(f"o = {to_source(self.output)}")
        return "\n".join(lines)

    def describe(self, position: Position) -> str:
        """`position` in words."""
        if position == self.end:
            return "after the update"
        if position == Position(0, 0):
            return "before the update"
        moment = "after the decay of" if position.after_decay else "before"
        return f"{moment} micro-step {position.step} of block {position.block}"


def factors_of(expr: Expr) -> tuple[Expr, Expr] | None:
    """The two sides of a row of pairs, numbers that scale it with the first of them; None of any other row."""
    match expr:
        case Pairs(left, right):
            return left, right
        case Binary("*", number, row) if not number.dims:
            return _with_first(factors_of(row), lambda left: Binary("*", number, left, expr.span))
        case Binary("*" | "/" as op, row, number) if not number.dims:
            return _with_first(factors_of(row), lambda left: Binary(op, left, number, expr.span))
        case Negate(value):
            return _with_first(factors_of(value), lambda left: Negate(left, expr.span))
    return None


def _with_first(factors: tuple[Expr, Expr] | None, change: Callable[[Expr], Expr]) -> tuple[Expr, Expr] | None:
    return None if factors is None else (change(factors[0]), factors[1])


def _dump_step(step: MicroStep) -> list[str]:
    lines = []
    if step.decay:
        lines.append(f"S = Diag(exp(g)) S     g = {to_source(step.decay.log)}")
    if step.mix:
        lines.append(f"X = A X     A = [{', '.join(_numbers(row) for row in step.mix)}]")
    for row in step.deltas:
        when = "after the decay" if row.after_decay else "before the decay"
        z = "0" if row.z is None else to_source(row.z)
        numbers = f", S = {_numbers(row.of)} X, into X by {_numbers(row.into)}" if row.of else ""
        lines.append(
            f"S += w (z + S.T y).T, y reading {when}     "
            f"w = {to_source(row.w)}, y = {to_source(row.y)}, z = {z}{numbers}"
        )
    for write in step.writes:
        numbers = f", into X by {_numbers(write.into)}" if write.into else ""
        lines.append(f"S += k v.T     k = {to_source(write.k)}, v = {to_source(write.v)}{numbers}")
    return lines


def _numbers(numbers: Numbers) -> str:
    return f"[{', '.join(to_source(number) for number in numbers)}]"
