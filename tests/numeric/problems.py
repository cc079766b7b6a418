"""Problems to run a variant on: which shapes, which numbers, and what is compared.

The shapes of a variant's arguments come from its spec; the ranges its numbers are drawn from are in `VARIANTS`.
"""

from __future__ import annotations

import importlib
import math
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize, softplus

from flagen.spec import load_spec
from flagen.spec.model import Input, Param, Spec
from flagen.spec.model import State as SpecState
from flagen.spec.sizes import fitting
from tests.margins import beyond
from tests.phases import compared
from tests.specs import OPERATORS

ROOT = Path(__file__).parents[2]
State = Tensor | tuple[Tensor, ...]
NAMES = list(OPERATORS)
FORMS = ("naive_recurrent", "naive_chunk", "chunk", "fused_recurrent")

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


def gram(x: Tensor) -> Tensor:
    """What the outer products of some keys with themselves add up to: what reads it by a vector twice is positive."""
    return x @ x.mT


def below(x: Tensor) -> Tensor:
    """Biases of forget gates that forget little by themselves."""
    return x - 2


def negative(x: Tensor) -> Tensor:
    return -softplus(x)


def counts(x: Tensor) -> Tensor:
    """How many tokens came before: the same for all heads of a sequence."""
    return (3 * x[..., :1].abs()).floor().expand(x.shape).clone()


SHORT_BATCHES = {"mini_batch_size": 4, "eps": 0.3}
"""Several mini-batches within a chunk; and a layer norm that multiplies what it is given, and its rounding, by no more
than 2, for what is trained on itself for 200 tokens forgets no error."""


def second_moment(x: Tensor) -> Tensor:
    """Symmetric and positive definite."""
    return x @ x.mT / (2 * x.shape[-1])


@dataclass(frozen=True)
class Variant:
    """How a variant's arguments and first states are drawn (standard normal unless told), and scalars: those that it
    requires, or others for good problems.

    `ends` are the extremes to test where those of the declared range cannot all be met at once. `log_weight` is the
    input that says how much a token weighs in a running log-sum-exp: nothing at -inf. `gates` are decays of channels
    and angles of pairs of them: their gradients are those of what reads less those of what writes, added up.
    """

    samplers: Mapping[str, Sampler] = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)
    ends: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    log_weight: str | None = None
    gates: Collection[str] = ()


