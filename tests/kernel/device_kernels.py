"""A kernel that calls the functions of `shared/device/chunks.py`, each on its own: what the proof takes them to be is
held against what they are."""

from __future__ import annotations

import triton
import triton.language as tl

from generated.shared.device.chunks import (
    decay_over,
    decay_to_cut,
    from_middle,
    invert,
    is_upper,
    of_other_half,
    onto_row_before,
    put,
    seen_across_cut,
    split_log_decay,
    sum_of_earlier,
    sum_of_later,
    sum_of_pairs,
    sum_of_steps,
    take,
)


@triton.jit
def call(
    square_ptr,
    keys_ptr,
    row_ptr,
    out_ptr,
    FUNCTION: tl.constexpr,
    NUMBER: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """One function, on a square of numbers, a number for each row and key, or one for each row."""
    row = tl.arange(0, ROWS)
    key = tl.arange(0, KEYS)
    squares = row[:, None] * ROWS + row[None, :]
    keyed = row[:, None] * KEYS + key[None, :]
    square = tl.load(square_ptr + squares)
    keys = tl.load(keys_ptr + keyed)
    x = tl.load(row_ptr + row)
    if FUNCTION == "split_log_decay":
        coarse, fine = split_log_decay(x)
        tl.store(out_ptr + row, coarse + fine)
    elif FUNCTION == "decay_over":
        tl.store(out_ptr + keyed, decay_over(row[:, None] >= row[None, :], keys, 3))
    elif FUNCTION == "decay_to_cut":
        tl.store(out_ptr + keyed, decay_to_cut(row, NUMBER, keys, 1, 3))
    elif FUNCTION == "decay_before_cut":
        tl.store(out_ptr + keyed, decay_to_cut(row, NUMBER, keys, 0, 3))
    elif FUNCTION == "seen_across_cut":
        tl.store(out_ptr + squares, tl.where(seen_across_cut(row, NUMBER), 1.0, 0.0))
    elif FUNCTION == "is_upper":
        tl.store(out_ptr + row, tl.where(is_upper(row, NUMBER), 1.0, 0.0))
    elif FUNCTION == "of_other_half":
        tl.store(out_ptr + row, of_other_half(x, row, NUMBER))
    elif FUNCTION == "from_middle":
        tl.store(out_ptr + keyed, from_middle(row, keys, NUMBER, 3))
    elif FUNCTION == "invert":
        L = tl.where(row[:, None] > row[None, :], square, 0.0)
        tl.store(out_ptr + squares, invert(L, ROWS, "ieee"))
    elif FUNCTION == "put":
        tl.store(out_ptr + keyed, put(x, NUMBER, KEYS))
    elif FUNCTION == "take":
        tl.store(out_ptr + row, take(keys, NUMBER, KEYS))
    elif FUNCTION == "sum_of_earlier":
        tl.store(out_ptr + keyed, sum_of_earlier(keys))
    elif FUNCTION == "sum_of_later":
        tl.store(out_ptr + keyed, sum_of_later(keys))
    elif FUNCTION == "sum_of_pairs":
        tl.store(out_ptr + row, sum_of_pairs(square, row // NUMBER, row // NUMBER, row, "ieee", tl.float32))
    elif FUNCTION == "sum_of_steps":
        tl.store(out_ptr + row, sum_of_steps(x, NUMBER, ROWS))
    elif FUNCTION == "onto_row_before":
        tl.store(out_ptr + row, onto_row_before(x, ROWS))
