"""`prev(x, n)`: what x was n tokens ago, kept in states that a spec does not declare.

Each x that `prev` is given has states x_1 ... x_n of its own, n the largest that any `prev` of it asks for:

    prev(x, i)      stands for   x_i as it was before the token
    x_n = x_(n-1)_prev           and so on down to x_2 = x_1_prev, and
    x_1 = x                      at the end of the update

They are 0 before the first token of a sequence, and follow the declared states, in the order in which the text first
names their x. So a spec with `prev` is the spec with these states written out, and no later stage knows of `prev`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from flagen.diagnostics import Span
from flagen.spec.limits import MAX_LOOK_BACK
from flagen.spec.model import Assign, Expr, Name, State, StateRead, walk
from flagen.spec.names import Symbols
from flagen.spec.printer import to_source
from flagen.spec.report import Report
from flagen.spec.scope import Scope


@dataclass(frozen=True)
class Kept:
    """The values of one expression that are kept from token to token: `base`_1 ... `base`_`tokens`."""

    value: Expr
    text: str
    """The expression as a spec writes it."""
    base: str
    tokens: int
    span: Span

    def name(self, tokens: int) -> str:
        """What the value that many tokens ago is called."""
        return f"{self.base}_{tokens}"

    def read(self, tokens: int, span: Span) -> StateRead:
        return StateRead(self.name(tokens), True, self.value.dims, span)

    def states(self) -> Iterator[State]:
        for tokens in range(1, self.tokens + 1):
            meaning = f"prev({self.text})" if tokens == 1 else f"prev({self.text}, {tokens})"
            yield State(self.name(tokens), self.value.dims, 0.0, self.span, meaning)

    def statements(self) -> Iterator[Assign]:
        """What a token does to them, the oldest first: each takes the place of the one before it."""
        for tokens in range(self.tokens, 1, -1):
            yield self._assign(tokens, self.read(tokens - 1, self.span))
        yield self._assign(1, self.value)

    def _assign(self, tokens: int, value: Expr) -> Assign:
        return Assign(self.name(tokens), value, True, f"{self.name(tokens)} = {to_source(value)}", self.span)


class LookBack:
    """Reads every `prev` of a spec, and collects the states that they mean."""

    def __init__(self, symbols: Symbols, scope: Scope, report: Report) -> None:
        self.symbols = symbols
        self.scope = scope
        self.report = report
        self.kept: dict[Expr, Kept] = {}
        self._locals: dict[str, Expr] = {}
        self._of_output: set[str] = set()

    def define(self, local: str, value: Expr) -> None:
        """Note what a local is."""
        self._locals[local] = value
        if self.scope.place == "output":
            self._of_output.add(local)

    def names(self) -> frozenset[str]:
        """The states that stand for values of earlier tokens."""
        return frozenset(state.name for state in self.states())

    def states(self) -> tuple[State, ...]:
        """The states of a spec behind those that it declares."""
        return tuple(state for kept in self.kept.values() for state in kept.states())

    def statements(self) -> tuple[Assign, ...]:
        """The statements of the update behind those that are written."""
        return tuple(assign for kept in self.kept.values() for assign in kept.statements())

    def before(self, value: Expr, tokens: int, span: Span) -> Expr | None:
        """`prev(value, tokens)`; None after a diagnostic."""
        if (problem := self._problem(value)) is not None:
            self.report.error("E315", span, *problem)
            return None
        value, tokens = self._base(value, tokens)
        kept = self.kept.get(value) or Kept(value, self._written(value), self._free_base(value), 0, span)
        more = replace(kept, tokens=max(kept.tokens, tokens))
        count = sum(each.tokens for each in self.kept.values()) + more.tokens - kept.tokens
        if count > MAX_LOOK_BACK:
            message = f"all `prev` of a spec keep at most {MAX_LOOK_BACK} values; with this one {count}"
            self.report.error("E209", span, message, "what happened long ago is what states are for")
            return None
        self.kept[value] = more
        return more.read(tokens, span)

    def _problem(self, value: Expr) -> tuple[str, str] | None:
        """Why there is no value of an earlier token here: a message and a hint."""
        if self.scope.place not in ("update", "output"):
            message = "`prev` is of the update and the output; this is evaluated before them"
            return message, "assign a local in the update instead"
        if self.scope.in_repeat:
            message = "`prev` is what the token before had, and a `repeat` goes through the steps of one token"
            return message, "assign a local before the `repeat`"
        if (state := self._matrix_in(value)) is not None:
            message = f"`prev` keeps no value that depends on a matrix state, as this one on `{state}`"
            return message, f"what `{state}` was before the token is `{state}_prev`"
        local = next(
            (part.name for part in walk(value) if isinstance(part, Name) and part.name in self._of_output), None
        )
        if local is not None:
            message = f"`prev` keeps what is known at the end of the update, and `{local}` is a local of the output"
            return message, "assign it in the update"
        return None

    def _matrix_in(self, value: Expr) -> str | None:
        """A matrix state that the spec declares and that `value` reads, itself or through locals."""
        pending, seen = [value], set[str]()
        while pending:
            for part in walk(pending.pop()):
                if isinstance(part, StateRead) and len(part.dims) > 1 and self.symbols.get(part.name) is not None:
                    return part.name
                if isinstance(part, Name) and part.name in self._locals and part.name not in seen:
                    seen.add(part.name)
                    pending.append(self._locals[part.name])
        return None

    def _base(self, value: Expr, tokens: int) -> tuple[Expr, int]:
        """What is kept, and how long: `prev(prev(x, m), n)` is `prev(x, m + n)`."""
        for kept in self.kept.values():
            for past in range(1, kept.tokens + 1):
                if value == kept.read(past, value.span):
                    return kept.value, past + tokens
        return value, tokens

    def _written(self, value: Expr) -> str:
        """`value` as the spec writes it: with `prev` for what was kept before."""
        known = {state.name: state.meaning for state in self.states()}
        reads = {part.name for part in walk(value) if isinstance(part, StateRead) and part.name in known}
        text = to_source(value)
        for name in reads:
            text = re.sub(rf"\b{name}_prev\b", known[name], text)
        return text

    def _free_base(self, value: Expr) -> str:
        """What the values are called, but for their number; the spec has no such name, here or further on."""
        base = value.name if isinstance(value, Name | StateRead) else "x"
        names = {*self.symbols.names(), *self.scope.later, *self.names()}
        while any(name.rpartition("_")[0] == base and name.rpartition("_")[2].isdigit() for name in names):
            base += "_"
        return base
