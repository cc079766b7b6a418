"""Models around layers: the field's names and shapes, decoding, padding, packing, saving, and errors."""

from __future__ import annotations

import json
import pickle
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from generated import layers
from generated.models import FAMILIES, CausalLM, ModelConfig
from tests.tiers import exhaustive

RECORDED = json.loads((Path(__file__).parent / "data" / "state_dicts.json").read_text())
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 40, "intermediate_size": 48, "eos_token_id": None}
KINDS = {
    "GatedDeltaNet": {"num_heads": 2, "head_dim": 16},
    "HGRN2Attention": {"expand_ratio": 16},
    "RWKV7Attention": {"head_dim": 16},
    "RWKV6Attention": {"num_heads": 2},
    "Mamba2": {"head_dim": 16, "state_size": 8, "intermediate_size": None},
    "LogLinearMamba2": {"head_dim": 16, "state_size": 8},
    "MultiScaleRetention": {"num_heads": 2},
}
"""A block with a gated MLP, one with either of RWKV's mixings, a bare one, a mixer; lower bounds; positions."""

pytestmark = pytest.mark.filterwarnings("ignore:Operators run without kernels")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _in_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def small(name: str, **values: Any) -> CausalLM:
    torch.manual_seed(0)
    model = CausalLM(name, **(SMALL | KINDS.get(name, {}) | values))
    with torch.no_grad():  # Nothing stays at zero, or its gradient says nothing.
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tokens(B: int, T: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(40, (B, T), generator=torch.Generator().manual_seed(seed))


each_kind = pytest.mark.parametrize("name", KINDS)


def test_every_family_has_its_layer():
    assert {family.layer for family in FAMILIES} <= set(layers.__all__)


@pytest.mark.parametrize(
    "number", range(len(RECORDED)), ids=[f"{entry['config']['model_type']} {n}" for n, entry in enumerate(RECORDED)]
)
@pytest.mark.filterwarnings("error")
def test_tensors_are_the_fields(number):
    """Names, order, shapes and dtypes, from the config as a checkpoint has it, and as a person says it."""
    entry = RECORDED[number]
    config = ModelConfig.from_dict(entry["config"])
    found = {name: [list(tensor.shape), str(tensor.dtype)] for name, tensor in CausalLM(config).state_dict().items()}
    assert list(found.items()) == list(entry["tensors"].items())
    assert ModelConfig(config.family.layer, **entry["given"]) == config


@each_kind
def test_decoding_is_the_whole_at_once(name):
    model = small(name)
    ids = tokens(2, 19)
    whole = model(ids).logits
    start = model(ids[:, :11], use_cache=True)
    steps, cache = [start.logits], start.past_key_values
    for t in range(11, 19):
        steps.append(model(ids[:, t : t + 1], past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-4)


@each_kind
def test_generated_tokens_are_the_likeliest(name):
    model = small(name)
    prompt = tokens(2, 7)
    found = model.generate(prompt, max_new_tokens=5)
    expected = prompt
    for _ in range(5):
        expected = torch.cat([expected, model(expected).logits[:, -1:].argmax(-1)], dim=1)
    assert found.tolist() == expected.tolist()


@each_kind
def test_padding_on_the_left_changes_nothing(name):
    model = small(name)
    prompt, mask = tokens(2, 7), torch.ones(2, 7, dtype=torch.long)
    mask[0, :3] = 0
    padded = model.generate(prompt, mask, max_new_tokens=4)
    assert padded[0, 3:].tolist() == model.generate(prompt[:1, 3:], max_new_tokens=4)[0].tolist()
    assert padded[1].tolist() == model.generate(prompt[1:], max_new_tokens=4)[0].tolist()


@each_kind
def test_padding_on_the_right_changes_nothing(name):
    """Also not where a shorter prompt goes on from the cache."""
    model = small(name)
    ids, mask = tokens(2, 9), torch.ones(2, 7, dtype=torch.long)
    mask[0, 4:] = 0
    start = model(ids[:, :7], mask, use_cache=True)
    mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], dim=1)
    after = model(ids[:, 7:8], mask, past_key_values=start.past_key_values).logits[:, 0]
    alone = torch.cat([ids[:1, :4], ids[:1, 7:8]], dim=1)
    torch.testing.assert_close(start.logits[0, :4], model(ids[:1, :4]).logits[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after[0], model(alone).logits[0, -1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after[1], model(ids[1:, :8]).logits[0, -1], rtol=1e-4, atol=1e-4)


@each_kind
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_what_a_mask_leaves_out_was_never_there(name, dtype):
    """In the middle, on the right before a later call, and in masks of any dtype."""
    model = small(name).bfloat16() if dtype == torch.float32 else small(name)
    ids = tokens(2, 9)
    mask = torch.ones(2, 9, dtype=dtype)
    mask[0, 3:5], mask[1, 6:] = 0, 0
    start = model(ids[:, :7], mask[:, :7], use_cache=True)
    later = torch.cat([mask[:, :7], torch.ones(2, 2, dtype=dtype)], 1)
    rest = model(ids[:, 7:], later, past_key_values=start.past_key_values)
    logits = torch.cat([start.logits, rest.logits], 1)
    for row, places in enumerate(([0, 1, 2, 5, 6, 7, 8], [0, 1, 2, 3, 4, 5, 7, 8])):
        alone = model(ids[row : row + 1, places]).logits[0]
        close = {"rtol": 0, "atol": 0.2} if dtype == torch.float32 else {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(logits[row, places], alone, **close)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.layer)
def test_a_config_can_be_pickled(family):
    config = ModelConfig(family.layer)
    assert pickle.loads(pickle.dumps(config)) == config


@each_kind
def test_packed_sequences_are_those_alone(name):
    model = small(name)
    ids, cu_seqlens = tokens(1, 17), torch.tensor([0, 5, 5, 17])
    packed = model(ids, cu_seqlens=cu_seqlens).logits
    alone = torch.cat([model(ids[:, :5]).logits, model(ids[:, 5:]).logits], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)
    loss = model(ids, labels=ids, cu_seqlens=cu_seqlens).loss
    losses = [model(part, labels=part).loss * (part.shape[1] - 1) for part in (ids[:, :5], ids[:, 5:])]
    torch.testing.assert_close(loss, sum(losses) / (4 + 11), rtol=1e-5, atol=1e-5)


@each_kind
@pytest.mark.parametrize("again", [False, True], ids=["as rows", "packed again"])
def test_packed_sequences_go_on_where_each_ended(name, again):
    """Also an empty one."""
    model = small(name)
    ids, bounds = tokens(1, 17), [0, 5, 5, 17]
    with torch.no_grad():
        cache = model(ids, cu_seqlens=torch.tensor(bounds), use_cache=True).past_key_values
        more = tokens(3, 4, seed=1)
        if again:
            sizes = {"cu_seqlens": torch.tensor([0, 2, 4, 6])}
            first = model(more[:, :2].reshape(1, 6), past_key_values=cache, **sizes).logits.reshape(3, 2, -1)
        else:
            first = model(more[:, :2], past_key_values=cache).logits
        rest = [model(more[:, t : t + 1], past_key_values=cache).logits for t in (2, 3)]
        found = torch.cat([first, *rest], 1)
        for row, (start, end) in enumerate(pairwise(bounds)):
            alone = model(torch.cat([ids[:, start:end], more[row : row + 1]], 1)).logits[0, end - start :]
            torch.testing.assert_close(found[row], alone, rtol=1e-4, atol=1e-4)


@each_kind
def test_padded_sequences_go_on_without_a_mask(name):
    model = small(name)
    ids, mask = tokens(2, 9), torch.ones(2, 7, dtype=torch.long)
    mask[0, :3] = 0
    with torch.no_grad():
        cache = model(ids[:, :7], mask, use_cache=True).past_key_values
        found = torch.cat([model(ids[:, t : t + 1], past_key_values=cache).logits for t in (7, 8)], 1)
        torch.testing.assert_close(found[0], model(ids[:1, 3:]).logits[0, 4:], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found[1], model(ids[1:]).logits[0, 7:], rtol=1e-4, atol=1e-4)


@each_kind
@pytest.mark.parametrize("gradients", [False, True])
def test_a_cache_from_inference_mode_goes_on_elsewhere(name, gradients):
    model = small(name, **({"use_short_conv": True} if name == "MultiScaleRetention" else {}))
    ids = tokens(2, 9)
    with torch.inference_mode():
        cache = model(ids[:, :6], use_cache=True).past_key_values
    with torch.set_grad_enabled(gradients):
        steps = [model(ids[:, t : t + 1], past_key_values=cache).logits for t in (6, 7, 8)]
    torch.testing.assert_close(torch.cat(steps, 1), model(ids).logits[:, 6:], rtol=1e-4, atol=1e-4)
    if gradients:
        steps[0].sum().backward()


class Reads(TorchFunctionMode):
    """How often something is read from the device."""

    READERS = ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "nonzero", "equal", "cpu", "numpy")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += getattr(func, "__name__", "") in self.READERS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [name for name in KINDS if name != "LogLinearMamba2"])  # Levels are read for each.
