"""The recurrence of every operator, written out by hand: one token, one head, in the words of the papers.

Nothing here comes from a spec or from generated code. A *rule* says what one token does to the state of one head and
what it reads there; `recurrence` runs a rule over sequences, heads and tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, einsum, exp

from tests.numeric.recurrence import recurrence


def outer(a: Tensor, b: Tensor) -> Tensor:
    return einsum("k,v->kv", a, b)


def retrieve(S: Tensor, k: Tensor) -> Tensor:
    """S^T k: what the memory holds under the key."""
    return einsum("kv,k->v", S, k)


def read(S: Tensor, q: Tensor, scale: float | None) -> Tensor:
    """scale S^T q; the scale is that of attention unless given."""
    return (q.shape[-1] ** -0.5 if scale is None else scale) * retrieve(S, q)


def shares(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """What e^one and e^other are of their sum."""
    both = torch.softmax(torch.stack([one, other]), dim=0)
    return both[0], both[1]


def log_sum(one: Tensor, other: Tensor) -> Tensor:
    """The logarithm of e^one + e^other."""
    return torch.logsumexp(torch.stack([one, other]), dim=0)


# ------------------------------------------------------------------------------------------------------------- additive


@recurrence("k v")
def linear_attn(S, q, k, v, *, scale=None):
    S = S + outer(k, v)
    return S, read(S, q, scale)


@recurrence("k v")
def retention(S, q, k, v, *, head, scale=None):
    gamma = 1 - 2.0 ** (-5 - head)
    S = gamma * S + outer(k, v)
    return S, read(S, q, scale)


@recurrence("k v")
def lightning_attn(S, q, k, v, *, head, HV, layer_idx, num_layers, scale=None):
    slope = 8 / HV * head
    S = math.exp(-slope * (1 - layer_idx / num_layers)) * S + outer(k, v)
    return S, read(S, q, scale)


@recurrence("k v")
def simple_gla(S, q, k, v, g, *, scale=None):
    S = exp(g) * S + outer(k, v)
    return S, read(S, q, scale)


@recurrence("B x", per_head="A D")
def mamba2(S, x, dt, B, C, A, D):
    S = exp(dt * A) * S + outer(dt * B, x)
    return S, retrieve(S, C) + D * x


@recurrence("k v")
def gla(S, q, k, v, g, *, scale=None):
    S = exp(g)[:, None] * S + outer(k, v)
    return S, read(S, q, scale)


@recurrence("g v")
def hgrn2(S, q, g, v):
    forget = exp(g)
    S = forget[:, None] * S + outer(1 - forget, v)
    return S, retrieve(S, q)


@recurrence("k v", per_head="u")
def rwkv6(S, r, k, v, w, u, *, scale=None):
    bonus = outer(u * k, v)
    o = read(S + bonus, r, scale)
    S = exp(w)[:, None] * S + outer(k, v)
    return S, o


# ---------------------------------------------------------------------------------------------------------------- delta


@recurrence("k v")
def delta_rule(S, q, k, v, beta, *, scale=None):
    S = S + beta * outer(k, v - retrieve(S, k))
    return S, read(S, q, scale)


@recurrence("k v")
def gated_delta_rule(S, q, k, v, g, beta, *, scale=None):
    S = exp(g) * S
    S = S + beta * outer(k, v - retrieve(S, k))
    return S, read(S, q, scale)


@recurrence("k v", per_step="k v beta")
def gated_delta_product(S, q, k, v, g, beta, *, scale=None):
    S = exp(g) * S
    for k_j, v_j, beta_j in zip(k, v, beta, strict=True):
        S = S + beta_j * outer(k_j, v_j - retrieve(S, k_j))
    return S, read(S, q, scale)


@recurrence("k v", per_step="k v beta")
def delta_product(S, q, k, v, beta, *, scale=None):
    for k_j, v_j, beta_j in zip(k, v, beta, strict=True):
        S = S + beta_j * outer(k_j, v_j - retrieve(S, k_j))
    return S, read(S, q, scale)


@recurrence("k v")
def kda(S, q, k, v, g, beta, *, scale=None):
    S = exp(g)[:, None] * S
    S = S + beta * outer(k, v - retrieve(S, k))
    return S, read(S, q, scale)


@recurrence("k v")
def gdn2(S, q, k, v, g, b, w, *, scale=None):
    S = exp(g)[:, None] * S
    S = S + outer(k, w * v - retrieve(S, b * k))
    return S, read(S, q, scale)


@recurrence("k v")
def comba(S, q, k, v, p, g, beta, *, scale=None):
    S = exp(g) * S + beta * outer(k, v - retrieve(S, p))
    return S, read(S, q, scale)


@recurrence("k v")
def iplr(S, q, k, v, a, b, *, scale=None):
    S = S + outer(b, retrieve(S, a)) + outer(k, v)
    return S, read(S, q, scale)


@recurrence("k v")
def dplr(S, q, k, v, a, b, gk, *, scale=None):
    S = exp(gk)[:, None] * S + outer(b, retrieve(S, a)) + outer(k, v)
    return S, read(S, q, scale)


@recurrence("k v")
def rwkv7(S, r, w, k, v, a, b, *, scale=1.0):
    S = exp(w)[:, None] * S + outer(b, retrieve(S, a)) + outer(k, v)
    return S, read(S, r, scale)


@recurrence("k v")
def oja(S, q, k, v, g, beta, *, scale=None):
    S = S * exp(g)[None, :]
    S = S + beta * outer(k - einsum("kv,v->k", S, v), v)
    return S, read(S, q, scale)


# ------------------------------------------------------------------------------------------------------- several states


@recurrence(states={"S": "k v", "z": "k"}, output="v")
def linear_attn_normalized(S, z, q, k, v, *, scale=None):
    S, z = S + outer(k, v), z + k
    scaled = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    return (S, z), retrieve(S, scaled) / (z @ scaled + 1e-10)


@recurrence(states={"S": "k v", "z": "k"}, first={"z": -math.inf}, output="v")
def lightnet(S, z, q, k, v, *, scale=None):
    keep, write = shares(z, k)
    S = keep[:, None] * S + outer(write, v)
    return (S, log_sum(z, k)), read(S, q, scale)


@recurrence(states={"Sk": "k s", "Sv": "s v"}, output="v")
def gsa(Sk, Sv, q, k, v, s, g, *, scale=None):
    Sk = Sk * exp(g)[None, :] + outer(k, s)
    Sv = exp(g)[:, None] * Sv + outer(s, v)
    return (Sk, Sv), retrieve(Sv, torch.softmax(read(Sk, q, scale), dim=0))


@recurrence(states={"z": "s", "Sk": "k s", "Sv": "s v"}, first={"z": -math.inf}, output="v")
def abc_attn(z, Sk, Sv, q, k, v, s, *, scale=None):
    keep, write = shares(z, s)
    Sk = Sk * keep[None, :] + outer(k, write)
    Sv = keep[:, None] * Sv + outer(write, v)
    return (log_sum(z, s), Sk, Sv), retrieve(Sv, torch.softmax(read(Sk, q, scale), dim=0))


def preconditioner(A: Tensor, x: float, center: float, eps: float) -> Tensor:
    """Between 1 / x and x: channels of much energy are scaled down."""
    r = torch.log(A + eps) - center
    return torch.as_tensor(x).double() ** (-r / (1 + r.abs()))


@recurrence(states={"S": "k v", "A": "k"}, output="v")
def precond_gated_delta_rule(S, A, q, k, v, g, beta, ga, ba, *, scale=None, x=2, center=0, eps=1e-6):
    A = exp(ga) * A + ba * k**2
    S = exp(g) * S
    S = S + beta * outer(k * preconditioner(A, x, center, eps), v - retrieve(S, k))
    return (S, A), read(S, q, scale)


@recurrence(states={"S": "k v", "A": "k"}, output="v")
def precond_kda(S, A, q, k, v, g, beta, ga, ba, *, scale=None, x=2, center=0, eps=1e-6):
    A = exp(ga) * A + ba * k**2
    S = exp(g)[:, None] * S
    S = S + beta * outer(k * preconditioner(A, x, center, eps), v - retrieve(S, k))
    return (S, A), read(S, q, scale)


# ---------------------------------------------------------------------------------------------------------- elementwise


@recurrence(states={"h": "x"}, output="x")
def hgrn(h, x, g):
    h = exp(g) * h + x
    return h, h


@recurrence(states={"z": "k", "p": "k"}, first={"z": -math.inf}, per_head="w u", output="k")
def rwkv4(z, p, k, v, w, u):
    past, now = shares(z, u + k)
    o = past * p + now * v
    keep, write = shares(z + w, k)
    return (log_sum(z + w, k), keep * p + write * v), o


@recurrence(states={"h": "x B"}, shared="A D", output="x")
def mamba(h, x, dt, B, C, A, D):
    h = exp(dt[:, None] * A) * h + outer(dt * x, B)
    return h, h @ C + D * x
