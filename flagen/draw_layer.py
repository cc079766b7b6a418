"""A layer's dataflow as a flowchart in Mermaid's language, which GitHub and many editors draw.

Modules and the operator are nodes, and so is what is computed between them: each largest expression of functions and
arithmetic, with what it takes from nodes under their names. What only looks at channels as heads is no node.
"""

from __future__ import annotations

from dataclasses import replace

from flagen.spec.layer.model import Binary, Call, Expr, Name, Several, Unary
from flagen.spec.layer.printer import to_text
from flagen.spec.layer.trial import Trial
from flagen.spec.model import Spec

_VIEWS = ("heads", "merge")


def flowchart(spec: Spec, trial: Trial) -> str:
    """The dataflow of a layer with the config that `trial` has called it with."""
    return _Flowchart(spec, trial).drawn()


class _Flowchart:
    """The lines of a flowchart, and which node has the value of each name at the point where it is read."""

    def __init__(self, spec: Spec, trial: Trial) -> None:
        self.spec = spec
        self.trial = trial
        self.lines = ["flowchart TD"]
        self.where: dict[str, str] = {}
        self.titles: dict[str, str] = {}
        self.computed: dict[tuple[str, ...], str] = {}

    def drawn(self) -> str:
        """The whole of `forward`."""
        self.where["x"] = self._node("x", "([", "])")
        for decl in self.trial.layer.inputs:
            self.where[decl.name] = self._node(decl.name, "([", "])")
        for statement, _ in self.trial.lines:
            node = self._source(self.trial.chosen(statement.value), ", ".join(statement.targets))
            for target in statement.targets:
                self.where.pop(target, None)
                if node is not None:
                    self.where[target] = node
        for name in ("y", *self.trial.layer.outputs):
            node = self._node(name, "([", "])")
            self._edge(self.where[name], node)
        return "\n".join(self.lines)

    def _source(self, expr: Expr, target: str = "") -> str | None:
        """The node that has the value of `expr`, drawn where it is new; None for what no token decides."""
        match expr:
            case Name(name, "local" | "input"):
                return self.where.get(name)
            case Call(name, "module", args):
                return self._called(name, [("", arg) for arg in args], "[", "]")
            case Call(name, "recurrence", args, keywords):
                named = [decl.name for decl in self._operator(name).inputs]
                given = [*zip(named, args, strict=False), *keywords]
                return self._called(self._operator(name).name, given, "[[", "]]")
            case Call(name, "function", (value, *_)) if name in _VIEWS:
                return self._source(value, target)
            case _:
                return self._computed(expr, target)

    def _operator(self, name: str) -> Spec:
        found = self.trial.operators[name]
        assert found is not None, "the spec of every operator has been read"
        return found

    def _called(self, title: str, given: list[tuple[str, Expr]], *shape: str) -> str:
        sources = [(name, self._source(value)) for name, value in given]
        node = self._node(title, *shape)
        for name, source in sources:
            if source is not None:
                self._edge(source, node, name)
        return node

    def _computed(self, expr: Expr, target: str) -> str | None:
        """A node for an expression, one for all that are alike, and those that it takes values from."""
        sources: dict[str, None] = {}
        text = to_text(self._shortened(expr, sources))
        if not sources:
            return None
        if (alike := (text, *sources)) not in self.computed:
            node = self.computed[alike] = self._node(f"{target} = {text}" if target else text, "(", ")")
            for source in sources:
                self._edge(source, node)
        return self.computed[alike]

    def _shortened(self, expr: Expr, sources: dict[str, None]) -> Expr:
        """`expr` with the title of a node for each call of a module in it."""
        match expr:
            case Call(_, "module" | "recurrence") | Name(_, "local" | "input"):
                source = self._source(expr)
                if source is None:
                    return expr
                sources[source] = None
                return expr if isinstance(expr, Name) else Name(self.titles[source], "local")
            case Call(name, "function", (value, *_)) if name in _VIEWS:
                return self._shortened(value, sources)
            case Unary(_, value):
                return replace(expr, value=self._shortened(value, sources))
            case Binary(_, left, right):
                return replace(expr, left=self._shortened(left, sources), right=self._shortened(right, sources))
            case Several(items):
                return replace(expr, items=tuple(self._shortened(item, sources) for item in items))
            case Call(_, "function", args, keywords):
                return replace(
                    expr,
                    args=tuple(self._shortened(arg, sources) for arg in args),
                    keywords=tuple((key, self._shortened(value, sources)) for key, value in keywords),
                )
            case _:
                return expr

    def _node(self, title: str, opening: str, closing: str) -> str:
        node = f"n{len(self.titles)}"
        self.titles[node] = title
        self.lines.append(f'    {node}{opening}"{_quoted(title)}"{closing}')
        return node

    def _edge(self, source: str, target: str, name: str = "") -> None:
        label = f'|"{_quoted(name)}"|' if name else ""
        self.lines.append(f"    {source} -->{label} {target}")


def _quoted(text: str) -> str:
    return text.replace('"', "#quot;")
