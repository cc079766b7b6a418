"""What people write who come from papers, PyTorch or NumPy, and how the language writes it: hints, and nothing else."""

from __future__ import annotations

import keyword
import re
import unicodedata

_TRANSPOSE = "a transpose is written `.T`, as in `S.T @ q`"
_CONTRACTION = "a contraction is written `a @ b`, as in `S.T @ q`"
_SPREAD = "dims have names, and are spread by them: leave it out"
_CHOICE = "there are no comparisons; `minimum`, `maximum`, `clamp`, `sign` and `relu` choose by size"
_IDENTITY = "an identity is not written: `(I - b k k^T) S` is `S - b * outer(k, S.T @ k)`"
_POWER = "a power is written `x ** 2`"
_ROTATION = "pairs of channels turn in `rotate(x, angle)`, halves in `rotate_half(x, angle)`"
_ARROW = "a statement is `name = expression`"

CHARACTERS = {
    "^": "a power is written `**`, a transpose `.T`, e to the power of x `exp(x)`",
    "=": "a statement has one `=`, after its target; arguments are given by position",
    "[": "nothing is indexed: dims are contracted, reduced and broadcast by name",
    "{": "an expression has no braces",
    "<": _CHOICE,
    ">": _CHOICE,
    "'": "there are no strings",
    '"': "there are no strings",
    "#": "a comment stands outside the expression, after a space",
    "|": "`abs(x)` is the absolute value, `norm(x)` the norm",
    "\\": "this is no LaTeX: names and functions stand without a backslash",
    "$": "this is no LaTeX: leave it out",
    "%": "there is no remainder; a percentage is a decimal number",
    ":": "there are no slices and no annotations",
    ";": "write a list with one statement an item",
    "\u2212": "the minus sign is `-`",
    **dict.fromkeys(
        "\u00b7\u2219\u22c5", "a product is written `*`, an inner product `dot(a, b)`, a contraction `a @ b`"
    ),
    **dict.fromkeys("\u00d7", "a product is written `*`"),
    **dict.fromkeys("\u2299\u2218\u2217", "an elementwise product is written `*`"),
    "\u2297": "an outer product is written `outer(a, b)`",
    **dict.fromkeys("\u1d40\u22a4\u22ba\u2032\u2019", "a transpose is written `.T`"),
    **dict.fromkeys("\u2016\u2225", "a norm is written `norm(x)`"),
    **dict.fromkeys("\u2264\u2265\u2260", _CHOICE),
    **dict.fromkeys("\u2190\u2192\u2254\u21a6", _ARROW),
    "\u221a": "a root is written `sqrt(x)`",
    "\u2211": "a sum is written `sum(x, K)`, over a dim by its name",
    "\u221e": "an expression has no infinity; a range writes it `.inf`",
    "\u00f7": "a quotient is written `/`",
    "\u03c3": "names are ASCII: `sigma`, not `\u03c3`; the function is `sigmoid(x)`",
    "\u03a3": "names are ASCII: `Sigma`, not `\u03a3`; a sum is written `sum(x, K)`",
}

_FUNCTIONS = {
    **dict.fromkeys("transpose permute swapaxes swapdims t mT H mH adjoint movedim".split(), _TRANSPOSE),
    **dict.fromkeys("matmul mm mv bmm einsum tensordot inner vdot addmm baddbmm linear".split(), _CONTRACTION),
    **dict.fromkeys("unsqueeze squeeze expand expand_as view reshape repeat broadcast_to rearrange".split(), _SPREAD),
    **dict.fromkeys("where cond heaviside".split(), _CHOICE),
    **dict.fromkeys("eye identity".split(), _IDENTITY),
    **dict.fromkeys("cumsum cumprod cummax logcumsumexp".split(), "what runs over tokens is a state: `z = z + x`"),
    "logsumexp": "of two: `logaddexp(a, b)`; over tokens a state: `z = logaddexp(z, x)`",
    "max": "of two: `maximum(a, b)`; there is none over a dim",
    "min": "of two: `minimum(a, b)`; there is none over a dim",
    **dict.fromkeys("pow power square".split(), _POWER),
    **dict.fromkeys("mul multiply".split(), "a product is written `a * b`"),
    "add": "a sum is written `a + b`",
    **dict.fromkeys("sub subtract".split(), "a difference is written `a - b`"),
    **dict.fromkeys("div divide".split(), "a quotient is written `a / b`"),
    "reciprocal": "a reciprocal is written `1 / x`",
    **dict.fromkeys("neg negative".split(), "write `-x`"),
    "ger": "an outer product is written `outer(a, b)`",
    "kron": "an outer product is written `outer(a, b)`",
    "diag": "`diag(a) @ S` is written `a * S`: a vector scales the rows it shares a dim with",
    "exp2": "write `2 ** x`",
    "log2": "write `log(x) / log(2)`",
    "log10": "write `log(x) / log(10)`",
    "ln": "the natural logarithm is `log(x)`",
    "swish": "it is `silu(x)`",
    "normalize": "it is `l2norm(x)`",
    **dict.fromkeys("rmsnorm rms_norm".split(), "write `x * rsqrt(mean(x * x) + 1e-6)`"),
    **dict.fromkeys("layernorm layer_norm".split(), "write `y * rsqrt(mean(y * y) + 1e-5)` of `y = x - mean(x)`"),
    "gelu": "write `x * sigmoid(1.702 * x)`",
    "erf": "`tanh(x)` is near to it",
    "prod": "there is no product over a dim; `exp(sum(log(x), K))` is one of positive values",
    "concat": "there are no concatenations: dims have names",
    "cat": "there are no concatenations: dims have names",
    "elu": "write `maximum(x, 0) + minimum(expm1(x), 0)`",
}

