"""Specs that no paper has: between them every construct of the language, in combinations that the variants lack."""

from __future__ import annotations

import importlib
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from flagen.spec import parse_spec
from flagen.spec.model import Interval, Spec
from flagen.spec.sizes import fitting
from tests.fuzz import packages

_BODIES = {
    "normalized": """
state: {S: [K, V], z: [K]}
inputs: {q: [K], k: [K], v: {dims: [V], heads: HV}}
params: {scale: {default: K ** -0.5}}
update:
  - S = S + outer(k, v)
  - z = z + k
output: o = (S.T @ (scale * q)) / (abs(dot(z, scale * q)) + 1)
""",
    "running_sum": """
state: {S: [K, V], z: {dims: [K], init: -.inf}}
inputs: {q: [K], k: [K], v: {dims: [V], heads: HV}}
update:
  - z = logaddexp(z, k)
  - S = exp(z_prev - z) * S + outer(exp(k - z), v)
output: o = S.T @ q
""",
    "slots": """
state: {Sk: [K, M], Sv: [M, V], z: {dims: [M], init: -.inf}}
inputs: {q: [K], k: [K], v: {dims: [V], heads: HV}, s: {dims: [M], heads: HV}}
update:
  - z = logaddexp(z, s)
  - r = exp(z_prev - z)
  - w = exp(s - z)
  - Sk = r * Sk + outer(k, w)
  - Sv = r * Sv + outer(w, v)
output:
  - p = softmax(Sk.T @ q)
  - o = Sv.T @ p
""",
    "elementwise": """
state: {p: [D], q: [D], z: {dims: [D], init: -.inf}}
inputs: {k: [D], v: [D]}
params: {w: {dims: [D], per: head, range: [-.inf, 0]}, u: {dims: [D], per: head}}
update:
  - z = logaddexp(z + w, k)
  - p = exp(z_prev + w - z) * p + exp(k - z) * v
  - q = exp(z_prev + w - z) * q + exp(k - z)
output:
  - m = maximum(z_prev, u + k)
  - o = (exp(z_prev - m) * p_prev + exp(u + k - m) * v) / (exp(z_prev - m) * q_prev + exp(u + k - m))
""",
    "matrix_params": """
state: {h: [D, N]}
inputs: {x: {dims: [D], heads: HV}, dt: {dims: [D], heads: HV, range: [0, .inf]}, b: [N], c: [N]}
params: {A: {dims: [D, N], per: head, range: [-.inf, 0]}, skip: {dims: [D], default: 1}}
update: h = exp(dt * A) * h + outer(dt * x, b)
output: o = h @ c + skip * x
""",
    "preconditioned": """
state: {S: [K, V], A: {dims: [K], init: 0.5}}
inputs:
  q: [K]
  k: [K]
  v: {dims: [V], heads: HV}
  g: {dims: [], heads: HV, range: [-.inf, 0]}
  beta: {dims: [], heads: HV, range: [0, 1]}
params: {eps: {default: 1e-3}, A_log: {per: head}, dt_bias: {per: head}}
let: {kn: l2norm(silu(k)), decay: -exp(A_log) * softplus(g + dt_bias)}
update:
  - A = exp(decay) * A + beta * (kn * kn)
  - l = log(abs(A) + eps)
  - r = l - mean(l)
  - S = exp(g) * S
  - S = S + beta * outer(kn * exp(-0.5 * r / (1 + abs(r))), v - S.T @ kn)
output: o = S.T @ l2norm(q)
""",
    "not_affine": """
state: {S: [K, V]}
inputs: {q: [K], k: [K], v: [V], g: {dims: [V, K], range: [-.inf, 0]}}
update: S = exp(g).T * tanh(S) + outer(k, v)
output: o = S.T @ q
""",
    "matrix_products": """
state: {S: [K, V], R: [V, P]}
inputs: {q: [K], k: [K], v: [V], p: [P], b: {dims: [], range: [0, 0.9]}}
update:
  - S = b * S + 0.1 * outer(k, v)
  - R = b * R + 0.1 * outer(v, p)
  - W = exp(S) @ R
output: o = W.T @ q + R.T @ (S.T @ q) + (R.T @ S.T) @ k
""",
    "crossed_axes": """
state: {S: [K, V], X: [V, K]}
inputs: {q: [K], k: [K], v: [V], m: {dims: [V, K]}}
update:
  - S = 0.9 * S + 0.1 * outer(k, v)
  - X = 0.5 * X + 0.5 * S.T + 0.1 * m + 0.05 * outer(v, k)
output: o = S.T @ q + X @ k - sum(X) + norm(S, K)
""",
    "state_as_output": """
state: {S: [K, V]}
inputs: {k: [K], v: {dims: [V], heads: HV}, d: {dims: [V, K], range: [0, 1]}}
update: S = d.T * S + outer(k, v)
output: o = (0.5 * S).T
""",
    "whole_state": """
state: {S: [K, V]}
inputs: {q: [K], k: [K], v: {dims: [V], heads: HV}}
update:
  - e = v - S.T @ k
  - u = k - S @ v
  - S = S + 0.1 * outer(k, softmax(e)) + 0.1 * outer(u, v)
output: o = S.T @ softmax(q)
""",
    "shares": """
state: {S: [K, V], z: [V]}
inputs: {q: [K], k: [K], v: {dims: [V], heads: HV}, x: {dims: [V], heads: HV}, c: {dims: [], heads: HV}}
update:
  - z = 0.5 * z + x
  - S = 0.5 * S
  - S = S + 0.1 * outer(k - S @ v, v)
output:
  - y = -(S.T @ q) * c
  - o = (2 * y + x) / (1 + c * c) - sum(outer(q, x), K) + z + 1
""",
    "steps": """
state: {S: [K, V]}
steps: {n: num_steps, default: 3}
inputs:
  q: [K]
  k: {dims: [K], per: step}
  v: {dims: [V], per: step, heads: HV}
  b: {dims: [], per: step, range: [0, 1]}
  w: {dims: [V], heads: HV}
let: {kn: l2norm(k)}
update:
  - repeat: n
    do:
      - e = v - S.T @ kn
      - S = S + b * outer(kn, e) + 0.1 * S_prev / n
  - S = S + 0.01 * outer(q, w)
output: o = (S + 0.5 * S_prev).T @ q
""",
    "scalars": """
state: {s: [], m: {dims: [], init: -.inf}}
inputs: {x: {dims: [], heads: HV}, g: {dims: [], heads: HV, range: [-.inf, 0]}}
update:
  - m = maximum(m, x)
  - s = exp(g) * s + x
output: o = s + m * (head + 1) / HV
""",
    "functions": """
state: {S: [K, V], z: {dims: [K], init: 1}}
inputs: {q: [K], k: [K], v: {dims: [V], heads: HV}}
let:
  a: sigmoid(k) + log1p(abs(k)) + expm1(k) + rsqrt(1 + k * k) + sqrt(abs(k)) + sign(k) + logsigmoid(k) + relu(k)
  c: clamp(k, -0.3, 0.4) + minimum(k, 0.2) + abs(k) ** 1.5 + k ** 3 + 2 ** k + 3 ** k + (1 + k * k) ** -1
  l: log(abs(k))
update:
  - z = 0.5 * z + a
  - S = 0.3 * sigmoid(S) + outer(tanh(a) * c, v)
output:
  - r = sum(sigmoid(1 / (q * q))) + sum(z) + sum(maximum(l, -5)) + norm(exp(z)) + norm(l) + sum(a)
  - o = S.T @ (q + 0.001 * clamp(1 / k, -10, 10)) + mean(c) * v + r
""",
    "log_state": """
state: {z: {dims: [K], init: -.inf}, S: [K, V]}
inputs: {l: {dims: [K], range: [-.inf, 0]}, v: [V]}
update:
  - z = logaddexp(z - 0.1, l)
  - S = outer(exp(l), v) + 0.5 * S
output: o = S.T @ exp(z - logaddexp(z, 0)) + sum(exp(z))
""",
    "names": """
state: {x: [K_mask, V], row_: [K_mask]}
inputs: {K_index: [K_mask], V_index: [V], x_initial: [V], x_final: {dims: [V], heads: HV}}
update:
  - row_ = 0.5 * row_ + K_index
  - x_fixed = 0.1 * x_initial
  - x = 0.5 * x + outer(row_, V_index) + outer(K_index, x_fixed)
output: o = x.T @ K_index + x_final
""",
}


