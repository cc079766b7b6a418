"""Factors of every kind, in every role of every family, in every form of the operator: what they compute and their
gradients are the recurrence's. In float32 where blocks of every axis have sizes of their own, and where they have one.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from types import ModuleType

import pytest
import torch

from flagen import pipeline
from flagen.spec import parse_spec
from flagen.spec.model import Spec
from tests.fuzz import kernels, ladder
from tests.fuzz.factors import FACTORS, FAMILIES, KERNELS, spec_text
from tests.fuzz.packages import build, imported
from tests.tiers import exhaustive, tiered

torch.set_num_threads(1)
pytestmark = [
    pytest.mark.usefixtures("kernels", "poisoned_memory"),
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
]

APART = ladder.Shape(tokens=19, H=1, HV=2, first=20, second=36, chunk=16)
"""Blocks of 16 rows, 32 keys and 64 values."""

ALIKE = ladder.Shape(tokens=19, H=1, HV=2, first=14, second=12, chunk=16)
"""Blocks of 16 of each: what is spread along a wrong axis is wrong, and nothing says so."""

FIRST = list(enumerate(FAMILIES))
"""A spec of each family; each starts with another factor."""

SEEN = {family for families in KERNELS.values() for family in list(families)[::2]}
"""Every other family of those that have the same kernels."""

SHOWN = {next(iter(families)) for families in KERNELS.values()}
"""One of each of those, which is interpreted."""

REST = [(number + more, family) for number, family in FIRST for more in range(1, len(FACTORS))]
"""Those that put every factor in every place."""


@tiered(("number", "family"), FIRST, lambda number, family: family in SEEN, lambda number, family: family in SHOWN)
def test_factors(number, family):
    check(number, family)


@exhaustive
@pytest.mark.parametrize(("number", "family"), REST, ids=[f"{family} {number}" for number, family in REST])
def test_every_factor_in_every_place(number, family):
    check(number, family)


def check(number: int, family: str) -> None:
    spec = parse_spec(spec_text(family, number))
    with imported(build(spec)) as package:
        in_float64(spec, package)
        told = kernels.check(spec, package, shapes=((APART, ALIKE)[number % 2],))
    leaves = {decl.name for decl in (*spec.inputs, *(param for param in spec.params if param.is_tensor))}
    assert told >= {"o", *(f"d {name}" for name in leaves)}, "float32 cannot tell: the numbers are too large"


def in_float64(spec: Spec, package: ModuleType) -> None:
    """The PyTorch forms of `package` are what `spec` says."""
    problem = ladder.Problem(spec, APART)
    expected = problem.results(problem.interpreted)
    for form, more in (("naive_recurrent", {}), ("naive_chunk", {"chunk_size": 8})):
        if hasattr(package, f"{form}_{spec.name}"):
            run = partial(problem.called, package, form=form, **more)
            ladder.compare(form, expected, problem.results(run))


@pytest.mark.parametrize("plans", KERNELS, ids=" ".join)
def test_families_have_the_kernels_that_they_stand_for(plans):
    """Whatever factors they have: none of them is computed by another form than the one it is here for."""
    for family in KERNELS[plans]:
        for number in range(0, len(FACTORS), 3):
            spec = parse_spec(spec_text(family, number))
            plan = pipeline.make_plan(spec, pipeline.derive(spec))
            found = (plan.chunk_kernel, plan.chunk_backward, plan.fused_backward)
            assert tuple(type(part).__name__ for part in found) == plans, f"{family}, {number}"


VECTORS = "q: [K], k: [K], v: [V]"
DECAYED = "g: {dims: [], range: [-.inf, 0]}, b: {dims: [], range: [0, 1]}"

ONCE_WRONG = {
    "a factor that is a difference": f"""
state: {{S: [K, V]}}
inputs: {{{VECTORS}, g: {{dims: [], range: [-.inf, 0]}}}}
update: S = exp(g) * S + (1 - exp(g)) * outer(k, v)
output: o = S.T @ q
""",
    "a factor that is a sum": f"""
