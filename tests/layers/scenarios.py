"""What is done with a layer, the same for fla's and for ours: a dict of arrays, to be recorded or compared.

Weights come from their names and shapes and inputs from seeds, so that neither side has to be told the other's. What
stands at masked positions is no result: it is multiplied away. A cache is anything with `cache[layer_idx]`, a dict of
states, as fla's is.

Of rows of numbers, what is recorded is their products with a few random rows, the same for both sides: of an output
row by row, of states sequence by sequence, of the gradient of a weight over all of it. A difference shows in them as
large, relative to them, as in the numbers themselves.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.layers.cases import Config

Array = np.ndarray[Any, np.dtype[np.float32]]
Arrays = dict[str, Array]
AsOurs = Callable[[list[Tensor]], list[Tensor]]
"""From the recurrent states that a cache keeps, in order, to those that ours keeps."""
Make = Callable[[int], nn.Module]
"""A layer of a config, by its `layer_idx`."""

BATCH, TOKENS, PREFILL = 2, 18, 15
LENGTHS = (18, 11)
BOUNDARIES = (0, 5, 5, 6, 18)
"""Of packed sequences, the second of them empty."""
LONG = 70
WHOLE = 16
"""Rows of more numbers are recorded as products."""


def drawn(name: str, shape: Sequence[int], seed: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
    return _generator(name, seed).standard_normal(tuple(shape))


def weight(key: str, shape: Sequence[int], seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Of a size that training would give it; `key` is that of the `state_dict`."""
    normal, uniform = drawn(key, shape, seed), _generator(key, seed).uniform(size=tuple(shape))
    last = key.rsplit(".", 1)[-1]
    if last == "A_log":
        return np.log(1 + 15 * uniform)
    if last == "dt_bias" or key.endswith("dt_proj.bias"):
        return 0.5 * normal - 2
    if last == "mu" or last.startswith("x_"):
        return uniform
    if "norm" in key and last == "weight":
        return 1 + 0.2 * normal
    if len(shape) == 1:
        return 0.3 * normal
    return normal / np.sqrt(shape[-1])


def with_weights(layer: nn.Module, seed: int) -> nn.Module:
    state = layer.state_dict()
    layer.load_state_dict({key: torch.as_tensor(weight(key, p.shape, seed)).to(p) for key, p in state.items()})
    return layer


def scenarios(
    make: Make,
    make_cache: Callable[[], Any],
    config: Config,
    whole: bool,
    as_ours: AsOurs = list,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[str, Callable[[], Arrays]]]:
    """What is tried, by name, with the config, and how: `whole` for the config that everything is tried on.

    `as_ours` says how states are laid out: ours have keys before values, and an entry for each value head.
    """
    index = config.arguments.get("layer_idx", 0)
    run = _Runs(with_weights(make(index), index), make_cache, config, as_ours, dtype)
    left, right = masks()
    yield "no_mask", lambda: run.once() | run.gradients()
    yield "decoded", run.decoded
    if not whole:
        yield "padded_left", lambda: run.once(mask=left)
        return
    yield "padded_left", lambda: run.once(mask=left) | run.gradients(mask=left)
    yield "padded_right", lambda: {"output": run.once(mask=right)["output"]} | run.gradients(mask=right)
    yield "packed", lambda: run.once(cu_seqlens=BOUNDARIES) | run.gradients(cu_seqlens=BOUNDARIES)
    yield "decoded_padded", lambda: run.decoded(mask=left)
    yield "long", run.long
    yield "two_layers", lambda: _two_layers(make, make_cache, config.arguments["hidden_size"], as_ours, dtype)


FEW = ("no_mask", "decoded", "padded_left")
SCENARIOS = (*FEW, "padded_right", "packed", "decoded_padded", "long", "two_layers")


