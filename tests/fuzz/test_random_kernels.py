"""Rung 3 for random specs: what the kernels compute is the recurrence.

A few examples always, the same ones every time, and every spec that ever showed a mistake. FLAGEN_FUZZ=500 draws that
many new ones instead, per property.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from hypothesis import Phase, given, settings

from flagen.diagnostics import SpecError
from flagen.spec import load_spec, parse_spec
from tests.algebra.cases import SPECS
from tests.fuzz.kernels import SHAPES, Rounded, check, compare
from tests.fuzz.ladder import Shape
from tests.fuzz.mixed import mixed_specs
from tests.fuzz.packages import build, imported
from tests.fuzz.specs import affine_specs, wild_specs
from tests.fuzz.staged import staged_specs
from tests.fuzz.test_random_specs import some
from tests.tiers import exhaustive, interpreted

torch.set_num_threads(1)
pytestmark = [
    pytest.mark.usefixtures("kernels", "poisoned_memory"),
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
]

VECTORS = "q: [K], k: [K], v: {dims: [V], heads: HV}, c: [V]"

FOUND = {
    "a value that no token changes, under a right read": f"""
inputs: {{{VECTORS}, gv: {{dims: [V], range: [-.inf, 0]}}}}
params: {{sink: {{dims: [K]}}}}
update: S = exp(gv) * S + 0.5 * outer(sink, softmax(v))
output: o = S.T @ q + c
""",
    "a vector that no token changes, read from the right": f"""
inputs: {{{VECTORS}}}
params: {{A: {{per: head, range: [-.inf, 0]}}, shift: {{dims: [V]}}}}
update: S = sigmoid(A) * S + outer(k, v - k @ S) + outer(q, c)
output: o = S @ -shift
""",
    "a number in a name that a right read takes": f"""
inputs: {{{VECTORS}, s: [], r: [], beta: {{dims: [], heads: HV, range: [0, 1]}}}}
let: {{w: s * c + v}}
update: S = (S + outer(k, v - S.T @ k) * beta) / (0.5 + r ** 2)
output: o = S @ w + q
""",
    "a decay by heads, under a right read": f"""
inputs: {{{VECTORS}}}
update:
  - S = (S - 0.5 * outer(S @ c, c)) / (1 + abs(head))
  - S = S + outer(k, v)
output: o = S.T @ q
""",
    "a decay that is known to be weak, under a right read": f"""
inputs: {{{VECTORS}}}
params: {{eps: {{range: [0.1, 1]}}}}
update: S = (S + outer(k, v - S.T @ k)) / (1 + eps)
output: o = S @ c + q
""",
    "a function of a vector and a number": f"""
inputs: {{{VECTORS}, keep: {{dims: [], range: [0.2, 0.9]}}}}
update: S = 0.9 * S + outer(minimum(k, keep), maximum(v, keep ** 2) ** keep)
output: o = S.T @ (abs(q) ** keep)
""",
    "a softmax of rows that are not there": f"""
inputs: {{{VECTORS}, gk: {{dims: [K], range: [-.inf, 0]}}}}
let: {{w: softmax(k)}}
update:
  - S = sqrt(exp(gk)) * S
  - S = S + outer(w, v - w @ S) * 0.5
output: o = S_prev.T @ q + c
""",
    "a sum of what a right read reads": f"""
inputs: {{{VECTORS}}}
update: S = S + outer(k - S @ c, v)
output: o = sum(S @ c) * q
""",
    "nothing but a decay": f"""
inputs: {{{VECTORS}, gk: {{dims: [K], range: [-.inf, 0]}}}}
update: S = exp(gk) * S
output: o = S.T @ (q + k) + v + c
""",
    "three matrices in the registers of one program": f"""
inputs: {{{VECTORS}}}
state: {{S: [K, V], Z: [V, K], Y: [K, V]}}
update:
  - S = Y_prev
  - Z = outer(v, q)
  - Y = 0.5 * Y + Z.T + outer(k, c)
output: o = 0.5 + sum(S) + sum(Z) + sum(Y)
""",
    "an output that is no linear function of a read": f"""
inputs: {{{VECTORS}}}
update: S = S + 0.5 * outer(k, v - S.T @ k)
output: o = silu(S.T @ q) + c
""",
    "norms along channels that are elementwise": """
state: {u: [K]}
inputs: {q: [K], k: [K]}
update: u = 0.9 * u + softmax(q) * l2norm(exp(k))
output: o = u
""",
    "a local that one state takes whole, and another a part of it": f"""
state: {{m: [], z: [K], S: [K, V]}}
inputs: {{{VECTORS}, i: []}}
update:
  - m = 0.5 * m + i
  - weight = tanh(m)
  - S = S + weight * outer(k, v)
  - z = z + weight * k
output: o = (S.T @ q) / (1 + abs(dot(z, q))) + c
""",
    "a state that counts": f"""
state: {{S: [K, V], n: []}}
inputs: {{{VECTORS}}}
update:
  - S = S + outer(k, v)
  - n = n + 1
output: o = (S.T @ q) / (2 + abs(n)) + c
""",
    "an output behind the stages that names what let and a local hold": f"""
state: {{S: [K, V], n: [K]}}
inputs: {{{VECTORS}, b: {{dims: [], range: [0, 1]}}}}
params: {{D: {{per: head}}}}
let: {{u: D, w: l2norm(c)}}
update:
  - weight = 1 - b
  - S = S + outer(k, v)
  - n = n + k
output: o = u * (S.T @ q) / (1 + dot(n, weight * q) ** 2) + w
""",
    "a size that a row names along the other dim": f"""
