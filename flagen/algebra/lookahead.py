"""Rows of the token before, each as a row of its own token: written at its end, with a number of the next one.

    S = a (S + x outer(k_prev, v_prev))        o = S.T @ q

where `k_prev` and `v_prev` are shifts, states that are nothing but what k and v were a token ago. What token t+1 adds
before it decays the state is added behind all that token t does, too:

    S' = a S'        o = S'.T @ q        S' = S' + x_next outer(k, v)

S' is what S is about to be decayed from. So S' starts from S + x outer(k_prev, v_prev) with the x of the first token,
and with an x_next of 0 behind the last token it ends as S does. Of the next token nothing but a number is needed: k and
v are read once, where they are, and no stage hands them on a token later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from flagen.algebra.find_scan import scan_form
from flagen.algebra.monomials import OutsideNormalForm
from flagen.algebra.normal_form import NormalForm
from flagen.algebra.orient import normal_form
from flagen.algebra.scan import ScanForm
from flagen.algebra.stage_results import declared_in, fresh
from flagen.algebra.staged import Ahead, Stage, StagedForm
from flagen.spec.model import (
    Assign,
    Binary,
    Contract,
    Expr,
    Interval,
    Name,
    Outer,
    StateRead,
    Transpose,
    walk,
)
from flagen.spec.printer import to_source


def with_rows_ahead(form: StagedForm) -> StagedForm:
    """`form`, with rows of the token before as rows of their own tokens where its last stage is one of a matrix that
    takes such; else as it is."""
    return _Retimed(form).form() or form


@dataclass(frozen=True)
class _Shift:
    """A stage that hands on a vector a token later, and the vector."""

    stage: Stage
    source: Name

    @property
    def result(self) -> str:
        return self.stage.results[0].name

    @property
    def state(self) -> str:
        return self.stage.states[0].name


class _Retimed:
    """The stages of `whole` with the last one retimed."""

    def __init__(self, whole: StagedForm) -> None:
        self.whole, self.stage = whole, whole.stages[-1]
        self.declared = {decl.name: decl for decl in (*whole.spec.inputs, *whole.passed)}

    def form(self) -> StagedForm | None:
        """All stages; None where the last one is none that can be retimed."""
        form = self._normal_form()
        if form is None:
            return None
        (step,), (write,) = form.steps, form.steps[0].writes
        factors = list(_factors(write.v))
        if step.decay is None or step.decay.factor not in factors:
            return None
        factors.remove(step.decay.factor)
        numbers, vectors = ([x for x in factors if len(x.dims) == count] for count in (0, 1))
        shifts = [shift for vector in (write.k, *vectors) if (shift := self._shift(vector)) is not None]
        if len(numbers) != 1 or len(vectors) != 1 or len({shift.state for shift in shifts}) != 2:
            return None
        (number,), (key, value) = numbers, shifts
        if not isinstance(number, Name) or not self._is_of_tokens(number):
            return None
        return self._retimed(form, key, value, number)

    def _normal_form(self) -> NormalForm | None:
        """That of the last stage, where a token is a decay, a row that is written, and a read."""
        if self.stage.is_scan or len(self.stage.states) != 1:
            return None
        try:
            form = normal_form(self.stage.spec)
        except OutsideNormalForm:
            return None
        rows = [(step.deltas, len(step.writes)) for step in form.steps]
        reads = [(read.side, read.position) for read in form.reads]
        plain = form.decay_kind == "scalar" and not form.transposed and rows == [((), 1)]
        return form if plain and reads == [("left", form.end)] else None

    def _is_of_tokens(self, tensor: Name) -> bool:
        """Whether a name is that of an input, or of what a stage gives, of which all heads of states have one."""
        if tensor.kind != "input":
            return False
        return self.declared[tensor.name].heads == "HV" or not self.whole.spec.has_value_heads

    def _shift(self, given: Expr) -> _Shift | None:
        """The stage that gives a vector a token later than it is there, to no other stage."""
        if not isinstance(given, Name):
            return None
        stage = next((s for s in self.whole.stages if [result.name for result in s.results] == [given.name]), None)
        takers = [each for each in self.whole.stages if given.name in {decl.name for decl in each.spec.inputs}]
        if stage is None or not stage.is_scan or len(stage.states) != 1 or takers != [self.stage]:
            return None
        form, (state,) = scan_form(stage.spec, stage.outputs), stage.states
        (scan,), source = form.scans, form.scans[0].term
        if not scan.is_shift or state.init != 0 or _given_by(form) != StateRead(state.name, True, state.dims):
            return None
        return _Shift(stage, source) if isinstance(source, Name) and self._is_of_tokens(source) else None

    def _retimed(self, form: NormalForm, key: _Shift, value: _Shift, number: Name) -> StagedForm | None:
        """All stages; None where the last one takes what shifts hand on for something else, too."""
        whole, handed_on = self.whole, {shift.result: shift.source.name for shift in (key, value)}
        before = self.declared[number.name]
        taken = declared_in(whole.spec) | self.declared.keys() | {each.target for each in self.stage.spec.output}
        following = replace(
            before,
            name=fresh(f"{number.name}_next", taken),
            range=Interval(min(before.range.low, 0.0), max(before.range.high, 0.0)),
            description=f"`{number.name}` of the next token, 0 behind the last",
        )
        row = Binary("*", Name(following.name, "input"), Outer(key.source, value.source))
        update, output = _at_the_end(form, row)
        read = {node.name for each in (*update, output) for node in walk(each.value) if isinstance(node, Name)}
        if not read.isdisjoint(handed_on):
            return None
        read |= {node.name for each in self.stage.spec.derived for node in walk(each.value) if isinstance(node, Name)}
        inputs = [self.declared[handed_on.get(decl.name, decl.name)] for decl in self.stage.spec.inputs]
        inputs = [decl for decl in dict.fromkeys(inputs) if decl is not before or number.name in read]
        spec = replace(self.stage.spec, inputs=(*inputs, following), update=update, output=(output,))
        stage = replace(self.stage, spec=spec)
        others = (each for each in whole.stages[:-1] if each not in (key.stage, value.stage))
        rows: dict[str, Expr] = {shift.state: shift.source for shift in (key, value)}
        last_key, last_value = (StateRead(shift.state, False, shift.source.dims) for shift in (key, value))
        start = Binary("+", _state_of(form), Binary("*", number, Outer(last_key, last_value)))
        return replace(
            whole,
            stages=(*others, stage),
            passed=(*(decl for decl in whole.passed if decl.name not in handed_on), following),
            ahead=Ahead(form.state.name, start, number.name, following.name, key.state, value.state, rows),
        )


def _at_the_end(form: NormalForm, row: Expr) -> tuple[tuple[Assign, ...], Assign]:
    """A token's update and output: a decay, then the read, then `row` is written."""
    (step,), (read,), state = form.steps, form.reads, _state_of(form)
    assert step.decay is not None
    update = (
        _assign(state.name, Binary("*", step.decay.factor, state), to_state=True),
        _assign(read.name, Contract(Transpose(state), read.q)),
        _assign(state.name, Binary("+", state, row), to_state=True),
    )
    return update, _assign("o", form.output)


def _state_of(form: NormalForm) -> StateRead:
    return StateRead(form.state.name, False, form.state.dims)


def _given_by(form: ScanForm) -> Expr:
    """What a scan form gives, its locals written out."""
    named = {part.target: part.value for part in form.update if isinstance(part, Assign)}
    value = form.outputs[-1].value
    while isinstance(value, Name) and value.kind == "local":
        value = named[value.name]
    return value


def _factors(expr: Expr) -> Iterator[Expr]:
    if isinstance(expr, Binary) and expr.op == "*":
        yield from (*_factors(expr.left), *_factors(expr.right))
    else:
        yield expr


def _assign(target: str, value: Expr, *, to_state: bool = False) -> Assign:
    return Assign(target, value, to_state, f"{target} = {to_source(value)}", value.span)
