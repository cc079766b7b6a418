"""Registers, states that numbers mix: what is found of them, what is refused and why, and that it is the recurrence."""

from __future__ import annotations

import pytest

from flagen.algebra.normal_form import NormalForm, Numbers
from flagen.spec import to_source
from tests.algebra.cases import derived, normal_form, variant

TWO = "S: [K, V], M: [K, V]"
BOTH = "o = S.T @ q + s * (M.T @ b)"


def form(*update: str, output: str = "o = S.T @ q", state: str = TWO) -> NormalForm:
    """The normal form of these statements, proved."""
    return normal_form("\n".join(f"- {statement}" for statement in update), output, state=state)


def numbers(of: Numbers) -> list[str]:
    return [to_source(number) for number in of]


def mix(nf: NormalForm) -> list[list[str]]:
    (step,) = nf.steps
    return [numbers(row) for row in step.mix]


def test_momentum():
    nf = variant("momentum_delta_rule").normal_form
    assert nf is not None
    (step,), (read,) = nf.steps, nf.reads
    assert [state.name for state in nf.registers] == ["S", "M"]
    assert mix(nf) == [["alpha", "-(mu * beta)"], ["0", "mu"]]
    (row,) = step.deltas
    assert (to_source(row.w), to_source(row.y)) == ("k", "-eta * p")
    assert row.z is not None and to_source(row.z) == "eta * v"
    assert (numbers(row.of), numbers(row.into)) == (["1", "0"], ["beta", "-1"])
    assert (numbers(read.of), nf.describe(read.position)) == (["1", "0"], "after the update")


def test_a_product_of_the_token_before():
    """A trapezoid: a register that forgets, and one row a token for both."""
    nf = form("S = exp(g) * S + r * L_prev + s * outer(k, v)", "L = outer(k, v)", state="S: [K, V], L: [K, V]")
    (step,) = nf.steps
    assert mix(nf) == [["exp(g)", "r"], ["0", "0"]]
    (row,) = step.writes
    assert (to_source(row.k), to_source(row.v), numbers(row.into)) == ("k", "v", ["s", "1"])


def test_one_read_of_several_registers():
    nf = form("S = s * S + r * M + outer(k, v)", "M = S_prev", output="o = s * (S.T @ q) + s * r * (M.T @ q)")
    (read,) = nf.reads
    assert numbers(read.of) == ["1", "r"]
    assert to_source(nf.output) == "s * read0"


def test_rows_apart_where_registers_get_them_in_other_proportions():
    nf = form("S = s * S + M + outer(k, v)", "M = r * M + outer(k, v) + s * outer(a, v)")
    (step,) = nf.steps
    rows = [(to_source(row.k), to_source(row.v), numbers(row.into)) for row in step.writes]
    assert rows == [("k", "v", ["1", "1"]), ("a", "s * v", ["0", "1"])]


def test_a_row_for_each_vector_that_reads_several_registers():
    nf = form("S = s * S + outer(k, v + S_prev.T @ p)", "M = S + r * M + outer(k, M_prev.T @ a)", output=BOTH)
    (step,) = nf.steps
    assert len(step.deltas) == 2
    assert sorted(to_source(row.y) for row in step.deltas) == ["a", "p"]


def test_erasures_one_after_the_other():
    """What the second one reads, the first one has changed: of the states before, that is a vector more."""
    nf = form("S = S + s * outer(k, v - S.T @ k)", "S = S - r * outer(p, S.T @ p)", "M = beta * M + S", output=BOTH)
    (step,) = nf.steps
    assert [to_source(row.w) for row in step.deltas] == ["k", "p"]
    assert numbers(step.deltas[0].into) == numbers(step.deltas[1].into) == ["1", "1"]


def test_a_decay_of_each_key_stays_beside_the_mix():
    nf = form("M = exp(gk) * (r * M + s * S) + outer(k, v)", "S = exp(gk) * S_prev + M")
    assert nf.decay_kind == "key" and nf.key == "K"
    assert mix(nf)[1] == ["s", "r"]


def test_registers_decayed_along_their_columns_are_turned():
    nf = form("M = exp(gv) * (r * M + s * S) + outer(k, v)", "S = exp(gv) * S_prev + M", output="o = S @ v")
    assert (nf.key, nf.value, nf.transposed) == ("V", "K", True)
    assert nf.reads[0].side == "left"


def test_states_that_read_each_other():
    nf = form("S = s * S + outer(k, v + M_prev.T @ q)", "M = r * M + outer(a, S_prev.T @ p)")
    (step,) = nf.steps
    assert mix(nf) == [["s", "0"], ["0", "r"]]
    assert [(to_source(row.w), numbers(row.of), numbers(row.into)) for row in step.deltas] == [
        ("k", ["0", "1"], ["1", "0"]),
        ("a", ["1", "0"], ["0", "1"]),
    ]


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        (("S = S + M", "M = exp(gk) * M + S_prev"), "states that are mixed decay alike"),
        (("S = S + k * M", "M = M + S_prev"), "states that are mixed decay alike"),
        (("S = S + outer(k, v) * M", "M = M + S_prev"), "differs over both dims"),
        (("S = S + M * sum(M)", "M = M + S_prev"), "multiplies the state by the state"),
        (("S = tanh(S) + M", "M = M + S_prev"), "is not affine in the state"),
        (("S = S + M + outer(k, silu(S.T @ k))", "M = M + S_prev"), "is not affine in the state"),
        (("S = S + M + outer(k, c * (S.T @ k))", "M = M + S_prev"), "is scaled per V"),
        (
            ("S = S + M + outer(k, S.T @ k)", "M = M + S_prev + outer(S_prev @ v, v)"),
            "decay and erase act on K and on V",
        ),
    ],
)
def test_what_is_refused(update, reason):
    refused = derived("\n".join(f"- {statement}" for statement in update), "o = S.T @ q + v", state=TWO).no_chunk_form
    assert refused is not None and reason in refused.reason, refused


def test_micro_steps_are_refused():
    update = "- repeat: n\n  do:\n    - S = S + M\n    - M = M + outer(kj, vj) + S_prev"
    refused = derived(update, state=TWO).no_chunk_form
    assert refused is not None and "micro-steps" in refused.reason


def test_states_that_need_no_other_are_stages_still():
    assert derived("- M = exp(g) * M + outer(k, v)\n- S = S + outer(k, M.T @ q)", state=TWO).staged is not None


def test_what_grows_without_end_is_refused():
    update = [line for _ in range(25) for line in ("S = s * S + M + outer(k, S.T @ k)", "M = M + s * S + outer(k, v)")]
    refused = derived("\n".join(f"- {statement}" for statement in update), state=TWO).no_chunk_form
    assert refused is not None and "too large an expression" in refused.reason
