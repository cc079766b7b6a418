"""Rows over all pairs of two vectors: of one token, [channels], or of every row of a tile, [rows, channels].

The pairs of one channel of the first vector with all of the second lie beside one another.
"""

import triton
import triton.language as tl


@triton.jit
def all_pairs(x, y):
    """Each channel of x times each of y, [channels of x * channels of y] or [rows, channels of x * channels of y]."""
    if len(x.shape) == 1:
        return tl.reshape(x[:, None] * y[None, :], (x.shape[0] * y.shape[0],))
    else:
        every = x[:, :, None] * y[:, None, :]
        return tl.reshape(every, (x.shape[0], x.shape[1] * y.shape[1]))


@triton.jit
def of_first(gradient, y):
    """The gradient of x from that of its pairs with y."""
    if len(y.shape) == 1:
        return tl.sum(tl.reshape(gradient, (gradient.shape[0] // y.shape[0], y.shape[0])) * y[None, :], axis=1)
    else:
        every = tl.reshape(gradient, (y.shape[0], gradient.shape[1] // y.shape[1], y.shape[1]))
        return tl.sum(every * y[:, None, :], axis=2)


@triton.jit
def of_second(gradient, x):
    """The gradient of y from that of its pairs with x."""
    if len(x.shape) == 1:
        return tl.sum(tl.reshape(gradient, (x.shape[0], gradient.shape[0] // x.shape[0])) * x[:, None], axis=0)
    else:
        every = tl.reshape(gradient, (x.shape[0], x.shape[1], gradient.shape[1] // x.shape[1]))
        return tl.sum(every * x[:, :, None], axis=1)
