"""A layer under other names: the same module, its config, dims, params, modules, inputs and locals called otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from flagen.spec.layer.model import Call, Init, Layer, Use

OWN = frozenset(
    """
    F Any ClassVar Forms Layer Packing Tensor ValueError activate annotations attention_mask check_activation
    check_sizes check_sizes_or_none cls cu_seqlens hidden_states kwargs math nn no_weight_decay output_attentions
    packing past past_key_values positions run self state torch use_cache Affine DDLerpLinear DPFPFeatureMap
    FusedRMSNormGated GroupNorm HadamardFeatureMap HedgehogFeatureMap LoRA RMSNorm RMSNormGated RotaryEmbedding
    ShortConvolution T2RFeatureMap TokenMix
    """.split()
)
"""What a generated layer calls its own. Its class is not called so; all else has another name there."""


def declared_names(layer: Layer) -> Iterator[str]:
    """Every name that a layer declares, but for those of operators."""
    groups = (layer.config, layer.dims, layer.params, layer.modules, layer.inputs)
    yield from (decl.name for group in groups for decl in group)
    yield from (target for statement in layer.forward for target in statement.targets)


def renamed(layer: Layer, names: Mapping[str, str]) -> Layer:
    """`layer` with each of `names` called what they say; it remembers what its author wrote. Texts stay as they are."""
    if not names:
        return layer
    changed: Layer = _renamed(layer, names, "")
    return replace(changed, written={new: old for old, new in names.items()})


def _renamed(value: Any, names: Mapping[str, str], field: str) -> Any:
    if isinstance(value, str):
        return names.get(value, value) if field in ("name", "targets", "outputs") else value
    if isinstance(value, tuple):
        return tuple(_renamed(part, names, field) for part in value)
    if not is_dataclass(value) or isinstance(value, type | Use):
        return value
    kept = {"name"} if isinstance(value, Call) and value.kind != "module" else set()
    changed = {
        each.name: _renamed(getattr(value, each.name), names, each.name)
        for each in fields(value)
        if each.name not in kept
    }
    if isinstance(value, Call):  # Keywords are those of what is called.
        changed["keywords"] = tuple((key, _renamed(given, names, "")) for key, given in value.keywords)
    if isinstance(value, Init):
        first, dot, rest = value.path.partition(".")
        changed["path"] = f"{names.get(first, first)}{dot}{rest}"
    return replace(value, **changed)
