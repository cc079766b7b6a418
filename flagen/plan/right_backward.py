"""The plan of the backward of a right read, which is that of a left read of the same states.

What a token reads from the right, S_t q_t, adds do_t^T S_t q_t to a loss. So would the left read S_t^T do_t whose
gradient is q_t. Of everything but what is read with, the gradients of the two are the same, and the gradient of q_t is
that left read itself. So the recurrence is planned again with its output turned: read with do, under the gradient q.

Decided here: which reads can be turned, what the turned recurrence is, and what its kernels take for each value head:
what value heads share that has an element for each value is repeated before, and its gradients are added up after.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from flagen.algebra import derive
from flagen.algebra.normal_form import NormalForm, Position, Read
from flagen.algebra.rewrite import map_children
from flagen.plan.chunk import plan_chunk
from flagen.plan.key_backward import KeyBackwardPlan, plan_key_backward
from flagen.plan.key_kernel import KeyKernelPlan, plan_key_decay
from flagen.plan.row_planner import NoKernel
from flagen.plan.schedule import declared_names, fresh
from flagen.spec.model import (
    Assign,
    Binary,
    Contract,
    Expr,
    Input,
    Interval,
    Name,
    Negate,
    Repeat,
    Spec,
    StateRead,
    Transpose,
    walk,
)
from flagen.spec.printer import to_source


@dataclass(frozen=True)
class RightBackwardPlan:
    """The backward of kernels with a right read.

    forward: these kernels.
    turned: the backward of the recurrence that reads from the left.
    reads: the input that the forward kernels read with. It is the gradient of what the turned recurrence puts out.
    reader: what that reads with: the gradient of the output.
    repeated: the inputs that value heads share and the turned kernels take for each.
    """

    forward: KeyKernelPlan
    turned: KeyBackwardPlan
    reads: str
    reader: str
    repeated: tuple[str, ...]

    @property
    def shares_keys(self) -> bool:
        """Whether the turned kernels take something that value heads share."""
        return any(decl.heads == "H" for decl in self.turned.rows.spec.inputs)

    def dump(self) -> str:
        """The plan as text: the turned recurrence, then its backward."""
        (output,) = self.turned.rows.spec.output
        turned = f"as if it were {output.text}, where {self.reader} is do and {self.reads} the gradient of o"
        lines = [f"{turned}: that o is the gradient of {self.reads}"]
        if self.repeated:
            lines.append(f"repeated for each value head: {', '.join(self.repeated)}")
        return "\n".join((*lines, self.turned.dump()))


def plan_right_backward(kernels: KeyKernelPlan) -> RightBackwardPlan:
    """The backward of kernels with a right read.

    Raises:
        NoKernel: the read cannot be turned, or the turned recurrence has no backward either.
    """
    nf, spec = kernels.chunk.normal_form, kernels.spec
    (read,) = nf.reads
    reads = _read_with(spec, read)
    _check_output(nf, read)
    repeated = [decl.name for decl in spec.inputs if _is_repeated(nf, decl)]
    reader = fresh("p", set(declared_names(spec)))
    form = derive(_turned(nf, read, reader, repeated)).chunk_form
    assert form is not None, "the update has a chunk form"
    left = replace(plan_key_backward(plan_key_decay(plan_chunk(form), kernels.size), constant=reader), puts_out=True)
    return RightBackwardPlan(kernels, left, reads, reader, tuple(repeated))


def _read_with(spec: Spec, read: Read) -> str:
    """The input that the state is read with, and that nothing else is made of."""
    span = spec.output[-1].span
    if not (isinstance(read.q, Name) and read.q.kind == "input"):
        raise NoKernel("the state is read from its other side with something that is no input", span)
    name = read.q.name
    mentions = [part for expr in _expressions(spec) for part in walk(expr) if isinstance(part, Name)]
    if sum(part.name == name for part in mentions) > 1:
        raise NoKernel(f"`{name}`, which the state is read with from its other side, is used elsewhere, too", span)
    return name


def _expressions(spec: Spec) -> Iterator[Expr]:
    yield from (derived.value for derived in spec.derived)
    for statement in (*spec.update, *spec.output):
        body = statement.body if isinstance(statement, Repeat) else (statement,)
        yield from (assign.value for assign in body)


def _check_output(nf: NormalForm, read: Read) -> None:
    span = nf.spec.output[-1].span
    if read.position not in (nf.end, Position(0, 0)):
        raise NoKernel("the state is read from its other side amid its update", span)
    if not _is_multiple(nf.output, read.name):
        raise NoKernel("the output is no multiple, by a number, of what is read from the state's other side", span)


def _is_multiple(expr: Expr, read: str) -> bool:
    """Whether `expr` is what is called `read`, times numbers."""
    match expr:
        case Name(name):
            return name == read
        case Negate(value):
            return _is_multiple(value, read)
        case Binary("*", left, right) if not left.dims:
            return _is_multiple(right, read)
        case Binary("*" | "/", left, right) if not right.dims:
            return _is_multiple(left, read)
    return False


def _is_repeated(nf: NormalForm, decl: Input) -> bool:
    return nf.spec.has_value_heads and decl.heads == "H" and nf.value in decl.dims


def _turned(nf: NormalForm, read: Read, reader: str, repeated: list[str]) -> Spec:
    """The spec with its output turned. It keeps what was read with among its inputs, so that nothing else gets that
    name."""
    spec, (state,) = nf.spec, nf.spec.states
    inputs = (replace(decl, heads="HV") if decl.name in repeated else decl for decl in spec.inputs)
    given = Input(reader, (nf.key,), "HV" if spec.has_value_heads else "H", "token", Interval(), "the gradient of o")
    S: Expr = StateRead(state.name, previous=read.position != nf.end, dims=state.dims)
    left = Contract(S if nf.transposed else Transpose(S), Name(reader, "input", given.dims))

    def turn(expr: Expr) -> Expr:
        return left if isinstance(expr, Name) and expr.name == read.name else map_children(expr, turn)

    output = turn(nf.output)
    return replace(
        spec,
        inputs=(*inputs, given),
        output=(Assign("o", output, False, f"o = {to_source(output)}", spec.output[-1].span),),
    )
