"""What the shipped kernels compile to, read off the committed table once that is known to be of them."""

from __future__ import annotations

import pytest

from benchmarks import tables
from benchmarks.tables import Tables
from flagen import inspection
from flagen.inspection import Compiled


@pytest.fixture(scope="session")
def shipped() -> list[Compiled]:
    """The rows of benchmarks/results/kernels.json. A variant's key hashes its package, and that of a row all that its
    kernel is compiled from: where the first is another, the second is compared with what generated/ launches now.
    tests/inspection compiles some rows again."""
    committed, here = Tables.read(), inspection.triton_version()
    if committed.triton != here:
        pytest.skip(f"the tables are of Triton {committed.triton}, and this is Triton {here}")
    drift = tables.drift_of_kernels(committed, tables.packages())
    if drift:
        pytest.fail("\n".join(("the tables are not those of generated/: run `make tables`", *drift)), pytrace=False)
    return list(committed.kernels)
