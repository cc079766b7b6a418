"""The spec's recurrence, run token by token in exact arithmetic, statement by statement: what a derivation must
equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flagen.algebra.exact import Oracle, Scope, Tensor, evaluate
from flagen.spec.model import Assign, Repeat, Spec


@dataclass(frozen=True)
class Token:
    """One token's tensors by name: those of the whole token, and those of each micro-step."""

    whole: Mapping[str, Tensor]
    steps: Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class Setting:
    """What is the same for every token."""

    spec: Spec
    sizes: Mapping[str, int]
    constants: Mapping[str, Tensor]
    oracle: Oracle

    def scope(self, *names: Mapping[str, Tensor], states: Mapping[str, Tensor] | None = None) -> Scope:
        merged = dict(self.constants)
        for group in names:
            merged |= group
        return Scope(merged, states or {}, self.sizes, self.oracle)

    def token(self, inputs: Mapping[str, Tensor], step_inputs: Sequence[Mapping[str, Tensor]]) -> Token:
        """A token with its `let`, `decay` and `gate` names evaluated."""
        whole, steps = dict(inputs), [dict(step) for step in step_inputs]
        for derived in self.spec.derived:
            if derived.per == "token":
                whole[derived.name] = evaluate(derived.value, self.scope(whole))
            else:
                for step in steps:
                    step[derived.name] = evaluate(derived.value, self.scope(whole, step))
        return Token(whole, steps)

    def step(self, token: Token, states: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The token's output and the states after it."""
        names, after = self.run(token, states)
        return names["o"], after

    def run(self, token: Token, states: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Everything that the token's statements name, outputs among it, and the states after it."""
        after = dict(states)
        previous = {f"{name}_prev": tensor for name, tensor in states.items()}
        names = dict(token.whole)

        def assign(statement: Assign, scope: Scope) -> None:
            value = evaluate(statement.value, scope)
            if statement.to_state:
                after[statement.target] = value
            else:
                names[statement.target] = value

        for statement in self.spec.update:
            if isinstance(statement, Repeat):
                for step in token.steps:
                    for inner in statement.body:
                        assign(inner, self.scope(names, step, states=after | previous))
            else:
                assign(statement, self.scope(names, states=after | previous))
        for statement in self.spec.output:
            names[statement.target] = evaluate(statement.value, self.scope(names, states=after | previous))
        return names, after
