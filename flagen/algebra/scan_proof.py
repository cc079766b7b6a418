"""Rung 0 of scans: the scan form and its adjoint against the unrolled recurrence, in exact arithmetic. No tolerance.

At random rational points, for chunk lengths 1 to 5 over two chunks, with and without initial states: the states by
doubling, and the results made of them, equal the recurrence's; the gradients of the reverse scan, contracted with a
direction for every input, param and initial state, equal the recurrence's exact derivatives along it.

A logaddexp is proved over exponentials: the state stands for its exponential Z, a positive rational, and

    X = logaddexp(X_prev + w, c)      is      Z = Z_prev e^w + e^c

with e^w and e^c random rationals; whoever else reads X reads log(Z), another random number. Gradients stay those of X.
A maximum of rationals is one of them; a phase is a rational, and so is its fraction. A state that is -inf before the
first token is there a number below all others.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from gmpy2 import mpq

from flagen.algebra.exact import Dual, Oracle, Scope, Tensor, call, decimal, evaluate, scalar
from flagen.algebra.proof import Proof
from flagen.algebra.recurrence import Setting, Token
from flagen.algebra.rewrite import map_children
from flagen.algebra.scan import ONE, ZERO, Scan, ScanForm, double
from flagen.algebra.small_sizes import HEADS, small_sizes
from flagen.diagnostics import InternalError
from flagen.spec.model import Assign, Binary, Call, Expr, Interval, Name, Negate, Spec, StateRead

_ATTEMPTS = 5
_INFINITY = mpq(10**30)
"""Beyond all that proofs meet."""
_LENGTHS = (1, 2, 3, 4, 5)
Index = tuple[int, ...]
Values = dict[Index, mpq]


@dataclass(frozen=True)
class Case:
    """One comparison: chunk length in tokens, whether there are initial states."""

    chunk: int
    initial: bool

    def __str__(self) -> str:
        return f"chunks of {self.chunk}, {'with' if self.initial else 'without'} initial state"


def prove(form: ScanForm, *, seed: int = 0) -> Proof:
    """Prove `form` and its adjoint equal to their spec's recurrence.

    Raises:
        InternalError: they are not, with the case and the tensor that differs.
    """
    cases = [Case(length, initial) for length in _LENGTHS for initial in (True, False)]
    proved = [case for case in cases if _prove_case(form, case, seed)]
    initial = "with and without" if any(not case.initial for case in proved) else "with"
    differentiated = ", ".join(_directions(form.spec))
    return Proof(
        (
            f"scans by doubling = recurrence: {len(proved)} random rational points, chunk lengths 1 to {_LENGTHS[-1]}, "
            f"two chunks, {initial} initial state",
            f"reverse scans = exact derivatives of the recurrence: {differentiated}",
        )
    )


def _prove_case(form: ScanForm, case: Case, seed: int) -> bool:
    """Prove one case. False where the spec divides by zero whatever its inputs are: by a state of zero, say."""
    for attempt in range(_ATTEMPTS):
        numbers = random.Random(f"{form.spec.name} {case} {seed + attempt}")
        try:
            _Comparison(form, case, numbers).run()
        except ZeroDivisionError:  # an unlucky point: a denominator of the spec is 0 there
            continue
        except _Differs as difference:
            raise InternalError(
                f"{form.spec.name}: {difference} ({case}, seed {seed + attempt}); nothing was written.\n{form.dump()}"
            ) from None
        return True
    if not case.initial:
        return False
    raise InternalError(f"{form.spec.name}: no random point without a zero denominator found ({case})")


class _Differs(Exception):
    """A derived quantity is not the recurrence's."""


def _directions(spec: Spec) -> tuple[str, ...]:
    tensors = [param.name for param in spec.params if param.is_tensor]
    starts = [_start(state.name) for state in spec.states]
    return (*(decl.name for decl in spec.inputs), *tensors, *starts)


def _start(state: str) -> str:
    return f"initial {state}"


# ----------------------------------------------------------------------------------------------- over exponentials


