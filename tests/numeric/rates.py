"""What a form may lose of the gradient of a rate of decay, where its docstring says that it does."""

from __future__ import annotations

from collections.abc import Callable

SAYS = "Gradients of log decays are differences of larger sums"

LOST = {"chunk": 1e-5, "fused_recurrent": 1e-4}
"""Some of what a form loses that says so, in the words of its docstring."""

SAID = {"chunk": 2e-4, "fused_recurrent": 1e-3}
"""What such a form may lose: sums in another order drift another way."""


def says_so(form: Callable[..., object]) -> bool:
    return SAYS in " ".join((form.__doc__ or "").split())
