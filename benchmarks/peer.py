"""chunk_* against flash-linear-attention's operators (fla-core), in one run.

    python -m benchmarks.peer                   bytes, counted in Triton's interpreter; no GPU
    python -m benchmarks.peer kda gla --save    some of them; keep the figures in benchmarks/results/
    python -m benchmarks.peer --time            milliseconds, on a GPU

Both get the same tensors, bf16 with log decays in the dtype that the peer's layers give them, K = V = 128, HV = H, and
no gradient is wanted. Outputs are compared first: a figure for wrong numbers is worth nothing. The peer is needed by
nothing else here, and nothing of it is in flagen.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

if "--time" not in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when kernels are decorated.

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

RESULTS = Path(__file__).parent / "results"
BOUND = 1e-2
"""How far apart two results in bf16 may be: each is within half of it of the truth."""


@dataclass(frozen=True)
class Size:
    batch: int
    tokens: int
    heads: int
    dim: int = 128


METERED = Size(batch=1, tokens=256, heads=2)
TIMED = (Size(8, 2048, 16), Size(1, 16384, 16), Size(1, 65536, 4))


@dataclass(frozen=True)
class Row:
    """Figures of one operator: bytes for each token and head, or milliseconds."""

    operator: str
    size: str
    ours: float
    peer: float

    @property
    def ratio(self) -> float:
        return self.ours / self.peer


@dataclass(frozen=True)
class Call:
    """The same problem for both: `ours` and `peer` take nothing and give an output."""

    ours: Callable[[], Tensor]
    peer: Callable[[], Tensor]


def simple_gla(x: Inputs) -> Call:
    from fla.ops.simple_gla import chunk_simple_gla as peer

    (q, k, v), g = x.vectors("qkv"), x.decay()
    return Call(lambda: x.op("simple_gla")(q, k, v, g)[0], lambda: peer(q, k, v, g)[0])


def gla(x: Inputs) -> Call:
    from fla.ops.gla import chunk_gla as peer

    q, k, v = x.vectors("qkv")
    g = x.decay(x.size.dim).to(q.dtype)
    return Call(lambda: x.op("gla")(q, k, v, g)[0], lambda: peer(q, k, v, g)[0])


def gated_delta_rule(x: Inputs) -> Call:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule as peer

    (q, k, v), g, beta = x.vectors("qkv"), x.decay(), x.strength()
    return Call(lambda: x.op("gated_delta_rule")(q, k, v, g, beta)[0], lambda: peer(q, k, v, g, beta)[0])


def kda(x: Inputs) -> Call:
    from fla.ops.kda import chunk_kda as peer

    (q, k, v), g, beta = x.vectors("qkv"), x.decay(x.size.dim), x.strength()
    return Call(lambda: x.op("kda")(q, k, v, g, beta)[0], lambda: peer(q, k, v, g, beta)[0])


def gated_delta_product(x: Inputs) -> Call:
    from fla.ops.gated_delta_product import chunk_gated_delta_product as peer

    q, g = x.vectors("q")[0], x.decay()
    k, v = x.vectors("kv", steps=2)
    beta = x.strength(steps=2)
    return Call(
        lambda: x.op("gated_delta_product")(q, k, v, g, beta, num_householder=2)[0],
        lambda: peer(q, k, v, g, beta, num_householder=2)[0],
    )


def rwkv7(x: Inputs) -> Call:
    from fla.ops.rwkv7 import chunk_rwkv7 as peer

    r, k, v = x.vectors("qkv")
    w = -math.exp(-0.5) * torch.sigmoid(x.normal(x.size.dim))
    kk = normalize(x.normal(x.size.dim), dim=-1)
    a, b = -kk.to(r.dtype), (kk * torch.sigmoid(x.normal(x.size.dim))).to(r.dtype)
    return Call(
        lambda: x.op("rwkv7")(r, w, k, v, a, b)[0],
        lambda: peer(r, w, k, v, a, b, scale=1.0)[0],
    )


OPERATORS: Mapping[str, Callable[[Inputs], Call]] = {
    f.__name__: f for f in (simple_gla, gated_delta_rule, gla, kda, gated_delta_product, rwkv7)
}


class Inputs:
    """Random tensors of a size, drawn on the CPU so that they are the same everywhere."""

    def __init__(self, size: Size, device: str) -> None:
        self.size, self.device = size, device
        self.random = torch.Generator().manual_seed(0)

    def op(self, name: str) -> Callable[..., tuple[Tensor, Any]]:
        return getattr(importlib.import_module(f"generated.{name}"), f"chunk_{name}")

    def normal(self, *dims: int, steps: int = 1) -> Tensor:
        size = self.size
        shape = (size.batch, size.tokens * steps, size.heads, *dims)
        return torch.randn(shape, generator=self.random).to(self.device)

    def vectors(self, names: str, steps: int = 1) -> list[Tensor]:
        """Queries and keys of length 1, values as they come."""
        rows = [self.normal(self.size.dim, steps=steps) for _ in names]
        return [(x if name == "v" else normalize(x, dim=-1)).bfloat16() for name, x in zip(names, rows, strict=True)]

    def decay(self, *dims: int) -> Tensor:
        return logsigmoid(self.normal(*dims)) / 4

    def strength(self, steps: int = 1) -> Tensor:
        return torch.sigmoid(self.normal(steps=steps)).bfloat16()


def meter(name: str) -> Iterator[Row]:
    from flagen.triton_cpu.meter import metered

    call = OPERATORS[name](Inputs(METERED, "cpu"))
    figures, outputs = [], []
    for function in (call.ours, call.peer):
        with torch.no_grad(), metered() as report:
            outputs.append(function())
        figures.append(report.total.moved / (METERED.batch * METERED.tokens * METERED.heads))
    agree(name, *outputs)
    yield Row(name, f"T {METERED.tokens}", *figures)


def clock(name: str) -> Iterator[Row]:
    from triton.testing import do_bench

    for size in TIMED:
        call = OPERATORS[name](Inputs(size, "cuda"))
        with torch.no_grad():
            agree(name, call.ours(), call.peer())
            times = [float(do_bench(function, return_mode="median")) for function in (call.ours, call.peer)]
        yield Row(name, f"B {size.batch}, T {size.tokens}, H {size.heads}", *times)


def agree(name: str, ours: Tensor, peer: Tensor) -> None:
    error = ((ours.double() - peer.double()).square().mean() / peer.double().square().mean()).sqrt().item()
    if not error <= BOUND:
        raise SystemExit(f"{name}: the two outputs are {error:.1e} apart")


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Operators; all that have a peer if none is named.")] = None,
    time: Annotated[bool, typer.Option("--time", help="Milliseconds on a GPU instead of bytes.")] = False,
    save: Annotated[bool, typer.Option("--save", help="Keep the figures in benchmarks/results/.")] = False,
) -> None:
    """Compare the operators of generated/ with their peers in fla-core."""
    unknown = sorted(set(names or ()) - OPERATORS.keys())
    if unknown:
        raise typer.BadParameter(f"no peer for {', '.join(unknown)}; there is one for {', '.join(OPERATORS)}")
    if not time:
        from flagen.triton_cpu import repair

        repair()
    rows = [row for name in names or OPERATORS for row in (clock if time else meter)(name)]
    what = "milliseconds" if time else "bytes for each token and head"
    device = torch.cuda.get_device_name() if time else "counted in the interpreter"
    title = f"chunk forward, bf16, {what}; fla-core {version('fla-core')}, {device}"
    table = Table("operator", "size", "flagen", "fla-core", "ratio", title=title)
    for row in rows:
        figures = (f"{x:.3f}" if time else f"{x:.0f}" for x in (row.ours, row.peer))
        table.add_row(row.operator, row.size, *figures, f"{row.ratio:.2f}")
    Console().print(table)
    if save:
        path = RESULTS / f"peer_{'times' if time else 'bytes'}.json"
        path.write_text(json.dumps({"what": title, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
