"""The grammar of expressions: text to Python's syntax tree, refusing beforehand whatever the language does not have.

`ast.parse` sees nothing but names, decimal numbers, arithmetic operators, calls, `.` and parentheses, in an order that
makes an expression, at a bounded length and depth. Strings, keywords, indexing, assignments and the like never reach
it, and nothing is ever evaluated.

A layer's expressions are wider: they also have plain strings, comparisons, `if`/`else`, `and`/`or`/`not`, arguments
by keyword and values in parentheses; no `@` and no attributes.
"""

from __future__ import annotations

import ast
import keyword
import re
from fractions import Fraction

from flagen.diagnostics import Span
from flagen.spec.idioms import CHARACTERS, ascii_name, character_hint, function_hint, index_hint, keyword_hint
from flagen.spec.limits import MAX_DEPTH, MAX_DIGITS, MAX_LENGTH, MAX_MAGNITUDE
from flagen.spec.loader import Scalar
from flagen.spec.names import functions, quoted
from flagen.spec.report import Report

_EXTREME = f"a number lies between 1e-{MAX_MAGNITUDE} and 1e{MAX_MAGNITUDE} in magnitude"
_SMALLEST, _LARGEST = Fraction(1, 10**MAX_MAGNITUDE), Fraction(10**MAX_MAGNITUDE)

