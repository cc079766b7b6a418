"""chunk_* against flash-linear-attention's operators (fla-core), in one run.

    python -m benchmarks.peer                   bytes, counted in Triton's interpreter; no GPU
    python -m benchmarks.peer kda gla --save    some of them; keep the figures in benchmarks/results/
    python -m benchmarks.peer --time            milliseconds, on a GPU

Both get the same tensors, bf16 with log decays in the dtype that the peer's layers give them, K = V = 128, HV = H;
`gated_deltanet` is all that the layer runs in kernels, gates and norms of keys included. They
go forward where no gradient is wanted, and forward and backward where all are; flagen's computes states again, and then
saves them where it can. What autograd keeps in between is counted as well, inputs among it. Outputs and gradients are
compared first: a figure for wrong numbers is worth nothing. The peer is needed by nothing else here, and nothing of it
is in flagen.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
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

from flagen.inspection.calls import memory_modes

Results = tuple[Tensor, Any]

RESULTS = Path(__file__).parent / "results"
BOUND = 1e-2
"""How far apart two outputs or gradients in bf16 may be: each is within half of it of the truth."""


BOTH = "forward + backward"


@dataclass(frozen=True)
class Size:
    batch: int
    tokens: int
    heads: int
    dim: int = 128


SLOTS = 64
"""Of the memory of gsa."""

METERED = Size(batch=1, tokens=256, heads=2)
TIMED = (Size(8, 2048, 16), Size(1, 16384, 16), Size(1, 65536, 4))


@dataclass(frozen=True)
class Row:
    """A figure of one operator: bytes for each token and head, or milliseconds."""

    operator: str
    size: str
    figure: str
    ours: float
    peer: float

    @property
    def ratio(self) -> float:
        return self.ours / self.peer


@dataclass(frozen=True)
class Call:
    """The same problem for both, which give o, then a state; `ours` takes options. Gradients are those of `inputs`."""

    ours: Callable[..., Results]
    peer: Callable[[], Results]
    inputs: tuple[Tensor, ...]


def simple_gla(x: Inputs) -> Call:
    from fla.ops.simple_gla import chunk_simple_gla as peer

    (q, k, v), g = x.vectors("qkv"), x.decay()
    given = (q, k, v, g)
    return Call(partial(x.op("simple_gla"), *given), partial(peer, *given), given)


def gla(x: Inputs) -> Call:
    from fla.ops.gla import chunk_gla as peer

    q, k, v = x.vectors("qkv")
    g = x.decay(x.size.dim).to(q.dtype)
    given = (q, k, v, g)
    return Call(partial(x.op("gla"), *given), partial(peer, *given), given)


def gated_delta_rule(x: Inputs) -> Call:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule as peer

    (q, k, v), g, beta = x.vectors("qkv"), x.decay(), x.strength()
    given = (q, k, v, g, beta)
    return Call(partial(x.op("gated_delta_rule"), *given), partial(peer, *given), given)


def kda(x: Inputs) -> Call:
    from fla.ops.kda import chunk_kda as peer

    (q, k, v), g, beta = x.vectors("qkv"), x.decay(x.size.dim), x.strength()
    given = (q, k, v, g, beta)
    return Call(partial(x.op("kda"), *given), partial(peer, *given), given)


def gated_delta_product(x: Inputs) -> Call:
    from fla.ops.gated_delta_product import chunk_gated_delta_product as peer

    q, g = x.vectors("q")[0], x.decay()
    k, v = x.vectors("kv", steps=2)
    beta = x.strength(steps=2)
    given = (q, k, v, g, beta)
    return Call(
        partial(x.op("gated_delta_product"), *given, num_householder=2), partial(peer, *given, num_householder=2), given
    )


def rwkv7(x: Inputs) -> Call:
    from fla.ops.rwkv7 import chunk_rwkv7 as peer

    r, k, v = x.vectors("qkv")
    w = -math.exp(-0.5) * torch.sigmoid(x.normal(x.size.dim))
    kk = normalize(x.normal(x.size.dim), dim=-1)
    a, b = -kk.to(r.dtype), (kk * torch.sigmoid(x.normal(x.size.dim))).to(r.dtype)
    given = (r, w, k, v, a, b)
    return Call(partial(x.op("rwkv7"), *given), partial(peer, *given, scale=1.0), given)


def gsa(x: Inputs) -> Call:
    from fla.ops.gsa import chunk_gsa as peer

    q, k, v = x.vectors("qkv")
    g = x.decay(SLOTS).to(q.dtype)
    s = (1 - g.float().exp()).to(q.dtype)
    given = (q, k, v, s, g)
    return Call(partial(x.op("gsa"), *given), partial(peer, *given), given)


def gated_deltanet(x: Inputs) -> Call:
    """What of the layer runs in kernels, front end included, as the peer's layer calls it."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    (q, k, v), a, b = x.raw(), x.normal().bfloat16(), x.normal().bfloat16()
    A_log, dt_bias = x.gate()
    gate = {"use_gate_in_kernel": True, "A_log": A_log, "dt_bias": dt_bias}
    peer = partial(chunk_gated_delta_rule, **gate, use_qk_l2norm_in_kernel=True, use_beta_sigmoid_in_kernel=True)
    given = (q, k, v, a, b)
    ours = partial(x.op("gated_deltanet"), *given, A_log, dt_bias)
    return Call(ours, partial(peer, *given, state_v_first=True), (*given, A_log, dt_bias))


