"""A generated layer by itself, in its PyTorch forms: masks, packing, caches, and which form runs.

GatedDeltaNet stands for the others: it has short convolutions, a gate, heads that share keys, and own parameters.
"""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flagen.spec.layer.words import ACTIVATIONS
from generated.gated_deltanet import GatedDeltaNet
from generated.mesa_net_layer import MesaNet
from generated.modules.activations import ACT2FN
from generated.multi_scale_retention import MultiScaleRetention
from generated.shared import forms
from generated.shared.cache import Cache
from generated.shared.forms import Forms
from generated.shared.functional import activate

ROOT = Path(__file__).resolve().parents[2]

SMALL = {"hidden_size": 12, "head_dim": 4, "num_heads": 1, "num_v_heads": 2, "expand_v": 1.5, "layer_idx": 0}
VARIED = {
    "all": {},
    "no convolution": {"use_short_conv": False},
    "no gate": {"use_gate": False, "conv_bias": True},
    "negative": {"allow_neg_eigval": True, "output_gate_activation": "sigmoid"},
}
LENGTHS, TOKENS = (11, 7, 1), 11


@pytest.fixture(autouse=True)
def in_pytorch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def made(**varied: Any) -> GatedDeltaNet:
    torch.manual_seed(0)
    return GatedDeltaNet(**{**SMALL, **varied})


def tokens(batch: int = len(LENGTHS), count: int = TOKENS) -> Tensor:
    return torch.randn(batch, count, 12, generator=torch.Generator().manual_seed(1))


def mask(side: str) -> Tensor:
    at, lengths = torch.arange(TOKENS), torch.tensor(LENGTHS)[:, None]
    return (at < lengths if side == "right" else at >= TOKENS - lengths).long()


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------ masks and packing


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("varied", VARIED.values(), ids=VARIED)
def test_a_padded_row_is_the_row_alone_and_padding_is_zero(varied: dict[str, Any], side: str) -> None:
    layer, x, present = made(**varied), tokens(), mask(side)
    y = layer(x, present)[0]
    assert not y[present == 0].any()
    for row in range(len(LENGTHS)):
        close(y[row, present[row] == 1], layer(x[row : row + 1, present[row] == 1])[0][0])


def test_a_row_of_padding_alone_is_zero_and_leaves_a_zero_state() -> None:
    layer, x, cache = made(), tokens(), Cache()
    present = mask("left")
    present[1] = 0
    y = layer(x, present, cache, use_cache=True)[0]
    assert not y[1].any() and y[0].any()
    assert not cache[0]["recurrent_state"][1].any() and not cache[0]["conv_state"][0][1].any()


@pytest.mark.parametrize("varied", VARIED.values(), ids=VARIED)
def test_packed_sequences_are_the_sequences_apart(varied: dict[str, Any]) -> None:
    layer, x, offsets = made(**varied), tokens(1), [0, 4, 4, 5, 11]
    cache = Cache()
    y = layer(x, past_key_values=cache, use_cache=True, cu_seqlens=torch.tensor(offsets))[0]
    for row, (start, end) in enumerate(pairwise(offsets)):
        if start == end:
            assert not cache[0]["recurrent_state"][row].any()
            continue
        alone = Cache()
        close(y[:, start:end], layer(x[:, start:end], past_key_values=alone, use_cache=True)[0])
        close(cache[0]["recurrent_state"][row : row + 1], alone[0]["recurrent_state"])


def test_gradients_reach_tokens_and_not_padding() -> None:
    layer, x, present = made(), tokens().requires_grad_(), mask("left")
    (layer(x, present)[0] * torch.linspace(-1, 1, 12)).sum().backward()
    assert x.grad is not None and not x.grad[present == 0].any() and x.grad[present == 1].abs().sum(-1).all()
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())


