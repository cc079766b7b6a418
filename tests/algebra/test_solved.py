"""Systems of equations with a matrix state: what is found of them, which matrices are known to be positive definite,
and that mistakes in what is derived are refused."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction

import pytest

from flagen import algebra
from flagen.algebra import Derivation
from flagen.algebra.solved_proof import prove_solved
from flagen.diagnostics import InternalError
from flagen.spec import parse_spec, to_source
from flagen.spec.model import Binary, Number
from tests.algebra import mutants
from tests.algebra.cases import variant

MATRIX = "A = exp(g) * A + beta * outer(k, over(k, K2))"
SOLVED = "o = solve(A, q, d)"
INPUTS = {
    **dict.fromkeys(("q", "k"), "[K]"),
    "d": "{dims: [K], range: [0.5, .inf]}",
    "gk": "{dims: [K], range: [-.inf, 0]}",
    "g": "{dims: [], range: [-.inf, 0]}",
    "beta": "{dims: [], range: [0, 1]}",
    "s": "[]",
    "ridge": "{dims: [], range: [0.5, 2]}",
}


def derived(*update: str, output: str = SOLVED, state: str = "A: [K, K2]") -> Derivation:
    """What is derived from these statements, and proved."""
    used = set(re.findall(r"\w+", " ".join((*update, output))))
    inputs = "".join(f"\n  {name}: {declared}" for name, declared in INPUTS.items() if name in used)
    statements = "".join(f"\n  - {statement}" for statement in update)
    outputs = "".join(f"\n  - {line}" for line in output.splitlines())
    text = f"flagen: 2\nname: written\ndims: {{K2: K}}\nstate: {{{state}}}\ninputs:{inputs}\nupdate:{statements}"
    spec = parse_spec(f"{text}\noutput:{outputs}\n")
    derivation = algebra.derive(spec)
    algebra.prove(spec, derivation)
    return derivation


def test_mesa_net():
    derivation = variant("mesa_net")
    assert derivation.staged is not None and derivation.staged.output is None
    of_matrix, of_values = derivation.stages
    solved = of_matrix.solved
    assert solved is not None and of_values.solved is None
    assert (to_source(solved.right), to_source(solved.shift)) == ("q", "lamb")
    assert solved.operator.reads[0].side == "left" and to_source(solved.operator.output) == "read0"
    assert to_source(solved.residual) == "q - (read0 + lamb * over(direction, K))"
    assert [decl.name for decl in derivation.staged.given(derivation.staged.stages[1])] == ["x"]


FOUND = {
    "an output that is made of a solution": (MATRIX, "o = dot(q, over(solve(A, q, d), K)) * k"),
    "a solution, and nothing else": (MATRIX, SOLVED),
    "a number on the diagonal": (MATRIX, "o = over(solve(A, q, ridge), K)"),
    "before the token": (MATRIX, "o = over(solve(A_prev, k, 0.5), K)"),
    "two systems of one matrix": (MATRIX, "x = over(solve(A, q, d), K)\no = x + over(solve(A, beta * k, 1), K)"),
    "between two statements": (
        "A = exp(g) * A\n  - x = solve(A, q, d)\n  - A = A + beta * outer(k, over(k, K2))",
        "o = over(x, K)",
    ),
    "a sum of outer products": (
        "A = exp(g) * A + 2 * outer(k - q, over(k - q, K2)) + beta / ridge * outer(s * d, s * over(d, K2))",
        "o = over(solve(A, k, d), K)",
    ),
}


@pytest.mark.parametrize(("update", "output"), FOUND.values(), ids=FOUND)
def test_what_has_a_chunk_form(update, output):
    derivation = derived(update, output=output)
    assert all(stage.solved is not None for stage in derivation.stages or (derivation,))


UNKNOWN = "A is not known to be symmetric and positive: "
REFUSED = {
    "no number for the diagonal": (
        MATRIX,
        "o = over(solve(A, q), K)",
        "`solve(A, q)` may have no solution: nothing is added to the diagonal of the matrix",
    ),
    "a number that may be 0": (
        MATRIX,
        "o = over(solve(A, q, beta), K)",
        "`beta` on the diagonal is not above 0 by the declared ranges",
    ),
    "a decay of either sign": (
        "A = s * A + outer(k, over(k, K2))",
        SOLVED,
        UNKNOWN + "`s * A` has the factor `s`, which may be negative",
    ),
    "a write of either sign": (
        "A = A + s * outer(k, over(k, K2))",
        SOLVED,
        UNKNOWN + "`s * outer(k, over(k, K2))` has the factor `s`, which may be negative",
    ),
    "a write that is taken away": (
        "A = A - beta * outer(k, over(k, K2))",
        SOLVED,
        UNKNOWN + "`A - beta * outer(k, over(k, K2))` is no `A`, no `outer(k, over(k, K2))`, and no sum of these",
    ),
    "two vectors": (
        "A = A + outer(k, over(q, K2))",
        SOLVED,
        UNKNOWN + "`outer(k, over(q, K2))` is not symmetric: no `outer(k, over(k, K2))` of one `k` over K",
    ),
    "numbers inside, of either sign": (
        "A = A + outer(s * k, over(k, K2))",
        SOLVED,
        UNKNOWN + "`outer(s * k, over(k, K2))` has the factor `s`, which may be negative",
    ),
    "a decay of each channel": (
        "A = exp(gk) * A + outer(k, over(k, K2))",
        SOLVED,
        UNKNOWN + "`exp(gk) * A` is no `A`, no `outer(k, over(k, K2))`, and no sum of these",
    ),
    "an erasure": (
        "A = A + beta * outer(k, over(k, K2) - A.T @ k)",
        SOLVED,
        UNKNOWN + "`outer(k, over(k, K2) - A.T @ k)` is not symmetric: no `outer(k, over(k, K2))` of one `k` over K",
    ),
    "a write that depends on the solution": (
        "x = over(solve(A, q, d), K)\n  - A = A + outer(x, over(x, K2))",
        SOLVED,
        "`solve(A, q, d)` is not affine in the state",
    ),
    "a system of the solution of another": (
        MATRIX,
        "x = over(solve(A, q, d), K)\no = over(solve(A, beta * x, 1), K)",
        "`beta * x` reads the state that the system is of",
    ),
    "a right side that reads the matrix": (
        MATRIX,
        "o = over(solve(A, A @ over(k, K2), d), K)",
        "`A @ over(k, K2)` reads the state that the system is of",
    ),
}


@pytest.mark.parametrize(("update", "output", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_has_none(update, output, reason):
    missing = derived(update, output=output).no_chunk_form
    assert missing is not None
    assert missing.reason.removeprefix("the stage of A has no chunk form: ") == reason


def test_a_matrix_that_starts_negative():
    missing = derived(MATRIX, output="o = over(solve(A, q, d), K)", state="A: {dims: [K, K2], init: -1}").no_chunk_form
    assert missing is not None and missing.reason.endswith("A starts from a negative matrix")


def test_mistakes_are_refused():
    """In the right side, on the diagonal, and in every term of the operator's chunk form and of its adjoint."""
    stage = variant("mesa_net").stages[0]
    solved, chunk, adjoint = stage.solved, stage.chunk_form, stage.adjoint
    assert solved is not None and chunk is not None and adjoint is not None
    two = Number(Fraction(2))
    wrong = {
        "the right side twice": replace(solved, right=Binary("*", two, solved.right)),
        "the diagonal twice": replace(solved, shift=Binary("*", two, solved.shift)),
        "no diagonal": replace(solved, shift=Number(Fraction(0))),
        "another spec": replace(solved, spec=replace(solved.spec, update=solved.spec.update[:0])),
    }
    for what, mistaken in wrong.items():
        with pytest.raises(InternalError, match="nothing was written"):
            prove_solved(mistaken, chunk, adjoint)
            pytest.fail(what)
    for system, form in ((chunk.system, "chunk"), (adjoint.system, "adjoint")):
        count = 0
        for mutant in mutants.of_system(system, solved.operator):
            forms = {"chunk": chunk, "adjoint": adjoint}
            forms[form] = replace(forms[form], system=mutant.value)
            if mutant.same_because is None:
                count += 1
                with pytest.raises(InternalError, match="nothing was written"):
                    prove_solved(solved, **forms)
                    pytest.fail(mutant.what)
        assert count > 10
