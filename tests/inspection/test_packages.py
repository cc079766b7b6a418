"""A package that nobody has prepared anything for: what it launches, compiles to and moves."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from flagen.diagnostics import InternalError
from flagen.inspection import (
    Compiled,
    Direction,
    Figures,
    Launched,
    Metered,
    MeteredGradients,
    Package,
    Size,
    compile_kernels,
    meter,
    meter_gradients,
    package_key,
    record,
)
from flagen.project import UsageError
from tests.inspection.conftest import edited

SIZE = Size(64, 64)
pytestmark = pytest.mark.xdist_group("packages")
"""They share what takes long to make."""

START = "@triton.jit\ndef rows_kernel(k, scratch, n, BLOCK: tl.constexpr):\n"
REACHING = f"SHIFT = tl.constexpr(0)\n\n\n{START}    n += SHIFT\n"
CALLING = f"from ..shared.device.counts import shifted\n\n\n{START}    n = shifted(n)\n"
COUNTS = "import triton\n\n\n@triton.jit\ndef inner(n):\n    return n + 0\n\n\n"
COUNTS += "@triton.jit\ndef shifted(n):\n    return inner(n)\n"

RECORDED = {
    "other words": ('"""Kernels."""', '"""The kernels,\n\nin other words."""\n# And a comment.', True),
    "another mask": ("mask=r < n, other=0.0", "mask=r < n - 1, other=0.0", False),
    "other warps of a configuration": ("num_warps=2", "num_warps=8", False),
    # Beside the kernels: what it tells them counts, not how.
    "the same warps, told otherwise": ("return 1\n", "one = 1\n    return one\n", True),
    "other warps": ("return 1\n", "return 2\n", False),
}
"""Changes of the kernels' file, and whether launches have the same keys."""

KERNELS = ("rows_kernel", "product_kernel")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("edited")


@pytest.fixture(scope="module")
def beside(toy: Package, directory: Path) -> list[Package]:
    """Two packages that differ in what their kernels call beside them."""
    packages = []
    for root, text in (("called", COUNTS), ("called otherwise", COUNTS.replace("n + 0", "n + 1"))):
        packages.append(edited(toy, directory / root / "toy", "kernels.py", START, CALLING))
        device = directory / root / "shared" / "device"
        device.mkdir(parents=True)
        (device / "counts.py").write_text(text)
    return packages


@pytest.fixture(scope="module")
def recorded(toy: Package, beside: list[Package], directory: Path) -> dict[str, list[Launched]]:
    """The launches of the toy and of what it becomes, which are as many; found all at once, for it takes a process."""
    packages = {"toy": toy}
    for what, (old, new, _) in RECORDED.items():
        packages[what] = edited(toy, directory / what / "toy", "kernels.py", old, new)
    reaching = edited(toy, directory / "reaching" / "toy", "kernels.py", START, REACHING)
    packages["reaching"] = reaching
    packages["reaching another"] = edited(
        reaching, directory / "reaching another" / "toy", "kernels.py", "constexpr(0)", "constexpr(1)"
    )
    packages |= zip(("called", "called otherwise"), beside, strict=True)
    rows = record(list(packages.values()), ["sm_80", "sm_90"], [SIZE])
    each = len(rows) // len(packages)
    assert len(rows) == each * len(packages)
    return {what: rows[number * each : (number + 1) * each] for number, what in enumerate(packages)}


@pytest.fixture(scope="module")
def launches(recorded: dict[str, list[Launched]]) -> list[Launched]:
    return recorded["toy"]


@pytest.fixture(scope="module")
def kernels(toy: Package, launches: list[Launched]) -> list[Compiled]:
    some = [row.key for row in launches if row.config.startswith("BLOCK=128")]
    return compile_kernels([toy], ["sm_80", "sm_90"], [SIZE], but=some)


def test_kernels_of_every_workload_and_architecture_are_recorded_once(launches: list[Launched]) -> None:
    assert [(row.kernel, row.arch, row.config) for row in launches] == [
        ("rows_kernel", "sm_80", "BLOCK=64 num_warps=1"),
        ("product_kernel", "sm_80", "BLOCK=64 num_warps=4 num_ctas=1 num_stages=3"),
        ("product_kernel", "sm_80", "BLOCK=64 num_warps=2 num_ctas=1 num_stages=3"),
        # With many sequences, where the launcher finds a GPU that is modern.
        ("rows_kernel", "sm_90", "BLOCK=128 num_warps=1"),
        ("product_kernel", "sm_90", "BLOCK=64 num_warps=4 num_ctas=1 num_stages=3"),
        ("product_kernel", "sm_90", "BLOCK=64 num_warps=2 num_ctas=1 num_stages=3"),
        ("rows_kernel", "sm_90", "BLOCK=64 num_warps=1"),
    ]
    assert {(row.variant, row.operator, row.size) for row in launches} == {("toy", "chunk", "64x64")}
    assert len({row.key for row in launches}) == len(launches)


def test_what_is_known_already_is_not_compiled(launches: list[Launched], kernels: list[Compiled]) -> None:
    fields = Launched.__dataclass_fields__
    unknown = [row for row in launches if not row.config.startswith("BLOCK=128")]
    assert len(unknown) == len(launches) - 1
    assert [Launched(**{name: getattr(row, name) for name in fields}) for row in kernels] == unknown


