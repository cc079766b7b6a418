"""How rounding grows with a sequence: the PyTorch forms in float32 against float64, outputs and every gradient.

    python -m benchmarks.long_sequences                          gated_delta_rule and kda, up to 8192 tokens, on the CPU
    python -m benchmarks.long_sequences gla --tokens 1024        another variant, other lengths
    python -m benchmarks.long_sequences --save                   keep the figures in benchmarks/results/

Both get the same float32 numbers. A figure is the root mean square of a difference, relative to that of what is right:
the chunk form in float64, which the tests hold to 1e-9 of the recurrence. Errors of the recurrence in float32 stand
beside those of the chunk form: they are what the definition itself loses. Decays that forget within some ten tokens
forget errors, too; so every length is run a second time with log decays a hundredth of those, and what a state then
forgets, erasures make it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import Tensor

from flagen.spec.model import Name, walk
from tests.numeric.problems import Problem, Shape, evaluate, form, make, rms_ratio, spec_of, with_form

RESULTS = Path(__file__).parent / "results"
FORMS = ("naive_chunk", "naive_recurrent")
VARIANTS = ("gated_delta_rule", "kda")
TOKENS = (512, 1024, 2048, 4096, 8192)
MEMORIES = {"ten tokens": 1.0, "a thousand": 0.01}
"""In about how many tokens decays forget, and what log decays are multiplied by for it."""

PAGE = """\
# What long sequences cost in float32

Errors of the PyTorch forms in float32 against float64, RMS of the difference relative to RMS of the reference:
`naive_chunk` / `naive_recurrent`. B 1, H 1, K = V = {dim}, torch {torch}, CPU; a random cotangent for every output.
Written by `python -m benchmarks.long_sequences --save`.
"""


@dataclass(frozen=True)
class Row:
    """The errors of one form: of o, the final state, and the gradient of each argument (`d q`)."""

    variant: str
    memory: str
    tokens: int
    form: str
    errors: dict[str, float]


def measure(variant: str, memory: str, shape: Shape) -> Iterator[Row]:
    problem = remembering(make(variant, shape), MEMORIES[memory]).to(torch.float32)
    right = evaluate(form("naive_chunk", variant), problem.to(torch.float64))
    for kind in FORMS:
        got = evaluate(form(kind, variant), problem)
        yield Row(variant, memory, shape.T, kind, {what: rms_ratio(x, got[what]) for what, x in right.items()})


def remembering(problem: Problem, factor: float) -> Problem:
    """The problem with its decays slowed down."""
    decays = [decl.value for decl in spec_of(problem.name).derived if decl.section == "decay"]
    names = {node.name for value in decays for node in walk(value) if isinstance(node, Name) and node.kind == "input"}
    slow: dict[str, Tensor] = {name: factor * problem.tensors[name] for name in sorted(names)}
    return problem.with_tensors(**slow)


def page(rows: Iterable[Row], dim: int) -> str:
    """A table for each variant: a line for each length and memory, a column for each result."""
    tables: dict[str, dict[tuple[str, int], dict[str, Row]]] = {}
    for row in rows:
        tables.setdefault(row.variant, {}).setdefault((row.memory, row.tokens), {})[row.form] = row
    lines = [PAGE.format(dim=dim, torch=torch.__version__)]
    for variant, table in tables.items():
        columns = next(iter(next(iter(table.values())).values())).errors
        lines += [f"## {variant}\n", line(("decays forget in", "tokens", *columns)), line(["---"] * (2 + len(columns)))]
        for (memory, tokens), row in table.items():
            cells = [" / ".join(f"{row[kind].errors[what]:.1e}" for kind in FORMS) for what in columns]
            lines.append(line((memory, str(tokens), *cells)))
        lines.append("")
    return "\n".join(lines)


def line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(
    variants: Annotated[list[str] | None, typer.Argument(help="which variants to run")] = None,
    tokens: Annotated[list[int] | None, typer.Option(min=1, help="a sequence length; may be given again")] = None,
    dim: Annotated[int, typer.Option(min=1, help="K and V")] = 64,
    save: Annotated[bool, typer.Option(help="write the figures to benchmarks/results/")] = False,
) -> None:
    """Measure how errors grow with the length of a sequence."""
    names, known = variants or list(VARIANTS), with_form("naive_chunk")
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}")
    rows = [
        row
        for name in names
        for memory in MEMORIES
        for length in tokens or TOKENS
        for row in measure(name, memory, Shape(T=length, K=dim, V=dim))
    ]
    text = page(rows, dim)
    Console(soft_wrap=True).print(text, markup=False, highlight=False)
    if save:
        lines = ",\n".join(json.dumps(asdict(row)) for row in rows)
        (RESULTS / "long_sequences.json").write_text(
            f'{{"torch": "{torch.__version__}", "dim": {dim}, "rows": [\n{lines}\n]}}\n'
        )
        (RESULTS / "long_sequences.md").write_text(text)


if __name__ == "__main__":
    typer.run(main)
