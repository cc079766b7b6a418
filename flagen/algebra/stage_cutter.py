"""The stage of a state, or of some: what their update and the output are, with inputs for what these use of others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from flagen.algebra.flow import MixedStates, OutsideStages, Place
from flagen.algebra.rewrite import map_children
from flagen.algebra.stage_results import Results, Wanted, fresh
from flagen.algebra.staged import Result, Stage, flat, in_words
from flagen.diagnostics import Span
from flagen.functions import FUNCTIONS
from flagen.spec.model import (
    Assign,
    Call,
    Contract,
    Derived,
    Dims,
    Expr,
    Following,
    Index,
    Input,
    Interval,
    Name,
    Negate,
    Over,
    Param,
    Repeat,
    Rotate,
    Spec,
    Statement,
    StateRead,
    Transpose,
    dims_in,
    sizes_in,
    walk,
)
from flagen.spec.printer import to_source
from flagen.spec.sizes import origins_of


class Cutter:
    """Rewrites statements for the stage of `states`: what they use of others becomes an input. Without `states`, for
    what is evaluated behind all stages.

    is_log: whether an exponential is a decay, of which the stage wants to know the exponent.
    """

    def __init__(
        self, results: Results, states: Sequence[str], is_log: Callable[[Expr], bool] = lambda _: False
    ) -> None:
        self.results, self.flow, self.is_log = results, results.flow, is_log
        self.states = frozenset(states)
        self.declared = tuple(replace(results.state(name), shape=()) for name in states)  # Stages know matrices only.
        self.exponents: list[tuple[Expr, set[str]]] = []
        self.in_exponent = False
        self.in_angle = False
        self.kept: dict[Place, Assign] = {}

    # --------------------------------------------------------------------------------------------------------- the spec

    def stage(self, wanted: Sequence[Wanted] = (), *, has_output: bool = True) -> Stage:
        """The stage of these states, with the results that are wanted of it, and with the output of the whole spec."""
        for place, assign in self.flow.statements.items():
            if assign.to_state and assign.target in self.states:
                self._keep(place)
        is_scan = self.states <= self.results.scans
        captured: dict[int, list[Assign]] = {}
        output = []
        for each in wanted:
            value = self.cut(each.expr, each.place)
            if not self.flow.is_stable(each.expr, each.place, self.flow.end):
                local = fresh(f"{each.result.name}_here", self.results.taken)
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
        """Rename locals of this stage that are called as a result is: later stages want the whole of a local of which
        this one computes a part. Returns the output with these names."""
        results = {each.result.name for each in self.results.every()}
        met = sorted({assign.target for assign in self.kept.values() if not assign.to_state} & results)
        names = {name: fresh(f"{name}_here", self.results.taken) for name in met}
        for place, assign in self.kept.items():
            target = assign.target if assign.to_state else names.get(assign.target, assign.target)
            self.kept[place] = _with_locals(assign, target, names)
        for number, assigns in captured.items():
            captured[number] = [_with_locals(assign, assign.target, names) for assign in assigns]
        return [_with_locals(assign, assign.target, names) for assign in output]

    def _output(self) -> Iterator[Assign]:
        (*_, last) = self.results.spec.output
        yield _assign("o", self.cut(last.value, self.flow.end), last)

    def _spec(self, captured: dict[int, list[Assign]], output: list[Assign], wide: frozenset[str]) -> Spec:
        spec, names = self.results.spec, [state.name for state in self.declared]
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
        params = tuple(param for param in spec.params if param.name in used)
        following = self._following([*own, *given], params, used)
        sizing = list(self._sizing([*own, *given], params, used, following))
        own += [decl for decl in sizing if isinstance(decl, Input)]
        kept = {decl.name for decl in (*params, *sizing)}
        steps = any(isinstance(statement, Repeat) for statement in update)
        return replace(
            spec,
            name=f"{spec.name}_{'_to_'.join(dict.fromkeys((names[0], names[-1]))).lower()}",
            title=f"{spec.title or spec.name}, the stage of {in_words(names)}",
            paper="",
            class_name=f"{spec.class_name}{''.join(names)}",
            states=self.declared,
            inputs=(*own, *given),
            # The function of the whole knows the defaults; they may name dims that a stage does not have.
            params=tuple(replace(param, default=None) for param in spec.params if param.name in kept),
            steps=spec.steps if steps else None,
            derived=derived,
            update=tuple(update),
            output=(*before, *output),
            wide_outputs=wide,
            following=following,
            pairs={dim: pair for dim, pair in spec.pairs.items() if any(dim in each.dims for each in self.declared)},
        )

    def _wanted_dims(self, used: set[str]) -> set[str]:
        """The dims that the stage names, and those of its states."""
        return used & set(self.results.spec.dims) | {dim for state in self.declared for dim in state.dims}

    def _following(self, inputs: Sequence[Input], params: Sequence[Param], used: set[str]) -> tuple[Following, ...]:
        """The sizes that follow from others in the stage, too: of what it has no tensor of, and where it has tensors of
        several sizes that belong together. What one tensor alone has the size of, is that size."""
        spec = self.results.spec
        known, wanted = _dims_of(*inputs, *params), self._wanted_dims(used)
        origins = {name: found or ("",) for name, found in origins_of(spec.following).items()}
        met = Counter(origin for dim in known | wanted for origin in origins.get(dim, (dim,)))
        of_heads = self._sizes_of_heads()
        needed = {dim for dim in wanted - known if dim in origins}
        needed |= {dim for dim in known & origins.keys() - of_heads if any(met[origin] > 1 for origin in origins[dim])}
        found: list[Following] = []
        for entry in reversed(spec.following):
            if entry.name in needed:
                if entry.name in of_heads:
                    reason = f"the size of {entry.name} follows from H, and stages have one number of heads"
                    raise OutsideStages(reason, entry.value.span)
                found.append(entry)
                needed |= {*dims_in(entry.value)} - known
        return tuple(reversed(found))

    def _sizes_of_heads(self) -> set[str]:
        """The dims whose sizes follow from H where HV is another number: a stage gets every input for all of HV."""
        spec = self.results.spec
        found: set[str] = set()
        if len({decl.heads for decl in spec.inputs}) > 1:
            for entry in spec.following:
                if not found.union("H").isdisjoint(sizes_in(entry.value)):
                    found.add(entry.name)
        return found

    def _sizing(
        self, inputs: Sequence[Input], params: Sequence[Param], used: set[str], following: Sequence[Following]
    ) -> Iterator[Input | Param]:
        """More inputs, and params where no input will do, from whose shapes a call knows the sizes of dims that the
        stage names and no tensor of it has: it has params alone, adds numbers to a state, names a dim of another state,
        or has one that follows from it."""
        spec = self.results.spec
        known = _dims_of(*inputs, *params) | {entry.name for entry in following}
        wanted = self._wanted_dims(used).union(*(dims_in(entry.value) for entry in following))
        more: list[Input | Param] = []
        for dim in sorted(wanted - known):
            given: list[Input | Param] = [decl for decl in spec.inputs if dim in decl.dims]
            sized = given or [param for param in spec.params if dim in param.dims and param.default is None]
            if sized and dim not in known:
                more.append(_narrowest(sized))
                known |= set(more[-1].dims)
        yield from more
        if not inputs and not any(isinstance(decl, Input) for decl in more):
            yield _narrowest(spec.inputs)

    def _given_inputs(self, used: set[str]) -> Iterator[Input]:
        """What of `used` earlier stages give, in the order of these."""
        return (self.results.as_input(each) for each in self.results.every() if each.result.name in used)

    # --------------------------------------------------------------------------------------------------------- cutting

    def cut(self, expr: Expr, place: Place) -> Expr:
        """`expr` at `place` in terms of what this stage has, and of what others give it."""
        states = self.flow.states_in(expr, place)
        if not self.states and not states:
            return self.results.inlined(expr, place)
        if states <= self.states:
            self._keep(*(definition.place for definition in self.flow.locals_in(expr, place)))
            return expr
        if isinstance(expr, Negate):
            return Negate(self.cut(expr.value, place), expr.span)
        if not self.states & states and (given := self._given(expr, place)) is not None:
            return given
        if (definition := self.flow.definition(expr, place)) is not None:
            if not self.states:  # Behind the stages there are no statements.
                return self.cut(definition.value, definition.place)
            self._keep(definition.place)
            return expr
        if isinstance(expr, StateRead):
            raise MixedStates(f"{expr.name} is used whole, not read by a vector", expr.span)
        if isinstance(expr, Rotate):
            return replace(expr, value=self.cut(expr.value, place), angle=self._cut_angle(expr.angle, place))
        if isinstance(expr, Call) and FUNCTIONS[expr.function].periodic:
            return replace(expr, args=tuple(self._cut_angle(arg, place) for arg in expr.args))
        return map_children(expr, lambda child: self.cut(child, place))

    def _cut_angle(self, expr: Expr, place: Place) -> Expr:
        """The same of an angle, of which whole turns do not count."""
        outside, self.in_angle = self.in_angle, True
        angle = self.cut(expr, place)
        self.in_angle = outside
        return angle

    def _keep(self, *places: Place) -> None:
        for place in places:
            if place not in self.kept:
                assign = self.kept[place] = self.flow.statements[place]
                value = self.cut(assign.value, place)
                if value != assign.value:
                    self.kept[place] = _assign(assign.target, value, assign)

    def _given(self, expr: Expr, place: Place) -> Expr | None:
        """`expr`, which these states have no part in, as something that an earlier stage gives; None if only parts of
        it can be."""
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
        if producers <= self.results.scans and (len(value.dims) < 2 or isinstance(value, StateRead)):
            last = max(producers, key=self.results.order.index)
            name = "log_decay" if self.in_exponent else name
            return self.results.want(last, value, at, wide=self._wants_wide(value), name=name)
        state = self.flow.read_by(value, at)
        return None if state is None else self.results.want(state, value, at, wide=True, name=name)

    def _wants_wide(self, value: Expr) -> bool:
        """Rows of a matrix state are rounded to the dtype of the inputs anyway; numbers, decays, angles and scans are
        not. A shift hands on what it gets, as exactly as it is wanted."""
        exact = self.states <= self.results.scans
        if self.states and self.states <= self.results.shifts:
            exact = any(each.result.wide for name in self.states for each in self.results.wanted[name])
        return exact or self.in_exponent or self.in_angle or not value.dims

    def _is_of_whole_token(self, expr: Expr, place: Place) -> bool:
        """Whether `expr`, in a `repeat`, is the same in every micro-step."""
        if self.flow.states_in(expr, place) & self.results.in_steps:
            if isinstance(expr, StateRead) or self.flow.read_by(expr, place) is not None:
                reason = "what changes from micro-step to micro-step has another state depend on it"
                raise OutsideStages(reason, expr.span)
            return False
        spec = self.results.spec
        varying: tuple[Input | Derived, ...] = (*spec.inputs, *spec.derived)
        of_steps = {decl.name for decl in varying if decl.per == "step"}
        inner = any(len(definition.place) > 1 for definition in self.flow.locals_in(expr, place))
        return not inner and not any(isinstance(node, Name) and node.name in of_steps for node in walk(expr))


class Trial(Cutter):
    """What the stage of states is like, whatever other states give it, read by a vector made up for that."""

    def __init__(self, results: Results, states: Sequence[str]) -> None:
        super().__init__(results, states)
        self.inputs: dict[str, Input] = {}

    def _given(self, expr: Expr, place: Place) -> Expr | None:
        value, _ = self.flow.opened(expr, place)
        if isinstance(value, Call) and value.function == "exp":
            return replace(value, args=(self._anything(value.dims, value.span),))
        if len(value.dims) > 1 and not isinstance(value, StateRead):
            return None
        return self._anything(expr.dims, expr.span)

    def _output(self) -> Iterator[Assign]:
        state = self.declared[-1]
        here = StateRead(state.name, False, state.dims, state.span)
        key = state.dims[:1]
        yield _assign("o", Contract(Transpose(here), self._anything(key, state.span)) if len(state.dims) == 2 else here)

    def _anything(self, dims: Dims, span: Span) -> Name:
        name = fresh(f"given{len(self.inputs)}", set(self.results.taken))
        self.inputs[name] = Input(name, dims, "HV", "token", Interval(), "", span)
        return Name(name, "input", dims, span)

    def _given_inputs(self, used: set[str]) -> Iterator[Input]:
        return (decl for decl in self.inputs.values() if decl.name in used)


def _dims_of(*tensors: Input | Param) -> set[str]:
    return {dim for decl in tensors for dim in decl.dims}


T = TypeVar("T", bound=Input | Param)


def _narrowest(declared: Sequence[T]) -> T:
    """What has the fewest dims."""
    return min(declared, key=lambda decl: len(decl.dims))


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
    """Every name in what is assigned, those of dims among them."""
    return {name for assign in assigns for name in _named(assign.value)}


def _named(expr: Expr) -> Iterator[str]:
    for node in walk(expr):
        match node:
            case Name(name):
                yield name
            case Over(_, source, target):
                yield from (source, target)
            case Index(dim):
                yield dim


def _with_derived(derived: Sequence[Derived], used: set[str]) -> tuple[Derived, ...]:
    """Those of `derived` that are used, directly or by one another; `used` then has what they use, too."""
    kept: list[Derived] = []
    for decl in reversed(derived):
        if decl.name in used:
            kept.insert(0, decl)
            used |= set(_named(decl.value))
    return tuple(kept)


def _name_of(expr: Expr) -> str:
    """What to call the value of an expression: after what it is made of."""
    parts = [
        f"{node.name}_prev" if isinstance(node, StateRead) and node.previous else node.name
        for node in walk(expr)
        if isinstance(node, StateRead | Name)
    ]
    function = f"{expr.function}_" if isinstance(expr, Call) else "rotated_" if isinstance(expr, Rotate) else ""
    return f"{function}{'_'.join(dict.fromkeys(parts))}"
