"""Names, arguments and defaults against those of fla.modules 0.6.0, as tests/modules/data/signatures.json has them."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

PEER: dict[str, dict[str, dict[str, str]]] = json.loads(
    (Path(__file__).parent / "data" / "signatures.json").read_text()
)

OF_KERNELS = ("_fwd", "_bwd", "_fwd_quant", "_ref", "_quant_fn")
"""Ends of names of what computes half of a function for a kernel, or checks one."""
LEFT_OUT = {
    # The classes behind functions that are here.
    "CausalConv1dFunction",
    "CausalConv1dFunctionCP",
    "FastCausalConv1dFn",
    "LayerNormLinearQuantFn",
    "LayerNormLinearQuantFunction",
    # Context parallelism, and the CUDA library causal_conv1d.
    "FLACPContext",
    "causal_conv1d_cp",
    "causal_conv1d_cuda",
    "fast_causal_conv1d_fn",
    # Parts of kernels' launches.
    "causal_conv1d_update_states",
    "prepare_maxlens",
    "GroupNormRef",
}


def names() -> list[tuple[str, str]]:
    return [
        (module, name)
        for module, entries in PEER.items()
        for name in entries
        if name not in LEFT_OUT and not name.endswith(OF_KERNELS)
    ]


def written(function: Any) -> str:
    """Arguments with their defaults, self and annotations left out."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    if isinstance(function, type) and function.__init__ is nn.Module.__init__:
        return ""
    parts = []
    for parameter in inspect.signature(function).parameters.values():
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        parts.append(f"{stars.get(parameter.kind, '')}{parameter.name}{default}")
    return ", ".join(part for part in parts if part != "self")


@pytest.mark.parametrize(("module", "name"), names())
def test_signature(module: str, name: str) -> None:
    found = getattr(importlib.import_module(f"generated.modules.{module}"), name)
    for what, expected in PEER[module][name].items():
        if what == "keys":
            assert ", ".join(found) == expected
        elif what == "forward":
            assert written(found.forward) == expected
        elif not (what == "init" and expected == "*args, **kwargs"):
            assert written(found) == expected


def test_what_is_left_out_is_the_peers() -> None:
    assert {name for entries in PEER.values() for name in entries} >= LEFT_OUT


def test_names_of_the_package() -> None:
    modules = importlib.import_module("generated.modules")
    peers = {"BitLinear", "FusedBitLinear", "FusedCrossEntropyLoss", "FusedKLDivLoss", "FusedLayerNormGated"}
    peers |= {"FusedLayerNormSwishGate", "FusedLayerNormSwishGateLinear", "FusedLinearCrossEntropyLoss", "GatedMLP"}
    peers |= {"FusedRMSNormGated", "FusedRMSNormSwishGate", "FusedRMSNormSwishGateLinear", "GroupNorm", "L2Norm"}
    peers |= {"GroupNormLinear", "ImplicitLongConvolution", "LayerNorm", "LayerNormLinear", "LongConvolution"}
    peers |= {"RMSNorm", "RMSNormLinear", "RotaryEmbedding", "ShortConvolution", "TokenShift"}
    assert peers <= set(modules.__all__)
    assert all(hasattr(modules, name) for name in modules.__all__)
