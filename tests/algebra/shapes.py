"""Recurrences of odd shapes, from `shapes.yaml`: what they say and the normal form they come down to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from flagen.spec.model import Spec
from tests.algebra.cases import recurrence


@dataclass(frozen=True)
class Shape:
    """A recurrence and the dump of its normal form, from the orientation on."""

    update: str
    output: str
    state: str
    normal_form: str

    @property
    def spec(self) -> Spec:
        return recurrence(self.update, self.output, state=self.state)


def _load() -> dict[str, Shape]:
    entries = yaml.safe_load(Path(__file__).with_name("shapes.yaml").read_text(encoding="utf-8"))
    return {
        name: Shape(
            entry["update"].strip(),
            entry.get("output", "o = S.T @ q"),
            entry.get("state", "S: [K, V]"),
            entry["normal form"].strip(),
        )
        for name, entry in entries.items()
    }


SHAPES = _load()
