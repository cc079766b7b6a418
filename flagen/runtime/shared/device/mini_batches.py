"""Where the chunks of mini-batches begin, and products of tiles with as few rows as these have tokens."""

import triton
import triton.language as tl


@triton.jit
def tokens_begun(count, LENGTH: tl.constexpr):
    """How many of the LENGTH tokens of a chunk there were before a sequence, which `count` tokens came before: a whole
    number in float32. A half keeps its quotient away from the next whole number, also where a division is off."""
    begun = count - tl.floor((count + 0.5) / LENGTH) * LENGTH
    return tl.minimum(tl.maximum(begun.to(tl.int32), 0), LENGTH - 1)


@triton.jit
def dot_of_few_rows(a, b, PRECISION: tl.constexpr, TURNED: tl.constexpr):
    """a @ b, where a has few rows. Before wgmma warps share rows alone in a product that another one takes, and each
    computes all of them where there are not enough: TURNED, they share the columns."""
    if TURNED:
        return tl.trans(tl.dot(tl.trans(b), tl.trans(a), input_precision=PRECISION))
    return tl.dot(a, b, input_precision=PRECISION)