@dataclass(frozen=True)
class _Exponentials:
    """Rewrites expressions for states that stand for their exponentials."""

    states: frozenset[str]

    def spec(self, spec: Spec) -> Spec:
        update = [part for statement in spec.update if isinstance(statement, Assign) for part in self.assign(statement)]
        return replace(spec, update=tuple(update), output=tuple(self.outputs(spec.output)))

    def form(self, form: ScanForm) -> ScanForm:
        update: list[Assign | Scan] = []
        for part in form.update:
            if isinstance(part, Assign):
                update += self.assign(part)
            elif part.state.name in self.states:
                factor, term = self.exponential(part.factor), self.exponential(part.term)
                update.append(Scan(part.state, part.kind, factor, term))
            else:
                update.append(Scan(part.state, part.kind, self.plain(part.factor), self.plain(part.term)))
        return replace(form, update=tuple(update), outputs=tuple(self.outputs(form.outputs)))

    def outputs(self, statements: Sequence[Assign]) -> Iterator[Assign]:
        return (replace(statement, value=self.plain(statement.value)) for statement in statements)

    def assign(self, statement: Assign) -> Iterator[Assign]:
        """`statement`, and for a local its exponential under a name of its own."""
        if statement.to_state and statement.target in self.states:
            yield replace(statement, value=self.exponential(statement.value))
            return
        yield replace(statement, value=self.plain(statement.value))
        if not statement.to_state:
            value = self.exponential(statement.value)
            yield replace(statement, target=_exponential_name(statement.target), value=value)

    def plain(self, expr: Expr) -> Expr:
        """`expr` itself, where the states are given by their exponentials."""
        if isinstance(expr, StateRead) and expr.name in self.states:
            return Call("log", (expr,))
        return map_children(expr, self.plain)

    def exponential(self, expr: Expr) -> Expr:
        """e to the power of `expr`."""
        match expr:
            case StateRead(name) if name in self.states:
                return expr
            case Name(name, "local"):
                return replace(expr, name=_exponential_name(name))
            case Call("logaddexp", (left, right)):
                return Binary("+", self.exponential(left), self.exponential(right))
            case Binary("+", left, right):
                return Binary("*", self.exponential(left), self.exponential(right))
            case Binary("-", left, right):
                return Binary("/", self.exponential(left), self.exponential(right))
            case Negate(value):
                return Binary("/", ONE, self.exponential(value))
        return ONE if expr == ZERO else Call("exp", (self.plain(expr),))


def _exponential_name(local: str) -> str:
    return f"exp {local}"


# ---------------------------------------------------------------------------------------------------------- a case


@dataclass(frozen=True)
class _Token:
    """A token of the scan form: its names, and each state before it and after it."""

    names: dict[str, Tensor]
    states: dict[str, Tensor]
    elements: dict[str, tuple[Tensor, Tensor]]


def _evaluate(part: Assign | Scan, token: _Token, setting: Setting) -> None:
    """Evaluate a statement, or the element of a scan, of `token` in what it knows so far."""
    scope = setting.scope(token.names, states=token.states)
    if isinstance(part, Assign):
        token.names[part.target] = evaluate(part.value, scope)
    else:
        token.elements[part.state.name] = (evaluate(part.factor, scope), evaluate(part.term, scope))


