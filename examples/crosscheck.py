"""Run every operator of a variant on the same random numbers and compare them.

    python examples/crosscheck.py gated_delta_product

The recurrence, `naive_recurrent`, is what the spec says; the others are derived from it. `naive_chunk` is compared
with it in float64, forward and every gradient; `chunk` and `fused_recurrent`, Triton kernels, in float32, forward and
every gradient that has kernels, be it in one of several stages, on the GPU if there is one and in Triton's interpreter
if not. Four sequences are packed together, one of them empty; they start from what a few tokens of others left.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize, softplus

from flagen.diagnostics import SpecError
from flagen.project import Project, UsageError
from flagen.spec import load_spec
from flagen.spec.model import Interval, Spec
from flagen.spec.sizes import fitting

ROOT = Path(__file__).resolve().parent.parent
LENGTHS = (70, 0, 1, 57)
BEFORE = 5  # Tokens of the sequences that leave the states to start from.
HEADS, VALUE_HEADS = 2, 4
DIM = 16
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CHUNK = "naive_chunk\nfloat64"
KERNELS = {kind: f"{kind}\nfloat32" for kind in ("chunk", "fused_recurrent")}
BOUNDS = {CHUNK: (1e-9, 1e-9)} | dict.fromkeys(KERNELS.values(), (1e-5, 1e-4))
"""How far off results and gradients may be."""

Tensors = dict[str, Tensor]
Run = Callable[[Tensors], Tensors]
"""An operator as a function of named tensors, the initial states among them, to named tensors."""


def main(name: Annotated[str, typer.Argument(help="A variant of generated/.")] = "gated_delta_product") -> None:
    if DEVICE == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when a kernel is decorated, on import.
    try:
        spec = load_spec(Project(ROOT).find_spec(name))
    except (UsageError, SpecError) as error:
        raise typer.BadParameter(str(error)) from None
    if spec.recurrence_of is not None:
        raise typer.BadParameter(f"{name} is a layer around the operators of {spec.recurrence_of.name}: compare those")
    if not (ROOT / "generated" / name).is_dir():
        raise typer.BadParameter(f"there is no package generated/{name}; run `flagen build {name}`")
    sys.path.insert(0, str(ROOT))
    package = importlib.import_module(f"generated.{name}")
    tensors, numbers = arguments(spec, package)

    def operator(kind: str) -> Run | None:
        function = getattr(package, f"{kind}_{name}", None)
        return None if function is None else lambda given: call(function, spec, given, numbers)

    columns: dict[str, dict[str, float]] = {}
    recurrent = operator("naive_recurrent")
    assert recurrent is not None, "every spec has a recurrence"
    if chunk := operator("naive_chunk"):
        columns[CHUNK] = errors(with_gradients(recurrent, tensors), with_gradients(chunk, tensors))
    single = {key: x.float() for key, x in tensors.items()}
    for kind, title in KERNELS.items():
        if kernel := operator(kind):
            if DEVICE == "cpu":
                repair_interpreter()
            with torch.no_grad():
                columns[title] = errors(recurrent(single), kernel(single))
            if has_backward_kernels(package, kind):
                columns[title] |= errors(with_gradients(recurrent, single), with_gradients(kernel, single))

    if not columns:
        typer.echo(f"nothing was compared: {name} has no operator but naive_recurrent")
        raise typer.Exit(0)
    show(spec, columns)
    fine = all(value <= bound(title, row) for title, column in columns.items() for row, value in column.items())
    raise typer.Exit(0 if fine else 1)


def has_backward_kernels(package: ModuleType, kind: str) -> bool:
    """Whether an operator has kernels for gradients: those of all states at once, or those of a stage."""
    return any(any(Path(folder).rglob(f"{kind}_backward.py")) for folder in package.__path__)


def arguments(spec: Spec, package: ModuleType) -> tuple[Tensors, dict[str, object]]:
    """Random float64 tensors in the shapes and ranges that the spec declares, and the numbers a call takes. States have
    no range declared: they are such as the recurrence leaves."""
    generator = torch.Generator().manual_seed(0)
    steps = spec.steps.default or 2 if spec.steps else 1
    heads = {"H": HEADS, "HV": VALUE_HEADS if spec.has_value_heads else HEADS}
    sizes = fitting(spec, {**dict.fromkeys(spec.dims, DIM), **heads})

    def draw(dims: tuple[str, ...], range_: Interval, *leading: int) -> Tensor:
        x = torch.randn(*leading, *(sizes[dim] for dim in dims), generator=generator, dtype=torch.float64)
        return within(normalize(x, dim=-1) if dims and unbounded(range_) else x, range_).to(DEVICE)

    def inputs(batch: int, tokens: int) -> Tensors:
        rows = {"token": tokens, "step": tokens * steps}
        return {
            decl.name: draw(decl.dims, decl.range, batch, rows[decl.per], heads[decl.heads]) for decl in spec.inputs
        }

    tensors, earlier = inputs(1, sum(LENGTHS)), inputs(len(LENGTHS), BEFORE)
    params = {
        param.name: draw(param.dims, param.range, *([heads["HV"]] if param.per_head else []))
        for param in spec.params
        if param.is_tensor
    }
    numbers: dict[str, object] = {p.name: p.range.low for p in spec.params if not p.is_tensor and p.default is None}
    numbers |= {spec.steps.argument: steps} if spec.steps else {}
    recurrent = getattr(package, f"naive_recurrent_{spec.name}")
    _, left = recurrent(**earlier, **params, **numbers, output_final_state=True)
    states = zip(spec.states, left if len(spec.states) > 1 else (left,), strict=True)
    return tensors | params | {f"initial {state.name}": x for state, x in states}, numbers


def unbounded(range_: Interval) -> bool:
    return math.isinf(range_.low) and math.isinf(range_.high)


def within(x: Tensor, range_: Interval) -> Tensor:
    """Normal numbers mapped into a range."""
    low, high = range_.low, range_.high
    if unbounded(range_):
        return x
    if math.isinf(low):
        return high + logsigmoid(x + 1)
    if math.isinf(high):
        return low + softplus(x)
    return low + (high - low) * torch.sigmoid(x)


def call(function: Callable[..., tuple], spec: Spec, tensors: Tensors, numbers: Mapping[str, object]) -> Tensors:
    """Call an operator with everything it takes; several states go in and come out as tuples."""
    states = [state.name for state in spec.states]
    initial = tuple(tensors[f"initial {name}"] for name in states)
    offsets = torch.tensor([sum(LENGTHS[:i]) for i in range(len(LENGTHS) + 1)], device=DEVICE)
    o, final = function(
        **{key: x for key, x in tensors.items() if not key.startswith("initial ")},
        **numbers,
        initial_state=initial if len(states) > 1 else initial[0],
        output_final_state=True,
        cu_seqlens=offsets,
    )
    finals = final if len(states) > 1 else (final,)
    return {"o": o, **{f"final {name}": x for name, x in zip(states, finals, strict=True)}}


def with_gradients(run: Run, tensors: Tensors) -> Tensors:
    """What `run` returns, and the gradients of a random weighting of it."""
    leaves = {key: x.clone().requires_grad_() for key, x in tensors.items()}
    results = run(leaves)
    generator = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, generator=generator).to(x)).sum() for x in results.values())
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    named = {f"gradient of {key}": x for key, x in zip(leaves, gradients, strict=True)}
    return {key: x.detach() for key, x in results.items()} | named


def errors(expected: Tensors, got: Tensors) -> dict[str, float]:
    """Root mean square of each difference, relative to that of what was expected."""

    def rms(x: Tensor) -> Tensor:
        return x.double().square().mean().sqrt()

    return {key: float(rms(x - got[key]) / rms(x).clamp(min=1e-12)) for key, x in expected.items()}


def bound(title: str, row: str) -> float:
    of_results, of_gradients = BOUNDS[title]
    return of_gradients if row.startswith("gradient") else of_results


def repair_interpreter() -> None:
    from flagen.triton_cpu import repair

    repair()


def show(spec: Spec, columns: dict[str, dict[str, float]]) -> None:
    table = Table("", *columns, title=Text(f"{spec.title or spec.name}: relative error against naive_recurrent"))
    for row in dict.fromkeys(key for column in columns.values() for key in column):
        table.add_row(row, *(cell(column.get(row), bound(title, row)) for title, column in columns.items()))
    table.add_section()
    table.add_row("bound", *(f"{of_results:.0e}" for of_results, _ in map(BOUNDS.get, columns)))
    table.add_row("bound of gradients", *(f"{of_gradients:.0e}" for _, of_gradients in map(BOUNDS.get, columns)))
    Console().print(table)


def cell(value: float | None, bound: float) -> Text:
    """An error, green within its bound; a dash where the operator leaves the gradient to the PyTorch form."""
    return Text("-") if value is None else Text(f"{value:.1e}", "green" if value <= bound else "bold red")


if __name__ == "__main__":
    typer.run(main)
