"""The kernels of odd specs are proved, too: what they use of functions holds, and what they divide by is no zero."""

from __future__ import annotations

import pytest

from flagen import pipeline
from flagen.kernel import Programs
from flagen.kernel.prove import prove
from flagen.spec import parse_spec
from flagen.spec.model import Spec

HEAD = "flagen: 1\nname: odd\n"

ODD = {
    "a sum that a loop makes wider": """
state: {S: [K, V]}
inputs: {q: [K], k: {dims: [K], per: step}, W: [K, V]}
steps: {n: num_steps, default: 2}
update: [{repeat: n, do: ["S = S + outer(k, sum(W, K))"]}]
output: o = S.T @ (q * sum(W, V))
""",
    "constants that are folded": """
state: {h: [D]}
inputs: {x: [D], a: {dims: [D], range: [0, 1]}}
update: h = sigmoid(2) * a * h + x * tanh(1 / 3) + log(1 + softplus(1e-2))
output: o = h
""",
    "powers with all kinds of exponents": """
state: {S: [K, V]}
inputs: {q: [K], k: [K], v: [V], b: {dims: [], range: [0, 1]}}
params: {A: {dims: [], per: head}}
update: S = exp(-abs(A) ** 1.5) * S + outer((1 + b) ** A * k, 0.9 ** head * v)
output: o = S.T @ (q * (1 + q ** 2) ** -0.5)
""",
    "roots of exponentials": """
state: {S: [K, V]}
inputs: {q: [K], k: [K], v: [V], g: {dims: [K], range: [-.inf, 0]}}
update: S = sqrt(exp(g)) * S + outer(k, v)
output: o = S.T @ q
""",
    "an order of additions that only true functions have": """
state: {m: {dims: [K], init: -.inf}, S: [K, V]}
inputs: {k: [K], x: [V], u: {dims: [], range: [0.2, 0.9]}, q: [K]}
update:
  - m = logaddexp(m, k)
  - S = exp(m_prev - m) * S + outer(exp(k - m), u * x)
output: o = S.T @ q
""",
    "a clamp": """
state: {h: [D]}
inputs: {x: [D], a: {dims: [D], range: [0, 1]}}
params: {low: {default: -1}, high: {default: 1}}
update: h = a * h + clamp(x, low, high)
output: o = h
""",
    "a read of nothing that is divided by": """
state: {S: [K, V], z: [K]}
inputs: {q: [K], k: [K], v: [V]}
update:
  - S = S + outer(k, v)
  - z = z + k
output: o = (S_prev.T @ q) / (z_prev @ q)
""",
}


def programs_of(text: str) -> tuple[Spec, Programs]:
    spec = parse_spec(HEAD + text)
    return spec, pipeline.lower(pipeline.make_plan(spec, pipeline.derive(spec)))


@pytest.mark.parametrize("name", ODD)
def test_odd_specs_are_proved(name: str) -> None:
    spec, programs = programs_of(ODD[name])
    assert len(prove(spec, programs)) >= 2
