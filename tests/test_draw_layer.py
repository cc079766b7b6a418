"""The dataflow of layers, drawn."""

from __future__ import annotations

import re

import pytest

from flagen.describe_layer import describe_layer
from flagen.spec import load_spec, parse_spec
from tests.specs import LAYERS, SPECS

NODE = re.compile(r'    (n\d+)(\(\[|\[\[|\[|\()"(.*)"(\]\)|\]\]|\]|\))')
EDGE = re.compile(r'    (n\d+) -->(?:\|"(\w+)"\|)? (n\d+)')

TEXT = """
flagen: 1
name: small
state: {S: [K, V]}
inputs: {q: [K], k: [K], v: [V]}
update: S = S + outer(k, v)
output: o = S.T @ q
layer:
  class_name: Small
  config: {hidden_size: 8, plain: true}
  dims: {H: "2", n: "1 if plain else 2"}
  params: {mix: {shape: [hidden_size], init: full(0)}}
  inputs: {before: {default: null, description: what another layer left}}
  outputs: [before]
  modules:
    last: shift()
    q_proj: linear(hidden_size, hidden_size)
    v_proj: linear(hidden_size, hidden_size)
    o_proj: linear(hidden_size, hidden_size)
  forward:
    - d = last(x) - x
    - q = heads(q_proj(x + d * mix), H)
    - v = heads(v_proj(x + d * mix), H)
    - before = v if before is None else before
    - o = recurrence(q, silu(q), v)
    - y = o_proj(merge(o * n) + silu(merge(v)))
"""


def parts(chart: str) -> tuple[dict[str, str], list[tuple[str, str, str]]]:
    """The labels of the nodes, and the edges with theirs."""
    first, *lines = chart.split("\n")
    assert first == "flowchart TD"
    nodes = {found[1]: found[3] for line in lines if (found := NODE.fullmatch(line))}
    edges = [(found[1], found[2] or "", found[3]) for line in lines if (found := EDGE.fullmatch(line))]
    assert len(nodes) + len(edges) == len(lines)
    return nodes, edges


def test_modules_operators_and_what_is_between_them_are_nodes() -> None:
    nodes, edges = parts(describe_layer(parse_spec(TEXT)).flowchart)
    assert {(nodes[source], label, nodes[target]) for source, label, target in edges} == {
        ("x", "", "last"),
        ("x", "", "d = last - x"),
        ("last", "", "d = last - x"),
        ("x", "", "x + d * mix"),
        ("d = last - x", "", "x + d * mix"),
        ("x + d * mix", "", "q_proj"),
        ("x + d * mix", "", "v_proj"),
        ("q_proj", "q", "small"),
        ("q_proj", "", "silu(q)"),
        ("silu(q)", "k", "small"),
        ("v_proj", "v", "small"),
        ("small", "", "o * n + silu(v)"),
        ("v_proj", "", "o * n + silu(v)"),
        ("o * n + silu(v)", "", "o_proj"),
        ("o_proj", "", "y"),
        ("before", "", "before"),
    }
    assert sum(label == "x + d * mix" for label in nodes.values()) == 1


@pytest.mark.parametrize("name", LAYERS)
def test_everything_that_a_layer_calls_is_on_a_way_from_what_it_is_given(name: str) -> None:
    spec = load_spec(SPECS / f"{name}.yaml")
    layer = spec.layer
    assert layer is not None
    sheet = describe_layer(spec)
    nodes, edges = parts(sheet.flowchart)
    assert {source for source, _, _ in edges} | {target for _, _, target in edges} <= set(nodes)
    reached = {node for node, label in nodes.items() if label in ("x", *(decl.name for decl in layer.inputs))}
    for source, _, target in edges:  # What a node takes is drawn before it.
        if source in reached:
            reached.add(target)
    assert reached == set(nodes)
    computed = "\n".join(how for _, _, how in sheet.tables[-1].rows)
    called = {module.name for module in layer.modules if re.search(rf"\b{module.name}\(", computed)}
    assert called and called | {name} <= set(nodes.values())
