"""What kernels over the rows of a chunk have in common: decays between rows, the inverse, sums."""

import triton
import triton.language as tl


@triton.jit
def split_log_decay(g):
    """g in log2 units, as multiples of 2^-10 and what is left of them.

    Sums of the first over a chunk are exact in float32 and those of the second are small, so that differences of sums
    lose nothing. A reset, g = -inf, counts as -160: float32 rounds that power of two to zero.
    """
    log2_decay = tl.maximum(g * 1.4426950408889634, -160.0, propagate_nan=tl.PropagateNan.ALL)
    coarse = tl.floor(log2_decay * 1024.0) / 1024.0
    return coarse, log2_decay - coarse


@triton.jit
def between(first, end, SIZE: tl.constexpr):
    """Of each row of a square, the columns from first to before end."""
    column = tl.arange(0, SIZE)[None, :]
    return (column >= first[:, None]) & (column < end[:, None])


@triton.jit
def decay_over(rows, log_decay, TERMS: tl.constexpr):
    """e to the sum of log_decay, [rows, keys], over those rows that `rows`, [., rows], names for each; or a batch.

    A product with ones adds them up: nothing is subtracted, so nothing cancels. It takes log_decay as a sum of TERMS
    numbers in bfloat16, whose products with ones are exact.
    """
    ones = tl.where(rows, 1.0, 0.0).to(tl.bfloat16)
    term = log_decay.to(tl.bfloat16)
    total = tl.dot(ones, term)
    for _ in tl.static_range(1, TERMS):
        log_decay -= term.to(tl.float32)
        term = log_decay.to(tl.bfloat16)
        total = tl.dot(ones, term, total)
    return tl.exp2(total * 1.4426950408889634)


