"""What a layer's docstrings say, and the signatures that they are about."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from flagen.backends.text import cited, one_line, wrapped
from flagen.backends.torch_.layer_printer import literal
from flagen.spec.layer.model import Config, Layer, LayerInput
from flagen.spec.model import Spec

_CLASS_DOC_WIDTH = 112
_DOC_WIDTH = 108  # of a line of a docstring in a method, under its indent

COMMON = {
    "hidden_size": "channels of the input and the output.",
    "num_heads": "heads of queries and keys.",
    "num_v_heads": "heads of values, a multiple of num_heads; default num_heads.",
    "num_kv_heads": "heads of keys and values, a divisor of num_heads; default num_heads.",
    "head_dim": "channels of a head.",
    "expand_k": "channels of all queries together, in hidden_size.",
    "expand_v": "channels of values, in those of keys.",
    "mode": "the form that long inputs without gradients take, 'chunk' or 'fused_recurrent'.",
    "use_short_conv": "whether short convolutions come before the operator.",
    "conv_size": "tokens that a short convolution reaches over.",
    "conv_bias": "whether short convolutions have a bias.",
    "layer_idx": "the layer's place in the model: where a cache keeps its states.",
    "norm_eps": "what norms add to a mean square.",
    "elementwise_affine": "whether norms have a weight.",
    "allow_neg_eigval": "write with strengths up to 2, not 1.",
    "use_output_gate": "whether the output is gated.",
    "output_gate_activation": "the activation of the output's gate.",
}
"""What arguments are that many layers have, where a spec doesn't say."""


def class_doc(layer: Layer, spec: Spec) -> Iterator[str]:
    """The class's docstring, before its arguments."""
    yield from textwrap.wrap(f"{one_line(spec.title or spec.name)}{cited(spec.paper)}.", _CLASS_DOC_WIDTH)
    for text in (spec.description, layer.notes):
        if text:
            yield ""
            yield from textwrap.wrap(one_line(text), _CLASS_DOC_WIDTH, break_long_words=False, break_on_hyphens=False)


def argument(config: Config, optional: bool) -> str:
    """An argument of the constructor, with its type and default."""
    kind = "Any" if config.default is config.type is None else annotation(config.default, config.type, optional)
    return f"{config.name}: {kind}" + ("" if config.required else f" = {literal(config.default)}")


def argument_doc(config: Config) -> Iterator[str]:
    """The lines of the docstring on it."""
    text = one_line(config.description).rstrip(".")
    text = f"{text}." if text else COMMON.get(config.name, f"{config.name.replace('_', ' ')}.")
    if config.ignored:
        text += " Taken for the signature's sake: it has no effect."
    yield from wrapped(f"{config.name}: {text}", _DOC_WIDTH)


def input_doc(decl: LayerInput) -> Iterator[str]:
    """The lines of the docstring on an argument of `forward`."""
    text = one_line(decl.description).rstrip(".")
    shape = "[B, T, ...]" if decl.per == "token" else "one value for all tokens"
    yield from wrapped(f"{decl.name}: {', '.join(filter(None, (text, '' if '[' in text else shape)))}.", _DOC_WIDTH)


def annotation(default: object, kind: str | None = None, optional: bool = False) -> str:
    """The type of an argument, by its default and what is said of it; `optional` where it may be None."""
    if kind is None and default is None:
        return "Tensor | None"
    if isinstance(default, tuple):
        return "tuple[float, ...]"
    return f"{kind or type(default).__name__}{' | None' if optional else ''}"
