"""Several states as stages: what is cut where, what cannot be, and that the proof sees a cut in the wrong place."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from flagen import algebra
from flagen.algebra.rewrite import map_children
from flagen.algebra.staged import StagedForm
from flagen.algebra.staged_proof import prove_stages
from flagen.diagnostics import InternalError
from flagen.spec import parse_spec
from flagen.spec.model import Assign, Expr, Interval, Name, walk
from tests.algebra.cases import recurrence, text_of, variant


def stages(update: str, output: str, state: str, **more: str) -> StagedForm:
    """The stages of a recurrence, proved, and everything that was derived of them as well."""
    spec = recurrence(update, output, state=state, **more)
    derivation = algebra.derive(spec)
    assert derivation.staged is not None, derivation.no_chunk_form
    algebra.prove(spec, derivation)
    return derivation.staged


def shown(form: StagedForm) -> list[str]:
    """What is given to and computed by each stage, a line each."""
    return [line.strip() for line in form.dump().splitlines()[1:]]


# ------------------------------------------------------------------------------------------------------------- the cuts


def test_what_vectors_become_is_evaluated_where_they_are():
    form = stages(
        "- z = logaddexp(z, k)\n- S = exp(z_prev - z) * S + outer(exp(k - z), v)",
        "o = S.T @ q",
        "S: [K, V], z: {dims: [K], init: -.inf}",
    )
    assert shown(form) == [
        "stage z [K]",
        "z = logaddexp(z, k)",
        "log_decay = z_prev - z",
        "exp_k_z = exp(k - z)",
        "stage S [K, V]",
        "given log_decay [K] in [-inf, 0]",
        "given exp_k_z [K] in [0, inf]",
        "S = exp(log_decay) * S + outer(exp_k_z, v)",
        "o = S.T @ q",
    ]
    decay, key = form.passed
    assert decay.wide, "a rounded log decay is another decay"
    assert not key.wide, "rows are rounded anyway"


@pytest.mark.parametrize(
    ("update", "decay", "highest"),
    [
        ("m = maximum(m + g, s)", "m_prev + g - m", 0),
        ("m = maximum(s, m + g)", "m_prev + g - m", 0),
        ("m = logaddexp(m + g, s)", "m_prev + g - m", 0),
        ("m = maximum(m + g, s)", "m_prev - m", math.inf),  # An argument, and nothing else, is no greater.
        ("m = maximum(m + g, s)", "m - m_prev", math.inf),
        ("m = m + g", "m_prev - m", math.inf),
    ],
)
def test_a_maximum_is_at_least_each_of_its_arguments(update, decay, highest):
    text = f"- {update}\n- S = exp({decay}) * S + exp(s - m) * outer(k, v)"
    form = stages(text, "o = S.T @ q", "S: [K, V], m: []")
    (within,) = (decl.range for decl in form.passed if decl.name == "log_decay")
    assert within.high == highest


def test_an_angle_goes_on_as_it_is():
    """In bfloat16 ten turns are no angle; a factor is one."""
    update = "- phi = fraction(phi + c)\n- S = exp(g) * S + outer(k, v)"
    for output, wide in [
        ("cos(S.T @ q + 60 * phi)", True),
        ("fraction(S.T @ q + 60 * phi)", True),
        ("S.T @ q * (60 * phi)", False),
        ("S.T @ q * cos(60 * phi)", False),
    ]:
        form = stages(update, f"o = {output}", "phi: [V], S: [K, V]")
        assert [decl.wide for decl in form.passed] == [wide]


def test_what_is_read_of_a_matrix_goes_on_as_it_is():
    form = stages(
        "- F = exp(g) * F + outer(k, v)\n- S = S + outer(k, silu(F.T @ q))",
        "o = S.T @ q",
        "S: [K, V], F: [K, V]",
    )
    assert shown(form) == [
        "stage F [K, V]",
        "F = exp(g) * F + outer(k, v)",
        "F_q = F.T @ q",
        "stage S [K, V]",
        "given F_q [V] in [-inf, inf]",
        "S = S + outer(k, silu(F_q))",
        "o = S.T @ q",
    ]
    assert form.passed[0].wide


def test_a_read_in_the_midst_of_an_update_is_taken_there():
    form = stages(
        "- F = exp(g) * F\n- S = S + outer(k, v - F.T @ k)\n- F = F + outer(k, v)",
        "o = S.T @ q",
        "S: [K, V], F: [K, V]",
    )
    assert "F_k_here = F.T @ k" in shown(form)
    lines = shown(form)
    assert lines.index("F = exp(g) * F") < lines.index("F_k_here = F.T @ k") < lines.index("F = F + outer(k, v)")


def test_a_state_before_the_token_is_not_the_one_after_it():
    form = stages("- z = exp(g) * z + k\n- S = S + outer(k * z_prev, v * s)", "o = S.T @ q", "S: [K, V], z: [K]")
    assert "k_z_prev = k * z_prev" in shown(form)


def test_two_reads_of_a_matrix_are_two_stages():
    form = stages(
        "- F = exp(g) * F + outer(k, v)\n- S = S + outer(k, F.T @ q + s * (F.T @ p))",
        "o = S.T @ q",
        "S: [K, V], F: [K, V]",
    )
    assert [stage.called for stage in form.stages] == ["F", "F", "S"]
    assert [stage.spec.name for stage in form.stages] == ["written_f", "written_f_2", "written_s"]


def test_an_output_of_several_states_comes_behind_all_of_them():
    form = stages("- S = S + outer(k, v)\n- z = z + k", "o = S.T @ q / (1 + abs(dot(z, q)))", "S: [K, V], z: [K]")
    assert form.output is not None
    assert {decl.name for decl in form.passed} == {"S_q", "z_q"} | {form.passed[-1].name}
    assert all(decl.wide for decl in form.passed)


def test_a_local_is_computed_where_its_states_are():
    form = stages(
        "- y = exp(g) * y + k * k\n- root = rsqrt(1 + y)\n- m = k * root\n- S = S + outer(m, v - S.T @ k)",
        "o = S.T @ q",
        "S: [K, V], y: [K]",
    )
    assert shown(form)[:4] == ["stage y [K]", "y = exp(g) * y + k * k", "root = rsqrt(1 + y)", "m = k * root"]
    assert "S = S + outer(m, v - S.T @ k)" in shown(form)


def test_micro_steps_get_what_is_the_same_in_all_of_them():
    form = stages(
        "- z = z + k\n- repeat: n\n  do:\n    - S = S + outer(kj * exp(-abs(z)), vj - S.T @ kj)",
        "o = S.T @ q",
        "S: [K, V], z: [K]",
    )
    (stage_of_z, stage_of_s) = form.stages
    assert stage_of_z.spec.steps is None
    assert stage_of_s.spec.steps is not None
    assert [decl.name for decl in form.given(stage_of_s)] == ["exp_z"]


@pytest.mark.parametrize("name", ["gsa", "abc_attn", "lightnet", "linear_attn_normalized", "precond_kda"])
def test_variants(name):
    derivation = variant(name)
    assert derivation.staged is not None
    assert len(derivation.stages) == len(derivation.staged.stages)


@pytest.mark.parametrize(
    ("update", "output", "more"),
    [
        ("", "e * (S.T @ q) / (1 + dot(z, k) ** 2)", "let: {e: s * A}"),
        ("- e = s * A\n", "e * (S.T @ q) / (1 + dot(z, k) ** 2)", ""),
        ("- e = s * A\n- f = e + s\n", "(1 - f) * (S.T @ q) / (1 + dot(z, f * k) ** 2)", ""),
        ("- e = s * beta\n", "f * c + (S.T @ q) / (1 + dot(z, e * k) ** 2)", "let: {i: tanh(s), f: i * beta}"),
    ],
    ids=["let", "a local", "a local of a local", "both"],
)
def test_an_output_behind_the_stages_names_what_let_and_locals_hold(update, output, more):
    """`stages` proves them; locals are written out, for behind the stages there are no statements."""
    form = stages(f"{update}- S = S + outer(k, v)\n- z = z + k", f"o = {output}", state="S: [K, V], z: [K]", more=more)
    assert form.output is not None
    assert not any(isinstance(node, Name) and node.kind == "local" for node in walk(form.output))


def test_a_stage_knows_every_size_that_it_needs():
    """Of the dim of another state, which it names; and of its own, where only numbers are added to it."""
    form = stages("- z = beta * z + s\n- S = S + outer(z, v)", "o = S.T @ q", "S: [K, V], z: [K]")
    assert {dim for decl in form.stages[0].spec.inputs for dim in decl.dims} == {"K"}
    form = stages("- F = F + outer(k, x)\n- S = S + outer(k, v)", "o = M * (S.T @ (F @ x))", "S: [K, V], F: [K, M]")
    assert "M" in {dim for decl in form.stages[1].spec.inputs for dim in decl.dims}


# ------------------------------------------------------------------------------------------------------------- at once


@pytest.mark.parametrize(
    ("update", "state", "called"),
    [
        ("- y = exp(g) * y + k\n- z = z + y\n- S = S + outer(z, v)", "y: [K], z: [K]", ["y and z", "S"]),
        ("- y = y + k\n- z = z + k * s\n- S = S + outer(y, dot(z, k) * v)", "y: [K], z: [K]", ["y and z", "S"]),
        ("- y = y + k\n- z = z + q\n- S = S + outer(y * z, v)", "y: [K], z: [K]", ["y and z", "S"]),
        ("- y = y + k\n- z = z + q\n- S = S + outer(y, dot(z, z) * v)", "y: [K], z: [K]", ["y", "z", "S"]),
        ("- y = y + k\n- n = n + dot(y, k)\n- z = z + n * k\n- S = S + outer(z, v)", "y: [K], n: [], z: [K]", None),
    ],
    ids=["one needs the other", "both read k", "a vector is made of both", "unrelated", "another one in between"],
)
def test_elementwise_states_are_taken_at_once(update, state, called):
    form = stages(update, "o = S.T @ q", f"S: [K, V], {state}")
    assert [stage.called for stage in form.stages] == (called or ["y", "n", "z", "S"])


def test_no_states_are_taken_at_once_across_a_matrix():
    form = stages(
        "- y = exp(g) * y + v\n- F = F + outer(k, y)\n- z = z + y * (F.T @ q)\n- S = S + outer(k, z)",
        "o = S.T @ q",
        "S: [K, V], F: [K, V], y: [V], z: [V]",
    )
    assert [stage.called for stage in form.stages] == ["y", "F", "z", "S"]


# ------------------------------------------------------------------------------------------------------------ refusals


@dataclass(frozen=True)
class Refusal:
    """A recurrence that has no stages, what is wrong with it between << and >>, and the reason."""

    update: str
    reason: str
    state: str
    output: str = "o = S.T @ q"


REFUSALS = {
    "a cycle": Refusal(
        "- S = exp(g) * S + outer(k, v - <<F>>.T @ x)\n- F = exp(g) * F + outer(x, v - S.T @ q)",
        "no state can be run before the others: S needs F, and F needs S",
        "S: [K, V], F: [M, V]",
    ),
    "a matrix that is not read": Refusal(
        "- F = F + outer(x, v)\n- S = S + outer(k, v) + X @ MV.T @ <<F>>",
        "F is used whole, not read by a vector",
        "S: [K, V], F: [M, V]",
    ),
    "a stage that is not affine": Refusal(
        "- F = <<tanh(F)>> + outer(k, v)\n- S = S + outer(k, F.T @ q)",
        "the stage of F has no chunk form: `tanh(F)` is not affine in the state",
        "S: [K, V], F: [K, V]",
    ),
    "a vector that is no scan": Refusal(
        "- z = <<tanh(z)>> + k\n- S = S + outer(z, v)",
        "the stage of z has no chunk form: ",
        "S: [K, V], z: [K]",
    ),
    "a matrix that is read by what was read of it": Refusal(
        "- F = F + outer(k, v)\n- S = S + outer(k, v)",
        "the stage of F has no chunk form: `F @ (F.T @ q)` multiplies the state by the state",
        "S: [K, V], F: [K, V]",
        "o = S.T @ (<<F @ (F.T @ q)>>)",
    ),
    "what changes in micro-steps": Refusal(
        "- repeat: n\n  do:\n    - F = F + outer(kj, vj)\n    - S = S + outer(kj, <<F.T @ q>>)",
        "what changes from micro-step to micro-step has another state depend on it",
        "S: [K, V], F: [K, V]",
    ),
}


@pytest.mark.parametrize("case", REFUSALS.values(), ids=REFUSALS)
def test_what_has_no_stages_says_why_and_where(case):
    plain = [part.replace("<<", "").replace(">>", "") for part in (case.update, case.output)]
    text = text_of(*plain, state=case.state)
    marked = text_of(case.update, case.output, state=case.state)
    found = algebra.derive(parse_spec(text, "written.yaml"))
    reason = found.no_chunk_form
    assert reason is not None
    assert reason.reason.startswith(case.reason)
    line, column = reason.span.line, reason.span.column
    start = marked.index("<<")
    assert (line, column) == (marked.count("\n", 0, start) + 1, start - marked.rfind("\n", 0, start))
    underlined = text.splitlines()[line - 1][column - 1 : column - 1 + reason.span.length]
    assert underlined == marked[start + 2 : marked.index(">>")]


# --------------------------------------------------------------------------------------------------------- the mistakes


def forms() -> list[StagedForm]:
    names = ("gsa", "abc_attn", "lightnet", "linear_attn_normalized", "precond_gated_delta_rule")
    found = [variant(name).staged for name in names]
    return [form for form in found if form is not None]


def swapped(expr: Expr, old: str, new: str) -> Expr:
    """`expr` with the name `old` taken for `new`."""
    if isinstance(expr, Name) and expr.name == old:
        return replace(expr, name=new)
    return map_children(expr, lambda child: swapped(child, old, new))


def rewritten(form: StagedForm, place: int, change: Callable[[Assign], Assign]) -> StagedForm:
    """`form` with every statement of a stage changed."""
    stage = form.stages[place]
    assert all(isinstance(statement, Assign) for statement in stage.spec.update)
    spec = replace(
        stage.spec, update=tuple(map(change, stage.spec.update)), output=tuple(map(change, stage.spec.output))
    )
    changed = replace(stage, spec=spec)
    return replace(form, stages=(*form.stages[:place], changed, *form.stages[place + 1 :]))


@pytest.mark.parametrize("form", forms(), ids=lambda form: form.spec.name)
def test_the_proof_sees_what_is_given_in_the_wrong_place(form):
    """A stage that is given something else than it should be."""
    for place, stage in enumerate(form.stages):
        for given in form.given(stage):
            others = [decl.name for decl in stage.spec.inputs if decl.dims == given.dims and decl.name != given.name]
            for other in others:
                wrong = rewritten(
                    form, place, lambda a, g=given.name, o=other: replace(a, value=swapped(a.value, g, o))
                )
                with pytest.raises(InternalError, match="is not the recurrence's"):
                    prove_stages(wrong)


@pytest.mark.parametrize("form", forms(), ids=lambda form: form.spec.name)
def test_the_proof_sees_results_that_are_mixed_up(form):
    for place, stage in enumerate(form.stages):
        results = stage.results
        if len(results) > 1 and results[0].dims == results[1].dims:
            mixed = replace(stage, results=(results[1], results[0], *results[2:]))
            wrong = replace(form, stages=(*form.stages[:place], mixed, *form.stages[place + 1 :]))
            if stage.is_scan:  # Their outputs are called what the results are: call the expressions otherwise, too.
                first, second, *others = stage.spec.output
                output = (replace(first, value=second.value), replace(second, value=first.value), *others)
                spec = replace(stage.spec, output=output)
                wrong = replace(
                    form, stages=(*form.stages[:place], replace(stage, spec=spec), *form.stages[place + 1 :])
                )
            with pytest.raises(InternalError, match="is not the recurrence's"):
                prove_stages(wrong)
            return
    assert form.spec.name in ("gsa", "linear_attn_normalized", "precond_gated_delta_rule")


def test_ranges_of_what_is_passed_on():
    form = stages("- z = exp(g) * z + k\n- S = S + outer(sigmoid(z), v)", "o = S.T @ q", "S: [K, V], z: [K]")
    assert [decl.range for decl in form.passed] == [Interval(0, 1)]


TURNED_IN_STEPS = """
flagen: 2
name: turned_in_steps
dims: {R: K / 2}
state: {turn: [R], S: [K, V]}
inputs:
  q: [K]
  k: [K]
  v: [V]
  theta: {dims: [R], heads: HV}
  b: {dims: [], per: step, range: [0, 1]}
steps: {n: num_steps}
update:
  - turn = turn + theta
  - repeat: n
    do:
      - S = S + b * outer(rotate(k, turn), v - S.T @ q)
output: o = S.T @ q
"""


def test_rows_of_micro_steps_turn_by_angles_of_an_earlier_stage():
    """Of what is tried first, a part has an update of no statement."""
    spec = parse_spec(TURNED_IN_STEPS)
    derivation = algebra.derive(spec)
    algebra.prove(spec, derivation)
    assert derivation.staged is not None
    assert [stage.called for stage in derivation.staged.stages] == ["turn", "S"]
