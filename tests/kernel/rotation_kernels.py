"""A kernel that calls the functions of `shared/device/rotations.py`, each on its own."""

from __future__ import annotations

import triton
import triton.language as tl

from generated.shared.device.rotations import of_angles, of_angles_half, rotate, rotate_half


@triton.jit
def call(
    x_ptr,
    other_ptr,
    out_ptr,
    FUNCTION: tl.constexpr,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
    PAIRS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ANGLES: tl.constexpr,
):
    """One function, of a vector, with ROWS of every row of a tile, or with GROUPS of as many such tiles."""
    channel = tl.arange(0, CHANNELS)
    angle = tl.arange(0, ANGLES)
    if GROUPS > 0:
        row = tl.arange(0, GROUPS)[:, None, None] * ROWS + tl.arange(0, ROWS)[None, :, None]
        channels, angles = row * CHANNELS + channel[None, None, :], row * ANGLES + angle[None, None, :]
    elif ROWS > 0:
        row = tl.arange(0, ROWS)[:, None]
        channels, angles = row * CHANNELS + channel[None, :], row * ANGLES + angle[None, :]
    else:
        channels, angles = channel, angle
    x = tl.load(x_ptr + channels)
    if FUNCTION == "rotate":
        tl.store(out_ptr + channels, rotate(x, tl.load(other_ptr + angles), SIZE, PAIRS))
    elif FUNCTION == "rotate_half":
        tl.store(out_ptr + channels, rotate_half(x, tl.load(other_ptr + angles), SIZE, PAIRS))
    elif FUNCTION == "of_angles":
        tl.store(out_ptr + angles, of_angles(x, tl.load(other_ptr + channels), SIZE, PAIRS, ANGLES))
    elif FUNCTION == "of_angles_half":
        tl.store(out_ptr + angles, of_angles_half(x, tl.load(other_ptr + channels), SIZE, PAIRS, ANGLES))