class _Comparison:
    """One case: a random sequence of two chunks, run both ways."""

    def __init__(self, form: ScanForm, case: Case, numbers: random.Random) -> None:
        logs = _Exponentials(frozenset(scan.state.name for scan in form.scans if scan.kind == "logaddexp"))
        self.logs = logs.states
        self.spec, self.form = logs.spec(form.spec), logs.form(form)
        self.case = case
        self.oracle = Oracle(numbers)
        self.sizes = small_sizes(self.spec)
        self.directions = _directions(self.spec)
        self.dims = {state.name: state.dims for state in self.spec.states}
        self.setting = self._setting()

    def run(self) -> None:
        tokens = [self._token() for _ in range(2 * self.case.chunk)]
        start = {state.name: self._initial(state.name, state.init) for state in self.spec.states}
        named, final = self._recurrence(tokens, start)
        length = self.case.chunk
        chunks: list[list[_Token]] = []
        carry = {name: _values(tensor) for name, tensor in start.items()}
        for first in range(0, len(tokens), length):
            chunks.append(self._chunk(tokens[first : first + length], carry))
            carry = {name: _values(chunks[-1][-1].states[name]) for name in carry}
        self._compare_values(chunks, named, final)
        self._compare_gradients(chunks, start, named, final)

    # ------------------------------------------------------------------------------------------------------ random data

    def _setting(self) -> Setting:
        spec = self.spec
        constants = {p.name: self._random(p.dims, p.name if p.is_tensor else None, p.range) for p in spec.params}
        constants |= {name: scalar(Dual(mpq(value))) for name, value in (*HEADS.items(), ("head", 1))}
        return Setting(spec, self.sizes, constants, self.oracle)

    def _token(self) -> Token:
        return self.setting.token({i.name: self._random(i.dims, i.name, i.range) for i in self.spec.inputs}, [])

    def _initial(self, state: str, init: float) -> Tensor:
        within = Interval(low=0.0) if state in self.logs else Interval()
        if self.case.initial:
            return self._random(self.dims[state], _start(state), within)
        value = mpq(0)  # the exponential of -inf
        if state not in self.logs:
            value = decimal(init) if math.isfinite(init) else mpq(math.copysign(1, init)) * _INFINITY
        elif init != -float("inf"):
            value = self.oracle("exp", (Dual(decimal(init)),)).value
        return self._scope().build(self.dims[state], lambda _: Dual(value))

    def _random(self, dims: tuple[str, ...], name: str | None, within: Interval) -> Tensor:
        """A random tensor; where it has a `name`, also a random direction to differentiate along."""

        def element(_: Index) -> Dual:
            value = self.oracle.rational(within.low, within.high)
            if name is None:
                return Dual(value)
            return Dual(value, tuple(self.oracle.rational() if n == name else mpq(0) for n in self.directions))

        return self._scope().build(dims, element)

    def _scope(self) -> Scope:
        return Scope({}, {}, self.sizes, self.oracle)

    # --------------------------------------------------------------------------------------------------------- forward

    def _recurrence(
        self, tokens: Sequence[Token], start: Mapping[str, Tensor]
    ) -> tuple[list[dict[str, Tensor]], Mapping[str, Tensor]]:
        states, named = start, []
        for token in tokens:
            names, states = self.setting.run(token, states)
            named.append(names)
        return named, states

    def _chunk(self, tokens: Sequence[Token], carry: Mapping[str, Values]) -> list[_Token]:
        """A chunk's tokens with their states by doubling and everything else evaluated from them."""
        done = [_Token(dict(token.whole), {}, {}) for token in tokens]
        for part in self.form.update:
            for token in done:
                _evaluate(part, token, self.setting)
            if isinstance(part, Scan):
                self._scan(part, done, carry[part.state.name])
        for token in done:
            for assign in self.form.outputs:
                _evaluate(assign, token, self.setting)
        return done

    def _scan(self, scan: Scan, tokens: Sequence[_Token], carry: Values) -> None:
        name, dims = scan.state.name, scan.state.dims
        indices = list(self._scope().indices(dims))
        elements = []
        for token in tokens:
            factor, term = token.elements[name]
            elements.append({i: (factor.at(dims, i).value, term.at(dims, i).value) for i in indices})
        join = _join(scan)
        elements[0] = join({i: (mpq(1), carry[i]) for i in indices}, elements[0])
        if scan.kind == "phase":
            elements = [_without_turns(element) for element in elements]
        before = carry
        for token, product in zip(tokens, double(elements, join), strict=True):
            after = {i: b for i, (_, b) in product.items()}
            token.states[name] = Tensor(dims, {i: Dual(value) for i, value in after.items()})
            token.states[f"{name}_prev"] = Tensor(dims, {i: Dual(value) for i, value in before.items()})
            before = after

    def _compare_values(
        self, chunks: Sequence[Sequence[_Token]], named: Sequence[Mapping[str, Tensor]], final: Mapping[str, Tensor]
    ) -> None:
        for name, tensor in final.items():
            if _values(chunks[-1][-1].states[name]) != _values(tensor):
                raise _Differs(f"the final state {name} of the scan is not the recurrence's")
        tokens = [token for chunk in chunks for token in chunk]
        for number, (token, names) in enumerate(zip(tokens, named, strict=True)):
            for result in self.form.results:
                if _values(token.names[result]) != _values(names[result]):
                    raise _Differs(f"the scan's {result} of token {number} is not the recurrence's")

    # -------------------------------------------------------------------------------------------------------- gradients

    def _compare_gradients(
        self,
        chunks: Sequence[Sequence[_Token]],
        start: Mapping[str, Tensor],
        named: Sequence[Mapping[str, Tensor]],
        final: Mapping[str, Tensor],
    ) -> None:
        """<cotangents, derivatives of the recurrence> = what the reverse scans make of the cotangents."""
        weights = [self._weights({r: names[r] for r in self.form.results}) for names in named]
        cotangents = self._weights(final)
        expected = self._zeros(len(self.directions))
        for names, weight in zip(named, weights, strict=True):
            for result, values in weight.items():
                _add(expected, values, names[result])
        for name, values in cotangents.items():
            _add(expected, self._by_exponential(name, values, final[name]), final[name])

        found = self._zeros(len(self.directions))
        for place in reversed(range(len(chunks))):
            first = place * self.case.chunk
            pulled = _Reverse(self, chunks[place], weights[first : first + self.case.chunk], cotangents)
            for gradient in pulled.gradients:
                found = [one + other for one, other in zip(found, gradient[: len(found)], strict=True)]
            cotangents = pulled.before
        for name, values in cotangents.items():
            _add(found, self._by_exponential(name, values, start[name]), start[name])
        for name, one, other in zip(self.directions, found, expected, strict=True):
            if one != other:
                raise _Differs(f"the reverse scan's gradient of {name} is not the recurrence's derivative")

    def _weights(self, tensors: Mapping[str, Tensor]) -> dict[str, Values]:
        return {name: {index: self.oracle.rational() for index in tensor.data} for name, tensor in tensors.items()}

    def _by_exponential(self, state: str, values: Values, tensor: Tensor) -> Values:
        """Gradients of a state as those of what stands for it."""
        if state not in self.logs:
            return values
        return {i: value / tensor.data[i].value if tensor.data[i].value else mpq(0) for i, value in values.items()}

    def _zeros(self, count: int) -> list[mpq]:
        return [mpq(0)] * count


