"""The references of all variants, by name: the recurrences of operators, and of layers behind their front ends."""

from __future__ import annotations

from tests.numeric import layer_references, operator_references
from tests.numeric.recurrence import RUNS, Rule

REFERENCES: dict[str, Rule] = {
    name: RUNS[name] for module in (operator_references, layer_references) for name in vars(module) if name in RUNS
}
