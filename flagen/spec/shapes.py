"""The rules of named dims: which operands fit together. Each rule returns the mistake, or None."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from flagen.spec.model import Dims, Expr, StateRead

Ratio = Callable[[str, str], Fraction | None]
"""How many times as long as a second dim a first one is, where that is the same whatever their sizes are."""


@dataclass(frozen=True)
class Misfit:
    """Operands that do not fit: a code, a message and a hint."""

    code: str
    message: str
    hint: str = ""


def show(dims: Dims) -> str:
    """Dims for a message: `[K, V]`, or `a scalar`."""
    return f"[{', '.join(dims)}]" if dims else "a scalar"


def sum_misfit(left: Dims, right: Dims) -> Misfit | None:
    """`+` and `-`: the same dims in the same order, or a scalar on one side."""
    if left == right or not left or not right:
        return None
    message = f"a sum wants the same dims on both sides; these are {show(left)} and {show(right)}"
    return Misfit("E501", message, _order_hint(left, right) or "only a scalar is spread over the other side's dims")


def product_misfit(left: Dims, right: Dims) -> Misfit | None:
    """`*`, `/` and `**`: one side's dims are among the other's, in the same order."""
    small, large = (left, right) if len(left) <= len(right) else (right, left)
    if _nests(small, large):
        return None
    message = f"the dims of one side must be among the other's; these are {show(left)} and {show(right)}"
    if not set(left) & set(right):
        hint = f"`outer(a, b)` has the dims of both, {show(left + right)}"
    else:
        hint = _order_hint(left, right) or "`@` contracts a dim that both sides have, `sum` removes one"
    return Misfit("E502", message, hint)


def call_misfit(function: str, dims: list[Dims]) -> Misfit | None:
    """Elementwise functions of several arguments: one set of dims, and scalars."""
    full = [given for given in dims if given]
    if all(given == full[0] for given in full):
        return None
    message = f"the arguments of `{function}` have the same dims or none; these are {', '.join(map(show, dims))}"
    return Misfit("E501", message, "only a scalar is spread over the dims of the others")


def contract_misfit(left: Dims, right: Dims) -> Misfit | None:
    """`@`: the last dim of the left side is the first of the right side."""
    if not left or not right:
        side = "left" if not left else "right"
        return Misfit("E504", f"`@` contracts a dim, and the {side} side is a scalar", "a scalar multiplies with `*`")
    if left[-1] == right[0]:
        return repeated_dim(left[:-1] + right[1:], "this contraction")
    message = f"`@` contracts the last dim of {show(left)} with the first of {show(right)}, which is another"
    if left[0] == right[0] and len(left) == 2:
        hint = f"`.T` reverses the dims: the transpose of the left side is {show(left[::-1])}"
    elif left[-1] == right[-1] and len(right) == 2:
        hint = f"`.T` reverses the dims: the transpose of the right side is {show(right[::-1])}"
    elif len(left) == len(right) == 1:
        hint = f"`outer(a, b)` of these is {show(left + right)}"
    else:
        hint = ""
    return Misfit("E503", message, hint)


def dot_misfit(left: Dims, right: Dims) -> Misfit | None:
    """`dot`: two vectors over one dim."""
    if len(left) == len(right) == 1 and left == right:
        return None
    message = f"`dot` wants two vectors over the same dim; these are {show(left)} and {show(right)}"
    return Misfit("E503", message, "`a @ b` contracts the last dim of `a` with the first of `b`")


def repeated_dim(dims: Dims, what: str) -> Misfit | None:
    """No result may carry one dim twice: its elements could not be told apart by name."""
    twice = next((dim for i, dim in enumerate(dims) if dim in dims[:i]), None)
    if twice is None:
        return None
    hint = f"two dims of one size have two names: declare one side over `{twice}2`"
    return Misfit("E505", f"{what} has the dim `{twice}` twice: {show(dims)}", hint)


def reduce_misfit(function: str, value: Dims) -> Misfit | None:
    """`sum`, `mean` and `norm`: of something that has dims."""
    return None if value else Misfit("E506", f"`{function}` reduces dims, and this is a scalar")


def row_misfit(function: str, value: Dims) -> Misfit | None:
    """`l2norm` and `softmax`: of a vector."""
    if len(value) == 1:
        return None
    return Misfit("E507", f"`{function}` runs over the only dim of a vector; this is {show(value)}")


def rotate_misfit(function: str, value: Dims, angle: Dims, ratio: Ratio) -> Misfit | None:
    """`rotate` and `rotate_half`: vectors along a last dim, and a vector of angles for at most all of its pairs."""
    if not value or len(angle) != 1:
        message = f"`{function}` turns vectors by a vector of angles; these are {show(value)} and {show(angle)}"
        return Misfit("E515", message)
    dim, pairs = value[-1], angle[0]
    share = ratio(pairs, dim)
    if share is not None and share <= Fraction(1, 2):
        return None
    many = "`dims` does not say that there are so few" if share is None else "there are more of them"
    message = f"`{function}` turns pairs of `{dim}`, by one angle a pair or fewer; {many} over `{pairs}`"
    if share is not None and share >= 2:
        return Misfit("E515", message, f"the angles come second: `{function}(x, angle)`")
    declared = f"{{{pairs if pairs != dim else 'R'}: {dim} / 2}}"
    return Misfit("E515", message, f"`dims: {declared}` says that there is one for each pair")


def over_misfit(value: Dims, source: str | None, target: str, ratio: Ratio) -> Misfit | None:
    """`over`: a dim of the value by the name of another one, which is as long."""
    if source is None:
        message = f"`over` with one dim renames that of a vector; this is {show(value)}"
        others = [dim for dim in value if dim != target]
        return Misfit("E516", message, f"say which one: `over(x, {others[0]}, {target})`" if others else "")
    if source not in value:
        return Misfit("E516", f"`over` renames `{source}`, which is no dim of its argument, {show(value)}")
    if target in value:
        return Misfit("E516", f"its argument has the dim `{target}` already: it is {show(value)}")
    times = ratio(target, source)
    if times == 1:
        return None
    if times is not None:
        return Misfit("E516", f"`over` calls `{source}` `{target}`, which is {times} times as long")
    first, second = sorted((source, target), key=lambda dim: (len(dim), dim))
    message = f"`over` calls `{source}` `{target}`, and nothing says that they are equally long"
    return Misfit("E516", message, f"declare it: `dims: {{{second}: {first}}}`")


def solve_misfit(matrix: Expr, right: Dims, shift: Dims | None, ratio: Ratio) -> Misfit | None:
    """`solve`: a square matrix state, and vectors over its first dim."""
    if not isinstance(matrix, StateRead):
        hint = "name the state; what scales it divides the right side, what is added to its diagonal comes third"
        return Misfit("E517", "`solve` takes a matrix state, and this is an expression", hint)
    if len(matrix.dims) != 2:
        return Misfit("E517", f"`solve` takes a matrix state, and `{matrix.name}` is {show(matrix.dims)}")
    rows, columns = matrix.dims
    if ratio(columns, rows) != 1:
        first, second = sorted(matrix.dims, key=lambda dim: (len(dim), dim))
        message = f"`solve` takes a square matrix, and nothing says that `{rows}` and `{columns}` are equally long"
        return Misfit("E517", message, f"declare it: `dims: {{{second}: {first}}}`")
    if right != (rows,):
        hint = f"`over(x, {rows})` is the vector over that dim" if right == (columns,) else ""
        return Misfit("E517", f"the right side of this system is over [{rows}], and this is {show(right)}", hint)
    if shift not in (None, (), (rows,)):
        message = f"what is added to the diagonal is a number, or over [{rows}]; this is {show(shift or ())}"
        return Misfit("E517", message, f"`over(x, {rows})` is the vector over that dim" if shift == (columns,) else "")
    return None


def assign_misfit(target: str, want: Dims, value: Expr) -> Misfit | None:
    """A state is assigned a value of exactly its dims."""
    if value.dims == want:
        return None
    message = f"`{target}` is {show(want)}, and this value is {show(value.dims)}"
    hint = "`.T` reverses the dims" if value.dims == want[::-1] else ""
    return Misfit("E508", message, hint)


def _nests(small: Dims, large: Dims) -> bool:
    """Whether `small` is `large` with dims left out."""
    rest = iter(large)
    return all(dim in rest for dim in small)


def _order_hint(left: Dims, right: Dims) -> str:
    return "`.T` reverses the dims of one side" if len(left) > 1 and left == right[::-1] else ""
