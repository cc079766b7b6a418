"""How the functions with kernels become operators of torch: with a name, a fake for tracing, and gradients."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .arguments import Arguments
from .autocast import no_autocast

NOTHING, PREPARED, STATES = range(3)
"""What a forward call keeps for its gradient: nothing; what would have to be prepared again; the states as well."""


def register(module: str, name: str) -> Callable[[Callable[..., tuple[Tensor, ...]]], Any]:
    """Make a function the operator `name` of the package that `module` is in; where that is taken, as after a reload,
    the name gets a number.

    The namespace says where the package was imported from: two copies of it in one process are two sets of operators.
    """
    namespace = "flagen_" + re.sub(r"\W", "_", module.rpartition(".")[0], flags=re.ASCII)
    known = getattr(torch.ops, namespace)
    names = (name if number == 1 else f"{name}_{number}" for number in count(1))
    free = next(candidate for candidate in names if not hasattr(known, candidate))
    return torch.library.custom_op(f"{namespace}::{free}", mutates_args=())


def differentiate(forward: Any, backward: Any, tensors: int, outputs: int = 0, kept: int = 0) -> None:
    """Let `backward` give the gradients of `forward`, whose first `tensors` arguments can have one.

    `backward` takes what `forward` takes, then a cotangent of each result, or None, the first `outputs` results and
    the last `kept` of `forward`, of which these are there for nothing else, and which gradients are wanted.
    """
    given = tensors + 1  # cu_seqlens follows the tensors with gradients.

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:given], *output[:outputs], *output[len(output) - kept :])
        ctx.settings = inputs[given:]
        ctx.set_materialize_grads(False)

    def go_back(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        wanted = list(ctx.needs_input_grad[:tensors])
        saved = ctx.saved_tensors  # Once: checkpoints compute them when they are asked for.
        inputs, arrays = saved[:given], saved[given:]
        of_results = cotangents[: len(cotangents) - kept]
        found = backward(*inputs, *ctx.settings, *of_results, *arrays, wanted)
        others = [None] * (1 + len(ctx.settings))
        return (*(x if asked else None for x, asked in zip(found, wanted, strict=True)), *others)

    def allocate(*arguments: Any) -> tuple[Tensor, ...]:
        given = zip(arguments[:tensors], arguments[-1], strict=True)
        return results(*(torch.empty_like(x) if asked else None for x, asked in given))

    forward.register_autograd(go_back, setup_context=keep)
    backward.register_fake(allocate)


def gradients(
    form: Callable[..., tuple[Tensor, ...]],
    tensors: Sequence[Tensor | None],
    cotangents: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    """The gradients of a PyTorch form, which is run again for them; empty ones where they are not wanted."""
    places = [place for place, asked in enumerate(wanted) if asked]

    def of_wanted(*varied: Tensor) -> tuple[Tensor, ...]:
        varying = dict(zip(places, varied, strict=True))
        outputs = form(*(varying.get(place, x) for place, x in enumerate(tensors)))
        return outputs[: len(cotangents)]  # What is kept for the gradient comes after, and has none.

    # An operator runs where autograd is off; torch.func has its own.
    outputs, pull_back, *_ = torch.func.vjp(of_wanted, *(tensors[place] for place in places))
    along = tuple(torch.zeros_like(o) if x is None else x for o, x in zip(outputs, cotangents, strict=True))
    with no_autocast(outputs[0].device):
        found = dict(zip(places, pull_back(along), strict=True))
    # Copies, for one tensor may be two gradients, or a cotangent.
    copies = {place: x.clone(memory_format=torch.contiguous_format) for place, x in found.items()}
    return results(*(copies.get(place) for place in range(len(tensors))))


def asked(names: Sequence[str], wanted: Sequence[bool]) -> set[str]:
    """The names of those that are wanted."""
    return {name for name, is_wanted in zip(names, wanted, strict=True) if is_wanted}


def results(*tensors: Tensor | None) -> tuple[Tensor, ...]:
    """What an operator may return: contiguous tensors, and an empty one in the place of each that is missing."""
    some = next(x for x in tensors if x is not None)
    return tuple(some.new_empty(0) if x is None else x.contiguous() for x in tensors)


def wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def no_tangents(*tensors: Tensor | None) -> None:
    """Raise where torch.func.jvp or forward_ad ask for tangents, which a kernel would leave out without a word."""
    if torch.compiler.is_compiling():
        return
    if any(x is not None and _has_tangent(x) for x in tensors):
        raise RuntimeError("kernels have no forward-mode derivatives: call the naive_* form")


def _has_tangent(x: Tensor) -> bool:
    return forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def has_kernel(args: Arguments) -> bool:
    """Kernels run on a GPU, or in Triton's interpreter, and compute in float32."""
    runs = args.device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    return runs and args.dtype != torch.float64
