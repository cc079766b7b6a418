"""What every layer shares: where its states come from and go, and which form of its operator runs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .cache import STATES, read_states, seen_tokens, write_states

Form = Callable[..., tuple[Tensor, Any]]

MODES = {
    "chunk": "chunk",
    "fused_chunk": "chunk",
    "parallel": "chunk",
    "fused_recurrent": "fused_recurrent",
    "naive": "fused_recurrent",
}
"""The names that a mode has, and which of the two forms it asks for."""

SHORT = 64
"""Up to here, without gradients, a kernel that goes token by token is as fast as whole chunks."""

SHORT_IN_PYTORCH = 4
"""The same in PyTorch, where each token is a round of Python: 8 of a delta rule take twice as long as a chunk."""


@dataclass(frozen=True)
class Forms:
    """One operator in all its forms. They give the same; the kernels are Triton's, and absent where there is none."""

    naive_recurrent: Form
    naive_chunk: Form | None = None
    fused_recurrent: Form | None = None
    chunk: Form | None = None


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

    def __init__(self, *, mode: str = "chunk", layer_idx: int | None = None) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(map(repr, MODES))}, got {mode!r}")
        if layer_idx is not None and layer_idx < 0:
            raise ValueError(f"layer_idx: expected the layer's place in a cache, from 0, got {layer_idx}")
        self.mode = mode
        self.layer_idx = layer_idx

    def past_states(self, cache: Any) -> Mapping[str, Any]:
        """What this layer left in a cache for this call to start from: four entries, None where there is nothing.

        Raises:
            TypeError: this is no cache.
            ValueError: the layer has no place in it.
        """
        return dict.fromkeys(STATES) if cache is None else read_states(cache, self._place())

    def leave_states(self, cache: Any, offset: int, **states: Any) -> None:
        """Leave states for the next call, `offset` tokens further on.

        States that are not there, None or several of None, leave what the cache has.
        """
        there = {name: None if _absent(state) else state for name, state in states.items()}
        write_states(cache, self._place(), offset, **there)

    def seen_tokens(self, cache: Any) -> int:
        """How many tokens of each sequence earlier calls had, padding included."""
        return 0 if cache is None else seen_tokens(cache, self._place())

    def choose(self, forms: Forms, x: Tensor) -> Form:
        """The form for these tokens, [B, T, ...]: by their number, where they are, and whether a gradient is wanted.

        With a gradient it goes by chunks; without one, token by token up to SHORT tokens, and beyond as `mode` says.
        Where no kernel runs, the PyTorch forms do, and the first layer of the process that meets this says so.
        """
        kernels = _kernels_run(x)
        if not kernels and not torch.compiler.is_compiling():
            _say_once()
        chunk = forms.chunk if kernels else forms.naive_chunk
        recurrent = (forms.fused_recurrent if kernels else None) or forms.naive_recurrent
        if kernels and self._wants_gradient(x):
            return chunk or recurrent
        if x.shape[1] <= (SHORT if kernels else SHORT_IN_PYTORCH) or MODES[self.mode] == "fused_recurrent":
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

    def _place(self) -> int:
        if self.layer_idx is None:
            raise ValueError(f"layer_idx: {type(self).__name__} needs its place in past_key_values, got None")
        return self.layer_idx

    def _wants_gradient(self, x: Tensor) -> bool:
        return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters()))


def _absent(state: Any) -> bool:
    return state is None or (isinstance(state, tuple) and all(part is None for part in state))


def _kernels_run(x: Tensor) -> bool:
    """Kernels run on a GPU, or in Triton's interpreter, where Triton is installed."""
    return (x.device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1") and has_triton()


def has_triton() -> bool:
    return _TRITON


def _find_triton() -> bool:
    try:
        return find_spec("triton") is not None
    except ImportError:  # Something refuses to find it, as whoever does without may have it.
        return False


_TRITON = _find_triton()


@cache
def _say_once() -> None:
    warnings.warn(
        "Layers run without kernels here: those need Triton and a GPU. The PyTorch forms give the same, only slower: "
        "by chunks several times, and token by token, as in decoding, by a round of Python for every token.",
        stacklevel=4,
    )
