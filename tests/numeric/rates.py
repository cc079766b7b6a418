"""What a form may lose of the gradient of a rate of decay, where its docstring says that it does."""

from __future__ import annotations

from collections.abc import Callable

SAYS = "Gradients of log decays are differences of larger sums"

SAID = {"chunk": 2e-4, "fused_recurrent": 1e-3}
"""What a form that says that it loses some 1e-5, or 1e-4, may lose: sums in another order drift another way."""


def says_so(form: Callable[..., object]) -> bool:
    return SAYS in " ".join((form.__doc__ or "").split())
