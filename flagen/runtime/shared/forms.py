"""The forms that an operator has, and what decides which of them runs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

from torch import Tensor

Form = Callable[..., tuple[Tensor, Any]]

SHORT = 64
"""Up to here, without gradients, a kernel that goes token by token is as fast as whole chunks."""

SHORT_WITH_GRADIENTS = 16
"""The same where gradients are recorded: the way back takes longer token by token."""

SHORT_IN_PYTORCH = 4
"""The same without gradients in PyTorch, where each token is a round of Python: 8 of a delta rule take twice as long as
a chunk."""


@dataclass(frozen=True)
class Forms:
    """One operator in all its forms. They give the same; the kernels are Triton's, and absent where there is none."""

    naive_recurrent: Form
    naive_chunk: Form | None = None
    fused_recurrent: Form | None = None
    chunk: Form | None = None


def kernels_run(x: Tensor) -> bool:
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
def say_once(stacklevel: int = 4) -> None:
    """Warn, once in a process, that the PyTorch forms run."""
    warnings.warn(
        "Operators run without kernels here: those need Triton and a GPU. The PyTorch forms give the same, only "
        "slower: by chunks several times, with more memory for gradients, and token by token, as in decoding, by a "
        "round of Python for every token.",
        stacklevel=stacklevel,
    )
