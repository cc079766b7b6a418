"""What every layer shares: where its states come from and go, and which form of its operator runs."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import partial
from numbers import Integral
from typing import Any, ClassVar, TypeGuard

import torch
from torch import Tensor, nn

from .cache import STATES, read_lengths, read_states, seen_tokens, write_lengths, write_states
from .forms import SHORT, SHORT_IN_PYTORCH, Form, Forms, kernels_run, say_once
from .packing import Packing, Packings

MODES = {
    "chunk": "chunk",
    "fused_chunk": "chunk",
    "parallel": "chunk",
    "fused_recurrent": "fused_recurrent",
    "naive": "fused_recurrent",
}
"""The names that a mode has, and which of the two forms it asks for."""


class Layer(nn.Module):
    """The base of every layer.

    Args:
        mode: the form that runs without gradients for more than 64 tokens: "chunk" or "fused_recurrent".
        layer_idx: where a cache keeps the layer's states; needed with a cache alone.
    """

    outputs: ClassVar[tuple[str, ...]] = ()
    """What `forward` returns besides, by the names of the arguments that it is for in the layers that follow."""

    KEYWORDS: ClassVar[tuple[str, ...]] = (
        "hidden_states",
        "attention_mask",
        "past_key_values",
        "use_cache",
        "output_attentions",
        "cu_seqlens",
    )

    hidden_size: int
    """Channels of the input, where the layer says so."""

    def __init__(self, *, mode: str = "chunk", layer_idx: int | None = None) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(map(repr, MODES))}, got {mode!r}")
        if layer_idx is not None and not _is_place(layer_idx):
            raise ValueError(f"layer_idx: expected the layer's place in a cache, from 0, got {layer_idx!r}")
        self.mode = mode
        self.layer_idx = layer_idx

    def find_tokens(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        cu_seqlens: Tensor | None,
        keywords: Mapping[str, Any],
        *,
        multiply: bool = False,
    ) -> Packing:
        """Where the tokens of this call are. Of `keywords`, `packings` is what layers of one call have in common.

        Raises:
            TypeError, ValueError: an argument does not fit, named.
        """
        made: Packings | None = keywords.get("packings")
        packing = Packing.of(hidden_states, attention_mask, cu_seqlens, multiply=multiply, made=made)
        self._check_input(hidden_states)
        return packing

    def past_states(self, cache: Any) -> Mapping[str, Any]:
        """What this layer left in a cache for this call to start from: four entries, None where there is nothing.

        Raises:
            TypeError: this is no cache.
            ValueError: the layer has no place in it.
        """
        return dict.fromkeys(STATES) if cache is None else read_states(cache, self._place())

    def leave_states(self, cache: Any, offset: int, *, positions: int | Tensor | None = None, **states: Any) -> None:
        """Leave states for the next call, `offset` tokens further on.

        States that are not there, None or several of None, leave what the cache has. `positions` are those at which
        the next call begins, where the layer asks for them.
        """
        there = {name: None if _absent(state) else state for name, state in states.items()}
        write_states(cache, self._place(), offset, **there)
        if isinstance(positions, Tensor):
            write_lengths(cache, self._place(), positions)

    def seen_tokens(self, cache: Any) -> int:
        """How many tokens of each sequence earlier calls had, padding included."""
        return 0 if cache is None else seen_tokens(cache, self._place())

    def first_positions(self, cache: Any, packing: Packing) -> int | Tensor:
        """The position of each sequence's first token in this call: how many it had in earlier ones, without padding.

        Raises:
            ValueError: the cache is one of another number of sequences.
        """
        if cache is None:
            return 0
        lengths = read_lengths(cache, self._place())
        if lengths is not None and len(lengths) == packing.sequences:
            return lengths
        if lengths is not None and packing.earlier is None:
            raise ValueError(
                f"past_key_values: expected what {packing.sequences} sequences left, as there are here, "
                f"got that of {len(lengths)}"
            )
        return packing.first_positions(self.seen_tokens(cache))

    def choose(self, forms: Forms, x: Tensor, **of_chunks: object) -> Form:
        """The form for these tokens, [B, T, ...]: by their number, where they are, and whether a gradient is wanted.

        With a gradient it goes by chunks; without one, token by token up to SHORT tokens, and beyond as `mode` says.
        Where no kernel runs, the PyTorch forms do, and the first layer of the process that meets this says so.
        `of_chunks` are arguments of the forms by chunks, which the others do not take.
        """
        kernels = kernels_run(x)
        if not kernels and not torch.compiler.is_compiling():
            say_once()
        chunk = forms.chunk if kernels else forms.naive_chunk
        if chunk is not None and of_chunks:
            chunk = partial(chunk, **of_chunks)
        recurrent = (forms.fused_recurrent if kernels else None) or forms.naive_recurrent
        if kernels and self._wants_gradient(x):
            return chunk or recurrent
        short = SHORT if kernels and forms.fused_recurrent else SHORT_IN_PYTORCH
        if x.shape[1] <= short or MODES[self.mode] == "fused_recurrent":
            return recurrent
        return chunk or recurrent

    def check_keywords(self, keywords: Mapping[str, object], *inputs: str) -> None:
        """Let pass what a model hands to all of its layers, but not what is nearly an argument of this one.

        Raises:
            TypeError: a keyword that is a slip for an argument.
        """
        for keyword in keywords:
            meant = get_close_matches(keyword, (*self.KEYWORDS, *inputs), n=1, cutoff=0.85)
            if meant:
                raise TypeError(f"{type(self).__name__} has no argument {keyword!r}; did you mean {meant[0]!r}?")

    def _check_input(self, x: Tensor) -> None:
        size = getattr(self, "hidden_size", None)
        if x.ndim != 3 or (size is not None and x.shape[-1] != size):
            expected = "[B, T, hidden_size]" if size is None else f"[B, T, {size}]"
            raise ValueError(f"hidden_states: expected {expected}, got {tuple(x.shape)}")
        dtypes = {module.weight.dtype for module in self.children() if _is_plain(module)}
        if dtypes and x.dtype not in dtypes and not _autocast(x.device.type):
            kinds = " or ".join(sorted(map(str, dtypes)))
            raise ValueError(f"hidden_states: expected {kinds} as the layer's projections are, got {x.dtype}")

    def _place(self) -> int:
        if self.layer_idx is None:
            raise ValueError(f"layer_idx: {type(self).__name__} needs its place in past_key_values, got None")
        return self.layer_idx

    def _wants_gradient(self, x: Tensor) -> bool:
        return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters()))


def _is_place(number: object) -> bool:
    return not isinstance(number, bool) and isinstance(number, Integral) and int(number) >= 0


def _is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a projection takes its weight's dtype and no other: it is not sharded, quantized or hooked."""
    return type(module) is nn.Linear and type(module.weight) is nn.Parameter and not module._forward_pre_hooks


def _autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _absent(state: Any) -> bool:
    return state is None or (isinstance(state, tuple) and all(part is None for part in state))