# ------------------------------------------------------------------------------------------------------------ caches


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "left padding"])
@pytest.mark.parametrize("varied", VARIED.values(), ids=VARIED)
def test_a_sequence_in_pieces_is_the_sequence_at_once(varied: dict[str, Any], padded: bool) -> None:
    layer, x = made(**varied).eval(), tokens()
    present = mask("left") if padded else None
    with torch.no_grad():
        whole, cache, pieces = layer(x, present)[0], Cache(), []
        for start, end in [(0, 5), (5, 8), (8, 9), (9, 10), (10, 11)]:
            seen = None if present is None else present[:, :end]
            y, nothing, returned = layer(x[:, start:end], seen, cache, use_cache=True)
            assert nothing is None and returned is cache
            pieces.append(y)
    close(torch.cat(pieces, 1), whole)
    assert cache.get_seq_length(0) == TOKENS
    assert cache[0]["recurrent_state"].shape == (3, 2, 4, 6)


def test_layers_share_a_cache_and_not_their_states() -> None:
    x, cache = tokens(), Cache()
    layers = [made(layer_idx=index) for index in (0, 1)]
    with torch.no_grad():
        whole = layers[1](layers[0](x)[0])[0]
        pieces = []
        for start, end in [(0, 8), (8, 9), (9, 11)]:
            h = layers[0](x[:, start:end], past_key_values=cache, use_cache=True)[0]
            pieces.append(layers[1](h, past_key_values=cache, use_cache=True)[0])
    close(torch.cat(pieces, 1), whole)
    assert len(cache) == 2 and not torch.equal(cache[0]["recurrent_state"], cache[1]["recurrent_state"])


@pytest.mark.parametrize("varied", VARIED.values(), ids=VARIED)
def test_zero_input_leaves_a_zero_state(varied: dict[str, Any]) -> None:
    cache = Cache()
    made(**{**varied, "conv_bias": False})(torch.zeros(2, 5, 12), past_key_values=cache, use_cache=True)
    assert not cache[0]["recurrent_state"].any()


def test_without_use_cache_a_cache_is_read_and_not_written() -> None:
    layer, x, cache = made(), tokens(), Cache()
    layer(x[:, :8], past_key_values=cache, use_cache=True)
    before = cache[0]["recurrent_state"].clone()
    close(layer(x[:, 8:], past_key_values=cache)[0], layer(x)[0][:, 8:])
    assert torch.equal(cache[0]["recurrent_state"], before) and cache.get_seq_length(0) == 8


def test_without_use_cache_one_token_writes_nothing_either() -> None:
    layer, x, cache = made().eval(), tokens(), Cache()
    with torch.no_grad():
        layer(x[:, :8], past_key_values=cache, use_cache=True)
        first, again = (layer(x[:, 8:9], past_key_values=cache)[0] for _ in range(2))
    assert torch.equal(first, again)


def test_a_copy_of_a_cache_goes_on_by_itself() -> None:
    layer, x, cache = made().eval(), tokens(), Cache()
    with torch.no_grad():
        layer(x[:, :8], past_key_values=cache, use_cache=True)
        first, again = (layer(x[:, 8:9], past_key_values=Cache.of(cache), use_cache=True)[0] for _ in range(2))
    assert torch.equal(first, again) and cache.get_seq_length(0) == 8


# ------------------------------------------------------------------------------------------------------------- forms


def a_form(name: str) -> Any:
    return lambda: name


FORMS = Forms(**{name: a_form(name) for name in ("naive_recurrent", "naive_chunk", "fused_recurrent", "chunk")})
CHOICES = [
    # kernels, gradient, mode, tokens: the form
    (True, True, "chunk", 1, "chunk"),
    (True, True, "fused_recurrent", 1, "chunk"),
    (True, False, "chunk", 64, "fused_recurrent"),
    (True, False, "chunk", 65, "chunk"),
    (True, False, "fused_recurrent", 65, "fused_recurrent"),
    (False, True, "chunk", 65, "naive_chunk"),
    (False, False, "chunk", 65, "naive_chunk"),
    (False, False, "chunk", 1, "naive_recurrent"),
    (False, False, "fused_recurrent", 65, "naive_recurrent"),
]


