"""W701: there where a state may grow, not where it may not, and gone once one does what its hint says."""

from __future__ import annotations

import re

import pytest

from flagen.spec import check_spec
from flagen.spec.model import Spec

LOG, UNIT = "range: [-.inf, 0]", "range: [0, 1]"


def spec_of(given: str, derived: str, update: str) -> str:
    """A spec over one state `h`; `given` are its inputs, but for those after a `;`, which are params."""
    inputs, _, params = given.partition(";")
    return "\n".join(
        [
            *("flagen: 1", "name: example", "state: {h: [D]}", "inputs:", "  x: [D]"),
            *(f"  {name.strip()}" for name in inputs.split("|") if name.strip()),
            *(["params:"] if params else []),
            *(f"  {name.strip()}" for name in params.split("|") if name.strip()),
            *(["decay:"] if derived else []),
            *(f"  {name.strip()}" for name in derived.split("|") if name.strip()),
            f"update: {update}",
            "output: o = h",
            "",
        ]
    )


def warnings(text: str) -> list[str]:
    spec, found = check_spec(text, "example.yaml")
    assert isinstance(spec, Spec)
    return [f"{each.message}\n{each.hint}" for each in found]


BOUNDED = [
    (f"g: {{dims: [D], {LOG}}}", "a: exp(g)", "h = a * h + x"),
    (f"z: {{dims: [D], {UNIT}}}", "", "h = (1 - z) * h + z * x"),
    (f"z: {{dims: [D], {UNIT}}}", "", "h = h + z * (x - h)"),
    (f"y: {{dims: [D], {UNIT}}} | z: {{dims: [D], {UNIT}}}", "", "h = (1 - y) * (1 - y * z) * h + x"),
    ("f: [D] | i: [D]", "u: sigmoid(f) | w: sigmoid(i) | a: u / (u + w)", "h = a * h + w * x"),
    ("f: [D] | i: [D]", "u: sigmoid(f) | w: sigmoid(i) | n: w + u | a: u / n", "h = a * h + w * x"),
    ("f: [D] | i: [D]", "a: 1 - exp(i) / (exp(f) + exp(i))", "h = a * h + x"),
    ("f: [D] | i: [D]", "a: exp(f - logaddexp(f, i))", "h = a * h + x"),
    ("f: [D] | i: [D]", "a: exp(f) / maximum(exp(f), exp(i))", "h = a * h + x"),
    ("b: {dims: [D], range: [1, .inf]}", "", "h = h / b + x"),
    ("b: [D] ; rate: {default: 0.9}", "", "h = rate * h + b * x"),
    ("b: [D] ; layer: {default: 0} | layers: {default: 1}", "a: exp(-8 * (1 - layer / layers))", "h = a * h + b * x"),
    ("b: [D]", "", "h = h / norm(h) + b * x"),
]


@pytest.mark.parametrize(("given", "derived", "update"), BOUNDED)
def test_what_cannot_grow_is_not_warned_of(given: str, derived: str, update: str) -> None:
    assert warnings(spec_of(given, derived, update).replace("decay:", "let:")) == []


GROWING = [
    (f"g: {{dims: [D], {LOG}}}", "", "h = g * h + x"),
    (f"g: {{dims: [D], {UNIT}}}", "a: exp(g)", "h = a * h + x"),
    (f"g: {{dims: [D], {LOG}}}", "a: exp(-g)", "h = a * h + x"),
    ("g: [D]", "a: exp(g)", "h = a * h + x"),
    ("g: [D]", "a: g", "h = a * h + x"),
    ("g: [D]", "", "h = g * h + x"),
    ("g: [D]", "", "h = (1 - g) * h + g * x"),
    ("g: {dims: [D], range: [0, 3]}", "", "h = h - g * h + x"),
    ("g: [D] | f: [D]", "a: exp(g + f)", "h = a * h + x"),
    ("g: [D] | f: [D]", "a: exp(f - g)", "h = a * h + x"),
    ("g: [D]", "a: 2 * sigmoid(g)", "h = a * h + x"),
    ("g: [D] ; rate: {}", "a: exp(-rate * exp(g))", "h = a * h + x"),
    ("g: [D] ; rate: {per: head}", "a: rate", "h = a * h + g * x"),
    ("g: [D] ; layer: {} | layers: {}", "a: exp(-8 * (1 - layer / layers))", "h = a * h + g * x"),
    ("g: [D]", "a: exp(g)", "h = tanh(a * h) + x"),
]


