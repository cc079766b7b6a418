"""Gives a spec's names back where a user meets them, in a package that was printed with others (`plan.own_names`).

A user meets them in documents, docstrings, comments and messages, as keys of the tables that messages are made from,
and as the arguments of public functions and modules. In the body of a public function the two change places: the
argument is `row`, and what the function itself calls so is `row_`. Everywhere else code stays as it was printed.
"""

from __future__ import annotations

import ast
import builtins
import io
import re
import tokenize
from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePosixPath

from flagen.diagnostics import InternalError

PUBLIC = frozenset(("naive.py", "chunk.py", "fused_recurrent.py", "chunk_fused.py", "module.py"))
"""The files whose functions and methods take the arguments of a spec from a user."""

Names = Mapping[str, str]
Edit = tuple[int, int, str]


def as_written(path: str, text: str, names: Names, dims: Collection[str], symbols: Names) -> str:
    """The file `path` of a package with the names that the spec's author gave it.

    Args:
        names: what the author calls each name that is called otherwise in `text`.
        dims: those of them that are dims: by these names the sizes of a call are known to each other.
        symbols: the same names as formulas have them.
    """
    if PurePosixPath(path).suffix != ".py":
        for new, old in symbols.items():
            text = text.replace(new, old)
        return in_words(text, names)
    if PurePosixPath(path).name == "layer.py":  # Around the operator, whose arguments it calls by their own names.
        return text
    return _in_comments(_File(path, text, names, dims).changed(), names)


def in_words(text: str, names: Names) -> str:
    """`text` with each of `names`, where it is a whole word, as it was written."""
    return re.sub(r"\w+", lambda word: names.get(word[0], word[0]), text) if names else text


class _File:
    """One file of Python, and what changes in it."""

    def __init__(self, path: str, text: str, names: Names, dims: Collection[str]) -> None:
        self.text = text
        self.names = names
        self.swapped = {**names, **{old: new for new, old in names.items()}}
        name = PurePosixPath(path).name
        self.public = name in PUBLIC
        self.in_tables = {new: old for new, old in names.items() if new not in dims or name == "module.py"}
        self.tree = ast.parse(text)
        self.edits: list[Edit] = []
        self.aliases: dict[str, str] = {}
        self.lines = [0]
        for line in text.encode().split(b"\n"):
            self.lines.append(self.lines[-1] + len(line) + 1)
        self.docstrings = set(_docstrings(self.tree))

    def changed(self) -> str:
        for statement in self.tree.body:
            self._walk(statement, swaps=False)
        data = self.text.encode()
        for start, end, new in sorted(self.edits, reverse=True):
            data = data[:start] + new.encode() + data[end:]
        return self._with_aliases(data.decode())

    def _walk(self, node: ast.AST, *, swaps: bool) -> None:
        if isinstance(node, ast.FunctionDef):
            kernel = any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
            takes = self.public and not kernel and (not node.name.startswith("_") or node.name == "__init__")
            swaps = swaps or (takes and bool(_names_in(node) & self.names.keys()))
            if swaps:
                self._free_what_is_global(node)
            for child in ast.iter_child_nodes(node):
                if child not in node.decorator_list:
                    self._walk(child, swaps=swaps)
            return
        code = self.swapped if swaps else {}
        match node:
            case ast.Name(id=name):
                self._edit(node, 0, name, code.get(name, name))
            case ast.arg(arg=name):
                self._edit(node, 0, name, code.get(name, name))
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                self._edit(node, self._length(node) - len(name), name, self.names.get(name, name))
            case ast.Call(func=function):
                for keyword in node.keywords:
                    if keyword.arg is not None and _is_public(function):
                        self._edit(keyword, 0, keyword.arg, self.names.get(keyword.arg, keyword.arg))
            case ast.JoinedStr():
                source = ast.get_source_segment(self.text, node) or ""
                parts = re.split(r"(\{[^{}]*\})", source)
                words = [in_words(part, code if part.startswith("{") else self.in_tables) for part in parts]
                self._edit(node, 0, source, "".join(words))
                return
            case ast.Constant(value=str()):
                source = ast.get_source_segment(self.text, node) or ""
                names = self.names if node in self.docstrings else self.in_tables
                self._edit(node, 0, source, in_words(source, names))
        for child in ast.iter_child_nodes(node):
            self._walk(child, swaps=swaps)

    def _start(self, node: ast.AST) -> int:
        return self.lines[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined, no-any-return]

    def _length(self, node: ast.expr) -> int:
        return self.lines[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0) - self._start(node)

    def _edit(self, node: ast.AST, offset: int, old: str, new: str) -> None:
        if new != old:
            start = self._start(node) + offset
            self.edits.append((start, start + len(old.encode()), new))

    def _free_what_is_global(self, function: ast.FunctionDef) -> None:
        """Remember what of the module's or of Python's `function` uses under a name that is an argument of it now."""
        bound = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        bound |= {n.arg for n in ast.walk(function) if isinstance(n, ast.arg)}
        for new, old in self.names.items():
            if old in _names_in(function) - bound:
                self.aliases[old] = new

    def _with_aliases(self, text: str) -> str:
        """`text` with a second name for what is imported, and for what Python has."""
        if not self.aliases:
            return text
        last = max(n.end_lineno or n.lineno for n in self.tree.body if isinstance(n, ast.Import | ast.ImportFrom))
        lines = text.split("\n")
        lines[last:last] = [self._import(name, alias) for name, alias in self.aliases.items()]
        return "\n".join(lines)

    def _import(self, name: str, alias: str) -> str:
        for node in self.tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                given = next((given for given in node.names if (given.asname or given.name) == name), None)
                if given is None:
                    continue
                if isinstance(node, ast.Import):
                    return f"import {given.name} as {alias}"
                return f"from {'.' * node.level}{node.module or ''} import {given.name} as {alias}"
        if not hasattr(builtins, name):
            raise InternalError(f"a public function uses `{name}`, which is not imported")
        return f"from builtins import {name} as {alias}"


def _names_in(function: ast.FunctionDef) -> set[str]:
    """The identifiers of a function, but for those of its decorators."""
    parts = [function.args, *function.body, *([] if function.returns is None else [function.returns])]
    nodes = [node for part in parts for node in ast.walk(part)]
    return {n.id for n in nodes if isinstance(n, ast.Name)} | {n.arg for n in nodes if isinstance(n, ast.arg)}


def _is_public(function: ast.expr) -> bool:
    """Whether what is called takes arguments by the names that a user gives: no kernel does, nor a private function."""
    return not isinstance(function, ast.Subscript) and not (isinstance(function, ast.Name) and function.id[0] == "_")


def _docstrings(tree: ast.Module) -> Iterator[ast.AST]:
    documented = (node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef))
    first = (node.body[0] for node in documented if node.body)
    return (statement.value for statement in first if isinstance(statement, ast.Expr))


def _in_comments(text: str, names: Names) -> str:
    """`text` with the names in its comments as they were written."""
    lines = text.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column] + in_words(lines[row - 1][column:], names)
    return "".join(lines)
