"""A recurrence of several states as stages: recurrences of one state each, with inputs that earlier ones give.

The states of a spec form a graph: a state comes after those that its update uses. Where that graph has no cycle, each
is the state of a *stage*, a spec of the same language. What it uses of earlier states reaches it as one more input:
what is read of a matrix, or whatever the update makes of vectors. For example

    z = logaddexp(z, k)
    S = exp(z_prev - z) * S + outer(exp(k - z), v)
    o = S.T @ q

has a stage of z that gives `log_decay = z_prev - z` and `exp_k_z = exp(k - z)`, and then, with these for inputs, one of
S: `S = exp(log_decay) * S + outer(exp_k_z, v)`. An output that takes several states is evaluated behind all stages.

A stage's own chunk form, adjoint and kernels are those of any spec. That the stages together are the recurrence is
proved by `flagen.algebra.staged_proof`; gradients go back through them by the chain rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from flagen.algebra.flow import Flow, OutsideStages, Place
from flagen.algebra.monomials import OutsideNormalForm
from flagen.algebra.orient import normal_form
from flagen.algebra.rewrite import map_children
from flagen.algebra.scan import OutsideScan, scan_form
from flagen.algebra.staged import Result, Stage, StagedForm, flat
from flagen.diagnostics import Span
from flagen.spec.model import (
    Assign,
    Binary,
    Call,
    Contract,
    Derived,
    Dims,
    Expr,
    Input,
    Interval,
    Name,
    Param,
    Repeat,
    Spec,
    State,
    Statement,
    StateRead,
    Transpose,
    children,
    walk,
)
from flagen.spec.printer import to_source
from flagen.spec.ranges import interval_of


def staged_form(spec: Spec) -> StagedForm:
    """The stages of `spec`.

    Raises:
        OutsideStages: states need each other, or one is neither a scan nor has a normal form.
    """
    return _Stages(spec).run()


@dataclass(frozen=True)
class _Wanted:
    """A result that later stages want of a state: the value of `expr` at `place`."""

    result: Result
    expr: Expr
    place: Place


class _Stages:
    """Builds stages from the last to the first: each has to give what later ones want of it."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.flow = Flow(spec)
        self.order = self.flow.order()
        self.locals = {assign.target for assign in self.flow.statements.values() if not assign.to_state} - {"o"}
        self.taken = self.locals | declared_in(spec) | {"o"}
        self.in_steps = {assign.target for place, assign in self.flow.statements.items() if len(place) > 1}
        self.wanted: dict[str, list[_Wanted]] = {name: [] for name in self.order}
        self.scans: set[str] = set()
        for name in self.order:
            self._classify(name)

    def _classify(self, name: str) -> None:
        """Find out whether a state is a matrix with a normal form or a scan, whatever it gets from other states."""
        trial = _Trial(self, name).stage().spec
        try:
            normal_form(trial)
            return
        except OutsideNormalForm as outside:
            why: OutsideNormalForm | OutsideScan = outside
        try:
            scans = scan_form(trial).scans
        except OutsideScan as outside:
            if len(self.state(name).dims) != 2:
                why = outside
        else:
            if not any(scan.low_rank for scan in scans):
                self.scans.add(name)
                return
        raise _no_chunk_form(name, why)

    def state(self, name: str) -> State:
        return next(state for state in self.spec.states if state.name == name)

    def run(self) -> StagedForm:
        value = self.spec.output[-1].value
        used = self.flow.states_in(value, self.flow.end)
        last = max(used or self.order, key=self.order.index)
        output = None
        if self._takes_others(last, value, self.flow.end):
            output = _Cutter(self, None).cut(value, self.flow.end)
        stages: list[Stage] = []
        for name in reversed(self.order):
            stages += reversed(self._stages_of(name, has_output=output is None and name == last))
        passed = tuple(self.as_input(each) for each in self.every())
        return StagedForm(self.spec, tuple(_with_names(reversed(stages))), passed, output)

    def _takes_others(self, last: str, expr: Expr, place: Place) -> bool:
        """Whether the output has more to do with other states than that a vector depends on them which `last` is read
        by."""
        expr, place = self.flow.opened(expr, place)
        states = self.flow.states_in(expr, place)
        if states <= {last} or states <= self.scans or self.flow.read_by(expr, place) == last:
            return False
        parts = children(expr)
        return not parts or any(self._takes_others(last, part, place) for part in parts)

    def _stages_of(self, name: str, *, has_output: bool) -> list[Stage]:
        """The stage of a state. A matrix of which several reads are wanted is walked once for each of them."""
        wanted = self.wanted[name]
        if not wanted and not has_output:
            raise OutsideStages(f"nothing reads {name}", self.state(name).span)
        if name in self.scans:
            return [_Cutter(self, name).stage(wanted, has_output=has_output)]
        first = [self._matrix(name, [], has_output=True)] if has_output else []
        return [*first, *(self._matrix(name, [each], has_output=False) for each in wanted)]

    def _matrix(self, name: str, wanted: Sequence[_Wanted], *, has_output: bool) -> Stage:
        """An exponential that decays the state reaches the stage by its exponent, others as they are."""
        before = {other: list(results) for other, results in self.wanted.items()}, set(self.taken)
        trial = _Cutter(self, name, is_log=lambda _: True)
        try:
            form = normal_form(trial.stage(wanted, has_output=has_output).spec)
        except OutsideNormalForm as outside:
            raise _no_chunk_form(name, outside) from None
        decays = {node.name for decay in form.decays for node in walk(decay.log) if isinstance(node, Name)}
        self.wanted, self.taken = before
        logs = [expr for expr, exponents in trial.exponents if exponents & decays]
        return _Cutter(self, name, is_log=logs.__contains__).stage(wanted, has_output=has_output)

    # --------------------------------------------------------------------------------------------------------- results

    def want(self, state: str, expr: Expr, place: Place, *, wide: bool, name: str) -> Name:
        """The value of `expr` at `place`, which `state` gives, as an input of a later stage."""
        for known in self.wanted[state]:
            same = known.expr == expr and self.flow.is_stable(expr, known.place, place)
            if same and known.result.wide == wide:
                return Name(known.result.name, "input", expr.dims, expr.span)
        # A local may give its name to what takes its place, but not to what is made of it.
        made_of = {node.name for node in walk(expr) if isinstance(node, Name)}
        free = self.taken - (set(self.locals) - made_of - {each.result.name for each in self.every()})
        result = Result(_fresh(name, free), expr.dims, wide)
        self.taken.add(result.name)
        self.wanted[state].append(_Wanted(result, expr, place))
        return Name(result.name, "input", expr.dims, expr.span)

    def every(self) -> Iterator[_Wanted]:
        return (wanted for name in self.order for wanted in self.wanted[name])

    def as_input(self, wanted: _Wanted) -> Input:
        """A result as the input that it is to later stages."""
        declared: tuple[Input | Param | Derived, ...] = (*self.spec.inputs, *self.spec.params, *self.spec.derived)
        known = {decl.name: decl.range for decl in declared}
        within = interval_of(self.inlined(wanted.expr, wanted.place), known)
        if self._falls(wanted.expr):  # Ranges know nothing of it: they do not see that both sides are one state.
            within = Interval(within.low, min(within.high, 0.0))
        text = f"`{to_source(wanted.expr)}`"
        heads: Literal["H", "HV"] = "HV" if self.spec.has_value_heads else "H"  # Each head of the states has its own.
        return Input(
            wanted.result.name, wanted.expr.dims, heads, "token", within, text, wanted.expr.span, wanted.result.wide
        )

    def inlined(self, expr: Expr, place: Place) -> Expr:
        expr, place = self.flow.opened(expr, place)
        return map_children(expr, lambda child: self.inlined(child, place))

    def _falls(self, expr: Expr) -> bool:
        """Whether `expr` is at most 0 because it is a term of a `logaddexp`, less the whole."""
        if not (isinstance(expr, Binary) and expr.op == "-" and isinstance(expr.right, StateRead)):
            return False
        name = expr.right.name
        assigned = [a.value for a in self.flow.statements.values() if a.to_state and a.target == name]
        if len(assigned) != 1 or not isinstance(assigned[0], Call) or assigned[0].function != "logaddexp":
            return False
        return not expr.right.previous and expr.left in [_as_before(term, name) for term in assigned[0].args]


