# ruff: noqa: E402
"""Records what fla's real layers and `peers` give, in `data/`: run when cases of layers change, where all is installed.

    PYTHONPATH=. TRITON_INTERPRET=1 python -m tests.layers.record [PACKAGE...]

Recorded with flash-linear-attention 0.6.0 (fla-core), transformers and einops installed beside torch, on a CPU: fla's
kernels run in Triton's interpreter, repaired as for our own. No test needs any of that. Where fla is wrong, what is
recorded is what it gives in a way in which it is right; `ALONE` and `STEPWISE` say where and why.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import sys
import textwrap
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when kernels are decorated.
warnings.filterwarnings("ignore")

from flagen.triton_cpu import repair

repair()  # Before fla looks at Triton.

import fla.layers
import fla.layers.abc
import fla.layers.cyfa
import fla.layers.delta_net
import fla.layers.gated_deltanet
import fla.layers.gated_deltaproduct
import fla.layers.hgrn
import fla.layers.mamba3
import fla.layers.mesa_net
import fla.layers.momentum_deltanet
import fla.layers.simple_gla
import fla.ops.lightnet.chunk
import fla.ops.lightnet.fused_recurrent
import numpy as np
import torch
from fla.models.utils import Cache
from fla.ops.abc.chunk import chunk_abc
from fla.ops.abc.naive import naive_recurrent_abc
from fla.ops.cyfa import naive_recurrent_cyfa
from fla.ops.gated_delta_rule import chunk_gated_delta_rule
from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
from fla.ops.momentum_delta_rule import fused_recurrent_momentum_delta_rule
from torch import Tensor, nn

from tests.layers import peers
from tests.layers.cases import LAYERS, Config
from tests.layers.peers import Around
from tests.layers.scenarios import AsOurs, scenarios
from tests.layers.solved import eliminated, eliminated_once, l2norm
from tests.numeric.operator_references import mamba3, turned


def additive_gate(
    x: Tensor, initial_state: Tensor | None = None, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, ...]:
    """fla's `fused_additive_gate`: keys divided by their running sum, the logs of its decay, and its last log."""
    spans = [(b, 0, x.shape[1]) for b in range(len(x))]
    if cu_seqlens is not None:
        spans = [(0, start, end) for start, end in pairwise(cu_seqlens.tolist())]
    k, g, last = torch.zeros_like(x), torch.zeros_like(x), []
    for i, (row, start, end) in enumerate(spans):
        z = torch.full_like(x[0, 0], -torch.inf) if initial_state is None else initial_state[i, 0]
        at = (torch.full((end - start,), row), torch.arange(start, end))
        logs = [z]
        for t in range(start, end):
            logs.append(torch.logaddexp(logs[-1], x[row, t]))
        if end > start:
            gates = [torch.zeros_like(z) if z.isinf().all() else logs[0] - logs[1]]
            gates += [before - after for before, after in pairwise(logs[1:])]
            k = k.index_put(at, (x[row, start:end] - torch.stack(logs[1:])).exp())
            g = g.index_put(at, torch.stack(gates))
        last.append(logs[-1][None])
    return k, g, torch.stack(last)


# Of three kernels that the interpreter cannot run: a mask that is a product of numbers, and scans of two values.
fla.layers.hgrn.chunk_hgrn = fla.layers.hgrn.fused_recurrent_hgrn
fla.ops.lightnet.chunk.fused_additive_gate = additive_gate
fla.ops.lightnet.fused_recurrent.fused_additive_gate = additive_gate

DATA = Path(__file__).parent / "data"

ALONE = {
    "hgrn_attention": "refuses cu_seqlens where gradients are wanted",
    "rwkv6_attention": "keeps the last token of the pack as every sequence's",
    "mamba_layer": "ignores cu_seqlens",
    "mamba2_layer": "ignores cu_seqlens",
    "rwkv7_attention": "keeps another's token for a sequence that is empty",
    "simple_gated_linear_attention": "fails where there is a mask and gradients are wanted",
    "cyclic_flow_attention": "has kernels for a GPU alone, and their reference fails of a sequence that is empty",
}
"""Layers that run each sequence of a pack alone, and each without its padding where gradients are wanted."""
AFRESH = {
    "abc_attention": "cannot resume, refuses cu_seqlens, and what is masked adds to the slots all the same",
    "based_linear_attention": "knows neither masks nor packs",
    "griffin": "knows neither masks nor packs",
    "mlstm_layer": "knows neither masks nor packs",
    "log_linear_mamba2": "knows no packs, and its reference keeps nothing",
    "momentum_deltanet": "refuses masks and cu_seqlens",
    "rebased_linear_attention": "knows neither masks nor packs",
}
"""Layers that run each sequence alone without its padding, and all of it again for each further token."""
STEPWISE = {"mamba2_layer": "a prefill takes the heads of a group from all groups in turn; token by token it is right"}


