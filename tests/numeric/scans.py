"""Specs of elementwise scans, committed ones and odd ones, and random problems of them: several states, any dims."""

from __future__ import annotations

import atexit
import importlib
import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from flagen.spec import load_spec, parse_spec
from flagen.spec.model import Input, Param, Spec
from flagen.spec.sizes import fitting
from tests.fuzz.packages import build, imported
from tests.numeric.problems import cotangent
from tests.phases import compared

ROOT = Path(__file__).parents[2]
COMMITTED = ("hgrn", "rwkv4", "mamba")

_BODIES = {
    # A state without dims; a decay of any sign, shared by value heads; an output over a dim that the state lacks.
    "scalar": """
state: {s: []}
inputs: {a: [], v: {dims: [V], heads: HV}, b: {dims: [], heads: HV}}
update: s = a * s + b
output: o = s * v + s_prev * tanh(v)
""",
    # Two matrix states, the second written by the first as it was and as it is; sums over both dims.
    "two_matrices": """
state: {P: [D, N], Q: [D, N]}
inputs: {x: [D], y: {dims: [D, N], heads: HV}, g: {dims: [D, N], heads: HV, range: [-.inf, 0]}, r: [N]}
params: {A: {dims: [D, N]}, c: {dims: [N], per: head}}
update:
  - P = tanh(A) * P + y
  - Q = exp(g) * Q + (P - 0.5 * P_prev) * sigmoid(c)
output: o = x * (Q @ r) + Q_prev @ c + sum(P, N)
""",
    # Statements that compose, a local between them, a literal zero and minus one among the factors.
    "composed": """
state: {S: [D], R: [D], M: [D]}
inputs: {x: [D], b: {dims: [], range: [0, 1]}}
params: {u: {dims: [D], per: head, default: 0.5}, tau: {default: D ** -0.5}}
update:
  - S = -b * S
  - early = S + x
  - S = 1.25 * (S + early) / (1 + b) - tau
  - R = 0 * R + S_prev * u
  - M = M + early * (head + 1)
output: o = S + R_prev * R + M / (1 + abs(x))
""",
    # Running log-sum-exps over log-sum-exps, and a mean weighted by both.
    "logs": """
state: {z: {dims: [D], init: -.inf}, y: {dims: [D], init: -.inf}, m: [D]}
inputs: {k: {dims: [D], heads: HV}, v: [D], w: {dims: [], range: [-.inf, 0]}}
update:
  - z = logaddexp(k, z + w)
  - y = logaddexp(logaddexp(y, v), z)
  - m = exp(z_prev + w - z) * m + exp(k - z) * v
output: o = m + exp(minimum(z - y, 0)) + 0.1 * sigmoid(y_prev)
""",
    # Running maxima: read before and after; over another one, nested and shifted; of a head, and not below a number.
    "peaks": """
state: {m: {dims: [D], init: -.inf}, p: [D], r: [], h: [D]}
inputs: {k: {dims: [D], heads: HV}, v: [D], w: {dims: [], range: [-.inf, 0]}, x: {dims: [], heads: HV}}
update:
  - m = maximum(k, m + w)
  - p = maximum(maximum(p - 0.1, v), m)
  - p = p + 0.5 * tanh(k)
  - r = maximum(x + r - 0.2, 0.25)
  - h = exp(m_prev + w - m) * h + exp(k - m) * v
output: o = h + p_prev * tanh(m) + exp(m - p) * r
""",
    # Angles in turns, of one head and of all channels: two statements, one of which goes back; read before and after.
    "turning": """
state: {p: [D], r: [], m: [D]}
inputs: {x: [D], a: {dims: [D], heads: HV}, dt: {dims: [], heads: HV, range: [0, 1]}}
params: {w: {dims: [D], per: head}}
update:
  - p = fraction(p + 0.5 * tanh(a) * dt)
  - p = fraction(w - dt + p)
  - r = fraction(dt + r)
  - m = 0.5 * m + x * cos(6.283185307179586 * (p - r))
output: o = m * sin(6.283185307179586 * p_prev) + x * cos(6.283185307179586 * r)
""",
    # No input has the state's dims, and nothing depends on the token but the count.
    "constant": """
state: {n: [D], c: []}
inputs: {x: {dims: [D], heads: HV}}
params: {p: {dims: [D], range: [0, 1]}}
update:
  - n = p * n + 1
  - c = c + 1
output: o = x * n / c
""",
    # Names that generated code would make up beside the spec's.
    "clashing": """
state: {h: [D], h_last: [D]}
inputs: {h_first: [D], dh: [D], do: [D], token_mask: [D], h_kept: [D], o_all: [D], dh_final: [D]}
params: {h_final: {dims: [D]}, h_initial: {per: head}, D_mask: {default: 2}}
update:
  - h = dh * h + h_first * token_mask
  - h_last = sigmoid(h_kept) * h_last + h * h_final
output: o = do * h + h_last * o_all * h_initial / D_mask + dh_final
""",
}
ODD = tuple(_BODIES)
NAMES = (*COMMITTED, *ODD)


@cache
def spec_of(name: str) -> Spec:
    if name in COMMITTED:
        return load_spec(ROOT / "specs" / f"{name}.yaml")
    return parse_spec(f"flagen: 2\nname: {name}\n{_BODIES[name]}", f"{name}.yaml")


_packages = ExitStack()
atexit.register(_packages.close)


@cache
def package(name: str) -> ModuleType:
    """The committed package, or one built for this process."""
    if name in COMMITTED:
        return importlib.import_module(f"generated.{name}")
    return _packages.enter_context(imported(build(spec_of(name))))


