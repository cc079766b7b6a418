"""Where the chunks of mini-batches begin."""

import triton
import triton.language as tl


@triton.jit
def tokens_begun(count, LENGTH: tl.constexpr):
    """How many of the LENGTH tokens of a chunk there were before a sequence, which `count` tokens came before: a whole
    number in float32. A half keeps its quotient away from the next whole number, also where a division is off."""
    begun = count - tl.floor((count + 0.5) / LENGTH) * LENGTH
    return tl.minimum(tl.maximum(begun.to(tl.int32), 0), LENGTH - 1)