_OF_VERSION_2 = {
    "angles": """
state: {S: [K, V]}
inputs: {q: [K], k: [K], v: {dims: [V], heads: HV}, a: [K]}
let: {turns: fraction(a), whole: floor(4 * a)}
update: S = 0.9 * S + outer(k * cos(6.2831853 * turns), v)
output: o = S.T @ (q * sin(6.2831853 * turns) + 0.1 * whole)
""",
    "turned": """
dims: {R: K / 4, P: K / 2, K2: K}
state: {S: [K, V]}
inputs: {q: [K], k: [K], v: {dims: [V], heads: HV}, a: [R], b: {dims: [P], heads: HV}, w: [K2]}
update: S = 0.9 * S + outer(rotate(k + 0.1 * over(w, K), a), v)
output: o = S.T @ rotate_half(q * cos(0.1 * index(K)), b)
""",
}

ODD = {
    name: f"flagen: {version}\nname: {name}\n{text}"
    for version, bodies in ((1, _BODIES), (2, _OF_VERSION_2))
    for name, text in bodies.items()
}


@dataclass(frozen=True)
class Package:
    """A package built into a directory of the tests and imported from there."""

    spec: Spec
    naive: ModuleType
    fused: ModuleType
    kernels: ModuleType


def build(text: str, directory: Path) -> Package:
    """Build the spec in `text`, all the way through the pipeline, into a package below `directory`."""
    spec = parse_spec(text)
    package = packages.kept(packages.build(spec), directory)
    naive, fused, kernels = (
        importlib.import_module(f"{package.__name__}.{module}")
        for module in ("naive_recurrent", "fused_recurrent", "fused_recurrent_kernels")
    )
    return Package(spec, naive, fused, kernels)


