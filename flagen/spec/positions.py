"""`first(n)`: which tokens begin a mini-batch of n tokens, told from a count that a spec does not declare.

    position        how many tokens of the sequence came before this one, a state behind all others
    first           1 where that is a multiple of n, else 0: a local at the beginning of the update

A spec with `first` is the spec with these written out. The count goes from call to call with the other states, so that
a sequence may be cut anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from flagen.diagnostics import NOWHERE, Span
from flagen.spec.model import Assign, Binary, Call, Expr, First, Name, Number, Operator, State, StateRead
from flagen.spec.names import Symbols
from flagen.spec.printer import to_source
from flagen.spec.report import Report
from flagen.spec.scope import Scope

MEANING = "the number of tokens before it"
"""What the state is, before a token; no other state has it."""


class Positions:
    """Reads every `first` of a spec, and collects the locals that they mean.

    others: the names of states that nobody declared; numbers: the params that are plain numbers.
    """

    def __init__(
        self, symbols: Symbols, scope: Scope, report: Report, others: Callable[[], frozenset[str]], numbers: set[str]
    ) -> None:
        self.symbols, self.scope, self.report = symbols, scope, report
        self.others, self.numbers = others, numbers
        self.found: dict[Expr, First] = {}
        self.state: State | None = None

    def states(self) -> tuple[State, ...]:
        """The count, behind all other states of a spec; nothing where there is no `first`."""
        return () if self.state is None else (self.state,)

    def firsts(self) -> tuple[First, ...]:
        return tuple(self.found.values())

    def before(self) -> tuple[Assign, ...]:
        """The statements of the update before those that are written."""
        firsts = self.found.values()
        return tuple(
            self._assign(each.name, is_first(self._count(), each.every, each.span), False, each.span) for each in firsts
        )

    def behind(self) -> tuple[Assign, ...]:
        """Those behind them."""
        if self.state is None:
            return ()
        span = self.state.span
        return (self._assign(self.state.name, Binary("+", self._count(), Number(Fraction(1), span), span), True, span),)

    def first(self, every: Expr, span: Span) -> Expr | None:
        """`first(every)`; None after a diagnostic."""
        if self.scope.place not in ("update", "output"):
            message = "`first` is of the update and the output; this is evaluated before them"
            self.report.error("E316", span, message, "assign a local in the update instead")
            return None
        if isinstance(every, Name) and every.name not in self.numbers:
            message = f"`{every.name}` is not one number: mini-batches are as long for all tokens and heads"
            self.report.error("E316", span, message, f"write `params: {{{every.name}: {{default: 16}}}}`")
            return None
        counted = self.counted(span).name
        found = self.found.get(every) or First(self.free("first"), every, counted, span)
        self.found[every] = found
        return Name(found.name, "local", (), span)

    def counted(self, span: Span) -> State:
        """The count, which something at `span` needs."""
        if self.state is None:
            self.state = State(self.free("position"), (), 0.0, span, MEANING)
        return self.state

    def _count(self) -> StateRead:
        assert self.state is not None
        return StateRead(self.state.name, True, (), self.state.span)

    @staticmethod
    def _assign(target: str, value: Expr, to_state: bool, span: Span) -> Assign:
        return Assign(target, value, to_state, f"{target} = {to_source(value)}", span)

    def free(self, name: str) -> str:
        """`name`, or with `_` behind it, as the spec has no such name, here or further on."""
        taken = {
            *self.symbols.names(),
            *self.scope.later,
            *self.others(),
            *(found.name for found in self.found.values()),
        }
        while name in taken:
            name += "_"
        return name


def is_first(count: Expr, every: Expr, span: Span = NOWHERE) -> Expr:
    """1 where `count` is a multiple of `every`, else 0: how many multiples there are within half a token of it.

    A half is in no whole number's way, and keeps the quotient of a large count away from the next whole number, also
    where a division is off by some units in the last place; in float32 up to a million tokens. It has no slope.
    """

    def multiples(op: Operator) -> Expr:
        near = Binary(op, count, Number(Fraction(1, 2), span), span)
        return Call("floor", (Binary("/", near, every, span),), span)

    return Binary("-", multiples("+"), multiples("-"), span)