@pytest.mark.parametrize("padding", [False, True], ids=["packed", "padded"])
@pytest.mark.parametrize("inference", [False, True])
def test_where_the_tokens_are_is_read_once_for_all_layers(name, padding, inference):
    counts = []
    for layers_ in (1, 3):
        model = small(name, num_hidden_layers=layers_)
        ids, where = tokens(2, 9), {"attention_mask": torch.ones(2, 9, dtype=torch.long)}
        where["attention_mask"][0, :3] = 0
        if not padding:
            ids, where = tokens(1, 9), {"cu_seqlens": torch.tensor([0, 4, 9])}
        with torch.inference_mode(inference), torch.no_grad(), Reads() as reads:
            model(ids, **where, use_cache=True)
        counts.append(reads.count)
    # RWKV's layers keep padding in its place, and their mixing of channels takes it out.
    assert counts[0] == counts[1] <= (2 if padding else 1)


def test_checkpoints_of_gradients_and_a_cache_are_not_for_one_call():
    model = small("GatedDeltaNet")
    model.decoder.gradient_checkpointing = True
    ids = tokens(2, 9)
    with pytest.warns(UserWarning, match="use_cache: expected False with gradient checkpointing, got True"):
        output = model(ids, labels=ids, use_cache=True)
    assert output.past_key_values is None
    output.loss.backward()
    with torch.no_grad():
        assert len(model(ids, use_cache=True).past_key_values) == 2


