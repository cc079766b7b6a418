"""The launcher around the kernel: when it launches, what it hands over, and what it says where it cannot."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.backends.triton_odd import ODD, Package, build, error, make_call

pytestmark = pytest.mark.usefixtures("interpreter", "poisoned_memory")

SPECS = Path(__file__).parents[2] / "specs"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    directory = tmp_path_factory.mktemp("launchers")
    texts = {name: ODD[name] for name in ("slots", "shares", "matrix_params", "matrix_products", "scalars")}
    texts["gated_delta_product"] = (SPECS / "gated_delta_product.yaml").read_text()
    return {name: build(text, directory) for name, text in texts.items()}


@pytest.fixture
def product(packages: dict[str, Package]) -> Package:
    return packages["gated_delta_product"]


@pytest.fixture
def definition_runs(product: Package, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Notes every time the launcher hands a call to the definition."""
    calls: list[str] = []
    operator = product.fused._fused_recurrent
    naive = operator.form

    def noted(*args: object, **kwargs: object) -> object:
        calls.append("naive")
        return naive(*args, **kwargs)

    monkeypatch.setattr(operator, "form", noted)
    yield calls


def test_the_kernel_runs_in_the_interpreter(product: Package, definition_runs: list[str]) -> None:
    make_call(product).fused()
    assert definition_runs == []


