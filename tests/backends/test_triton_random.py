"""Random expressions, lowered, masked, printed and interpreted on padded tiles, against what they mean."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from flagen.backends.triton_.axes import Axes
from flagen.backends.triton_.device import OF_A_TOKEN
from flagen.backends.triton_.printer import Printer
from flagen.plan.lowering import Lowering
from flagen.plan.padding import PaddingRules
from flagen.plan.tiles import Value
from flagen.spec import parse_spec
from flagen.spec.model import Dims, Expr, Number
from tests.spec import trees

pytestmark = [
    pytest.mark.usefixtures("interpreter"),
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
]

BLOCK = 16
"""Of every dim: K is 2 and V is 3, so most lanes are padding; and `tl.dot` takes no smaller operands."""

# Declares what the trees are made of, so that the rules know where a state starts.
SPEC = parse_spec("""\
flagen: 2
name: tree
dims: {K2: K, R: K / 2}
state: {S: [K, V], z: [K]}
inputs: {q: [K], k: [K], v: [V], a: [K2], phi: [R], beta: []}
params: {w: {dims: [K, V]}}
update:
  - z = z + k + q + over(a, K) + sum(phi)
  - S = S + beta * outer(k, v) + w
output: o = S.T @ z
""")
NAMES: dict[str, Dims] = {name: dims for name, (kind, dims) in trees.DECLARED.items() if kind != "dim"}
NAMES |= {"S_prev": NAMES["S"], "z_prev": NAMES["z"]}
DIMS = ("K", "V", "K2", "R")
SIZES = {"K": 2, "V": 3, "K2": 2, "R": 1, "H": 2, "HV": 4, "head": 1}

MODERATE = st.one_of(st.integers(1, 6), st.integers(1, 3000).map(lambda digits: Fraction(digits, 1000)))
"""Numbers that float32 computes with as float64 does."""


def source(expr: Expr) -> str:
    """A module with a kernel that evaluates `expr` on whatever its pointers hold."""
    rules = PaddingRules(SPEC)
    rules.assign("x", Value("beta", "input", ()))  # A local, equal to the input.
    tile = rules.mask(Lowering(DIMS)(expr))
    axes = Axes(DIMS)
    text = Printer(axes).assigned(tile)

    def access(name: str, dims: Dims) -> str:
        return f"{name}_ptr + {axes.address('', dims) or '0'}"

    def masked(dims: Dims, other: str = "") -> str:
        return f", mask={axes.within(dims)}{other}" if dims else ""

    pointers = "".join(f"{name}_ptr, " for name in NAMES)
    sizes = ", ".join(f"{name}: tl.constexpr" for name in ("H", "HV", *DIMS))
    return "\n".join(
        [
            "import triton\nimport triton.language as tl",
            *(f"from flagen.runtime.shared.device.{m} import {', '.join(names)}" for m, names in OF_A_TOKEN.items()),
            f"@triton.jit\ndef kernel({pointers}o_ptr, head, {sizes}):",
            *(f"    {d}_index = tl.arange(0, {BLOCK})\n    {d}_mask = {d}_index < {d}" for d in DIMS),
            *(f"    {n} = tl.load({access(n, dims)}{masked(dims, ', other=0.0')})" for n, dims in NAMES.items()),
            f"    o = {text}",
            f"    tl.store({access('o', expr.dims)}, o{masked(expr.dims)})",
        ]
    )


def values(seed: int, disturbed: int | None = None) -> trees.Values:
    """Data for every name; with `disturbed`, off by what float32 would round."""
    generator = np.random.default_rng(seed)
    found = {name: generator.standard_normal([SIZES[d] for d in dims]) for name, dims in NAMES.items()}
    found = {name: value.astype(np.float32).astype(np.float64) for name, value in found.items()}
    if disturbed is not None:
        noise = np.random.default_rng(disturbed)
        found = {name: value * (1 + 3e-7 * noise.standard_normal(value.shape)) for name, value in found.items()}
    return found | {"x": found["beta"]} | {name: np.asarray(float(size)) for name, size in SIZES.items()}


def tolerance(expr: Expr, seed: int, expected: np.ndarray) -> float:
    """What rounding may do to `expr`; infinite where it may do anything."""
    disturbed = [np.asarray(trees.evaluate(expr, values(seed, noise))) for noise in range(3)]
    if not all(np.isfinite(result).all() for result in disturbed):
        return np.inf
    swing = max(np.abs(result - expected).max() for result in disturbed)
    return float(max(1e-5 * np.abs(expected).max() + 1e-6, 50 * swing))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mock.patch.object(trees, "_NUMBERS", MODERATE.map(Fraction).map(Number)):
        yield tmp_path_factory.mktemp("trees")


def run(module: Path, expr: Expr, data: trees.Values) -> np.ndarray:
    module.write_text(source(expr))
    spec = importlib.util.spec_from_file_location(module.stem, module)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    out = torch.full([SIZES[dim] for dim in expr.dims], float("nan"))
    tensors = [torch.tensor(data[name], dtype=torch.float32) for name in NAMES]
    loaded.kernel[(1,)](*tensors, out, float(SIZES["head"]), *(SIZES[name] for name in ("H", "HV", *DIMS)))
    return out.double().numpy()


COUNT = itertools.count()
EXPRESSIONS = st.one_of(*(trees.expressions(dims) for dims in ((), ("K",), ("V",), ("K", "V"), ("V", "K"))))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(EXPRESSIONS, st.integers(0, 1000))
def test_a_kernel_evaluates_what_an_expression_means(directory: Path, expr: Expr, seed: int) -> None:
    with np.errstate(all="ignore"):
        expected = np.broadcast_to(trees.evaluate(expr, values(seed)), [SIZES[dim] for dim in expr.dims])
        assume(np.isfinite(expected).all() and np.abs(expected).max() < 1e6)
        allowed = tolerance(expr, seed, expected)
    assume(np.isfinite(allowed))
    got = run(directory / f"tree_{next(COUNT)}.py", expr, values(seed))
    assert np.abs(got - expected).max() <= allowed