@each_kind
def test_every_parameter_learns(name):
    model = small(name)
    ids = tokens(2, 9)
    model(ids, labels=ids).loss.backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


def test_the_loss_is_that_of_the_logits():
    model = small("GatedDeltaNet")
    ids, mask = tokens(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[0, :2] = 0
    labels = ids.clone()
    labels[1, 4] = -100
    logits = model(ids, mask).logits
    taken = labels[:, 1:].masked_fill(mask[:, :-1] == 0, -100)  # Nothing predicts the first token.
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), taken.flatten())
    torch.testing.assert_close(model(ids, mask, labels=labels).loss, expected)


@each_kind
def test_gradients_are_those_without_checkpoints(name):
    model = small(name)
    ids = tokens(2, 9)
    gradients = []
    for model.decoder.gradient_checkpointing in (False, True):
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize("library", [False, True], ids=["pickled", "safetensors"])
def test_saved_and_loaded(tmp_path, monkeypatch, tied, library):
    if library:
        pytest.importorskip("safetensors")
    else:
        for name in ("safetensors", "safetensors.torch"):  # As if it were not installed.
            monkeypatch.setitem(sys.modules, name, None)
    model = small("GatedDeltaNet", tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists() == library
    loaded = CausalLM.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded(tokens(1, 5)).logits, model(tokens(1, 5)).logits)
    assert (loaded.lm_head.weight is loaded.decoder.embeddings.weight) == tied