class _Reverse:
    """The reverse scans of one chunk.

    Every state before and after a token is a variable of its own here: tangents along them tell how each expression
    depends on it.
    """

    def __init__(
        self,
        case: _Comparison,
        tokens: Sequence[_Token],
        weights: Sequence[Mapping[str, Values]],
        cotangents: Mapping[str, Values],
    ) -> None:
        self.case = case
        names = [name for state in case.dims for name in (state, f"{state}_prev")]
        plain = len(case.directions)
        scope = case._scope()
        units = [(name, index) for name in names for index in scope.indices(case.dims[name.removesuffix("_prev")])]
        self.place = {unit: plain + number for number, unit in enumerate(units)}
        self.size = plain + len(units)
        constants = {name: self._widened(tensor) for name, tensor in case.setting.constants.items()}
        self.setting = replace(case.setting, constants=constants)
        self.tokens = [self._with_units(token) for token in tokens]
        self.gradients = [case._zeros(self.size) for _ in tokens]
        """Of every direction and every state's element, at each token."""
        for token, weight, gradient in zip(self.tokens, weights, self.gradients, strict=True):
            for result, values in weight.items():
                _add(gradient, values, token.names[result])
        self.before = {
            scan.state.name: self._pull(scan, cotangents[scan.state.name]) for scan in reversed(case.form.scans)
        }

    def _with_units(self, token: _Token) -> _Token:
        """`token` evaluated again, its states as variables."""
        case = self.case
        wide = {name: self._widened(tensor) for name, tensor in token.names.items()}
        states = {name: self._variables(name, tensor) for name, tensor in token.states.items()}
        again = _Token(wide, states, {})
        for part in (*case.form.update, *case.form.outputs):
            _evaluate(part, again, self.setting)
        return again

    def _widened(self, tensor: Tensor) -> Tensor:
        extra = (mpq(0),) * (self.size - len(self.case.directions))
        wide = {i: Dual(e.value, (*e.tangents, *extra) if e.tangents else ()) for i, e in tensor.data.items()}
        return Tensor(tensor.dims, wide)

    def _variables(self, name: str, tensor: Tensor) -> Tensor:
        """A state's elements as variables; of its exponential, one that changes as the exponential does."""
        log = name.removesuffix("_prev") in self.case.logs

        def element(index: Index, value: mpq) -> Dual:
            place = self.place[name, index]
            return Dual(value, tuple((value if log else mpq(1)) if p == place else mpq(0) for p in range(self.size)))

        return Tensor(tensor.dims, {index: element(index, e.value) for index, e in tensor.data.items()})

    def _pull(self, scan: Scan, after: Values) -> Values:
        """The gradients that reach the state, tokens in reverse, and through its update what that reads."""
        name, dims = scan.state.name, scan.state.dims
        log = name in self.case.logs
        indices = list(after)
        elements = []
        slopes: list[Values] = []
        for token, gradient in zip(self.tokens, self.gradients, strict=True):
            factor = {i: token.elements[name][0].at(dims, i).value for i in indices}
            if log:
                states = (token.states[f"{name}_prev"], token.states[name])
                factor = {i: a * states[0].data[i].value / states[1].data[i].value for i, a in factor.items()}
            elif scan.kind == "maximum":
                slope = evaluate(scan.slope, self.setting.scope(token.names, states=token.states))
                factor = {i: slope.at(dims, i).value for i in indices}
            slopes.append(factor)
            to, fro = ({i: gradient[self.place[n, i]] for i in indices} for n in (name, f"{name}_prev"))
            elements.append({i: (factor[i], fro[i] + factor[i] * to[i]) for i in indices})
        # The last token first, and what comes from beyond the chunk joins it.
        elements.reverse()
        elements[0] = {i: (mpq(1), s * after[i] + m) for i, (s, m) in elements[0].items()}
        reached = [{i: m for i, (_, m) in product.items()} for product in double(elements, _joined)]
        beyond = [*reversed([after, *reached[:-1]])]
        for token, gradient, later in zip(self.tokens, self.gradients, beyond, strict=True):
            total = {i: gradient[self.place[name, i]] + later[i] for i in indices}
            factor_, term = token.elements[name]
            before, state = (token.states[n] for n in (f"{name}_prev", name))
            for i in indices:
                # The state before is a constant here: what flows through it is in the scan.
                constant, (a, b) = Dual(before.data[i].value), (part.at(dims, i) for part in (factor_, term))
                if scan.kind == "maximum":
                    update = call("maximum", (constant + a, b), self.case.oracle)
                else:
                    update = a * constant + b
                weight = total[i] / state.data[i].value if log else total[i]
                _add(gradient, {(): weight}, scalar(update))
        return reached[-1]