_FUNCTIONS_OF_VERSION_2 = {
    **dict.fromkeys("cosine".split(), "it is `cos(x)`"),
    **dict.fromkeys("sine".split(), "it is `sin(x)`"),
    "tan": "write `sin(x) / cos(x)`",
    **dict.fromkeys("ceil ceiling".split(), "write `-floor(-x)`"),
    "round": "write `floor(x + 0.5)`",
    "trunc": "write `sign(x) * floor(abs(x))`",
    **dict.fromkeys("mod fmod remainder".split(), "write `fraction(x)`: by 1, and so of an angle in turns"),
    **dict.fromkeys("arange iota range position".split(), "places along a dim are `index(K)`, from 0"),
    **dict.fromkeys("rope rotary apply_rotary apply_rotary_emb apply_rotary_pos_emb".split(), _ROTATION),
    **dict.fromkeys("inv inverse pinv cholesky_solve lstsq".split(), "the x with `A @ x = q` is `solve(A, q)`"),
    **dict.fromkeys("rename relabel".split(), "a dim has another name in `over(x, K2)`"),
}

_NAMES = {
    "e": "e to the power of x is `exp(x)`",
    "I": _IDENTITY,
    "pi": "write the number: 3.141592653589793",
    **dict.fromkeys(("inf", "nan"), "an expression has no such number; a range writes infinity `.inf`"),
    **dict.fromkeys(("true", "false"), "there are no truth values"),
    **dict.fromkeys(
        "torch np numpy math F jnp nn".split(), "functions are called by their names alone, as in `exp(x)`"
    ),
    "self": "states, inputs and params are named as they are declared, without `self.`",
    "t": "every name is this token's value, and `S_prev` is a state's before it: time is not written",
    "T": "a transpose is written `S.T`; time is not written",
}

_KEYWORDS = {
    **dict.fromkeys(("if", "else", "and", "or", "not", "is", "in"), _CHOICE),
    **dict.fromkeys(("True", "False"), "there are no truth values: write `1` or `0`"),
    "None": "leave it out",
    "for": "sums over a dim are `sum(x, K)`, micro-steps a block of `repeat`",
    "lambda": "as a name write `lam`",
    "return": _ARROW,
}

PREVIOUS = frozenset("prev previous last old before lag shift delay".split())
"""What others call the value before the token, as a function or as a part of a name."""

_BEFORE = re.compile(r"\s*(?:t\s*-\s*1|-\s*1|i\s*-\s*1|n\s*-\s*1)\s*\Z")
_NOW = re.compile(r"\s*(?:t|i|n|\.\.\.|:)\s*\Z")


def function_hint(name: str, version: int) -> str:
    """How the language writes what a function of another one does, or nothing."""
    if (hint := _FUNCTIONS_OF_VERSION_2.get(name)) is None:
        return _FUNCTIONS.get(name, "")
    return hint if version >= 2 else f"{hint}, in version 2 of the language: `flagen: 2`"


def attribute_hint(name: str, version: int) -> str:
    """How the language writes an attribute or method of a tensor, or nothing."""
    if name in ("shape", "size", "dim", "ndim"):
        return "the size of a dim is its name, as in `K ** -0.5`"
    return "a transpose is written `.T`" if name in ("t", "tr", "mT", "H", "mH") else function_hint(name, version)


def name_hint(name: str) -> str:
    return _NAMES.get(name, "")


def keyword_hint(name: str) -> str:
    return _KEYWORDS.get(name, "")


def index_hint(name: str, index: str) -> str:
    """What `name[index]` or `name_{index}` is to be instead, a state or not."""
    stem = name.rstrip("_")
    if _BEFORE.match(index):
        return f"the value of a state before the token is `{stem}_prev`"
    if _NOW.match(index):
        return f"`{stem}` is the value at this token: time is not written"
    return CHARACTERS["["]


def ascii_name(text: str) -> str | None:
    """A name that a spec can have, for one with Greek letters, subscripts or accents; None where there is none."""
    name = re.sub(r"[^A-Za-z0-9]+", "_", "".join(map(_spelled, text))).strip("_")
    if not name[:1].isalpha():
        return None
    return f"{name}_" if keyword.iskeyword(name) else name


def character_hint(character: str) -> str:
    """What to write for a character that no expression has."""
    if character in CHARACTERS:
        return CHARACTERS[character]
    if character.isascii():
        return ""
    plain = unicodedata.normalize("NFKC", character)
    if unicodedata.category(character) == "No" and plain.isdigit():
        return f"a power is written `** {plain}`"
    name = ascii_name(character)
    return f"names are ASCII: `{name}`, not `{character}`" if name is not None and character.isalpha() else ""


def _spelled(character: str) -> str:
    """A character in ASCII: a Greek letter by its name, an index after a `_`, others without marks."""
    if character.isascii():
        return character
    lowered = not {"SUBSCRIPT", "SUPERSCRIPT", "MODIFIER"}.isdisjoint(unicodedata.name(character, "").split())
    return "_" * lowered + "".join(map(_letter, unicodedata.normalize("NFKC", character)))


def _letter(character: str) -> str:
    if character.isascii():
        return character
    match unicodedata.name(character, "").split():
        case ["GREEK", size, "LETTER", *_, letter] if character.isalpha():
            spelled = "lam" if letter == "LAMDA" else letter.lower()
            return spelled.capitalize() if size == "CAPITAL" else spelled
    return "".join(char for char in unicodedata.normalize("NFKD", character) if char.isascii())
