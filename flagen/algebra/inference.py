"""The stages of calls of which nobody asks for gradients: rows are turned by the stage that takes them.

A stage of angles gives the stage behind it what it turns: rows, of which each is written to memory and read again. That
serves the gradients, whose kernels take the keys in blocks. A kernel that has whole rows turns them itself, and of the
stage before it needs the angles alone.

    phi = fraction(phi + x)                          phi = fraction(phi + x)
    reader = rotate(q, phi), turned = rotate(k, phi)
    S = exp(g) * S + outer(turned, v)                S = exp(g) * S + outer(rotate(k, phi), v)
    o = S.T @ reader                                 o = S.T @ rotate(q, phi)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Literal

from flagen.algebra.find_scan import scan_form
from flagen.algebra.rewrite import map_children
from flagen.algebra.stage_cutter import Cutter
from flagen.algebra.stage_results import Results, Wanted, declared_in, fresh
from flagen.algebra.staged import Result, Stage, StagedForm, flat
from flagen.spec.model import (
    Assign,
    Contract,
    Derived,
    Expr,
    Following,
    Input,
    Interval,
    Name,
    Param,
    Repeat,
    Rotate,
    Spec,
    Statement,
    StateRead,
    dims_in,
    walk,
)
from flagen.spec.printer import to_source


def inference_form(form: StagedForm) -> StagedForm | None:
    """The stages of `form` with rows that are turned where they are taken; None where no stage turns any for the last
    one."""
    found = (_Turned(form, stage).form() for stage in form.stages[:-1] if stage.is_scan)
    return next((other for other in found if other is not None), None)


class _Turned:
    """The last stage of `whole` with what `stage` turns."""

    def __init__(self, whole: StagedForm, stage: Stage) -> None:
        self.whole, self.stage, self.last = whole, stage, whole.stages[-1]
        self.taken = declared_in(whole.spec) | {decl.name for decl in whole.passed} | _assigned(self.last.spec)
        self.angles: dict[Expr, Name] = {}

    def form(self) -> StagedForm | None:
        """All stages; None where one takes more of this one than what the last one can turn."""
        names = {result.name for result in self.stage.results}
        elsewhere = (stage for stage in self.whole.stages if stage is not self.last)
        if self.last.is_scan or self.whole.output is not None or self.whole.given(self.stage):
            return None
        if any(decl.name in names for stage in elsewhere for decl in stage.spec.inputs):
            return None
        turned = {name: self._with_angles(value) for name, value in self._results().items()}
        if not self.angles or any(isinstance(node, StateRead) for value in turned.values() for node in walk(value)):
            return None
        angles, last = self._stage_of_angles(), self._last(turned)
        changed = {self.stage.spec.name: angles, self.last.spec.name: last}
        ahead = self.whole.ahead
        if ahead is not None:
            ahead = replace(ahead, shifts={state: _written(row, turned) for state, row in ahead.shifts.items()})
        return replace(
            self.whole,
            stages=tuple(changed.get(stage.spec.name, stage) for stage in self.whole.stages),
            passed=(*(decl for decl in self.whole.passed if decl.name not in names), *self._given),
            ahead=ahead,
        )

    def _results(self) -> dict[str, Expr]:
        """What the stage gives in terms of the call's inputs and its states."""
        form = scan_form(self.stage.spec, self.stage.outputs)
        local = {part.target: part.value for part in form.update if isinstance(part, Assign)}
        local |= {assign.target: assign.value for assign in form.outputs}
        return {result.name: _opened(local[result.name], local) for result in self.stage.results}

    # ----------------------------------------------------------------------------------------------------------- angles

    def _with_angles(self, expr: Expr) -> Expr:
        """`expr` with angles that depend on the stage's states as something that it gives."""
        if isinstance(expr, Rotate) and any(isinstance(node, StateRead) for node in walk(expr.angle)):
            return replace(expr, value=self._with_angles(expr.value), angle=self._angle(expr.angle))
        return map_children(expr, self._with_angles)

    def _angle(self, expr: Expr) -> Expr:
        if any(isinstance(node, StateRead) and node.previous for node in walk(expr)):
            return expr
        if expr not in self.angles:
            name = fresh(f"{self.stage.states[0].name}_angle", self.taken)
            self.angles[expr] = Name(name, "input", expr.dims, expr.span)
        return self.angles[expr]

    @cached_property
    def _given(self) -> tuple[Input, ...]:
        """The angles as inputs of the last stage: in bfloat16 ten turns are no angle."""
        heads: Literal["H", "HV"] = "HV" if self.whole.spec.has_value_heads else "H"
        return tuple(
            Input(name.name, name.dims, heads, "token", Interval(), f"`{to_source(angle)}`", angle.span, wide=True)
            for angle, name in self.angles.items()
        )

    def _stage_of_angles(self) -> Stage:
        results = Results(self.whole.spec)
        results.scans = {state.name for stage in self.whole.stages if stage.is_scan for state in stage.states}
        wanted = [
            Wanted(Result(name.name, name.dims, wide=True), angle, results.flow.end)
            for angle, name in self.angles.items()
        ]
        states = [state.name for state in self.stage.states]
        return _called_otherwise(Cutter(results, states).stage(wanted, has_output=False))

    # --------------------------------------------------------------------------------------------------- the last stage

    def _last(self, turned: Mapping[str, Expr]) -> Stage:
        """The stage that turns its rows, each by the name that it had."""
        spec, whole = self.last.spec, self.whole.spec
        rows, stands = self._rows(turned)
        update = tuple(_stated_otherwise(statement, stands) for statement in spec.update)
        output = tuple(_assigned_otherwise(assign, stands) for assign in spec.output)
        used = _names((*(row.value for row in rows), *(assign.value for assign in (*flat(update), *output))))
        derived = list[Derived]()
        for decl in reversed(whole.derived):
            if decl.name in used or decl in spec.derived:
                derived.insert(0, decl)
                used |= _names((decl.value,))
        declared = {decl.name for decl in spec.inputs}
        inputs = [decl for decl in whole.inputs if decl.name in used | declared]
        inputs += [decl for decl in self._given_to_last() if decl.name not in {each.name for each in inputs}]
        params = tuple(replace(param, default=None) for param in whole.params if param.name in used)
        changed = replace(
            spec,
            inputs=tuple(inputs),
            params=params,
            derived=(*derived, *rows),
            update=update,
            output=output,
            following=tuple(_following(whole, (*inputs, *params))),
        )
        return _called_otherwise(replace(self.last, spec=changed))

    def _rows(self, turned: Mapping[str, Expr]) -> tuple[list[Derived], dict[str, Expr]]:
        """What is turned, by names, and what stands for each of `turned`. Products of rows have names, too: they are
        evaluated where their rows are, and nobody holds these until there is an output."""
        rows: list[Derived] = []
        stands: dict[str, Expr] = {}

        def named(expr: Expr) -> Expr:
            known = next((row for row in rows if row.value == expr), None)
            return map_children(expr, named) if known is None else _name(known)

        for name in sorted(turned, key=lambda name: len(list(walk(turned[name])))):
            value = named(turned[name])
            for product in [node for node in walk(value) if isinstance(node, Contract) and not node.dims]:
                rows.append(_let(fresh("_".join(sorted(_names((product,)))), self.taken), product))
                value = named(value)
            if any(isinstance(node, Rotate) for node in walk(value)):
                rows.append(_let(name, value))
            stands[name] = named(value)
        return rows, stands

    def _given_to_last(self) -> Iterator[Input]:
        names = {result.name for result in self.stage.results}
        yield from (decl for decl in self.last.spec.inputs if decl.name not in names)
        yield from self._given