def declared(text: str, name: str, interval: str) -> str:
    """The spec with the range of `name` declared to be another."""
    (line,) = (line for line in text.split("\n") if line.startswith(f"  {name}: "))
    bare = re.sub(r"(, )?range: \[[^]]*\]", "", line)
    longer = bare if "{d" in bare else bare.replace("[D]", "{dims: [D]}").replace("{}", "{default: 1}")
    return text.replace(line, longer[:-1] + f", {interval}}}")


def rewritten(text: str, factor: str, value: str) -> str:
    """The spec with a factor replaced, where it is named or where it stands."""
    named = [line for line in text.split("\n") if line.startswith(f"  {factor}: ")]
    if len(named) == 1 and "[" not in named[0]:
        return text.replace(named[0], f"  {factor}: {value}")
    return text.replace(f"{factor} * h", f"({value}) * h").replace("h - g * h", f"({value}) * h")


@pytest.mark.parametrize(("given", "derived", "update"), GROWING)
def test_whoever_follows_the_hint_is_rid_of_the_warning(given: str, derived: str, update: str) -> None:
    text = spec_of(given, derived, update)
    (warning,) = warnings(text)
    message, hint = warning.split("\n")
    (factor,) = re.findall(r"(?:factor|decay) `([^`]*)`", message)
    ways = 0
    first, _, log = hint.partition("; a log decay has")
    if ranges := re.findall(r"`(range: \[[^`]*\])` of `(\w+)`", first):
        changed = text
        for interval, name in ranges:
            changed = declared(changed, name, interval)
        assert warnings(changed) == [], hint
        ways += 1
    for name, interval in re.findall(r"range of `(\w+)`, such as `(range: [^`]*)`", first):
        assert warnings(declared(text, name, interval)) == [], hint
        ways += 1
    for value in re.findall(r"(?:write|bound it:) `([^`]*)`", first):
        factor_there = factor.replace("1 - g", "(1 - g)") if "(1 - g)" in text else factor
        assert warnings(rewritten(text, factor_there, value)) == [], hint
        ways += 1
    if log:
        (interval,), (value,) = re.findall(r"`(range: [^`]*)`", log), re.findall(r"through `([^`]*)`", log)
        name = value.removeprefix("exp(").removesuffix(")")
        assert warnings(declared(rewritten(text, factor, value), name, interval)) == [], hint
    assert ways


def test_a_factor_by_way_of_another_state_is_not_judged() -> None:
    text = spec_of("g: [D]", "", "[m = h - g * m, h = h + g * m + x]").replace("{h: [D]}", "{h: [D], m: [D]}")
    assert all("`h`" not in warning for warning in warnings(text))


def test_one_decay_of_two_states_is_warned_of_once() -> None:
    text = spec_of("g: [D]", "a: exp(g)", "[m = a * m + x, h = a * h + m]").replace("{h: [D]}", "{h: [D], m: [D]}")
    (warning,) = warnings(text)
    assert "the decay `a`" in warning


def test_work_is_bounded_where_factors_build_on_each_other() -> None:
    """Written out, this factor has 2 ** 200 terms."""
    doubling = ", ".join("h = h + g * h" for _ in range(200)) + ", h = h + x"
    assert warnings(spec_of(f"g: {{dims: [D], {UNIT}}}", "", f"[{doubling}]")) == []
