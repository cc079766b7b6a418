"""The border to Triton, which ships no type stubs: what is taken from it is `Any` here, and typed beyond.

The interpreter is private API and moves between releases. Nothing here looks at version numbers: an attribute that a
repair stands on is looked up by `stock`, which names it and the version when it isn't there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from triton._C.libtriton import ir
from triton.language import semantic
from triton.runtime import autotuner, interpreter

__all__ = [
    "InterpreterOffError",
    "InterpreterOnError",
    "Patch",
    "UnsupportedTritonError",
    "autotuner",
    "interpreter",
    "ir",
    "patched",
    "require_compiler",
    "require_interpreter",
    "semantic",
    "stock",
    "tl",
    "triton",
]


class InterpreterOffError(RuntimeError):
    """Triton was imported to compile kernels, and was asked to interpret them."""


class InterpreterOnError(RuntimeError):
    """Triton was imported to interpret kernels, and was asked to compile one."""


class UnsupportedTritonError(RuntimeError):
    """This release of Triton lacks something the tools stand on."""


def stock(owner: Any, name: str) -> Any:
    """`owner.name` as Triton ships it."""
    try:
        return getattr(owner, name)
    except AttributeError:
        place = getattr(owner, "__qualname__", None) or getattr(owner, "__name__", None) or type(owner).__qualname__
        raise UnsupportedTritonError(
            f"Triton {triton.__version__} has no {place}.{name}, which the repair of its interpreter stands on; "
            "Triton 3.6 to 3.9 are supported"
        ) from None


def require_interpreter() -> None:
    """Raise unless kernels decorated in this process, Triton's own device functions included, are interpreted."""
    if not (_asked_to_interpret() and _imported_to_interpret()):
        raise InterpreterOffError(
            "Triton's interpreter is off in this process: "
            "set TRITON_INTERPRET=1 in the environment before importing triton"
        )


def require_compiler() -> None:
    """Raise unless kernels decorated in this process, Triton's own device functions included, are compiled."""
    if _asked_to_interpret() or _imported_to_interpret():
        raise InterpreterOnError(
            "Triton interprets in this process and cannot compile: inspect kernels in one without TRITON_INTERPRET"
        )


def _asked_to_interpret() -> bool:
    return bool(triton.knobs.runtime.interpret)


def _imported_to_interpret() -> bool:
    # tl.zeros is decorated while triton is imported: it tells whether the variable was set in time.
    return isinstance(tl.zeros, stock(interpreter, "InterpretedFunction"))


@dataclass(frozen=True)
class Patch:
    """One attribute of Triton to replace."""

    owner: Any
    name: str
    replacement: Any

    def apply(self) -> None:
        setattr(self.owner, self.name, self.replacement)


@contextmanager
def patched(patches: list[Patch]) -> Iterator[None]:
    """The patches in force for a while."""
    undo = [Patch(patch.owner, patch.name, stock(patch.owner, patch.name)) for patch in patches]
    try:
        for patch in patches:
            patch.apply()
        yield
    finally:
        for patch in reversed(undo):
            patch.apply()