CHUNK = 64
"""Tokens of a chunk of fla's kernels."""


def micro_steps(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, num_householder: int, **more: Any
) -> tuple[Tensor, Tensor]:
    """fla's operator of Gated DeltaProduct, which refuses float32, by its gated delta rule: a token for each step."""
    n, cu_seqlens = num_householder, more.pop("cu_seqlens")

    def of_one(x: Tensor, step: int) -> Tensor:
        steps = [x if i == step else torch.zeros_like(x) for i in range(n)]
        return torch.stack(steps, 2).flatten(1, 2)

    g = torch.zeros_like(beta) if g is None else of_one(g, 0)
    packed = None if cu_seqlens is None else cu_seqlens * n
    o, state = chunk_gated_delta_rule(of_one(q, n - 1), k, v, g, beta, cu_seqlens=packed, **more)
    return o[:, n - 1 :: n], state


def slots(q: Tensor, k: Tensor, v: Tensor, s: Tensor, **more: Any) -> tuple[Tensor, Any]:
    """fla's operator of ABC, but its reference in PyTorch for gradients: in the backward kernel a mask is a product of
    numbers, which the interpreter does not take for one. Of less than a chunk its states are sums, which it has not yet
    divided by the weights of all that was written; here they are, and those are kept beside them."""
    if torch.is_grad_enabled():
        o, state = naive_recurrent_abc(*(x.transpose(1, 2) for x in (q, k, v, s)), **more)
        return o.transpose(1, 2), state
    o, state = chunk_abc(q, k, v, s, **more)
    if state is None:
        return o, None
    z = torch.logsumexp(s, 1)
    return o, (state[0] * torch.exp(-z)[:, :, None, :], state[1] * torch.exp(-z)[..., None], z)


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, A_log: Tensor, dt_bias: Tensor, **more: Any
) -> tuple[Tensor, Tensor]:
    """fla's operator of Gated DeltaNet, but its reference in PyTorch for more than a chunk: with gates evaluated in the
    kernels, gradients of A_log are 2e-4 away from those in float64."""
    if q.shape[1] <= CHUNK:
        return chunk_gated_delta_rule(q, k, v, g, beta, A_log=A_log, dt_bias=dt_bias, **more)  # type: ignore[no-any-return]
    assert more["cu_seqlens"] is None and not more["allow_neg_eigval"] and not more["output_final_state"]
    groups = v.shape[2] // q.shape[2]
    q, k = (l2norm(x).repeat_interleave(groups, 2) for x in (q, k))
    g = -torch.exp(A_log) * torch.nn.functional.softplus(g + dt_bias)
    return naive_recurrent_gated_delta_rule(q, k, v, torch.sigmoid(beta), g)  # type: ignore[no-any-return]


def of_two_matrices(initial_state: Any = None, **more: Any) -> tuple[Tensor, Any]:
    """fla's operator of the momentum delta rule, token by token: by chunks it refuses float32, and adds 1e-6 to beta.
    What it keeps is two matrices here."""
    given = None if initial_state is None else torch.stack(initial_state)
    o, states = fused_recurrent_momentum_delta_rule(initial_state=given, **more)
    return o, None if states is None else tuple(states)


def of_a_circle(checkpoint_level: int = 0, **more: Any) -> tuple[Tensor, Any]:
    """fla's reference in PyTorch of its operator of cyclic flow attention."""
    return naive_recurrent_cyfa(**more)  # type: ignore[no-any-return]


