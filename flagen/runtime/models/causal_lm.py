"""A causal language model around any layer of this package."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..modules import FusedLinearCrossEntropyLoss
from ..shared.cache import Cache
from ..shared.packing import Packings
from .blocks import BLOCKS, Handed, norm_of
from .config import ModelConfig
from .generation import generate
from .tensors import load_tensors, save_tensors

IGNORED = -100
"""The label of what is not to be predicted."""


@dataclass
class CausalLMOutput:
    """What a call of the model gives.

    loss: the mean over the labels, a number, or None without labels.
    logits: [B, T or fewer, vocab_size], or None where there are labels: the loss never has them whole.
    past_key_values: the cache in which the call left its states, or None.
    """

    loss: Tensor | None
    logits: Tensor | None
    past_key_values: Any


class Decoder(nn.Module):
    """Embeddings, blocks and a last norm: from token ids to hidden states."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        block = BLOCKS[config.family.block]
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.family_padding)
        if config.lower_bounds_width is not None:
            self.lower_bounds = nn.Parameter(torch.zeros(config.num_hidden_layers, config.lower_bounds_width))
        self.layers = nn.ModuleList(block(config, index) for index in range(config.num_hidden_layers))
        self.last_norm = "norm_f" if config.family.as_mamba else "norm"
        self.add_module(self.last_norm, norm_of(config))
        self.gradient_checkpointing = False

    def forward(self, x: Tensor, **call: Any) -> Tensor:
        """[B, T] ids or [B, T, D] embeddings to [B, T, D]; `call` is what a layer is called with."""
        if not x.is_floating_point():
            x = self.embeddings(x)
        call["use_cache"] = self.keeps_states(call.get("use_cache"))
        bounds, handed, packings = self._bounds(), Handed(), Packings()
        for index, block in enumerate(self.layers):
            if bounds is not None:
                handed["lower_bound"] = bounds[index]
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x, handed = checkpoint(block, x, handed, use_reentrant=False, packings=packings, **call)
            else:
                x, handed = block(x, handed, packings=packings, **call)
        normed: Tensor = self.get_submodule(self.last_norm)(x)
        return normed

    def keeps_states(self, use_cache: bool | None) -> bool:
        """Whether a call leaves states: not where the backward pass runs its layers again, as in transformers."""
        if use_cache and self.gradient_checkpointing and torch.is_grad_enabled():
            warnings.warn(
                "use_cache: expected False with gradient checkpointing, got True; no states are left in a cache",
                stacklevel=3,
            )
            return False
        return bool(use_cache)

    def _bounds(self) -> Tensor | None:
        """[num_hidden_layers, width], rising from zero layer by layer (HGRN, https://arxiv.org/abs/2311.04823)."""
        if not hasattr(self, "lower_bounds"):
            return None
        shares = self.lower_bounds.softmax(0, dtype=torch.float32)
        return shares.cumsum(0) - shares[0]


