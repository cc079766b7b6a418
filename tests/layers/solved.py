"""What stands in for fla's operators of MesaNet where they are recorded: `record` needs it, and no test does."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from fla.ops.mesa_net import naive_mesa_net_exact
from torch import Tensor


def l2norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def eliminated(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    lamb: Tensor,
    h_kk_init: Tensor | None,
    h_kv_init: Tensor | None,
    cu_seqlens: Tensor | None,
    **_: Any,
) -> tuple[Tensor, ...]:
    """fla's reference in PyTorch of its operator of MesaNet, which rounds keys and queries to float16, and adds 1e-5
    to the denominators of its conjugate gradients."""
    given = l2norm(q), l2norm(k), v, g, beta
    if cu_seqlens is None:
        return _eliminated(*given, lamb, h_kk_init, h_kv_init)
    found = [
        _eliminated(*(x[:, start:end] for x in given), lamb, *(h and h[i : i + 1] for h in (h_kk_init, h_kv_init)))
        for i, (start, end) in enumerate(pairwise(cu_seqlens.tolist()))
    ]
    o, *states = zip(*found, strict=True)
    return torch.cat(o, 1), *map(torch.cat, states)


def _eliminated(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, lamb: Tensor, *first: Any) -> Any:
    return naive_mesa_net_exact(q, k, v, g, lamb, beta, *first)


def eliminated_once(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, lamb: Tensor, beta: Tensor, *, prev_h_kk: Any, prev_h_kv: Any, **_: Any
) -> tuple[Tensor, ...]:
    """The same of one token, whose keys and queries are of length one."""
    o, *states = naive_mesa_net_exact(*(x[:, None] for x in (q, k, v, g)), lamb, beta[:, None], prev_h_kk, prev_h_kv)
    return o[:, 0], *states
