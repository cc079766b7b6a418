"""Utilities that modeling files import beside operators: they do what fla 0.6.0's do, or are refused by their name."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from generated.compat import as_fla

OFFSETS = torch.tensor([0, 3, 3, 8, 9])
"""Of four sequences, the second of them empty."""
MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]])


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with as_fla():
        yield


def of(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


@pytest.mark.parametrize(
    "imports",
    [
        "from fla.layers.utils import get_unpad_data, index_first_axis, pad_input, unpad_input",
        "from fla.layers.utils import get_layer_cache, repad_hidden_states, unpad_hidden_states, update_layer_cache",
        "from fla.ops.utils import prepare_cu_seqlens_from_mask, prepare_lens, prepare_position_ids",
        "from fla.ops.utils.index import prepare_cu_seqlens_from_mask, prepare_lens_from_mask",
        "from fla.ops.utils.index import prepare_chunk_indices, prepare_chunk_offsets, prepare_split_cu_seqlens",
        "from fla.ops.utils.pack import pack_sequence, unpack_sequence",
        "from fla.utils import autocast_custom_bwd, autocast_custom_fwd, contiguous, input_guard, tensor_cache",
        "from fla.models.utils import Cache",
        "from fla.modules import FusedCrossEntropyLoss, FusedLinearCrossEntropyLoss, FusedRMSNormGated, RMSNorm",
        "from fla.modules.activations import ACT2FN, swiglu, swish",
        "from fla.modules.convolution import ShortConvolution",
        "from fla.modules.causal_conv1d import ShortConvolution",
        "from fla.modules.norm.l2norm import l2norm",
        "from fla.modules.l2warp import l2_warp",
        "from fla.layers.gated_deltanet import GatedDeltaNet",
        "from fla.layers.mamba2 import Mamba2",
        "from fla.layers.based import BasedLinearAttention",
        "from fla.layers.log_linear_mamba2 import LogLinearMamba2",
        "from fla.layers.mesa_net import MesaNet",
        "from fla.layers.momentum_deltanet import MomentumDeltaNet",
    ],
)
def test_what_modeling_files_import_is_there(imports: str) -> None:
    exec(imports, {})


@pytest.mark.parametrize(
    ("imports", "instead"),
    [
        (
            "from fla.utils import check_shared_mem",
            "fla.utils has no check_shared_mem here: .*; call operators as a whole",
        ),
        ("from fla.utils import IS_NVIDIA_HOPPER, input_guard", "fla.utils has no IS_NVIDIA_HOPPER here: "),
        ("from fla.ops.utils import solve_tril", "fla.ops.utils has no solve_tril here: .*; call operators as a whole"),
        ("from fla.ops.utils.op import exp2", "fla.ops.utils has no op here: "),
        ("import fla.ops.utils.solve_tril", "fla.ops.utils has no solve_tril here: "),
        (
            "from fla.layers.utils import nothing",
            "fla.layers.utils has no nothing here: .*attention_mask or cu_seqlens",
        ),
        ("from fla.models.utils import nothing", "fla.models.utils has no nothing here: .*install transformers"),
    ],
)
def test_what_has_no_meaning_here_is_named(imports: str, instead: str) -> None:
    with pytest.raises(ImportError, match=instead):
        exec(imports, {})


@pytest.mark.parametrize("module", ["fla.models.utils", "fla.models.generation_utils"])
def test_generation_needs_transformers(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generated.compat.model_utilities.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"has no FLAGenerationMixin here: .*; for others, install transformers"):
        exec(f"from {module} import FLAGenerationMixin", {})


def test_asking_for_what_is_not_there_is_no_error() -> None:
    assert not hasattr(import_module("fla.utils"), "check_shared_mem")


class TestOffsets:
    @pytest.mark.parametrize(
        ("name", "given", "expected"),
        [
            ("prepare_lens", (OFFSETS,), [3, 0, 5, 1]),
            ("prepare_lens_from_mask", (MASK,), [2, 4, 3]),
            ("prepare_cu_seqlens_from_lens", (torch.tensor([3, 0, 5]),), [0, 3, 3, 8]),
            ("prepare_cu_seqlens_from_mask", (MASK.bool(),), [0, 2, 6, 9]),
            ("prepare_position_ids", (OFFSETS,), [0, 1, 2, 0, 1, 2, 3, 4, 0]),
            ("prepare_position_ids", (OFFSETS, OFFSETS), [0, 1, 2, 0, 1, 2, 3, 4, 0]),
            ("prepare_sequence_ids", (OFFSETS,), [0, 0, 0, 1, 1, 1, 1, 1, 2]),
            ("prepare_token_indices", (torch.tensor([0, 2, 3]),), [[0, 0], [0, 1], [1, 0]]),
            ("prepare_chunk_indices", (OFFSETS, 2), [[0, 0], [0, 1], [2, 0], [2, 1], [2, 2], [3, 0]]),
            ("prepare_chunk_offsets", (OFFSETS, 2), [0, 2, 2, 5, 6]),
            ("prepare_split_cu_seqlens", (2, 5, 3), [0, 3, 5, 8, 10]),
            ("prepare_split_cu_seqlens", (None, None, 4, OFFSETS), [0, 3, 7, 8, 9]),
        ],
    )
    def test_numbers(self, name: str, given: tuple[Any, ...], expected: list[Any]) -> None:
        found = of("fla.ops.utils.index", name)(*given)
        assert found.tolist() == expected

    def test_dtypes(self) -> None:
        assert of("fla.ops.utils", "prepare_cu_seqlens_from_mask")(MASK).dtype == torch.int32
        assert of("fla.ops.utils", "prepare_cu_seqlens_from_mask")(MASK, torch.int64).dtype == torch.int64
        assert of("fla.ops.utils", "prepare_token_indices")(OFFSETS.int()).dtype == torch.int32

    @pytest.mark.parametrize("given", [{}, {"split_size": 3}, {"split_size": 3, "batch_size": 2}])
    def test_what_a_split_needs_is_named(self, given: dict[str, Any]) -> None:
        with pytest.raises(TypeError, match=r"split_size: expected|cu_seqlens: expected offsets, or else batch_size"):
            of("fla.ops.utils.index", "prepare_split_cu_seqlens")(**given)


class TestPadding:
    def test_there_and_back(self) -> None:
        x = torch.randn(3, 4, 2, 5, requires_grad=True)
        indices, cu_seqlens, longest = of("fla.layers.utils", "get_unpad_data")(MASK)
        assert (
            indices.tolist() == [2, 3, 4, 5, 6, 7, 9, 10, 11] and cu_seqlens.tolist() == [0, 2, 6, 9] and longest == 4
        )
        packed = of("fla.layers.utils", "index_first_axis")(x.flatten(0, 1), indices)
        assert torch.equal(packed, x[MASK.bool()])
        padded = of("fla.layers.utils", "pad_input")(packed, indices, 3, 4)
        assert torch.equal(padded, x * MASK[..., None, None])
        padded.sum().backward()
        assert x.grad is not None and torch.equal(x.grad, torch.ones_like(x) * MASK[..., None, None])

    @pytest.mark.parametrize("length", [4, 2, 1])
    def test_hidden_states_of_the_last_columns(self, length: int) -> None:
        x, seen = torch.randn(3, length, 5), MASK[:, 4 - length :]
        packed, indices, cu_seqlens = of("fla.layers.utils", "unpad_hidden_states")(x, None, MASK, length)
        assert torch.equal(packed, x[seen.bool()][None]) and cu_seqlens[-1] == seen.sum()
        assert torch.equal(
            of("fla.layers.utils", "repad_hidden_states")(packed, indices, 3, length), x * seen[..., None]
        )
        assert of("fla.layers.utils", "unpad_hidden_states")(x, OFFSETS, MASK, length) == (x, None, OFFSETS)
        assert of("fla.layers.utils", "repad_hidden_states")(x, None, 3, length) is x

    @pytest.mark.parametrize("keepdim", [False, True])
    @pytest.mark.parametrize("several", [False, True])
    def test_queries_and_states(self, several: bool, keepdim: bool) -> None:
        unpad_input = of("fla.layers.utils", "unpad_input")
        q, k = torch.randn(3, 4, 2), torch.randn(3, 4, 3)
        given = (q, q + 1) if several else q
        found, (states,), indices, (of_q, of_k), longest = unpad_input(given, (k,), MASK, 4, keepdim)
        first: Tensor = found[0] if several else found
        assert torch.equal(first.squeeze(0), q[MASK.bool()]) and first.ndim == 2 + keepdim
        assert torch.equal(states.squeeze(0), k[MASK.bool()]) and longest == (4, 4)
        assert of_q is of_k and torch.equal(indices, MASK.flatten().nonzero().flatten())
        last, _, indices, (of_q, of_k), longest = unpad_input(q[:, -1:], (k,), MASK, 1, keepdim)
        assert torch.equal(last.squeeze(0), q[:, -1]) and longest == (1, 4)
        assert of_q.tolist() == [0, 1, 2, 3] and of_k.tolist() == [0, 2, 6, 9] and indices.tolist() == [0, 1, 2]
        with pytest.raises(NotImplementedError, match="q_len: expected 4, as the states have tokens, or 1, got 3"):
            unpad_input(q, (k,), MASK, 3)

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_packed_sequences(self, side: str) -> None:
        pack, unpack = (of("fla.ops.utils.pack", name) for name in ("pack_sequence", "unpack_sequence"))
        mask = (MASK if side == "left" else MASK.flip(1)).bool()
        x, cu_seqlens = torch.randn(3, 4, 2, requires_grad=True), torch.tensor([0, 2, 6, 9])
        packed = pack(x, cu_seqlens, side)
        assert torch.equal(packed, x[mask])
        assert torch.equal(unpack(packed, cu_seqlens, side), x * mask[..., None])
        wider = unpack(packed, cu_seqlens, padding_side=side, desired_shape=(3, 6, 2))
        assert wider.shape == (3, 6, 2) and torch.equal(
            wider[:, 2:] if side == "left" else wider[:, :4], x * mask[..., None]
        )
        unpack(2 * packed, cu_seqlens, side).sum().backward()
        assert x.grad is not None and torch.equal(x.grad, 2.0 * mask[..., None].expand(3, 4, 2))
        with pytest.raises(ValueError, match="padding_side: expected 'left' or 'right', got 'both'"):
            pack(x, cu_seqlens, "both")


class TestCaches:
    def test_a_layer_reads_what_it_left(self) -> None:
        get, update = (of("fla.layers.utils", f"{name}_layer_cache") for name in ("get", "update"))
        cache, layer = of("fla.models.utils", "Cache")(), nn.Linear(1, 1)
        with pytest.raises(ValueError, match="layer_idx: Linear needs its place in past_key_values, got None"):
            get(layer, cache)
        assert get(layer, None) is update(layer, None, recurrent_state=torch.ones(1)) is None
        layer.layer_idx = 1  # type: ignore[assignment]
        assert get(layer, cache) is None
        update(layer, cache, recurrent_state=torch.ones(1), offset=5)
        assert get(layer, cache)["recurrent_state"] == 1 and cache.get_seq_length(1) == 5

    def test_a_cache_of_none_is_empty_and_one_of_states_holds_them(self) -> None:
        cache = of("fla.models.utils", "Cache")
        assert len(cache.from_legacy_cache(None)) == 0
        made = cache.from_legacy_cache([{"recurrent_state": torch.ones(1)}], seen_tokens=4)
        assert isinstance(made, cache) and made[0]["recurrent_state"] == 1 and made.get_seq_length() == 4


class TestDecorators:
    def test_inputs_are_contiguous_but_for_those_named(self) -> None:
        turned = torch.randn(2, 3).T

        def f(x: Tensor, y: Tensor, n: int = 0, *rest: Tensor, **more: Tensor) -> list[bool]:
            return [x.is_contiguous(), y.is_contiguous(), *(z.is_contiguous() for z in (*rest, *more.values()))]

        guard = of("fla.utils", "input_guard")
        assert guard(f)(turned, turned, 1, turned, z=turned) == [True] * 4
        assert of("fla.utils", "contiguous")(f)(turned, y=turned) == [True, True]
        assert guard(no_guard_contiguous=["y"])(f)(turned, turned) == [True, False]
        assert guard(no_guard_contiguous=True)(f)(turned, y=turned) == [False, False]
        assert guard(f).__name__ == "f"

    def test_nothing_is_remembered(self) -> None:
        lens = of("fla.utils", "tensor_cache")(lambda mask: mask.sum(-1))
        mask = MASK.clone()
        assert lens(mask).tolist() == [2, 4, 3]
        mask[0, 0] = 1
        assert lens(mask).tolist() == [3, 4, 3]

    def test_checkpoint_computes_again(self) -> None:
        calls = []

        def f(x: Tensor, *, times: int) -> Tensor:
            calls.append(times)
            return (x * times).exp()

        x = torch.zeros(3, requires_grad=True)
        of("fla.utils", "checkpoint")(f)(x, times=2).sum().backward()
        assert calls == [2, 2] and x.grad is not None and x.grad.tolist() == [2, 2, 2]

    def test_autocast_is_in_backward_as_in_forward(self) -> None:
        custom_fwd, custom_bwd = (of("fla.utils", f"autocast_custom_{way}") for way in ("fwd", "bwd"))
        device, seen = of("fla.utils", "device"), []

        class Twice(torch.autograd.Function):
            @staticmethod
            @custom_fwd
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return 2 * x

            @staticmethod
            @custom_bwd
            def backward(ctx: Any, do: Tensor) -> Tensor:
                seen.append(torch.is_autocast_enabled(device))
                return 2 * do

        x = torch.ones(2, device=device, requires_grad=True)
        with torch.autocast(device, dtype=torch.bfloat16):
            y = Twice.apply(x)
        y.sum().backward()
        assert seen == [True]


def test_closeness() -> None:
    close = of("fla.utils", "assert_close")
    x = torch.ones(8)
    close("o", x, x * 1.001, 0.002)
    close("o", x, x + 1e-7, 0)
    with pytest.raises(AssertionError, match=r"o diff: 0\.0100\d\d ratio: 0\.01"):
        close("o", x, x * 1.01, 0.002)
    with pytest.warns(UserWarning, match="o diff"):
        close("o", x, x * 1.01, 0.002, warning=True)
    with pytest.raises(AssertionError):
        close("o", x, x * torch.nan, 0.002, warning=True)
