"""The grammar of expressions: text to Python's syntax tree, refusing beforehand whatever the language does not have.

`ast.parse` sees nothing but names, decimal numbers, arithmetic operators, commas and parentheses, at a bounded length
and depth. Strings, indexing, assignments and the like never reach it; nothing is ever evaluated.
"""

from __future__ import annotations

import ast
import re
from fractions import Fraction

from flagen.diagnostics import Span
from flagen.spec.limits import MAX_DEPTH, MAX_DIGITS, MAX_LENGTH, MAX_MAGNITUDE
from flagen.spec.loader import Scalar
from flagen.spec.report import Report

_EXTREME = f"a number lies between 1e-{MAX_MAGNITUDE} and 1e{MAX_MAGNITUDE} in magnitude"
_SMALLEST, _LARGEST = Fraction(1, 10**MAX_MAGNITUDE), Fraction(10**MAX_MAGNITUDE)

_NUMBER = re.compile(r"((?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE]([+-]?[0-9]+))?\Z")
_TOKEN = re.compile(
    r"""(?P<space>\s+)
    | (?P<number>(?:[0-9]|\.[0-9])(?:[eE][+-](?=[0-9])|[A-Za-z0-9_.])*)
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<operator>\*\*|//|[-+*/@])
    | (?P<punctuation>[(),.])
    | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)

_CHARACTER_HINTS = {
    "=": "a statement has one `=`, after its target; arguments are given by position",
    "^": "a power is written `**`",
    "[": "nothing is indexed: dims are contracted, reduced and broadcast by name",
    "{": "an expression has no braces",
    "<": "there are no comparisons; `minimum`, `maximum`, `clamp`, `sign` and `relu` choose by size",
    ">": "there are no comparisons; `minimum`, `maximum`, `clamp`, `sign` and `relu` choose by size",
    "'": "there are no strings",
    '"': "there are no strings",
    "#": "a comment stands outside the expression, after a space",
    "!": "there are no comparisons and no negations but `-`",
    "|": "`abs(x)` is the absolute value, `norm(x)` the norm",
    "%": "there is no remainder",
    "\u2212": "the minus sign is `-`",
    "\u00d7": "a product is written `*`",
    "\u00b7": "a product is written `*`, an inner product `dot(a, b)`",
    "\u2219": "a product is written `*`, an inner product `dot(a, b)`",
    "\u2299": "an elementwise product is written `*`",
    "\u2218": "an elementwise product is written `*`",
    "\u2297": "an outer product is written `outer(a, b)`",
    "\u1d40": "a transpose is written `.T`",
    "\u22a4": "a transpose is written `.T`",
}

_CONSTRUCTS: dict[type[ast.AST], str] = {
    ast.BoolOp: "`and` and `or` are",
    ast.Compare: "a comparison is",
    ast.IfExp: "`if` ... `else` is",
    ast.Tuple: "a list of values is",
    ast.GeneratorExp: "a comprehension is",
    ast.Starred: "`*` before an argument is",
    ast.Await: "`await` is",
    ast.Yield: "`yield` is",
    ast.YieldFrom: "`yield` is",
}


def parse_python(scalar: Scalar, start: int, report: Report) -> ast.expr | None:
    """The syntax tree of `scalar.text[start:]`, or None after a diagnostic.

    The tree's `col_offset` counts from `start`: the text reaches Python on one line and in ASCII.
    """
    text = scalar.text[start:]
    if not text.strip():
        report.error("E401", scalar.at(start), "an expression is missing here")
        return None
    if len(text) > MAX_LENGTH:
        hint = "name its parts: in `let`, or as statements of the update"
        report.error("E404", scalar.at(start), f"an expression of more than {MAX_LENGTH} characters", hint)
        return None
    if not _check_tokens(scalar, start, report):
        return None
    try:
        # Line breaks are spaces here: a folded or literal scalar is one expression.
        tree = ast.parse(re.sub(r"\s", " ", text), mode="eval").body
    except SyntaxError as error:
        column = min(max((error.offset or 1) - 1, 0), len(text.rstrip()) - 1)
        message = (error.msg or "invalid syntax").partition(". Perhaps")[0]
        report.error("E401", scalar.at(start + column), f"not an expression: {message}")
        return None
    except (RecursionError, MemoryError):
        _too_deep(scalar.at(start), report)
        return None
    deepest = _first_too_deep(tree)
    if deepest is not None:
        _too_deep(node_span(scalar, start, deepest), report)
        return None
    return tree


def node_span(scalar: Scalar, start: int, node: ast.expr) -> Span:
    """Where a node of `parse_python(scalar, start, ...)` stands in the file."""
    end = node.end_col_offset if node.end_col_offset is not None else node.col_offset + 1
    return scalar.at(start + node.col_offset, end - node.col_offset)


def parse_number(text: str) -> Fraction | str:
    """A decimal literal, exactly; or what is wrong with it."""
    match = _NUMBER.match(text)
    if match is None:
        return "numbers are decimal: `2`, `0.5`, `1e-6`"
    mantissa, exponent = match.groups()
    if sum(char.isdigit() for char in mantissa) > MAX_DIGITS:
        return f"a number has at most {MAX_DIGITS} digits"
    if exponent is not None and abs(int(exponent)) > MAX_MAGNITUDE + MAX_DIGITS:
        return _EXTREME
    value = Fraction(text)
    return value if value == 0 or _SMALLEST <= value <= _LARGEST else _EXTREME


def construct(node: ast.AST) -> str:
    """A Python construct in words, with its verb: for `... not part of the language`."""
    return _CONSTRUCTS.get(type(node), "this is")


def _check_tokens(scalar: Scalar, start: int, report: Report) -> bool:
    """Report the first token that cannot stand in an expression, and parentheses that do not pair."""
    text = scalar.text[start:]
    opened: list[int] = []
    for match in _TOKEN.finditer(text):
        token, at = match.group(), start + match.start()
        if match.lastgroup == "other":
            code = "E402" if token.isascii() else "E410"
            hint = _CHARACTER_HINTS.get(token, "" if token.isascii() else "write names in ASCII: `beta`, not `β`")
            report.error(code, scalar.at(at), f"`{token}` is not part of the language", hint)
            return False
        if match.lastgroup == "number" and isinstance(problem := parse_number(token), str):
            span = scalar.at(at, len(token))
            report.error("E406", span, f"`{_short(token)}` is not a number of the language", problem)
            return False
        if token == "(":
            opened.append(at)
            if len(opened) > MAX_DEPTH:
                _too_deep(scalar.at(at), report)
                return False
        elif token == ")":
            if not opened:
                report.error("E401", scalar.at(at), "this parenthesis closes nothing")
                return False
            opened.pop()
    if opened:
        report.error("E401", scalar.at(opened[-1]), "this parenthesis is not closed")
    return not opened


def _short(token: str) -> str:
    return token if len(token) <= 24 else f"{token[:20]}..."


def _too_deep(span: Span, report: Report) -> None:
    hint = "name its parts: in `let`, or as statements of the update"
    report.error("E405", span, f"an expression nested more than {MAX_DEPTH} levels deep", hint)


def _first_too_deep(tree: ast.expr) -> ast.expr | None:
    """A node below MAX_DEPTH levels, found without recursion."""
    stack: list[tuple[ast.AST, int]] = [(tree, 1)]
    while stack:
        node, depth = stack.pop()
        if depth > MAX_DEPTH and isinstance(node, ast.expr):
            return node
        stack += [(child, depth + 1) for child in ast.iter_child_nodes(node)]
    return None
