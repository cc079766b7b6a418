"""What the chunk forms in PyTorch have in common: rows of chunks, [batch, HV, chunks, rows, channels].

`g` is the log decay of each row, [..., rows, channels].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .arguments import Arguments


def by_sequence(
    form: Callable[..., tuple[Tensor, ...]],
    args: Arguments,
    initial_state: Any,
    chunk_size: int,
    *,
    transposed: bool = False,
    pairs: int | None = None,
    **rows: Tensor,
) -> tuple[Tensor, ...]:
    """The chunk form of every run of tokens: each read [batch, tokens, HV, ...], then the final states; of the
    transposed state where that is what it is of. Several states are registers, [batch, HV, registers, ...]. Keys of two
    dims, of which `pairs` is the first one's axis, are one dim to the form."""
    runs = []
    for tokens, first in args.sequences(initial_state):
        S = torch.stack(first, dim=2) if isinstance(first, tuple) else first
        if pairs is not None:
            first, S = S, S.flatten(pairs, pairs + 1)
        part = {name: row[:, tokens] for name, row in rows.items()}
        *read, final = form(S.mT if transposed else S, chunk_size, **part)
        final = final.mT if transposed else final
        runs.append((*read, final if pairs is None else final.reshape_as(first)))
    *reads, finals = (list(parts) for parts in zip(*runs, strict=True))
    return (*(torch.cat(read, dim=1) for read in reads), torch.cat(finals))


def chunks(x: Tensor, size: int) -> Tensor:
    """[batch, tokens, (rows of a token,) HV, channels] as [batch, HV, chunks, rows, channels], zero rows behind."""
    padding = -x.shape[1] % size
    if padding:
        x = functional.pad(x, (0, 0) * (x.ndim - 2) + (0, padding))
    return torch.unflatten(x, 1, (x.shape[1] // size, size)).flatten(2, -3).movedim(-2, 1).contiguous()


def tokens(x: Tensor, tokens: int) -> Tensor:
    """[batch, HV, chunks, rows, channels] as [batch, tokens, HV, channels], padding cut off."""
    return x.movedim(1, 3).flatten(1, 2)[:, :tokens]


def solve(L: Tensor, *right: Tensor) -> tuple[Tensor, ...]:
    """(I - L)^{-1} of each right side; L is strictly lower triangular.

    By blocks of 16 rows: `solve_triangular` of all rows loses four times as much where keys are alike.
    """
    given = torch.cat(right, dim=-1)
    solved = given[..., :0, :]
    for start in range(0, L.shape[-1], 16):
        block = slice(start, start + 16)
        rest = given[..., block, :] + L[..., block, :start] @ solved
        own = torch.linalg.solve_triangular(-L[..., block, block], rest, upper=False, unitriangular=True)
        solved = torch.cat((solved, own), dim=-2)
    return torch.split(solved, [x.shape[-1] for x in right], dim=-1)


def until_end(g: Tensor) -> Tensor:
    """The sum of g over the rows after each row, [..., rows, channels]; not a difference of sums, so -inf is exact."""
    return functional.pad(g[..., 1:, :], (0, 0, 0, 1)).flip(-2).cumsum(-2).flip(-2)


def decay(g: Tensor) -> Tensor:
    """e^(sum of g over the rows after j, up to row i) for j <= i, else 0: [..., rows, rows] from g [..., rows, 1].

    Sums, not differences of sums: exact for any g, -inf included.
    """
    return g.expand(*g.shape[:-1], g.shape[-2]).tril(-1).cumsum(-2).exp().tril()


def decayed_scores(x: Tensor, w: Tensor, g: Tensor, last: Tensor) -> Tensor:
    """sum over channels of x_i w_j e^(sum of g over the rows after j, up to row last[i]), for j <= last[i], else 0."""
    row = torch.arange(g.shape[-2], device=g.device)
    scores = torch.where(last[:, None] == row, x @ w.mT, 0.0)
    for pairs, reader, writer in halves(g, last):
        scores = scores + torch.where(pairs, (x * reader) @ (w * writer).mT, 0.0)
    return scores


def decayed_product(scores: Tensor, w: Tensor, g: Tensor, last: Tensor) -> Tensor:
    """sum over j <= last[i] of scores_ij w_j e^(sum of g over the rows after j, up to row last[i]), by channel."""
    row = torch.arange(g.shape[-2], device=g.device)
    product = torch.where(last[:, None] == row, scores, 0.0) @ w
    for pairs, reader, writer in halves(g, last):
        product = product + reader * (torch.where(pairs, scores, 0.0) @ (w * writer))
    return product


def halves(g: Tensor, last: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The pairs of a reader i and a row j < last[i], sorted by the highest bit in which last[i] and j differ.

    At each level the readers in the upper half of a block meet the rows in its lower half, and their decay falls into
    two factors that are both at most 1 for any g <= 0: from the lower half's end to last[i], and from j to the lower
    half's end. Yields (pairs [readers, rows], the readers' factor, the rows' factor).
    """
    rows = g.shape[-2]
    row = torch.arange(rows, device=g.device)
    for level in range((rows - 1).bit_length()):
        half = 1 << level
        blocks = torch.unflatten(functional.pad(g, (0, 0, 0, -rows % half)), -2, (-1, half))
        upto = blocks.cumsum(-2).flatten(-3, -2)[..., :rows, :]
        after = functional.pad(blocks[..., 1:, :], (0, 0, 0, 1)).flip(-2).cumsum(-2).flip(-2)
        pairs = ((last[:, None] >> level) == (row >> level) + 1) & ((row >> level) % 2 == 0)
        yield pairs, upto[..., last.clamp(min=0), :].exp(), after.flatten(-3, -2)[..., :rows, :].exp()


def first_step(g: Tensor, steps: int) -> Tensor:
    """A token's g [batch, tokens, HV, channels] as that of its first micro-step; the others have none."""
    return functional.pad(g.unsqueeze(2), (0, 0, 0, 0, 0, steps - 1))


def zeros(args: Arguments, *shape: int) -> Tensor:
    """What a row has none of, for all tokens: [batch, tokens, *shape]."""
    return torch.zeros(args.batch, args.tokens, *shape, dtype=args.dtype, device=args.device)
