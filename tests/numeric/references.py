"""Every recurrence, written out by hand: one token, one head, in the words of the papers.

Nothing here comes from a spec or from generated code. A *rule* says what one token does to the state of one head and
what it reads there; `recurrence` runs a rule over sequences, heads and tokens. That loop is the only place that knows
of batches, packed sequences, grouped heads and micro-steps, and it indexes where it could reshape, to be plainly right.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from itertools import pairwise

import torch
from torch import Tensor, einsum, exp

Rule = Callable[..., tuple[Tensor, Tensor]]
REFERENCES: dict[str, Rule] = {}


def recurrence(state: str, *, per_step: str = "", per_head: str = "") -> Callable[[Rule], Rule]:
    """Turn a rule into a function of whole tensors, with the signature of the variant of that name.

    `state` names two inputs whose last dims size the state's rows and columns; `per_step` the inputs with a row for
    each micro-step of a token; `per_head` the params, which have one entry for each value head and no token.
    """

    def decorate(rule: Rule) -> Rule:
        known = signature(rule).parameters
        names = [name for name in known if name != "S" and known[name].kind is Parameter.POSITIONAL_OR_KEYWORD]
        rows, columns = state.split()

        @wraps(rule)
        def run(
            *args: Tensor,
            num_householder: int = 2,
            initial_state: Tensor | None = None,
            output_final_state: bool = False,
            cu_seqlens: Tensor | None = None,
            **keywords: Tensor | float,
        ) -> tuple[Tensor, Tensor | None]:
            given = {**dict(zip(names, args, strict=False)), **keywords}
            tensors = {name: x.double() for name, x in given.items() if isinstance(x, Tensor)}
            scalars = {name: x for name, x in given.items() if not isinstance(x, Tensor)}
            params = {name: x for name, x in tensors.items() if name in per_head.split()}
            inputs = {name: x for name, x in tensors.items() if name not in params}

            HV = max(x.shape[2] for x in inputs.values())
            B, T = next(x.shape[:2] for name, x in inputs.items() if name not in per_step.split())
            K, V = tensors[rows].shape[-1], tensors[columns].shape[-1]
            if cu_seqlens is None:
                spans = [(b, 0, T) for b in range(B)]
            else:
                ends = cu_seqlens.tolist()
                spans = [(0, start, end) for start, end in pairwise(ends)]
            context = {name: value for name, value in {"HV": HV}.items() if name in known}

            def operand(name: str, b: int, t: int, head: int) -> Tensor:
                x = inputs[name]
                h = head // (HV // x.shape[2])
                if name in per_step.split():
                    return x[b, t * num_householder : (t + 1) * num_householder, h]
                return x[b, t, h]

            def run_head(n: int, head: int) -> tuple[Tensor, Tensor]:
                b, start, end = spans[n]
                S = torch.zeros(K, V).double() if initial_state is None else initial_state[n, head].double()
                constants = {name: x[head] for name, x in params.items()} | ({"head": head} if "head" in known else {})
                o = [torch.zeros(0, V).double()]
                for t in range(start, end):
                    operands = {name: operand(name, b, t, head) for name in inputs}
                    S, o_t = rule(S, **operands, **constants, **context, **scalars)
                    o.append(o_t[None])
                return torch.cat(o), S

            heads = [[run_head(n, head) for head in range(HV)] for n in range(len(spans))]
            outputs = [torch.stack([o for o, _ in row], dim=1) for row in heads]
            o = torch.stack(outputs) if cu_seqlens is None else torch.cat(outputs)[None]
            final_state = torch.stack([torch.stack([S for _, S in row]) for row in heads])
            return o, final_state if output_final_state else None

        REFERENCES[rule.__name__] = run
        return run

    return decorate


def outer(a: Tensor, b: Tensor) -> Tensor:
    return einsum("k,v->kv", a, b)


def retrieve(S: Tensor, k: Tensor) -> Tensor:
    """S^T k: what the memory holds under the key."""
    return einsum("kv,k->v", S, k)


def read(S: Tensor, q: Tensor, scale: float | None) -> Tensor:
    """scale S^T q; the scale is that of attention unless given."""
    return (q.shape[-1] ** -0.5 if scale is None else scale) * retrieve(S, q)


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
    S = exp(g) * S
    S = S + beta * outer(k, v - retrieve(S, p))
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