SIZES = (20, 12, 9)


@dataclass(frozen=True)
class Call:
    """Arguments of one call, and the functions to hand them to."""

    package: Package
    positional: tuple[Tensor, ...]
    keyword: dict[str, object]

    def naive(self) -> list[Tensor]:
        """Output and final states of the definition, in float32 or better on the same values."""
        positional = [x.float() for x in self.positional]
        keyword = {name: _widened(value) for name, value in self.keyword.items()}
        function = getattr(self.package.naive, f"naive_recurrent_{self.package.spec.name}")
        return _flat(function(*positional, **keyword, output_final_state=True))

    def fused(self) -> list[Tensor]:
        function = getattr(self.package.fused, f"fused_recurrent_{self.package.spec.name}")
        with torch.no_grad():
            return _flat(function(*self.positional, **self.keyword, output_final_state=True))


def make_call(
    package: Package,
    *,
    lengths: tuple[int, ...] | None = None,
    B: int = 2,
    T: int = 7,
    H: int = 2,
    groups: int = 2,
    n: int = 2,
    dtype: torch.dtype = torch.float32,
    initial: bool = True,
    seed: int = 0,
) -> Call:
    """A call with random arguments; `lengths` packs sequences of these lengths."""
    spec, generator = package.spec, torch.Generator().manual_seed(seed)
    sizes = dict(zip(spec.dims, itertools.cycle(SIZES)))
    sizes = fitting(spec, {**sizes, "H": H, "HV": H * groups if spec.has_value_heads else H})
    runs = B if lengths is None else len(lengths)
    B, T = (B, T) if lengths is None else (1, sum(lengths))
    HV = H * groups if spec.has_value_heads else H
    H = H if any(decl.heads == "H" for decl in spec.inputs) else HV

    def sample(shape: tuple[int, ...], interval: Interval) -> Tensor:
        unit = torch.rand(shape, generator=generator)
        if math.isinf(interval.low) and math.isinf(interval.high):
            return torch.randn(shape, generator=generator) / 2
        if math.isinf(interval.low):
            return interval.high - 2 * unit
        return interval.low + (2 if math.isinf(interval.high) else interval.high - interval.low) * unit

    positional, keyword = [], {}
    for decl in spec.inputs:
        rows = T * n if decl.per == "step" else T
        heads = H if decl.heads == "H" else HV
        positional.append(sample((B, rows, heads, *(sizes[d] for d in decl.dims)), decl.range).to(dtype))
    for param in spec.params:
        if param.is_tensor and param.default is None:
            shape = (*((HV,) if param.per_head else ()), *(sizes[d] for d in param.dims))
            positional.append(sample(shape, param.range).to(dtype))
    if spec.steps is not None:
        keyword[spec.steps.argument] = n
    if lengths is not None:
        keyword["cu_seqlens"] = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    if initial:
        states = tuple(sample((runs, HV, *(sizes[d] for d in s.dims)), Interval()) for s in spec.states)
        keyword["initial_state"] = states[0] if len(states) == 1 else states
    return Call(package, tuple(positional), keyword)


def error(expected: Tensor, got: Tensor) -> float:
    """RMS of the difference over that of what is expected, where that is finite; infinite where finiteness differs."""
    assert expected.shape == got.shape
    finite = expected.isfinite()
    if not torch.equal(finite, got.isfinite()) or not torch.equal(expected[~finite], got[~finite].to(expected.dtype)):
        return math.inf
    expected, got = expected[finite].double(), got[finite].double()
    if expected.numel() == 0:
        return 0.0
    return ((expected - got).square().mean().sqrt() / expected.square().mean().sqrt().clamp_min(1e-6)).item()


def _flat(result: tuple[Tensor, Tensor | tuple[Tensor, ...]]) -> list[Tensor]:
    output, final = result
    return [output, *(final if isinstance(final, tuple) else (final,))]


def _widened(value: object) -> object:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