class _Runs:
    def __init__(
        self, layer: nn.Module, make_cache: Callable[[], Any], config: Config, as_ours: AsOurs, dtype: torch.dtype
    ) -> None:
        self.layer, self.make_cache, self.config, self.as_ours, self.dtype = layer, make_cache, config, as_ours, dtype
        self.index = config.arguments.get("layer_idx", 0)
        self.hidden = config.arguments["hidden_size"]

    def x(self, batch: int, tokens: int) -> Tensor:
        return _tensor("x", (batch, tokens, self.hidden)).to(self.dtype)

    def given(self, batch: int, tokens: int) -> dict[str, Tensor]:
        return {name: given_to(name, *of, batch, tokens).to(self.dtype) for name, of in self.config.given.items()}

    def once(self, mask: Tensor | None = None, cu_seqlens: Sequence[int] | None = None) -> Arrays:
        batch = BATCH if cu_seqlens is None else 1
        x, more = self.x(batch, TOKENS), self.given(batch, TOKENS)
        cache = self.make_cache()
        self.layer.eval()
        with torch.no_grad():
            result = self.layer(
                x, attention_mask=mask, past_key_values=cache, use_cache=True, **_packed(cu_seqlens), **more
            )
        found = {"output": _seen(result[0], mask), **_states(cache[self.index], self.as_ours)}
        return found | {f"returned.{i}": _seen(r, mask) for i, r in enumerate(result[3:])}

    def gradients(
        self,
        mask: Tensor | None = None,
        cu_seqlens: Sequence[int] | None = None,
        batch: int = BATCH,
        tokens: int = TOKENS,
    ) -> Arrays:
        """Of the inputs and of the weights, for a gradient of the output that is zero where it is masked."""
        batch = batch if cu_seqlens is None else 1
        inputs = {"x": self.x(batch, tokens), **self.given(batch, tokens)}
        for each in inputs.values():
            each.requires_grad_()
        x, *_ = inputs.values()
        self.layer.train()
        self.layer.zero_grad()
        more = {name: each for name, each in inputs.items() if name != "x"}
        output = self.layer(x, attention_mask=mask, **_packed(cu_seqlens), **more)[0]
        _pull(output, mask)
        found = {f"gradient.{name}": _products(_gradient(name, each), each.ndim - 1) for name, each in inputs.items()}
        return found | _of_weights(self.layer, "gradient")

    def decoded(self, mask: Tensor | None = None) -> Arrays:
        """A prefill, then token by token, through a cache."""
        x, more = self.x(BATCH, TOKENS), self.given(BATCH, TOKENS)
        cache, outputs = self.make_cache(), []
        self.layer.eval()
        with torch.no_grad():
            for start, end in _pieces():
                part = {n: t[:, start:end] if self.config.given[n][0] == "tokens" else t for n, t in more.items()}
                seen = None if mask is None else mask[:, :end]
                result = self.layer(x[:, start:end], attention_mask=seen, past_key_values=cache, use_cache=True, **part)
                outputs.append(result[0])
        length = np.asarray(cache.get_seq_length(self.index), np.float32)
        return {"output": _seen(torch.cat(outputs, 1), mask), "length": length} | _states(
            cache[self.index], self.as_ours
        )

    def long(self) -> Arrays:
        """More than a chunk of the kernels."""
        x, more = self.x(1, LONG), self.given(1, LONG)
        self.layer.eval()
        with torch.no_grad():
            output = self.layer(x, **more)[0]
        return {"output": _products(output, 2)} | self.gradients(batch=1, tokens=LONG)


