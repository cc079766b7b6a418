"""What a word of a layer is: how it is called, what the parameters of such a module are, what becomes of the shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flagen.spec.layer.model import Scalar
from flagen.spec.layer.shapes import Shape

Given = Mapping[str, Any]
"""What a word is given, by the names of its parameters: numbers, texts, truth values, None; the shapes of tensors."""

ACTIVATIONS = ("silu", "swish", "sigmoid", "relu", "sqrelu", "tanh", "gelu", "gelu_exact", "identity")


@dataclass(frozen=True)
class Parameter:
    """A parameter of a word; without `optional` it has to be given."""

    name: str
    optional: bool = False
    default: Scalar = None

    def __str__(self) -> str:
        return f"{self.name}={self.default!r}" if self.optional else self.name


def parameters(text: str) -> tuple[Parameter, ...]:
    """The parameters that a text such as `size, eps, bias=True` declares."""
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, optional, default = part.partition("=")
        found.append(Parameter(name, bool(optional), _default(default)))
    return tuple(found)


def _default(text: str) -> Scalar:
    if text in _DEFAULTS:
        return _DEFAULTS[text]
    return int(text) if text.isdigit() else float(text)


_DEFAULTS: dict[str, Scalar] = {"": None, "None": None, "True": True, "False": False}
_DEFAULTS |= {repr(name): name for name in ACTIVATIONS}


@dataclass(frozen=True)
class Constructor:
    """Makes a module. `given` are what it is made from, `called` the tensors that the module is called with.

    `weights` has the shapes of its parameters by their names below it, `result` the shape of what it returns; several
    shapes, where it returns several values. A module `keeps` something from token to token, or needs to know how many
    there were before: the layer sees to that, and no spec writes it.
    """

    name: str
    given: tuple[Parameter, ...]
    called: tuple[Parameter, ...]
    weights: Callable[[Given], dict[str, tuple[int, ...]]]
    result: Callable[[Given, Given], Shape | tuple[Shape, ...]]
    doc: str
    keeps: Literal["inputs", "token", "position"] | None = None
    since: int = 1
    """The version of the language that it is from."""


@dataclass(frozen=True)
class Function:
    """A function of tensors. `tensors` come first, then what is known when a layer is constructed."""

    name: str
    tensors: tuple[Parameter, ...]
    known: tuple[Parameter, ...]
    result: Callable[[Given], Shape | tuple[Shape, ...]]
    doc: str
    since: int = 1
    """The version of the language that it is from."""

    @property
    def given(self) -> tuple[Parameter, ...]:
        return self.tensors + self.known


@dataclass(frozen=True)
class Rule:
    """What a parameter starts from: drawn or computed, of its own shape."""

    name: str
    given: tuple[Parameter, ...]
    doc: str
    whole: bool = False
    """Whether it fills a matrix as a whole, so that nothing is computed from it."""
    since: int = 1
    """The version of the language that it is from."""


Word = Constructor | Function | Rule


def signature(word: Word) -> str:
    """How a word is called: `rms_norm(size, eps, elementwise_affine=True)`."""
    return f"{word.name}({', '.join(map(str, word.given))})"
