"""The kernels of odd specs are proved, too: what they use of functions holds, and what they divide by is no zero."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest

from flagen import pipeline
from flagen.diagnostics import InternalError
from flagen.kernel import Programs
from flagen.kernel.ir import Array, Fill, Given, If, Kernel, Load, Loop, Statement, Store
from flagen.kernel.prove import prove, prove_program
from flagen.spec import load_spec, parse_spec
from flagen.spec.model import Spec
from tests.specs import OPERATORS

HEAD = "flagen: 2\nname: odd\n"

ODD = {
    "a sum that a loop makes wider": """
state: {S: [K, V]}
inputs: {q: [K], k: {dims: [K], per: step}, W: [K, V]}
steps: {n: num_steps, default: 2}
update: [{repeat: n, do: ["S = S + outer(k, sum(W, K))"]}]
output: o = S.T @ (q * sum(W, V))
""",
    "constants that are folded": """
state: {h: [D]}
inputs: {x: [D], a: {dims: [D], range: [0, 1]}}
update: h = sigmoid(2) * a * h + x * tanh(1 / 3) + log(1 + softplus(1e-2))
output: o = h
""",
    "powers with all kinds of exponents": """
state: {S: [K, V]}
inputs: {q: [K], k: [K], v: [V], b: {dims: [], range: [0, 1]}}
params: {A: {dims: [], per: head}}
update: S = exp(-abs(A) ** 1.5) * S + outer((1 + b) ** A * k, 0.9 ** head * v)
output: o = S.T @ (q * (1 + q ** 2) ** -0.5)
""",
    "roots of exponentials": """
state: {S: [K, V]}
inputs: {q: [K], k: [K], v: [V], g: {dims: [K], range: [-.inf, 0]}}
update: S = sqrt(exp(g)) * S + outer(k, v)
output: o = S.T @ q
""",
    "an order of additions that only true functions have": """
state: {m: {dims: [K], init: -.inf}, S: [K, V]}
inputs: {k: [K], x: [V], u: {dims: [], range: [0.2, 0.9]}, q: [K]}
update:
  - m = logaddexp(m, k)
  - S = exp(m_prev - m) * S + outer(exp(k - m), u * x)
output: o = S.T @ q
""",
    "a number of all tokens, and a decay of each key": """
state: {S: [K, V]}
inputs: {q: [K], k: [K], v: [V], g: {dims: [K], range: [-.inf, 0]}}
params: {scale: {default: 2}}
let: {w: HV * scale}
update: S = exp(g) * S + outer(k, v)
output: o = w * (S.T @ q)
""",
    "a clamp": """
state: {h: [D]}
inputs: {x: [D], a: {dims: [D], range: [0, 1]}}
params: {low: {default: -1}, high: {default: 1}}
update: h = a * h + clamp(x, low, high)
output: o = h
""",
    "a read of nothing that is divided by": """
state: {S: [K, V], z: [K]}
inputs: {q: [K], k: [K], v: [V]}
update:
  - S = S + outer(k, v)
  - z = z + k
output: o = (S_prev.T @ q) / (z_prev @ q)
""",
    "powers of a constant, with functions and states in the exponent": """
state: {h: []}
inputs: {x: [], w: []}
update: h = 0.5 * h + 0.9 ** exp(x) + 10 ** sigmoid(x) + 0.9 ** (h * x) + 2 ** exp(w)
output: o = h * 0.9 ** tanh(x)
""",
    "high powers": """
state: {h: []}
inputs: {x: {dims: [], range: [0, 1]}, w: []}
params: {p: {dims: [], range: [100, 200], default: 128}}
update: h = 0.99 ** 128 * h + x ** 65 + 0.999 ** 100 * x + 0.9 ** (50 * w) + abs(w) ** p
output: o = h
""",
    "slopes of all heads": """
state: {S: [K, V]}
inputs: {q: [K], k: [K], v: [V]}
update: S = exp(-head / (HV - 1)) * S + outer(k, v)
output: o = (S.T @ q) * (1 - 2 ** (-5 - head * 7 / (HV - 1)))
""",
    "a division by what is zero more often than not": """
state: {S: [K, V]}
inputs: {q: [K], k: [K], v: [V]}
update: S = S + outer(k, v)
output: o = (S.T @ q) / relu(sum(S))
""",
    "angles, of tokens and of states": """
