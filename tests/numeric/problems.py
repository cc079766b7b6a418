"""Problems to run a variant on: which shapes, which numbers, and what is compared.

The shapes of a variant's arguments come from its spec; the ranges its numbers are drawn from are in `VARIANTS`.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize, softplus

from flagen.spec import load_spec
from flagen.spec.model import Input, Param, Spec

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "specs").glob("*.yaml"))

# ------------------------------------------------------------------------------------------------------------- variants

Sampler = Callable[[Tensor], Tensor]
"""From standard normal numbers to an argument's, in the same shape."""


def unit(x: Tensor) -> Tensor:
    return normalize(x, dim=-1)


def half_unit(x: Tensor) -> Tensor:
    return 0.5 * unit(x)


def log_decay(x: Tensor) -> Tensor:
    """Log decays that forget within some ten tokens, with a few channels near 0 and a few near -2."""
    return 0.5 * logsigmoid(2 * x + 1)


def uniform(low: float, high: float) -> Sampler:
    return lambda x: low + (high - low) * 0.5 * (1 + torch.erf(x / 2**0.5))


def negative(x: Tensor) -> Tensor:
    return -softplus(x)


@dataclass(frozen=True)
class Variant:
    """How a variant's arguments are drawn (standard normal unless told), and the scalars it requires.

    `ends` are the extremes to test where those of the declared range cannot all be met at once.
    """

    samplers: Mapping[str, Sampler] = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)
    ends: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def _variant(
    scalars: Mapping[str, float] | None = None,
    ends: Mapping[str, tuple[float, float]] | None = None,
    **samplers: Sampler,
) -> Variant:
    return Variant(samplers, scalars or {}, ends or {})


VARIANTS = {
    "linear_attn": _variant(),
    "retention": _variant(),
    "lightning_attn": _variant({"layer_idx": 3, "num_layers": 12}),
    "simple_gla": _variant(g=log_decay),
    # No step of zero under a rate of -inf: 0 * inf is not a number in any form.
    "mamba2": _variant(ends={"dt": (0, 20), "A": (-30, 0)}, dt=softplus, A=negative),
    "gla": _variant(g=log_decay),
    "hgrn2": _variant(g=log_decay),
    "rwkv6": _variant(w=log_decay),
    "delta_rule": _variant(k=unit, beta=uniform(0, 1)),
    "gated_delta_rule": _variant(k=unit, g=log_decay, beta=uniform(0, 1)),
    "gated_delta_product": _variant(k=unit, g=log_decay, beta=uniform(0, 2)),
    "delta_product": _variant(k=unit, beta=uniform(0, 2)),
    "kda": _variant(k=unit, g=log_decay, beta=uniform(0, 1)),
    "gdn2": _variant(k=unit, g=log_decay, b=uniform(0, 1), w=uniform(0, 1)),
    "comba": _variant(k=unit, p=half_unit, g=log_decay, beta=uniform(0, 1)),
    "iplr": _variant(a=half_unit, b=half_unit),
    "dplr": _variant(a=unit, b=half_unit, gk=log_decay),
    "rwkv7": _variant(w=uniform(-0.6065, 0), a=half_unit, b=half_unit),
    "oja": _variant(v=unit, g=log_decay, beta=uniform(0, 1)),
}


@cache
def spec_of(name: str) -> Spec:
    return load_spec(ROOT / "specs" / f"{name}.yaml")


def package(name: str) -> ModuleType:
    return importlib.import_module(f"generated.{name}")