class _Cutter:
    """Rewrites statements for the stage of `state`: what they use of others becomes an input. Without a `state`, for
    what is evaluated behind all stages.

    is_log: whether an exponential is a decay, of which the stage wants to know the exponent.
    """

    def __init__(self, stages: _Stages, state: str | None, is_log: Callable[[Expr], bool] = lambda _: False) -> None:
        self.stages, self.flow, self.state, self.is_log = stages, stages.flow, state, is_log
        self.exponents: list[tuple[Expr, set[str]]] = []
        self.in_exponent = False
        self.kept: dict[Place, Assign] = {}

    # --------------------------------------------------------------------------------------------------------- the spec

    def stage(self, wanted: Sequence[_Wanted] = (), *, has_output: bool = True) -> Stage:
        """The stage of this state, with the results that are wanted of it, and with the output of the whole spec."""
        assert self.state is not None
        for place, assign in self.flow.statements.items():
            if assign.to_state and assign.target == self.state:
                self._keep(place)
        is_scan = self.state in self.stages.scans
        captured: dict[int, list[Assign]] = {}
        output = []
        for each in wanted:
            value = self.cut(each.expr, each.place)
            if not self.flow.is_stable(each.expr, each.place, self.flow.end):
                local = _fresh(f"{each.result.name}_here", self.stages.taken)
                captured.setdefault(each.place[0], []).append(_assign(local, value))
                value = Name(local, "local", value.dims, value.span)
            output.append(_assign(each.result.name if is_scan else "o", value))
        results = [each.result for each in wanted]
        if has_output:
            output += self._output()
            results.append(Result("o", output[-1].value.dims, wide=False))
        wide = frozenset(a.target for a, result in zip(output, results, strict=True) if result.wide)
        output = self._apart(captured, output)
        return Stage(self._spec(captured, output, wide), tuple(results), is_scan)

    def _apart(self, captured: dict[int, list[Assign]], output: list[Assign]) -> list[Assign]:
        """Rename what this stage has of its own and a result has the name of: a local that later stages want whole, and
        that is a part of something else here. The output, with these names."""
        results = {each.result.name for each in self.stages.every()}
        met = sorted({assign.target for assign in self.kept.values() if not assign.to_state} & results)
        names = {name: _fresh(f"{name}_here", self.stages.taken) for name in met}
        for place, assign in self.kept.items():
            target = assign.target if assign.to_state else names.get(assign.target, assign.target)
            self.kept[place] = _with_locals(assign, target, names)
        for number, assigns in captured.items():
            captured[number] = [_with_locals(assign, assign.target, names) for assign in assigns]
        return [_with_locals(assign, assign.target, names) for assign in output]

    def _output(self) -> Iterator[Assign]:
        (*_, last) = self.stages.spec.output
        yield _assign("o", self.cut(last.value, self.flow.end), last)

    def _spec(self, captured: dict[int, list[Assign]], output: list[Assign], wide: frozenset[str]) -> Spec:
        spec, state = self.stages.spec, self.stages.state(self.state or "")
        update: list[Statement] = []
        for number, statement in enumerate(spec.update):
            update += captured.get(number, ())
            if isinstance(statement, Repeat):
                body = tuple(self.kept[place] for place in sorted(self.kept) if place[0] == number)
                update += [replace(statement, body=body)] if body else []
            elif (number,) in self.kept:
                update.append(self.kept[(number,)])
        before = [self.kept[place] for place in sorted(self.kept) if len(spec.update) <= place[0] < self.flow.end[0]]
        used = _names_in((*flat(update), *before, *output))
        derived = _with_derived(spec.derived, used)
        given = tuple(self._given_inputs(used))
        own = [decl for decl in spec.inputs if decl.name in used]
        own += self._sizing([*own, *given], used)
        steps = any(isinstance(statement, Repeat) for statement in update)
        return replace(
            spec,
            name=f"{spec.name}_{state.name.lower()}",
            title=f"{spec.title or spec.name}, the stage of {state.name}",
            paper="",
            class_name=f"{spec.class_name}{state.name}",
            states=(state,),
            inputs=(*own, *given),
            # The function of the whole knows the defaults; they may name dims that a stage does not have.
            params=tuple(replace(param, default=None) for param in spec.params if param.name in used),
            steps=spec.steps if steps else None,
            derived=derived,
            update=tuple(update),
            output=(*before, *output),
            wide_outputs=wide,
        )

    def _sizing(self, inputs: Sequence[Input], used: set[str]) -> Iterator[Input]:
        """More inputs, for the sake of sizes, which come from a call's tensors: of a stage of nothing but params, of a
        state that numbers are added to, and of what names the size of another state's dim."""
        spec = self.stages.spec
        known = {dim for decl in inputs for dim in decl.dims}
        known |= {dim for param in spec.params if param.name in used for dim in param.dims}
        wanted = used & set(spec.dims) | set(self.stages.state(self.state or "").dims)
        for dim in sorted(wanted - known):
            if sized := [decl for decl in spec.inputs if dim in decl.dims and dim not in known]:
                inputs = [*inputs, _narrowest(sized)]
                known |= set(inputs[-1].dims)
                yield inputs[-1]
        yield from () if inputs else (_narrowest(spec.inputs),)

    def _given_inputs(self, used: set[str]) -> Iterator[Input]:
        """What of `used` earlier stages give, in the order of these."""
        return (self.stages.as_input(each) for each in self.stages.every() if each.result.name in used)

    # --------------------------------------------------------------------------------------------------------- cutting

    def cut(self, expr: Expr, place: Place) -> Expr:
        """`expr` at `place` in terms of what this stage has, and of what others give it."""
        states = self.flow.states_in(expr, place)
        if self.state is None and not states:
            return self.stages.inlined(expr, place)
        if states <= {self.state}:
            self._keep(*(definition.place for definition in self.flow.locals_in(expr, place)))
            return expr
        if self.state not in states and (given := self._given(expr, place)) is not None:
            return given
        if (definition := self.flow.definition(expr, place)) is not None:
            if self.state is None:  # Behind the stages there are no statements.
                return self.cut(definition.value, definition.place)
            self._keep(definition.place)
            return expr
        if isinstance(expr, StateRead):
            raise OutsideStages(f"{expr.name} is used whole, not read by a vector", expr.span)
        return map_children(expr, lambda child: self.cut(child, place))

    def _keep(self, *places: Place) -> None:
        for place in places:
            if place not in self.kept:
                assign = self.kept[place] = self.flow.statements[place]
                value = self.cut(assign.value, place)
                if value != assign.value:
                    self.kept[place] = _assign(assign.target, value, assign)

    def _given(self, expr: Expr, place: Place) -> Expr | None:
        """`expr`, which this state has no part in, as something that an earlier stage gives; None if only parts of it
        can be."""
        value, at = self.flow.opened(expr, place)
        if isinstance(value, Call) and value.function == "exp" and self.is_log(value):
            self.in_exponent = True
            exponent = self.cut(value.args[0], at)
            self.in_exponent = False
            self.exponents.append((value, {node.name for node in walk(exponent) if isinstance(node, Name)}))
            return replace(value, args=(exponent,))
        if len(at) > 1 and not self._is_of_whole_token(value, at):
            return None
        at = at[:1]
        name = expr.name if isinstance(expr, Name) else _name_of(value)
        producers = self.flow.states_in(value, at)
        if producers <= self.stages.scans and (len(value.dims) < 2 or isinstance(value, StateRead)):
            last = max(producers, key=self.stages.order.index)
            name = "log_decay" if self.in_exponent else name
            return self.stages.want(last, value, at, wide=self._wants_wide(value), name=name)
        state = self.flow.read_by(value, at)
        return None if state is None else self.stages.want(state, value, at, wide=True, name=name)

    def _wants_wide(self, value: Expr) -> bool:
        """Rows of a matrix state are rounded to the dtype of the inputs anyway; numbers, decays and scans are not."""
        return self.state is None or self.state in self.stages.scans or not value.dims or self.in_exponent

    def _is_of_whole_token(self, expr: Expr, place: Place) -> bool:
        """Whether `expr`, in a `repeat`, is the same in every micro-step."""
        if self.flow.states_in(expr, place) & self.stages.in_steps:
            if isinstance(expr, StateRead) or self.flow.read_by(expr, place) is not None:
                reason = "what changes from micro-step to micro-step has another state depend on it"
                raise OutsideStages(reason, expr.span)
            return False
        spec = self.stages.spec
        varying: tuple[Input | Derived, ...] = (*spec.inputs, *spec.derived)
        of_steps = {decl.name for decl in varying if decl.per == "step"}
        inner = any(len(definition.place) > 1 for definition in self.flow.locals_in(expr, place))
        return not inner and not any(isinstance(node, Name) and node.name in of_steps for node in walk(expr))


