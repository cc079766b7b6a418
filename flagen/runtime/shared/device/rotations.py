"""Pairs of channels turned by angles: of a vector, [channels], or of every row of a tile, [rows, channels].

Pairs are neighbours, or, in what ends in `_half`, half of the `size` channels apart. There are angles for the first
`pairs` of them, and the others stay.
"""

import triton
import triton.language as tl


@triton.jit
def rotate(x, angle, size: tl.constexpr, pairs: tl.constexpr):
    """x with the pairs (x, y) of its channels turned to (x cos - y sin, x sin + y cos)."""
    lanes = tl.arange(0, x.shape[len(x.shape) - 1])
    second = lanes % 2
    return _turned(x, angle, lanes + 1 - 2 * second, second, lanes // 2, pairs)


@triton.jit
def rotate_half(x, angle, size: tl.constexpr, pairs: tl.constexpr):
    """The same of pairs that are half of the channels apart."""
    lanes = tl.arange(0, x.shape[len(x.shape) - 1])
    half: tl.constexpr = size // 2
    second = lanes // half
    # Of an odd size the last channel has no partner.
    pair = tl.where(lanes < 2 * half, lanes % half, half)
    partner = tl.where(lanes < half, lanes + half, tl.where(lanes < 2 * half, lanes - half, lanes))
    return _turned(x, angle, partner, second, pair, pairs)


@triton.jit
def of_angles(gradient, x, size: tl.constexpr, pairs: tl.constexpr, LANES: tl.constexpr):
    """For each pair (x, y) with the gradient (dx, dy), x dy - y dx, [LANES] or [rows, LANES]."""
    pair = tl.arange(0, LANES)
    return _twisted(gradient, x, pair, 2 * pair, 2 * pair + 1, pairs)


@triton.jit
def of_angles_half(gradient, x, size: tl.constexpr, pairs: tl.constexpr, LANES: tl.constexpr):
    """The same of pairs that are half of the channels apart."""
    pair = tl.arange(0, LANES)
    return _twisted(gradient, x, pair, pair, pair + size // 2, pairs)


@triton.jit
def _turned(x, angle, partner, second, pair, pairs: tl.constexpr):
    """Each lane turned with its partner by the angle of its pair, if there is one; `second` of a pair or first."""
    turns = pair < pairs
    angles = tl.where(turns, pair, 0)
    # Cosines and sines of angles, not of channels: there are half as many, or fewer, and what is turned shares them.
    cosines, sines = _taken(tl.cos(angle), angles), _taken(tl.sin(angle), angles)
    sign = tl.where(turns, 2.0 * second - 1.0, 0.0)
    turns = _of_rows(turns, x)
    return tl.where(turns, x * cosines + _taken(x, partner) * (_of_rows(sign, x) * sines), x)


@triton.jit
def _twisted(gradient, x, pair, first, second, pairs: tl.constexpr):
    first, second = tl.where(pair < pairs, first, 0), tl.where(pair < pairs, second, 0)
    twisted = _taken(x, first) * _taken(gradient, second) - _taken(x, second) * _taken(gradient, first)
    return tl.where(_of_rows(pair < pairs, x), twisted, 0.0)


@triton.jit
def _taken(x, lanes):
    """The lanes of x, or of each of its rows, that `lanes` names."""
    if len(x.shape) == 1:
        return tl.gather(x, lanes, 0)
    elif len(x.shape) == 2:
        return tl.gather(x, tl.broadcast_to(lanes[None, :], (x.shape[0], lanes.shape[0])), 1)
    else:
        return tl.gather(x, tl.broadcast_to(lanes[None, None, :], (x.shape[0], x.shape[1], lanes.shape[0])), 2)


@triton.jit
def _of_rows(lanes, x):
    """A number a lane as one of every row of x."""
    if len(x.shape) == 1:
        return lanes
    elif len(x.shape) == 2:
        return lanes[None, :]
    else:
        return lanes[None, None, :]