_NUMBER = re.compile(r"((?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE]([+-]?[0-9]+))?\Z")
_TOKEN = re.compile(
    r"""(?P<space>\s+)
    | (?P<number>(?:[0-9]|\.[0-9])(?:[eE][+-](?=[0-9])|[A-Za-z0-9_.])*)
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*+(?!\w))
    | (?P<foreign>[^\W\d]\w*)
    | (?P<operator>\*\*|//|[-+*/@])
    | (?P<open>\()
    | (?P<close>\))
    | (?P<comma>,)
    | (?P<dot>\.)
    | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)

_WIDE_TOKEN = re.compile(
    r"""(?P<space>\s+)
    | (?P<number>(?:[0-9]|\.[0-9])(?:[eE][+-](?=[0-9])|[A-Za-z0-9_.])*)
    | (?P<prefix>not\b(?!\s+in\b))
    | (?P<operator>is\s+not\b|(?:if|else|and|or|is)\b|\*\*|//|[=!<>]=|[-+*/%<>])
    | (?P<equals>=)
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*+(?!\w))
    | (?P<foreign>[^\W\d]\w*)
    | (?P<string>'[^'\\\n]*'|"[^"\\\n]*")
    | (?P<open>\()
    | (?P<close>\))
    | (?P<comma>,)
    | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
"""The tokens of a layer's expressions."""

_CONSTANTS = frozenset(("None", "True", "False"))

_COMMENT = re.compile(r"--|//")
"""What starts a comment elsewhere."""

_SEVERAL = "a second statement starts here; a text is one statement"
_SEVERAL_AFTER = "a second statement starts after this; a text is one statement"
_ALTERNATIVES = "`a if c else b` chooses, `c and not d` combines conditions"
_WIDE_CHARACTERS = {
    ".": "functions are called by their names alone, as in `silu(x)`",
    "[": "nothing is indexed: `split` and `heads` part a value",
    "{": "a layer's expression has no braces",
    "^": "a power is written `**`",
    "@": "matrices are modules: `linear(a, b)`",
    "!": "`not` negates, `!=` compares",
    "&": "conditions are combined by `and`",
    "|": "conditions are combined by `or`",
    "'": "a string has one pair of quotes, and no backslash",
    '"': "a string has one pair of quotes, and no backslash",
    ":": "a choice is written `a if c else b`",
    "?": "a choice is written `a if c else b`",
    ";": "write a list with one statement an item",
    "\u2260": "write `!=`",
    "\u2264": "write `<=`",
    "\u2265": "write `>=`",
}
_NO_TUPLES = "a comma stands between the arguments of a function"
_NAME_PARTS = "name its parts: in `let`, or as statements of the update"
_NAME_PARTS_OF_LAYER = "name its parts: in `dims`, or as statements of `forward`"
_PRODUCTS = "a product is written `a * b`, a contraction `a @ b`"


def parse_python(scalar: Scalar, start: int, report: Report, *, wide: bool = False) -> ast.expr | None:
    """The syntax tree of `scalar.text[start:]`, or None after a diagnostic; `wide` for an expression of a layer.

    The tree's `col_offset` counts from `start`: the text reaches Python on one line and in ASCII.
    """
    text = scalar.text[start:]
    if len(text) > MAX_LENGTH:
        hint = _NAME_PARTS_OF_LAYER if wide else _NAME_PARTS
        report.error("E404", scalar.at(start), f"an expression of more than {MAX_LENGTH} characters", hint)
        return None
    tokens = _WideTokens(scalar, start, report) if wide else _Tokens(scalar, start, report)
    if not tokens.are_sound():
        return None
    try:
        # Line breaks are spaces here: a folded or literal scalar is one expression.
        tree = ast.parse(re.sub(r"\s", " ", text).rstrip(), mode="eval").body
    except SyntaxError as error:
        hint = _ALTERNATIVES if wide else ""
        report.error("E401", scalar.at(start), f"not an expression: {error.msg}", hint)
        return None
    except (RecursionError, MemoryError):
        _too_deep(scalar.at(start), report, wide)
        return None
    deepest = _first_too_deep(tree)
    if deepest is not None:
        _too_deep(node_span(scalar, start, deepest), report, wide)
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
        product = re.match(r"([0-9]+)([A-Za-z].*)", text)
        other = (
            f"; a product is written `{product[1]} * {product[2]}`" if product and product[2][0] not in "eExXjJ" else ""
        )
        return f"numbers are decimal: `2`, `0.5`, `1e-6`{other}"
    mantissa, exponent = match.groups()
    if sum(char.isdigit() for char in mantissa) > MAX_DIGITS:
        return f"a number has at most {MAX_DIGITS} digits"
    if exponent is not None and abs(int(exponent)) > MAX_MAGNITUDE + MAX_DIGITS:
        return _EXTREME
    value = Fraction(text)
    return value if value == 0 or _SMALLEST <= value <= _LARGEST else _EXTREME


class _Tokens:
    """Checks that the tokens of a text are the language's, and that operands and operators take turns."""

    pattern = _TOKEN

    def __init__(self, scalar: Scalar, start: int, report: Report) -> None:
        self.scalar = scalar
        self.start = start
        self.report = report
        self.operand_next = True
        self.previous: re.Match[str] | None = None
        self.open: list[tuple[int, re.Match[str] | None]] = []
        """Where each open parenthesis stands, and what it calls, if anything."""

    def are_sound(self) -> bool:
        """Whether the text is an expression; False after a diagnostic, which is about the first token that is not."""
        for match in self.pattern.finditer(self.scalar.text[self.start :]):
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
        if self.previous.lastgroup == "dot":
            hint = "leave it out; a transpose is written `.T`"
            return self._refuse("E401", self.previous.start(), 1, "nothing follows this dot", hint)
        if self.open:
            return self._refuse("E401", self.open[-1][0], 1, "this parenthesis is not closed")
        return True

    def _is_token(self, match: re.Match[str]) -> bool:
        token = match.group()
        if match.lastgroup == "foreign":
            return self._refuse_name(match)
        if match.lastgroup == "other":
            return self._refuse_character(match)
        if match.lastgroup == "number" and isinstance(problem := parse_number(token), str):
            message = f"{quoted(token)} is not a number of the language"
            return self._refuse("E406", match.start(), len(token), message, problem)
        if match.lastgroup == "name" and keyword.iskeyword(token):
            if token in self.report.misnamed:
                return False
            message = f"`{token}`, a keyword of Python, is not part of the language"
            return self._refuse("E402", match.start(), len(token), message, keyword_hint(token))
        return True

    def _refuse_name(self, match: re.Match[str]) -> bool:
        """A name with letters that are not ASCII; one that was refused where it is declared has been reported."""
        token = match.group()
        if token in self.report.misnamed:
            return False
        at = next(i for i, char in enumerate(token) if not char.isascii())
        name = ascii_name(token) if token[at].isalpha() and token[at] not in CHARACTERS else None
        hint = character_hint(token[at]) if name is None else f"names are ASCII: `{name}`, not {quoted(token)}"
        return self._refuse("E410", match.start() + at, 1, f"{quoted(token[at])} is not part of the language", hint)

    def _refuse_character(self, match: re.Match[str]) -> bool:
        token, at, text = match.group(), match.start(), self.scalar.text[self.start :]
        before = self.previous.group() if self.previous is not None else ""
        hint, length = character_hint(token), 1
        if token == ";" and not text[at + 1 :].strip():
            return self._refuse("E402", at, 1, "`;` is not part of the language", "leave it out")
        if token == ";":
            return self._refuse("E413", at, 1, _SEVERAL_AFTER, hint)
        if token in "[{" and not self.operand_next and self.previous is not None and self.previous.end() == at:
            closed = text.find("]" if token == "[" else "}", at)
            length = closed + 1 - at if closed >= 0 else 1
            inside = text[at + 1 : closed] if closed >= 0 else text[at + 1 :]
            hint = index_hint(before, inside) if self.previous.lastgroup == "name" else hint
            hint = f"a call is written `{before}({inside})`" if before in functions(self.report.version) else hint
        elif token == "'" and not self.operand_next:
            hint = "a transpose is written `.T`; there are no strings"
        elif (
            token in "'\""
            and self.open
            and (called := self.open[-1][1])
            and (known := function_hint(called.group(), self.report.version))
        ):
            return self._refuse("E408", called.start(), len(called.group()), _no_function(called.group()), known)
        elif token == "%" and self.report.version > 1:
            hint = "the remainder by 1 is written `fraction(x)`; there is no other"
        elif token == "=" and self.open:
            hint = "arguments are given by position, and a dim by its name: `sum(x, K)`"
        elif token == "\\" and (command := re.match(r"\\([A-Za-z]+)", text[at:])) is not None:
            length = len(command[0])
            hint = f"this is no LaTeX: write `{command[1]}`" if command[1] in functions(self.report.version) else hint
        code = "E402" if token.isascii() else "E410"
        return self._refuse(code, at, length, f"{quoted(text[at : at + length])} is not part of the language", hint)

    def _is_in_place(self, match: re.Match[str]) -> bool:
        token, kind, at = match.group(), match.lastgroup, match.start()
        after_dot = self.previous is not None and self.previous.lastgroup == "dot"
        if after_dot and kind != "name":
            return self._refuse("E401", at, len(token), "a dot is followed by `T`, the transpose")
        if kind in ("name", "number"):
            if not self.operand_next and not after_dot and self._starts_statement(at):
                return self._refuse("E413", at, len(token), _SEVERAL, CHARACTERS[";"])
            if not self.operand_next and not after_dot:
                message = f"an operator is missing before {quoted(token)}"
                before = self.previous.group() if self.previous is not None else ""
                hint = (
                    f"a call is written `{before}({token})`" if before in functions(self.report.version) else _PRODUCTS
                )
                if _COMMENT.search(self.scalar.text, self.start, self.start + at):
                    hint = "a comment starts with ` #`"
                return self._refuse("E401", at, len(token), message, hint)
            self.operand_next = False
        elif kind == "open":
            self.open.append((at, None if self.operand_next else self.previous))
            self.operand_next = True
            if len(self.open) > MAX_DEPTH:
                _too_deep(self.scalar.at(self.start + at), self.report)
                return False
        elif kind == "close":
            return self._closes(at)
        elif self.operand_next and token not in "+-":
            return self._refuse("E401", at, len(token), f"a value is missing before `{token}`")
        elif kind == "comma" and not self.open and self._starts_statement(at + 1):
            return self._refuse("E413", at, 1, _SEVERAL_AFTER, CHARACTERS[";"])
        elif kind == "comma" and not (self.open and self.open[-1][1]):
            return self._refuse("E402", at, 1, "a list of values is not part of the language", _NO_TUPLES)
        else:
            self.operand_next = kind != "dot"
        return True

    def _starts_statement(self, at: int) -> bool:
        """Whether `name = ...` stands there, where only an operand could."""
        rest = self.scalar.text[self.start + at :]
        return self.start > 0 and re.match(r"\s*[A-Za-z_]\w*\s*=(?!=)", rest) is not None

    def _closes(self, at: int) -> bool:
        if not self.open:
            return self._refuse("E401", at, 1, "this parenthesis closes nothing")
        _, called = self.open.pop()
        follows_open = self.previous is not None and self.previous.lastgroup == "open"
        if self.operand_next and (called is None or not follows_open):
            return self._refuse("E401", at, 1, "a value is missing before `)`")
        self.operand_next = False
        return True

    def _refuse(self, code: str, at: int, length: int, message: str, hint: str = "") -> bool:
        self.report.error(code, self.scalar.at(self.start + at, length), message, hint)
        return False


class _WideTokens(_Tokens):
    """The same for an expression of a layer."""

    pattern = _WIDE_TOKEN

    def __init__(self, scalar: Scalar, start: int, report: Report) -> None:
        super().__init__(scalar, start, report)
        self.choices: list[tuple[int, int]] = []
        """Every `if` without its `else` so far: how many parentheses are open there, and where it stands."""

    def are_sound(self) -> bool:
        return super().are_sound() and not self._lacks_else()

    def _lacks_else(self) -> bool:
        """Whether an `if` has no `else` where what it stands in ends; then it is reported."""
        if not self.choices or self.choices[-1][0] < len(self.open):
            return False
        hint = "a choice is written `a if c else b`; what may not be there is `None`"
        self._refuse("E401", self.choices[-1][1], 2, "this `if` has no `else`", hint)
        return True

    def _is_token(self, match: re.Match[str]) -> bool:
        if match.lastgroup == "name" and match.group() in _CONSTANTS:
            return True
        return super()._is_token(match)

    def _refuse_character(self, match: re.Match[str]) -> bool:
        token, at, text = match.group(), match.start(), self.scalar.text[self.start :]
        hint = _WIDE_CHARACTERS.get(token, "" if token in CHARACTERS and token.isascii() else character_hint(token))
        if token == "." and (after := re.match(r"\.\s*([A-Za-z_]\w*)", text[at:])) is not None:
            shown = f"`.{quoted(after[1])[1:]}"
            return self._refuse("E402", at, len(after[0]), f"{shown} is not part of the language", hint)
        code = "E402" if token.isascii() else "E410"
        return self._refuse(code, at, 1, f"{quoted(token)} is not part of the language", hint)

    def _is_in_place(self, match: re.Match[str]) -> bool:
        token, kind, at = match.group(), match.lastgroup, match.start()
        inside = bool(self.open)
        if kind in ("comma", "close") and self._lacks_else():
            return False
        if token == "else":
            if not self.choices or self.choices[-1][0] < len(self.open):
                return self._refuse("E401", at, 4, "this `else` belongs to no `if`", _ALTERNATIVES)
            self.choices.pop()
        if token == "if":
            self.choices.append((len(self.open), at))
        if kind == "prefix":
            if not self.operand_next:
                return self._refuse("E401", at, len(token), f"an operator is missing before `{token}`", _ALTERNATIVES)
            return True
        if kind == "string":
            if not self.operand_next:
                return self._refuse("E401", at, len(token), f"an operator is missing before {quoted(token)}")
            self.operand_next = False
            return True
        if kind == "equals":
            before = self.previous
            if before is None or before.lastgroup != "name" or not (inside and self.open[-1][1]):
                hint = "a comparison is written `==`"
                return self._refuse("E402", at, 1, "`=` is not part of the language here", hint)
            self.operand_next = True
            return True
        if kind == "comma" and inside and not self.operand_next:
            self.operand_next = True
            return True
        if kind == "open" and not self.operand_next and (self.previous is None or self.previous.lastgroup != "name"):
            return self._refuse("E401", at, 1, "an operator is missing before `(`")
        return super()._is_in_place(match)


def _no_function(name: str) -> str:
    return f"`{name}` is not a function of the language"


def _too_deep(span: Span, report: Report, wide: bool = False) -> None:
    hint = _NAME_PARTS_OF_LAYER if wide else _NAME_PARTS
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
