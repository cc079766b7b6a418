"""A depthwise causal convolution, over sequences and a token at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...modules.convolution import ACTIVATIONS, causal_windows
from ...shared.functional import activate
from ...shared.inference import write_in_place
from ..adapt import computing, drop_in, refuse


def _check_activation(function: str, activation: str | None) -> None:
    if activation not in ACTIVATIONS:
        raise NotImplementedError(f"{function}: activation: expected None, 'silu' or 'swish', got {activation!r}")


def _check(function: str, x: Tensor, weight: Tensor) -> None:
    if x.ndim != 3 or weight.ndim != 2 or x.shape[1] != weight.shape[0]:
        raise ValueError(
            f"{function}: expected x [B, D, T] and weight [D, W], got {tuple(x.shape)} and {tuple(weight.shape)}"
        )


@drop_in
def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolve each channel with its own weights, over what came before.

    Args:
        x: [B, D, T].
        weight: [D, W]; its last column is for the token itself.
        bias: [D].
        seq_idx: which sequence a token is of, [B, T], integers; none reads from another's tokens.
        initial_states: the W - 1 inputs before the first, [B, D, W - 1].
        return_final_states: also return the last W - 1 inputs.
        final_states_out: where to put them, [B, D, W - 1].
        activation: None, "silu" or "swish".

    Returns:
        [B, D, T] in x's dtype, computed in float32; and the last inputs, [B, D, W - 1], if asked for.

    Raises:
        ValueError: a shape that does not fit; `seq_idx` together with states.
        NotImplementedError: another activation.
    """
    if seq_idx is not None and (initial_states is not None or return_final_states):
        raise ValueError("causal_conv1d_fn: seq_idx: expected None together with initial_states or return_final_states")
    y, last = convolve(x, weight, bias, seq_idx, initial_states, activation)
    if not return_final_states:
        return y
    if final_states_out is None:
        return y, last.clone()
    with torch.no_grad():
        final_states_out.copy_(last)
    return y, final_states_out


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    activation: str | None,
) -> tuple[Tensor, Tensor]:
    """What `causal_conv1d_fn` returns, and the last W - 1 inputs."""
    name = "causal_conv1d_fn"
    _check(name, x, weight)
    _check_activation(name, activation)
    width, wide = weight.shape[1], computing(x, weight)
    if initial_states is None:
        given = F.pad(x, (width - 1, 0))
    else:
        given = torch.cat([initial_states.to(x.dtype), x], dim=-1)
    added = None if bias is None else bias.to(wide)
    if seq_idx is None:
        y = causal_windows(given.to(wide), weight.to(wide), added, activation)
    else:
        y = _within_sequences(given.to(wide), weight.to(wide), seq_idx)
        y = y if added is None else y + added[:, None]
        y = y if activation is None else activate(y, activation)
    return y.to(x.dtype), given[..., x.shape[-1] :]


def _within_sequences(given: Tensor, weight: Tensor, seq_idx: Tensor) -> Tensor:
    """The sum over the taps of what is of the same sequence; `given` has W - 1 zeros before the first token."""
    width = weight.shape[1]
    tokens = seq_idx.shape[-1]
    before = F.pad(seq_idx, (width - 1, 0), value=-1)
    taps = []
    for place in range(width):
        same = (before[:, place : place + tokens] == seq_idx).to(given.dtype)
        taps.append(given[..., place : place + tokens] * same[:, None] * weight[:, place, None])
    return torch.stack(taps).sum(0)


@drop_in
def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """Convolve the next tokens of each sequence, and put them into its state, in place.

    Args:
        x: [B, D], or [B, D, T].
        conv_state: the inputs before, [B, D, L] with L at least W - 1; written to.
        weight: [D, W]; its last column is for the token itself.
        bias: [D].
        activation: None, "silu" or "swish".
        cache_seqlens: refused: the state is no ring.
        conv_state_indices: which row of `conv_state` is whose, [B]; it may then have more rows.

    Returns:
        as x, in its dtype, computed in float32.

    Raises:
        ValueError: a shape that does not fit.
        NotImplementedError: `cache_seqlens`, or another activation.
    """
    name = "causal_conv1d_update"
    refuse(name, cache_seqlens=cache_seqlens)
    tokens = x.unsqueeze(-1) if x.ndim == 2 else x
    _check(name, tokens, weight)
    _check_activation(name, activation)
    state = conv_state if conv_state_indices is None else conv_state[conv_state_indices.long()]
    length, width = state.shape[-1], weight.shape[1]
    if state.shape[:2] != tokens.shape[:2] or length < width - 1:
        raise ValueError(
            f"{name}: conv_state: expected {list(tokens.shape[:2])} and at least {width - 1} inputs, got "
            f"{tuple(state.shape)}"
        )
    given = torch.cat([state.to(tokens.dtype), tokens], dim=-1)
    with torch.no_grad():
        rows = None if conv_state_indices is None else conv_state_indices.long()
        write_in_place(conv_state, given[..., -length:], rows)
    wide = computing(x, weight)
    read = given[..., length - width + 1 :].to(wide)
    y = causal_windows(read, weight.to(wide), None if bias is None else bias.to(wide), activation)
    return y.to(x.dtype).reshape(x.shape)
