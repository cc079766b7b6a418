"""A modeling file as the hub has them, on fla's layers, cache and generation, under the drop-in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .test_clients import PINNED, _installed

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(_installed() != PINNED, reason=f"transformers {PINNED} is needed, it is {_installed()}"),
    pytest.mark.xdist_group("transformers"),
]

MODEL = """
import torch
from torch import nn

from generated.compat import as_fla

as_fla()

from fla.layers.gated_deltanet import GatedDeltaNet
from fla.models.utils import Cache, FLAGenerationMixin, FLAUnsupportedCacheGenerationMixin
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

assert issubclass(FLAUnsupportedCacheGenerationMixin, FLAGenerationMixin)


class Config(PreTrainedConfig):
    model_type = "tried"

    def __init__(self, vocab_size=40, hidden_size=32, **kwargs):
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, 2
        super().__init__(**kwargs)


class Tried(PreTrainedModel, FLAUnsupportedCacheGenerationMixin):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        mixers = (GatedDeltaNet(hidden_size=config.hidden_size, num_heads=2, head_dim=16, layer_idx=i) for i in (0, 1))
        self.mixers = nn.ModuleList(mixers)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.lengths = []
        self.post_init()

    def forward(
        self, input_ids=None, attention_mask=None, past_key_values=None, use_cache=None, logits_to_keep=0, **kwargs
    ):
        self.lengths.append((input_ids.shape[1], logits_to_keep))
        if use_cache and not isinstance(past_key_values, Cache):
            past_key_values = Cache.from_legacy_cache(past_key_values)
        x = self.embeddings(input_ids)
        for mixer in self.mixers:
            x = x + mixer(x, attention_mask, past_key_values, use_cache)[0]
        return CausalLMOutputWithPast(logits=self.lm_head(x[:, -logits_to_keep:]), past_key_values=past_key_values)


torch.manual_seed(0)
model = Tried(Config()).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
prompt = torch.randint(40, (2, 9))
mask = torch.ones_like(prompt)
mask[0, :3] = 0


def likeliest(row):
    for _ in range(6):
        row = torch.cat([row, model(row).logits[:, -1].argmax(-1, keepdim=True)], 1)
    return row[0, -6:]


expected = torch.stack([likeliest(prompt[:1, 3:]), likeliest(prompt[1:])])
"""


def tried(program: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", MODEL + program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_model_of_the_hub_generates_the_likeliest_tokens() -> None:
    """Step by step through its cache, with padding, and the same without a cache."""
    tried("""
for use_cache in (True, False):
    model.lengths.clear()
    tokens = model.generate(
        prompt, attention_mask=mask, max_new_tokens=6, do_sample=False, use_cache=use_cache, pad_token_id=0
    )
    assert torch.equal(tokens[:, 9:], expected), (use_cache, tokens[:, 9:], expected)
    steps = [length for length, _ in model.lengths]
    assert steps == ([9, 1, 1, 1, 1, 1] if use_cache else [9, 10, 11, 12, 13, 14]), steps
""")


def test_the_next_step_is_prepared_as_forward_takes_it() -> None:
    tried("""
cache = Cache()
inputs = model.prepare_inputs_for_generation(
    prompt, past_key_values=cache, attention_mask=mask, cache_position=torch.arange(7, 9), logits_to_keep=1
)
assert torch.equal(inputs["input_ids"], prompt[:, -2:]) and inputs["past_key_values"] is cache
assert inputs["logits_to_keep"] == 1 and inputs["use_cache"] and "cache" not in inputs
assert model._supports_default_dynamic_cache() is False
""")