_Element = dict[Index, tuple[mpq, mpq]]


def _join(scan: Scan) -> Callable[[_Element, _Element], _Element]:
    """What one element makes of another, as the kind of `scan` has it."""
    match scan.kind:
        case "maximum":
            return _joined_maxima
        case "phase":
            return _joined_phases
    return _joined


def _joined(first: _Element, second: _Element) -> _Element:
    """One affine map after another, element by element."""
    return {i: (first[i][0] * a, a * first[i][1] + b) for i, (a, b) in second.items()}


def _joined_maxima(first: _Element, second: _Element) -> _Element:
    """One running maximum after another."""
    return {i: (first[i][0] + w, max(first[i][1] + w, c)) for i, (w, c) in second.items()}


def _joined_phases(first: _Element, second: _Element) -> _Element:
    """One turn after another: what is left of both."""
    return _without_turns(_joined(first, second))


def _without_turns(element: _Element) -> _Element:
    return {i: (a, b - math.floor(b)) for i, (a, b) in element.items()}


def _values(tensor: Tensor) -> Values:
    return {index: element.value for index, element in tensor.data.items()}


def _add(gradient: list[mpq], weights: Values, tensor: Tensor) -> None:
    """Add `tensor`'s derivatives, weighted, to `gradient`."""
    for index, weight in weights.items():
        for place, tangent in enumerate(tensor.data[index].tangents):
            gradient[place] += weight * tangent
