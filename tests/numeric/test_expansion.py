"""Rungs 3 and 4 for what has no kernels of its own: its rows, launched as tokens, against the recurrence in float64."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import product
from types import ModuleType

import torch

from flagen.spec import parse_spec
from flagen.spec.model import Spec
from tests.fuzz import kernels
from tests.fuzz.kernels import Rounded
from tests.fuzz.ladder import Shape
from tests.fuzz.packages import build, imported
from tests.tiers import tiered

DECLARED = {
    "q": "[K]",
    "k": "[K]",
    "a": "{dims: [K], heads: HV}",
    "v": "{dims: [V], heads: HV}",
    "c": "[V]",
    "x": "{dims: [J], heads: HV}",
    "m": "{dims: [J, K]}",
    "beta": "{dims: [], heads: HV, range: [0, 1]}",
    "g": "{dims: [], heads: HV, range: [-1, 0]}",
    "gk": "{dims: [K], range: [-.inf, 0]}",
    "gv": "{dims: [V], heads: HV, range: [-.inf, 0]}",
    "kj": "{dims: [K], per: step}",
    "vj": "{dims: [V], per: step, heads: HV}",
    "gj": "{dims: [], per: step, range: [-.inf, 0]}",
    "gkj": "{dims: [K], per: step, heads: HV, range: [-.inf, 0]}",
}

CASES = {
    "unlike rows under decays of each key": (
        "S = exp(gk) * S; S = S + outer(a, v); S = S + beta * outer(l2norm(k), c - S.T @ l2norm(k))",
        "S.T @ q",
    ),
    "several writes beside an erasure before the decay": (
        "S = exp(g) * S + outer(l2norm(k), c - S.T @ l2norm(k)) + outer(a, v) + outer(q, c * v)",
        "S.T @ q + v",
    ),
    "decays of each key within micro-steps": (
        "repeat: S = exp(gkj) * S; S = S + 0.5 * outer(l2norm(kj), vj - S.T @ l2norm(kj))",
        "S.T @ q",
    ),
    "micro-steps between other rows": (
        "S = exp(g) * S; repeat: S = exp(gj) * S; S = S + outer(l2norm(kj), vj - S.T @ l2norm(kj)); end;"
        " S = S + outer(k, v)",
        "S.T @ q",
    ),
    "a decay once before micro-steps of several rows": (
        "S = exp(gk) * S; repeat: S = S + outer(kj, vj); S = S - 0.5 * outer(l2norm(q), S.T @ l2norm(q))",
        "(S_prev.T @ q) * v",
    ),
    "reads before, between and after": (
        "S = exp(gk) * S; u = S.T @ q; S = S + outer(a, v - u)",
        "tanh(S.T @ q) + u * (S_prev.T @ k)",
    ),
    "sums over the values of a row": ("S = exp(g) * S + outer(k, l2norm(v))", "S.T @ q"),
    "sums over the values of what is read": ("S = S + beta * outer(l2norm(k), v - S.T @ l2norm(k))", "l2norm(S.T @ q)"),
    "dims beyond the state's": ("S = exp(gk) * S + outer(x @ m, v)", "sum(x) * (S.T @ q)"),
    "a row that is the same for every channel": ("S = exp(g) * S + outer(k, v)", "mean(S, K)"),
    "an output over both dims": ("S = exp(gk) * S + outer(k, v)", "outer(q, S.T @ q)"),
    "an output of no dims": ("S = exp(gk) * S + outer(k, v)", "dot(S.T @ q, c)"),
    "a normalized read from the right": ("S = S * exp(gv) + outer(k - S @ l2norm(v), l2norm(v))", "l2norm(S @ c)"),
    "reads from the right around a decay": ("S = exp(gk) * S; u = S @ c; S = S + outer(k, v)", "u + 2 * (S @ v)"),
    "nothing but a decay": ("S = exp(gk) * S", "S.T @ q + c"),
}

SHAPES = (
    Shape(tokens=0, first=16, second=12, chunk=16),
    Shape(tokens=1, batch=2, H=2, HV=2, first=20, second=16, steps=1, chunk=16),
    Shape(lengths=(0, 9, 1, 0, 5, 0), tokens=15, H=1, HV=2, first=12, second=20, steps=3, initial=False, chunk=16),
    Shape(tokens=35, H=1, HV=1, first=16, second=33, steps=1, chunk=64),
)
LOW_PRECISION = Shape(tokens=20, H=1, HV=2, first=60, second=24, steps=2)


@cache
def spec_of(case: str) -> Spec:
    update, output = CASES[case]
    used = {name: fields for name, fields in DECLARED.items() if re.search(rf"\b{name}\b", f"{update} {output}")}
    lines = ["flagen: 1", "name: random_spec", "state: {S: [K, V]}", "inputs:"]
    lines += [f"  {name}: {fields}" for name, fields in used.items()]
    lines += ["steps: {n: num_steps, default: 2}"] if "repeat:" in update else []
    return parse_spec("\n".join([*lines, "update:", *_statements(update), f"output: o = {output}", ""]))


def _statements(update: str) -> Iterator[str]:
    """The lines of an update whose statements are `;` apart; `repeat:` starts a block that goes up to `end`."""
    indent = "  "
    for statement in update.split("; "):
        if statement.startswith("repeat: "):
            yield "  - repeat: n\n    do:"
            indent = "      "
        indent = "  " if statement == "end" else indent
        if statement != "end":
            yield f"{indent}- {statement.removeprefix('repeat: ')}"


@contextmanager
def package_of(case: str) -> Iterator[tuple[Spec, ModuleType]]:
    spec = spec_of(case)
    with imported(files_of(case)) as package:
        yield spec, package


@cache
def files_of(case: str) -> dict[str, str]:
    return build(spec_of(case))


@tiered(("case", "shape"), product(CASES, SHAPES), lambda _, shape: shape.lengths is not None)
def test_float32(case, shape):
    assert "_launch_rows" in files_of(case)["chunk.py"]
    with package_of(case) as (spec, package):
        problem = Rounded(spec, shape)
        expected = problem.reference(package)
        assert "o" in expected and "final S" in expected
        kernels.compare(shape, expected, problem.chunked(package))


@tiered("case", [(case,) for case in CASES], lambda case: case.startswith("reads"))
def test_low_precision(case):
    with package_of(case) as (spec, package):
        problem = Rounded(spec, LOW_PRECISION, torch.bfloat16)
        expected = problem.called(package, {name: x.double() for name, x in problem.leaves.items()})
        kernels.compare(
            LOW_PRECISION,
            expected,
            [("chunk", problem.called(package, problem.leaves, form="chunk", chunk_size=32))],
            bound=lambda _: 5e-3,
        )


def test_what_the_rows_take_is_in_the_docstring():
    with package_of("sums over the values of what is read") as (_, package):
        doc = " ".join(package.chunk_random_spec.__doc__.split())
    assert "sums over V" in doc
    assert "its row is evaluated in PyTorch and kept in memory, 3 K + V numbers each" in doc
    assert "V numbers each in float32, of which the output is made" in doc


def test_a_gradient_is_that_of_the_pytorch_form():
    with package_of("reads before, between and after") as (spec, package):
        problem = Rounded(spec, kernels.SHAPES[0])
        chunk, naive = (
            problem.results(partial(problem.called, package, form=form, **more))
            for form, more in (("chunk", {"chunk_size": 16}), ("naive_recurrent", {}))
        )
    kernels.compare(kernels.SHAPES[0], naive, [("chunk", chunk)])
