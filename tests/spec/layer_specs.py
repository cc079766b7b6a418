"""Specs with a layer that tests read, and ways to look at them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from flagen.diagnostics import Source, Span
from flagen.spec import load_spec
from flagen.spec.layer.model import Expr, Layer

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
VALID = [HERE / "valid" / f"{name}.yaml" for name in ("gated_deltanet", "layer_of_everything")]
TEXTS = [path.read_text(encoding="utf-8") for path in VALID]

OPERATOR = """\
flagen: 1
name: example
state: {S: [K, V]}
inputs: {q: [K], k: [K], v: [V]}
params: {scale: {default: 1}}
update: S = S + outer(k, v)
output: o = scale * (S.T @ q)
layer:
  class_name: Example
  config: {hidden_size: 64, num_heads: 4, a: true, b: false, kind: {default: x, one_of: [x, y, z]}, may: null}
  dims: {H: num_heads}
  modules:
    q_proj: linear(hidden_size, hidden_size)
    o_proj: linear(hidden_size, hidden_size)
  forward:
    - q = heads(q_proj(x), H)
    - r = q * (1 if a else 2 if b else 3 if kind == 'x' else 4 if may is None else 5)
"""


def layer_of(name: str) -> Layer:
    layer = load_spec(HERE / "valid" / f"{name}.yaml").layer
    assert layer is not None
    return layer


def every_expression(layer: Layer) -> Iterator[Expr]:
    for entry in (*layer.dims, *layer.attributes, *layer.modules, *layer.init, *layer.forward):
        yield entry.value
    for require in layer.require:
        yield require.condition
    for param in layer.params:
        yield from (*param.shape, param.init)
    yield from (guard for guard in (entry.condition for entry in (*layer.params, *layer.init)) if guard is not None)


def text_at(source: Source, span: Span) -> str:
    return source.line(span.line)[span.column - 1 : span.column - 1 + span.length]
