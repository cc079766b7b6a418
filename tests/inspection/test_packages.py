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
    metered_keys,
    package_key,
    record,
)
from flagen.project import UsageError
from tests.inspection.conftest import edited
from tests.tiers import exhaustive

SIZE = Size(64, 64)


@pytest.fixture(scope="module")
def launches(toy: Package) -> list[Launched]:
    return record([toy], ["sm_80", "sm_90"], [SIZE])


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


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ('"""Kernels."""', '"""The kernels,\n\nin other words."""\n# And a comment.', True),
        ("mask=r < n, other=0.0", "mask=r < n - 1, other=0.0", False),
        pytest.param("num_warps=2", "num_warps=8", False, marks=exhaustive),
        # Beside the kernels: what it tells them counts, not how.
        pytest.param("return 1\n", "one = 1\n    return one\n", True, marks=exhaustive),
        ("return 1\n", "return 2\n", False),
    ],
)
def test_keys_follow_the_code_and_not_its_wording(
    toy: Package, launches: list[Launched], tmp_path: Path, old: str, new: str, same: bool
) -> None:
    changed = edited(toy, tmp_path / "toy", "kernels.py", old, new)
    after = record([changed], ["sm_80", "sm_90"], [SIZE])
    assert ({row.key for row in after} == {row.key for row in launches}) is same


@pytest.fixture(scope="module")
def keys_of_toy(toy: Package) -> object:
    return metered_keys([toy])


def test_keys_follow_what_a_kernel_reaches(toy: Package, tmp_path: Path) -> None:
    start = "@triton.jit\ndef rows_kernel(k, scratch, n, BLOCK: tl.constexpr):\n"
    reaching = f"SHIFT = tl.constexpr(0)\n\n\n{start}    n += SHIFT\n"
    first = edited(toy, tmp_path / "first" / "toy", "kernels.py", start, reaching)
    second = edited(first, tmp_path / "second" / "toy", "kernels.py", "constexpr(0)", "constexpr(1)")
    keys = [{row.kernel: row.key for row in record([package], ["sm_80"], [SIZE])} for package in (first, second)]
    assert keys[0]["rows_kernel"] != keys[1]["rows_kernel"]
    assert keys[0]["product_kernel"] == keys[1]["product_kernel"]


def test_keys_follow_what_a_kernel_calls_beside_its_package(toy: Package, tmp_path: Path) -> None:
    start = "@triton.jit\ndef rows_kernel(k, scratch, n, BLOCK: tl.constexpr):\n"
    calling = f"from ..shared.device.counts import shifted\n\n\n{start}    n = shifted(n)\n"
    counts = "import triton\n\n\n@triton.jit\ndef inner(n):\n    return n + 0\n\n\n"
    counts += "@triton.jit\ndef shifted(n):\n    return inner(n)\n"
    packages = []
    for root, text in (("first", counts), ("second", counts.replace("n + 0", "n + 1"))):
        packages.append(edited(toy, tmp_path / root / "toy", "kernels.py", start, calling))
        device = tmp_path / root / "shared" / "device"
        device.mkdir(parents=True)
        (device / "counts.py").write_text(text)
    keys = [{row.kernel: row.key for row in record([package], ["sm_80"], [SIZE])} for package in packages]
    assert keys[0]["rows_kernel"] != keys[1]["rows_kernel"]
    assert keys[0]["product_kernel"] == keys[1]["product_kernel"]
    assert package_key(packages[0]) != package_key(packages[1])


@pytest.mark.parametrize(
    ("file", "old", "new", "same"),
    [
        ("kernels.py", "return 1\n", "return 2\n", True),
        pytest.param("kernels.py", "mask=r < n, other=0.0", "mask=r < n - 1, other=0.0", False, marks=exhaustive),
        pytest.param("launcher.py", "block = 128 if", "block = 32 if", False, marks=exhaustive),
        ("launcher.py", "return o + 0", "return o + 1", False),
    ],
)
def test_what_is_metered_has_a_key_without_warps(
    toy: Package, keys_of_toy: object, tmp_path: Path, file: str, old: str, new: str, same: bool
) -> None:
    changed = edited(toy, tmp_path / "toy", file, old, new)
    assert (metered_keys([changed]) == keys_of_toy) is same


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
