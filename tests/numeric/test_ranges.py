"""Values outside of what a spec declares: found where that is asked for, and computed by the PyTorch forms as ever."""

from __future__ import annotations

import math
import re

import pytest
import torch
import yaml

from flagen.spec import parse_spec
from flagen.spec.model import Input, Interval, Param
from tests.algebra.cases import SPECS
from tests.fuzz import packages
from tests.numeric.problems import NAMES, Problem, Shape, assert_close, evaluate, form, forms, make, spec_of
from tests.tiers import each_form, variants

SHAPE = Shape(T=5, groups=2)
KERNELS = forms("chunk", "fused_recurrent")
SOME = [("chunk", "kda"), ("chunk", "precond_kda"), ("chunk", "hgrn"), ("fused_recurrent", "mamba2")]


def declared(name: str) -> list[Input | Param]:
    spec = spec_of(name)
    return [decl for decl in (*spec.inputs, *spec.params) if decl.range != Interval()]


def outside(name: str) -> list[tuple[str, float, Problem]]:
    """What is beyond each end of each range, one element of it alone."""
    found = []
    for decl in declared(name):
        for end, way in ((decl.range.low, -1), (decl.range.high, 1)):
            if math.isinf(end):
                continue
            value, problem = end + 0.25 * way, make(name, SHAPE).to(torch.float32)
            if decl.name in problem.tensors:
                x = problem.tensors[decl.name].clone()
                x.flatten()[-1] = value
                problem = problem.with_tensors(**{decl.name: x})
            else:
                problem = make(name, SHAPE, **{decl.name: value}).to(torch.float32)
            found.append((decl.name, value, problem))
    return found


@each_form([each for each in KERNELS if declared(each[1])])
def test_a_value_outside_its_range_is_named(kind, name, monkeypatch):
    for decl, value, problem in outside(name):
        said = rf"{decl}: expected values in \[.*\], got {re.escape(f'{value:g}')}"
        with pytest.raises(ValueError, match=said):
            problem.call(form(kind, name), check_ranges=True)
        monkeypatch.setenv("FLAGEN_CHECK_RANGES", "1")
        with pytest.raises(ValueError, match=said):
            problem.call(form(kind, name))
        monkeypatch.delenv("FLAGEN_CHECK_RANGES")


@variants([name for name in NAMES if declared(name)])
def test_the_definition_computes_what_is_asked(name, monkeypatch):
    """And so does the chunk form in PyTorch, with the same result where that is a number."""
    monkeypatch.setenv("FLAGEN_CHECK_RANGES", "1")
    for decl, _, problem in outside(name):
        expected = evaluate(form("naive_recurrent", name), problem.to(torch.float64), wrt=())
        if decl not in ("eps", "mini_batch_size"):  # One keeps a log finite, the other is a number of tokens.
            got = evaluate(form("naive_chunk", name), problem.to(torch.float64), wrt=())
            assert all(torch.equal(got[key].isnan(), x.isnan()) for key, x in expected.items())
            assert_close(*({key: x.nan_to_num() for key, x in found.items()} for found in (expected, got)), 1e-9)


@pytest.mark.parametrize(("kind", "name"), SOME)
def test_nothing_is_checked_unless_asked(kind, name, monkeypatch):
    problem = outside(name)[0][-1]
    problem.call(form(kind, name))
    monkeypatch.setenv("FLAGEN_CHECK_RANGES", "1")
    problem.call(form(kind, name), check_ranges=False)
    monkeypatch.setenv("FLAGEN_CHECK_RANGES", "0")
    problem.call(form(kind, name))


@pytest.mark.parametrize(("kind", "name"), SOME)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ends_and_nan_are_not_outside(kind, name, dtype):
    """Nor is what rounding puts next to an end."""
    problem = make(name, SHAPE).to(dtype)
    within = {decl.name: decl.range for decl in declared(name) if decl.name in problem.tensors}
    for pick in (
        lambda r: r.low,
        lambda r: r.high,
        lambda r: math.nan,
        lambda r: r.high * (1 + torch.finfo(dtype).eps),
    ):
        ends = {name: torch.full_like(problem.tensors[name], pick(each)) for name, each in within.items()}
        problem.with_tensors(**ends).call(form(kind, name), check_ranges=True)


