"""Makes the mistakes that could be in a kernel, and tells what becomes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from flagen.diagnostics import InternalError
from flagen.kernel.ir import Program
from tests.kernel.equivalent import harmless
from tests.kernel.mutants import mutants


@dataclass
class Trial:
    """How many mistakes of each kind were refused, or are none; those that got through; and changes that are told to be
    no mistakes, and were refused."""

    caught: Counter[str] = field(default_factory=Counter)
    survivors: list[str] = field(default_factory=list)
    wronged: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        return [*self.survivors, *(f"no mistake, and refused: {told}" for told in self.wronged)]


def tried(program: Program, prove: Callable[[Program], object], step: int) -> list[tuple[str, Trial]]:
    """Every `step`-th mistake in each kernel of a program, by the kernel's name; which ones differs from kernel to
    kernel."""
    return [(kernel.name, _tried(program, kernel.name, prove, step)) for kernel in program.kernels]


def _tried(program: Program, name: str, prove: Callable[[Program], object], step: int) -> Trial:
    trial, kernel = Trial(), program.kernel(name)
    for number, mutant in enumerate(mutants(kernel)):
        if (number + len(name)) % step:
            continue
        reason = harmless(kernel, mutant)
        kernels = tuple(mutant.kernel if other is kernel else other for other in program.kernels)
        try:
            prove(replace(program, kernels=kernels))
        except InternalError:
            trial.caught[mutant.kind] += 1
            if reason is not None:
                trial.wronged.append(f"{program.name}: {mutant}: {reason}")
            continue
        trial.caught["equivalent"] += 1
        if reason is None:
            trial.survivors.append(f"{program.name}: {mutant}")
    return trial
