"""What is found out about kernels, as frozen data that goes from process to process, and into tables, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self


class Size(NamedTuple):
    """The first and the second dim of a state. Further dims take turns, but for the second of a state
    that the output does not have, slots for one: it is no larger than 64."""

    first: int
    second: int

    def __str__(self) -> str:
        return f"{self.first}x{self.second}"


@dataclass(frozen=True)
class Launched:
    """A kernel as one launch asks for it, on one architecture."""

    variant: str
    operator: str
    kernel: str
    size: str
    config: str
    """The constants of the launch that are no sizes, and its options: `BLOCK_K=128 BLOCK_V=8 num_warps=1`. It ends with
    `save_states=True` where only a call that is told so launches it."""
    arch: str
    key: str
    """A hash of all that is compiled: equal keys compile to the same code under the same Triton."""


@dataclass(frozen=True)
class Compiled(Launched):
    """What a launch's kernel compiles to. `flagen.triton_cpu.offline.CompiledReport` tells what the fields mean."""

    registers: int
    spill_bytes: int
    shared_memory: int
    matrix_instructions: Mapping[str, int]
    wgmma_serialized: str | None


@dataclass(frozen=True)
class Figures:
    """What the launches of one kernel did, or the calls of one torch operator, in one call of a generated operator."""

    launches: int
    programs: int
    read: int
    written: int
    requested: int
    flops: int

    @property
    def moved(self) -> int:
        return self.read + self.written


@dataclass(frozen=True)
class Metered:
    """One call of a generated operator on `tokens` tokens of `heads` heads, in bytes and flops of the whole call.

    `kernels` and `operators` (of torch, between kernels) go without a final state. With one, the call moves
    `final_state_bytes` more. The minima are what no operator can go below: inputs read and output written once, and
    the state written once.
    """

    variant: str
    operator: str
    tokens: int
    heads: int
    kernels: Mapping[str, Figures]
    operators: Mapping[str, Figures]
    minimum: int
    final_state_bytes: int
    final_state_minimum: int

    @property
    def moved(self) -> int:
        """Bytes read and written by kernels and torch operators."""
        return sum(figures.moved for figures in (*self.kernels.values(), *self.operators.values()))

    @property
    def per(self) -> int:
        """What to divide by, for figures per token and head."""
        return self.tokens * self.heads

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        return cls(**{**row, **_figures(row)})


@dataclass(frozen=True)
class Direction:
    """What kernels and operators of torch did in one direction, forward or backward."""

    kernels: Mapping[str, Figures]
    operators: Mapping[str, Figures]

    @property
    def moved(self) -> int:
        return sum(figures.moved for figures in (*self.kernels.values(), *self.operators.values()))

    @property
    def launches(self) -> int:
        """Of kernels; operators of torch are not among them."""
        return sum(figures.launches for figures in self.kernels.values())


@dataclass(frozen=True)
class MeteredGradients:
    """One call of a generated operator that wants the gradients of all inputs, and its backward, in bytes of both.

    No state goes in or out. `kept` is what autograd holds on to between the two, inputs among it. The minimum is what
    no operator can go below: forward, inputs read and the output written; backward, inputs and the gradient of the
    output read, and the gradients of the inputs written.
    """

    variant: str
    operator: str
    save_states: bool
    tokens: int
    heads: int
    forward: Direction
    backward: Direction
    kept: int
    minimum: int

    @property
    def moved(self) -> int:
        return self.forward.moved + self.backward.moved

    @property
    def per(self) -> int:
        """What to divide by, for figures per token and head."""
        return self.tokens * self.heads

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        return cls(**{**row, **{key: Direction(**_figures(row[key])) for key in ("forward", "backward")}})


class Shape(NamedTuple):
    """A call to predict the time of: sequences, their tokens, heads, and value heads."""

    B: int
    T: int
    H: int
    HV: int


@dataclass(frozen=True)
class Timed:
    """What a call of an operator spends on a launch of a kernel, or on an operator of torch, forward or backward:
    predicted, from the code that the kernel compiles to.

    Cycles are those of an SM, for one program: `flagen.clock.pace` says of what. Nothing is known of torch's operators
    but what they move.
    """

    operator: str
    direction: Literal["forward", "backward"]
    kernel: str
    programs: int
    moved: float
    seconds: float
    bound: str
    latency: float | None = None
    issue: float | None = None
    tensor: float | None = None
    resident: int | None = None
    exposed: float | None = None
    """Of `latency`, the cycles in which warps wait for what is loaded from memory."""
    products: float | None = None
    """Products of matrices that the code makes, in parts of those that the kernel asks for: 2 where it makes each
    twice, or in two parts of its digits."""
    spill_bytes: int | None = None


def _figures(row: Mapping[str, Any]) -> dict[str, dict[str, Figures]]:
    return {key: {name: Figures(**figures) for name, figures in row[key].items()} for key in ("kernels", "operators")}
