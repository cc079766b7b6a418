"""The committed tables are those of generated/. `make check-tables` compares all of them; here some rows are redone:
those of two variants, their kernels for one architecture of each compiler, and gradients of the one that is quick;
without --all, those of the quick one for one architecture."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import product

import pytest

from benchmarks import tables
from benchmarks.tables import RESULTS, Tables
from flagen import inspection
from flagen.inspection import Launched, Package, Size
from tests.tiers import exhaustive, tiered

# One worker reads the tables, for all that need them.
pytestmark = pytest.mark.xdist_group("compiled")

VARIANTS = ("gla", "simple_gla")
QUICK = "simple_gla"
FIELDS = [field.name for field in fields(Launched)]
SIZE, ARCHS = Size(128, 128), ("sm_90", "gfx942")


@pytest.fixture(scope="module")
def committed() -> Tables:
    found, here = Tables.read(), inspection.triton_version()
    if found.triton != here:
        pytest.skip(f"the tables are of Triton {found.triton}, and this is Triton {here}")
    return found


@pytest.fixture(scope="module")
def packages() -> list[Package]:
    return [package for package in tables.packages() if package.name in VARIANTS]


@tiered(("name", "arch"), product(VARIANTS, ARCHS), lambda name, arch: name == QUICK and arch == ARCHS[0])
def test_kernels_compile_to_what_the_table_says(
    committed: Tables, packages: list[Package], name: str, arch: str
) -> None:
    rows = [row for row in committed.kernels if (row.variant, row.size, row.arch) == (name, str(SIZE), arch)]
    assert rows
    own = [package for package in packages if package.name == name]
    assert inspection.compile_kernels(own, [arch], [SIZE], backward=tables.BACKWARD) == rows


@tiered("name", [(name,) for name in VARIANTS], lambda name: name == QUICK)
def test_operators_move_what_the_table_says(committed: Tables, packages: list[Package], name: str) -> None:
    own = [package for package in packages if package.name == name]
    assert inspection.meter(own) == [row for row in committed.metered if row.variant == name]


def test_gradients_move_what_the_table_says(committed: Tables, packages: list[Package]) -> None:
    gradients = inspection.meter_gradients([package for package in packages if package.name == QUICK])
    assert {row.save_states for row in gradients} == {False, True}
    assert gradients == [row for row in committed.gradients if row.variant == QUICK]


def test_every_variant_and_architecture_is_in_the_tables(committed: Tables) -> None:
    folders = {package.name: tables.ROOT / "generated" / package.name for package in tables.packages()}
    names = {name for name, folder in folders.items() if list(folder.rglob("*_kernels.py"))}
    assert folders.keys() - names == {"slstm"}  # It has no kernel: nothing is compiled and nothing metered.
    assert {row.variant for row in committed.metered} == names
    assert {(row.variant, row.arch) for row in committed.kernels} == {(n, a) for n in names for a in inspection.ARCHS}


def test_the_pages_are_those_of_the_rows(committed: Tables) -> None:
    assert tables.edited(committed) == []


@exhaustive
def test_drift_is_seen(committed: Tables, packages: list[Package], monkeypatch: pytest.MonkeyPatch) -> None:
    ours = replace(
        committed,
        kernels=[row for row in committed.kernels if row.variant in VARIANTS],
        metered=[row for row in committed.metered if row.variant in VARIANTS],
        gradients=[row for row in committed.gradients if row.variant in VARIANTS],
        keys={name: committed.keys[name] for name in VARIANTS},
    )
    monkeypatch.setattr(tables, "edited", lambda _: [])
    assert tables.drift(ours, packages) == []
    first, *others = ours.kernels
    changed = replace(
        ours,
        kernels=[replace(first, key="of something else"), *others],
        keys={QUICK: "of something else", "gone": "of what is no more"},
    )
    assert tables.drift(changed, packages) == [
        f"kernels: {first.kernel}: 1 rows are missing",
        f"kernels: {first.kernel}: 1 rows are of something else",
        "metered: gla: the rows are of something else",
        f"metered: {QUICK}: the rows are of something else",
        "metered: gone: the rows are of something else",
    ]


def test_only_what_changed_is_redone(
    committed: Tables, packages: list[Package], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only what launches a kernel that no table knows is compiled."""
    asked = {}
    launched = [Launched(**{name: getattr(row, name) for name in FIELDS}) for row in committed.kernels]
    own = [row for row in launched if row.variant == QUICK]

    def make(recorded: list[Launched]) -> Tables:
        answers = {"record": recorded, "compile_kernels": [], "meter": [], "meter_gradients": []}
        for name, answer in answers.items():
            monkeypatch.setattr(
                inspection,
                name,
                lambda some, name=name, answer=answer, **_: (
                    asked.update({name: [package.name for package in some]}) or answer
                ),
            )
        keys = {package.name: inspection.package_key(package) for package in packages}
        old = replace(committed, keys=keys | {QUICK: "of something else"})
        return tables.make(old, packages, fresh=False)

    made = make(own)
    assert asked == {"record": [QUICK], "compile_kernels": [], "meter": [QUICK], "meter_gradients": [QUICK]}
    assert made.kernels == [row for row in committed.kernels if row.variant in VARIANTS]
    assert made.metered == [row for row in committed.metered if row.variant == "gla"]
    assert made.gradients == [row for row in committed.gradients if row.variant == "gla"]
    assert made.keys == {
        name: inspection.package_key(package) for name, package in zip(VARIANTS, packages, strict=True)
    }
    with pytest.raises(KeyError, match="of no table"):  # What was to compile it did not.
        make([replace(own[0], key="of no table")])
    assert asked["compile_kernels"] == [QUICK]


def test_an_edited_page_is_seen(committed: Tables) -> None:
    first, *others = committed.kernels
    assert tables.edited(replace(committed, kernels=[replace(first, registers=first.registers + 1), *others])) == [
        "kernels.json",
        "kernels.md",
    ]


def test_what_is_wrong_with_a_kernel_stands_out_on_its_page(committed: Tables) -> None:
    page = tables.kernels_page("3", [replace(committed.kernels[0], spill_bytes=12)])
    assert " / 12 / " in page and "**spills 12 bytes**" in page
    assert (RESULTS / "kernels.md").read_text().startswith("# What the generated kernels compile to\n")