class _Trial(_Cutter):
    """What the stage of a state is like, whatever other states give it, read by a vector made up for that."""

    def __init__(self, stages: _Stages, state: str) -> None:
        super().__init__(stages, state)
        self.inputs: dict[str, Input] = {}

    def _given(self, expr: Expr, place: Place) -> Expr | None:
        value, _ = self.flow.opened(expr, place)
        if isinstance(value, Call) and value.function == "exp":
            return replace(value, args=(self._anything(value.dims, value.span),))
        if len(value.dims) > 1 and not isinstance(value, StateRead):
            return None
        return self._anything(expr.dims, expr.span)

    def _output(self) -> Iterator[Assign]:
        state = self.stages.state(self.state or "")
        here = StateRead(state.name, False, state.dims, state.span)
        key = state.dims[:1]
        yield _assign("o", Contract(Transpose(here), self._anything(key, state.span)) if len(state.dims) == 2 else here)

    def _anything(self, dims: Dims, span: Span) -> Name:
        name = _fresh(f"given{len(self.inputs)}", set(self.stages.taken))
        self.inputs[name] = Input(name, dims, "HV", "token", Interval(), "", span)
        return Name(name, "input", dims, span)

    def _given_inputs(self, used: set[str]) -> Iterator[Input]:
        return (decl for decl in self.inputs.values() if decl.name in used)


