"""Causal convolutions of each channel: short ones with a cache, and long ones by the FFT.

Short convolutions stand before the recurrences of Mamba (Gu and Dao 2023, https://arxiv.org/abs/2312.00752) and of what
came after. On a GPU one of up to four taps under SiLU is the operator `short_convolution`, where its package is beside
this one; PyTorch computes all others. Long ones are Hyena's (Poli et al. 2023, https://arxiv.org/abs/2302.10866).
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shared.forms import has_triton
from ..shared.functional import activate, check_activation
from ..shared.inference import write_in_place
from ..shared.initialize import check_sizes
from ..shared.offsets import read_offsets
from .precision import upcast, upcast_optional

BACKENDS = ("triton", "cuda", "mix")
ACTIVATIONS = ("silu", "swish", None)
TAPS = 4
"""Of the operator's filters."""


def check_backend(backend: str | None) -> None:
    """Raises ValueError for a name that is no backend's."""
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")


def refuse(kwargs: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    """Raises TypeError for keywords that are not among the known ones."""
    unknown = sorted(kwargs.keys() - set(known))
    if unknown:
        raise TypeError(f"{where}: expected no argument but those of its signature, got {', '.join(unknown)}")


def check_state(state: Tensor, shape: tuple[int, int, int], name: str) -> None:
    """Raises ValueError if a state has another shape than one window of inputs for each sequence."""
    if tuple(state.shape) != shape:
        raise ValueError(f"{name}: expected [N, D, W] = {list(shape)}, got {list(state.shape)}")


def causal_windows(windows: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """The convolution of [B, D, L + W - 1] with [D, W], valid positions only, then the activation: [B, D, L]."""
    if windows.shape[-1] < weight.shape[-1]:
        return windows[..., :0]
    y = F.conv1d(windows, weight[:, None], bias, groups=weight.shape[0])
    return y if activation is None else activate(y, activation)


def causal_conv1d(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool | None = False,
    activation: str | None = None,
    backend: str | None = "triton",
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    chunk_indices: Tensor | None = None,
    cp_context: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """y_t = act(sum over i < W of weight[:, W-1-i] x_{t-i} + bias) + residual_t, in float32, in x's dtype at the end.

    Args:
        x: [B, T, D], or with D split in several dims; packed sequences have B = 1.
        weight: [D, W].
        bias: [D], or None.
        residual: of x's shape, added at the end, after the activation.
        initial_state: [N, D, W], the last W inputs of what came before; N is B, or the number of packed sequences.
        output_final_state: whether the last W inputs are returned.
        activation: `silu`, `swish` or None.
        backend: `triton`, `cuda` or `mix`; taken for the signature's sake.
        cu_seqlens: [N + 1], where packed sequences begin and end. They may be empty.
        cu_seqlens_cpu, chunk_indices: taken for the signature's sake; nothing is gained from them.
        cp_context: context parallelism, which is not supported.

    Returns:
        y of x's shape, and the last W inputs of each sequence, [N, D, W] in x's dtype, or None.

    Raises:
        TypeError: weight is missing, or an unknown keyword is given.
        ValueError: shapes do not fit, or the activation or the backend is unknown.
        NotImplementedError: cp_context is given.
    """
    refuse(kwargs, ("seq_idx",), "causal_conv1d")
    check_activation(ACTIVATIONS, activation=activation)
    check_backend(backend)
    if cp_context is not None:
        raise NotImplementedError("cp_context: context parallelism is not supported")
    if kwargs.get("seq_idx") is not None:
        raise NotImplementedError("seq_idx: not supported; cu_seqlens says where packed sequences begin")
    if weight is None:
        raise TypeError("weight: expected [D, W], got None")
    channels, width = weight.shape
    rows = x if x.ndim == 3 and x.shape[-1] == channels else x.flatten(2)
    batch = rows.shape[0]
    if rows.shape[-1] != channels:
        raise ValueError(f"x: expected [B, T, D] with D = {channels} as weight, got {list(x.shape)}")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual: expected shape {list(x.shape)} as x, got {list(residual.shape)}")
    if cu_seqlens is not None and batch != 1:
        raise ValueError(f"x: expected packed sequences in a batch of 1, got a batch of {batch}")
    sequences = batch if cu_seqlens is None else len(cu_seqlens) - 1
    if initial_state is None:
        history = rows.new_zeros(sequences, channels, width)
    else:
        check_state(initial_state, (sequences, channels, width), "initial_state")
        history = initial_state

    if residual is None and by_kernels(rows, weight, activation):
        y = _convolved(rows, weight, bias, history, cu_seqlens)
    else:
        y = _in_pytorch(rows, weight, bias, history, activation, cu_seqlens)
    final_state = _last_inputs(rows, history, cu_seqlens) if output_final_state else None
    y = y.reshape(x.shape)
    if residual is not None:
        y = y + upcast(residual)
    return y.to(x.dtype), final_state


def by_kernels(rows: Tensor, weight: Tensor, activation: str | None) -> bool:
    """Whether the operator takes this: on a GPU, in what its kernels compute."""
    if rows.device.type != "cuda" or not has_triton() or _operator() is None:
        return False
    return weight.shape[1] <= TAPS and activation is not None and rows.dtype != torch.float64


@cache
def _operator() -> Callable[..., tuple[Tensor, Any]] | None:
    """`chunk_short_convolution`, where its package is beside this one."""
    try:
        from ..short_convolution import chunk_short_convolution
    except ImportError:
        return None
    operator: Callable[..., tuple[Tensor, Any]] = chunk_short_convolution
    return operator


def _convolved(rows: Tensor, weight: Tensor, bias: Tensor | None, history: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """The operator, of one head whose channels are all there are: [B, T, D]."""
    operator = _operator()
    assert operator is not None
    if bias is None:
        bias = weight.new_zeros(weight.shape[0])
    # From the token itself to the oldest of those before it.
    taps = F.pad(weight, (TAPS - weight.shape[1], 0)).flip(1).T.unsqueeze(1)
    before = F.pad(history, (TAPS, 0))[..., 1 - TAPS :].flip(2).permute(2, 0, 1).unsqueeze(2)
    y, _ = operator(
        rows.unsqueeze(2), *taps, bias.unsqueeze(0), initial_state=tuple(before.float()), cu_seqlens=cu_seqlens
    )
    return y.squeeze(2)


def _last_inputs(rows: Tensor, history: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """The last W inputs of each sequence, [N, D, W], those of `history` counted as well."""
    width = history.shape[-1]
    if cu_seqlens is None:
        ends = torch.cat([history, rows[:, -width:].transpose(1, 2)], dim=-1)[..., -width:]
        return ends.to(rows.dtype, copy=True)
    offsets = cu_seqlens.to(rows.device)
    place = offsets[1:, None] - width + torch.arange(width, device=rows.device)
    ago = offsets[:-1, None] - place
    # What lies before the first token of a sequence is in its history; there is always a row to point at.
    given = F.pad(rows[0], (0, 0, 0, 1))[place.clamp(min=0)].transpose(1, 2)
    kept = history.gather(2, (width - ago.clamp(1, width))[:, None].expand(history.shape))
    return torch.where((ago > 0)[:, None], kept, given).to(rows.dtype)


def _in_pytorch(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    history: Tensor,
    activation: str | None,
    cu_seqlens: Tensor | None,
) -> Tensor:
    """The convolution of [B, T, D] after [N, D, W] in float32, or wider where an input is: [B, T, D]."""
    length, width = rows.shape[1], weight.shape[1]
    if cu_seqlens is None:
        stream = torch.cat([history, rows.transpose(1, 2)], dim=-1)
    else:
        # Each sequence with its history before it, one after the other.
        index = torch.arange(length, device=rows.device)
        offsets = cu_seqlens.to(rows.device)
        owner = torch.bucketize(index, offsets[1:], right=True)
        starts = offsets[:-1] + width * torch.arange(len(history), device=rows.device)
        taps = torch.arange(width, device=rows.device)
        places = torch.cat([(starts[:, None] + taps).flatten(), index + width * (owner + 1)])
        values = torch.cat([history.transpose(1, 2).flatten(0, 1), rows[0]])
        stream = torch.empty_like(values).index_copy(0, places, values).T[None]
    y = causal_windows(upcast(stream[..., 1:]), upcast(weight), upcast_optional(bias), activation)
    if cu_seqlens is not None:
        y = y[..., index + width * owner]
    return y.transpose(1, 2)


def causal_conv1d_update(
    x: Tensor,
    cache: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One token of each sequence: causal_conv1d of it after `cache`, which is moved on in place.

    Args:
        x: [N, D], [N, 1, D] or [1, N, D].
        cache: [N, D, W], the last W inputs.
        residual: of x's shape, added at the end.
        weight: [D, W].
        bias: [D], or None.
        activation: `silu`, `swish` or None.

    Returns:
        y of x's shape, and the same cache.

    Raises:
        TypeError: weight is missing.
        ValueError: shapes do not fit, or the activation is unknown.
    """
    check_activation(ACTIVATIONS, activation=activation)
    if weight is None:
        raise TypeError("weight: expected [D, W], got None")
    channels, width = weight.shape
    rows = x.reshape(-1, channels)
    check_state(cache, (rows.shape[0], channels, width), "cache")
    window = torch.cat([upcast(cache[..., 1:]), upcast(rows[..., None])], dim=-1)
    write_in_place(cache, window)
    y = (window * upcast(weight)).sum(-1)
    y = y if bias is None else y + bias
    y = (y if activation is None else activate(y, activation)).view(x.shape)
    y = y if residual is None else y + residual
    return y.to(x.dtype), cache


class ShortConvolution(nn.Conv1d):
    """causal_conv1d with its parameters: weight [D, 1, W] and, if asked for, bias [D], as nn.Conv1d has them.

    Args:
        hidden_size: D, the number of channels.
        kernel_size: W, the number of taps.
        bias: whether there is a bias.
        activation: `silu`, `swish` or None.
        backend: `triton` or `cuda`; taken for the signature's sake.
        device, dtype: of the parameters.

    Raises:
        TypeError: an unknown keyword.
        ValueError: an unknown activation or backend.
    """

    def __init__(
        self,
        hidden_size: int,
        kernel_size: int,
        bias: bool = False,
        activation: str | None = "silu",
        backend: str | None = "triton",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        refuse(kwargs, ("use_fast_conv1d",), "ShortConvolution")
        check_activation(ACTIVATIONS, activation=activation)
        check_backend(backend)
        check_sizes(hidden_size=hidden_size, kernel_size=kernel_size)
        super().__init__(
            hidden_size,
            hidden_size,
            kernel_size,
            padding=kernel_size - 1,
            groups=hidden_size,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.hidden_size = hidden_size
        self.activation = activation
        self.backend = backend

    @property
    def state_size(self) -> int:
        """How many numbers the cache of one sequence has."""
        return self.hidden_size * self.kernel_size[0]

    def extra_repr(self) -> str:
        activation = "" if self.activation is None else f", activation={self.activation}"
        bias = "" if self.bias is not None else ", bias=False"
        return f"{self.hidden_size}, kernel_size={self.kernel_size[0]}{bias}{activation}, backend={self.backend}"

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        residual: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Tensor | None = None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
        chunk_indices: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Convolves x, after what the cache says came before.

        Where no gradients are recorded, each sequence has one token and the next cache is asked for, a cache that is
        given is moved on in place, and is what is returned.

        Args:
            x: [B, T, D]; packed sequences have B = 1.
            residual: [B, T, D], added at the end.
            mask: [B, T], one where x counts and zero where it does not; not with cu_seqlens.
            cache: [N, D, W], the last W inputs of each sequence.
            output_final_state: whether the cache for the next call is returned.
            cu_seqlens: [N + 1], where packed sequences begin and end.
            chunk_indices: taken for the signature's sake.

        Returns:
            y [B, T, D] in x's dtype, and the cache [N, D, W], or None.

        Raises:
            ValueError: mask and cu_seqlens together, or shapes that do not fit.
        """
        refuse(kwargs, ("cu_seqlens_cpu", "cp_context", "seq_idx"), "ShortConvolution.forward")
        if mask is not None:
            if cu_seqlens is not None:
                raise ValueError("mask, cu_seqlens: expected one of the two, got both")
            x = x * mask.unsqueeze(-1).to(x.dtype)
        if self.one_token_each(x, cu_seqlens):
            return self.step(x, residual, cache, output_final_state, cu_seqlens)
        return causal_conv1d(
            x,
            self.weight.squeeze(1),
            self.bias,
            residual,
            initial_state=cache,
            output_final_state=output_final_state,
            activation=self.activation,
            cu_seqlens=cu_seqlens,
            **kwargs,
        )

    @staticmethod
    def one_token_each(x: Tensor, cu_seqlens: Tensor | None) -> bool:
        """Whether no gradients are recorded and each sequence has exactly one token."""
        if torch.is_grad_enabled():
            return False
        if cu_seqlens is None:
            return x.shape[1] == 1
        return x.shape[1] == len(cu_seqlens) - 1 and read_offsets(cu_seqlens) == tuple(range(len(cu_seqlens)))

    def step(
        self,
        x: Tensor,
        residual: Tensor | None,
        cache: Tensor | None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """One token of each sequence, [N, 1, D], or [1, N, D] with cu_seqlens; the cache is moved on in place where
        it is asked for."""
        if cache is None:
            sequences = x.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
            cache = x.new_zeros(sequences, self.hidden_size, self.kernel_size[0])
        elif not output_final_state:
            cache = cache.clone()
        y, cache = causal_conv1d_update(x, cache, residual, self.weight.squeeze(1), self.bias, self.activation)
        return y, cache if output_final_state else None


def fft_conv(
    u: Tensor, k: Tensor, dropout_mask: Tensor | None, gelu: bool = True, k_rev: Tensor | None = None
) -> Tensor:
    """u + the causal convolution of u with k, by the FFT, in k's dtype, in u's at the end.

    Args:
        u: [B, D, L], or [B, R, D, L].
        k: [D, K], the filter, from the newest input to the oldest. What is longer than L is not used.
        dropout_mask: [B, D], multiplied at the end, or None.
        gelu: whether gelu is applied.
        k_rev: [D, K], a filter of the inputs that come after, or None.

    Returns:
        Of u's shape.
    """
    length = u.shape[-1]
    size = 2 * length
    spectrum = torch.fft.rfft(k[..., :length], n=size)
    if k_rev is not None:
        spectrum = spectrum + torch.fft.rfft(k_rev[..., :length], n=size).conj()
    if u.ndim > 3:
        spectrum = spectrum.unsqueeze(1)
    y = torch.fft.irfft(torch.fft.rfft(u.to(k.dtype), n=size) * spectrum, n=size)[..., :length] + u
    y = F.gelu(y) if gelu else y
    return (y if dropout_mask is None else y * dropout_mask.unsqueeze(-1)).to(u.dtype)


class LongConvolution(nn.Module):
    """x + its causal convolution with a learned filter of max_len taps, by the FFT.

    Args:
        hidden_size: D, the number of channels.
        max_len: the longest sequence; the parameter `filter` is [D, max_len].
    """

    def __init__(self, hidden_size: int, max_len: int, **kwargs: Any) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.filter = nn.Parameter(torch.randn(hidden_size, max_len))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[B, T, D] to [B, T, D] in x's dtype."""
        return fft_conv(x.transpose(1, 2), self.filter, dropout_mask=None, gelu=False).transpose(1, 2)


class PositionalEmbedding(nn.Module):
    """Time from 0 to 1, and cosines and sines of it: `z`, [1, seq_len, emb_dim], which is not trained.

    Args:
        emb_dim: odd and at least 3.
        seq_len: the longest sequence.

    Raises:
        ValueError: emb_dim is even or less than 3.
    """

    def __init__(self, emb_dim: int, seq_len: int, **kwargs: Any) -> None:
        super().__init__()
        if emb_dim < 3 or emb_dim % 2 == 0:
            raise ValueError(f"emb_dim: expected an odd number from 3, for time, cosines and sines, got {emb_dim}")
        self.seq_len = seq_len
        bands = (emb_dim - 1) // 2
        angle = 2 * math.pi * torch.linspace(0, seq_len - 1, seq_len)[:, None] / seq_len
        phase = torch.linspace(1e-4, bands - 1, bands) * angle
        time = torch.linspace(0, 1, seq_len)[:, None]
        self.z = nn.Parameter(torch.cat([time, phase.cos(), -phase.sin()], dim=-1)[None], requires_grad=False)

    def forward(self, L: int) -> Tensor:
        """The first L positions: [1, L, emb_dim]."""
        return self.z[:, :L]


class ImplicitLongConvolution(nn.Module):
    """LongConvolution with a filter that a small MLP makes of positions.

    Args:
        hidden_size: D, the number of channels.
        max_len: the longest sequence.
        d_emb: size of an embedded position, odd and at least 3.
        d_hidden: size of the MLP's hidden layer.

    Raises:
        ValueError: d_emb is even or less than 3.
    """

    def __init__(self, hidden_size: int, max_len: int, d_emb: int = 3, d_hidden: int = 16, **kwargs: Any) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.d_emb = d_emb
        self.pos_emb = PositionalEmbedding(d_emb, max_len)
        self.mlp = nn.Sequential(nn.Linear(d_emb, d_hidden), nn.ReLU(), nn.Linear(d_hidden, hidden_size))

    def filter(self, seq_len: int, *args: Any, **kwargs: Any) -> Tensor:
        """The filter of seq_len taps, [1, D, seq_len]."""
        taps: Tensor = self.mlp(self.pos_emb(seq_len))
        return taps.transpose(1, 2)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[B, T, D] to [B, T, D] in x's dtype."""
        taps = self.filter(x.shape[1])
        return fft_conv(x.transpose(1, 2), taps, dropout_mask=None, gelu=False).transpose(1, 2)


__all__ = [
    "ImplicitLongConvolution",
    "LongConvolution",
    "PositionalEmbedding",
    "ShortConvolution",
    "causal_conv1d",
    "causal_conv1d_update",
    "fft_conv",
]