def _variant(
    scalars: Mapping[str, float] | None = None,
    ends: Mapping[str, tuple[float, float]] | None = None,
    log_weight: str | None = None,
    gates: str = "",
    **samplers: Sampler,
) -> Variant:
    return Variant(samplers, scalars or {}, ends or {}, log_weight, gates.split())


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
    "momentum_delta_rule": _variant(
        k=unit, p=half_unit, log_alpha=log_decay, log_mu=log_decay, beta=uniform(0, 1), eta=uniform(0, 1)
    ),
    "mesa_net": _variant(
        ends={"lamb": (0.25, 8)}, k=unit, g=log_decay, beta=uniform(0, 1), lamb=uniform(0.5, 1.5), A=second_moment
    ),
    "iplr": _variant(a=half_unit, b=half_unit),
    "dplr": _variant(a=unit, b=half_unit, gk=log_decay),
    "rwkv7": _variant(w=uniform(-0.6065, 0), a=half_unit, b=half_unit),
    "oja": _variant(v=unit, g=log_decay, beta=uniform(0, 1)),
    "linear_attn_normalized": _variant(ends={"q": (0, 4), "k": (0, 4)}, q=softplus, k=softplus, z=softplus),
    # Weights are at least a half, or squares of scores, which may be next to nothing: `eps` is not.
    "based": _variant(z0=lambda x: 2 + x.square(), z1=lambda x: 0.1 * x, z2=gram),
    "rebased": _variant({"eps": 1}, z=gram),
    "power_attn": _variant({"eps": 1}, z=gram, g=log_decay),
    "lightnet": _variant(log_weight="k"),
    "gsa": _variant(gates="g", g=log_decay),
    "abc_attn": _variant(log_weight="s"),
    "precond_gated_delta_rule": _variant(
        k=unit, g=log_decay, beta=uniform(0, 1), ga=log_decay, ba=uniform(0, 1), A=softplus
    ),
    "mlstm": _variant(log_weight="i"),
    "slstm": _variant(Rz=half_unit, Ri=half_unit, Rf=half_unit, Rg=half_unit, n=softplus),
    "rg_lru": _variant(Lambda=below),
    "short_convolution": _variant(),
    "token_shift": _variant(mix=uniform(0, 1)),
    "mamba3": _variant(ends={"dt": (0, 20)}, gates="angles", adt=log_decay, dt=softplus, phi=uniform(0, 1)),
    "mamba3_mimo": _variant(ends={"dt": (0, 8)}, adt=log_decay, dt=softplus, phi=uniform(0, 1)),
    "cyfa": _variant(
        {"q_norm_eps": 1e-5, "k_norm_eps": 1e-5}, g=log_decay, beta=uniform(0, 1), readout=unit, clock=uniform(0, 1)
    ),
    "ttt_linear": _variant(
        SHORT_BATCHES, ends={"eta": (0, 1)}, k=unit, eta=uniform(0, 0.5), eta_1=uniform(0, 0.5), position=counts
    ),
    "titans_linear": _variant(
        SHORT_BATCHES,
        ends={"theta": (0, 0.1), "eta": (0, 0.5)},
        k=unit,
        theta=uniform(0, 0.05),
        alpha=uniform(0.1, 0.5),
        eta=uniform(0, 0.5),
        position=counts,
    ),
    "log_linear_attn": _variant(g=log_decay, position=counts),
    "log_linear_gated_delta_rule": _variant(k=unit, g=log_decay, beta=uniform(0, 1), position=counts),
    "precond_kda": _variant(k=unit, g=log_decay, beta=uniform(0, 1), ga=log_decay, ba=uniform(0, 1), A=softplus),
    "hgrn": _variant(gates="g", g=log_decay),
    "rwkv4": _variant(log_weight="k", gates="w", w=log_decay),
    "mamba": _variant(ends={"dt": (0, 20), "A": (-30, 0)}, gates="dt A", dt=softplus, A=negative),
    # With the front ends of layers: additive and gated ones, then scans.
    "linear_attention": _variant({"curve": 1, "line": 0, "norm_q": 1, "norm_k": 1}),
    "gated_linear_attention": _variant({"normalizer": 2, "lowest": -0.8}),
    "simple_gated_linear_attention": _variant({"normalizer": 2}),
    "hgrn2_attention": _variant(floor=negative),
    "rwkv6_attention": _variant(),
    "rwkv7_attention": _variant(),
    "mamba2_layer": _variant({"least": 0.1, "most": 2}),
    "log_linear_mamba2": _variant(position=counts),
    "mamba3_layer": _variant(phi=uniform(0, 1)),
    "lightnet_attention": _variant(log_weight="k"),
    "griffin": _variant(Lambda=below, seen=uniform(0, 1)),
    "hgrn_attention": _variant(gates="f", floor=negative),
    "mamba_layer": _variant(gates="dt A_log"),
    # With the front ends of layers: deltas, then slots.
    "delta_net": _variant(),
    "gated_deltanet": _variant(dt_bias=below),
    "gated_deltanet2": _variant(dt_bias=below),
    "gated_deltaproduct": _variant(dt_bias=below),
    "kimi_delta_attention": _variant(dt_bias=below),
    "comba_layer": _variant(dt_bias=below),
    "precond_gated_deltanet": _variant(dt_bias=below, dt_bias_atk=below, A=softplus),
    "precond_kimi_delta_attention": _variant(dt_bias=below, dt_bias_atk=below, A=softplus),
    "mesa_net_layer": _variant(A=second_moment),
    "mlstm_layer": _variant({"cap": 3}),
    "momentum_deltanet": _variant({"lowest": -2}, dt_bias=below, mu_bias=below, log_factor=below),
    "gated_slot_attention": _variant(),
    "abc_attention": _variant(),
    "cyclic_flow_attention": _variant(dt_bias=below, readout=unit, clock=uniform(0, 1)),
}


@cache
def spec_of(name: str) -> Spec:
    return load_spec(ROOT / "specs" / f"{name}.yaml")


def package(name: str) -> ModuleType:
    return importlib.import_module(f"generated.{name}")


def form(kind: str, name: str) -> Callable[..., tuple[Tensor, State | None]]:
    """The generated function `kind` of a variant, one of FORMS."""
    return getattr(package(name), f"{kind}_{name}")


def with_form(kind: str) -> list[str]:
    """The variants that have a generated function of that kind."""
    return [name for name in NAMES if hasattr(package(name), f"{kind}_{name}")]


SLOTTED = [name for name in NAMES if len({dim for state in spec_of(name).states for dim in state.dims}) > 2]
"""The variants with a dim between those of keys and of values."""


def forms(*kinds: str) -> list[tuple[str, str]]:
    """Every (kind, name) that there is, of these kinds."""
    return [(kind, name) for kind in kinds for name in with_form(kind)]


# --------------------------------------------------------------------------------------------------------------- shapes


