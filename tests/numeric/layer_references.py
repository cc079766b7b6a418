"""The recurrence of every layer, written out by hand: a rule of an operator behind the layer's own front end.

A front end is what a layer makes of its projections before the rule gets them: gates, norms, feature maps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, exp, sigmoid
from torch.nn.functional import logsigmoid, softplus

from tests.numeric.operator_references import (
    CYCLIC,
    MAMBA3,
    abc_attn,
    comba,
    cyclic,
    delta_rule,
    gated_delta_product,
    gated_delta_rule,
    gdn2,
    gla,
    gsa,
    hgrn,
    hgrn2,
    kda,
    lightnet,
    linear_attn,
    log_linear_attn,
    mamba,
    mamba2,
    mamba3,
    mesa_net,
    mlstm,
    momentum_delta_rule,
    precond_gated_delta_rule,
    precond_kda,
    rwkv6,
    rwkv7,
    simple_gla,
)
from tests.numeric.recurrence import recurrence

# ----------------------------------------------------------------------------------------------- additive, gated, scans


def silu(x: Tensor) -> Tensor:
    return x * sigmoid(x)


def features(x: Tensor, curve: float, line: float, norm: float) -> Tensor:
    """The feature map of linear attention: x above zero; below it an exponential, a line, or nothing."""
    f = x.clamp(min=0) + curve * exp(x.clamp(max=0)) + line * x.clamp(max=0)
    return f / (f.sum() + 1e-4) if norm else f


def kept(f: Tensor, floor: Tensor) -> Tensor:
    """The log of a forget gate that is no less than e^floor."""
    return torch.log(exp(floor) + (1 - exp(floor)) * sigmoid(f))


@recurrence("k v")
def linear_attention(S, q, k, v, *, curve=0.0, line=1.0, norm_q=0.0, norm_k=0.0, scale=None):
    q, k = features(q, curve, line, norm_q), features(k, curve, line, norm_k)
    return linear_attn.__wrapped__(S, q, k, v, scale=scale)


@recurrence(states={"S": "level_scales B x", "position": ""}, per_head="A_log dt_bias", output="x")
def log_linear_mamba2(S, position, x, dt, B, C, level_scales, A_log, dt_bias):
    delta = softplus(dt + dt_bias)
    return log_linear_attn.__wrapped__(S, position, C, delta * B, x, -delta * exp(A_log), level_scales)


@recurrence("k v")
def gated_linear_attention(S, q, k, v, f, *, normalizer=16.0, lowest=-math.inf, scale=None):
    return gla.__wrapped__(S, q, k, v, (logsigmoid(f) / normalizer).clamp(min=lowest), scale=scale)


@recurrence("k v")
def simple_gated_linear_attention(S, q, k, v, f, *, normalizer=16.0, scale=None):
    return simple_gla.__wrapped__(S, q, k, v, logsigmoid(f) / normalizer, scale=scale)


@recurrence(states={"h": "i"}, shared="floor", output="i")
def hgrn_attention(h, i, f, *, floor):
    g = kept(f, floor)
    return hgrn.__wrapped__(h, silu(i) * (1 - exp(g)), g)


@recurrence(states={"h": "x", "seen": ""}, per_head="Lambda", output="x")
def griffin(h, seen, x, r, i, Lambda, *, c=8.0):
    """RG-LRU, where a token that none was before is taken whole."""
    a = exp(-c * softplus(Lambda) * sigmoid(r))
    h = a * h + (seen * (1 - a**2).sqrt() + 1 - seen) * (sigmoid(i) * x)
    return (h, torch.ones_like(seen)), h


@recurrence("f v", per_head="floor")
def hgrn2_attention(S, q, f, v, *, floor, scale=None):
    S, o = hgrn2.__wrapped__(S, silu(q), kept(f, floor), v)
    return S, (q.shape[-1] ** -0.5 if scale is None else scale) * o


@recurrence("k v", per_head="u")
def rwkv6_attention(S, r, w, k, v, u, *, scale=1.0):
    return rwkv6.__wrapped__(S, r, k, v, -exp(w), u, scale=scale)


@recurrence("k v", per_head="k_k k_a")
def rwkv7_attention(S, r, w, k, v, a, k_k, k_a):
    removed = k * k_k / (torch.sum((k * k_k) ** 2) + 1e-6).sqrt()
    rate = sigmoid(a)
    replaced = k * (1 + (rate - 1) * k_a)
    return rwkv7.__wrapped__(S, r, -math.exp(-0.5) * sigmoid(w), replaced, v, -removed, removed * rate)


@recurrence(states={"h": "x B"}, shared="A_log D", output="x")
def mamba_layer(h, x, dt, B, C, A_log, D):
    return mamba.__wrapped__(h, x, softplus(dt), B, C, -exp(A_log), D)


@recurrence("B x", per_head="A_log dt_bias D")
def mamba2_layer(S, x, dt, B, C, A_log, dt_bias, D, *, least=0.0, most=math.inf):
    return mamba2.__wrapped__(S, x, softplus(dt + dt_bias).clamp(least, most), B, C, -exp(A_log), D)


@recurrence(
    states=MAMBA3,
    per_head="dt_bias q_bias k_bias D",
    output="v",
)
def mamba3_layer(
    phi, S, last_k, last_v, last_now, q, k, v, a, dt, trap, angles, dt_bias, q_bias, k_bias, D, *, least=0.0001
):
    step = softplus(dt + dt_bias)
    rate = -softplus(a).clamp(min=least)
    operands = q, k, v, rate * step, step, trap, angles, q_bias, k_bias, D
    return mamba3.__wrapped__(phi, S, last_k, last_v, last_now, *operands)


@recurrence(states={"S": "k v", "z": "k"}, first={"z": -math.inf}, output="v")
def lightnet_attention(S, z, q, k, v, *, scale=None):
    return lightnet.__wrapped__(S, z, silu(q), k, v, scale=scale)


def soft_cap(x: Tensor, cap: float) -> Tensor:
    return cap * torch.tanh(x / cap)


@recurrence(states={"S": "k v", "n": "k", "m": ""}, output="v")
def mlstm_layer(S, n, m, q, k, v, i, f, *, cap=15.0, capped=1, scale=None, eps=1e-6):
    i, f = (soft_cap(x, cap) if capped else x for x in (i, f))
    return mlstm.__wrapped__(S, n, m, q, k, v, i, f, scale=scale, eps=eps)


# --------------------------------------------------------------------------------------------------------------- deltas


def unit(x: Tensor) -> Tensor:
    """x of length one, nearly: as everywhere, a millionth is added to the sum of squares."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)


