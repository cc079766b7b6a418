"""The grammar of expressions: text to Python's syntax tree, refusing beforehand whatever the language does not have.

`ast.parse` sees nothing but names, decimal numbers, arithmetic operators, calls, `.` and parentheses, in an order that
makes an expression, at a bounded length and depth. Strings, keywords, indexing, assignments and the like never reach
it, and nothing is ever evaluated.
"""

from __future__ import annotations

import ast
import keyword
import re
from fractions import Fraction

from flagen.diagnostics import Span
from flagen.spec.limits import MAX_DEPTH, MAX_DIGITS, MAX_LENGTH, MAX_MAGNITUDE
from flagen.spec.loader import Scalar
from flagen.spec.names import quoted
from flagen.spec.report import Report

_EXTREME = f"a number lies between 1e-{MAX_MAGNITUDE} and 1e{MAX_MAGNITUDE} in magnitude"
_SMALLEST, _LARGEST = Fraction(1, 10**MAX_MAGNITUDE), Fraction(10**MAX_MAGNITUDE)

_NUMBER = re.compile(r"((?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE]([+-]?[0-9]+))?\Z")
_TOKEN = re.compile(
    r"""(?P<space>\s+)
    | (?P<number>(?:[0-9]|\.[0-9])(?:[eE][+-](?=[0-9])|[A-Za-z0-9_.])*)
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<operator>\*\*|//|[-+*/@])
    | (?P<open>\()
    | (?P<close>\))
    | (?P<comma>,)
    | (?P<dot>\.)
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
    "|": "`abs(x)` is the absolute value, `norm(x)` the norm",
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
_NO_TUPLES = "a comma stands between the arguments of a function"


def parse_python(scalar: Scalar, start: int, report: Report) -> ast.expr | None:
    """The syntax tree of `scalar.text[start:]`, or None after a diagnostic.

    The tree's `col_offset` counts from `start`: the text reaches Python on one line and in ASCII.
    """
    text = scalar.text[start:]
    if len(text) > MAX_LENGTH:
        hint = "name its parts: in `let`, or as statements of the update"
        report.error("E404", scalar.at(start), f"an expression of more than {MAX_LENGTH} characters", hint)
        return None
    if not _Tokens(scalar, start, report).are_sound():
        return None
    try:
        # Line breaks are spaces here: a folded or literal scalar is one expression.
        tree = ast.parse(re.sub(r"\s", " ", text).rstrip(), mode="eval").body
    except SyntaxError as error:
        report.error("E401", scalar.at(start), f"not an expression: {error.msg}")
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


class _Tokens:
    """Checks that the tokens of a text are the language's, and that operands and operators take turns."""

    def __init__(self, scalar: Scalar, start: int, report: Report) -> None:
        self.scalar = scalar
        self.start = start
        self.report = report
        self.operand_next = True
        self.previous: re.Match[str] | None = None
        self.open: list[tuple[int, bool]] = []
        """Where each open parenthesis stands, and whether it is a call's."""

    def are_sound(self) -> bool:
        """Whether the text is an expression; False after a diagnostic, which is about the first token that is not."""
        for match in _TOKEN.finditer(self.scalar.text[self.start :]):
            if match.lastgroup != "space":
                if not self._is_token(match) or not self._is_in_place(match):
                    return False
                self.previous = match
        end = len(self.scalar.text[self.start :].rstrip())
        if self.previous is None:
            self.report.obscured = True
            return self._refuse("E401", end, 1, "an expression is missing here")
        if self.operand_next:
            after = self.previous
            message = f"a value is missing after `{after.group()}`"
            return self._refuse("E401", after.start(), len(after.group()), message)
        if self.open:
            return self._refuse("E401", self.open[-1][0], 1, "this parenthesis is not closed")
        return True

    def _is_token(self, match: re.Match[str]) -> bool:
        token = match.group()
        if match.lastgroup == "other":
            code = "E402" if token.isascii() else "E410"
            hint = _CHARACTER_HINTS.get(token, "" if token.isascii() else "names are ASCII: `beta`, not `β`")
            return self._refuse(code, match.start(), 1, f"{quoted(token)} is not part of the language", hint)
        if match.lastgroup == "number" and isinstance(problem := parse_number(token), str):
            message = f"{quoted(token)} is not a number of the language"
            return self._refuse("E406", match.start(), len(token), message, problem)
        if match.lastgroup == "name" and keyword.iskeyword(token):
            message = f"`{token}`, a keyword of Python, is not part of the language"
            return self._refuse("E402", match.start(), len(token), message)
        return True

    def _is_in_place(self, match: re.Match[str]) -> bool:
        token, kind, at = match.group(), match.lastgroup, match.start()
        after_dot = self.previous is not None and self.previous.lastgroup == "dot"
        if after_dot and kind != "name":
            return self._refuse("E401", at, len(token), "a dot is followed by `T`, the transpose")
        if kind in ("name", "number"):
            if not self.operand_next and not after_dot:
                message = f"an operator is missing before {quoted(token)}"
                return self._refuse("E401", at, len(token), message, "a product is written `*`")
            self.operand_next = False
        elif kind == "open":
            self.open.append((at, not self.operand_next))
            self.operand_next = True
            if len(self.open) > MAX_DEPTH:
                _too_deep(self.scalar.at(self.start + at), self.report)
                return False
        elif kind == "close":
            return self._closes(at)
        elif self.operand_next and token not in "+-":
            return self._refuse("E401", at, len(token), f"a value is missing before `{token}`")
        elif kind == "comma" and not (self.open and self.open[-1][1]):
            return self._refuse("E402", at, 1, "a list of values is not part of the language", _NO_TUPLES)
        else:
            self.operand_next = kind != "dot"
        return True

    def _closes(self, at: int) -> bool:
        if not self.open:
            return self._refuse("E401", at, 1, "this parenthesis closes nothing")
        _, is_call = self.open.pop()
        follows_open = self.previous is not None and self.previous.lastgroup == "open"
        if self.operand_next and not (is_call and follows_open):
            return self._refuse("E401", at, 1, "a value is missing before `)`")
        self.operand_next = False
        return True

    def _refuse(self, code: str, at: int, length: int, message: str, hint: str = "") -> bool:
        self.report.error(code, self.scalar.at(self.start + at, length), message, hint)
        return False


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