# ------------------------------------------------------------------------------------------------------------- helpers


def _no_chunk_form(state: str, why: OutsideNormalForm | OutsideScan) -> OutsideStages:
    return OutsideStages(f"the stage of {state} has no chunk form: {why.reason}", why.span)


def _narrowest(inputs: Sequence[Input]) -> Input:
    """The input with the fewest dims."""
    return min(inputs, key=lambda decl: len(decl.dims))


def _with_names(stages: Iterable[Stage]) -> Iterator[Stage]:
    """The stages, each called differently: names are in lower case, and a state may have several stages."""
    taken: set[str] = set()
    for stage in stages:
        name = _fresh(stage.spec.name, taken)
        yield replace(stage, spec=replace(stage.spec, name=name))


def _assign(target: str, value: Expr, like: Assign | None = None) -> Assign:
    to_state, span = (like.to_state, like.span) if like else (False, value.span)
    return Assign(target, value, to_state, f"{target} = {to_source(value)}", span)


def _with_locals(assign: Assign, target: str, names: Mapping[str, str]) -> Assign:
    """`assign` to `target`, with other names for some locals."""
    value = _renamed(assign.value, names)
    return assign if (target, value) == (assign.target, assign.value) else _assign(target, value, assign)


def _renamed(expr: Expr, names: Mapping[str, str]) -> Expr:
    if isinstance(expr, Name) and expr.kind == "local":
        return replace(expr, name=names.get(expr.name, expr.name))
    return map_children(expr, lambda child: _renamed(child, names))


