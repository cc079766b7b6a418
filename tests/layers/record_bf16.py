# ruff: noqa: E402
"""Records how far fla's real layers in bf16 are from float64, in `data/bf16.json`: run as `record` is.

    PYTHONPATH=. TRITON_INTERPRET=1 python -m tests.layers.record_bf16 [PACKAGE...]

Unlike float32, bf16 is what fla's operators are for, so they run as they are, but for what the interpreter cannot run.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from tests.layers.record import DATA, additive_gate, layer_class  # It prepares the interpreter.

PLACE = DATA / "bf16.json"

import fla.layers
import fla.modules.feature_map
import fla.ops.lightnet.chunk
import torch
from fla.ops.delta_rule import chunk_delta_rule
from fla.ops.gated_delta_product import chunk_gated_delta_product
from fla.ops.gated_delta_rule import chunk_gated_delta_rule
from fla.ops.mesa_net import chunk_mesa_net
from fla.ops.momentum_delta_rule import chunk_momentum_delta_rule
from torch import Tensor

from tests.layers.cases import LAYERS
from tests.layers.scenarios import with_weights
from tests.layers.sixteen_bits import Errors, errors, reference
from tests.layers.test_recorded import made

fla.layers.gated_deltanet.chunk_gated_delta_rule = chunk_gated_delta_rule
fla.layers.gated_deltaproduct.chunk_gated_delta_product = chunk_gated_delta_product
fla.layers.delta_net.chunk_delta_rule = chunk_delta_rule
fla.layers.mesa_net.chunk_mesa_net = chunk_mesa_net
fla.layers.momentum_deltanet.chunk_momentum_delta_rule = chunk_momentum_delta_rule


def gate_in_float32(x: Tensor, **more: Any) -> tuple[Tensor, ...]:
    """What stands in for fla's additive gate, which adds in float32 as that does; the gates stay there."""
    k, g, last = additive_gate(x.float(), **more)
    return k.to(x.dtype), g, last


fla.ops.lightnet.chunk.fused_additive_gate = gate_in_float32
# Forgets what it computes by a way of torch that does not go together with gradients of some tensors alone.
fla.modules.feature_map.flatten_diag_outer_product_off1 = (
    fla.modules.feature_map.flatten_diag_outer_product_off1.__wrapped__
)


def measure(package: str, index: int) -> Errors:
    config = LAYERS[package].configs[index]
    place = config.arguments.get("layer_idx", 0)
    ours = with_weights(made(package, config, place), place).bfloat16()
    del os.environ["TRITON_INTERPRET"]
    expected = reference(ours, config)
    os.environ["TRITON_INTERPRET"] = "1"
    theirs = layer_class(package)(**{**config.arguments, "layer_idx": place})
    return errors(expected, with_weights(theirs, place).bfloat16(), config)


if __name__ == "__main__":
    torch.set_num_threads(1)
    recorded = json.loads(PLACE.read_text()) if PLACE.exists() else {}
    for package in sys.argv[1:] or LAYERS:
        recorded[package] = []
        for index in range(len(LAYERS[package].configs)):
            found = measure(package, index)
            recorded[package].append({name: float(f"{error:.3e}") for name, error in found.items()})
            print(package, index, found, flush=True)
        rows = ",\n".join(f" {json.dumps(p)}: {json.dumps(recorded[p])}" for p in LAYERS if p in recorded)
        PLACE.write_text("{\n" + rows + "\n}\n")
