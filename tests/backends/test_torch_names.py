"""No name of a spec meets one of the generated code: that is a word, gives way, or lives in other functions."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Mapping
from functools import cache

import pytest

from flagen.backends.torch_.scope import Scope
from flagen.pipeline import derive
from flagen.plan.own_names import for_generated_code, is_word
from flagen.spec import load_spec, parse_spec
from flagen.spec.model import Repeat, Spec
from flagen.spec.names import identifier_problem
from tests.algebra.cases import SPECS, VARIANTS
from tests.algebra.shapes import SHAPES
from tests.fuzz.ladder import check
from tests.fuzz.packages import build, imported

# Committed packages, and shapes that bring code of their own: several reads, blocks of rows, reads and decays anywhere.
SPECS_OF = {name: load_spec(SPECS / f"{name}.yaml") for name in VARIANTS} | {
    name: SHAPES[name].spec for name in list(SHAPES)[::9]
}

HELPERS = ("l2norm", "no_autocast", "without_autocast")
"""Functions of a package that take no argument of the spec."""


@cache
def trees(example: str) -> Mapping[str, ast.Module]:
    """The PyTorch files of a package."""
    paths = ("naive_recurrent.py", "naive_chunk.py", "arguments.py", "module.py")
    if example in VARIANTS:
        package = SPECS.parent / "generated" / example
        return {path: ast.parse((package / path).read_text()) for path in paths if (package / path).exists()}
    files = build(SPECS_OF[example], kernels=False)
    return {path: ast.parse(files[path]) for path in paths}


def names_of(spec: Spec) -> set[str]:
    """Every name that `spec` declares or assigns."""
    blocks = [s.body if isinstance(s, Repeat) else (s,) for s in (*spec.update, *spec.output)]
    groups = (spec.states, spec.inputs, spec.params, spec.derived)
    names = {decl.name for group in groups for decl in group} | set(spec.dims)
    names |= {statement.target for block in blocks for statement in block}
    return names | ({spec.steps.symbol, spec.steps.argument} if spec.steps else set())


def shared(path: str, tree: ast.Module) -> Iterator[str]:
    """The identifiers that stand beside names of the spec: those of functions with the shared signature, of the
    module's methods that know params, and the attributes that sizes and params have for neighbours."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.name not in HELPERS:
            # Decorators are looked up in the module.
            for part in (node.args, node.returns, *node.body):
                yield from () if part is None else identifiers(part)
        if isinstance(node, ast.ClassDef):
            for method in (n for n in node.body if isinstance(n, ast.FunctionDef)):
                yield method.name
                if path == "module.py" and method.name in ("__init__", "forward", "reset_parameters"):
                    yield from identifiers(method)
        owned = (n for n in ast.walk(node) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name))
        yield from (n.attr for n in owned if n.value.id in ("args", "self"))


def identifiers(node: ast.AST) -> set[str]:
    """Names and parameters in a function, but for those of comprehensions, which have a scope of their own, and of its
    decorators, which are outside."""
    around = {n for decorator in getattr(node, "decorator_list", ()) for n in ast.walk(decorator)}
    nodes = [n for n in ast.walk(node) if n not in around]
    inside = [target for n in nodes if isinstance(n, ast.comprehension) for target in ast.walk(n.target)]
    names = {n.id for n in nodes if isinstance(n, ast.Name)} | {n.arg for n in nodes if isinstance(n, ast.arg)}
    return names - {n.id for n in inside if isinstance(n, ast.Name)}


def made_up(spec: Spec) -> set[str]:
    """Names that are made to differ from every name of the spec, and those of the package's own functions."""
    names = {f"{name}_t" for name in names_of(spec)} | {f"{state.name}_prev" for state in spec.states}
    names |= {f"{name}_n" for name in names_of(spec)} | {f"{state.name}_last" for state in spec.states} | {"o_all"}
    names |= {"read", *(f"read{number}" for number in range(4)), spec.class_name, "l2norm"}
    names |= {Scope(spec).places(dim) for dim in spec.dims}
    names |= {f"{form}_{spec.name}" for form in ("naive_recurrent", "naive_chunk", "fused_recurrent", "chunk")}
    return names | set(between_stages(spec))


