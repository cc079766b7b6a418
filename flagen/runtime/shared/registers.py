"""Matrix states that numbers mix, registers X[p], over the rows of a chunk: X = mix X + into w u^T at every row.

What of a row reaches a reader is a product of the mixes between them. No quotient and no logarithm is taken, so any
numbers will do, of any sign, 0 among them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from . import rows
from .arguments import Arguments


def numbers(args: Arguments, *values: Tensor | float) -> Tensor:
    """A number of every token for each register, [batch, tokens, HV, numbers]."""
    shape = (args.batch, args.tokens, args.HV)
    every = (torch.as_tensor(value, dtype=args.dtype, device=args.device) for value in values)
    return torch.stack([value.expand(shape) for value in every], dim=-1)


def chunks(mix: Tensor, size: int) -> Tensor:
    """Mixes [batch, tokens, (rows of a token,) HV, P * P] as [batch, HV, chunks, rows, P, P]; the rows behind the last
    token leave the registers as they are."""
    count = math.isqrt(mix.shape[-1])
    padding = -mix.shape[1] % size
    apart = torch.eye(count, dtype=mix.dtype, device=mix.device).flatten()
    padded = torch.cat((mix, apart.expand(mix.shape[0], padding, *mix.shape[2:])), dim=1)
    return torch.unflatten(rows.chunks(padded, size), -1, (count, count))


def reach(mix: Tensor, *into: Tensor) -> Tensor:
    """What of the registers before the chunk, and of each row, is in the registers after n rows.

    Args:
        mix: [..., rows, P, P].
        into: by which numbers the rows of a family are written, [..., rows, P].

    Returns:
        [..., rows + 1, P, P + rows of all families]; of a row that is not written yet there is 0.
    """
    count = mix.shape[-1]
    unit = torch.eye(mix.shape[-3], dtype=mix.dtype, device=mix.device)
    none = mix.new_zeros(*mix.shape[:-1], count)
    written = torch.cat([none, *(x[..., None] * unit[:, None] for x in into)], dim=-1)
    start = torch.eye(count, dtype=mix.dtype, device=mix.device).expand_as(mix[..., 0, :, :])
    after = [functional.pad(start, (0, written.shape[-1] - count))]
    for mix_n, written_n in zip(mix.unbind(-3), written.unbind(-3), strict=True):
        after.append(mix_n @ after[-1] + written_n)
    return torch.stack(after, dim=-3)


def weights(of: Tensor, reach: Tensor, families: int = 1) -> tuple[Tensor, ...]:
    """What reaches readers that take the registers times `of` [..., readers, P]: of the registers before the chunk,
    [..., readers, P], and of each family's rows, [..., readers, rows]."""
    count = of.shape[-1]
    reached = torch.einsum("...ip,...ipj->...ij", of, reach)
    return reached[..., :count], *(reached[..., count:].chunk(families, dim=-1) if families else ())


def at_end(reach: Tensor, families: int = 1) -> tuple[Tensor, ...]:
    """What is in the registers at the chunk's end: of those before it, [..., P, P], and of each family's rows,
    [..., rows, P]."""
    last = reach[..., -1, :, :]
    count = last.shape[-2]
    return last[..., :count], *(last[..., count:].mT.chunk(families, dim=-2) if families else ())
