"""The context of `naive_chunk.py` where states are elementwise scans: the statements, for all tokens of a chunk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from flagen.algebra.scan import ONE, Scan
from flagen.backends.protocol import Rendering
from flagen.backends.signature import Parameter, output_dtype, result_doc
from flagen.backends.text import tuple_of
from flagen.backends.torch_.common import common_context
from flagen.backends.torch_.printer import Code, Level, Printer
from flagen.backends.torch_.scope import Scope, prelude
from flagen.plan.scan import Result, ScanPlan
from flagen.spec.model import Assign, Dims, Expr, Name, StateRead


def scan_renderings(plan: ScanPlan) -> tuple[Rendering, ...]:
    """`naive_chunk.py` of a package, or of a part of one, of elementwise scans: `naive_chunk_<name>`, which returns the
    plan's results and the final states. It imports `.arguments` and nothing else of the package."""
    spec = plan.spec
    scope = Scope(spec)
    lines, before = prelude(scope, plan.form.expressions())
    body = _Body(plan, scope)
    statements = list(body.lines())
    size = Parameter("chunk_size", "int", str(plan.size), True, "tokens per chunk.")
    context = common_context(spec, size)
    del context["output_doc"], context["output_dtype"]
    carries = [body.last[state.name] for state in spec.states]
    one = len(carries) == 1
    return (
        Rendering(
            "naive_chunk.py",
            "torch/scan.py.j2",
            {
                **context,
                "output_dtype": output_dtype(spec) if "o" in plan.form.results else "",
                "prelude": lines,
                "results": [_result(plan, result, body.every[result.name]) for result in plan.results],
                "carries": carries[0] if one else tuple_of(carries),
                "final": "torch.cat(finals)" if one else "tuple(torch.cat(runs) for runs in zip(*finals, strict=True))",
                "body": statements,
                "l2norm": "l2norm" in before.needs | body.needs,
            },
        ),
    )


def _result(plan: ScanPlan, result: Result, every: str) -> dict[str, object]:
    """A result: what it is called, its chunks' list, its sizes, and how it is documented and returned. All but the
    output stay in the dtype that is computed in, whatever later stages take their rows in."""
    spec, name = plan.spec, result.name
    narrow = name == "o" and name not in spec.wide_outputs
    exact = replace(spec, wide_outputs=spec.wide_outputs if narrow else frozenset({name}))
    return {
        "name": name,
        "every": every,
        "sizes": [f"args.{dim}" for dim in result.dims],
        "doc": result_doc(exact, name, result.dims),
        "returned": f"{name}.to(dtype)" if narrow else name,
    }


@dataclass
class _Body:
    """Prints a chunk's statements."""

    plan: ScanPlan
    scope: Scope
    needs: set[str] = field(default_factory=set)
    of_chunk: dict[str, str] = field(default_factory=dict)
    """The names of a chunk's part of inputs and of what is derived from them."""
    locals: dict[str, tuple[Dims, Level]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.taken = set(self.scope.names)
        self.last = {state.name: self._fresh(f"{state.name}_last") for state in self.scope.spec.states}
        """The names of the states before the chunk."""
        self.every = {result.name: self._fresh(f"{result.name}_all") for result in self.plan.results}

    def lines(self) -> Iterator[str]:
        """What is done for each chunk."""
        form = self.plan.form
        statements = [line for part in form.update for line in self._part(part)]
        statements += [self._assign(assign) for assign in form.outputs]
        if self.of_chunk:
            rows = ", ".join(f"{name}[:, chunk]" for name in self.of_chunk)
            yield f"{', '.join(self.of_chunk.values())} = {rows}"
        yield from statements
        yield from (f"{self.every[result.name]}.append({result.name})" for result in self.plan.results)
        yield from (f"{last} = {name}[:, -1]" for name, last in self.last.items())

    def _part(self, part: Assign | Scan) -> Iterator[str]:
        if isinstance(part, Assign):
            yield self._local(part)
            return
        name = part.state.name
        operands = [self.last[name]]
        kind: str = part.kind
        if part.kind == "affine" and part.factor == ONE:
            kind = "sum"
        elif part.kind != "phase" and not part.is_shift:
            operands.append(self._by_token(part.factor, part.state.dims))
        operands.append(term := self._whole(part.term, part.state.dims))
        if part.kind == "maximum" and self._print(part.term).level == "number":
            operands.append("tied=1.0")  # A bound that is a number gets no gradient.
        yield f"{name} = {term}" if part.is_shift else f"{name} = scans.{kind}_scan({', '.join(operands)})"
        if name in self.plan.form.previous:
            yield f"{name}_prev = scans.before({name}, {self.last[name]})"

    def _local(self, assign: Assign) -> str:
        code = self._print(assign.value)
        self.locals[assign.target] = (code.dims, code.level)
        return f"{assign.target} = {code.text}"

    def _assign(self, assign: Assign) -> str:
        """A statement of the output: whole where it is a result."""
        if assign.target not in self.plan.form.results:
            return self._local(assign)
        self.locals[assign.target] = (assign.value.dims, "token")
        return f"{assign.target} = {self._whole(assign.value, assign.value.dims)}"

    def _by_token(self, expr: Expr, dims: Dims) -> str:
        """`expr` as something that broadcasts to [batch, tokens, HV, *dims]."""
        code = self._print(expr)
        return self._number(code) if code.level == "number" else self._printer().aligned(code, dims).text

    def _whole(self, expr: Expr, dims: Dims) -> str:
        """`expr` as [batch, tokens, HV, *dims]."""
        code = self._print(expr)
        if code.level == "token" and set(code.dims) == set(dims):
            return self._printer().aligned(code, dims).text
        shape = ("args.batch", "chunk.stop - chunk.start", "args.HV", *(f"args.{dim}" for dim in dims))
        text = self._number(code) if code.level == "number" else f"({self._printer().aligned(code, dims).text})"
        return f"{text}.expand({', '.join(shape)})"

    def _number(self, code: Code) -> str:
        return f"torch.tensor({code.text}, dtype=args.dtype, device=args.device)"

    def _print(self, expr: Expr) -> Code:
        printer = self._printer()
        code = printer.print(expr)
        self.needs |= printer.needs
        return code

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
        if self.scope.level(expr) != "token":
            return self.scope.code(expr)
        if expr.name not in self.of_chunk:
            self.of_chunk[expr.name] = self._fresh(f"{expr.name}_n")
        return Code(self.of_chunk[expr.name], expr.dims, "token")

    def _fresh(self, wanted: str) -> str:
        while wanted in self.taken:
            wanted += "_"
        self.taken.add(wanted)
        return wanted
