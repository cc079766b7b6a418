"""A spec may give its inputs any name that is not reserved: what generated code calls its own gives way to it.

Every identifier that a package uses besides the spec's is the name of one more input of the same spec. Where two things
in a function came to have one name, it has fewer identifiers than with inputs called `spare0`, `spare1`, ...
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import yaml

from flagen import pipeline
from flagen.backends import BACKENDS
from flagen.emit.env import environment, render
from flagen.plan import Unavailable
from flagen.plan.kernel_names import is_taken_from_dims
from flagen.project import bundled
from flagen.spec import parse_spec
from flagen.spec.model import Spec
from flagen.spec.names import RESERVED, identifier_problem
from tests.backends.test_torch_names import identifiers, names_of
from tests.fuzz.packages import planned, written
from tests.tiers import tiered

SPECS = Path(__file__).parents[2] / "specs"

FAMILIES = {
    "hgrn": ("x",),
    "gated_delta_product": ("k", "v"),
    "kda": ("k", "v"),
}
"""A spec of each family of kernels, and the vectors that the further inputs scale."""

SETTLED = re.compile("spare|_gradient$|^x$|^state$")
"""What is not tried: the names that the test adds; gradients of a chunk's rows, for whose names a spec has no chunk
backward, as a remark says; and what comprehensions bind, in a scope of their own."""

Functions = Mapping[tuple[str, str], set[str]]


def functions(name: str, further: Sequence[str]) -> Functions:
    """The identifiers in each function of the package of a spec with `further` inputs."""
    tree = yaml.safe_load((SPECS / f"{name}.yaml").read_text())
    tree["inputs"] |= {other: {"dims": []} for other in further}
    scaled = {vector: f"spare_{vector}" for vector in FAMILIES[name]}
    for section in ("update", "output"):
        used = re.sub(r"\b\w+\b", lambda word: scaled.get(word[0], word[0]), yaml.safe_dump(tree[section]))
        tree[section] = yaml.safe_load(used)
    sums = {f"spare_sum{i}": " + ".join(further[i : i + 40]) for i in range(0, len(further), 40)}
    made = {new: f"{vector} * ({' + '.join(sums)})" for vector, new in scaled.items()}
    tree["let"] = {**sums, **made, **tree.get("let", {})}
    return identifiers_in(parse_spec(yaml.safe_dump(tree, sort_keys=False), f"{name}.yaml"))


def identifiers_in(spec: Spec) -> Functions:
    """The identifiers in each function of the package of `spec`."""
    plan = pipeline.make_plan(spec, pipeline.derive(spec))
    env = environment(bundled("templates"))
    found: dict[tuple[str, str], set[str]] = {}
    programs = pipeline.lower(plan)
    for rendering in (rendering for backend in BACKENDS for rendering in backend.renderings(plan, programs)):
        if rendering.path.endswith(".py"):
            text = render(env, rendering.template, rendering.context, shared="..")
            compile(text, rendering.path, "exec")  # An argument that is there twice does not get through.
            module = ast.parse(text)
            methods = [n for c in module.body if isinstance(c, ast.ClassDef) for n in c.body]
            defined = (n for n in (*module.body, *methods) if isinstance(n, ast.FunctionDef))
            found |= {(rendering.path, function.name): identifiers(function) for function in defined}
    return found


def spare(number: int) -> list[str]:
    return [f"spare{i}" for i in range(number)]


@tiered("name", [(name,) for name in FAMILIES], lambda name: name == "gated_delta_product")
def test_inputs_may_have_any_name_that_is_not_reserved(name: str) -> None:
    own = names_of(parse_spec((SPECS / f"{name}.yaml").read_text()))
    used = set().union(*functions(name, spare(2)).values())
    free = {other for other in used - RESERVED - own if identifier_problem(other, "input") is None}
    names = sorted(other for other in free if not SETTLED.search(other))
    assert len(names) > 40
    expected, got = functions(name, spare(len(names))), functions(name, names)
    assert set(got) == set(expected)
    # More of them is no harm: a line is kept where its target is mentioned, if only in the name of something else.
    met = {place: sorted(got[place] & set(names)) for place in got if len(got[place]) < len(expected[place])}
    assert not met


@pytest.mark.parametrize("name", ["simple_gla", "gated_delta_product", "kda", "oja", "linear_attn_normalized"])
def test_a_dim_that_is_called_like_something_in_its_kernels_has_none(name: str) -> None:
    """Names made of the spec's give way; what else stands where sizes are known is what dims are checked for."""
    spec = parse_spec((SPECS / f"{name}.yaml").read_text())
    own = names_of(spec)
    found = [used for (path, _), used in identifiers_in(spec).items() if path.startswith("chunk_")]
    assert found
    for used in found:
        known = used & set(spec.dims)
        others = {other for other in used - own - RESERVED if not own & set(other.split("_"))} if known else set()
        met = {other for other in others if identifier_problem(other, "dim") is None} - {"p"}
        assert not {other for other in met if not is_taken_from_dims(other)}


def test_what_a_dim_keeps_from_having_kernels_builds() -> None:
    text = (SPECS / "kda.yaml").read_text()
    plan = planned(parse_spec(re.sub(r"\bK\b", "R", text)))
    assert isinstance(plan.chunk_kernel, Unavailable) and "a dim is called `R`" in plan.chunk_kernel.reason
    written(plan)
