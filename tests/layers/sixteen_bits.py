"""How far a layer in bf16 is from float64: the same for fla's and for ours.

Weights, inputs and the gradient of the output are rounded to bf16 first, so that what is measured is the computation.
The reference is our layer in float64, in its PyTorch forms. An error is the norm of the difference of a sequence's
output, or of the gradient of its input, relative to what it should be; of several sequences the median counts, for
where a norm's input is near zero a single one may be far off, whoever computes it.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from tests.layers.cases import Config
from tests.layers.scenarios import drawn, given_to

SEQUENCES, TOKENS = 6, 70
"""More than a chunk, and so many of them."""

Errors = dict[str, float]
Run = Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]


def inputs(config: Config) -> dict[str, Tensor]:
    """Hidden states and what else the layer is given, in bf16."""
    hidden = config.arguments["hidden_size"]
    x = torch.as_tensor(drawn("x in bf16", (SEQUENCES, TOKENS, hidden)))
    more = {name: given_to(name, kind, size, SEQUENCES, TOKENS) for name, (kind, size) in config.given.items()}
    return {name: each.bfloat16() for name, each in {"hidden_states": x, **more}.items()}


def run(layer: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The output and the gradient of the input, in float64."""
    x = given["hidden_states"].clone().requires_grad_()
    output = layer.train()(**{**given, "hidden_states": x})[0]
    along = torch.as_tensor(drawn("gradient in bf16", output.shape)).bfloat16().to(output)
    (gradient,) = torch.autograd.grad(output, x, along)
    return {"output": output.detach().double(), "gradient": gradient.double()}


def reference(layer: nn.Module, config: Config) -> dict[str, Tensor]:
    """What one of our layers in bf16 should give; no kernel may run."""
    return run(deepcopy(layer).double(), {name: each.double() for name, each in inputs(config).items()})


def errors(expected: dict[str, Tensor], layer: nn.Module, config: Config) -> Errors:
    """How far the layer, in bf16, is from what is expected."""
    got = run(layer, inputs(config))
    return {name: _error(expected[name], got[name]) for name in expected}


def _error(expected: Tensor, got: Tensor) -> float:
    each = (got - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    return float(each.sort().values[len(each) // 2 - 1 : len(each) // 2 + 1].mean())