OPERATORS: Mapping[str, Callable[[Inputs], Call]] = {
    f.__name__: f for f in (simple_gla, gated_delta_rule, gla, kda, gated_delta_product, rwkv7, gsa, gated_deltanet)
}


class Inputs:
    """Random tensors of a size, drawn on the CPU so that they are the same everywhere."""

    def __init__(self, size: Size, device: str) -> None:
        self.size, self.device = size, device
        self.random = torch.Generator().manual_seed(0)

    def op(self, name: str) -> Callable[..., Results]:
        return getattr(importlib.import_module(f"generated.{name}"), f"chunk_{name}")

    def normal(self, *dims: int, steps: int = 1) -> Tensor:
        size = self.size
        shape = (size.batch, size.tokens * steps, size.heads, *dims)
        return torch.randn(shape, generator=self.random).to(self.device)

    def vectors(self, names: str, steps: int = 1) -> list[Tensor]:
        """Queries and keys of length 1, values as they come."""
        rows = [self.normal(self.size.dim, steps=steps) for _ in names]
        return [(x if name == "v" else normalize(x, dim=-1)).bfloat16() for name, x in zip(names, rows, strict=True)]

    def raw(self) -> list[Tensor]:
        """Queries, keys and values as projections give them."""
        return [self.normal(self.size.dim).bfloat16() for _ in "qkv"]

    def gate(self) -> tuple[Tensor, Tensor]:
        """A_log and dt_bias of a forget gate, as layers start with them."""
        uniform = torch.rand(self.size.heads, generator=self.random)
        step = (torch.rand(self.size.heads, generator=self.random) * math.log(100) + math.log(0.001)).exp()
        inverse = step + torch.log(-torch.expm1(-step))
        return torch.log(1 + 15 * uniform).to(self.device), inverse.to(self.device)

    def decay(self, *dims: int) -> Tensor:
        return logsigmoid(self.normal(*dims)) / 4

    def strength(self, steps: int = 1) -> Tensor:
        return torch.sigmoid(self.normal(steps=steps)).bfloat16()


def problem(name: str, size: Size, device: str) -> tuple[Call, Tensor]:
    """A call whose inputs want gradients where grad mode is on, and a gradient of its output."""
    x = Inputs(size, device)
    call = OPERATORS[name](x)
    for tensor in call.inputs:
        tensor.requires_grad_()
    return call, x.vectors("v")[0]


