"""States that torch.inference_mode made, where it is over: no gradient may use them, and nothing is written to them."""

from __future__ import annotations

from operator import is_
from typing import Any

import torch
from torch import Tensor


def usable(state: Any) -> Any:
    """A tensor, or several, as they are; copies of those that can only be used in inference_mode."""
    if isinstance(state, tuple | list):
        parts = tuple(map(usable, state))
        return state if all(map(is_, parts, state)) else parts
    if isinstance(state, Tensor) and _is_out_of_reach(state):
        return state.clone()
    return state


def write_in_place(state: Tensor, new: Tensor, rows: Tensor | None = None) -> None:
    """Write `new` into `state`, or into those of its rows, wherever the state was made."""
    if _is_out_of_reach(state):
        with torch.inference_mode():
            write_in_place(state, new, rows)
    elif rows is None:
        state.copy_(new)
    else:
        state[rows] = new.to(state.dtype)


def _is_out_of_reach(state: Tensor) -> bool:
    return state.is_inference() and not torch.is_inference_mode_enabled()