class CausalLM(nn.Module):
    """A causal language model: embeddings, blocks of a layer and a gated MLP, a last norm, a head.

    The names of its parameters, and of its config's values, are those of flash-linear-attention's models, so that their
    checkpoints load strictly.

    Args:
        config: a ModelConfig; or the name of a layer in `layers`, and what differs from the defaults in `values`.

    Raises:
        TypeError, ValueError: the config is none that can be built, see ModelConfig.
    """

    def __init__(self, config: ModelConfig | str, **values: Any) -> None:
        super().__init__()
        if isinstance(config, str):
            config = ModelConfig(config, **values)
        elif values:
            raise TypeError(f"{next(iter(values))}: a config is given; values go into it")
        self.config = config
        self.base_name = "backbone" if config.family.as_mamba else "model"
        self.add_module(self.base_name, Decoder(config))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.reset_parameters()
        if config.tie_word_embeddings:
            self.lm_head.weight = self.decoder.embeddings.weight
        self.loss = FusedLinearCrossEntropyLoss(ignore_index=IGNORED, use_l2warp=config.use_l2warp)

    @property
    def decoder(self) -> Decoder:
        """The model without its head."""
        decoder = self.get_submodule(self.base_name)
        assert isinstance(decoder, Decoder)
        return decoder

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Projections and embeddings start at normal numbers of initializer_range; the rest as its layer has it."""
        std = self.config.initializer_range
        if not self.config.family.block.startswith("rwkv"):
            for module in self.modules():
                if isinstance(module, nn.Linear | nn.Conv1d):
                    nn.init.normal_(module.weight, std=std)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        nn.init.normal_(self.lm_head.weight, std=std)
        nn.init.normal_(self.decoder.embeddings.weight, std=std)
        if (padding := self.decoder.embeddings.padding_idx) is not None:
            self.decoder.embeddings.weight[padding].zero_()
        for module in self.modules():
            if isinstance(module, self.config.layer_class) and hasattr(module, "reset_parameters"):
                module.reset_parameters()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        *,
        cu_seqlens: Tensor | None = None,
    ) -> CausalLMOutput:
        """Logits of each next token, or how well the labels are predicted.

        Args:
            input_ids: [B, T], or `inputs_embeds`, [B, T, D].
            attention_mask: [B, S], S >= T, 0 where there is no token, on either side.
            past_key_values: what earlier calls left; with use_cache, this one leaves its states there, or in a new one.
            labels: [B, T], the input ids themselves; each predicts the next, -100 is not predicted. Of packed sequences
                the first token of each is not predicted.
            use_cache: default whether past_key_values are given.
            logits_to_keep: of how many last tokens there are logits; 0 is all.
            cu_seqlens: [N + 1], offsets of packed sequences in a batch of 1.

        Returns:
            CausalLMOutput.

        Raises:
            ValueError: both of input_ids and inputs_embeds are given, or none; or a shape that does not fit.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids, inputs_embeds: expected one of the two")
        x = inputs_embeds if input_ids is None else input_ids
        assert x is not None
        use_cache = past_key_values is not None if use_cache is None else use_cache
        use_cache = self.decoder.keeps_states(use_cache)
        if use_cache and past_key_values is None:
            past_key_values = Cache()
        x = self.decoder(
            x,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            cu_seqlens=cu_seqlens,
        )
        x = x.to(self.lm_head.weight.dtype)
        if labels is None:
            return CausalLMOutput(None, self.lm_head(x[:, -logits_to_keep:]), past_key_values)
        loss = self.loss(x, _next(labels, attention_mask, cu_seqlens), self.lm_head.weight)
        return CausalLMOutput(loss, None, past_key_values)

    generate = generate

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json and the tensors: model.safetensors where that library is there, else pytorch_model.bin."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        if self.config.tie_word_embeddings:
            del tensors["lm_head.weight"]
        save_tensors(directory, tensors)
        (directory / "config.json").write_text(json.dumps(self.config.to_dict(), indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, directory: str | Path, *, dtype: torch.dtype | None = None) -> CausalLM:
        """A model as save_pretrained, or flash-linear-attention, left it: config.json, and tensors, in shards or not.

        Args:
            directory: where they are.
            dtype: of the parameters; default as they were saved.

        Raises:
            FileNotFoundError: there is no config or there are no tensors.
            ValueError: the config is of no model that can be built.
            RuntimeError: the tensors are not the model's.
        """
        directory = Path(directory)
        config = ModelConfig.from_dict(json.loads((directory / "config.json").read_text()))
        tensors = load_tensors(directory)
        model = cls(config)
        model.load_tensors(tensors)
        return model if dtype is None else model.to(dtype)

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take a checkpoint's tensors, all of them and no others, in their dtypes; a tied head may be left out.

        Raises:
            RuntimeError: names or shapes are not the model's.
        """
        tensors = dict(tensors)
        if self.config.tie_word_embeddings:
            tensors.setdefault("lm_head.weight", tensors[f"{self.base_name}.embeddings.weight"])
        self.load_state_dict(tensors, strict=True, assign=True)
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.decoder.embeddings.weight


def _next(labels: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """What each token is to predict: the next one's label; nothing at a sequence's end, nor where there is no token."""
    none = torch.zeros_like(labels, dtype=torch.bool) if mask is None else mask[:, -labels.shape[1] :] == 0
    labels = labels.masked_fill(none, IGNORED)
    following = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], dim=1).masked_fill(none, IGNORED)
    if cu_seqlens is not None:
        ends = cu_seqlens[1:][cu_seqlens.diff() > 0] - 1
        following = following.index_fill(1, ends.to(labels.device), IGNORED)
    return following