state: {{S: [K, V]}}
inputs: {{{VECTORS}, {DECAYED}, c: {{dims: [], range: [0, 1]}}}}
update: S = exp(g) * S + (b + c) * outer(k, v)
output: o = S.T @ q
""",
    "a factor of the values that is a difference": f"""
state: {{S: [K, V]}}
inputs: {{{VECTORS}, {DECAYED}}}
update: S = exp(g) * S + outer(k, (1 - b) * v)
output: o = S.T @ q
""",
    "a factor of what is erased that is a difference": f"""
state: {{S: [K, V]}}
inputs: {{{VECTORS}, {DECAYED}}}
update:
  - S = exp(g) * S
  - S = S + outer(k, v + (b - 1) * (S.T @ k))
output: o = S.T @ q
""",
    "a sum over the keys as a factor": """
state: {S: [K, V]}
inputs: {k: [K], e: [K], v: [V]}
update: S = S + sum(k) * outer(e, v)
output: o = S.T @ k
""",
    "a sum over the keys as a factor, for several value heads": """
state: {S: [K, V]}
inputs: {q: [K], k: [K], e: [K], v: {dims: [V], heads: HV}}
update: S = S + sum(k) * outer(e, v)
output: o = S.T @ q
""",
    "sums of a matrix over either dim": """
state: {h: [K, V]}
inputs: {X: [K, V], g: {dims: [K], range: [-3, 0]}}
update: h = exp(g) * h + outer(sum(X, V), mean(X, K))
output: o = sum(h, K) + mean(X)
""",
    "a sum of a matrix that no token changes": f"""
state: {{S: [K, V]}}
inputs: {{{VECTORS}}}
params: {{W: {{dims: [K, V]}}}}
update: S = 0.9 * S + outer(k, v)
output: o = S.T @ (q + sum(W, V)) + v
""",
    "a power whose exponent is a number of the head": f"""
state: {{S: [K, V]}}
inputs: {{{VECTORS}, g: {{dims: [], range: [-3, 0]}}, b: {{dims: [], range: [0, 1]}}}}
params: {{A: {{per: head}}}}
update: S = exp(g) * S + (1 + b) ** A * outer(k, v)
output: o = S.T @ q
""",
    "an erase key that is an expression, beside operands that are none": f"""
state: {{S: [K, V]}}
inputs: {{{VECTORS}, e: [K], g: {{dims: [], range: [-3, 0]}}}}
update:
  - S = exp(g) * S
  - S = S + outer(k, v - S.T @ (1 - e))
output: o = S.T @ q
""",
    "a row with a name, scaled by a number of a value head": """
state: {S: [K, V]}
inputs: {k: [K], e: [K], v: {dims: [V], heads: HV}, b: {dims: [], heads: HV, range: [0, 1]}}
let: {r: (1 + b) * e}
update: S = exp(-b) * S + outer(1 - k, v)
output: o = S.T @ r
""",
    "a row with a name, moved by a number of a value head": """
state: {S: [K, V]}
inputs: {k: [K], e: [K], v: {dims: [V], heads: HV}, b: {dims: [], heads: HV, range: [0, 1]}}
let: {moved: e + b, half: 0.5 * moved}
update: S = exp(-b) * S + outer(half, v)
output: o = S.T @ k
""",
    "maps of an erase key": """
state: {S: [K, V]}
inputs:
  q: [K]
  k: [K]
  e: [K]
  v: {dims: [V], heads: HV}
  w: {dims: [V], heads: HV}
  beta: {dims: [], heads: HV, range: [0, 1]}
params: {scale: {default: K ** -0.5}}
update: S = S + beta * outer(l2norm(k), sigmoid(w) * 0.5 * v - S.T @ l2norm(silu(e)))
output: o = scale * (S.T @ q)
""",
}
"""Specs whose kernels were wrong, or could not be written, for what their names say."""


@tiered(("name", "shape"), product(ONCE_WRONG, (APART, ALIKE)), lambda _, shape: shape is APART)
def test_what_was_once_wrong(name, shape):
    spec = parse_spec(f"flagen: 1\nname: once_wrong{ONCE_WRONG[name]}")
    with imported(build(spec)) as package:
        in_float64(spec, package)
        assert "o" in kernels.check(spec, package, shapes=(shape,))
