"""Every recurrence, written out by hand: one token, one head, in the words of the papers.

Nothing here comes from a spec or from generated code. A *rule* says what one token does to the state of one head and
what it reads there; `recurrence` runs a rule over sequences, heads and tokens. That loop is the only place that knows
of batches, packed sequences, grouped heads and micro-steps, and it indexes where it could reshape, to be plainly right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import wraps
from inspect import Parameter, signature
from itertools import pairwise

import torch
from torch import Tensor, einsum, exp, sigmoid
from torch.nn.functional import logsigmoid, softplus

Rule = Callable[..., tuple[Tensor | tuple[Tensor, ...], Tensor]]
State = Tensor | tuple[Tensor, ...]
REFERENCES: dict[str, Rule] = {}


def recurrence(
    rows_and_columns: str = "",
    *,
    states: Mapping[str, str] | None = None,
    first: Mapping[str, float] | None = None,
    per_step: str = "",
    per_head: str = "",
    shared: str = "",
    output: str = "",
) -> Callable[[Rule], Rule]:
    """Turn a rule into a function of whole tensors, with the signature of the variant of that name.

    A matrix S is sized by the last dims of two inputs, `rows_and_columns`; other states are named in `states`, with the
    inputs that size each of their dims, in the order in which the rule takes and returns them. They start at 0 or at
    `first`. `per_step` names the inputs with a row for each micro-step of a token; `per_head` and `shared` the params,
    which have one entry for each value head, or one for all, and no token. `output` names an input as wide as the
    output, unless that is as wide as the columns of S.
    """
    sized_by = states or {"S": rows_and_columns}

    def decorate(rule: Rule) -> Rule:
        known = signature(rule).parameters
        names = [name for name in known if name not in sized_by and known[name].kind is Parameter.POSITIONAL_OR_KEYWORD]

        @wraps(rule)
        def run(
            *args: Tensor,
            num_householder: int = 2,
            initial_state: State | None = None,
            output_final_state: bool = False,
            cu_seqlens: Tensor | None = None,
            **keywords: Tensor | float,
        ) -> tuple[Tensor, State | None]:
            given = {**dict(zip(names, args, strict=False)), **keywords}
            tensors = {name: x.double() for name, x in given.items() if isinstance(x, Tensor)}
            scalars = {name: x for name, x in given.items() if not isinstance(x, Tensor)}
            by_head = {name: x for name, x in tensors.items() if name in per_head.split()}
            for_all = {name: x for name, x in tensors.items() if name in shared.split()}
            inputs = {name: x for name, x in tensors.items() if name not in {**by_head, **for_all}}

            HV = max(x.shape[2] for x in inputs.values())
            B, T = next(x.shape[:2] for name, x in inputs.items() if name not in per_step.split())
            width = tensors[output or rows_and_columns.split()[1]].shape[-1]
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

            def first_states(n: int, head: int) -> tuple[Tensor, ...]:
                if initial_state is not None:
                    given_states = (initial_state,) if isinstance(initial_state, Tensor) else initial_state
                    return tuple(x[n, head].double() for x in given_states)
                sizes = {name: [tensors[of].shape[-1] for of in sizing.split()] for name, sizing in sized_by.items()}
                return tuple(torch.full(size, (first or {}).get(name, 0.0)).double() for name, size in sizes.items())

            def run_head(n: int, head: int) -> tuple[Tensor, tuple[Tensor, ...]]:
                b, start, end = spans[n]
                now = first_states(n, head)
                constants = for_all | {name: x[head] for name, x in by_head.items()}
                constants |= {"head": head} if "head" in known else {}
                o = [torch.zeros(0, width).double()]
                for t in range(start, end):
                    operands = {name: operand(name, b, t, head) for name in inputs}
                    after, o_t = rule(*now, **operands, **constants, **context, **scalars)
                    now = (after,) if isinstance(after, Tensor) else after
                    o.append(o_t[None])
                return torch.cat(o), now

            heads = [[run_head(n, head) for head in range(HV)] for n in range(len(spans))]
            outputs = [torch.stack([o for o, _ in row], dim=1) for row in heads]
            o = torch.stack(outputs) if cu_seqlens is None else torch.cat(outputs)[None]
            if not output_final_state:
                return o, None
            final = tuple(
                torch.stack([torch.stack([now[place] for _, now in row]) for row in heads])
                for place in range(len(sized_by))
            )
            return o, final if len(final) > 1 else final[0]

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


# ------------------------------------------------------------------------------- with the front ends of layers (deltas)


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


# -------------------------------------------------------------------------------- with the front ends of layers (slots)


@recurrence(states={"Sk": "k f", "Sv": "f v"}, output="v")
def gated_slot_attention(Sk, Sv, q, k, v, f, *, slope=1, normalizer=8, scale=None):
    g = logsigmoid(f) / normalizer
    features = k * sigmoid(slope * k)
    return gsa.__wrapped__(Sk, Sv, q, features, v * sigmoid(v), 1 - exp(g), g, scale=scale)


@recurrence(states={"Sk": "k s", "Sv": "s v", "z": "s"}, first={"z": -math.inf}, output="v")
def abc_attention(Sk, Sv, z, q, k, v, s, *, lowest=-32, highest=32, scale=None):
    (z, Sk, Sv), o = abc_attn.__wrapped__(z, Sk, Sv, q, k, v, s.clamp(lowest, highest), scale=scale)
    return (Sk, Sv, z), o
