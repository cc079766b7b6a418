"""Scans over the tokens of a chunk, the first axis of their tiles, whatever other axes these have.

What has one row is handed to them in a shape that broadcasts.
"""

import triton
import triton.language as tl

from .maps import fraction, logaddexp, maximum


@triton.jit
def _affine_product(a1, b1, a2, b2):
    """X = a1 X + b1, then X = a2 X + b2."""
    return a1 * a2, a2 * b1 + b2


@triton.jit
def _affine_scan(a, b, first, is_first):
    """The states X = a X + b after each token of a chunk, from the one before it."""
    b = tl.where(is_first, a * first + b, b)
    _, states = tl.associative_scan((a, b), 0, _affine_product)
    return states


@triton.jit
def _logaddexp_product(w1, c1, w2, c2):
    """X = logaddexp(X + w1, c1), then X = logaddexp(X + w2, c2)."""
    return w1 + w2, logaddexp(c1 + w2, c2)


@triton.jit
def _logaddexp_scan(w, c, first, is_first):
    """The states X = logaddexp(X + w, c) after each token of a chunk, from the one before it."""
    c = tl.where(is_first, logaddexp(first + w, c), c)
    _, states = tl.associative_scan((w, c), 0, _logaddexp_product)
    return states


@triton.jit
def _maximum_product(w1, c1, w2, c2):
    """X = maximum(X + w1, c1), then X = maximum(X + w2, c2)."""
    return w1 + w2, maximum(c1 + w2, c2)


@triton.jit
def _maximum_scan(w, c, first, is_first):
    """The states X = maximum(X + w, c) after each token of a chunk, from the one before it."""
    c = tl.where(is_first, maximum(first + w, c), c)
    _, states = tl.associative_scan((w, c), 0, _maximum_product)
    return states


@triton.jit
def _phase_product(b1, b2):
    """X = fraction(X + b1), then X = fraction(X + b2)."""
    return fraction(b1 + b2)


@triton.jit
def _phase_scan(b, first, is_first):
    """The states X = fraction(X + b) after each token of a chunk, from the one before it."""
    b = fraction(tl.where(is_first, first + b, b))
    return tl.associative_scan(b, 0, _phase_product)


@triton.jit
def _back_scan(s, m, after, is_last):
    """M = m + s M' for each token of a chunk, with M' that of the token after it; `after` comes behind the last."""
    m = tl.where(is_last, s * after + m, m)
    _, gradients = tl.associative_scan((s, m), 0, _affine_product, reverse=True)
    return gradients


@triton.jit
def _last_two(x1, y1, several1, x2, y2, several2):
    """The last row of several, and the one before it."""
    return x2, tl.where(several2 > 0, y2, x1), several1 | 1


@triton.jit
def _row_before(x, first, is_first):
    """The row of the token before each; the first one's is `first`. A gather would keep its indices in registers."""
    _, before, _ = tl.associative_scan((x, x, tl.zeros(x.shape, tl.int32)), 0, _last_two)
    return tl.where(is_first, first, before)


@triton.jit
def _row_after(x, last, is_last):
    """The row of the token after each; the last one's is `last`."""
    _, after, _ = tl.associative_scan((x, x, tl.zeros(x.shape, tl.int32)), 0, _last_two, reverse=True)
    return tl.where(is_last, last, after)


@triton.jit
def _only_row(x, is_wanted):
    """The one row of x that is wanted."""
    return tl.sum(tl.where(is_wanted, x, 0.0), axis=0)