def form(kind: str, name: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The generated function `kind` of a variant: naive_recurrent, naive_chunk or fused_recurrent."""
    return getattr(package(name), f"{kind}_{name}")


# --------------------------------------------------------------------------------------------------------------- shapes


@dataclass(frozen=True)
class Shape:
    """The sizes of a problem. K and V are the first and second dim of the state, n the micro-steps where there are any.

    `lengths` packs sequences along T (B is 1 then) with offsets of type `offsets`; otherwise there are B of length T.
    """

    T: int = 15
    K: int = 16
    V: int = 12
    B: int = 1
    H: int = 1
    groups: int = 1
    n: int = 2
    lengths: tuple[int, ...] | None = None
    offsets: torch.dtype = torch.int64

    def __str__(self) -> str:
        rows = f"T{self.T}" if self.lengths is None else "len" + "_".join(map(str, self.lengths))
        return f"B{self.B}-{rows}-H{self.H}x{self.groups}-K{self.K}-V{self.V}-n{self.n}"

    @property
    def tokens(self) -> int:
        return self.T if self.lengths is None else sum(self.lengths)

    @property
    def sequences(self) -> int:
        return self.B if self.lengths is None else len(self.lengths)


@dataclass(frozen=True)
class Problem:
    """One call's arguments: tensors in signature order, then scalars, and what is carried between calls."""

    name: str
    tensors: Mapping[str, Tensor]
    scalars: Mapping[str, float]
    initial_state: Tensor | None
    cu_seqlens: Tensor | None

    @property
    def optional(self) -> set[str]:
        """Tensors that go by keyword, because they have a default."""
        return {param.name for param in spec_of(self.name).params if param.is_tensor and param.default is not None}

    def call(self, function: Callable, **keywords: object) -> tuple[Tensor, Tensor | None]:
        """Call `function` as a user would: inputs by position, everything else by keyword."""
        positional = [x for name, x in self.tensors.items() if name not in self.optional]
        optional = {name: x for name, x in self.tensors.items() if name in self.optional}
        carried = {"initial_state": self.initial_state, "output_final_state": True, "cu_seqlens": self.cu_seqlens}
        return function(*positional, **{**optional, **self.scalars, **carried, **keywords})

    def map(self, function: Callable[[str, Tensor], Tensor]) -> Problem:
        """The problem with `function(name, tensor)` in place of every floating tensor."""
        state = None if self.initial_state is None else function("initial_state", self.initial_state)
        return replace(self, tensors={k: function(k, x) for k, x in self.tensors.items()}, initial_state=state)

    def to(self, *args: object) -> Problem:
        """On another device or in another dtype; cu_seqlens keeps its dtype, the state stays at least float32."""
        offsets = self.cu_seqlens
        if offsets is not None:
            offsets = offsets.to(*(arg for arg in args if not isinstance(arg, torch.dtype)))

        def move(name: str, x: Tensor) -> Tensor:
            moved = x.to(*args)
            low = name == "initial_state" and moved.dtype.itemsize < 4
            return moved.float() if low else moved

        return replace(self.map(move), cu_seqlens=offsets)

    def with_tensors(self, **tensors: Tensor) -> Problem:
        return replace(self, tensors={**self.tensors, **tensors})


def make(name: str, shape: Shape, *, state: bool = True, seed: int = 0, **scalars: float) -> Problem:
    """A random float64 problem of a variant; the same one for the same arguments, in any process."""
    spec, variant = spec_of(name), VARIANTS[name]
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {shape} {seed}".encode()))
    dims = dict(zip(spec.states[0].dims, (shape.K, shape.V), strict=True))
    heads = {"H": shape.H, "HV": shape.H * shape.groups}

    def sample(decl: Input | Param, *leading: int) -> Tensor:
        normal = torch.randn(*leading, *(dims[dim] for dim in decl.dims), generator=generator, dtype=torch.float64)
        return variant.samplers.get(decl.name, lambda x: x)(normal)

    def rows(decl: Input) -> int:
        return shape.tokens * (shape.n if decl.per == "step" else 1)

    tensors = {decl.name: sample(decl, shape.B, rows(decl), heads[decl.heads]) for decl in spec.inputs}
    # Those without a default first: the order of the signature.
    for param in sorted((p for p in spec.params if p.is_tensor), key=lambda p: p.default is not None):
        tensors[param.name] = sample(param, *((heads["HV"],) if param.per_head else ()))

    steps = {} if spec.steps is None else {spec.steps.argument: shape.n}
    S = torch.randn(shape.sequences, heads["HV"], shape.K, shape.V, generator=generator, dtype=torch.float64)
    cu_seqlens = None
    if shape.lengths is not None:
        ends = [sum(shape.lengths[:i]) for i in range(len(shape.lengths) + 1)]
        cu_seqlens = torch.tensor(ends, dtype=shape.offsets)
    return Problem(name, tensors, {**variant.scalars, **steps, **scalars}, S if state else None, cu_seqlens)


# -------------------------------------------------------------------------------------------------------------- results


def evaluate(
    function: Callable, problem: Problem, *, wrt: Iterable[str] | None = None, **keywords: object
) -> dict[str, Tensor]:
    """`o`, `final_state`, and the gradient of each tensor by its name (`d q`), under random cotangents of both outputs.

    `wrt` names the tensors to differentiate; None is all of them, () runs without a graph.
    """
    wanted = {*problem.tensors, "initial_state"} if wrt is None else set(wrt)
    problem = problem.map(lambda name, x: x.detach().requires_grad_(name in wanted))
    o, final_state = problem.call(function, **keywords)
    results = {"o": o, "final_state": final_state}
    results = {name: x for name, x in results.items() if x is not None}

    leaves = {**problem.tensors, "initial_state": problem.initial_state}
    leaves = {name: x for name, x in leaves.items() if x is not None and x.requires_grad}
    loss = sum((x.double() * cotangent(name, x)).sum() for name, x in results.items())
    if leaves and loss.requires_grad:
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    else:
        gradients = [torch.zeros_like(x) for x in leaves.values()]
    results |= {f"d {name}": x for name, x in zip(leaves, gradients, strict=True)}
    return {name: x.detach() for name, x in results.items()}


def cotangent(name: str, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {tuple(like.shape)}".encode()))
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device)


def rms_ratio(reference: Tensor, got: Tensor, floor: float = 1e-12) -> float:
    """rms(reference - got) / rms(reference). NaN where either has one; `floor` stands in for a reference of zero."""
    if reference.shape != got.shape:
        raise AssertionError(f"shape {tuple(got.shape)}, expected {tuple(reference.shape)}")
    if not reference.numel():
        return 0.0
    reference, got = reference.double(), got.double()
    return ((reference - got).square().mean().sqrt() / reference.square().mean().sqrt().clamp(min=floor)).item()


def assert_close(reference: Mapping[str, Tensor], got: Mapping[str, Tensor], bound: float, **bounds: float) -> None:
    """Every tensor of `reference` is met within `bound`; `gradients=` sets another bound for those."""
    assert list(reference) == list(got)
    failures = []
    for name, expected in reference.items():
        limit = bounds.get("gradients", bound) if name.startswith("d ") else bound
        ratio = rms_ratio(expected, got[name])
        # Not `ratio > limit`: a NaN has to fail.
        if not ratio <= limit:
            failures.append(f"{name}: RMS ratio {ratio:.2e}, bound {limit:.0e}")
    assert not failures, "; ".join(failures)
