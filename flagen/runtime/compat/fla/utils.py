"""What code around operators takes from fla.utils: guards for inputs, autocast of a function, comparisons.

Names that steer fla's own kernels are not here: which chip there is, what shared memory a kernel may have.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection
from contextlib import nullcontext
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar, overload

import torch
import torch.utils.checkpoint
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

__all__ = [
    "assert_close",
    "autocast_custom_bwd",
    "autocast_custom_fwd",
    "checkpoint",
    "contiguous",
    "device",
    "get_abs_err",
    "get_available_device",
    "get_err_ratio",
    "input_guard",
    "tensor_cache",
]


def get_available_device() -> str:
    """The kind of device that kernels run on: "cuda", or "cpu" where there is none."""
    return "cuda" if torch.cuda.is_available() else "cpu"


device = get_available_device()

autocast_custom_fwd = partial(torch.amp.custom_fwd, device_type=device)
"""The decorator of an autograd function's `forward`, so that torch.autocast is as it was when `backward` runs."""
autocast_custom_bwd = partial(torch.amp.custom_bwd, device_type=device)
"""The decorator of its `backward`."""


@overload
def input_guard(fn: Callable[P, R], *, no_guard_contiguous: bool | Collection[str] = False) -> Callable[P, R]: ...


@overload
def input_guard(
    fn: None = None, *, no_guard_contiguous: bool | Collection[str] = False
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def input_guard(
    fn: Callable[..., Any] | None = None, *, no_guard_contiguous: bool | Collection[str] = False
) -> Callable[..., Any]:
    """A decorator: the function gets its tensors contiguous, and runs on the device of the first of them.

    Args:
        no_guard_contiguous: the names of arguments that stay as they are; True for all of them.
    """
    if fn is None:
        return partial(input_guard, no_guard_contiguous=no_guard_contiguous)
    left = {*inspect.signature(fn).parameters} if no_guard_contiguous is True else set(no_guard_contiguous or ())
    names = list(inspect.signature(fn).parameters)

    def guarded(name: str | None, x: Any) -> Any:
        return x.contiguous() if isinstance(x, Tensor) and name not in left else x

    @wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        first = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        named = [*names[: len(args)], *[None] * (len(args) - len(names))]
        with torch.cuda.device(first.device) if first is not None and first.is_cuda else nullcontext():
            return fn(
                *(guarded(name, x) for name, x in zip(named, args, strict=True)),
                **{name: guarded(name, x) for name, x in kwargs.items()},
            )

    return run


def contiguous(fn: Callable[P, R]) -> Callable[P, R]:
    """`input_guard` under its earlier name."""
    return input_guard(fn)


def tensor_cache(fn: Callable[P, R]) -> Callable[P, R]:
    """The function itself: nothing is remembered from call to call, so that tensors may be written to in place."""
    return fn


def checkpoint(fn: Callable[P, R]) -> Callable[P, R]:
    """A decorator: `backward` computes again what the function left, which is not kept."""

    @wraps(fn)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        again: Callable[[], R] = partial(fn, *args, **kwargs)
        return torch.utils.checkpoint.checkpoint(again, use_reentrant=False)  # type: ignore[no-any-return]

    return run


def get_abs_err(x: Tensor, y: Tensor) -> float:
    """The largest difference."""
    return float((x.detach() - y.detach()).abs().max())


def get_err_ratio(x: Tensor, y: Tensor) -> float:
    """The root mean square of the difference, relative to that of `x`."""
    error, base = ((each.detach().square().mean().sqrt()) for each in (x.detach() - y.detach(), x))
    return float(error / (base + 1e-8))


def assert_close(
    prefix: str, ref: Tensor, tri: Tensor, ratio: float, warning: bool = False, err_atol: float = 1e-6
) -> None:
    """Assert that `tri` is `ref` but for a relative error below `ratio`, or absolute ones up to `err_atol`."""
    largest, error = get_abs_err(ref, tri), get_err_ratio(ref, tri)
    if largest <= err_atol or error < ratio:
        return
    said = f"{prefix:>16} diff: {largest:.6f} ratio: {error:.6f}"
    if not warning or torch.isnan(ref).any() or torch.isnan(tri).any():
        raise AssertionError(said)
    warnings.warn(said, stacklevel=2)