def forward(operator: Callable[[], Results]) -> list[Tensor]:
    """The output, where no gradient is wanted."""
    with torch.no_grad():
        return [operator()[0]]


def both_ways(operator: Callable[[], Results], inputs: tuple[Tensor, ...], cotangent: Tensor) -> list[Tensor]:
    """The output, and the gradients of the inputs."""
    o = operator()[0]
    return [o, *torch.autograd.grad(o, inputs, cotangent)]


def modes(call: Call) -> Iterator[tuple[str, Callable[[], Results]]]:
    """Ours as it is called, and where it takes that, told to save states."""
    for said in memory_modes(call.ours):
        yield "".join(f", {option}" for option in said), partial(call.ours, **said)


def count(run: Callable[[], list[Tensor]]) -> tuple[float, float, list[Tensor]]:
    """Bytes moved and bytes kept for gradients, for each token and head; and what came out."""
    from flagen.triton_cpu.meter import kept_for_gradients, metered

    with metered() as report, kept_for_gradients() as kept:
        results = run()
    per = METERED.batch * METERED.tokens * METERED.heads
    return report.total.moved / per, kept.bytes / per, results


def meter(name: str) -> list[Row]:
    call, cotangent = problem(name, METERED, "cpu")
    size = f"T {METERED.tokens}"
    (ours, _, our_output), (peer, _, its_output) = (count(partial(forward, x)) for x in (call.ours, call.peer))
    agree(name, our_output, its_output)
    rows = [Row(name, size, "forward", ours, peer)]
    peer, its_kept, its_results = count(partial(both_ways, call.peer, call.inputs, cotangent))
    for mode, operator in modes(call):
        ours, our_kept, our_results = count(partial(both_ways, operator, call.inputs, cotangent))
        agree(f"{name}{mode}", our_results, its_results)
        rows += [Row(name, size, f"{BOTH}{mode}", ours, peer), Row(name, size, f"kept{mode}", our_kept, its_kept)]
    return rows


def clock(name: str) -> list[Row]:
    from triton.testing import do_bench

    def time(run: Callable[[], object]) -> float:
        return float(do_bench(run, return_mode="median"))

    rows = []
    for of in TIMED:
        call, cotangent = problem(name, of, "cuda")
        size = f"B {of.batch}, T {of.tokens}, H {of.heads}"
        ours, theirs = partial(forward, call.ours), partial(forward, call.peer)
        agree(name, ours(), theirs())
        rows.append(Row(name, size, "forward", time(ours), time(theirs)))
        theirs = partial(both_ways, call.peer, call.inputs, cotangent)
        peer, its_results = time(theirs), theirs()
        for mode, operator in modes(call):
            ours = partial(both_ways, operator, call.inputs, cotangent)
            agree(f"{name}{mode}", ours(), its_results)
            rows.append(Row(name, size, f"{BOTH}{mode}", time(ours), peer))
    return rows


def agree(name: str, ours: Sequence[Tensor], peer: Sequence[Tensor]) -> None:
    """Compare outputs, and then gradients, in the order of the inputs."""
    for place, (mine, its) in enumerate(zip(ours, peer, strict=True)):
        error = ((mine.double() - its.double()).square().mean() / its.double().square().mean()).sqrt().item()
        if not error <= BOUND:
            which = f"gradients of input {place}" if place else "outputs"
            raise SystemExit(f"{name}: the two {which} are {error:.1e} apart")


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
    title = f"chunk_*, bf16, {what}; fla-core {version('fla-core')}, {device}"
    table = Table("operator", "size", "figure", "flagen", "fla-core", "ratio", title=title)
    for row in rows:
        figures = (f"{x:.3f}" if time else f"{x:.0f}" for x in (row.ours, row.peer))
        table.add_row(row.operator, row.size, row.figure, *figures, f"{row.ratio:.2f}")
    Console().print(table)
    if save:
        path = RESULTS / f"peer_{'times' if time else 'bytes'}.json"
        path.write_text(json.dumps({"what": title, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
