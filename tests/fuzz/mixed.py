"""Random specs of matrices that numbers mix, as YAML text: two or three registers, which read one another, too."""

from __future__ import annotations

import re

from hypothesis import strategies as st

INPUTS = {
    "q": "[K]",
    "k": "[K]",
    "p": "[K]",
    "v": "{dims: [V], heads: HV}",
    "g": "{dims: [], heads: HV, range: [-.inf, 0]}",
    "gk": "{dims: [K], heads: HV, range: [-.inf, 0]}",
    "a": "{dims: [], heads: HV, range: [-1, 1]}",
    "b": "{dims: [], heads: HV, range: [0, 1]}",
    "c": "{dims: [], range: [-1, 1]}",
}
PARAMS = {"w": "{per: head, range: [-1, 1]}", "scale": "{default: K ** -0.5}"}

NUMBERS = ("a", "b", "c", "w", "exp(g)", "(1 - b)", "(b - 1)", "0.5", "a * b", "-b", "1")


@st.composite
def mixed_specs(draw: st.DrawFn, *, narrow: bool = False) -> str:
    """A token's update of registers, statement by statement: each gets some of the others, as they were or as they are,
    and a row; `narrow`: such as chunk kernels take, one of them gets a row, and one vector reads."""
    names = draw(st.sampled_from([["S", "M"], ["S", "M", "N"]]))
    turned = False if narrow else draw(st.booleans())
    dims, read, row = (
        ("[V, K]", "{} @ {}", "outer({1}, {0})") if turned else ("[K, V]", "({}).T @ {}", "outer({0}, {1})")
    )
    decay = "" if narrow else draw(st.sampled_from(["", "", "exp(gk)"]))
    written = draw(st.sampled_from(names)) if narrow else None
    number = st.sampled_from(NUMBERS)

    def before(name: str) -> str:
        return f"{name}_prev" if draw(st.booleans()) else name

    def whole() -> str:
        """One register, or numbers times some."""
        some = draw(st.lists(st.sampled_from(names), min_size=1, max_size=len(names), unique=True))
        terms = [f"{draw(number)} * {before(name)}" for name in some]
        return f"({' + '.join(terms)})"

    def right() -> str:
        if draw(st.integers(0, 2)):
            return "v"
        return f"{draw(st.sampled_from(['v + ', 'b * v - ']))}{draw(number)} * ({read.format(whole(), 'p')})"

    update = []
    for name in draw(st.permutations(names)):
        terms = [f"{decay} * {whole()}" if decay else whole()]
        if name == written if narrow else draw(st.integers(0, 3)):
            terms.append(f"{draw(number)} * {row.format(draw(st.sampled_from(['k', 'k', 'q'])), right())}")
        update.append(f"{name} = {' + '.join(terms)}")
    scaled = draw(st.sampled_from(["scale", "b", "1"]))
    if narrow:
        answers = " + ".join(f"{draw(number)} * {name}" for name in names)
        output = [f"{read.format(answers, 'q')}"]
    else:
        output = [f"{scaled} * ({read.format(whole(), 'q')})"]
        output += [f"{draw(number)} * ({read.format(name, 'k')})" for name in names]
    state = ", ".join(f"{name}: {dims}" for name in names)
    statements = [*(f"  - {statement}" for statement in update), f"output: o = {' + '.join(output)}"]
    used = set(re.findall(r"\w+", " ".join(statements)))
    lines = ["flagen: 1", "name: mixed", f"state: {{{state}}}"]
    for section, declared in (("inputs", INPUTS), ("params", PARAMS)):
        found = [f"  {name}: {text}" for name, text in declared.items() if name in used]
        lines += [f"{section}:", *found] if found else []
    return "\n".join([*lines, "update:", *statements]) + "\n"
