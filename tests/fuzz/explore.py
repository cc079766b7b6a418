"""Many random specs through everything, one after another, and what they reached.

    python -m tests.fuzz.explore --count 1000 --start 0 --stage kernels

Each number is one spec, the same one everywhere; those of version 2 begin at 2000000. A spec is refused with documented
codes or it builds, and its kernels are proved; then all its forms are its recurrence. Kernels run in PyTorch, those of
every tenth spec in Triton's interpreter, with --interpret all. What fails is printed with its number, and with --show
as text.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

os.environ.setdefault("TRITON_INTERPRET", "1")

import torch

from flagen import pipeline
from flagen.diagnostics import SpecError
from flagen.plan import Plan, StagedPlan
from flagen.plan.chunk import ChunkPlan
from flagen.spec import CODES, parse_spec
from flagen.spec.model import (
    Binary,
    Call,
    Contract,
    Expr,
    Index,
    Name,
    Negate,
    Over,
    Reduce,
    Rotate,
    RowMap,
    Solution,
    Spec,
    walk,
)
from tests.fuzz import kernels, ladder
from tests.fuzz.dense import DenseAuthor
from tests.fuzz.packages import imported, planned, written
from tests.fuzz.turned import TurnedAuthor
from tests.vectorized.launches import vectorized

STAGES = ("build", "naive", "kernels")
OF_VERSION_2 = 2_000_000
"""The number from which on specs are of version 2 of the language."""
_INTERPRETED = 10
"""Of so many specs the kernels of one run in Triton's interpreter."""