inputs: {{{VECTORS}}}
update: S = 0.9 * S - 0.5 * outer(S @ c, 0.2 * c) + outer(k, (1 - 2 / K) * v)
output: o = S.T @ q
""",
    "the size of a dim that the stage of the output has not": f"""
state: {{F: [K, M], S: [K, V]}}
inputs: {{{VECTORS}, x: [M]}}
update:
  - F = F + outer(k, x)
  - S = S + outer(k, v + c)
output: o = M ** -0.5 * (S.T @ (F @ x)) + sum(q)
""",
    "a matrix that is read by what was read of it": f"""
state: {{A: [K, M], S: [K, V]}}
inputs: {{{VECTORS}, x: [M]}}
update:
  - A = 0.9 * A + outer(k, x)
  - S = S + outer(k, v)
output:
  - y = A @ (A.T @ q)
  - o = S.T @ l2norm(y) + c
""",
    "a key that is made of the token before": """
state: {S: [K, V], last: [K]}
inputs: {q: [K], k: [K], v: [V], g: {dims: [K], range: [-.inf, 0]}}
params: {mu: {dims: [K], per: head, range: [0, 1]}}
update:
  - mixed = mu * k + (1 - mu) * last
  - S = exp(g) * S + outer(mixed, v)
  - last = k
output: o = S.T @ q
""",
}
"""Specs whose kernels were wrong, or could not be written, for what their names say."""


NAMED = {
    "no decay": "S = S + outer(key, value)",
    "a decay": "S = exp(g) * S + 0.5 * outer(key, value - S.T @ key)",
    "a decay of each key": "S = exp(gk) * S + 0.5 * outer(key, value - S.T @ key)",
}
"""Updates with rows that a spec derives and has a name for."""


UNSHRUNK = (Phase.explicit, Phase.generate)
"""A smaller example is not worth the minutes that it takes to find it."""


@interpreted
@pytest.mark.parametrize("update", NAMED.values(), ids=NAMED)
def test_rows_that_have_a_name_are_operands_like_others(update):
    """In bfloat16: evaluated in float32, and rounded for the matrix products."""
    decays = {"g": "{dims: [], range: [-1, 0]}", "gk": "{dims: [K], range: [-1, 0]}"}
    more = "".join(f", {name}: {decl}" for name, decl in decays.items() if f"exp({name})" in update)
    spec = parse_spec(
        f"flagen: 1\nname: random_spec\nstate: {{S: [K, V]}}\ninputs: {{{VECTORS}{more}}}\n"
        "let: {key: l2norm(k), value: c - v, query: 2 * q}\n"
        f"update: {update}\noutput: o = S.T @ query\n"
    )
    with imported(build(spec)) as package:
        problem = Rounded(spec, SHAPES[0], torch.bfloat16)
        exact = {name: x.double() for name, x in problem.leaves.items()}
        expected = problem.results(partial(problem.called, package), exact)
        found = (*problem.chunked(package), *problem.recurrent(package))
        compare(SHAPES[0], expected, found, lambda name: 2e-2 if name.startswith("d ") else 5e-3)


@pytest.mark.parametrize("shapes", [SHAPES[:1], pytest.param(SHAPES[1:], marks=exhaustive)], ids=["one", "others"])
@pytest.mark.parametrize("name", FOUND)
def test_what_was_once_wrong(name, shapes):
    text = FOUND[name] if "state:" in FOUND[name] else f"state: {{S: [K, V]}}\n{FOUND[name]}"
    climb(f"flagen: 1\nname: random_spec\n{text}", shapes)


@settings(some(1), phases=UNSHRUNK)
@given(affine_specs())
def test_updates_that_papers_write(text):
    climb(text)


@settings(some(2), phases=UNSHRUNK)
@given(wild_specs())
def test_updates_that_nobody_writes(text):
    climb(text)


@settings(some(1), phases=UNSHRUNK)
@given(staged_specs())
def test_states_that_feed_one_another(text):
    climb(text)


@settings(some(2), phases=UNSHRUNK)
@given(mixed_specs(narrow=True))
def test_states_that_numbers_mix(text):
    climb(text)


def climb(text: str, shapes: Sequence[Shape] = SHAPES) -> None:
    """The kernels of `text`, if it is a spec, are its recurrence."""
    try:
        spec = parse_spec(text)
    except SpecError:
        return  # tests.fuzz.test_random_specs looks at what it was refused for.
    with imported(build(spec)) as package:
        check(spec, package, shapes=shapes)


MISTAKES = [
    ("chunk_kernels.py", "U_operand = U.to", "U_operand = R.to"),
    ("chunk_kernels.py", "token_mask = token < end_token", "token_mask = token < end_token - 1"),
    ("chunk_prepare.py", "token_index[:, None] > token_index", "token_index[:, None] >= token_index"),
    ("chunk.py", "scale = args.K**-0.5", "scale = args.V**-0.5"),
    ("fused_recurrent_kernels.py", "alpha = tl.exp(g)", "alpha = tl.exp(2 * g)"),
]


@interpreted
@pytest.mark.parametrize(("path", "right", "wrong"), MISTAKES, ids=[f"{path}: {wrong}" for path, _, wrong in MISTAKES])
def test_one_mistake(path, right, wrong):
    """The rung fails where it should."""
    spec = load_spec(SPECS / "gated_delta_rule.yaml")
    files = build(spec)
    assert right in files[path], "the file no longer says this: make the mistake elsewhere"
    with (
        imported({**files, path: files[path].replace(right, wrong)}) as package,
        pytest.raises(AssertionError),
    ):
        check(spec, package)
