"""What is added to a tile, or stored from one, says over which dims that is."""

from __future__ import annotations

import pytest

from flagen.backends.triton_.kernel_printer import KernelPrinter
from flagen.diagnostics import InternalError
from flagen.kernel.backward import Lowering
from flagen.kernel.check import check
from flagen.kernel.ir import Kernel, Let, Loop
from flagen.plan.backward_actions import Add, Give, Gradient, Leave, Vector, Zero
from flagen.plan.schedule import Set
from flagen.plan.tiles import Constant, Value
from flagen.spec import parse_spec

SPEC = parse_spec("""
flagen: 1
name: sums
state: {S: [K, V]}
inputs: {X: [K, V], k: [K], v: [V]}
update: S = S + outer(k, v) + X
output: o = S.T @ k
""")
(X, *_) = SPEC.inputs
ALONG_K, ALONG_V, NUMBER = (Value(name, "local", dims) for name, dims in (("x", ("K",)), ("y", ("V",)), ("z", ())))
WHOLE = ("K", "V")


def lines(*actions):
    """What a kernel does that has these actions for each token, as source lines."""
    lowering = Lowering(SPEC, WHOLE, Vector("do", ("V",), "token", shared=False), ("sequence", "head"), blocked=False)
    body = (Loop("token", tuple(lowering.statements(actions))),)
    kernel = Kernel("", "sequence", None, WHOLE, (), (), ("T",), ("HV", *WHOLE), frozenset(), body)
    printed = list(KernelPrinter(check(kernel)).lines())
    return [
        line.strip()
        for line in printed[printed.index("for token in tl.range(first_token, end_token, num_stages=1):") :]
    ][1:]


@pytest.mark.parametrize(
    ("value", "text"),
    [(ALONG_K, "x[:, None]"), (ALONG_V, "y[None, :]"), (NUMBER, "z"), (Value("w", "local", WHOLE), "w")],
)
def test_a_vector_is_added_along_its_own_axis(value, text):
    assert lines(Zero("d", WHOLE), Add("d", value, WHOLE))[1] == f"d += {text}"


def test_a_gradient_that_lacks_a_dim_is_stored_along_its_own_axis():
    stored = lines(Set("d", ALONG_K), Give(Gradient(X, "d", X.dims, shared=False), ("K",)))
    assert "d[:, None].to(" in stored[-1]


@pytest.mark.parametrize(
    "actions",
    [
        (Zero("d", WHOLE), Add("d", ALONG_K, ("K",))),
        (Set("d", ALONG_K), Add("d", ALONG_V, ("V",))),
        (Set("d", ALONG_K), Add("d", ALONG_V, WHOLE)),
        (Zero("d", ("K",)), Add("d", ALONG_V, ("K",))),
        (Set("d", ALONG_K), Leave(Vector("d", WHOLE, "token", shared=False))),
        (Set("d", ALONG_K), Give(Gradient(X, "d", X.dims, shared=False), WHOLE)),
    ],
)
def test_dims_that_do_not_fit_are_an_error(actions):
    with pytest.raises(InternalError, match="over"):
        lines(*actions)


def test_what_is_given_in_a_loop_alone_is_gone_behind_it():
    """Triton compiles no name that a loop has given; its interpreter, which is Python, would run it."""
    given, read = Let("x", Constant(1.0)), Let("y", Value("x", "local", ()))

    def kernel(*body):
        return Kernel("", "sequence", None, WHOLE, (), (), ("T",), ("HV", *WHOLE), frozenset(), body)

    check(kernel(given, Loop("token", (given,)), read))
    check(kernel(Loop("token", (given, read)), given, read))
    check(kernel(Loop("block", (given,), dim="K", whole=True), read))
    for body in ((Loop("token", (given,)), read), (Loop("token", (Loop("micro_step", (given,)), read)),)):
        with pytest.raises(InternalError, match="`x` is given in a loop alone, and is used behind it"):
            check(kernel(*body))