@dataclass
class Covered:
    """What a run of specs reached, and what failed."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[tuple[int, str, str]] = field(default_factory=list)

    def show(self) -> str:
        """A line for everything that was reached, with how often, then the failures."""
        groups: dict[str, list[str]] = {}
        for (group, what), count in sorted(self.counts.items()):
            groups.setdefault(group, []).append(f"{what} {count}")
        lines = [f"{group}: {', '.join(found)}" for group, found in groups.items()]
        failed = (f"  {number}: {why}" for number, why, _ in self.failures)
        return "\n".join([*lines, f"failures: {len(self.failures)}", *failed])


def text_of(number: int) -> str:
    """The spec of this number."""
    below = random.Random(number).randrange
    return DenseAuthor(below).dense() if number < OF_VERSION_2 else TurnedAuthor(below).turned()


def explore(numbers: range, stage: str, *, interpret: bool = True, follow: bool = False) -> Covered:
    """The specs of these numbers as far as `stage`; without `interpret` most kernels run in PyTorch."""
    covered = Covered()
    for number in numbers:
        began = time.perf_counter()
        try:
            with nullcontext() if interpret or number % _INTERPRETED == 0 else vectorized():
                covered.counts.update(climbed(number, stage))
        except Exception as error:  # Whatever it is: a spec never fails.
            why = " ".join((str(error) or type(error).__name__).split())
            last = traceback.extract_tb(error.__traceback__)[-1]
            told = f"{type(error).__name__}: {why[:300]} ({os.path.basename(last.filename)}:{last.lineno})"
            covered.failures.append((number, told, "".join(traceback.format_exception(error))))
        if follow:
            taken = time.perf_counter() - began
            failed = [why for n, why, _ in covered.failures if n == number]
            if failed or taken > 60:
                print(f"{number}: {taken:.0f} s {' '.join(failed)}", flush=True)
    return covered


def climbed(number: int, stage: str) -> list[tuple[str, str]]:
    """Take the spec of this number as far as `stage`, on a few of all shapes; what it reached on the way."""
    try:
        spec = parse_spec(text_of(number))
    except SpecError as error:
        codes = {diagnostic.code for diagnostic in error.diagnostics}
        assert codes <= set(CODES)
        return [("refused", code) for code in sorted(codes)]
    plan = planned(spec)
    reached = [*forms(plan), *roles(plan), *shape(spec)]
    reached += [("notes", remark.code) for remark in pipeline.remarks_on(plan)]
    files = written(plan)
    if stage == "build":
        return reached
    with imported(files) as package:
        compared = ladder.check(spec, package, shapes=in_turn(ladder.SHAPES, number, 2))
        reached.append(("PyTorch forms", "compared" if compared else "never finite"))
        if stage == "kernels" and compared:
            told = kernels.check(spec, package, shapes=in_turn((*kernels.SHAPES, kernels.EQUAL), number, 1))
            reached += [("kernels' results", "gradients" if name.startswith("d ") else "values") for name in told]
            reached.append(("kernels", "compared" if told else "not told apart by float32"))
    if stage == "kernels":
        proved = pipeline.prove_kernels(spec, pipeline.lower(plan))
        reached += [("proof of kernels", "none" if "not compared" in line else "whole") for line in proved]
    return reached


def in_turn(shapes: Sequence[ladder.Shape], number: int, count: int) -> list[ladder.Shape]:
    """`count` of `shapes`, others for the next number."""
    return [shapes[(number + place) % len(shapes)] for place in range(count)]


def forms(plan: Plan) -> Iterator[tuple[str, str]]:
    """Which forms a plan has, by the classes of their plans."""
    for form in ("chunk", "chunk_kernel", "chunk_backward", "fused", "fused_backward"):
        yield form, type(getattr(plan, form)).__name__


def shape(spec: Spec) -> Iterator[tuple[str, str]]:
    """What a spec has in it."""
    yield "specs", f"of {len(spec.states)} states"
    yield "heads", "shared" if spec.has_value_heads else "all alike"
    if spec.steps is not None:
        yield "specs", "with micro-steps"
    if spec.following:
        yield "specs", "with dims that follow"


def roles(plan: Plan) -> Iterator[tuple[str, str]]:
    """What stands in each role of a row, by the kernels that get it; those of stages, too."""
    if isinstance(plan.chunk_kernel, StagedPlan):
        for stage in plan.chunk_kernel.stages:
            yield from roles(stage.plan)
    if not isinstance(plan.chunk, ChunkPlan):
        return
    nf, family = plan.chunk.normal_form, type(plan.chunk_kernel).__name__.removesuffix("Plan")
    found = [("output", nf.output), *(("q", read.q) for read in nf.reads), *(("g", decay.log) for decay in nf.decays)]
    for step in nf.steps:
        found += [(role, expr) for row in step.deltas for role, expr in (("w", row.w), ("y", row.y), ("z", row.z))]
        found += [(role, expr) for row in step.writes for role, expr in (("k", row.k), ("v", row.v))]
    for role, expr in found:
        kinds = set() if expr is None else set(kinds_in(plan.spec, expr))
        yield from ((f"{family}, {role}", kind) for kind in sorted(kinds))


def kinds_in(spec: Spec, expr: Expr) -> Iterator[str]:
    """What an expression is made of, through the names of `let` and `decay`."""
    for node in walk(expr):
        match node:
            case Negate():
                yield "negation"
            case Binary(op):
                yield {"+": "sum", "-": "sum", "*": "product", "/": "quotient", "**": "power"}[op]
            case Call() | RowMap():
                yield "map"
            case Reduce() | Contract():
                yield "reduction"
            case Rotate():
                yield "rotation"
            case Over():
                yield "renaming"
            case Index():
                yield "place"
            case Solution():
                yield "solution"
            case Name(name, "param"):
                yield "per head" if next(param for param in spec.params if param.name == name).per_head else "param"
            case Name(_, "head"):
                yield "head"
            case Name(name, "derived"):
                yield from kinds_in(spec, next(decl.value for decl in spec.derived if decl.name == name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--stage", choices=STAGES, default="kernels")
    parser.add_argument("--interpret", action="store_true", help="run all kernels in Triton's interpreter")
    parser.add_argument("--show", action="store_true", help="print each spec that fails, and the traceback")
    options = parser.parse_args()
    from flagen.triton_cpu import repair

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    repair()
    began = time.perf_counter()
    numbers = range(options.start, options.start + options.count)
    covered = explore(numbers, options.stage, interpret=options.interpret, follow=True)
    print(covered.show())
    if options.show:
        for number, _, trace in covered.failures:
            print(f"\n--- {number}\n{text_of(number)}\n{trace}")
    print(f"{options.count} specs in {time.perf_counter() - began:.0f} s")
    return 1 if covered.failures else 0


if __name__ == "__main__":
    sys.exit(main())