@triton.jit
def decay_to_cut(row, level, log_decay, AFTER: tl.constexpr, TERMS: tl.constexpr):
    """Cut each block of 2^(level + 1) rows in halves, and let each row decay at the cut: a written row, in the lower
    half, over the rows after it; a reading one, in the upper, over those up to itself, itself too where AFTER is 1.

    No row decays over more than half a chunk, its REACH: the products with ones, of 16 rows each, span no more.
    """
    SIZE: tl.constexpr = log_decay.shape[0]
    KEYS: tl.constexpr = log_decay.shape[1]
    REACH: tl.constexpr = SIZE // 2 if SIZE > 16 else SIZE
    half = 1 << level
    start = (row >> level) << level
    upper = (row & half) != 0
    reached = row // REACH * REACH
    rows = between(
        tl.where(upper, start, row + 1) - reached, tl.where(upper, row + AFTER, start + half) - reached, REACH
    )
    rows = tl.reshape(rows, (SIZE // 16, 16, REACH))
    halves = tl.reshape(log_decay, (SIZE // REACH, 1, REACH, KEYS))
    halves = tl.broadcast_to(halves, (SIZE // REACH, REACH // 16, REACH, KEYS))
    decay = decay_over(rows, tl.reshape(halves, (SIZE // 16, REACH, KEYS)), TERMS)
    return tl.reshape(decay, (SIZE, KEYS))


@triton.jit
def seen_across_cut(row, level):
    """Whether a row, in the upper half of a block of 2^(level + 1), sees what one of its lower half wrote."""
    start = (row >> level) << level
    upper = (row & (1 << level)) != 0
    return between(tl.where(upper, start - (1 << level), 0), tl.where(upper, start, 0), row.shape[0])


@triton.jit
def is_upper(row, level):
    """Whether a row is in the upper half of a block of 2^(level + 1)."""
    return (row & (1 << level)) != 0


@triton.jit
def of_other_half(x, row, level):
    """What x, a number for each row, is in the same place of the other half of a block of 2^(level + 1) rows."""
    return tl.gather(x, row ^ (1 << level), 0)


@triton.jit
def from_middle(row, log_decay, LEAF: tl.constexpr, TERMS: tl.constexpr):
    """The sum of log_decay, in powers of two, from the middle of each block of LEAF rows up to each row of it; of rows
    before the middle it is what they lack, negative."""
    middle = row // LEAF * LEAF + LEAF // 2
    column = row[None, :]
    above = (column > middle[:, None]) & (column <= row[:, None])
    below = (column <= middle[:, None]) & (column > row[:, None])
    signs = (tl.where(above, 1.0, 0.0) - tl.where(below, 1.0, 0.0)).to(tl.bfloat16)
    term = log_decay.to(tl.bfloat16)
    total = tl.dot(signs, term)
    for _ in tl.static_range(1, TERMS):
        log_decay -= term.to(tl.float32)
        term = log_decay.to(tl.bfloat16)
        total = tl.dot(signs, term, total)
    return total * 1.4426950408889634


@triton.jit
def merge(inverse, L, HALF: tl.constexpr, PRECISION: tl.constexpr):
    """The inverses of the blocks of 2 HALF rows on the diagonal of I - L, from those of their halves, [., HALF, HALF]:

    [ I - A    0   ]^-1   [   P    0 ]
    [  -C    I - D ]    = [ Q C P  Q ],   P = (I - A)^-1, Q = (I - D)^-1
    """
    PAIRS: tl.constexpr = L.shape[0] // (2 * HALF)
    pair = tl.arange(0, PAIRS)
    diagonal = (pair[:, None] == pair[None, :])[:, None, :, None]
    blocks = tl.sum(tl.where(diagonal, tl.reshape(L, (PAIRS, 2 * HALF, PAIRS, 2 * HALF)), 0.0), axis=2)
    _upper, lower = tl.split(tl.permute(tl.reshape(blocks, (PAIRS, 2, HALF, 2, HALF)), (0, 2, 4, 3, 1)))
    C, _D = tl.split(lower)
    P, Q = tl.split(tl.permute(tl.reshape(inverse, (PAIRS, 2, HALF, HALF)), (0, 2, 3, 1)))
    if PAIRS == 1:  # One product is no batch of products, which all warps would take.
        CP = tl.dot(tl.reshape(C, (HALF, HALF)), tl.reshape(P, (HALF, HALF)), input_precision=PRECISION)
        QCP = tl.reshape(tl.dot(tl.reshape(Q, (HALF, HALF)), CP, input_precision=PRECISION), (1, HALF, HALF))
    else:
        QCP = tl.dot(Q, tl.dot(C, P, input_precision=PRECISION), input_precision=PRECISION)
    merged = tl.join(tl.join(P, tl.zeros_like(P)), tl.join(QCP, Q))
    return tl.reshape(tl.permute(merged, (0, 4, 1, 3, 2)), (PAIRS, 2 * HALF, 2 * HALF))


@triton.jit
def invert(L, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    """(I - L)^-1 - I of a strictly lower triangular L, [SIZE, SIZE]: by forward substitution inside blocks of 16 rows,
    which are then merged two by two. Never by powers of L, which lose every digit where keys are alike."""
    BLOCKS: tl.constexpr = SIZE // 16
    block = tl.arange(0, BLOCKS)
    diagonal = (block[:, None] == block[None, :])[:, None, :, None]
    row = tl.arange(0, 16)
    inverse = tl.sum(tl.where(diagonal, tl.reshape(L, (BLOCKS, 16, BLOCKS, 16)), 0.0), axis=2)
    for i in range(2, 16):
        here = (row == i)[None, :, None]
        solved = tl.sum(tl.where(here, inverse, 0.0), axis=1)
        solved += tl.sum(solved[:, :, None] * inverse, axis=1)
        inverse = tl.where(here, solved[:, None, :], inverse)
    inverse = tl.where((row[:, None] == row[None, :])[None, :, :], 1.0, inverse)
    if SIZE > 16:
        inverse = merge(inverse, L, 16, PRECISION)
    if SIZE > 32:
        inverse = merge(inverse, L, 32, PRECISION)
    row = tl.arange(0, SIZE)
    return tl.where(row[:, None] == row[None, :], 0.0, tl.reshape(inverse, (SIZE, SIZE)))


@triton.jit
def put(x, member, MEMBERS: tl.constexpr):
    """x, a number for each row, as that of one member of a group of heads."""
    return tl.where(tl.arange(0, MEMBERS)[None, :] == member, x[:, None], 0.0)


@triton.jit
def take(sums, member, MEMBERS: tl.constexpr):
    """The numbers that one member of a group of heads has."""
    return tl.sum(tl.where(tl.arange(0, MEMBERS)[None, :] == member, sums, 0.0), axis=1)


@triton.jit
def join(sum_before, sum_to, before, to):
    """Two runs of rows as one: what comes before the last row of it, and all."""
    return sum_to + before, sum_to + to


@triton.jit
def sum_of_earlier(x):
    """For each row the sum of those before it. It is not subtracted from a sum with it, which would cancel."""
    before, _ = tl.associative_scan((tl.zeros_like(x), x), 0, join)
    return before


@triton.jit
def sum_of_later(x):
    """For each row the sum of those after it."""
    after, _ = tl.associative_scan((tl.zeros_like(x), x), 0, join, reverse=True)
    return after


@triton.jit
def sum_of_pairs(pairs, read, written, token, PRECISION: tl.constexpr, dtype: tl.constexpr):
    """For each token the sum of `pairs`, of a row that reads and one that was written, over those with the token's
    decay between them: what a row reads has decayed up to token `read`, from `written` on."""
    before = (written[:, None] < token[None, :]).to(dtype)
    sums = tl.dot(pairs.to(dtype), before, input_precision=PRECISION)
    return tl.sum(tl.where(read[:, None] >= token[None, :], sums, 0.0), axis=0)


@triton.jit
def sum_of_steps(x, STEPS: tl.constexpr, TOKENS: tl.constexpr):
    """For each token of a chunk the sum of x, a number for each row, over the token's rows."""
    row = tl.arange(0, x.shape[0])
    token = tl.arange(0, TOKENS)
    return tl.sum(tl.where(token[:, None] == row[None, :] // STEPS, x[None, :], 0.0), axis=1)


@triton.jit
def onto_row_before(x, ROWS: tl.constexpr):
    """What x, a number for each row, has for the row after; zero for the last."""
    row = tl.arange(0, ROWS)
    return tl.sum(tl.where(row[:, None] + 1 == row[None, :], x[None, :], 0.0), axis=1)


@triton.jit
def sum_of_shares(pointers, stride, shares, mask):
    """The sum of what blocks of values have left, each its own share."""
    total = tl.load(pointers, mask=mask, other=0.0)
    for share in range(1, shares):
        total += tl.load(pointers + share * stride, mask=mask, other=0.0)
    return total
