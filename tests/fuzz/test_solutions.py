"""Systems of equations in specs of every shape: with micro-steps, between statements, of right sides and diagonals that
other states give, several of one matrix, alone and behind others. Every form is the recurrence."""

from __future__ import annotations

import re
from functools import cache
from types import ModuleType

import pytest

from flagen.plan import Unavailable
from flagen.spec import parse_spec
from flagen.spec.model import Spec
from tests.fuzz import kernels, ladder
from tests.fuzz.packages import imported, planned, written

INPUTS = {
    **dict.fromkeys(("q", "k"), "[K]"),
    "v": "{dims: [V], heads: HV}",
    "g": "{dims: [], heads: HV, range: [-.inf, 0]}",
    "b": "{dims: [], range: [0, 1]}",
    "d": "{dims: [K], range: [2, 8]}",
    "kj": "{dims: [K], per: step}",
    "bj": "{dims: [], per: step, range: [0, 1]}",
}
MATRIX = "- A = exp(g) * A + b * outer(l2norm(k), over(l2norm(k), K2))"
SPECS = {
    "alone": (f"{MATRIX}", "o = solve(A, q, d)", "A: [K, K2]"),
    "made into an output": (f"{MATRIX}", "o = outer(over(solve(A, q, 2), K), v).T @ q", "A: [K, K2]"),
    "twice": (
        f"{MATRIX}",
        "o = over(solve(A, q, d), K) + b * over(solve(A_prev, k, 3), K)",
        "A: [K, K2]",
    ),
    "in micro-steps": (
        "- A = exp(g) * A\n- repeat: n\n  do:\n    - A = A + bj * outer(l2norm(kj), over(l2norm(kj), K2))",
        "o = solve(A, q, d)",
        "A: [K, K2]",
    ),
    "before the token's own write": (
        "- A = exp(g) * A\n- x = over(solve(A, k, d), K)\n- A = A + b * outer(l2norm(k), over(l2norm(k), K2))\n"
        "- S = S + outer(x, v - S.T @ k)",
        "o = S.T @ q",
        "A: [K, K2], S: [K, V]",
    ),
    "of what another state gives": (
        f"- z = exp(g) * z + k\n{MATRIX}\n- S = exp(g) * S + outer(k, v)",
        "o = S.T @ over(solve(A, q + z, d + z * z), K)",
        "z: [K], A: [K, K2], S: [K, V]",
    ),
    "of what a matrix gives": (
        f"- S = exp(g) * S + outer(v, k)\n{MATRIX}",
        "o = over(solve(A, S.T @ v, d), K)",
        "S: [V, K], A: [K, K2]",
    ),
}


@cache
def spec_of(name: str) -> Spec:
    update, output, state = SPECS[name]
    used = set(re.findall(r"\w+", f"{update} {output}"))
    inputs = "".join(f"  {x}: {declared}\n" for x, declared in INPUTS.items() if x in used)
    steps = "steps: {n: n, default: 2}\n" if "repeat" in update else ""
    body = "\n".join(f"  {line}" for line in update.splitlines())
    return parse_spec(
        f"flagen: 2\nname: solved\ndims: {{K2: K}}\nstate: {{{state}}}\ninputs:\n{inputs}{steps}"
        f"update:\n{body}\noutput: {output if ',' not in output else repr(output)}\n"
    )


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.usefixtures("kernels", "poisoned_memory")
def test_every_form_is_the_recurrence(name):
    spec = spec_of(name)
    plan = planned(spec)
    assert not isinstance(plan.chunk, Unavailable)
    assert isinstance(plan.fused, Unavailable)
    first = {"A": lambda x: x @ x.mT / x.shape[-1]}

    def check(package: ModuleType) -> None:
        assert hasattr(package, "naive_chunk_solved")
        assert hasattr(package, "chunk_solved") == (len({state.name for state in spec.states}) > 1)
        assert ladder.check(spec, package, first) == len(ladder.SHAPES)
        if hasattr(package, "chunk_solved"):
            assert "o" in kernels.check(spec, package, first, kernels.SHAPES[:1])

    with imported(written(plan)) as package:
        check(package)