@pytest.mark.parametrize(("kernels", "gradient", "mode", "count", "form"), CHOICES)
def test_which_form_runs(
    kernels: bool, gradient: bool, mode: str, count: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1" if kernels else "0")
    monkeypatch.setattr(forms, "has_triton", lambda: True)
    with torch.set_grad_enabled(gradient):
        assert made(mode=mode).choose(FORMS, tokens(1, count))() == form


def test_where_triton_is_not_installed_the_pytorch_forms_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(forms, "has_triton", lambda: False)
    assert made().choose(FORMS, tokens(1, 65))() == "naive_chunk"


def test_a_form_that_there_is_not_is_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    two = Forms(naive_recurrent=a_form("naive_recurrent"), naive_chunk=a_form("naive_chunk"))
    assert made().choose(two, tokens(1, 65))() == "naive_chunk"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(forms, "has_triton", lambda: True)
    assert made().choose(two, tokens(1, 65))() == "naive_recurrent"


def test_without_a_kernel_for_tokens_chunks_run_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    three = Forms(**{name: a_form(name) for name in ("naive_recurrent", "naive_chunk", "chunk")})
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(forms, "has_triton", lambda: True)
    with torch.no_grad():
        assert [made().choose(three, tokens(1, count))() for count in (4, 5)] == ["naive_recurrent", "chunk"]


def test_forms_by_chunks_are_told_what_others_are_not() -> None:
    by_chunks = Forms(naive_recurrent=lambda: "alone", naive_chunk=lambda **given: given)  # type: ignore[arg-type,return-value]
    assert made().choose(by_chunks, tokens(1, 65), max_iterations=3)() == {"max_iterations": 3}
    assert made().choose(by_chunks, tokens(1, 4).detach(), max_iterations=3)() == "alone"


def test_steps_that_solve_systems_are_those_of_the_config() -> None:
    x = 3 * torch.randn(1, 40, 12, generator=torch.Generator().manual_seed(3))
    outputs = []
    for steps in (1, 8, 30):
        torch.manual_seed(0)
        layer = MesaNet(hidden_size=12, num_heads=1, head_dim=8, max_cg_step_training=steps)
        outputs.append(layer(x)[0].detach())
    few, enough, many = outputs
    assert (enough - many).abs().max() < 1e-4 < (few - many).abs().max()


def test_one_warning_a_process_says_what_is_slower() -> None:
    forms.say_once.cache_clear()
    layers = [made(layer_idx=index) for index in (0, 1)]
    with pytest.warns(UserWarning, match="without kernels here: those need Triton and a GPU.*only slower") as caught:
        for layer in layers:
            layer(tokens())
            layer(tokens())
    assert len([warning for warning in caught if "without kernels" in str(warning.message)]) == 1


def test_forms_agree() -> None:
    layer, x = made(), tokens()
    with torch.no_grad():
        close(layer(x)[0], made(mode="fused_recurrent")(x)[0])


def test_kernels_agree_with_the_pytorch_forms(kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = made(head_dim=16, expand_v=1, num_v_heads=1), tokens(1, 20)

    def results() -> list[Tensor]:
        layer.zero_grad()
        y, cache = layer(x)[0], Cache()
        (y * torch.linspace(-1, 1, 12)).sum().backward()
        with torch.no_grad():
            pieces = [layer(piece, past_key_values=cache, use_cache=True)[0] for piece in x.split([19, 1], dim=1)]
        return [y.detach(), *pieces, cache[0]["recurrent_state"], *(p.grad.clone() for p in layer.parameters())]

    in_pytorch = results()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for by_kernels, by_pytorch in zip(results(), in_pytorch, strict=True):
        close(by_kernels, by_pytorch)


def test_torch_compile_takes_it_whole() -> None:
    layer, x = made(), tokens()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    close(compiled(x)[0], layer(x)[0])


def test_it_runs_without_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, warnings\n"
        "from generated.gated_deltanet import GatedDeltaNet\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    layer = GatedDeltaNet(hidden_size=8, head_dim=4, num_heads=1)\n"
        "    layer(torch.randn(1, 20, 8))[0].sum().backward()\n"
        "    layer.eval()(torch.randn(1, 3, 8))\n"
        "assert layer.A_log.grad.any()\n"
        "assert sum('without kernels' in str(w.message) for w in caught) == 1, caught\n"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------------- names and shapes


def test_sizes_are_found_under_the_fields_names() -> None:
    layer = GatedDeltaNet(hidden_size=40, head_dim=8, num_heads=3, num_v_heads=6, expand_v=2)
    given = {"mode": "chunk", "hidden_size": 40, "expand_v": 2, "conv_size": 4, "head_dim": 8, "num_heads": 3}
    computed = {"num_v_heads": 6, "head_k_dim": 8, "head_v_dim": 16, "key_dim": 24, "value_dim": 96}
    assert {name: getattr(layer, name) for name in (*given, *computed)} == {**given, **computed}


def test_parameters_start_as_the_section_says() -> None:
    layer = made(num_heads=64, num_v_heads=256, head_dim=1, expand_v=1)
    decay, step = layer.A_log.detach().exp(), F.softplus(layer.dt_bias.detach())
    assert 0 <= decay.min() < 2 and 14 < decay.max() <= 16
    assert step.min() >= 0.99e-3 and step.max() <= 0.101
    assert abs(step.log().mean() - (math.log(1e-3) + math.log(0.1)) / 2) < 0.4


def test_parameters_can_start_again() -> None:
    layer = made()
    before = layer.A_log.detach().clone()
    layer.reset_parameters()
    assert not torch.equal(layer.A_log, before) and layer.A_log.requires_grad


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "chunks"}, r"mode: expected one of .*'chunk'.*, got 'chunks'"),
        ({"output_gate_activation": "relu"}, "output_gate_activation: expected .*'sigmoid', got 'relu'"),
        ({"expand_v": 1.3}, r"head_dim \* expand_v: expected an integer, got 5.2"),
        (
            {"num_heads": 2, "num_v_heads": 3},
            "expected num_v_heads % num_heads == 0, got num_v_heads = 3, num_heads = 2",
        ),
    ],
)
def test_what_does_not_fit_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**arguments)


