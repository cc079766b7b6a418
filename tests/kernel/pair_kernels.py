"""A kernel that calls the functions of `shared/device/pairs.py`, each on its own."""

from __future__ import annotations

import triton
import triton.language as tl

from generated.shared.device.pairs import all_pairs, of_first, of_second


@triton.jit
def call(
    x_ptr, y_ptr, pairs_ptr, out_ptr, FUNCTION: tl.constexpr, ROWS: tl.constexpr, X: tl.constexpr, Y: tl.constexpr
):
    """One function, of vectors, or with ROWS of every row of tiles."""
    xs, ys, every = tl.arange(0, X), tl.arange(0, Y), tl.arange(0, X * Y)
    if ROWS > 0:
        row = tl.arange(0, ROWS)[:, None]
        xs, ys, every = row * X + xs[None, :], row * Y + ys[None, :], row * (X * Y) + every[None, :]
    x, y = tl.load(x_ptr + xs), tl.load(y_ptr + ys)
    if FUNCTION == "all_pairs":
        tl.store(out_ptr + every, all_pairs(x, y))
    elif FUNCTION == "of_first":
        tl.store(out_ptr + xs, of_first(tl.load(pairs_ptr + every), y))
    elif FUNCTION == "of_second":
        tl.store(out_ptr + ys, of_second(tl.load(pairs_ptr + every), x))
