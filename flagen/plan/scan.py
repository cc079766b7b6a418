"""The plan of a chunk form of elementwise scans: all tokens of a chunk at once, chunk after chunk."""

from __future__ import annotations

from dataclasses import dataclass

from flagen.algebra.scan import ScanForm
from flagen.plan.chunk import DEFAULT_CHUNK
from flagen.spec.model import Dims, Spec


@dataclass(frozen=True)
class Result:
    """Something that the functions return for every token, [B, T, HV, *dims]."""

    name: str
    dims: Dims


@dataclass(frozen=True)
class ScanPlan:
    """The chunk form of `form`, in chunks of `size` tokens."""

    form: ScanForm
    size: int

    @property
    def spec(self) -> Spec:
        return self.form.spec

    @property
    def results(self) -> tuple[Result, ...]:
        """What the functions return, in order, before the final states."""
        return tuple(Result(name, self.form.dims(name)) for name in self.form.results)

    def dump(self) -> str:
        """The plan as text."""
        return f"chunks of {self.size} tokens, each all at once\n{self.form.dump()}"


def plan_scan(form: ScanForm) -> ScanPlan:
    """The chunk form of `form`."""
    return ScanPlan(form, form.spec.chunk.size or DEFAULT_CHUNK)