def _names_in(assigns: Iterable[Assign]) -> set[str]:
    """Every name in what is assigned."""
    return {node.name for assign in assigns for node in walk(assign.value) if isinstance(node, Name)}


def _with_derived(derived: Sequence[Derived], used: set[str]) -> tuple[Derived, ...]:
    """Those of `derived` that are used, directly or by one another; `used` then has what they use, too."""
    kept: list[Derived] = []
    for decl in reversed(derived):
        if decl.name in used:
            kept.insert(0, decl)
            used |= {node.name for node in walk(decl.value) if isinstance(node, Name)}
    return tuple(kept)


def declared_in(spec: Spec) -> set[str]:
    """Every name that a spec declares."""
    groups: tuple[Iterable[State | Input | Param | Derived], ...] = (
        spec.states,
        spec.inputs,
        spec.params,
        spec.derived,
    )
    declared = {decl.name for group in groups for decl in group}
    return {*declared, *spec.dims, "H", "HV", "head", *((spec.steps.symbol, spec.steps.argument) if spec.steps else ())}


def _name_of(expr: Expr) -> str:
    """What to call the value of an expression: after what it is made of."""
    parts = [
        f"{node.name}_prev" if isinstance(node, StateRead) and node.previous else node.name
        for node in walk(expr)
        if isinstance(node, StateRead | Name)
    ]
    function = f"{expr.function}_" if isinstance(expr, Call) else ""
    return f"{function}{'_'.join(dict.fromkeys(parts))}"


def _as_before(term: Expr, state: str) -> Expr:
    """A term of the update of `state` as later statements write it: the state in it is the one before the token."""
    if isinstance(term, StateRead) and term.name == state:
        return replace(term, previous=True)
    return map_children(term, lambda child: _as_before(child, state))


def _fresh(wanted: str, taken: set[str]) -> str:
    name, count = wanted, 1
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    taken.add(name)
    return name
