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

PUBLIC = frozenset(
    f"{name}.py"
    for name in (
        "naive_recurrent naive_chunk chunk chunk_backward fused_recurrent fused_recurrent_backward module".split()
    )
)
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


def layer_as_written(text: str, names: Names) -> str:
    """The text of `layer.py` with the names that the layer's author gave it."""
    return _in_comments(_File("layer.py", text, names, ()).changed(), names)


def in_words(text: str, names: Names) -> str:
    """`text` with each of `names`, where it is a whole word, as it was written; so with states before a token."""
    if not names:
        return text
    words = {**names, **{f"{new}_prev": f"{old}_prev" for new, old in names.items()}}
    # Of what has an index in a formula, `R_{t}`, the `_` is no part of the name.
    return re.sub(r"\w+(?![\w{])", lambda word: words.get(word[0], word[0]), text)


class _File:
    """One file of Python, and what changes in it."""

    def __init__(self, path: str, text: str, names: Names, dims: Collection[str]) -> None:
        self.text = text
        self.names = names
        name = PurePosixPath(path).name
        self.public = name in PUBLIC or name == "layer.py"
        self.in_tables = {new: old for new, old in names.items() if new not in dims or name == "module.py"}
        self.tree = ast.parse(text)
        self.edits: list[Edit] = []
        self.aliases: dict[str, str] = {}
        self.lines = [0]
        for line in text.encode().split(b"\n"):
            self.lines.append(self.lines[-1] + len(line) + 1)
        self.docstrings = set(_docstrings(self.tree))
        self.entries: Names = {}
        """Arguments of the function at hand that are called otherwise."""

    def changed(self) -> str:
        for statement in self.tree.body:
            self._walk(statement, {})
        data = self.text.encode()
        for start, end, new in sorted(self.edits, reverse=True):
            data = data[:start] + new.encode() + data[end:]
        return self._with_aliases(data.decode())

    def _walk(self, node: ast.AST, code: Names) -> None:
        """Edit what is below `node`, where `code` says what identifiers become."""
        if isinstance(node, ast.FunctionDef):
            code = code or self._swapped(node)
            self.entries = {argument.arg: code[argument.arg] for argument in node.args.args if argument.arg in code}
            for child in ast.iter_child_nodes(node):
                if child not in node.decorator_list:
                    self._walk(child, code)
            return
        match node:
            case ast.Name(id=name):
                self._edit(node, 0, name, code.get(name, name))
            case ast.arg(arg=name):
                self._edit(node, 0, name, code.get(name, name))
            case ast.alias(name=name, asname=None) if name in code:
                self._edit(node, 0, name, f"{name} as {code[name]}")
            case ast.ExceptHandler(name=str(name)) if name in code:
                start = self._start(node.body[0])
                place = self.text.encode().rindex(f" as {name}:".encode(), 0, start)
                self.edits.append((place, place + len(name) + 5, f" as {code[name]}:"))
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                self._edit(node, self._length(node) - len(name), name, self.names.get(name, name))
            case ast.Call(func=ast.Attribute(value=ast.Name(id="CALL"), attr="size")):
                # Sizes of a call are known to each other by the names in the table of arguments.
                for keyword in node.keywords:
                    self._walk(keyword.value, code)
                return
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
                in_docstring = node in self.docstrings
                new = self._documented(source) if in_docstring else in_words(source, self.in_tables)
                self._edit(node, 0, source, new)
        for child in ast.iter_child_nodes(node):
            self._walk(child, code)

    def _documented(self, text: str) -> str:
        """A docstring; where it has an entry for an argument, that is called as the function has it."""
        lines = []
        for line in text.split("\n"):
            entry = re.match(r" +(\w+)(?=:)", line)
            if entry is None or entry[1] not in self.entries:
                lines.append(in_words(line, self.names))
            else:
                lines.append(
                    line[: entry.start(1)] + self.entries[entry[1]] + in_words(line[entry.end() :], self.names)
                )
        return "\n".join(lines)

    def _start(self, node: ast.AST) -> int:
        return self.lines[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined, no-any-return]

    def _length(self, node: ast.expr) -> int:
        return self.lines[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0) - self._start(node)

    def _edit(self, node: ast.AST, offset: int, old: str, new: str) -> None:
        if new != old:
            start = self._start(node) + offset
            self.edits.append((start, start + len(old.encode()), new))

    def _swapped(self, function: ast.FunctionDef) -> Names:
        """What identifiers become in a public function; nothing does in others. What it uses of the module's or of
        Python's under a name that is the spec's gets another."""
        kernel = any("jit" in ast.unparse(decorator) for decorator in function.decorator_list)
        private = function.name.startswith("_") and function.name != "__init__"
        if kernel or private or not self.public:
            return {}
        used, by_name = _names_in(function), {argument.arg for argument in function.args.kwonlyargs}
        names = {new: old for new, old in self.names.items() if new in used and old not in by_name}
        nodes = list(ast.walk(function))
        bound = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        bound |= {n.arg for n in nodes if isinstance(n, ast.arg)}
        bound |= {n.name for n in nodes if isinstance(n, ast.alias | ast.ExceptHandler) and n.name}
        self.aliases |= {old: new for new, old in names.items() if old in used - bound}
        return names | {old: new for new, old in names.items()}

    def _with_aliases(self, text: str) -> str:
        """`text` with a second name for what it imports, for what is Python's, and at its end for what it defines."""
        if not self.aliases:
            return text
        imports = [n for n in self.tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
        imported = {name: line for node in imports for name, line in self._import(node)}
        places = {n.id for n in ast.walk(self.tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        last = max(node.end_lineno or node.lineno for node in imports)
        lines = text.split("\n")
        for name, alias in self.aliases.items():
            if name in imported:
                lines.insert(last, imported[name])
            elif name in places:
                lines.append(f"{alias} = {name}\n")
            elif hasattr(builtins, name):
                lines.insert(last, f"from builtins import {name} as {alias}")
            else:
                raise InternalError(f"a public function uses `{name}`, which is nothing in its file")
        return "\n".join(lines)

    def _import(self, node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str]]:
        """Each name that is imported, and how it is under its second name."""
        source = f"from {'.' * node.level}{node.module or ''} " if isinstance(node, ast.ImportFrom) else ""
        for given in node.names:
            name = given.asname or given.name
            if name in self.aliases:
                yield name, f"{source}import {given.name} as {self.aliases[name]}"


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
