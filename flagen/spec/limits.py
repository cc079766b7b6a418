"""What a spec may be at most: bounds that no honest spec meets, and that keep a hostile one cheap to refuse."""

from __future__ import annotations

MAX_BYTES = 64 * 1024
"""The size of a file."""

MAX_NESTING = 12
"""Levels of mappings and lists inside each other."""

MAX_ALIASES = 8
"""YAML aliases in a file."""

MAX_LENGTH = 2000
"""Characters of an expression."""

MAX_DEPTH = 64
"""Levels of an expression's tree."""

MAX_DIGITS = 40
"""Digits of a number."""

MAX_MAGNITUDE = 300
"""The power of ten that a number stays below, and its reciprocal too."""

MAX_POWER = 1000
"""A constant exponent: beyond it, exact arithmetic is no longer cheap."""

MAX_LOOK_BACK = 64
"""Values of earlier tokens that `prev` keeps, of all its expressions together."""

MAX_SIZE_POWER = 8
"""A constant exponent in a size that follows from others."""

MAX_SIZE_TERMS = 100
"""Terms of such a size, multiplied out."""

MAX_SIZE_DEGREE = 64
"""Factors of such a term."""

MAX_SIZE_BITS = 2048
"""Binary digits of its coefficient."""

MAX_SIZE_SEARCH = 64
"""How far from the sizes that a proof wants those may be that it takes, so that others follow from them."""

MAX_SIZE_TRIALS = 20_000
"""How many are tried."""