state: {h: [D]}
inputs: {x: [D], a: [D]}
update: h = 0.5 * h + x * cos(6.2831853 * fraction(a)) * fraction(h * sin(a)) + floor(4 * a)
output: o = sin(h) * cos(h) * x
""",
}


def programs_of(text: str) -> tuple[Spec, Programs]:
    spec = parse_spec(HEAD + text)
    return spec, pipeline.lower(pipeline.make_plan(spec, pipeline.derive(spec)))


@pytest.mark.parametrize("name", ODD)
def test_odd_specs_are_proved(name: str) -> None:
    spec, programs = programs_of(ODD[name])
    assert len(prove(spec, programs)) >= 2


@pytest.mark.parametrize("decay", ["exp(-softplus(0.5))", "1 - 0.5 * sigmoid(2)", "exp(-abs(0.5) ** 1.5)", "0.9"])
def test_a_decay_of_constants_is_one_number(decay: str) -> None:
    """Its logarithm is another one, and both are rounded: kernels over chunks add up the second."""
    lines = prove(
        *programs_of(f"""
state: {{S: [K, V]}}
inputs: {{q: [K], k: [K], v: [V]}}
update: S = ({decay}) * S + outer(k, v)
output: o = S.T @ q
""")
    )
    assert any("chunk_" in line for line in lines)


FORGOTTEN = (
    ("delta_rule", "cotangent", "o"),
    ("delta_rule", "cotangent", "S"),
    ("delta_rule", "gradient", "S"),
    ("delta_rule", "gradient", "beta"),
    ("hgrn", "cotangent", "o"),
    ("hgrn", "gradient", "g"),
    ("mamba", "gradient", "A"),
)


@pytest.mark.parametrize(("name", "life", "of"), FORGOTTEN)
def test_a_backward_that_does_not_know_of_something_is_refused(name: str, life: str, of: str) -> None:
    """What there is to be taken and given is asked of the spec, and not of the kernels."""
    spec = load_spec(OPERATORS[name])
    program = pipeline.lower(pipeline.make_plan(spec, pipeline.derive(spec))).fused_recurrent_backward
    assert program is not None
    known = {(array.life, array.of) for kernel in program.kernels for array in kernel.arrays}
    assert (life, of) in known
    kernels = tuple(without(kernel, life, of) for kernel in program.kernels)
    with pytest.raises(InternalError, match="gradient"):
        prove_program(spec, replace(program, kernels=kernels))


def without(kernel: Kernel, life: str, of: str) -> Kernel:
    """A kernel that never heard of an array: what it would load is zero."""

    def gone(array: Array) -> bool:
        return (array.life, array.of) == (life, of)

    def statements(body: Iterable[Statement]) -> Iterator[Statement]:
        for statement in body:
            match statement:
                case Load(target, source) if gone(source.array):
                    yield Fill(target, source.array.dims)
                case Store(target) if gone(target.array):
                    pass
                case Loop(_, inner):
                    yield replace(statement, body=tuple(statements(inner)))
                case If(conditions, then, otherwise):
                    known = [c for c in conditions if isinstance(c, Given) and gone(c.array)]
                    if known:
                        yield from statements(otherwise if known[0].given else then)
                    else:
                        yield replace(statement, then=tuple(statements(then)), otherwise=tuple(statements(otherwise)))
                case _:
                    yield statement

    arrays = tuple(array for array in kernel.arrays if not gone(array))
    return replace(kernel, arrays=arrays, body=tuple(statements(kernel.body)))


@pytest.mark.parametrize("name", ["mamba", "delta_rule"])
def test_a_gradient_is_stored_only_where_it_is_asked_for(name: str) -> None:
    """That of each argument, be it an input or a param."""
    spec = load_spec(OPERATORS[name])
    program = pipeline.lower(pipeline.make_plan(spec, pipeline.derive(spec))).fused_recurrent_backward
    assert program is not None
    *others, last = program.kernels
    gradients = [array for array in last.arrays if array.life == "gradient"]
    assert len(gradients) > 2
    for array in gradients:
        if array.of in {state.name for state in spec.states}:
            continue
        unguarded = replace(last, body=tuple(without_guard(last.body, array)))
        with pytest.raises(InternalError, match="is not given"):
            prove_program(spec, replace(program, kernels=(*others, unguarded)))


def without_guard(body: Iterable[Statement], array: Array) -> Iterator[Statement]:
    for statement in body:
        match statement:
            case If((Given(found),), then) if found == array:
                yield from then
            case Loop(_, inner):
                yield replace(statement, body=tuple(without_guard(inner, array)))
            case _:
                yield statement
