"""From what a program costs to the time of a launch.

An SM has some programs at a time, and works them off in rounds. A round takes as long as the chain of one program, or
as all of them issue, or keep the matrix units, whichever is longest; a launch no less than its bytes need.

Two constants are fitted, on public timings of flash-linear-attention 0.5.1 on an H200 (gated delta rule, K = V = 128,
bf16, CUDA graphs): the bandwidth, and by how much short programs take longer than they would alone. With them the model
says 0.87 to 0.94 of what nine forward calls took, 0.72 to 0.78 of seven backward ones, and 0.53 and 0.62 of two more,
of eight sequences on four and eight heads: it knows nothing of what surrounds a launch but a gap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from flagen.clock.pace import Pace

Bound = Literal["memory", "latency", "issue", "tensor"]
"""What the time of a launch comes from."""


@dataclass(frozen=True)
class Processor:
    """A GPU: its cycles and the bytes of its memory in a second, its SMs, the seconds between two launches, and by how
    much the latency of a short program is longer where others run beside it: `crowding`."""

    clock: float
    bandwidth: float
    count: int
    gap: float
    crowding: float


H200 = Processor(clock=1.755e9, bandwidth=3.0e12, count=132, gap=2e-6, crowding=1.25)


@dataclass(frozen=True)
class Predicted:
    """The seconds of a launch, and what they come from."""

    seconds: float
    bound: Bound


def predict(pace: Pace, programs: float, moved: float, on: Processor = H200) -> Predicted:
    """The time of a launch of so many programs that moves so many bytes."""
    cycles, bound = _rounds(pace, programs, on)
    computing, moving = cycles / on.clock, moved / on.bandwidth
    return Predicted(max(computing, moving) + on.gap, "memory" if moving > computing else bound)


def _rounds(pace: Pace, programs: float, on: Processor) -> tuple[float, Bound]:
    """The cycles of an SM that has the most programs, and what they come from."""
    mine = math.ceil(programs / on.count)
    if not pace.walks and programs > on.count * pace.resident:
        # Short programs follow one another, each as soon as there is room.
        cycles, bound = _round(pace, pace.resident, pace.latency * on.crowding)
        return programs / on.count / pace.resident * cycles, bound
    full, rest = divmod(mine, pace.resident)
    cycles, bound = _round(pace, min(mine, pace.resident), pace.latency)
    last, _ = _round(pace, rest, pace.latency if rest else 0.0)
    return max(full, 1) * cycles + (last if full else 0.0), bound


def _round(pace: Pace, programs: int, latency: float) -> tuple[float, Bound]:
    """The cycles of a round of so many programs."""
    cycles: dict[Bound, float] = {
        "latency": latency,
        "issue": programs * pace.issue,
        "tensor": programs * pace.tensor,
    }
    bound = max(cycles, key=cycles.__getitem__)
    return cycles[bound], bound
