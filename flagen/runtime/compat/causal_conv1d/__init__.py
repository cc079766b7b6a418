"""causal_conv1d's names: a depthwise causal convolution, over sequences and a token at a time."""

from .convolution import causal_conv1d_fn, causal_conv1d_update

__version__ = "1.5.3"
__all__ = ["causal_conv1d_fn", "causal_conv1d_update"]
