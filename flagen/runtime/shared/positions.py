"""How many tokens sequences have had before a call."""

from __future__ import annotations

import torch
from torch import Tensor

from .arguments import Arguments


def positions_of(args: Arguments, count: Tensor | None) -> list[int]:
    """The position of each sequence's first token, from the state that counts them, [N, HV]; 0 where there is none.

    Raises:
        ValueError: `count` differs between heads.
        RuntimeError: torch.compile is to have it in its graph.
    """
    if count is None:
        return [0] * args.runs
    if torch.compiler.is_dynamo_compiling():
        raise RuntimeError(
            "initial_state: torch.compile cannot trace reading positions; without fullgraph, the graph breaks here"
        )
    whole = count.detach().round()
    if not torch.equal(whole, whole[:, :1].expand_as(whole)):
        raise ValueError("initial_state: expected as many tokens before the first for all heads of a sequence")
    begun: list[int] = whole[:, 0].long().tolist()
    return begun
