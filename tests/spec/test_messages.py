"""What a person sees for each invalid spec, kept as one text, so that a change of wording shows in review.

To accept a change: `python -m tests.spec.test_messages`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from flagen.diagnostics import SpecError
from flagen.spec import check_file

HERE = Path(__file__).parent
KEPT = HERE / "messages.txt"


def messages() -> str:
    # What is wrong with a YAML file may be said by the YAML parser, in words of its own.
    paths = [path for path in sorted((HERE / "invalid").glob("*.yaml")) if not path.stem.startswith("e104")]
    return "\n\n".join(shown(path) for path in paths) + "\n"


def shown(path: Path) -> str:
    try:
        spec, warnings = check_file(path)
        text = "\n".join(found.render(spec.source) for found in warnings)
    except SpecError as error:
        text = str(error)
    return text.replace(str(path), path.name)


def test_messages_are_the_ones_that_were_reviewed() -> None:
    assert messages() == KEPT.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("stem", "hint"),
    [
        ("brace_without_colon", "write `beta: {...}`"),
        ("brace_without_colon_in_braces", "write `beta: {...`"),
        ("comma_at_the_end", "leave it out"),
        ("entries_on_one_line", "one entry a line"),
        ("item_without_space", "write `- S = S + beta * outer(k, v)`"),
        ("statement_after_items", "start it with `- `"),
        ("statement_and_key", "`output` is one statement, or a list"),
        ("statement_beside_repeat", "under `do:`"),
    ],
)
def test_a_slip_in_the_file_is_told_with_its_mend(stem: str, hint: str) -> None:
    with pytest.raises(SpecError) as caught:
        check_file(HERE / "invalid" / f"e104_{stem}.yaml")
    (found,) = caught.value.diagnostics
    assert hint in found.hint


if __name__ == "__main__":
    KEPT.write_text(messages(), encoding="utf-8")