def form(kind: str, name: str) -> Callable[..., tuple]:
    return getattr(package(name), f"{kind}_{name}")


@dataclass(frozen=True)
class Shape:
    """`lengths` packs sequences along T, in a batch of 1; every dim that `sizes` does not have in order gets its last
    one."""

    T: int = 15
    sizes: tuple[int, ...] = (12, 5)
    B: int = 1
    H: int = 1
    groups: int = 1
    lengths: tuple[int, ...] | None = None

    def __str__(self) -> str:
        rows = f"T{self.T}" if self.lengths is None else "len" + "_".join(map(str, self.lengths))
        return f"B{self.B}-{rows}-H{self.H}x{self.groups}-D{'_'.join(map(str, self.sizes))}"


@dataclass(frozen=True)
class Problem:
    name: str
    tensors: Mapping[str, Tensor]
    optional: frozenset[str]
    states: tuple[Tensor, ...] | None
    cu_seqlens: Tensor | None

    def call(self, function: Callable[..., tuple], **keywords: object) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """The output and the final states, a tuple also where there is one."""
        positional = [x for name, x in self.tensors.items() if name not in self.optional]
        named = {name: x for name, x in self.tensors.items() if name in self.optional}
        initial: object = self.states
        if self.states is not None and len(self.states) == 1:
            (initial,) = self.states
        given = {"initial_state": initial, "output_final_state": True, "cu_seqlens": self.cu_seqlens}
        o, final = function(*positional, **{**named, **given, **keywords})
        return o, (final,) if isinstance(final, Tensor) else final

    def map(self, function: Callable[[str, Tensor], Tensor]) -> Problem:
        tensors = {name: function(name, x) for name, x in self.tensors.items()}
        states = self.states
        if states is not None:
            states = tuple(function(f"initial {place}", x) for place, x in enumerate(states))
        return replace(self, tensors=tensors, states=states)

    def to(self, dtype: torch.dtype) -> Problem:
        """Tensors in `dtype`, states in float32 at least."""
        return self.map(lambda n, x: x.to(torch.float32 if n.startswith("initial") and dtype.itemsize < 4 else dtype))


def make(name: str, shape: Shape, *, state: bool = True, seed: int = 0) -> Problem:
    """A random float64 problem; log decays are -inf and 0 now and then, as they may be."""
    spec = spec_of(name)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {shape} {seed}".encode()))
    wanted = dict(zip(spec.dims, (*shape.sizes, *[shape.sizes[-1]] * len(spec.dims)), strict=False))
    heads = {"H": shape.H, "HV": shape.H * (shape.groups if spec.has_value_heads else 1)}
    sizes = fitting(spec, wanted | heads)
    tokens = shape.T if shape.lengths is None else sum(shape.lengths)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    def sample(decl: Input | Param, *leading: int) -> Tensor:
        x = normal(*leading, *(sizes[dim] for dim in decl.dims))
        low, high = decl.range.low, decl.range.high
        if math.isinf(low) and math.isinf(high):
            return x
        if not math.isinf(low + high):
            return low + (high - low) * x.sigmoid()
        return high - x.abs() if math.isinf(low) else low + x.abs()

    tensors = {i.name: sample(i, shape.B, tokens, heads[i.heads]) for i in spec.inputs}
    params = sorted((p for p in spec.params if p.is_tensor), key=lambda p: p.default is not None)
    tensors |= {p.name: sample(p, *((heads["HV"],) if p.per_head else ())) for p in params}
    runs = shape.B if shape.lengths is None else len(shape.lengths)
    states = tuple(normal(runs, heads["HV"], *(sizes[dim] for dim in s.dims)) for s in spec.states)
    offsets = None
    if shape.lengths is not None:
        offsets = torch.tensor([0, *torch.tensor(shape.lengths).cumsum(0).tolist()])
    optional = frozenset(p.name for p in params if p.default is not None)
    return Problem(name, tensors, optional, states if state else None, offsets)


def named_results(problem: Problem, o: Tensor, finals: tuple[Tensor, ...] | None) -> dict[str, Tensor]:
    """What a call returned, by name, as it is compared."""
    states = () if finals is None else compared(spec_of(problem.name), finals)
    return {"o": o, **{f"final {place}": x for place, x in enumerate(states)}}


def evaluate(
    function: Callable[..., tuple], problem: Problem, *, wrt: Iterable[str] | None = None, **keywords: object
) -> dict[str, Tensor]:
    """`o`, the final states and the gradient of each tensor, under random cotangents of all of them;
    where something is -inf is told apart from its other elements."""
    starts = [] if problem.states is None else [f"initial {place}" for place in range(len(problem.states))]
    wanted = {*problem.tensors, *starts} if wrt is None else set(wrt)
    problem = problem.map(lambda name, x: x.detach().clone().requires_grad_(name in wanted))
    o, finals = problem.call(function, **keywords)
    results = named_results(problem, o, finals)
    leaves = {**problem.tensors, **dict(zip(starts, problem.states or (), strict=True))}
    leaves = {name: x for name, x in leaves.items() if x.requires_grad}
    # Cotangents that bf16 has, or half of what a gradient is off by would be their rounding.
    weights = {name: cotangent(name, x).bfloat16().double() for name, x in results.items()}
    loss = sum((torch.where(x.isfinite(), x, 0).double() * weights[name]).sum() for name, x in results.items())
    if leaves and loss.requires_grad:
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        results |= {f"d {name}": x for name, x in zip(leaves, gradients, strict=True)}
    nowhere = {f"{name} at -inf": (x == -math.inf).double() for name, x in results.items()}
    return {name: torch.where(x == -math.inf, 0, x).detach() for name, x in results.items()} | nowhere