def test_what_kernels_compile_to(kernels: list[Compiled]) -> None:
    products = {(row.arch, row.config.split()[1]): row for row in kernels if row.kernel == "product_kernel"}
    assert {place: set(row.matrix_instructions) for place, row in products.items()} == {
        ("sm_80", "num_warps=4"): {"HMMA"},
        ("sm_80", "num_warps=2"): {"HMMA"},
        ("sm_90", "num_warps=4"): {"HGMMA"},
        ("sm_90", "num_warps=2"): {"HMMA"},
    }
    assert all(0 < row.registers <= 255 for row in kernels)


@pytest.mark.parametrize("what", RECORDED)
def test_keys_follow_the_code_and_not_its_wording(recorded: dict[str, list[Launched]], what: str) -> None:
    *_, same = RECORDED[what]
    assert ({row.key for row in recorded[what]} == {row.key for row in recorded["toy"]}) is same


@pytest.mark.parametrize(("one", "other"), [("reaching", "reaching another"), ("called", "called otherwise")])
def test_keys_follow_what_a_kernel_reaches(recorded: dict[str, list[Launched]], one: str, other: str) -> None:
    """In its file, and beside its package."""
    keys = [
        {kernel: {row.key for row in recorded[what] if row.kernel == kernel} for kernel in KERNELS}
        for what in (one, other)
    ]
    assert not keys[0]["rows_kernel"] & keys[1]["rows_kernel"]
    assert keys[0]["product_kernel"] == keys[1]["product_kernel"] != set()


def test_keys_of_packages_follow_what_a_kernel_calls_beside_them(beside: list[Package]) -> None:
    assert package_key(beside[0]) != package_key(beside[1])


def test_a_call_is_metered_kernel_by_kernel(toy: Package) -> None:
    (row,) = meter([toy])
    tokens, K, V = 128, 128, 128
    assert (row.variant, row.operator, row.tokens, row.heads) == ("toy", "chunk", tokens, 1)
    assert row.kernels == {
        "rows_kernel": Figures(1, tokens * K // 64, 2 * tokens * K, 4 * tokens * K, 6 * tokens * K, 0),
        "product_kernel": Figures(1, 1, 64 * 64 * (4 + 2), 64 * 64 * 2, 64 * 64 * (4 + 2 + 2), 2 * 64**3),
    }
    assert set(row.operators) == {"zeros_like", "add"}
    assert row.moved == sum(done.moved for done in (*row.kernels.values(), *row.operators.values()))
    assert row.minimum == 2 * tokens * (K + V + V)
    assert (row.final_state_bytes, row.final_state_minimum) == (4 * 64 * 64, 4 * K * V)


def test_kernels_of_gradients_are_recorded_in_each_way_to_keep_memory(copying: Package) -> None:
    # Not of fused_recurrent: its gradients launch nothing.
    assert [(row.operator, row.kernel, row.config) for row in record([copying], ["sm_90"], [SIZE])] == [
        ("fused_recurrent", "copy_kernel", "BLOCK=64 num_warps=1"),
        ("chunk", "copy_back_kernel", "BLOCK=64 num_warps=1"),
        ("chunk", "copy_kernel", "BLOCK=64 num_warps=1 save_states=True"),
    ]


def test_calls_with_gradients_are_metered_forward_and_backward(toy: Package, copying: Package) -> None:
    # The other package has an operator without gradients, and this one an operator whose gradients launch nothing.
    recomputing, saving = meter_gradients([toy, copying])
    tokens, K, V = 128, 128, 128
    programs, v, k, states = tokens * V // 64, 2 * tokens * V, 2 * tokens * K, 4 * tokens * V
    forward = Figures(1, programs, v, v, 2 * v, 0)
    backward = Direction(
        {"copy_back_kernel": Figures(1, programs, v, v, 2 * v, 0)}, {"zeros_like": Figures(1, 0, 0, k, k, 0)}
    )
    # k and v are read twice, their gradients and o written, and the gradient of o read.
    common = MeteredGradients(
        *("copying", "chunk", False, tokens, 1),
        Direction({"copy_kernel": forward}, {}),
        backward,
        k + v,
        3 * (k + v) + 2 * v,
    )
    assert recomputing == common
    assert (recomputing.moved, recomputing.forward.launches) == (4 * v + k, 1)
    forward = replace(forward, written=v + states, requested=2 * v + states)
    assert saving == replace(
        common, save_states=True, forward=Direction({"copy_kernel": forward}, {}), kept=k + v + states
    )


def test_rows_survive_json() -> None:
    figures = {"a_kernel": Figures(1, 2, 3, 4, 5, 6)}
    row = Metered("x", "chunk", 16, 1, figures, {}, 7, 8, 9)
    nested = {"kernels": {"a_kernel": vars(figures["a_kernel"])}, "operators": {}}
    assert Metered.from_json({**vars(row), **nested}) == row
    assert Metered.from_json({**vars(replace(row, tokens=2)), **nested}).per == 2
    both = MeteredGradients("x", "chunk", True, 16, 1, Direction(figures, {}), Direction({}, figures), 7, 8)
    assert MeteredGradients.from_json(asdict(both)) == both


def test_a_package_that_fails_is_shown_failing(toy: Package, tmp_path: Path) -> None:
    broken = edited(toy, tmp_path / "toy", "kernels.py", "tl.dot(x.to(tl.bfloat16), y)", "tl.dot(x, undeclared)")
    with pytest.raises(InternalError, match=re.compile("compile failed.*undeclared", re.DOTALL)):
        compile_kernels([broken], ["sm_80"], [SIZE])


def test_an_unknown_architecture_is_refused_before_anything_runs(toy: Package) -> None:
    with pytest.raises(UsageError, match="unknown architecture h100; known are sm_80, "):
        compile_kernels([toy], ["h100"])
