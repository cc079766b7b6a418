"""The read that a system is solved by, as a spec that kernels over chunks take.

    A = alpha * A + b * outer(k, over(k, K2))          A: [K, K2]
    o = over(solve(A, q, d), K)

A matrix of squares has one vector on both sides, which no program has that has a block of its values. So the sides are
inputs of their own here, and the matrix, which is symmetric, stands with its keys first:

    A = alpha * A + outer(k_keys, b * k)               A: [K2, K]
    o = A.T @ direction

The chunk form of this is what every step of the solution reads, and its gradients are those of the system's matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from flagen.algebra.monomials import OutsideNormalForm
from flagen.algebra.rewrite import map_children
from flagen.algebra.solved import SolvedForm
from flagen.algebra.stage_results import declared_in, fresh
from flagen.spec.model import (
    Assign,
    Binary,
    Contract,
    Dims,
    Expr,
    Input,
    Interval,
    Name,
    Negate,
    Number,
    Outer,
    Over,
    Param,
    Spec,
    State,
    StateRead,
    Transpose,
    walk,
)
from flagen.spec.printer import to_source


@dataclass(frozen=True)
class SystemRead:
    """The spec of the read, and what its inputs are of the system's.

    spec: the read; direction: the input that it reads by.
    sources: which input of the system each of its inputs is, but for the direction.
    right, shift: what the system names as its right side and on the diagonal.
    output: what the solution lies over: the matrix's second dim, or its first by another name.
    """

    spec: Spec
    direction: str
    sources: Mapping[str, Input]
    right: Input
    shift: Input | Param
    output: Dims


def system_read(solved: SolvedForm) -> SystemRead:
    """The read of `solved`.

    Raises:
        OutsideNormalForm: a side of the system is no input, or a row is made of more than inputs and numbers.
    """
    spec, nf = solved.spec, solved.operator
    right, shift = _input(spec, solved.right, "right side"), _declared(spec, solved.shift, "diagonal")
    (step, *others) = nf.steps
    if others or nf.blocks[0].repeated or len(step.writes) != 1 or nf.decay_kind == "key":
        raise OutsideNormalForm("the matrix of the system is written by more than one row of a token", solved.span)
    (write,) = step.writes
    sides = _Sides(spec)
    k, v = sides.keys(write.k), sides.values(write.v)
    state = State(nf.state.name, (nf.key, nf.value), nf.state.init, nf.state.span)
    here = StateRead(state.name, previous=False, dims=state.dims)
    decayed: Expr = here if step.decay is None else Binary("*", step.decay.factor, here)
    direction = sides.direction(nf.key)
    update, read = (
        Binary("+", decayed, Outer(k, v)),
        Contract(Transpose(here), Name(direction.name, "input", (nf.key,))),
    )
    used = _names(spec, (update,))
    inputs = tuple(sides.as_value(decl) for decl in spec.inputs if decl.name in used)
    return SystemRead(
        replace(
            spec,
            name=f"{spec.name}_read",
            states=(state,),
            inputs=(*inputs, *sides.aliases, direction),
            params=tuple(param for param in spec.params if param.name in used),
            derived=tuple(decl for decl in spec.derived if decl.name in used),
            update=(_assign(state.name, update, solved, to_state=True),),
            output=(_assign("o", read, solved, to_state=False),),
        ),
        direction.name,
        sides.sources | {decl.name: decl for decl in spec.inputs if decl.name in used},
        right,
        shift,
        spec.output_dims,
    )


def _assign(target: str, value: Expr, solved: SolvedForm, *, to_state: bool) -> Assign:
    return Assign(target, value, to_state, f"{target} = {to_source(value)}", solved.span)


def _names(spec: Spec, exprs: tuple[Expr, ...]) -> frozenset[str]:
    """What `exprs` are made of, names of `let`, `decay` and `gate` followed to their ends."""
    found = {node.name for expr in exprs for node in walk(expr) if isinstance(node, Name)}
    for decl in reversed(spec.derived):
        if decl.name in found:
            found |= {node.name for node in walk(decl.value) if isinstance(node, Name)}
    return frozenset(found)


def _input(spec: Spec, expr: Expr, what: str) -> Input:
    found = _declared(spec, expr, what)
    if not isinstance(found, Input):
        raise OutsideNormalForm(f"`{to_source(expr)}`, the {what} of a system, is no input", expr.span)
    return found


def _declared(spec: Spec, expr: Expr, what: str) -> Input | Param:
    """What is an input or a param of `spec`, a number for each head or a vector."""
    declared: tuple[Input | Param, ...] = (*spec.inputs, *spec.params)
    found = next((decl for decl in declared if isinstance(expr, Name) and decl.name == expr.name), None)
    if found is None or (isinstance(found, Param) and not (found.is_tensor and found.per_head)):
        raise OutsideNormalForm(f"`{to_source(expr)}`, the {what} of a system, is no input and no param", expr.span)
    return found


class _Sides:
    """The rows of a matrix of squares with inputs of their own for its keys."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.taken = declared_in(spec) | {assign.target for assign in spec.update if isinstance(assign, Assign)}
        self.sources: dict[str, Input] = {}
        self.aliases: list[Input] = []
        self.of_values: set[str] = set()

    @property
    def _heads(self) -> Literal["H", "HV"]:
        return "HV" if self.spec.has_value_heads else "H"

    def direction(self, key: str) -> Input:
        name = fresh("direction", self.taken)
        return Input(name, (key,), self._heads, "token", Interval(), "what is read by", wide=True)

    def keys(self, expr: Expr) -> Expr:
        """`expr` over the keys, with an input of its own for each vector that it renames."""
        match expr:
            case Over(value, _, target):
                return self._renamed(value, target, expr)
            case Name(_, "input" | "param" | "derived", ()) | Number():
                return expr
            case Binary() | Negate():
                return map_children(expr, self.keys)
        raise OutsideNormalForm(f"`{to_source(expr)}` is no input, nor one times numbers", expr.span)

    def _renamed(self, expr: Expr, key: str, whole: Expr) -> Expr:
        match expr:
            case Name(name, "input", (_,)):
                return Name(self._alias(name, key), "input", (key,), expr.span)
            case Name(_, "input" | "param" | "derived", ()) | Number():
                return expr
            case Binary() | Negate():
                return map_children(expr, lambda child: self._renamed(child, key, whole))
        raise OutsideNormalForm(f"`{to_source(whole)}` is no input, nor one times numbers", whole.span)

    def values(self, expr: Expr) -> Expr:
        """`expr`, whose vectors are those of the values."""
        for node in walk(expr):
            if isinstance(node, Name) and node.dims:
                if node.kind != "input":
                    raise OutsideNormalForm(f"`{to_source(node)}` is no input, nor one times numbers", node.span)
                self.of_values.add(node.name)
        return expr

    def as_value(self, decl: Input) -> Input:
        """An input as the read has it: each value head has values of its own."""
        return replace(decl, heads=self._heads) if decl.name in self.of_values else decl

    def _alias(self, name: str, key: str) -> str:
        known = next((alias for alias, source in self.sources.items() if source.name == name), None)
        if known is not None:
            return known
        source = next(decl for decl in self.spec.inputs if decl.name == name)
        alias = fresh(f"{name}_keys", self.taken)
        self.taken.add(alias)
        self.sources[alias] = source
        self.aliases.append(replace(source, name=alias, dims=(key,)))
        return alias