def _let(name: str, value: Expr) -> Derived:
    return Derived(name, "let", value, "token", Interval(), value.span)


def _name(decl: Derived) -> Name:
    return Name(decl.name, "derived", decl.value.dims, decl.value.span)


def _called_otherwise(stage: Stage) -> Stage:
    """A stage beside the one that serves gradients, too."""
    spec = stage.spec
    title = f"{spec.title}, where nobody asks for gradients"
    return replace(
        stage, spec=replace(spec, name=f"{spec.name}_forward", class_name=f"{spec.class_name}Forward", title=title)
    )


def _following(whole: Spec, tensors: Iterable[Input | Param]) -> Iterator[Following]:
    """The sizes that follow from others where there are tensors of all of them."""
    known = {dim for decl in tensors for dim in decl.dims}
    return (entry for entry in whole.following if {entry.name, *dims_in(entry.value)} <= known)


def _opened(expr: Expr, local: Mapping[str, Expr]) -> Expr:
    """`expr` with its locals written out."""
    if isinstance(expr, Name) and expr.kind == "local":
        return _opened(local[expr.name], local)
    return map_children(expr, lambda child: _opened(child, local))


def _written(expr: Expr, stands: Mapping[str, Expr]) -> Expr:
    """`expr` with what stands for what was given."""
    if isinstance(expr, Name) and expr.name in stands:
        return stands[expr.name]
    return map_children(expr, lambda child: _written(child, stands))


def _stated_otherwise(statement: Statement, stands: Mapping[str, Expr]) -> Statement:
    """The same with what stands for what was given, in micro-steps too."""
    if isinstance(statement, Repeat):
        return replace(statement, body=tuple(_assigned_otherwise(assign, stands) for assign in statement.body))
    return _assigned_otherwise(statement, stands)


def _assigned_otherwise(assign: Assign, stands: Mapping[str, Expr]) -> Assign:
    """A statement with what stands for what was given."""
    value = _written(assign.value, stands)
    return replace(assign, value=value, text=f"{assign.target} = {to_source(value)}")


def _assigned(spec: Spec) -> set[str]:
    return {assign.target for assign in (*flat(spec.update), *spec.output)}


def _names(exprs: Iterable[Expr]) -> set[str]:
    return {node.name for expr in exprs for node in walk(expr) if isinstance(node, Name)}
