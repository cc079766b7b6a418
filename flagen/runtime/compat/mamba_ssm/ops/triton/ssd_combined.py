"""mamba_ssm.ops.triton.ssd_combined: Mamba-2's scan, alone and with all that is around it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ....adapt import drop_in, forms, refuse, run
from ....causal_conv1d.convolution import convolve
from ..step_size import step_size
from .layernorm_gated import rmsnorm_fn

__all__ = ["mamba_chunk_scan_combined", "mamba_split_conv1d_scan_combined"]

_mamba2 = forms("mamba2")

NO_LIMIT = (0.0, float("inf"))


@drop_in
def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = NO_LIMIT,
    return_final_states: bool = False,
    return_varlen_states: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """Mamba-2's scan.

    Args:
        x: [B, T, H, P].
        dt: what the time step is made from, [B, T, H].
        A: rate of decay, at most 0, [H].
        B: input projection of the state, [B, T, G, N]; G divides H.
        C: output projection of the state, [B, T, G, N].
        chunk_size: taken, and not needed: chunks have the size that suits the kernels.
        D: skip connection, [H] or [H, P], or None.
        z: gate, [B, T, H, P]: the result is multiplied by silu(z).
        dt_bias: [H].
        initial_states: [B, H, P, N].
        seq_idx: which sequence a token is of, [B, T], integers; each starts afresh. It is read from the device.
        cu_seqlens: refused, without the states that it is for.
        dt_softplus: the time step is softplus(dt + dt_bias).
        dt_limit: the least and the most of the time step.
        return_final_states: also return the states after the last token of each row.
        return_varlen_states: refused.

    Returns:
        [B, T, H, P] in x's dtype; and the states, [B, H, P, N] in float32, if asked for.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named.
        NotImplementedError: `return_varlen_states`.
    """
    refuse("mamba_chunk_scan_combined", return_varlen_states=return_varlen_states)
    step = step_size(dt, dt_bias, dt_softplus, dt_limit)
    per_head = D if D is not None and D.ndim == 1 else torch.zeros_like(A)
    packing = None if seq_idx is None else _Packing(seq_idx, initial_states)
    inputs = (x, step, B, C)
    options: dict[str, Any] = {"output_final_state": return_final_states, "v_first": True}
    if packing is None:
        y, state = run(_mamba2.chunk, *inputs, like=step, A=A, D=per_head, initial_state=initial_states, **options)
    else:
        y, state = run(
            _mamba2.chunk,
            *(given.flatten(0, 1).unsqueeze(0) for given in inputs),
            like=step,
            A=A,
            D=per_head,
            initial_state=packing.initial_states,
            cu_seqlens=packing.cu_seqlens,
            **options,
        )
        y = y.view(x.shape)
        state = state[packing.last] if return_final_states else None
    if D is not None and D.ndim == 2:
        y = y + D.to(y.dtype) * x.to(y.dtype)
    if z is not None:
        y = y * F.silu(z.to(y.dtype))
    y = y.to(x.dtype)
    return (y, state) if return_final_states else y


class _Packing:
    """All rows one after another, as packed sequences: a row and a change of `seq_idx` begin one.

    Attributes:
        cu_seqlens: [N + 1] offsets.
        last: which sequence is the last of each row, [B].
        initial_states: [N, H, P, N]: those of the rows for the first sequence of each, zeros for the others; or None.
    """

    def __init__(self, seq_idx: Tensor, initial_states: Tensor | None) -> None:
        rows, tokens = seq_idx.shape
        begins = torch.ones_like(seq_idx, dtype=torch.bool)
        begins[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
        starts = begins.flatten().nonzero().squeeze(1)
        self.cu_seqlens = F.pad(starts, (0, 1), value=rows * tokens)
        counts = begins.sum(1).cumsum(0)
        self.last = counts - 1
        self.initial_states = None
        if initial_states is not None:
            first = F.pad(counts[:-1], (1, 0))
            empty = initial_states.new_zeros(len(starts), *initial_states.shape[1:])
            self.initial_states = empty.index_copy(0, first, initial_states)


@drop_in
def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_limit: tuple[float, float] = NO_LIMIT,
    return_final_states: bool = False,
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
) -> Tensor | tuple[Tensor, Tensor]:
    """A whole Mamba-2 layer after its first projection: convolution, scan, norm and gate, last projection.

    Args:
        zxbcdt: [B, T, 2 M + 2 H P + 2 G N + H]: MLP's two halves of M, which may be 0, gate, input, B, C and time step.
        conv1d_weight: [H P + 2 G N, W].
        conv1d_bias: [H P + 2 G N], or None.
        dt_bias: [H].
        A: rate of decay, at most 0, [H].
        D: skip connection, [H] or [H, P].
        chunk_size: taken, and not needed.
        initial_states: [B, H, P, N].
        seq_idx: which sequence a token is of, [B, T], integers; each starts afresh.
        dt_limit: the least and the most of the time step.
        return_final_states: also return the states after the last token of each row.
        activation: of the convolution: None, "silu" or "swish".
        rmsnorm_weight: [H P]; None for the gate alone.
        rmsnorm_eps: of the norm, whose groups are G.
        outproj_weight: [O, M + H P], or None.
        outproj_bias: [O], or None.
        headdim: P, where D is [H].
        ngroups: G.
        norm_before_gate: whether the norm comes before the gate.

    Returns:
        [B, T, O], or [B, T, M + H P] without a projection; and the states, [B, H, P, N], if asked for.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named; P cannot be told.
    """
    name = "mamba_split_conv1d_scan_combined"
    heads, width = D.shape[0], headdim if D.ndim == 1 else D.shape[1]
    if width is None:
        raise ValueError(f"{name}: headdim: expected a number where D is [H], got None")
    inner = heads * width
    states = (conv1d_weight.shape[0] - inner) // (2 * ngroups)
    convolved = inner + 2 * ngroups * states
    rest = zxbcdt.shape[-1] - inner - convolved - heads
    if states < 1 or convolved != conv1d_weight.shape[0] or rest < 0 or rest % 2:
        raise ValueError(
            f"{name}: zxbcdt: {zxbcdt.shape[-1]} columns do not fit {heads} heads of {width} and {ngroups} groups with "
            f"a convolution of {conv1d_weight.shape[0]} channels"
        )
    mlp, z, xBC, dt = torch.split(zxbcdt, [rest, inner, convolved, heads], dim=-1)
    xBC, _ = convolve(xBC.transpose(1, 2), conv1d_weight, conv1d_bias, seq_idx, None, activation)
    x, B, C = torch.split(xBC.transpose(1, 2), [inner, ngroups * states, ngroups * states], dim=-1)
    y, state = mamba_chunk_scan_combined(
        x.reshape(*x.shape[:-1], heads, width),
        dt,
        A,
        B.reshape(*B.shape[:-1], ngroups, states),
        C.reshape(*C.shape[:-1], ngroups, states),
        chunk_size,
        D=D,
        z=z.reshape(*z.shape[:-1], heads, width) if rmsnorm_weight is None else None,
        dt_bias=dt_bias,
        initial_states=initial_states,
        seq_idx=seq_idx,
        dt_softplus=True,
        dt_limit=dt_limit,
        return_final_states=True,
    )
    y = y.flatten(-2)
    if rmsnorm_weight is not None:
        y = rmsnorm_fn(y, rmsnorm_weight, None, z, rmsnorm_eps, inner // ngroups, norm_before_gate)
    if rest:
        gate, value = mlp.chunk(2, dim=-1)
        y = torch.cat([F.silu(gate) * value, y], dim=-1)
    if outproj_weight is not None:
        y = F.linear(y.to(outproj_weight.dtype), outproj_weight, outproj_bias)
    return (y, state) if return_final_states else y
