"""The context of `naive_recurrent.py`: the spec's statements, one after another, for every token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from flagen.backends.protocol import Rendering
from flagen.backends.torch_.common import common_context
from flagen.backends.torch_.printer import Code, Level, Printer
from flagen.backends.torch_.scope import Scope, prelude
from flagen.plan.model import Plan
from flagen.spec.model import Assign, Expr, Name, Repeat, Spec, StateRead, walk


def naive_file(plan: Plan) -> Rendering:
    """`naive_recurrent.py` of a package."""
    spec = plan.spec
    scope = Scope(spec)
    lines, before = prelude(scope, _expressions(spec))
    body = _Body(scope)
    statements = list(body.lines())
    output = body.output()
    states = [state.name for state in spec.states]
    return Rendering(
        "naive_recurrent.py",
        "torch/naive_recurrent.py.j2",
        {
            **common_context(spec),
            "prelude": lines,
            "states": states,
            "carried": states[0] if len(states) == 1 else f"({', '.join(states)})",
            **_tokens(body.by_token),
            "body": statements,
            "output": output,
            "empty_output": ", ".join(("args.batch", "0", "args.HV", *(f"args.{dim}" for dim in spec.output_dims))),
            "l2norm": "l2norm" in before.needs | body.needs,
        },
    )


def _tokens(by_token: Mapping[str, str]) -> Mapping[str, str]:
    """The loop over tokens: what it goes through, and what it calls that; without inputs, numbers that nobody needs."""
    if not by_token:
        return {"of_token": "_", "by_token": "range(tokens.start, tokens.stop)"}
    named = ", ".join(by_token.values())
    return {
        "of_token": f"{named}," if len(by_token) == 1 else named,
        "by_token": f"args.by_token(tokens, {', '.join(by_token)})",
    }


def _expressions(spec: Spec) -> Iterator[Expr]:
    for statement in spec.update:
        for assign in statement.body if isinstance(statement, Repeat) else (statement,):
            yield assign.value
    for assign in spec.output:
        yield assign.value


@dataclass
class _Body:
    """Prints one token's statements, inside `for t in …` (and `for j in …` for the micro-steps of a repeat)."""

    scope: Scope
    needs: set[str] = field(default_factory=set)
    locals: dict[str, tuple[tuple[str, ...], Level]] = field(default_factory=dict)
    by_token: dict[str, str] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        spec = self.scope.spec
        read_before = {n.name for e in _expressions(spec) for n in walk(e) if isinstance(n, StateRead) and n.previous}
        yield from (f"{state.name}_prev = {state.name}" for state in spec.states if state.name in read_before)
        for statement in spec.update:
            if isinstance(statement, Repeat):
                assert spec.steps is not None
                yield f"for j in range({spec.steps.argument}):"
                yield from (f"    {self._assign(inner)}" for inner in statement.body)
            else:
                yield self._assign(statement)
        yield from (self._assign(statement) for statement in spec.output[:-1])

    def output(self) -> str:
        """The expression of the token's output."""
        spec = self.scope.spec
        code = self._print(spec.output[-1].value)
        return self._whole(code, spec.output[-1].value.dims)

    def _assign(self, statement: Assign) -> str:
        code = self._print(statement.value)
        if statement.to_state:
            dims = next(state.dims for state in self.scope.spec.states if state.name == statement.target)
            return f"{statement.target} = {self._whole(code, dims)}"
        self.locals[statement.target] = (code.dims, code.level)
        return f"{statement.target} = {code.text}"

    def _whole(self, code: Code, dims: tuple[str, ...]) -> str:
        """`code` as [batch, HV, *dims], also where it does not depend on the token."""
        if code.level == "number":
            shape = ", ".join(("args.batch", "args.HV", *(f"args.{dim}" for dim in dims)))
            return f"torch.full(({shape}), {code.text}, dtype=args.dtype, device=args.device)"
        if code.level == "constant":
            aligned = self._printer().aligned(code, dims)
            shape = ", ".join(("args.batch", "args.HV", *(f"args.{dim}" for dim in dims)))
            return f"({aligned.text}).expand({shape})"
        return self._printer().aligned(code, dims).text

    def _print(self, expr: Expr) -> Code:
        printer = self._printer()
        code = printer.print(expr)
        self.needs |= printer.needs
        return code

    def _of_token(self, name: str) -> str:
        """The name of one token's row of `name`."""
        if name not in self.by_token:
            row = f"{name}_t"
            while row in self.scope.names:
                row += "_"
            self.by_token[name] = row
        return self.by_token[name]

    def _printer(self) -> Printer:
        return Printer(self._code)

    def _code(self, expr: Expr) -> Code:
        if isinstance(expr, StateRead):
            return Code(f"{expr.name}_prev" if expr.previous else expr.name, expr.dims, "token")
        if not isinstance(expr, Name):
            return self.scope.code(expr)
        if expr.kind == "local":
            dims, level = self.locals[expr.name]
            return Code(expr.name, dims, level)
        level = self.scope.level(expr)
        if level == "token":
            return Code(self._of_token(expr.name), expr.dims, "token")
        if level == "step":
            return Code(f"{self._of_token(expr.name)}[:, j]", expr.dims, "token", rows=True)
        return self.scope.code(expr)