def between_stages(spec: Spec) -> Iterator[str]:
    """What the function of a spec that runs in stages calls its stages, their states, and what passes between them."""
    if (form := derive(spec).staged) is not None:
        yield from (decl.name for decl in form.passed)
        yield from (f"naive_chunk_{stage.spec.name}" for stage in form.stages)
        yield from (f"{state.name}_{when}" for state in spec.states for when in ("first", "final"))
        if form.ahead is not None:
            yield f"{form.ahead.state}_start"
            yield from (f"{decl.name}_end" for decl in (*spec.inputs, *form.passed))


@pytest.mark.parametrize("example", SPECS_OF)
def test_every_identifier_is_the_specs_own_or_cannot_be(example):
    spec = for_generated_code(SPECS_OF[example])
    known = names_of(spec) | made_up(spec)
    met: dict[str, set[str]] = {}
    for path, tree in trees(example).items():
        # The module keeps params, sizes and the step count; to the functions, everything is a name.
        kinds = ("param", "dim", "step argument") if path == "module.py" else ("input", "param", "local", "dim")
        for name in set(shared(path, tree)) - known:
            free = not is_word(name) and any(identifier_problem(name, kind) is None for kind in kinds)
            if free and not name.startswith("_"):
                met.setdefault(path, set()).add(name)
    assert not met, "generated code uses these, and a spec may declare them"


@pytest.mark.parametrize("example", SPECS_OF)
def test_builtins_in_generated_code_are_words_of_it(example):
    names = {n.id for tree in trees(example).values() for n in ast.walk(tree) if isinstance(n, ast.Name)}
    used = {name for name in names if hasattr(builtins, name)} - names_of(SPECS_OF[example])
    assert all(is_word(name) for name in used)


HARD = """
flagen: 1
name: hard_names
state:
  S_all: [last, size]
inputs:
  read: [last]
  read0: [last]
  decay: {dims: [size], heads: HV}
  w: {dims: [], range: [0, 1]}
  y: {dims: [last], per: step}
  y_t: {dims: [size], per: step, heads: HV}
  g: {dims: [], range: [-.inf, 0]}
params:
  scale: {default: last ** -0.5}
  U: {dims: [last], per: head}
  L: {dims: [size], default: 1}
  params: {range: [0, 1]}
steps: {n: g_t}
let: {z: tanh(read0) * U, k: y * w}
decay: {at_end: exp(g)}
update:
  - S_all = at_end * S_all
  - state = S_all.T @ z
  - repeat: n
    do:
      - q = y_t - S_all.T @ k
      - S_all = S_all + w * outer(k, q)
output:
  - Gq0 = S_all.T @ read + params * state
  - o = scale * Gq0 * L + decay
"""


def test_names_that_the_code_uses_elsewhere():
    """Names of the private functions, of the equations, of reads, of what is made of other names: all of them work."""
    spec = parse_spec(HARD)
    with imported(build(spec)) as package:
        assert hasattr(package, "naive_chunk_hard_names")
        check(spec, package)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("cu_seqlens", "input"), ("chunk_size", "param"), ("self", "input"), ("save_states", "step argument")),
        *(("state", "param"), ("half", "dim"), ("train", "step argument"), ("lambda", "local"), ("exp", "input")),
        *(("head", "local"), ("HV", "dim"), ("o", "derived"), ("S_prev", "local")),
    ],
)
def test_reserved(name, kind):
    problem = identifier_problem(name, kind)
    assert problem is not None
    assert problem[0] == "E302"


@pytest.mark.parametrize("kind", ["input", "param", "dim", "state", "local", "derived", "step count", "step argument"])
def test_free(kind):
    for name in (
        "tokens",
        "row",
        "block",
        "token",
        "args",
        "torch",
        "tl",
        "len",
        "q_ptr",
        "BLOCK_K",
        "chunk_x",
        "operators",
    ):
        assert identifier_problem(name, kind) is None


def test_arguments_are_none_of_what_is_no_argument():
    assert identifier_problem("chunk_size", "local") is None
