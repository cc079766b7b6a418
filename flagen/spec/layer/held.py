"""What a name of `forward` holds while it is gone through on paper: a tensor of some shape, a number, nothing."""

from __future__ import annotations

from dataclasses import dataclass

from flagen.spec.layer.model import Constant
from flagen.spec.layer.operators import Given, Unclear
from flagen.spec.layer.shapes import Shape


@dataclass(frozen=True)
class Tensor:
    """A tensor of a shape, or of one that is not known here."""

    shape: Shape | None


@dataclass(frozen=True)
class NotGiven:
    """An input that this call may have, or not."""


UNKNOWN = Tensor(None)
NOT_GIVEN = NotGiven()

Held = Constant | Tensor | NotGiven | tuple["Held", ...]
"""What a name of `forward` holds."""


def described(held: Held) -> str:
    """What it is, in a message."""
    match held:
        case Tensor():
            return "a tensor"
        case NotGiven():
            return "an input that may not be given"
        case tuple():
            return "several values"
        case _:
            return "None" if held is None else repr(held)[:40]


def as_held(result: Shape | tuple[Shape, ...]) -> Held:
    """The tensors that a word gives: one, or several."""
    if result and isinstance(result[0], tuple):
        return tuple(Tensor(shape) for shape in result if isinstance(shape, tuple))
    return Tensor(tuple(size for size in result if not isinstance(size, tuple)))


def as_given(held: Held) -> Given:
    """What an operator is given with it."""
    if isinstance(held, Tensor):
        return held.shape if held.shape is not None else Unclear()
    return Unclear() if isinstance(held, NotGiven | tuple) else held
