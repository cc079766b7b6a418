"""Beam search of transformers over rotary layers and prompts of two lengths: states go where beams go, in any cache."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from generated.multi_scale_retention import MultiScaleRetention
from generated.shared.cache import Cache

PINNED = "5.24.0"
VOCABULARY, HIDDEN, BEAMS = 29, 32, 3


def _installed() -> str:
    try:
        return version("transformers")
    except PackageNotFoundError:
        return "not installed"


pytestmark = [
    pytest.mark.skipif(_installed() != PINNED, reason=f"transformers {PINNED} is needed, it is {_installed()}"),
    pytest.mark.xdist_group("transformers"),
    pytest.mark.filterwarnings("ignore:Operators run without kernels"),
]


def tiny_model() -> Any:
    """Two rotary layers, and a map out that is sharp, so that beams change places."""
    from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutputWithPast

    class Tiny(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
        config_class = PretrainedConfig
        _is_stateful = False

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
            self.layers = nn.ModuleList(
                MultiScaleRetention(hidden_size=HIDDEN, num_heads=2, use_short_conv=bool(i), layer_idx=i)
                for i in (0, 1)
            )
            self.head = nn.Linear(HIDDEN, VOCABULARY)
            self.post_init()

        def forward(
            self, input_ids: Tensor, attention_mask: Tensor | None = None, cache: Any = None, **more: Any
        ) -> Any:
            x = self.embedding(input_ids)
            for layer in self.layers:
                x = x + layer(x, attention_mask=attention_mask, past_key_values=cache, use_cache=cache is not None)[0]
            return CausalLMOutputWithPast(logits=8 * self.head(x), cache=cache)

    torch.manual_seed(3)
    return Tiny(PretrainedConfig(vocab_size=VOCABULARY, num_hidden_layers=2, hidden_size=HIDDEN)).eval()


def cache_of(kind: str) -> Any:
    from transformers import cache_utils

    if kind == "ours":
        return Cache()
    if kind == "transformers, empty":
        return cache_utils.DynamicCache()
    return cache_utils.Cache(layers=[cache_utils.LinearAttentionLayer() for _ in range(2)])


@pytest.mark.parametrize("kind", ["ours", "transformers, empty", "transformers"])
def test_beams(kind: str, interpreter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # No kernel runs; Triton is imported with the interpreter before, for the tests that follow.
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    model, cache = tiny_model(), cache_of(kind)
    ids = torch.randint(1, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    options = {"num_beams": BEAMS, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "attention_mask": mask}
    expected = model.generate(ids, use_cache=False, **options)
    moved: list[list[int]] = []
    reorder = type(cache).reorder_cache
    monkeypatch.setattr(type(cache), "reorder_cache", lambda self, at: (moved.append(at.tolist()), reorder(self, at)))
    found = model.generate(ids, cache=cache, **options)
    assert any(at != sorted(at) or len({*at}) < len(at) for at in moved)
    assert torch.equal(found, expected)