def test_loaded_from_shards(tmp_path):
    model = small("GatedDeltaNet")
    names = list(model.state_dict())
    shards = {"a.bin": names[::2], "b.bin": names[1::2]}
    for shard, kept in shards.items():
        torch.save({name: model.state_dict()[name] for name in kept}, tmp_path / shard)
    index = {name: shard for shard, kept in shards.items() for name in kept}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))
    loaded = CausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(tokens(1, 5)).logits, model(tokens(1, 5)).logits)


def test_a_tensor_that_is_missing_is_an_error(tmp_path):
    model = small("GatedDeltaNet")
    tensors = model.state_dict()
    del tensors["model.layers.1.attn.A_log"]
    with pytest.raises(RuntimeError, match=r"model\.layers\.1\.attn\.A_log"):
        model.load_tensors(tensors)


def test_an_end_of_sequence_ends_it():
    model = small("GatedDeltaNet")
    prompt = tokens(2, 5)
    free = model.generate(prompt, max_new_tokens=6)
    stop = int(free[0, 6])
    found = model.generate(prompt, max_new_tokens=6, eos_token_id=stop, pad_token_id=39)
    assert found[0].tolist() == [*free[0, :7].tolist(), *[39] * (found.shape[1] - 7)]


def test_sampling_is_by_the_probabilities():
    model = small("GatedDeltaNet")
    prompt = tokens(1, 5).repeat(400, 1)
    likeliest = model.generate(prompt[:1], max_new_tokens=1)[0, -1]
    drawn = model.generate(
        prompt, max_new_tokens=1, do_sample=True, top_k=3, generator=torch.Generator().manual_seed(0)
    )
    chances = model(prompt[:1]).logits[0, -1].topk(3)
    assert set(drawn[:, -1].tolist()) == set(chances.indices.tolist())
    shares = torch.bincount(drawn[:, -1], minlength=40)[chances.indices] / 400
    torch.testing.assert_close(shares, chances.values.softmax(0), rtol=0, atol=0.1)
    narrow = model.generate(prompt, max_new_tokens=1, do_sample=True, top_p=1e-6)
    assert set(narrow[:, -1].tolist()) == {int(likeliest)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"attention_mask": torch.tensor([[1, 1, 0]])}, "padded on the left"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_bad_arguments_of_generate(arguments, message):
    with pytest.raises(ValueError, match=message):
        small("GatedDeltaNet").generate(tokens(1, 3), **arguments)


@pytest.mark.parametrize("name", ["residual_in_fp32", "norm_first", "attn_mode", "use_gk"])
def test_what_means_nothing_of_a_family_is_not_taken_silently(name):
    layer, model_type = ("ABCAttention", "abc") if name == "attn_mode" else ("GatedDeltaNet", "gated_deltanet")
    with pytest.raises(TypeError, match=f"{layer}'s model has no '{name}'"):
        ModelConfig(layer, **{name: True})
    with pytest.warns(UserWarning, match=f"{name}: {layer}'s model has none, and is built without it"):
        assert ModelConfig.from_dict({"model_type": model_type, name: True}) == ModelConfig(layer)


def test_bad_configs():
    with pytest.raises(TypeError, match="did you mean 'num_heads'"):
        ModelConfig("GatedDeltaNet", num_head=2)
    with pytest.raises(ValueError, match=r"expected one of .*GatedDeltaNet.*got 'Nothing'"):
        ModelConfig("Nothing")
    with pytest.raises(ValueError, match=r"model_type: expected one of .*got 'llama'"):
        ModelConfig.from_dict({"model_type": "llama"})
    with pytest.raises(ValueError, match="attn"):
        ModelConfig.from_dict({"model_type": "gla", "attn": {"layers": [1]}})
    with pytest.raises(ValueError, match="one of the two"):
        small("GatedDeltaNet")()


@exhaustive
@pytest.mark.parametrize("name", sorted(layers.__all__))
def test_any_layer_makes_a_model(name):
    heads = {"num_attention_heads": 8} if name == "GriffinRecurrentBlock" else {}  # It has 10, which is no part of 128.
    model = CausalLM(name, hidden_size=128, num_hidden_layers=2, vocab_size=40, **heads)
    ids = tokens(1, 6)
    model(ids, labels=ids).loss.backward()
    assert model.generate(ids, max_new_tokens=2).shape[1] <= 8