ROWS = 3
"""How many rows a token has, where inputs have several."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a problem. K and V are the first and last dim of the states, M one between them (slots), n the
    micro-steps where there are any.

    `lengths` packs sequences along T (B is 1 then) with offsets of type `offsets`; otherwise there are B of length T.
    """

    T: int = 15
    K: int = 16
    V: int = 12
    M: int = 10
    B: int = 1
    H: int = 1
    groups: int = 1
    n: int = 2
    lengths: tuple[int, ...] | None = None
    offsets: torch.dtype = torch.int64

    def __str__(self) -> str:
        rows = f"T{self.T}" if self.lengths is None else "len" + "_".join(map(str, self.lengths))
        slots = "" if self.M == Shape.M else f"-M{self.M}"
        return f"B{self.B}-{rows}-H{self.H}x{self.groups}-K{self.K}-V{self.V}{slots}-n{self.n}"

    @property
    def tokens(self) -> int:
        return self.T if self.lengths is None else sum(self.lengths)

    @property
    def sequences(self) -> int:
        return self.B if self.lengths is None else len(self.lengths)

    def sizes(self, spec: Spec) -> dict[str, int]:
        """The size of each dim of a spec's states, matrices first, M of a dim that no state has, `ROWS` of one of rows;
        and those that follow from them."""
        following = {entry.name for entry in spec.following}
        states = sorted(spec.states, key=lambda state: -len(state.dims))
        rows = dict.fromkeys(spec.row_dims, ROWS)
        apart = {*following, *rows}
        first, *others = dict.fromkeys(dim for state in states for dim in state.dims if dim not in apart)
        *between, last = others or [None]
        keys = self.K if len(states[0].dims) < 3 else math.isqrt(self.K)  # About as many pairs of keys.
        sizes = {first: keys, **dict.fromkeys(between, self.M), last: self.V}
        known = {dim: size for dim, size in sizes.items() if dim is not None}
        known |= rows
        known |= {dim: self.M for dim in spec.dims if dim not in (*known, *following)}
        fit = fitting(spec, {**known, "H": self.H, "HV": self.H * self.groups})
        return {dim: fit[dim] for dim in (*known, *following)}


@dataclass(frozen=True)
class Problem:
    """One call's arguments: tensors in signature order, then scalars, and what is carried between calls."""

    name: str
    tensors: Mapping[str, Tensor]
    scalars: Mapping[str, float]
    initial_state: State | None
    cu_seqlens: Tensor | None

    @property
    def leaves(self) -> dict[str, Tensor]:
        """Everything that can be differentiated: the tensors, then each state that the call starts from."""
        return {**self.tensors, **named_states(self.name, "initial", self.initial_state)}

    @property
    def optional(self) -> set[str]:
        """Tensors that go by keyword, because they have a default."""
        return {param.name for param in spec_of(self.name).params if param.is_tensor and param.default is not None}

    def call(self, function: Callable, **keywords: object) -> tuple[Tensor, State | None]:
        """Call `function` as a user would: inputs by position, everything else by keyword."""
        positional = [x for name, x in self.tensors.items() if name not in self.optional]
        optional = {name: x for name, x in self.tensors.items() if name in self.optional}
        carried = {"initial_state": self.initial_state, "output_final_state": True, "cu_seqlens": self.cu_seqlens}
        return function(*positional, **{**optional, **self.scalars, **carried, **keywords})

    def map(self, function: Callable[[str, Tensor], Tensor]) -> Problem:
        """The problem with `function(name, tensor)` in place of every floating tensor."""
        return self.with_leaves({name: function(name, x) for name, x in self.leaves.items()})

    def to(self, *args: object) -> Problem:
        """On another device or in another dtype; cu_seqlens keeps its dtype, the state stays at least float32."""
        offsets = self.cu_seqlens
        if offsets is not None:
            offsets = offsets.to(*(arg for arg in args if not isinstance(arg, torch.dtype)))

        def move(name: str, x: Tensor) -> Tensor:
            moved = x.to(*args)
            low = name not in self.tensors and moved.dtype.itemsize < 4
            return moved.float() if low else moved

        return replace(self.map(move), cu_seqlens=offsets)

    def with_tensors(self, **tensors: Tensor) -> Problem:
        return replace(self, tensors={**self.tensors, **tensors})

    def with_leaves(self, leaves: Mapping[str, Tensor]) -> Problem:
        """The problem with other tensors and first states, all of them, by the names of `leaves`."""
        states = tuple(x for name, x in leaves.items() if name not in self.tensors)
        tensors = {name: leaves[name] for name in self.tensors}
        return replace(self, tensors=tensors, initial_state=as_state(states))


