"""The recurrence of every operator, written out by hand: one token, one head, in the words of the papers.

Nothing here comes from a spec or from generated code. A *rule* says what one token does to the state of one head and
what it reads there; `recurrence` runs a rule over sequences, heads and tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, einsum, exp, sigmoid, sqrt
from torch.nn.functional import layer_norm, logsigmoid, softplus

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


@recurrence(states={"S": "k v", "M": "k v"}, output="v")
def momentum_delta_rule(S, M, q, k, v, log_alpha, log_mu, p, beta, eta, *, scale=None):
    M = exp(log_mu) * M - eta * outer(k, v - retrieve(S, p))
    S = exp(log_alpha) * S - beta * M
    return (S, M), read(S, q, scale)


@recurrence(states={"A": "k k", "S": "k v"}, per_head="lamb", output="v")
def mesa_net(A, S, q, k, v, g, beta, lamb):
    """What least squares makes of all keys and values, with a ridge that does not fade, read by the query."""
    A = exp(g) * A + beta * outer(k, k)
    S = exp(g) * S + beta * outer(k, v)
    return (A, S), torch.linalg.inv(A + torch.diag(lamb)).mv(q) @ S


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


def taylor(S0, z0, S1, z1, S2, z2, q, k, v, scale):
    """A token whose weights are 1 + s + s^2 / 2 of scores: the states, and what it reads of either kind."""
    S0, S1, S2 = S0 + v, S1 + outer(k, v), S2 + einsum("x,y,v->xyv", k, k, v)
    z0, z1, z2 = z0 + 1, z1 + k, z2 + outer(k, k)
    scaled = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    values = S0 + retrieve(S1, scaled) + einsum("xyv,x,y->v", S2, scaled, scaled) / 2
    return (S0, z0, S1, z1, S2, z2), values, z0 + z1 @ scaled + scaled @ z2 @ scaled / 2


@recurrence(states={"S0": "v", "z0": "", "S1": "k v", "z1": "k", "S2": "k k v", "z2": "k k"}, output="v")
def based(S0, z0, S1, z1, S2, z2, q, k, v, *, scale=None, normalize=1, eps=1e-6):
    states, values, weights = taylor(S0, z0, S1, z1, S2, z2, q, k, v, scale)
    return states, values / (weights + eps) if normalize else values


def _squares(S, z, q, k, v, alpha, scale):
    """A token whose weights are squares of scores: the states, and what it reads of either."""
    S, z = alpha * S + einsum("x,y,v->xyv", k, k, v), alpha * z + outer(k, k)
    scaled = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    return S, z, einsum("xyv,x,y->v", S, scaled, scaled), scaled @ z @ scaled


@recurrence(states={"S": "k k v", "z": "k k"}, output="v")
def rebased(S, z, q, k, v, *, scale=None, normalize=1, eps=1e-5):
    S, z, values, weights = _squares(S, z, q, k, v, 1, scale)
    return (S, z), values / (weights + eps) if normalize else values


@recurrence(states={"S": "k k v", "z": "k k"}, output="v")
def power_attn(S, z, q, k, v, g, *, scale=None, eps=1e-6):
    S, z, values, weights = _squares(S, z, q, k, v, exp(g), scale)
    return (S, z), values / (weights + eps)


@recurrence(states={"S": "k v", "z": "k"}, first={"z": -math.inf}, output="v")
def lightnet(S, z, q, k, v, *, scale=None):
    keep, write = shares(z, k)
    S = keep[:, None] * S + outer(write, v)
    return (S, log_sum(z, k)), read(S, q, scale)


@recurrence(states={"S": "k v", "n": "k", "m": ""}, output="v")
def mlstm(S, n, m, q, k, v, i, f, *, scale=None, eps=1e-6):
    stabilizer = torch.maximum(logsigmoid(f) + m, i)
    forget, put = exp(logsigmoid(f) + m - stabilizer), exp(i - stabilizer)
    S, n = forget * S + put * outer(k, v), forget * n + put * k
    scaled = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    normalizer = torch.maximum((n @ scaled).abs(), exp(-stabilizer))
    return (S, n, stabilizer), retrieve(S, scaled) / (normalizer + eps)


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


# ------------------------------------------------------------------------------------------------------------ rotations


def turned(x: Tensor, angle: Tensor) -> Tensor:
    """Neighbours in x, each pair a complex number, turned by the angles; pairs for which there is none stay."""
    pairs = torch.view_as_complex(x.reshape(-1, 2))
    moved = pairs[: len(angle)] * torch.polar(torch.ones_like(angle), angle)
    return torch.view_as_real(torch.cat([moved, pairs[len(angle) :]])).flatten()


MAMBA3 = {"phi": "angles", "S": "k v", "last_k": "k", "last_v": "v", "last_now": ""}


@recurrence(states=MAMBA3, per_head="q_bias k_bias D", output="v")
def mamba3(phi, S, last_k, last_v, last_now, q, k, v, adt, dt, trap, angles, q_bias, k_bias, D):
    """The trapezoid of the paper, whose state has all that was written; kept is the state without the last product."""
    S = S + last_now * outer(last_k, last_v)
    phi = (phi + 0.5 * torch.tanh(angles) * dt) % 1
    q, k = turned(q + q_bias, 2 * math.pi * phi), turned(k + k_bias, 2 * math.pi * phi)
    now = dt * torch.sigmoid(trap)
    kept = exp(adt) * (S + (dt - now) * outer(last_k, last_v))
    return (phi, kept, k, v, now), retrieve(kept + now * outer(k, v), q) + D * v


MAMBA3_MIMO = {"phi": "angles", "S": "k v", "last_k": "k.T k", "last_v": "k.T v"}


@recurrence(states=MAMBA3_MIMO, per_head="q_bias k_bias D mimo_v mimo_z mimo_o", output="v")
def mamba3_mimo(phi, S, last_k, last_v, q, k, v, adt, dt, trap, angles, z, q_bias, k_bias, D, mimo_v, mimo_z, mimo_o):
    """A rank after another, each with a key, a query and a value of its own, and one state."""
    ranks = range(len(q))
    phi = (phi + 0.5 * torch.tanh(angles) * dt) % 1
    keys = [turned(k[r] + k_bias[r], 2 * math.pi * phi) for r in ranks]
    values = [mimo_v[r] * v for r in ranks]
    now = dt * torch.sigmoid(trap)
    S = exp(adt) * (S + (dt - now) * sum(outer(last_k[r], last_v[r]) for r in ranks))
    S = S + now * sum(outer(keys[r], values[r]) for r in ranks)
    o = torch.zeros_like(v)
    for r in ranks:
        gate = mimo_z[r] * z
        own = retrieve(S, turned(q[r] + q_bias[r], 2 * math.pi * phi)) + D * values[r]
        o = o + mimo_o[r] * own * gate * torch.sigmoid(gate)
    return (phi, S, torch.stack(keys), torch.stack(values)), o


def rms_normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / torch.sqrt((x * x).mean() + eps)


def waves(C: int, place: Tensor) -> Tensor:
    """The (C + 1) / 2 waves that fit a circle of C slots, at places on it: [..., (C + 1) / 2], of length 1 together."""
    number = torch.arange((C + 1) // 2).double()
    height = (1 + number.clamp(max=1)).sqrt() / C**0.5
    return torch.polar(height, 2 * math.pi / C * number * place[..., None])


CYCLIC = {"Sk": "k readout+1", "Sv": "readout+1 v", "clock": ""}


def cyclic(Sk, Sv, clock, q, k, v, g, delta, beta, readout, scale):
    """A token is written where the clock stands, and is read as many slots behind it as have gone by since then."""
    C = len(readout)
    clock = (clock + delta / C) % 1
    write = beta * torch.view_as_real(waves(C, -C * clock)).flatten()
    Sk, Sv = exp(g) * Sk + outer(k, write), exp(g) * Sv + outer(write, v)
    slots = torch.view_as_real(waves(C, torch.arange(C) - C * clock)).flatten(1)
    weights = torch.softmax(readout @ slots @ read(Sk, q, scale), dim=0)
    return (Sk, Sv, clock), retrieve(Sv, slots.T @ (readout.T @ weights))


@recurrence(states=CYCLIC, per_head="readout", shared="q_norm_weight k_norm_weight", output="v")
def cyfa(
    Sk,
    Sv,
    clock,
    q,
    k,
    v,
    g,
    delta,
    beta,
    readout,
    q_norm_weight,
    k_norm_weight,
    *,
    q_norm_eps,
    k_norm_eps,
    scale=None,
):
    q, k = rms_normed(q, q_norm_weight, q_norm_eps), rms_normed(k, k_norm_weight, k_norm_eps)
    return cyclic(Sk, Sv, clock, q, k, v, g, delta, beta, readout, scale)


# ------------------------------------------------------------------------------------ trained by mini-batches of tokens


def descent(x: Tensor, target: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
    """The gradient by x of half the squared distance between the layer norm of x and the target."""
    std = sqrt(((x - x.mean()) ** 2).mean() + eps)
    y = (x - x.mean()) / std
    e = (w * y + b - target) * w
    return (len(x) * e - e.sum() - y * (e * y).sum()) / (len(x) * std)


def with_norm(x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
    return x + layer_norm(x, x.shape, w, b, eps)


LEVELS = {"S": "level_scales k v", "position": ""}


def moved_up(S: Tensor, position: Tensor) -> Tensor:
    """The levels that are full are one, as in a counter to which one is added; the last takes what is too much."""
    last, n = len(S) - 1, int(position)
    level = min((n & -n).bit_length(), last) if n else last
    return torch.cat([torch.zeros_like(S[:level]), S[: level + 1].sum(0, keepdim=True), S[level + 1 :]])


@recurrence(states=LEVELS, output="v")
def log_linear_attn(S, position, q, k, v, g, level_scales, *, scale=1.0):
    S = exp(g) * moved_up(S, position)
    S[0] += outer(k, v)
    return (S, position + 1), sum(amount * read(X, q, scale) for amount, X in zip(level_scales, S, strict=True))


@recurrence(states=LEVELS, output="v")
def log_linear_gated_delta_rule(S, position, q, k, v, g, beta, level_scales, *, scale=None):
    S = exp(g) * moved_up(S, position)
    S = torch.stack([X - beta * outer(k, retrieve(X, k)) for X in S])
    S[0] += beta * outer(k, v)
    return (S, position + 1), sum(amount * read(X, q, scale) for amount, X in zip(level_scales, S, strict=True))


TTT = {"W": "k v", "c": "v", "G": "k v", "d": "v", "eta_1": "", "position": ""}
TITANS = {"M": "k v", "S": "k v", "W": "k v", "position": ""}


@recurrence(states=TTT, per_head="w b", output="v")
def ttt_linear(W, c, G, d, eta_1, position, q, k, v, eta, w, b, *, mini_batch_size=16, eps=1e-6, scale=None):
    if position % mini_batch_size == 0:
        W, c, G, d = W - eta_1 * G, c - eta_1 * d, 0 * G, 0 * d
    u = descent(retrieve(W, k) + c, v - k, w, b, eps)
    G, d = G + outer(k, u), d + u
    p = read(W - eta * G, q, scale) + c - eta * d
    return (W, c, G, d, eta, position + 1), with_norm(p, w, b, eps)


@recurrence(states=TITANS, per_head="w b", output="v")
def titans_linear(M, S, W, position, q, k, v, theta, alpha, eta, w, b, *, mini_batch_size=16, eps=1e-6):
    W = M if position % mini_batch_size == 0 else W
    S = eta * S - 2 * theta * outer(k, descent(retrieve(W, k), v - k, w, b, eps))
    M = (1 - alpha) * M + S
    return (M, S, W, position + 1), with_norm(retrieve(M, q), w, b, eps)


# ---------------------------------------------------------------------------------------------------------- elementwise


@recurrence(states={"h": "x"}, output="x")
def hgrn(h, x, g):
    h = exp(g) * h + x
    return h, h


@recurrence(states={"h": "x"}, per_head="Lambda", output="x")
def rg_lru(h, x, r, i, Lambda, *, c=8.0):
    a = exp(-c * softplus(Lambda) * sigmoid(r))
    h = a * h + sqrt(1 - a**2) * (sigmoid(i) * x)
    return h, h


@recurrence(states={"x_1": "x", "x_2": "x", "x_3": "x"}, per_head="w0 w1 w2 w3 bias", output="x")
def short_convolution(x_1, x_2, x_3, x, w0, w1, w2, w3, bias):
    y = w0 * x + w1 * x_1 + w2 * x_2 + w3 * x_3 + bias
    return (x, x_1, x_2), y * sigmoid(y)


@recurrence(states={"x_1": "x"}, per_head="mix", output="x")
def token_shift(x_1, x, mix):
    return (x,), (1 - mix) * x + mix * x_1


@recurrence(states={"h": "z", "c": "z", "n": "z", "m": "z"}, first={"m": -math.inf}, per_head="Rz Ri Rf Rg", output="z")
def slstm(h, c, n, m, z, i, f, g, Rz, Ri, Rf, Rg):
    z, i, f, g = z + h @ Rz, i + h @ Ri, f + h @ Rf, g + h @ Rg
    stabilizer = torch.maximum(logsigmoid(f) + m, i)
    forget, put = exp(logsigmoid(f) + m - stabilizer), exp(i - stabilizer)
    c, n = forget * c + put * torch.tanh(z), forget * n + put
    h = sigmoid(g) * c / n
    return (h, c, n, stabilizer), h


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
