"""The functions that kernels bring along, where they are hard: near zero, far out, at infinities and at NaN."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from flagen.backends.triton_.device import OF_A_TOKEN
from flagen.project import DEVICE

pytestmark = [
    pytest.mark.usefixtures("interpreter"),
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
]

# These take tiles of two sizes: tests/kernel has them, in test_rotations.py and test_pairs.py.
OF_NUMBERS = {module: names for module, names in OF_A_TOKEN.items() if module not in ("rotations", "pairs")}
HELPERS = {
    node.name: node
    for module in OF_NUMBERS
    for node in ast.parse((DEVICE / f"{module}.py").read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef)
}
KERNELS = "\n\n".join(
    [
        "import triton\nimport triton.language as tl",
        *(f"from flagen.runtime.shared.device.{m} import {', '.join(names)}" for m, names in OF_NUMBERS.items()),
        *(
            f"@triton.jit\ndef {name}_kernel(x_ptr, y_ptr, z_ptr, out_ptr, N: tl.constexpr):\n"
            "    i = tl.arange(0, N)\n"
            "    x, y, z = tl.load(x_ptr + i), tl.load(y_ptr + i), tl.load(z_ptr + i)\n"
            f"    tl.store(out_ptr + i, {name}({', '.join('xyz'[: len(helper.args.args)])}))\n"
            for name, helper in HELPERS.items()
        ),
    ]
)

TINY = [s * m * 10.0**e for s in (1, -1) for m in (1.0, 3.7) for e in range(-30, -1)]
SMALL = [s * (i + 0.5) / 200 for s in (1, -1) for i in range(300)]
LARGE = [s * x for s in (1, -1) for x in (2.0, 5.0, 9.0, 17.3, 20.0, 50.0, 88.0, 100.0, 1e4, 1e10, 1e30)]
SPECIAL = [0.0, 1.0, -1.0, float("inf"), -float("inf"), float("nan")]
HARD = torch.tensor(TINY + SMALL + LARGE + SPECIAL)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    path: Path = tmp_path_factory.mktemp("helpers") / "helper_kernels.py"
    path.write_text(KERNELS)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(kernels: ModuleType, name: str, *args: Tensor) -> Tensor:
    size = len(args[0])
    padded = [functional.pad(arg, (0, 2048 - size)) for arg in (*args, *args[:1] * 2)][:3]
    out = torch.empty(2048)
    getattr(kernels, f"{name}_kernel")[(1,)](*padded, out, 2048)
    return out[:size]


def assert_accurate(expected: Tensor, got: Tensor, relative: float = 1e-6) -> None:
    """`got` is `expected` as float32 has it, up to a few units in the last place; denormals may be flushed."""
    rounded = expected.float()
    assert torch.equal(rounded.isnan(), got.isnan())
    finite = rounded.isfinite()
    assert torch.equal(rounded[~finite].nan_to_num(), got[~finite].nan_to_num())
    off = (expected[finite] - got[finite].double()).abs()
    allowed = relative * expected[finite].abs() + 1.2e-38
    worst = (off / allowed).argmax()
    assert (off <= allowed).all(), f"{expected[finite][worst]} came out as {got[finite][worst]}"


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("log1p", torch.log1p),
        ("expm1", torch.expm1),
        ("tanh", torch.tanh),
        ("softplus", lambda x: torch.logaddexp(x, torch.zeros_like(x))),
        ("logsigmoid", lambda x: -torch.logaddexp(-x, torch.zeros_like(x))),
        ("relu", torch.relu),
        ("_square", torch.square),
    ],
)
def test_one_argument(kernels: ModuleType, name: str, reference: Callable[[Tensor], Tensor]) -> None:
    assert_accurate(reference(HARD.double()), run(kernels, name, HARD))


def test_silu_is_a_product_with_sigmoid(kernels: ModuleType) -> None:
    finite = HARD[HARD.abs() < 80]
    assert_accurate(functional.silu(finite.double()), run(kernels, "silu", finite))
    assert run(kernels, "silu", torch.tensor([float("inf"), -1e4]))[0] == float("inf")


def test_sign(kernels: ModuleType) -> None:
    numbers = HARD[~HARD.isnan()]
    assert torch.equal(torch.sign(numbers), run(kernels, "sign", numbers))


def test_a_fraction_is_exact_but_just_below_a_whole_number(kernels: ModuleType) -> None:
    finite = HARD[HARD.isfinite()]
    got = run(kernels, "fraction", finite)
    assert torch.equal((finite.double() - finite.double().floor()).float(), got)
    assert got.min() == 0 and got.max() == 1
    assert run(kernels, "fraction", HARD[~HARD.isfinite()]).isnan().all()


@pytest.mark.parametrize("name", ["minimum", "maximum", "logaddexp"])
def test_two_arguments(kernels: ModuleType, name: str) -> None:
    points = torch.tensor([*SPECIAL, 1e-20, -1e-3, 0.3, 5.0, -90.0, 1e30])
    x, y = (side.reshape(-1) for side in torch.meshgrid(points, points, indexing="ij"))
    assert_accurate(getattr(torch, name)(x.double(), y.double()), run(kernels, name, x, y))


def test_logaddexp_of_minus_infinities_is_no_nan(kernels: ModuleType) -> None:
    inf = torch.tensor([-float("inf"), -float("inf"), 2.0, float("inf"), float("inf")])
    other = torch.tensor([-float("inf"), 3.0, -float("inf"), float("inf"), -float("inf")])
    expected = torch.tensor([-float("inf"), 3.0, 2.0, float("inf"), float("inf")])
    assert torch.equal(run(kernels, "logaddexp", inf, other), expected)


def test_the_slope_of_logaddexp_is_pytorchs_and_zero_where_there_is_nothing(kernels: ModuleType) -> None:
    points = torch.tensor([0.0, 1.0, -1.0, 1e-20, -1e-3, 0.3, 5.0, -90.0, 80.0, -float("inf")])
    x, y = (side.reshape(-1) for side in torch.meshgrid(points, points, indexing="ij"))
    wanted = torch.sigmoid(x.double() - y.double()).nan_to_num(0.0)
    assert_accurate(wanted, run(kernels, "_part_of", x, y))


def test_clamp_is_pytorchs(kernels: ModuleType) -> None:
    low, high = torch.full_like(HARD, -0.3), torch.full_like(HARD, 7.0)
    assert_accurate(torch.clamp(HARD.double(), low, high), run(kernels, "clamp", HARD, low, high))
    assert torch.equal(run(kernels, "clamp", HARD[:9], high[:9], low[:9]), low[:9])  # Of crossed bounds, the upper.


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0, 3.0, -1.0, -3.0, 0.5, 1.5, -0.5, 7.0])
def test_power_is_pytorchs(kernels: ModuleType, exponent: float) -> None:
    base = HARD[(HARD.abs() > 1e-4) & (HARD.abs() < 1e4) | (HARD == 0) | HARD.isposinf()]
    y = torch.full_like(base, exponent)
    # The logarithm is rounded before it is multiplied: as many units as the result has binary digits before its point.
    assert_accurate(torch.pow(base.double(), y.double()), run(kernels, "_power", base, y), relative=1e-5)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0, 3.0, -1.0, 0.5, 1.5, -0.5])
def test_slopes_of_powers_are_pytorchs(kernels: ModuleType, exponent: float) -> None:
    base = HARD[(HARD.abs() > 1e-3) & (HARD.abs() < 1e3) & (HARD != 1) | (HARD == 0)]
    leaves = [base.double().requires_grad_(), torch.full_like(base, exponent).double().requires_grad_()]
    expected = torch.autograd.grad(torch.pow(*leaves).sum(), leaves)
    for name, wanted in zip(("_power_slope", "_exponent_slope"), expected, strict=True):
        got = run(kernels, name, base, torch.full_like(base, exponent))
        assert_accurate(wanted, got, relative=1e-4)


def test_row_maps(kernels: ModuleType) -> None:
    # Whole rows here: what stands in a row's padding is the plan's to clear.
    x = torch.randn(2048, generator=torch.Generator().manual_seed(0))
    wide = x.double()
    assert_accurate(wide * (wide.square().sum() + 1e-6).rsqrt(), run(kernels, "l2norm", x), relative=2e-6)
    assert_accurate(wide.softmax(0), run(kernels, "softmax", x), relative=2e-6)
    shifted = torch.cat([x[:1000], torch.full((1048,), -float("inf"))])
    assert_accurate(shifted.double().softmax(0), run(kernels, "softmax", shifted), relative=2e-6)
    assert torch.equal(run(kernels, "l2norm", torch.zeros(2048)), torch.zeros(2048))


def test_every_helper_is_held_to_something() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{name}"' in here for name in HELPERS)