def log_forget(A_log: Tensor, logit: Tensor) -> Tensor:
    """Mamba-2's map of a forget gate: the log decay."""
    return -exp(A_log) * softplus(logit)


def bounded_log_forget(A_log: Tensor, logit: Tensor, unbounded: float, lower_bound: float) -> Tensor:
    """Kimi's: the same, or what lies between a lower bound and 0."""
    return unbounded * log_forget(A_log, logit) + lower_bound * sigmoid(exp(A_log) * logit)


@recurrence("k v")
def delta_net(S, q, k, v, b, *, strength=1, scale=None):
    return delta_rule.__wrapped__(S, unit(q), unit(k), v, strength * sigmoid(b), scale=scale)


@recurrence("k v", per_head="A_log dt_bias")
def gated_deltanet(S, q, k, v, a, b, A_log, dt_bias, *, strength=1, scale=None):
    g = log_forget(A_log, a + dt_bias)
    return gated_delta_rule.__wrapped__(S, unit(q), unit(k), v, g, strength * sigmoid(b), scale=scale)


@recurrence("k v", per_head="A_log dt_bias")
def gated_deltanet2(S, q, k, v, f, b, w, A_log, dt_bias, *, strength=1, scale=None):
    g = log_forget(A_log, f + dt_bias)
    return gdn2.__wrapped__(S, unit(q), unit(k), v, g, strength * sigmoid(b), sigmoid(w), scale=scale)


@recurrence("k v", per_step="k v b", per_head="A_log dt_bias")
def gated_deltaproduct(S, q, k, v, a, b, A_log, dt_bias, *, strength=2, scale=None):
    g = log_forget(A_log, a + dt_bias)
    return gated_delta_product.__wrapped__(S, unit(q), unit(k), v, g, strength * sigmoid(b), scale=scale)


@recurrence("k v", per_head="A_log dt_bias")
def kimi_delta_attention(S, q, k, v, f, b, A_log, dt_bias, *, strength=1, unbounded=1, lower_bound=0, scale=None):
    g = bounded_log_forget(A_log, f + dt_bias, unbounded, lower_bound)
    return kda.__wrapped__(S, unit(q), unit(k), v, g, strength * sigmoid(b), scale=scale)


@recurrence("k v", per_head="A_log dt_bias")
def comba_layer(S, q, k, v, p, a, b, A_log, dt_bias, *, scale=None):
    g = log_forget(A_log, a + dt_bias)
    return comba.__wrapped__(S, unit(q), unit(k), v, unit(p), g, sigmoid(b), scale=scale)


