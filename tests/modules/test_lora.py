"""LoRA: fla.layers.rwkv6.LoRA's parameters and how they start."""

from __future__ import annotations

import torch

from generated.modules import LoRA


def test_parameters() -> None:
    entries = {name: tuple(tensor.shape) for name, tensor in LoRA(4, 6, 2).state_dict().items()}
    assert entries == {"lora.0.weight": (2, 4), "lora.2.weight": (6, 2), "lora.2.bias": (6,)}
    assert list(LoRA(4, 6, 2, bias=False).state_dict()) == ["lora.0.weight", "lora.2.weight"]


def test_it_starts_as_its_bias() -> None:
    lora = LoRA(4, 6, 2)
    assert (lora(torch.randn(3, 4)) == 0).all()
    lora.set_bias_value(torch.arange(6.0))
    assert torch.equal(lora(torch.randn(3, 4)), torch.arange(6.0).expand(3, 6))
    lora.set_bias_value(2.0)
    assert (lora(torch.randn(3, 4)) == 2).all()


def test_the_second_map_starts_orthogonal() -> None:
    tall, wide = LoRA(4, 6, 2).lora[2].weight, LoRA(4, 2, 8).lora[2].weight
    torch.testing.assert_close(tall.T @ tall, 0.01 * torch.eye(2))
    torch.testing.assert_close(wide @ wide.T, 0.04 * torch.eye(2))


def test_its_value() -> None:
    lora = LoRA(4, 6, 2, activation="sigmoid")
    for parameter in lora.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(3, 4)
    first, second = lora.lora[0].weight, lora.lora[2]
    torch.testing.assert_close(lora(x), torch.sigmoid(x @ first.T) @ second.weight.T + second.bias)
