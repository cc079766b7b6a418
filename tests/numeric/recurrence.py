"""Runs a recurrence token by token and head by head, from a rule for one token of one head.

This loop is the only place that knows of batches, packed sequences, grouped heads and micro-steps, and it indexes where
it could reshape, to be plainly right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import Parameter, signature
from itertools import pairwise

import torch
from torch import Tensor

Rule = Callable[..., tuple[Tensor | tuple[Tensor, ...], Tensor]]
State = Tensor | tuple[Tensor, ...]
RUNS: dict[str, Rule] = {}
"""What rules have been turned into, by name."""


def recurrence(
    rows_and_columns: str = "",
    *,
    states: Mapping[str, str] | None = None,
    first: Mapping[str, float] | None = None,
    per_step: str = "",
    per_head: str = "",
    shared: str = "",
    output: str = "",
) -> Callable[[Rule], Rule]:
    """Turn a rule into a function of whole tensors, with the signature of the variant of that name.

    A matrix S is sized by the last dims of two inputs, `rows_and_columns`; other states are named in `states`, with
    the tensors that size each of their dims, `x+1` where it is one more, `x.T` where it is the number of rows, in the
    order in which the rule takes and returns them. They start at 0 or at `first`. `per_step` names the inputs with a
    row for each micro-step of a token; `per_head` and `shared` the params, which have one entry for each value head,
    or one for all, and no token. `output` names an input as wide as the output, unless that is as wide as the columns
    of S.
    """
    sized_by = states or {"S": rows_and_columns}

    def decorate(rule: Rule) -> Rule:
        known = signature(rule).parameters
        names = [name for name in known if name not in sized_by and known[name].kind is Parameter.POSITIONAL_OR_KEYWORD]

        @wraps(rule)
        def run(
            *args: Tensor,
            num_householder: int = 2,
            initial_state: State | None = None,
            output_final_state: bool = False,
            cu_seqlens: Tensor | None = None,
            **keywords: Tensor | float,
        ) -> tuple[Tensor, State | None]:
            given = {**dict(zip(names, args, strict=False)), **keywords}
            tensors = {name: x.double() for name, x in given.items() if isinstance(x, Tensor)}
            scalars = {name: x for name, x in given.items() if not isinstance(x, Tensor)}
            by_head = {name: x for name, x in tensors.items() if name in per_head.split()}
            for_all = {name: x for name, x in tensors.items() if name in shared.split()}
            inputs = {name: x for name, x in tensors.items() if name not in {**by_head, **for_all}}

            HV = max(x.shape[2] for x in inputs.values())
            B, T = next(x.shape[:2] for name, x in inputs.items() if name not in per_step.split())
            width = tensors[output or rows_and_columns.split()[1]].shape[-1]
            if cu_seqlens is None:
                spans = [(b, 0, T) for b in range(B)]
            else:
                ends = cu_seqlens.tolist()
                spans = [(0, start, end) for start, end in pairwise(ends)]
            context = {name: value for name, value in {"HV": HV}.items() if name in known}

            def size(of: str) -> int:
                name, _, more = of.removesuffix(".T").partition("+")
                return tensors[name].shape[-2 if of.endswith(".T") else -1] + int(more or 0)

            def operand(name: str, b: int, t: int, head: int) -> Tensor:
                x = inputs[name]
                h = head // (HV // x.shape[2])
                if name in per_step.split():
                    return x[b, t * num_householder : (t + 1) * num_householder, h]
                return x[b, t, h]

            def first_states(n: int, head: int) -> tuple[Tensor, ...]:
                if initial_state is not None:
                    given_states = (initial_state,) if isinstance(initial_state, Tensor) else initial_state
                    return tuple(x[n, head].double() for x in given_states)
                sizes = {name: [size(of) for of in sizing.split()] for name, sizing in sized_by.items()}
                return tuple(torch.full(size, (first or {}).get(name, 0.0)).double() for name, size in sizes.items())

            def run_head(n: int, head: int) -> tuple[Tensor, tuple[Tensor, ...]]:
                b, start, end = spans[n]
                now = first_states(n, head)
                constants = for_all | {name: x[head] for name, x in by_head.items()}
                constants |= {"head": head} if "head" in known else {}
                o = [torch.zeros(0, width).double()]
                for t in range(start, end):
                    operands = {name: operand(name, b, t, head) for name in inputs}
                    after, o_t = rule(*now, **operands, **constants, **context, **scalars)
                    now = (after,) if isinstance(after, Tensor) else after
                    o.append(o_t[None])
                return torch.cat(o), now

            heads = [[run_head(n, head) for head in range(HV)] for n in range(len(spans))]
            outputs = [torch.stack([o for o, _ in row], dim=1) for row in heads]
            o = torch.stack(outputs) if cu_seqlens is None else torch.cat(outputs)[None]
            if not output_final_state:
                return o, None
            final = tuple(
                torch.stack([torch.stack([now[place] for _, now in row]) for row in heads])
                for place in range(len(sized_by))
            )
            return o, final if len(final) > 1 else final[0]

        RUNS[rule.__name__] = run
        return run

    return decorate