def test_a_place_before_the_first_is_refused() -> None:
    with pytest.raises(ValueError, match="layer_idx: expected the layer's place in a cache, from 0, got -1"):
        GatedDeltaNet(hidden_size=16, num_heads=1, head_dim=4, layer_idx=-1)


def test_a_cache_needs_the_place_of_the_layer() -> None:
    with pytest.raises(ValueError, match="layer_idx: GatedDeltaNet needs its place in past_key_values, got None"):
        made(layer_idx=None)(tokens(), past_key_values=Cache())
    assert made(layer_idx=None)(tokens())[2] is None


def test_a_cache_of_other_sequences_is_refused_where_positions_matter() -> None:
    layer = MultiScaleRetention(hidden_size=12, num_heads=2, layer_idx=0)
    cache = Cache()
    layer(tokens(1), past_key_values=cache, use_cache=True, cu_seqlens=torch.tensor([0, 4, 11]))
    with pytest.raises(ValueError, match=r"past_key_values: expected what 3 sequences left, .*, got that of 2"):
        layer(tokens(3, 1), past_key_values=cache)


def test_a_tuple_is_no_cache() -> None:
    with pytest.raises(TypeError, match=r"past_key_values: expected a cache .*, got tuple"):
        made()(tokens(), past_key_values=())


@pytest.mark.parametrize(("slip", "meant"), [("cu_seqlen", "cu_seqlens"), ("past_key_value", "past_key_values")])
def test_a_slip_is_refused(slip: str, meant: str) -> None:
    with pytest.raises(TypeError, match=f"no argument '{slip}'; did you mean '{meant}'"):
        made()(tokens(), **{slip: None})


@pytest.mark.parametrize(
    "keyword",
    [
        "position_ids",
        "cache_position",
        "position_embeddings",
        "max_seqlen",
        "num_items_in_batch",
        "output_hidden_states",
    ],
)
def test_what_a_model_hands_to_all_of_its_layers_passes(keyword: str) -> None:
    assert torch.equal(made()(tokens(), **{keyword: None})[0], made()(tokens())[0])


# ------------------------------------------------------------------------------------------------------- activations


@pytest.mark.parametrize("name", sorted(ACT2FN.keys() & set(ACTIVATIONS)))
def test_an_activation_is_that_of_the_modules(name: str) -> None:
    x = torch.linspace(-4, 4, 33)
    torch.testing.assert_close(activate(x, name), ACT2FN[name](x))


def test_activations_are_those_of_the_language() -> None:
    for name in ACTIVATIONS:
        assert activate(torch.zeros(1), name).isfinite()
    with pytest.raises(ValueError, match=f"activation: expected one of {', '.join(ACTIVATIONS)}, got 'mish'"):
        activate(torch.zeros(1), "mish")
