"""Computing in the dtypes that a form chooses, whatever torch.autocast says around it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Products in the dtype of their operands, whatever torch.autocast says around."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def without_autocast(form: Callable[P, R]) -> Callable[P, R]:
    """`form` where torch.autocast does not reach: it chooses the dtype that it computes in."""

    @wraps(form)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        devices = (x.device for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        with no_autocast(next(devices, torch.device("cpu"))):
            return form(*args, **kwargs)

    return run
