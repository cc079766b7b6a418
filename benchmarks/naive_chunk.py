"""The derived chunk form against the recurrence, both in plain PyTorch on the CPU.

    python -m benchmarks.naive_chunk                        gated_delta_rule, B 1, H 4, T 2048, K = V = 64, float32
    python -m benchmarks.naive_chunk kda --turns 9          another variant, more turns
    python -m benchmarks.naive_chunk --save                 keep the figures in benchmarks/results/

The two forms take turns of a few calls each, so that whatever else the machine does slows both, and the first call of a
turn, which finds the allocator as the other form left it, is not counted. A figure is the median of all that are.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from tests.numeric.problems import Problem, Shape, cotangent, form, make, rms_ratio, with_form

RESULTS = Path(__file__).parent / "results"
CALLS_A_TURN = 3


@dataclass(frozen=True)
class Timing:
    """Median seconds of one pass through both forms."""

    what: str
    recurrent: float
    chunk: float

    @property
    def ratio(self) -> float:
        return self.recurrent / self.chunk


def forward(function: Callable, problem: Problem) -> None:
    with torch.no_grad():
        problem.call(function)


def forward_and_backward(function: Callable, problem: Problem) -> None:
    problem = problem.map(lambda _, x: x.detach().requires_grad_())
    o, _ = problem.call(function)
    o.backward(cotangent("o", o).to(o.dtype))


def measure(what: str, step: Callable[[Callable, Problem], None], problem: Problem, turns: int) -> Timing:
    forms = [form("naive_recurrent", problem.name), form("naive_chunk", problem.name)]
    seconds: list[list[float]] = [[], []]
    for _ in range(turns):
        for function, times in zip(forms, seconds, strict=True):
            step(function, problem)
            times += [elapsed(step, function, problem) for _ in range(CALLS_A_TURN)]
    return Timing(what, *(median(times) for times in seconds))


def elapsed(step: Callable[[Callable, Problem], None], function: Callable, problem: Problem) -> float:
    start = time.perf_counter()
    step(function, problem)
    return time.perf_counter() - start


def agreement(problem: Problem) -> float:
    """How far apart the outputs of the two forms are: a figure for wrong numbers is worth nothing."""
    with torch.no_grad():
        (expected, _), (got, _) = (
            problem.call(form(kind, problem.name)) for kind in ("naive_recurrent", "naive_chunk")
        )
    return rms_ratio(expected, got)


def machine() -> dict[str, str | int]:
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def table(title: str, timings: list[Timing]) -> Table:
    grid = Table(title=title, title_justify="left")
    grid.add_column("pass")
    for column in ("naive_recurrent", "naive_chunk", "ratio"):
        grid.add_column(column, justify="right")
    for timing in timings:
        grid.add_row(
            timing.what, f"{1e3 * timing.recurrent:.1f} ms", f"{1e3 * timing.chunk:.1f} ms", f"{timing.ratio:.1f}x"
        )
    return grid


def main(
    variant: Annotated[str, typer.Argument(help="which variant to run")] = "gated_delta_rule",
    tokens: Annotated[int, typer.Option(help="sequence length")] = 2048,
    turns: Annotated[int, typer.Option(help="turns of each form", min=1)] = 5,
    threads: Annotated[int, typer.Option(help="threads of each operator; 0: PyTorch's own choice", min=0)] = 0,
    json_path: Annotated[Path | None, typer.Option("--json", help="write the figures there as JSON")] = None,
    save: Annotated[bool, typer.Option(help="write them to benchmarks/results/")] = False,
) -> None:
    """Time naive_chunk against naive_recurrent."""
    if variant not in (names := with_form("naive_chunk")):
        raise typer.BadParameter(f"{variant!r} is none of {', '.join(names)}")
    torch.set_num_threads(threads or torch.get_num_threads())
    shape = Shape(T=tokens, H=4, K=64, V=64)
    problem = make(variant, shape, state=False).to(torch.float32)
    timings = [
        measure("forward", forward, problem, turns),
        measure("forward and backward", forward_and_backward, problem, turns),
    ]
    host, difference = machine(), agreement(problem)

    console = Console()
    console.print(table(f"{variant}: B {shape.B}, H {shape.H}, T {tokens}, K = V = 64, float32", timings))
    console.print(
        f"RMS difference of the outputs {difference:.1e}; median of {turns} turns of {CALLS_A_TURN} calls", style="dim"
    )
    console.print(", ".join(f"{key} {value}" for key, value in host.items()), style="dim")

    figures = {
        "benchmark": "naive_chunk",
        "variant": variant,
        "shape": {"B": shape.B, "H": shape.H, "T": tokens, "K": shape.K, "V": shape.V, "dtype": "float32"},
        "turns": turns,
        "calls_a_turn": CALLS_A_TURN,
        "machine": host,
        "output_rms_difference": difference,
        "timings": [{**asdict(timing), "ratio": timing.ratio} for timing in timings],
    }
    targets = [json_path] if json_path else []
    targets += [RESULTS / f"naive_chunk_{variant}.json"] if save else []
    for path in targets:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