def make(name: str, shape: Shape, *, state: bool = True, seed: int = 0, **scalars: float) -> Problem:
    """A random float64 problem of a variant; the same one for the same arguments, in any process."""
    spec, variant, dims = spec_of(name), VARIANTS[name], shape.sizes(spec_of(name))
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {shape} {seed}".encode()))
    heads = {"H": shape.H, "HV": shape.H * (shape.groups if spec.has_value_heads else 1)}

    def sample(decl: Input | Param | SpecState, *leading: int) -> Tensor:
        normal = torch.randn(*leading, *(dims[dim] for dim in decl.dims), generator=generator, dtype=torch.float64)
        return variant.samplers.get(decl.name, lambda x: x)(normal)

    def rows(decl: Input) -> int:
        return shape.tokens * (shape.n if decl.per == "step" else 1)

    tensors = {decl.name: sample(decl, shape.B, rows(decl), heads[decl.heads]) for decl in spec.inputs}
    # Those without a default first: the order of the signature.
    for param in sorted((p for p in spec.params if p.is_tensor), key=lambda p: p.default is not None):
        tensors[param.name] = sample(param, *((heads["HV"],) if param.per_head else ()))

    steps = {} if spec.steps is None else {spec.steps.argument: shape.n}
    states = tuple(sample(decl, shape.sequences, heads["HV"]) for decl in spec.states)
    cu_seqlens = None
    if shape.lengths is not None:
        ends = [sum(shape.lengths[:i]) for i in range(len(shape.lengths) + 1)]
        cu_seqlens = torch.tensor(ends, dtype=shape.offsets)
    return Problem(
        name, tensors, {**variant.scalars, **steps, **scalars}, as_state(states) if state else None, cu_seqlens
    )


# -------------------------------------------------------------------------------------------------------------- results


def as_state(states: tuple[Tensor, ...]) -> State | None:
    """States as a call takes and returns them: one as it is, several as a tuple."""
    return None if not states else states[0] if len(states) == 1 else states


def state_names(name: str, when: str) -> list[str]:
    """What a variant's states are called among arguments (`initial`) or results (`final`)."""
    states = spec_of(name).states
    return [f"{when}_state"] if len(states) == 1 else [f"{state.name}_{when}" for state in states]


def named_states(name: str, when: str, state: State | None) -> dict[str, Tensor]:
    """The tensors of a state by their names, none where there is no state."""
    if state is None:
        return {}
    states = (state,) if isinstance(state, Tensor) else state
    return dict(zip(state_names(name, when), states, strict=True))


def named_results(name: str, o: Tensor, final_state: State | None) -> dict[str, Tensor]:
    """What a call returned, by name, as it is compared."""
    if final_state is None:
        return {"o": o}
    finals = (final_state,) if isinstance(final_state, Tensor) else final_state
    return {"o": o, **named_states(name, "final", compared(spec_of(name), finals))}


def evaluate(
    function: Callable, problem: Problem, *, wrt: Iterable[str] | None = None, **keywords: object
) -> dict[str, Tensor]:
    """`o`, each final state, and the gradient of each tensor by its name (`d q`), under random cotangents of them all.

    `wrt` names the tensors to differentiate; None is all of them, () runs without a graph.
    """
    wanted = set(problem.leaves if wrt is None else wrt)
    problem = problem.map(lambda name, x: x.detach().requires_grad_(name in wanted))
    results = named_results(problem.name, *problem.call(function, **keywords))
    leaves = {name: x for name, x in problem.leaves.items() if x.requires_grad}
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
    """rms(reference - got) / rms(reference), `floor` standing in for a reference of zero. NaN where either has one, or
    only one an infinity; infinities that both have count for nothing."""
    if reference.shape != got.shape:
        raise AssertionError(f"shape {tuple(got.shape)}, expected {tuple(reference.shape)}")
    if not reference.numel():
        return 0.0
    reference, got = reference.double(), got.double()
    same = reference.isinf() & (reference == got)
    reference, got = reference.masked_fill(same, 0), got.masked_fill(same, 0)
    return ((reference - got).square().mean().sqrt() / reference.square().mean().sqrt().clamp(min=floor)).item()


def assert_close(reference: Mapping[str, Tensor], got: Mapping[str, Tensor], bound: float, **bounds: float) -> None:
    """Every tensor of `reference` is met within `bound`; `gradients=` sets another bound for those."""
    assert list(reference) == list(got)
    failures = []
    for name, expected in reference.items():
        limit = bounds.get("gradients", bound) if name.startswith("d ") else bound
        failures += beyond(name, rms_ratio(expected, got[name]), limit)
    assert not failures, "; ".join(failures)
