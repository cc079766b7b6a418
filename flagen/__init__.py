"""flagen: the recurrence is the program.

A linear-attention variant is a short YAML spec of its recurrence. flagen derives the chunk form and its adjoint, proves
them in exact arithmetic, and emits readable PyTorch and Triton operators.
"""

__version__ = "0.1.0"