def test_tensors_on_the_cpu_run_the_definition(
    product: Package, definition_runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    call = make_call(product)
    assert all(error(one, other) == 0 for one, other in zip(call.naive(), call.fused(), strict=True))
    assert definition_runs == ["naive"]


def test_a_gradient_comes_from_kernels(product: Package, definition_runs: list[str]) -> None:
    call = make_call(product)
    call.positional[1].requires_grad_()
    output, _ = product.fused.fused_recurrent_gated_delta_product(*call.positional, **call.keyword)
    output.sum().backward()
    assert call.positional[1].grad is not None
    assert definition_runs == []


def test_a_gradient_of_the_state_alone_does_too(product: Package, definition_runs: list[str]) -> None:
    call = make_call(product)
    state = call.keyword["initial_state"]
    assert isinstance(state, torch.Tensor)
    state.requires_grad_()
    output, _ = product.fused.fused_recurrent_gated_delta_product(*call.positional, **call.keyword)
    output.sum().backward()
    assert state.grad is not None
    assert definition_runs == []


def test_a_gradient_without_kernels_is_the_definitions(
    product: Package, definition_runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = make_call(product)
    call.positional[1].requires_grad_()
    output, _ = product.fused.fused_recurrent_gated_delta_product(*call.positional, **call.keyword)
    monkeypatch.delenv("TRITON_INTERPRET")
    output.sum().backward()
    assert definition_runs == ["naive"]


def test_float64_is_the_definitions(product: Package, definition_runs: list[str]) -> None:
    call = make_call(product, dtype=torch.float64)
    output, final = call.fused()
    assert definition_runs == ["naive"]
    assert output.dtype == final.dtype == torch.float64


def test_without_triton_it_says_what_to_do(product: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, product.kernels.__name__)
    call = make_call(product)
    with pytest.raises(RuntimeError, match="needs Triton on a GPU: install it, or call naive_recurrent_gated_delta_pr"):
        call.fused()


def test_triton_is_imported_for_a_launch_and_not_before(product: Package) -> None:
    directory = Path(product.fused.__file__ or "").parents[2]
    program = f"import sys, {product.fused.__name__}; assert not any('kernels' in name for name in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=directory, check=True)


def test_strides_do_not_matter(product: Package) -> None:
    call = make_call(product)
    expected = call.fused()
    scattered = tuple(torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[..., 0] for x in call.positional)
    assert not any(x.is_contiguous() for x in scattered)
    state = call.keyword["initial_state"].transpose(-1, -2).contiguous().transpose(-1, -2)  # type: ignore[attr-defined]
    function = product.fused.fused_recurrent_gated_delta_product
    got = function(*scattered, **call.keyword | {"initial_state": state}, output_final_state=True)
    assert all(torch.equal(one, other) for one, other in zip(expected, got, strict=True))


def test_every_input_has_a_dtype_of_its_own(product: Package) -> None:
    call = make_call(product)
    dtypes = (torch.bfloat16, torch.float16, torch.float32, torch.float32, torch.bfloat16)
    mixed = tuple(x.to(dtype) for x, dtype in zip(call.positional, dtypes, strict=True))
    function = product.fused.fused_recurrent_gated_delta_product
    output, _ = function(*mixed, **call.keyword | {"initial_state": None})
    assert output.dtype == torch.float32  # That of v, the first with the output's dims.
    expected, _ = product.naive.naive_recurrent_gated_delta_product(
        *(x.float() for x in mixed), **call.keyword | {"initial_state": None}
    )
    assert error(expected, output) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_offsets_of_either_width(product: Package, dtype: torch.dtype) -> None:
    call = make_call(product, lengths=(2, 0, 5))
    call.keyword["cu_seqlens"] = call.keyword["cu_seqlens"].to(dtype)  # type: ignore[attr-defined]
    assert all(error(one, other) <= 1e-5 for one, other in zip(call.naive(), call.fused(), strict=True))


def test_a_param_left_out_has_its_default(packages: dict[str, Package]) -> None:
    call = make_call(packages["matrix_params"])
    function = packages["matrix_params"].fused.fused_recurrent_matrix_params
    output, final = function(*call.positional, **call.keyword)
    assert final is None
    ones = torch.ones(call.positional[0].shape[-1])
    assert torch.equal(output, function(*call.positional, **call.keyword, skip=ones)[0])
    assert not torch.equal(output, function(*call.positional, **call.keyword, skip=2 * ones)[0])


def test_one_state_comes_alone_and_several_in_a_tuple(packages: dict[str, Package]) -> None:
    assert len(make_call(packages["gated_delta_product"]).fused()) == 2
    function = packages["slots"].fused.fused_recurrent_slots
    call = make_call(packages["slots"])
    assert function(*call.positional, **call.keyword)[1] is None
    _, states = function(*call.positional, **call.keyword, output_final_state=True)
    assert [tuple(state.shape[2:]) for state in states] == [(20, 12), (12, 9), (12,)]


@pytest.mark.parametrize("name", ["slots", "shares", "matrix_params", "matrix_products", "scalars"])
def test_torch_compile_sees_one_operator(packages: dict[str, Package], name: str) -> None:
    """Of several states, of params with a default, and of an output that comes in shares, too."""
    torch.compiler.reset()
    call = make_call(packages[name], lengths=(2, 0, 5))
    function = getattr(packages[name].fused, f"fused_recurrent_{name}")
    results = []
    for run in (function, torch.compile(function, backend="aot_eager", fullgraph=True)):
        leaves = tuple(x.clone().requires_grad_() for x in call.positional)
        output, states = run(*leaves, **call.keyword, output_final_state=True)
        states = states if isinstance(states, tuple) else (states,)
        gradients = torch.autograd.grad(sum(x.sum() for x in (output, *states)), leaves)
        assert run(*leaves, **call.keyword)[1] is None
        results.append((output, *states, *gradients))
    # With a gradient wanted, eager runs in PyTorch what the operator leaves to the kernel.
    assert all(error(one, other) <= 1e-5 for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("name", ["gated_delta_product", "slots", "shares", "matrix_products"])
@pytest.mark.parametrize("size", [1, 16, 60, 64, 100, 128, 256])
def test_blocks_fit_and_cover_their_dims(packages: dict[str, Package], name: str, size: int) -> None:
    spec = packages[name].spec
    config = packages[name].kernels.launch_config(*(size for _ in spec.dims))
    assert config.keys() == {*(f"BLOCK_{dim}" for dim in spec.dims), "num_warps"}
    assert all(value > 0 and value & (value - 1) == 0 for value in config.values())
    split = {"gated_delta_product": "V", "slots": "V", "shares": "K", "matrix_products": "P"}[name]
    for dim in spec.dims:
        assert config[f"BLOCK_{dim}"] >= size or dim == split
    tiles = [state.dims for state in spec.states if len(state.dims) == 2]
    values = sum(config[f"BLOCK_{a}"] * config[f"BLOCK_{b}"] for a, b in tiles)
    assert values <= 4 * 64 * 32 * config["num_warps"] or config["num_warps"] == 16


def test_a_state_of_scalars_needs_one_warp(packages: dict[str, Package]) -> None:
    assert packages["scalars"].kernels.launch_config() == {"num_warps": 1}
