"""The specs that are here, in two: operators, and layers, whose recurrence another spec has without the front end.

Layers climb a ladder of their own, tests/layers; what is tried on every operator is not tried on them again.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SPECS = ROOT / "specs"


def has_layer(path: Path) -> bool:
    """Whether a spec has the section; told from its text, so that reading it can fail in a test and not before."""
    return re.search(r"^layer:", path.read_text(encoding="utf-8"), re.MULTILINE) is not None


def has_recurrence(path: Path) -> bool:
    """Whether a spec states its recurrence, and does not name another's."""
    return re.search(r"^recurrence:", path.read_text(encoding="utf-8"), re.MULTILINE) is None


_PATHS = sorted(SPECS.glob("*.yaml"))
LAYERS = {path.stem: path for path in _PATHS if has_layer(path)}
FRONT_ENDS = {name: path for name, path in LAYERS.items() if has_recurrence(path)}
"""The layers that have operators of their own."""
OPERATORS = {path.stem: path for path in _PATHS if path.stem not in LAYERS}
