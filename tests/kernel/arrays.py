"""The arrays of kernels."""

from __future__ import annotations

from collections.abc import Iterable

from flagen.kernel.ir import Kernel, Store, statements_in


def made(kernels: Iterable[Kernel]) -> set[str]:
    """The arrays that kernels store."""
    return {s.target.array.name for kernel in kernels for s in statements_in(kernel.body) if isinstance(s, Store)}