def trapezoid(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    ADT: Tensor,
    DT: Tensor,
    Trap: Tensor,
    Q_bias: Tensor,
    K_bias: Tensor,
    Angles: Tensor,
    D: Tensor,
    Z: Tensor | None,
    return_final_states: bool,
    cu_seqlens: Tensor | None,
    **_: Any,
) -> Any:
    """mamba_ssm's operator of Mamba-3, which needs a GPU, by the recurrence that is written by hand here; it is that of
    mamba_ssm's own reference."""
    rates = (x.transpose(1, 2) for x in (ADT, DT, Trap))
    o, state = mamba3(
        *(Q, K, V, *rates, Angles, Q_bias, K_bias, D), output_final_state=return_final_states, cu_seqlens=cu_seqlens
    )
    o = (o if Z is None else o * torch.nn.functional.silu(Z)).to(V.dtype)
    if state is None:
        return o
    phi, S, k, v = (x.to(V.dtype) for x in state)
    return o, 2 * math.pi * phi, S.transpose(-1, -2), k, v


def turned_once(
    q: Tensor, k: Tensor, angle_state: Tensor, angle_proj: Tensor, dt: Tensor, bias_q: Tensor, bias_k: Tensor, **_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of one token: what it does to queries and keys, [B, 1, H, N], and to the angles."""
    angle = (angle_state + math.pi * torch.tanh(angle_proj) * dt[..., None]) % (2 * math.pi)
    rows = [(x + bias).flatten(0, 2) for x, bias in ((q, bias_q), (k, bias_k))]
    both = [torch.stack([turned(x, phi) for x, phi in zip(each, angle.flatten(0, 1), strict=True)]) for each in rows]
    return both[0].view_as(q), both[1].view_as(k), angle


def written_once(
    ssm_state: Tensor,
    k_state: Tensor,
    v_state: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    x: Tensor,
    dt: Tensor,
    trap: Tensor,
    *_: Tensor,
    out: Tensor,
    z: Tensor | None,
    **__: Any,
) -> None:
    """The same of one token: what it does to the state, and what it reads."""
    now = (trap * dt)[..., None, None] * x[..., None] * B[:, 0, :, None]
    before = ((1 - trap) * dt)[..., None, None] * v_state[..., None] * k_state[:, 0, :, None]
    ssm_state.copy_(torch.exp(A * dt)[..., None, None] * (ssm_state + before) + now)
    o = torch.einsum("bhpn,bhn->bhp", ssm_state, C[:, 0]) + D[:, None] * x
    out.copy_((o if z is None else o * torch.nn.functional.silu(z)).view_as(out))


fla.layers.cyfa.chunk_cyfa = fla.layers.cyfa.fused_recurrent_cyfa = of_a_circle
fla.layers.mesa_net.chunk_mesa_net = eliminated
fla.layers.mesa_net.mesa_net_decoding_one_step = eliminated_once
fla.layers.momentum_deltanet.chunk_momentum_delta_rule = of_two_matrices
fla.layers.momentum_deltanet.fused_recurrent_momentum_delta_rule = of_two_matrices
fla.layers.mamba3.mamba3_siso_combined = trapezoid
fla.layers.mamba3.apply_rotary_qk_inference_fwd = turned_once
fla.layers.mamba3.mamba3_step_fn = written_once
_forward = textwrap.dedent(inspect.getsource(fla.layers.mamba3.Mamba3.forward))
exec(_forward.replace('if "cuda" not in', 'if "" not in'), vars(fla.layers.mamba3))  # It refuses to run without a GPU.
fla.layers.mamba3.Mamba3.forward = fla.layers.mamba3.forward
fla.layers.gated_deltanet.chunk_gated_delta_rule = gated_delta_rule
fla.layers.gated_deltaproduct.chunk_gated_delta_product = micro_steps
fla.layers.abc.chunk_abc = slots
# Its chunk kernels refuse float32.
fla.layers.delta_net.chunk_delta_rule = fla.layers.delta_net.fused_recurrent_delta_rule


class Alone(Around):
    """Of each sequence by itself, what the layer gives; afresh, of all its tokens without padding, from nothing."""

    def __init__(self, layer: nn.Module, afresh: bool) -> None:
        super().__init__(layer)
        self.afresh = afresh

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        cu_seqlens: Tensor | None = None,
        **more: Any,
    ) -> tuple[Any, ...]:
        unpadded = attention_mask is not None and self.training
        if cu_seqlens is None and not self.afresh and not unpadded:
            return self.layer(  # type: ignore[no-any-return]
                x, attention_mask=attention_mask, past_key_values=past_key_values, use_cache=use_cache, **more
            )
        index = self.layer.layer_idx
        whole = x if past_key_values is None else past_key_values.remember(index, x)
        if cu_seqlens is None:
            where = [(b, torch.arange(whole.shape[1])) for b in range(len(whole))]
            if attention_mask is not None:
                where = [(b, at[attention_mask[b] > 0]) for b, at in where]
        else:
            where = [(0, torch.arange(start, end)) for start, end in pairwise(cu_seqlens.tolist())]
        results: list[Tensor] = []
        kept = []
        for row, at in where:
            cache = Cache() if use_cache else None
            if len(at):
                y, _, *returned = self.layer(
                    whole[row : row + 1, at], past_key_values=cache, use_cache=use_cache, **_part(more, row, at)
                )
                found = [y, *returned[1:]]
                results = results or [each.new_zeros(*whole.shape[:2], each.shape[-1]) for each in found]
                place = (torch.full_like(at, row), at)
                results = [r.index_put(place, each[0]) for r, each in zip(results, found, strict=True)]
            kept.append(cache[index] if cache is not None and len(at) else None)
        if past_key_values is not None:
            past_key_values.states[index] = _stacked(kept)
        output, *others = (each[:, whole.shape[1] - x.shape[1] :] for each in results)
        return output, None, past_key_values, *others


def _part(more: dict[str, Any], row: int, at: Tensor) -> dict[str, Any]:
    """Of what is given besides, the part of these tokens: a value of a token has three dims."""
    return {name: x[row : row + 1, at] if x is not None and x.ndim == 3 else x for name, x in more.items()}


class Memory:
    """A cache for `Alone`: what the layers were given, and the states that they were left with."""

    def __init__(self) -> None:
        self.given: dict[int, Tensor] = {}
        self.states: dict[int, dict[str, Any]] = {}

    def remember(self, index: int, x: Tensor) -> Tensor:
        self.given[index] = x if index not in self.given else torch.cat([self.given[index], x], 1)
        return self.given[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.states[index]

    def __len__(self) -> int:
        return len(self.states)

    def get_seq_length(self, index: int = 0) -> int:
        return self.given[index].shape[1] if index in self.given else 0

    def update(self, layer_idx: int, offset: int = 0, **states: Any) -> None:
        raise AssertionError("written by Alone")


class Stepwise(Around):
    """Token by token, from states of zeros."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        self.layer_idx = layer.layer_idx

    def forward(self, x: Tensor, past_key_values: Any = None, use_cache: bool = False, **more: Any) -> tuple[Any, ...]:
        layer, index = self.layer, self.layer.layer_idx
        cache = Cache() if past_key_values is None else past_key_values
        if len(cache) <= index:
            state = torch.zeros(len(x), layer.num_heads, layer.head_dim, layer.ssm_state_size)
            conv_state = torch.zeros(len(x), layer.conv_dim, layer.conv_kernel_size)
            cache.update(layer_idx=index, recurrent_state=state, conv_state=conv_state, offset=0)
        y = [layer(x[:, t : t + 1], past_key_values=cache, use_cache=True)[0] for t in range(x.shape[1])]
        return torch.cat(y, 1), None, past_key_values


def record(package: str) -> None:
    cls = layer_class(package)
    arrays = {}
    for i, config in enumerate(LAYERS[package].configs):
        make, make_cache = makers(package, cls, config)
        for scenario, run in scenarios(make, make_cache, config, whole=i == 0, as_ours=as_ours(package, cls)):
            start = time.perf_counter()
            arrays |= {f"{i}/{scenario}/{name}": each for name, each in run().items()}
            print(f"{package} {i} {scenario} {time.perf_counter() - start:.1f} s", flush=True)
    np.savez_compressed(DATA / f"{package}.npz", **arrays)


def layer_class(package: str) -> type[nn.Module]:
    name = LAYERS[package].class_name
    module = next(module for module in (peers, fla.layers, fla.layers.simple_gla) if hasattr(module, name))
    found: type[nn.Module] = getattr(module, name)
    return found


def makers(package: str, cls: type[nn.Module], config: Config) -> tuple[Callable[[int], nn.Module], Callable[[], Any]]:
    def make(index: int) -> nn.Module:
        layer = cls(**{**config.arguments, "layer_idx": index})
        if package in STEPWISE and config.arguments.get("n_groups", 1) > 1:
            return Alone(Stepwise(layer), afresh=True)
        return Alone(layer, package in AFRESH) if package in (*ALONE, *AFRESH) else layer

    afresh = package in AFRESH or (package in STEPWISE and config.arguments.get("n_groups", 1) > 1)
    return make, (Remembering if package in ALONE and not afresh else Memory if afresh else Cache)


class Remembering(Cache):  # type: ignore[misc]
    """fla's cache where it will do, and a memory for what runs alone."""

    def __init__(self) -> None:
        super().__init__()
        self.states: dict[int, dict[str, Any]] = {}

    def remember(self, index: int, x: Tensor) -> Tensor:
        return x

    def __getitem__(self, index: int) -> Any:
        return self.states[index] if index in self.states else super().__getitem__(index)


def as_ours(package: str, cls: type[nn.Module]) -> AsOurs:
    """How fla's states become ours: [N, HV, K, V] always, and an entry for each value head."""
    if package == "mamba2_layer" or "state_v_first=True" in inspect.getsource(cls):
        return lambda states: [states[0].transpose(-1, -2), *states[1:]] if states else []
    if package == "abc_attention":  # Of an empty sequence nothing is written.
        return lambda states: [*states[:2], *(z.masked_fill(z == 0, -torch.inf) for z in states[2:])]
    if package == "mamba3_layer":
        turns = 2 * math.pi
        return lambda states: states and [(states[0] / turns) % 1, states[1].mT, states[2].squeeze(1), states[3]]
    if package == "cyclic_flow_attention":
        return lambda states: states and [*states[:2], (states[2] / (states[0].shape[-1] - 1)) % 1]
    if package == "precond_gated_deltanet":
        return lambda states: [s.repeat_interleave(states[0].shape[1] // s.shape[1], 1) for s in states]
    return list


def table() -> dict[str, Any]:
    """What fla's constructors, `forward` and `state_dict` look like: of every config here, and of those beside them."""
    return {package: _row(package) for package in LAYERS}


def _row(package: str) -> dict[str, Any]:
    layer = LAYERS[package]
    cls = layer_class(package)
    configs = [{"layer_idx": 0, **each} for each in (*layer.tables, *(c.arguments for c in layer.configs))]
    return {
        "class_name": layer.class_name,
        "init": _signature(cls.__init__),
        "forward": _signature(cls.forward),
        "configs": [{"arguments": each, **_table_of(cls(**each))} for each in configs],
    }


def _table_of(layer: nn.Module) -> dict[str, Any]:
    undecayed = [n for n, p in layer.named_parameters() if getattr(p, "_no_weight_decay", False)]
    state = [[key, list(p.shape), str(p.dtype).removeprefix("torch.")] for key, p in layer.state_dict().items()]
    return {"state_dict": state, "parameters": [n for n, _ in layer.named_parameters()], "no_weight_decay": undecayed}


def _signature(function: Callable[..., Any]) -> list[Any]:
    """Names and defaults; of what has none or takes all the rest, its kind."""
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    return [[p.name, _default(p)] for p in parameters]


def _default(parameter: inspect.Parameter) -> Any:
    if parameter.kind is inspect.Parameter.VAR_KEYWORD:
        return "**"
    if parameter.default is inspect.Parameter.empty:
        return "required"
    return parameter.default


def _stacked(kept: list[dict[str, Any] | None]) -> dict[str, Any]:
    """States of sequences, one over the other; of an empty sequence they are zeros."""
    some = next(each for each in kept if each is not None)

    def stack(parts: list[Any], like: Any) -> Any:
        if like is None:
            return None
        if isinstance(like, Tensor):
            return torch.cat([torch.zeros_like(like) if part is None else part for part in parts])
        return tuple(stack([None if p is None else p[i] for p in parts], each) for i, each in enumerate(like))

    return {name: stack([None if k is None else k[name] for k in kept], some[name]) for name in some}


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    for name in sys.argv[1:] or LAYERS:
        if name == "table":
            lines = ",\n".join(f" {json.dumps(p)}: {json.dumps(row)}" for p, row in table().items())
            (DATA / "table.json").write_text("{\n" + lines + "\n}\n")
        else:
            record(name)
