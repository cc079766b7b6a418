"""A recurrence of several states as stages: recurrences of one state each, or of a few that are taken at once, with
inputs that earlier ones give.

The states of a spec form a graph: a state comes after those that its update uses. Where that graph has no cycle, each
is the state of a *stage*, a spec of the same language. What it uses of earlier states reaches it as one more input:
what is read of a matrix, or whatever the update makes of vectors. For example

    z = logaddexp(z, k)
    S = exp(z_prev - z) * S + outer(exp(k - z), v)
    o = S.T @ q

has a stage of z that gives `log_decay = z_prev - z` and `exp_k_z = exp(k - z)`, and then, with these for inputs, one of
S: `S = exp(log_decay) * S + outer(exp_k_z, v)`. An output that takes several states is evaluated behind all stages.

Elementwise states are taken at once, in one stage, where they lie over the same dims and have to do with one another:
one needs the other, or they read the same input, or some vector is made of both. What is between them then stays in
registers, and the input is read once. No stage comes in between: a state joins others only where all that it needs is
there before them. So a short convolution of three states, each what the one before it was a token ago, is one stage,
which gives the rows of the matrix behind it. So are matrices that numbers mix (`flagen.algebra.registers`).

A stage's own chunk form, adjoint and kernels are those of any spec. That the stages together are the recurrence is
proved by `flagen.algebra.staged_proof`; gradients go back through them by the chain rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property

from flagen.algebra.find_scan import OutsideScan, scan_form
from flagen.algebra.flow import Flow, MixedStates, OutsideStages, Place
from flagen.algebra.monomials import OutsideNormalForm
from flagen.algebra.normal_form import NormalForm
from flagen.algebra.orient import normal_form
from flagen.algebra.ranks import RankForm, rank_form
from flagen.algebra.registers import registers_form
from flagen.algebra.solved import is_solution, solved_form
from flagen.algebra.stage_cutter import Cutter, Trial
from flagen.algebra.stage_results import Results, Wanted, fresh
from flagen.algebra.staged import Stage, StagedForm, in_words
from flagen.spec.model import Expr, Name, Spec, children, walk


def staged_form(spec: Spec) -> StagedForm:
    """The stages of `spec`.

    Raises:
        OutsideStages: states need each other, or one is neither a scan nor has a normal form.
    """
    try:
        return _Stages(spec).run()
    except OutsideStages as outside:
        mixed = Flow(spec).mixing()
        if not mixed or any(len(group) == len(spec.states) for group in mixed):
            raise
        try:
            return _Stages(spec, mixed).run()
        except OutsideStages as others:
            raise others if isinstance(outside, MixedStates) else outside from None


class _Stages:
    """Builds stages from the last to the first: each has to give what later ones want of it."""

    def __init__(self, spec: Spec, mixed: tuple[frozenset[str], ...] = ()) -> None:
        self.spec = spec
        self.results = Results(spec, mixed)
        self.flow, self.order, self.scans = self.results.flow, self.results.order, self.results.scans
        for name in self.order:
            if len(self.flow.together(name)) == 1:
                self._classify(name)
        self.groups = self._groups()
        """The states that are taken at once, in the order of their stages."""
        self.order[:] = [name for group in self.groups for name in group]

    def _classify(self, name: str) -> None:
        """Find out whether a state is a matrix with a normal form or a scan, whatever it gets from other states."""
        trial = Trial(self.results, [name]).stage().spec
        try:
            _matrix_form(trial)
            return
        except OutsideNormalForm as outside:
            why: OutsideNormalForm | OutsideScan = outside
        try:
            scans = scan_form(trial).scans
        except OutsideScan as outside:
            if len(self.results.state(name).dims) != 2:
                why = outside
        else:
            if not any(scan.low_rank for scan in scans):
                self.scans.add(name)
                self.results.shifts |= {name} if all(scan.is_shift for scan in scans) else set()
                return
        raise _no_chunk_form(name, why)

    # ---------------------------------------------------------------------------------------------------------- at once

    def _groups(self) -> list[list[str]]:
        groups: list[list[str]] = []
        for name in self.order:
            known = {state: place for place, group in enumerate(groups) for state in group}
            after = max((known[state] for state in self.flow.needs(name)), default=0)
            mixed = self.flow.together(name)
            joined = next((g for g in groups[after:] if not mixed.isdisjoint(g) or self._is_one_stage(name, g)), None)
            if joined is None:
                groups.append([name])
            else:
                joined.append(name)
        return groups

    def _is_one_stage(self, name: str, group: list[str]) -> bool:
        """Whether a state is taken at once with those of a group."""
        if not self.scans.issuperset((name, *group)) or not self._are_over_the_same(name, *group):
            return False
        if not any(self._have_to_do_with_one_another(name, other) for other in group):
            return False
        try:
            scan_form(Trial(self.results, [*group, name]).stage().spec)
        except OutsideScan:
            return False
        return True

    def _are_over_the_same(self, *names: str) -> bool:
        return len({frozenset(self.results.state(name).dims) for name in names}) == 1

    def _have_to_do_with_one_another(self, one: str, other: str) -> bool:
        both = {one, other}
        return (
            other in self.flow.uses[one]
            or not self._rows_read(one).isdisjoint(self._rows_read(other))
            or any(both <= states <= self.scans for states in self._vectors)
        )

    def _rows_read(self, name: str) -> frozenset[str]:
        """The inputs that the update of a state reads of which a token has as much as of the state."""
        dims = frozenset(self.results.state(name).dims)
        rows = {decl.name for decl in self.spec.inputs if frozenset(decl.dims) == dims}
        derived = {decl.name: decl.value for decl in self.spec.derived}
        found: set[str] = set()
        for place, assign in self.flow.statements.items():
            pending = [(assign.value, place)] if assign.to_state and assign.target == name else []
            while pending:
                expr, at = pending.pop()
                named = {node.name for node in walk(expr) if isinstance(node, Name)}
                pending += [(found.value, found.place) for found in self.flow.locals_in(expr, at)]
                pending += [(derived[let], at) for let in sorted(named & derived.keys())]
                found |= named & rows
        return frozenset(found)

    @cached_property
    def _vectors(self) -> frozenset[frozenset[str]]:
        """The states that each vector of the spec, and each number, is made of."""
        nodes = ((node, place) for place, assign in self.flow.statements.items() for node in walk(assign.value))
        return frozenset(self.flow.states_in(node, place) for node, place in nodes if len(node.dims) < 2)

    # ------------------------------------------------------------------------------------------------------- the stages

    def run(self) -> StagedForm:
        value = self.spec.output[-1].value
        used = self.flow.states_in(value, self.flow.end)
        last = max(used or self.order, key=self.order.index)
        (final,) = (group for group in self.groups if last in group)
        output = None
        if self._takes_others(final, value, self.flow.end) or self._makes_of_solution(final, value):
            output = Cutter(self.results, ()).cut(value, self.flow.end)
        stages: list[Stage] = []
        for group in reversed(self.groups):
            stages += reversed(self._stages_of(group, has_output=output is None and group == final))
        passed = tuple(self.results.as_input(each) for each in self.results.every())
        return StagedForm(self.spec, tuple(_with_names(reversed(stages))), passed, output)

    def _takes_others(self, last: Sequence[str], expr: Expr, place: Place) -> bool:
        """Whether the output has more to do with other states than that a vector depends on them which one of `last` is
        read by."""
        expr, place = self.flow.opened(expr, place)
        states = self.flow.states_in(expr, place)
        if states <= {*last} or states <= self.scans or self.flow.read_by(expr, place) in last:
            return False
        parts = children(expr)
        return not parts or any(self._takes_others(last, part, place) for part in parts)

    def _makes_of_solution(self, last: Sequence[str], expr: Expr) -> bool:
        """Whether the output is made of the solution of a system with one of `last`, which a stage gives as it is."""
        if self.flow.solution(expr, self.flow.end) is not None:
            return False
        found = self.flow.solutions_in(expr, self.flow.end)
        return any(not self.flow.states_in(matrix, at).isdisjoint(last) for matrix, at in found)

    def _stages_of(self, group: Sequence[str], *, has_output: bool) -> list[Stage]:
        """The stage of states that are taken at once. A matrix of which several reads are wanted is walked once for
        each of them."""
        wanted = [each for name in group for each in self.results.wanted[name]]
        name = group[0]
        if not wanted and not has_output:
            raise OutsideStages(f"nothing reads {name}", self.results.state(name).span)
        if name in self.scans:
            return [Cutter(self.results, group).stage(wanted, has_output=has_output)]
        first = [self._matrix(group, [], has_output=True)] if has_output else []
        return [*first, *(self._matrix(group, [each], has_output=False) for each in wanted)]

    def _matrix(self, group: Sequence[str], wanted: Sequence[Wanted], *, has_output: bool) -> Stage:
        """An exponential that decays the state reaches the stage by its exponent, others as they are. States that
        numbers mix reach their stage together."""
        before = {other: list(each) for other, each in self.results.wanted.items()}, set(self.results.taken)
        trial = Cutter(self.results, group, is_log=lambda _: True)
        spec = trial.stage(wanted, has_output=has_output).spec
        try:
            form: NormalForm | RankForm
            if is_solution(spec):
                form = solved_form(spec).operator
            else:
                form = _matrix_form(spec) if len(group) == 1 else registers_form(spec)
        except OutsideNormalForm as outside:
            raise _no_chunk_form(in_words(group), outside) from None
        decays = {node.name for log in form.log_decays for node in walk(log) if isinstance(node, Name)}
        self.results.wanted, self.results.taken = before
        logs = [expr for expr, exponents in trial.exponents if exponents & decays]
        return Cutter(self.results, group, is_log=logs.__contains__).stage(wanted, has_output=has_output)


def _matrix_form(spec: Spec) -> NormalForm | RankForm:
    """How the one state of `spec`, a matrix, is written and read.

    Raises:
        OutsideNormalForm: not in any way that has a chunk form; why it has no normal form.
    """
    try:
        return normal_form(spec)
    except OutsideNormalForm as outside:
        with suppress(OutsideNormalForm):
            return rank_form(spec)
        raise outside from None


def _no_chunk_form(state: str, why: OutsideNormalForm | OutsideScan) -> OutsideStages:
    return OutsideStages(f"the stage of {state} has no chunk form: {why.reason}", why.span)


def _with_names(stages: Iterable[Stage]) -> Iterator[Stage]:
    """The stages, each called differently: names are in lower case, and a state may have several stages."""
    taken: set[str] = set()
    for stage in stages:
        name = fresh(stage.spec.name, taken)
        yield replace(stage, spec=replace(stage.spec, name=name))