@recurrence(states={"S": "k v", "A": "k"}, per_head="A_log dt_bias A_log_atk dt_bias_atk log_atk_scale", output="v")
def precond_gated_deltanet(
    S,
    A,
    q,
    k,
    v,
    a,
    b,
    a_atk,
    b_atk,
    A_log,
    dt_bias,
    A_log_atk,
    dt_bias_atk,
    log_atk_scale,
    *,
    strength=1,
    squash_x=1.5,
    squash_eps=1e-6,
    scale=None,
):
    gates = log_forget(A_log, a + dt_bias), strength * sigmoid(b)
    moments = log_forget(A_log_atk, a_atk + dt_bias_atk), sigmoid(b_atk)
    squash = {"x": squash_x, "center": log_atk_scale, "eps": squash_eps}
    return precond_gated_delta_rule.__wrapped__(S, A, unit(q), unit(k), v, *gates, *moments, scale=scale, **squash)


@recurrence(states={"S": "k v", "A": "k"}, per_head="A_log dt_bias A_log_atk dt_bias_atk log_atk_scale", output="v")
def precond_kimi_delta_attention(
    S,
    A,
    q,
    k,
    v,
    f,
    b,
    a,
    b_atk,
    A_log,
    dt_bias,
    A_log_atk,
    dt_bias_atk,
    log_atk_scale,
    *,
    strength=1,
    unbounded=1,
    lower_bound=0,
    squash_x=1.5,
    squash_eps=1e-6,
    scale=None,
):
    gates = bounded_log_forget(A_log, f + dt_bias, unbounded, lower_bound), strength * sigmoid(b)
    moments = log_forget(A_log_atk, a + dt_bias_atk), sigmoid(b_atk)
    squash = {"x": squash_x, "center": log_atk_scale, "eps": squash_eps}
    return precond_kda.__wrapped__(S, A, unit(q), unit(k), v, *gates, *moments, scale=scale, **squash)


@recurrence(states={"S": "k v", "M": "k v"}, per_head="A_log dt_bias Mu_log mu_bias log_factor", output="v")
def momentum_deltanet(
    S,
    M,
    q,
    k,
    v,
    a,
    m,
    b,
    e,
    A_log,
    dt_bias,
    Mu_log,
    mu_bias,
    log_factor,
    *,
    tau=1,
    strength=1,
    lowest=-math.inf,
    ahead=1,
    normed=1,
    scale=None,
):
    eta = 1 + torch.tanh(e / tau)
    angle = torch.atan(eta * exp(log_factor))
    log_alpha = torch.log(torch.cos(angle) ** 2) + log_forget(A_log, a + dt_bias)
    log_mu = log_forget(Mu_log, m + mu_bias).clamp(min=lowest)
    beta = strength * sigmoid(b) * torch.sin(angle) ** 2
    q, k = (unit(x) if normed else x for x in (q, k))
    operands = q, k, v, log_alpha, log_mu, exp(ahead * log_alpha) * k, beta, eta
    return momentum_delta_rule.__wrapped__(S, M, *operands, scale=scale)


@recurrence(states={"A": "k k", "S": "k v"}, per_head="ridge", output="v")
def mesa_net_layer(A, S, q, k, v, a, b, ridge, *, least=0.25):
    return mesa_net.__wrapped__(A, S, unit(q), unit(k), v, logsigmoid(a), sigmoid(b), softplus(ridge) + least)


# ---------------------------------------------------------------------------------------------------------------- slots


@recurrence(states={"Sk": "k f", "Sv": "f v"}, output="v")
def gated_slot_attention(Sk, Sv, q, k, v, f, *, slope=1, normalizer=8, scale=None):
    g = logsigmoid(f) / normalizer
    features = k * sigmoid(slope * k)
    return gsa.__wrapped__(Sk, Sv, q, features, v * sigmoid(v), 1 - exp(g), g, scale=scale)


@recurrence(states={"Sk": "k s", "Sv": "s v", "z": "s"}, first={"z": -math.inf}, output="v")
def abc_attention(Sk, Sv, z, q, k, v, s, *, lowest=-32, highest=32, scale=None):
    (z, Sk, Sv), o = abc_attn.__wrapped__(z, Sk, Sv, q, k, v, s.clamp(lowest, highest), scale=scale)
    return (Sk, Sv, z), o


@recurrence(states=CYCLIC, per_head="A_log dt_bias readout", output="v")
def cyclic_flow_attention(Sk, Sv, clock, q, k, v, a, d, b, A_log, dt_bias, readout, *, scale=None):
    g = log_forget(A_log, a + dt_bias)
    states, o = cyclic(Sk, Sv, clock, q, k, v, g, sigmoid(d), sigmoid(b), readout, scale)
    return states, len(readout) * o
