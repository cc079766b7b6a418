"""Functions that the kernels of all variants call."""
