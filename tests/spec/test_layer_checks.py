"""Whatever is wrong with a layer is told: which operator runs, what it is given, what belongs to another spec."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagen.diagnostics import SpecError
from flagen.spec import check_spec, load_spec, parse_spec
from tests.spec.layer_specs import OPERATOR


def told(forward: str, head: str = OPERATOR) -> list[str]:
    return [found.code for found in check_spec(head + forward)[1]]


CALL = "recurrence(r, q, q)"


@pytest.mark.parametrize(
    ("operator", "right"),
    [
        (CALL, True),
        (f"{CALL} if a else {CALL}", True),
        (f"{CALL} if a and b else {CALL} * 2 if not a else {CALL}", True),
        (f"{CALL} if kind == 'x' else {CALL} if kind == 'y' else {CALL}", True),
        (f"{CALL} if a else r", False),
        (f"{CALL} + {CALL}", False),
        (f"recurrence({CALL}, q, q)", False),
        (f"({CALL} if a else r * 0) + (r * 0 if a else {CALL})", True),
        (f"({CALL} if a else r * 0) + (r * 0 if b else {CALL})", False),
        (f"({CALL} if a and b else r * 0) + ({CALL} if not a or not b else r)", True),
        (f"({CALL} if may is None else r * 0) + ({CALL} if may is not None else r)", True),
        (f"({CALL} if kind == 'x' else r * 0) + ({CALL} if kind != 'x' else r)", True),
        (f"({CALL} if kind == 'x' else r * 0) + ({CALL} if kind == 'y' else r)", False),
        (f"({CALL} if kind == 'x' else {CALL}) + ({CALL} if kind == 'x' and kind == 'y' else r)", True),
        (f"({CALL} if num_heads > 2 else r * 0) + ({CALL} if num_heads <= 2 else r)", True),
    ],
)
def test_on_every_path_one_operator_runs_once(operator: str, right: bool) -> None:
    assert told(f"    - o = {operator}\n    - y = o_proj(merge(o))\n") == ([] if right else ["E806"])


@pytest.mark.parametrize(
    ("statements", "codes"),
    [
        (["o = recurrence(r, q, q)", "y = o_proj(merge(o))"], []),
        (["o = recurrence(r, k=q, v=q, scale=0.5 if a else 2)", "y = o_proj(merge(o))"], []),
        (["o = recurrence(r, q, q, scale=None)", "y = o_proj(merge(o))"], []),
        (["o = recurrence(r, q, q, scale=q)", "y = o_proj(merge(o))"], ["E808"]),
        (["o = recurrence(r, q, None)", "y = o_proj(merge(o))"], ["E808"]),
        (["o = recurrence(r, q, merge(q))", "y = o_proj(merge(o))"], ["E808"]),
        (["o = recurrence(r, q, repeat_heads(q, 2))", "y = o_proj(merge(o))"], ["E808"]),
        (["o = recurrence(r, q, repeat_heads(q, 2) if b else q)", "y = o_proj(merge(o))"], ["E808"]),
        (["o = recurrence(r, q, steps(q_proj(x), 2))", "y = o_proj(merge(o))"], ["E808"]),
        (["o = recurrence(r, q, zeros(q, 3))", "y = o_proj(merge(o))"], ["E808"]),
        (["o = recurrence(r, q, q)", "y = o_proj(merge(sum(o) * o))"], []),
        (["o, p = recurrence(r, q, q)", "y = o_proj(merge(o + p))"], ["E810"]),
        (["o = recurrence(r, q, q)", "y = o_proj(merge(o)) if o_proj else x"], ["E312"]),
    ],
)
def test_what_an_operator_is_given(statements: list[str], codes: list[str]) -> None:
    assert told("".join(f"    - {statement}\n" for statement in statements)) == codes


@pytest.mark.parametrize(
    ("shape", "right"), [("H, 16, 16", True), ("H, 8, 16", False), ("2, 16, 16", False), ("16, 16", False)]
)
def test_each_head_has_a_matrix_that_fits(shape: str, right: bool) -> None:
    params = f"  params: {{w: {{shape: [{shape}], init: full(0)}}}}\n  modules:\n"
    text = OPERATOR.replace("flagen: 1", "flagen: 2").replace("  modules:\n", params)
    _, found = check_spec(text + "    - o = recurrence(r, map_heads(q, w), q)\n    - y = o_proj(merge(o))\n")
    assert [(each.code, "[..., n, i] and [n, i, o]" in each.message) for each in found] == [("E808", True)][right:]


SOLVING = (
    OPERATOR.replace("flagen: 1", "flagen: 2\ndims: {K2: K}")
    .replace("[K, V]", "[K, K2]")
    .replace("v: [V]", "v: [K]")
    .replace("outer(k, v)", "outer(k, over(k, K2))")
    .replace("(S.T @ q)", "over(solve(S, q, v), K)")
)


@pytest.mark.parametrize(
    ("head", "steps", "codes"),
    [(SOLVING, "3", []), (SOLVING, "None", []), (SOLVING, "q", ["E808"]), (OPERATOR, "3", ["E807"])],
)
def test_what_solves_systems_is_told_by_how_many_steps(head: str, steps: str, codes: list[str]) -> None:
    call = f"recurrence(r, q, q, max_iterations={steps})"
    assert told(f"    - o = {call}\n    - y = o_proj(merge(o))\n", head) == codes


def test_a_mistake_with_one_setting_names_it() -> None:
    _, found = check_spec(
        OPERATOR + "    - o = recurrence(r, q, zeros(q, 3) if kind == 'z' else q)\n    - y = o_proj(merge(o))\n"
    )
    assert len(found) == 1 and found[0].message.endswith("with `kind='z'`")


def test_a_layer_in_a_wrong_spec_is_read_all_the_same() -> None:
    text = OPERATOR.replace("outer(k, v)", "outer(k, vv)") + "    - o = recurrence(r, q)\n    - y = o_projj(merge(o))\n"
    assert [found.code for found in check_spec(text)[1]] == ["E304", "E408"]


def test_another_spec_is_looked_for_beside_this_one_only(tmp_path: Path) -> None:
    text = OPERATOR.replace("  modules:", "  uses: {other: second}\n  modules:")
    text += "    - o = recurrence(r, q, q) if a else other(r, q, q, q)\n    - y = o_proj(merge(o))\n"
    (tmp_path / "example.yaml").write_text(text)
    parse_spec(text)  # Nothing is known of the other one.

    def codes() -> list[str]:
        with pytest.raises(SpecError) as caught:
            load_spec(tmp_path / "example.yaml")
        return [found.code for found in caught.value.diagnostics]

    assert codes() == ["E812"]
    second = text.replace("name: example", "name: second").replace("other: second", "other: example")
    (tmp_path / "second.yaml").write_text(second)
    assert codes() == ["E807"]
    (tmp_path / "second.yaml").write_text(
        second.replace("[V]}", "[V], w: [V]}").replace("outer(k, v)", "outer(k, v * w)")
    )
    assert codes() == ["E812"]  # Its own layer calls its recurrence with too few.
    right = second[: second.index("layer:")].replace("[V]}", "[V], w: [V]}").replace("outer(k, v)", "outer(k, v * w)")
    (tmp_path / "second.yaml").write_text(right)
    assert load_spec(tmp_path / "example.yaml").used == {"other": parse_spec(right)}