@pytest.mark.parametrize(("kind", "name"), SOME)
def test_compiled(kind, name, monkeypatch):
    """Where nothing is asked for there is one graph; the check breaks it, and finds what it would."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    torch.compiler.reset()
    problem = make(name, SHAPE).to(torch.float32)
    problem.call(torch.compile(form(kind, name), backend="eager", fullgraph=True))
    broken = torch.compile(form(kind, name), backend="eager")
    problem.call(broken, check_ranges=True)
    decl, _, problem = outside(name)[0]
    with pytest.raises(ValueError, match=f"{decl}: expected values in"):
        problem.call(broken, check_ranges=True)


def built(text: str, name: str = "simple_gla"):
    """The package of a shipped spec with `text` in the place of the input g."""
    tree = yaml.safe_load((SPECS / f"{name}.yaml").read_text())
    tree |= yaml.safe_load(text)
    return packages.imported(packages.build(parse_spec(yaml.safe_dump(tree, sort_keys=False))))


def test_a_spec_may_have_the_name():
    """The argument gives way to an input that is called like it."""
    inputs = {"q": ["K"], "k": ["K"], "v": {"dims": ["V"]}, "check_ranges": {"dims": [], "range": [-math.inf, 0]}}
    with built(yaml.safe_dump({"inputs": inputs, "decay": {"alpha": "exp(check_ranges)"}}, sort_keys=False)) as package:
        x, g = torch.randn(1, 4, 1, 8), torch.ones(1, 4, 1)
        package.fused_recurrent_simple_gla(x, x, x, -g, check_ranges_=True)
        with pytest.raises(ValueError, match=r"^check_ranges: expected values in \[-inf, 0\], got 1 at \[0, 0, 0\]"):
            package.fused_recurrent_simple_gla(x, x, x, g, check_ranges_=True)


def test_a_spec_without_ranges_has_no_check():
    with pytest.raises(TypeError, match="check_ranges"):
        make("linear_attn", SHAPE).call(form("chunk", "linear_attn"), check_ranges=True)


# ----------------------------------------------------------------------------------------------- what relies on a range


@pytest.mark.parametrize(
    ("low", "relies"),
    [(-0.5, True), (-math.inf, False), (-200.0, False)],
)
def test_kernels_say_which_range_keeps_them_finite(low, relies):
    """Where the range of a decay of keys is what lets rows decay from the middle of a block."""
    inputs = {"q": ["K"], "k": ["K"], "v": {"dims": ["V"]}, "g": {"dims": ["K"], "range": [low, 0]}}
    with built(
        yaml.safe_dump({"inputs": inputs, "let": {"half": "0.5 * g"}, "decay": {"alpha": "exp(half)"}}), "gla"
    ) as package:
        said = f"rely on g in [{low:g}, 0]" in " ".join(package.chunk_gla.__doc__.split())
        assert said == relies
        assert "rely on" not in package.naive_chunk_gla.__doc__
        assert "rely on" not in package.fused_recurrent_gla.__doc__


def test_rwkv7_beyond_its_range():
    """Where the kernels are not finite any more, as they say."""
    problem = make("rwkv7", Shape(T=64, K=64, V=16)).to(torch.float32)
    problem = problem.with_tensors(w=problem.tensors["w"] / 0.6065 * 2 - 6)
    expected = evaluate(form("naive_recurrent", "rwkv7"), problem.to(torch.float64), wrt=())
    assert_close(expected, evaluate(form("naive_chunk", "rwkv7"), problem, wrt=()), 1e-5)
    assert_close(expected, evaluate(form("fused_recurrent", "rwkv7"), problem, wrt=()), 1e-5)
    o, _ = problem.call(form("chunk", "rwkv7"))
    assert not o.isfinite().all(), "then let its docstring say so no longer"
    with pytest.raises(ValueError, match=r"w: expected values in \[-0.606531, 0\]"):
        problem.call(form("chunk", "rwkv7"), check_ranges=True)


def test_a_log_of_the_decay_is_said_to_need_its_range():
    """A decay that no exponential gives has a log where the range says that it is positive."""
    inputs = {"q": ["K"], "k": ["K"], "v": {"dims": ["V"]}, "f": {"dims": [], "range": [0.01, 1]}}
    with built(yaml.safe_dump({"inputs": inputs, "decay": {"alpha": "f"}}, sort_keys=False)) as package:
        for function in (package.naive_chunk_simple_gla, package.chunk_simple_gla):
            assert "log of the decay is taken, which f in [0.01, 1] lets exist" in " ".join(function.__doc__.split())
        x, f = torch.randn(1, 4, 1, 8), -0.5 * torch.ones(1, 4, 1)
        assert package.naive_recurrent_simple_gla(x, x, x, f)[0].isfinite().all()
        assert package.naive_chunk_simple_gla(x, x, x, f)[0].isnan().any()
