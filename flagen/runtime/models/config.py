"""What makes a model: the values of its config, by the names that checkpoints use."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from .families import COMMON, OF_SOME, WITHOUT_EFFECT, Family, family_called, family_of

# What a config file says about itself, or for the sake of the library that wrote it.
_ABOUT = frozenset(
    "model_type architectures auto_map torch_dtype dtype transformers_version _name_or_path attn attnres_block_size "
    "layer".split()
)


class ModelConfig:
    """The config of a causal language model around one layer.

    Its values are attributes: what every model has (hidden_size, num_hidden_layers, vocab_size, hidden_ratio,
    intermediate_size, hidden_act, norm_eps, initializer_range, tie_word_embeddings, pad_, bos_, eos_token_id,
    use_l2warp), and the arguments of the layer's constructor, by the names in the family's checkpoints.

    Args:
        layer: the layer's class in `layers`, as "GatedDeltaNet".
        values: what differs from the family's defaults.

    Raises:
        TypeError: a value that the model does not have, with the nearest name it has.
        ValueError: there is no such layer, or what is asked for cannot be built.
    """

    def __init__(self, layer: str, **values: Any) -> None:
        self._set_up(family_of(layer), values, strict=True)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ModelConfig:
        """The config of a checkpoint, as its config.json has it; what it says besides is left out, with a warning if
        it would change what models of other families compute.

        Raises:
            ValueError: its model_type is of no family, or the model has parts that are not built here.
        """
        found = cls.__new__(cls)
        family = family_of(config["layer"]) if "layer" in config else family_called(config.get("model_type", ""))
        for part in ("attn", "attnres_block_size"):
            if config.get(part) is not None:
                raise ValueError(f"{part}: expected None, got {config[part]!r}; attention is not built")
        found._set_up(family, config, strict=False)
        return found

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` takes."""
        return {"model_type": self.family.model_type, "layer": self.family.layer, **self._values}

    def _set_up(self, family: Family, values: Mapping[str, Any], *, strict: bool) -> None:
        self.family = family
        self._arguments = _arguments(self.layer_class)
        defaults = {self.name_of(name): value for name, value in self._arguments.items()}
        known = {**defaults, **COMMON, **family.defaults}
        given = {name: _plain(value) for name, value in values.items() if name in known}
        others = [name for name in values if name not in {*known, *WITHOUT_EFFECT, *family.ignored}]
        if strict and others:
            raise TypeError(f"{family.layer}'s model has no {others[0]!r}{_nearest(others[0], known)}")
        for name in others:
            if name in OF_SOME:
                warnings.warn(f"{name}: {family.layer}'s model has none, and is built without it", stacklevel=3)
        found = known | given
        if family.derived is not None:
            found |= family.derived(found)
        self._values = found

    @property
    def layer_class(self) -> Any:
        """The layer's class."""
        layers = import_module("..layers", __package__)
        found = getattr(layers, self.family.layer, None)
        if found is None:
            known = sorted(layers.__all__)
            raise ValueError(f"layer: expected one of {', '.join(known)}, got {self.family.layer!r}")
        return found

    def name_of(self, argument: str) -> str:
        """What the config calls an argument of the layer."""
        return self.family.names.get(argument, argument)

    def layer_arguments(self, layer_idx: int) -> dict[str, Any]:
        """What the layer of this index is constructed with."""
        found = {argument: self._values[self.name_of(argument)] for argument in self._arguments}
        for name in self.family.per_layer:
            found[name] = found[name][layer_idx]
        return {**found, "layer_idx": layer_idx}

    @property
    def family_padding(self) -> int | None:
        """The row of the embeddings that has no gradient."""
        return None if self.family.as_mamba else self.pad_token_id

    @property
    def lower_bounds_width(self) -> int | None:
        """How many learned lower bounds a layer has; None where it has none."""
        if self.family.lower_bounds is None or not self.use_lower_bound:
            return None
        return self.family.lower_bounds(self._values)

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("_values", {})
        if name not in values:
            raise AttributeError(f"the config has no {name!r}{_nearest(name, values)}")
        return values[name]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModelConfig) and self.to_dict() == other.to_dict()

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self._values.items())
        return f"ModelConfig({self.family.layer!r}, {values})"


def _arguments(layer: type) -> dict[str, Any]:
    """The constructor's arguments but for the layer's index, with their defaults; None for what has to be given."""
    parameters = inspect.signature(layer).parameters.values()
    known = (p for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "layer_idx")
    return {p.name: None if p.default is p.empty else _plain(p.default) for p in known}


def _plain(value: Any) -> Any:
    """Values as JSON has them are those that a constructor has: infinity is a string there."""
    if isinstance(value, str) and value in ("inf", "Infinity"):
        return float("inf")
    return [_plain(x) for x in value] if isinstance(value, list | tuple) else value


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else ""
