"""Functions of tiles, elementwise, that Triton's core lacks or that lose accuracy when written down plainly.

They are made of `tl.exp`, `tl.log` and arithmetic alone, so the interpreter runs what the compiler compiles; libdevice
would differ. All are accurate to a few units in the last place of float32 over the whole range, near zero included, and
take infinities.
"""

import triton
import triton.language as tl


@triton.jit
def minimum(x, y):
    """The smaller; of a NaN and a number the NaN, as in PyTorch."""
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def maximum(x, y):
    """The larger; of a NaN and a number the NaN, as in PyTorch."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def clamp(x, low, high):
    return minimum(maximum(x, low), high)


@triton.jit
def log1p(x):
    """log(1 + x), with the bits of x that 1 + x rounds away put back."""
    shifted = 1.0 + x
    exact = (shifted == 1.0) | (shifted == float("inf"))
    return tl.where(exact, x, tl.log(shifted) * (x / tl.where(exact, 1.0, shifted - 1.0)))


@triton.jit
def expm1(x):
    """exp(x) - 1: by its series where the difference would cancel."""
    tail = 1.0 + x / 6.0 * (1.0 + x / 7.0 * (1.0 + x / 8.0))
    series = x * (1.0 + x / 2.0 * (1.0 + x / 3.0 * (1.0 + x / 4.0 * (1.0 + x / 5.0 * tail))))
    return tl.where(tl.abs(x) < 0.5, series, tl.exp(x) - 1.0)


@triton.jit
def tanh(x):
    """tanh(x): by its series where 1 - exp(-2 |x|) would cancel."""
    square = x * x
    series = x + x * square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835))))
    decay = tl.exp(-2.0 * tl.abs(x))
    size = (1.0 - decay) / (1.0 + decay)
    return tl.where(tl.abs(x) < 0.35, series, tl.where(x < 0.0, -size, size))


@triton.jit
def silu(x):
    return x * tl.sigmoid(x)


@triton.jit
def softplus(x):
    """log(1 + exp(x)), which is x for large x."""
    return tl.where(x > 0.0, x, 0.0) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def logsigmoid(x):
    """log(sigmoid(x)), which is x for very negative x."""
    return tl.where(x < 0.0, x, 0.0) - log1p(tl.exp(-tl.abs(x)))


@triton.jit
def logaddexp(x, y):
    """log(exp(x) + exp(y)); of two equal infinities, that infinity."""
    larger = maximum(x, y)
    return tl.where(tl.abs(larger) == float("inf"), larger, larger + log1p(tl.exp(-tl.abs(x - y))))


@triton.jit
def _part_of(x, y):
    """exp(x) / (exp(x) + exp(y)), the derivative of logaddexp by x; zero where both x and y are -inf."""
    return tl.where(maximum(x, y) == -float("inf"), 0.0, tl.sigmoid(x - y))


@triton.jit
def relu(x):
    return tl.where(x < 0.0, 0.0, x)


@triton.jit
def sign(x):
    return tl.where(x > 0.0, 1.0, tl.where(x < 0.0, -1.0, 0.0))


@triton.jit
def fraction(x):
    """What x has beyond its floor; rounded to 1 just below a whole number."""
    return x - tl.floor(x)


@triton.jit
def _square(x):
    return x * x


@triton.jit
def _power(x, y):
    """x ** y; a negative x has powers to whole exponents alone."""
    size = tl.where(y == 0.0, 1.0, tl.exp2(y * tl.log2(tl.abs(x))))
    whole = tl.floor(y) == y
    odd = whole & (tl.floor(0.5 * y) != 0.5 * y)
    signed = tl.where(odd, -size, tl.where(whole, size, float("nan")))
    return tl.where(x < 0.0, signed, size)


@triton.jit
def _power_slope(x, y):
    """The derivative of x ** y by x."""
    return tl.where(y == 0.0, 0.0, y * _power(x, y - 1.0))


@triton.jit
def _exponent_slope(x, y):
    """The derivative of x ** y by y; none where powers of zero are zero, or one."""
    slope = _power(x, y) * tl.log(x)
    return tl.where(x == 0.0, tl.where(y >= 0.0, 0.0, slope), slope)
