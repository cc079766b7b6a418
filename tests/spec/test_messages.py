"""What a person sees for each invalid spec, kept as one text, so that a change of wording shows in review.

To accept a change: `python -m tests.spec.test_messages`.
"""

from __future__ import annotations

from pathlib import Path

from flagen.diagnostics import SpecError
from flagen.spec import check_file

HERE = Path(__file__).parent
KEPT = HERE / "messages.txt"


def messages() -> str:
    # What is wrong with a YAML file is said by the YAML parser, in words of its own.
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


if __name__ == "__main__":
    KEPT.write_text(messages(), encoding="utf-8")
