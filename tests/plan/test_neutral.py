"""Which inputs are weights by their log, and what padding has to be there: read off the update, and true on numbers."""

from __future__ import annotations

import pytest
import torch
import yaml

from flagen.plan.neutral import LogWeight, log_weights
from flagen.spec import parse_spec
from tests.algebra.cases import SPECS
from tests.numeric.problems import NAMES, Shape, State, form, forms, make, spec_of

WEIGHTED = [name for name in NAMES if log_weights(spec_of(name))]
CASES = [case for case in forms("naive_recurrent", "naive_chunk") if case[1] in WEIGHTED]


def changed(update: object, **more: object) -> dict[str, LogWeight]:
    """The log weights of lightnet with another update."""
    tree = yaml.safe_load((SPECS / "lightnet.yaml").read_text()) | {"update": update} | more
    return log_weights(parse_spec(yaml.safe_dump(tree, sort_keys=False)))


WRITE = "S = exp(z_prev - z) * S + outer(exp(k - z), v)"


@pytest.mark.parametrize(
    ("update", "weight"),
    [
        (["z = logaddexp(z, k)", WRITE], LogWeight(("z",), True)),
        (["z = logaddexp(k, z)", WRITE], LogWeight(("z",), True)),
        (["z = logaddexp(z, 2 + k)", WRITE], LogWeight(("z",), True)),
        (["x = k - 1", "z = logaddexp(z, x)", WRITE], LogWeight(("z",), True)),
        (["z = logaddexp(z - 1, k)", WRITE], LogWeight(("z",), False)),
        (["z = logaddexp(z, k)", "S = S + outer(exp(-z) * k, v)"], LogWeight(("z",), False)),
        (["z = logaddexp(z, k)", "S = 0.5 * S + outer(exp(k - z), v)"], LogWeight(("z",), False)),
        (["z = logaddexp(z, exp(k))", "S = S + outer(exp(k - z), v)"], None),
        (["z = z + exp(k)", "S = S + outer(exp(k - z), v)"], None),
    ],
)
def test_is_read_off_the_update(update, weight):
    assert changed(update).get("k") == weight


def test_decays_are_taken_for_zero():
    """A decay that an input gives is none for a token of zeros."""
    inputs = {"q": ["K"], "k": ["K"], "v": {"dims": ["V"]}, "g": ["K"]}
    assert changed(
        ["z = logaddexp(z + g, k)", "S = exp(z_prev + g - z) * S + outer(exp(k - z), v)"], inputs=inputs
    ) == {"k": LogWeight(("z",), True)}


def states_of(state: State) -> tuple[torch.Tensor, ...]:
    return (state,) if isinstance(state, torch.Tensor) else state


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_padding_at_any_place_is_what_the_docstring_says(kind, name):
    """Before the first token, between two, and behind the last; with zeros there the state is another."""
    shape, weights = Shape(T=9, K=5, V=4), log_weights(spec_of(name))
    spec, problem = spec_of(name), make(name, Shape(T=9, K=5, V=4), state=False)
    inputs, padding = {decl.name for decl in spec.inputs}, (0, 4, 8)
    kept = [token for token in range(shape.T) if token not in padding]
    without = problem.with_tensors(**{x: problem.tensors[x][:, kept] for x in inputs})

    def padded(weight: float) -> dict[str, torch.Tensor]:
        filled = {x: problem.tensors[x].clone() for x in inputs}
        for x, tensor in filled.items():
            tensor[:, list(padding)] = weight if x in weights else 0.0
        return filled

    o, state = without.call(form(kind, name))
    got, final = problem.with_tensors(**padded(-1e4)).call(form(kind, name))
    _, wrong = problem.with_tensors(**padded(0.0)).call(form(kind, name))
    names = [s.name for s in spec.states]
    neutral = all(weight.neutral for weight in weights.values())
    for i, s in enumerate(names):
        same = torch.allclose(states_of(final)[i], states_of(state)[i], atol=1e-12, rtol=1e-12)
        assert same or not neutral, s
        assert not torch.allclose(states_of(wrong)[i], states_of(state)[i], atol=1e-3, rtol=1e-3), s
    assert not neutral or torch.allclose(got[:, kept], o, atol=1e-12, rtol=1e-12)
    doc = " ".join(form(kind, name).__doc__.split())
    assert "such as -1e4" in doc
    assert ("leaves all states as they are" in doc) == neutral


def test_nothing_else_is_said_of_others():
    assert WEIGHTED == ["abc_attn", "lightnet", "rwkv4"]
    assert "log weight" not in form("naive_chunk", "gsa").__doc__
