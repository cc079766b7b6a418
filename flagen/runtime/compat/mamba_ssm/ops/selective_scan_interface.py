"""mamba_ssm.ops.selective_scan_interface: Mamba's selective scan, alone and with all that is around it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...adapt import computing, drop_in, forms, run
from ...causal_conv1d.convolution import convolve
from .step_size import step_size

__all__ = ["mamba_inner_fn", "selective_scan_fn"]

_mamba = forms("mamba")


def _by_groups(name: str, x: Tensor, channels: int) -> Tensor:
    """B or C as [B, G, N, T]."""
    if x.ndim not in (3, 4):
        raise NotImplementedError(
            f"selective_scan_fn: {name}: expected one for each token, [B, N, T] or [B, G, N, T], got {tuple(x.shape)}"
        )
    groups = x.unsqueeze(1) if x.ndim == 3 else x
    if channels % groups.shape[1]:
        raise ValueError(f"selective_scan_fn: {name}: {groups.shape[1]} groups do not divide {channels} channels")
    return groups


@drop_in
def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Mamba's selective scan.

    Args:
        u: [B, D, T].
        delta: what the time step is made from, [B, D, T].
        A: rate of decay, at most 0, [D, N], real.
        B: how a channel is written, [B, N, T], or [B, G, N, T] for G groups of channels.
        C: how a channel is read, as B.
        D: skip connection, [D], or None.
        z: gate, [B, D, T]: the result is multiplied by silu(z).
        delta_bias: [D].
        delta_softplus: the time step is softplus(delta + delta_bias).
        return_last_state: also return the state after the last token, with its gradient.

    Returns:
        [B, D, T] in u's dtype; and the state, [B, D, N] in float32, if asked for.

    Raises:
        ValueError: a shape, dtype or device that does not fit, named.
        NotImplementedError: complex A; B or C that is the same for all tokens.
    """
    y, state = _scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return (y, state) if return_last_state else y


def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """What `selective_scan_fn` returns with its state."""
    if A.is_complex():
        raise NotImplementedError("selective_scan_fn: A: expected real numbers, got complex ones")
    channels = u.shape[1]
    x = u.transpose(1, 2)
    dt = step_size(delta.transpose(1, 2), delta_bias, delta_softplus)
    writes, reads = (_by_groups(name, given, channels) for name, given in (("B", B), ("C", C)))
    groups = max(writes.shape[1], reads.shape[1])
    skip = torch.zeros_like(A[:, 0]) if D is None else D
    outputs, states = [], []
    for group in range(groups):  # The operator has one B and one C for all channels.
        own = slice(group * channels // groups, (group + 1) * channels // groups)
        write, read = (given[:, group * given.shape[1] // groups].transpose(1, 2) for given in (writes, reads))
        o, state = run(
            _mamba.chunk,
            x[..., own].unsqueeze(2),
            dt[..., own].unsqueeze(2),
            write.unsqueeze(2),
            read.unsqueeze(2),
            like=dt,
            A=A[own],
            D=skip[own],
            output_final_state=True,
        )
        outputs.append(o.squeeze(2))
        states.append(state)
    y = torch.cat(outputs, dim=-1).transpose(1, 2)
    if z is not None:
        y = y * F.silu(z.to(y.dtype))
    y = y.to(u.dtype)
    return y, torch.cat([state.squeeze(1) for state in states], dim=1)


@drop_in
def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """A whole Mamba layer after its first projection: convolution, selective scan, gate, last projection.

    Args:
        xz: input and gate, [B, 2 D, T].
        conv1d_weight: [D, 1, W].
        conv1d_bias: [D], or None.
        x_proj_weight: [R + 2 N, D]: the time step's low rank, B and C from the convolved input.
        delta_proj_weight: [D, R].
        out_proj_weight: [M, D].
        out_proj_bias: [M], or None.
        A: rate of decay, at most 0, [D, N].
        B: None for the projected one.
        C: None for the projected one.
        D: skip connection, [D].
        delta_bias: [D].
        B_proj_bias: [N].
        C_proj_bias: [N].
        delta_softplus: the time step is softplus(delta + delta_bias).
        checkpoint_lvl: taken, and not needed.
        b_rms_weight: with it the projected B is normed, [N].
        c_rms_weight: with it the projected C is normed, [N].
        dt_rms_weight: with it the projected time step is normed, [D].
        b_c_dt_rms_eps: of these norms.

    Returns:
        [B, T, M].

    Raises:
        ValueError: a shape, dtype or device that does not fit, named.
        NotImplementedError: complex A; B or C that is the same for all tokens.
    """
    x, z = xz.chunk(2, dim=1)
    x, _ = convolve(x, conv1d_weight.squeeze(1), conv1d_bias, None, None, "silu")
    projected = F.linear(x.transpose(1, 2), x_proj_weight)
    rank, states = delta_proj_weight.shape[1], A.shape[1]
    if B is None:
        B = projected[..., rank : rank + states] + (0 if B_proj_bias is None else B_proj_bias)
        B = _normed(B, b_rms_weight, b_c_dt_rms_eps).transpose(1, 2)
    if C is None:
        C = projected[..., -states:] + (0 if C_proj_bias is None else C_proj_bias)
        C = _normed(C, c_rms_weight, b_c_dt_rms_eps).transpose(1, 2)
    delta = _normed(F.linear(projected[..., :rank], delta_proj_weight), dt_rms_weight, b_c_dt_rms_eps)
    y, _ = _scan(x, delta.transpose(1, 2), A, B, C, D, z, delta_bias, delta_softplus)
    y = y.transpose(1, 2).to(out_proj_weight.dtype)
    return F.linear(y, out_proj_weight, None if out_proj_bias is None else out_proj_bias.to(out_proj_weight.dtype))


def _normed(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """`x` over the root of its mean square, times `weight`, in float32; as it is where there is no weight."""
    if weight is None:
        return x
    wide = x.to(computing(x, weight))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.to(wide.dtype)).to(x.dtype)