def _two_layers(make: Make, make_cache: Callable[[], Any], hidden: int, as_ours: AsOurs, dtype: torch.dtype) -> Arrays:
    """Two layers and one cache; what the first returns besides (`v_first`) goes to the second."""
    first, second = (with_weights(make(index), index) for index in (0, 1))

    def both(x: Tensor, **more: Any) -> Tensor:
        y, _, _, *returned = first(x, **more)
        h: Tensor = x + y
        handed = {"v_first": returned[0]} if returned else {}
        return h + second(h, **more, **handed)[0]  # type: ignore[no-any-return]

    x, cache, outputs = _tensor("x", (BATCH, TOKENS, hidden)).to(dtype), make_cache(), []
    first.eval(), second.eval()
    with torch.no_grad():
        for start, end in _pieces():
            outputs.append(both(x[:, start:end], past_key_values=cache, use_cache=True))
    found = {"output": _products(torch.cat(outputs, 1), 2)}
    for index in (0, 1):
        found |= {f"{name}.of_{index}": each for name, each in _states(cache[index], as_ours).items()}
    for layer in (first, second):
        layer.train()
        layer.zero_grad()
    x.requires_grad_()
    _pull(both(x), None)
    found["gradient.x"] = _products(_gradient("x", x), 2)
    return found | _of_weights(first, "gradient.of_0") | _of_weights(second, "gradient.of_1")


def _pieces() -> list[tuple[int, int]]:
    return [(0, PREFILL), *((t, t + 1) for t in range(PREFILL, TOKENS))]


def masks() -> tuple[Tensor, Tensor]:
    """Of padding to the left, and to the right."""
    at, lengths = torch.arange(TOKENS), torch.tensor(LENGTHS)[:, None]
    return (at >= TOKENS - lengths).long(), (at < lengths).long()


def _packed(cu_seqlens: Sequence[int] | None) -> dict[str, Tensor]:
    return {} if cu_seqlens is None else {"cu_seqlens": torch.tensor(cu_seqlens)}


def given_to(name: str, kind: str, size: int, batch: int, tokens: int) -> Tensor:
    if kind == "tokens":
        return _tensor(name, (batch, tokens, size))
    if kind == "fractions":
        return torch.as_tensor(_generator(name, 0).uniform(0.05, 0.95, size=size)).float()
    raise ValueError(f"{name} of {kind!r}: expected tokens or fractions")


def _pull(output: Tensor, mask: Tensor | None) -> None:
    along = _tensor("gradient of the output", output.shape).to(output)
    output.backward(along if mask is None else along * mask[..., None])


def _of_weights(layer: nn.Module, prefix: str) -> Arrays:
    """Of a weight that a config makes no use of it is zero."""
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in layer.named_parameters()}
    return {f"{prefix}.{name}": _products(gradient, 0) for name, gradient in gradients.items()}


def _gradient(name: str, of: Tensor) -> Tensor:
    assert of.grad is not None, f"no gradient of {name}"
    return of.grad


def _states(cached: Mapping[str, Any], as_ours: AsOurs) -> Arrays:
    """What a cache keeps of a layer, in order; a normalizer that fla has as `ffn_state` is the second state here."""
    recurrent = [*_each(cached.get("recurrent_state")), *_each(cached.get("ffn_state"))]
    found = {f"state.{i}": _products(each, 1) for i, each in enumerate(as_ours(recurrent))}
    return found | {f"conv_state.{i}": _products(each, 1) for i, each in enumerate(_each(cached.get("conv_state")))}


def _each(states: Any) -> list[Tensor]:
    if states is None:
        return []
    return [states] if isinstance(states, Tensor) else list(states)


def _seen(output: Tensor, mask: Tensor | None) -> Array:
    return _products(output if mask is None else output * mask[..., None], 2)


def _products(tensor: Tensor, leading: int) -> Array:
    """Of each row: what is behind the leading dims is one."""
    # A product with -inf would say nothing of the rest; running logarithms that started are far above this.
    numbers = tensor.detach().double().nan_to_num(nan=torch.nan, neginf=-1e3).numpy()
    rows = numbers.reshape(*numbers.shape[:leading], -1)
    size = rows.shape[-1]
    if size <= WHOLE:
        return rows.astype(np.float32)
    along = drawn("along", (size, 4 if leading > 1 else 16)) / np.sqrt(size)
    return (rows @ along).astype(np.float32)


def _tensor(name: str, shape: Sequence[int]) -> Tensor:
    return torch.as_tensor(drawn(name, shape)).float()


def _generator(name: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(name.encode()), seed])
