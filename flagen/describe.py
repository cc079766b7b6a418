"""A checked spec in words: what flagen understood, for `flagen explain --stage spec`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from flagen.spec import to_source
from flagen.spec.model import Assign, Input, Param, Repeat, Spec, State, Statement


def describe(spec: Spec) -> str:
    """Every declaration with the shape its tensor has, then the recurrence, as text."""
    return "\n".join(_lines(spec))


def _lines(spec: Spec) -> Iterator[str]:
    yield f"{spec.name}: {spec.title}" if spec.title else spec.name
    yield from filter(None, (spec.paper, spec.description))
    if spec.recurrence_of is not None:
        yield f"The recurrence is that of {spec.recurrence_of.name}:"
    yield from _section("dims", ((entry.name, to_source(entry.value)) for entry in spec.following))
    yield from _section("state", ((state.name, _state(state)) for state in spec.states))
    yield from _section("inputs", ((decl.name, _input(decl, spec)) for decl in spec.inputs))
    yield from _section("params", ((decl.name, _param(decl)) for decl in spec.params))
    if spec.steps:
        default = "required" if spec.steps.default is None else f"default {spec.steps.default}"
        yield from _section("steps", [(spec.steps.symbol, f"the argument {spec.steps.argument}, {default}")])
    for section in ("let", "decay", "gate"):
        decls = [decl for decl in spec.derived if decl.section == section]
        yield from _section(
            section, ((d.name, f"{to_source(d.value)}, {_shape(*d.value.dims)} per {d.per}") for d in decls)
        )
    yield ""
    yield "update, for every token"
    yield from (f"  {line}" for statement in spec.update for line in _statement(statement, spec))
    yield ""
    yield "output"
    yield from (f"  {statement.text}" for statement in spec.output)


def _section(title: str, rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    rows = list(rows)
    if rows:
        width = max(len(name) for name, _ in rows)
        yield ""
        yield title
        yield from (f"  {name:{width}}  {text}" for name, text in rows)


def _state(state: State) -> str:
    meaning = f"; before a token it is {state.meaning}" if state.meaning else ""
    return f"{_shape(*state.dims)} per value head, starts at {state.init:g}{meaning}"


def _input(decl: Input, spec: Spec) -> str:
    tokens = f"T * {spec.steps.symbol}" if decl.per == "step" and spec.steps else "T"
    return _with_remarks(_shape("B", tokens, decl.heads, *decl.dims), decl)


def _param(decl: Param) -> str:
    shape = _shape(*(["HV"] if decl.per_head else []), *decl.dims) if decl.is_tensor else "a number"
    default = f", default {to_source(decl.default)}" if decl.default is not None else ""
    return _with_remarks(shape + default, decl)


def _with_remarks(text: str, decl: Input | Param) -> str:
    bounded = str(decl.range) != "[-inf, inf]"
    return text + (f", in {decl.range}" if bounded else "") + (f": {decl.description}" if decl.description else "")


def _statement(statement: Statement, spec: Spec) -> Iterator[str]:
    match statement:
        case Assign(text=text):
            yield text
        case Repeat(body):
            assert spec.steps is not None, "a repeat needs steps"
            yield f"repeat {spec.steps.symbol} times"
            yield from (f"  {assign.text}" for assign in body)


def _shape(*dims: str) -> str:
    return f"[{', '.join(dims)}]"
