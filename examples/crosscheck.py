"""Run every operator of a variant on the same random numbers and compare them.

    python examples/crosscheck.py gated_delta_product

The recurrence, `naive_recurrent`, is what the spec says; the others are derived from it. `naive_chunk` is compared
with it in float64, forward and every gradient; `fused_recurrent`, a Triton kernel, in float32, on the GPU if there is
one and in Triton's interpreter if not. Four sequences are packed together, one of them empty.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize, softplus

from flagen.spec import load_spec
from flagen.spec.model import Interval, Spec

ROOT = Path(__file__).resolve().parent.parent
LENGTHS = (70, 0, 1, 57)
HEADS = {"H": 2, "HV": 4}
DIM = 16
CHUNK, FUSED = "naive_chunk, float64", "fused_recurrent, float32"
BOUNDS = {CHUNK: 1e-9, FUSED: 1e-5}
ON_GPU = torch.cuda.is_available()

Operator = Callable[..., tuple[Tensor, Tensor]]


def main(name: Annotated[str, typer.Argument(help="A variant of generated/.")] = "gated_delta_product") -> None:
    if not ON_GPU:
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when a kernel is decorated, on import.
    sys.path.insert(0, str(ROOT))
    spec, package = load_spec(ROOT / "specs" / f"{name}.yaml"), importlib.import_module(f"generated.{name}")
    operators = {kind: getattr(package, f"{kind}_{name}", None) for kind in ("naive_chunk", "fused_recurrent")}
    recurrent = getattr(package, f"naive_recurrent_{name}")
    tensors, keywords = arguments(spec)

    columns: dict[str, dict[str, float]] = {}
    if operators["naive_chunk"]:
        expected = outputs_and_gradients(recurrent, tensors, keywords)
        got = outputs_and_gradients(operators["naive_chunk"], tensors, keywords)
        columns[CHUNK] = {key: error(expected[key], got[key]) for key in expected}
    if operators["fused_recurrent"]:
        if not ON_GPU:
            repair_interpreter()
        single = {key: value.float() for key, value in tensors.items()}
        expected = outputs(recurrent, single, keywords)
        got = outputs(operators["fused_recurrent"], single, keywords)
        columns[FUSED] = {key: error(expected[key], got[key]) for key in expected}

    show(spec, columns)
    within_bounds = all(value <= BOUNDS[title] for title, column in columns.items() for value in column.values())
    raise typer.Exit(0 if within_bounds else 1)


def arguments(spec: Spec) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Random float64 tensors in the shapes and ranges that the spec declares, and the other keywords of a call."""
    generator = torch.Generator().manual_seed(0)
    device = "cuda" if ON_GPU else "cpu"
    steps = spec.steps.default or 2 if spec.steps else 1

    def draw(range_: Interval, *shape: int) -> Tensor:
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return within(x, range_).to(device)

    tensors = {
        decl.name: draw(
            decl.range, 1, sum(LENGTHS) * (steps if decl.per == "step" else 1), HEADS[decl.heads], *sizes(decl.dims)
        )
        for decl in spec.inputs
    }
    for param in spec.params:
        if param.is_tensor:
            tensors[param.name] = draw(param.range, *([HEADS["HV"]] if param.per_head else []), *sizes(param.dims))
    (state,) = spec.states
    tensors["initial_state"] = draw(Interval(), len(LENGTHS), HEADS["HV"], *sizes(state.dims))

    keywords: dict[str, object] = {p.name: p.range.low for p in spec.params if not p.is_tensor and p.default is None}
    if spec.steps:
        keywords[spec.steps.argument] = steps
    offsets = [sum(LENGTHS[:i]) for i in range(len(LENGTHS) + 1)]
    return tensors, {**keywords, "cu_seqlens": torch.tensor(offsets, device=device), "output_final_state": True}


def sizes(dims: tuple[str, ...]) -> tuple[int, ...]:
    return (DIM,) * len(dims)


def within(x: Tensor, range_: Interval) -> Tensor:
    """Normal numbers mapped into a range; vectors without one get unit length, which keeps recurrences bounded."""
    low, high = range_.low, range_.high
    if math.isinf(low) and math.isinf(high):
        return normalize(x, dim=-1) if x.dim() > 3 else x
    if math.isinf(low):
        return high + logsigmoid(x + 1)
    if math.isinf(high):
        return low + softplus(x)
    return low + (high - low) * torch.sigmoid(x)


def outputs(operator: Operator, tensors: dict[str, Tensor], keywords: dict[str, object]) -> dict[str, Tensor]:
    with torch.no_grad():
        o, final_state = operator(**tensors, **keywords)
    return {"o": o, "final state": final_state}


def outputs_and_gradients(
    operator: Operator, tensors: dict[str, Tensor], keywords: dict[str, object]
) -> dict[str, Tensor]:
    leaves = {key: value.clone().requires_grad_() for key, value in tensors.items()}
    o, final_state = operator(**leaves, **keywords)
    generator = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, generator=generator).to(x)).sum() for x in (o, final_state))
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    named = {f"gradient of {key}": value for key, value in zip(leaves, gradients, strict=True)}
    return {"o": o.detach(), "final state": final_state.detach(), **named}


def error(expected: Tensor, got: Tensor) -> float:
    """Root mean square of the difference, relative to that of what was expected."""
    reference = expected.double().square().mean().sqrt().clamp(min=1e-12)
    return float((expected - got).double().square().mean().sqrt() / reference)


def repair_interpreter() -> None:
    from flagen.triton_cpu import repair

    repair()


def show(spec: Spec, columns: dict[str, dict[str, float]]) -> None:
    table = Table("", *columns, title=Text(f"{spec.title}: relative error against naive_recurrent"))
    for row in dict.fromkeys(key for column in columns.values() for key in column):
        table.add_row(row, *(cell(column.get(row), BOUNDS[title]) for title, column in columns.items()))
    table.add_section()
    table.add_row("bound", *(f"{BOUNDS[title]:.0e}" for title in columns))
    Console().print(table)


def cell(value: float | None, bound: float) -> Text:
    """An error, green within its bound; a dash where the operator leaves the gradient to the PyTorch form."""
    return Text("-") if value is None else Text(f"{value:.1e}", "green" if value <= bound else "bold red")


if __name__ == "__main__":
    typer.run(main)
