"""What a call takes on a GPU, predicted: kernels are compiled for it, and their loops counted in the interpreter.

How many turns a kernel makes and what it moves is counted in two short calls on one sequence and key head, and is taken
to go on as it does from one to the other. The launcher is told of a GPU with fewer processors in proportion, so that it
chooses as it would for the whole call.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from flagen.clock.launch import H200, predict
from flagen.clock.pace import Turns, executed, pace
from flagen.clock.sass import Frame, Loop, read
from flagen.clock.warp import FROM_MEMORY, matrix_flops
from flagen.inspection.calls import Workload, arguments, differentiate, require_gradients, settle
from flagen.inspection.devices import DEVICES
from flagen.inspection.model import Shape, Timed
from flagen.inspection.work import METERED, TIMED
from flagen.spec.model import Spec

Direction = Literal["forward", "backward"]
Row = Mapping[str, Any]
Operator = Callable[..., Any]

TOKENS = {"fused_recurrent": (64, 128), "chunk": (128, 256)}
"""Of the two calls that are counted: whole segments, and an even number of whole chunks."""


# ------------------------------------------------------------------------------------------------------------ counting


def counted(spec: Spec, function: Operator, operator: str, shape: Shape) -> Iterator[dict[str, Any]]:
    """What each kernel and torch operator of a call does, of either direction, for both lengths."""
    from flagen.inspection.recorder import pretending

    for tokens in TOKENS[operator]:
        given = arguments(spec, Workload(METERED, tokens, groups=shape.HV // shape.H))
        settle(spec, given)
        with pretending(TIMED, _processors(shape.B * shape.H)):
            with torch.no_grad():
                yield from _done(operator, "forward", tokens, partial(function, **given))
            wanted = require_gradients(given)
            # The forward of a call with gradients may leave more behind; it is not what "forward" stands for.
            o = function(**given)[0]
            if o.requires_grad:
                backward = partial(torch.autograd.grad, o, wanted, torch.ones_like(o), allow_unused=True)
                yield from _done(operator, "backward", tokens, backward)


def _processors(share: int) -> int:
    """How many of a GPU's go to one of so many equal shares of a call."""
    return max(1, round(DEVICES[TIMED].processors / share))


def _done(operator: str, direction: Direction, tokens: int, call: Callable[[], object]) -> Iterator[dict[str, Any]]:
    from flagen.triton_cpu.meter import metered
    from flagen.triton_cpu.turns import counted_turns

    with counted_turns() as turns, metered() as report:
        call()
    work = {**report.kernels, **{f"torch.{name}": traffic for name, traffic in report.operators.items()}}
    for name, traffic in work.items():
        yield {
            "operator": operator,
            "direction": direction,
            "tokens": tokens,
            "kernel": name,
            "launches": traffic.launches,
            "programs": traffic.programs,
            "moved": traffic.moved,
            "flops": traffic.flops,
            "turns": [(*place, count.each) for place, count in turns.get(name, {}).items()],
        }


@dataclass(frozen=True)
class _Counted:
    """What the launches of a kernel do in a call of one sequence and key head: `flops` of one program, and `turns` of
    each loop, each time that a program comes to it."""

    launches: int
    programs: float
    moved: float
    flops: float
    turns: Mapping[Frame, float]


def _extended(rows: Sequence[Row], tokens: int) -> _Counted:
    """The same for a call of so many tokens."""
    short, long = rows
    go = partial(_further, between=(short["tokens"], long["tokens"]), tokens=tokens)
    flops = [row["flops"] / row["programs"] if row["programs"] else 0.0 for row in rows]
    turns = [{(file, line): each for file, line, each in row["turns"]} for row in rows]
    return _Counted(
        long["launches"],
        go(short["programs"], long["programs"]),
        go(short["moved"], long["moved"]),
        go(*flops),
        {place: go(turns[0].get(place, 0.0), turns[1][place]) for place in turns[1]},
    )


def _further(short: float, long: float, between: tuple[int, int], tokens: int) -> float:
    first, second = between
    return long + (long - short) / (second - first) * (tokens - second)


# -------------------------------------------------------------------------------------------------------------- timing


def timed(spec: Spec, function: Operator, operator: str, shape: Shape, counts: Sequence[Row]) -> Iterator[Timed]:
    """The time of every kernel and torch operator of a call."""
    found: dict[tuple[Direction, str], list[Row]] = defaultdict(list)
    for row in counts:
        if row["operator"] == operator:
            found[row["direction"], row["kernel"]].append(row)
    launches = _launches(spec, function, operator, shape)
    for (direction, name), rows in found.items():
        count = _extended(rows, shape.T)
        those = launches[direction, name]
        grids = sum(math.prod(launch.grid) for launch in those)
        share = shape.B * shape.H
        if not those:
            moved = count.moved * share
            seconds = moved / H200.bandwidth + count.launches * H200.gap
            yield Timed(operator, direction, name, 0, moved, seconds, "memory")
        for launch in those:
            part = share * math.prod(launch.grid) / grids
            yield _timed_launch(operator, direction, launch, count, part)


def _launches(spec: Spec, function: Operator, operator: str, shape: Shape) -> Mapping[tuple[Direction, str], list[Any]]:
    """Those of a call of one sequence and all heads, by name."""
    from flagen.inspection.recorder import record

    tokens, groups = TOKENS[operator][1], shape.HV // shape.H
    given = arguments(spec, Workload(METERED, tokens, H=shape.H, groups=groups))
    of_launcher = partial(record, arch=TIMED, processors=_processors(shape.B))
    with torch.no_grad():
        both: dict[Direction, list[Any]] = {"forward": of_launcher(partial(function, **given))}
    backward: list[Callable[[], None]] = []
    of_launcher(lambda: backward.append(differentiate(function, given)))
    both["backward"] = of_launcher(backward[0])
    found: dict[tuple[Direction, str], list[Any]] = defaultdict(list)
    for direction, launches in both.items():
        for launch in launches:
            found[direction, launch.name].append(launch)
    return found


def _timed_launch(operator: str, direction: Direction, launch: Any, count: _Counted, share: float) -> Timed:
    """A launch that does so many times what was counted."""
    from flagen.inspection.recorder import launch_options
    from flagen.triton_cpu.offline import inspect_kernel

    options = launch_options(launch, TIMED)
    divisible = launch.divisible_by_16
    report = inspect_kernel(
        launch.kernel, launch.signature, launch.constexprs, TIMED, divisible_by_16=divisible, **options
    )
    code, turns, warps = read(report.assembly), _turns_of(count.turns), report.num_warps
    found = pace(code, turns, warps=warps, registers=report.registers, shared_memory=report.shared_memory)
    programs, moved = round(count.programs * share), count.moved * share
    predicted = predict(found, programs, moved)
    made = sum(times * matrix_flops(each, warps) for each, times in executed(code, turns))
    return Timed(
        operator,
        direction,
        launch.name,
        programs,
        moved,
        predicted.seconds,
        predicted.bound,
        found.latency,
        found.issue,
        found.tensor,
        found.resident,
        exposed=sum(found.waited.get(unit, 0.0) for unit in FROM_MEMORY),
        products=made / count.flops if count.flops else None,
        spill_bytes=report.spill_bytes,
    )


def _turns_of(counted: Mapping[Frame, float]) -> Turns:
    """Turns of the loops of compiled code: the jump back comes from the line of a `for`. One that the compiler made
    itself has a turn."""

    def turns(loop: Loop) -> float:
        return next((counted[frame] for frame in loop.back.frames if frame in counted), 1.0)

    return turns
