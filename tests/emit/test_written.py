"""Names given back to a spec: in what a user reads, and as arguments of public functions."""

from __future__ import annotations

import ast

import pytest

from flagen.emit.written import as_written, in_words

NAMES = {
    "row_": "row",
    "torch_": "torch",
    "len_": "len",
    "size_": "size",
    "LIMIT_": "LIMIT",
    "e_": "e",
    "launch_": "launch",
}

TEXT = '''"""Of row_, row_prev and row__prev, not of arrow_ or row__t."""

import torch
from .arguments import CALL

LIMIT = 3


def naive(row_, torch_, *, len_=None, size=1):
    """Of row_."""
    args = CALL.check(row_, len_=len_)
    row = len(row_)  # As row_ is.
    size_ = torch.ones(args.size_, LIMIT)
    total = row + size
    try:
        from .kernels import launch
    except ImportError as e:
        raise RuntimeError(f"row_ is {row_}, {row}") from e
    return kernel[1](row_, row_=row_), _private(row_=row_), {"row_": LIMIT_, "size_": size_}, total, e_, launch(launch_)


def _private(row_):
    return row_, {"row_": row_}


@triton.jit(do_not_specialize=["row_"])
def kernel(row_):
    """Of row_."""
    return row_
'''

EXPECTED = '''"""Of row, row_prev and row_prev, not of arrow_ or row__t."""

import torch
from .arguments import CALL
from builtins import len as len_
import torch as torch_

LIMIT = 3


def naive(row, torch, *, len=None, size=1):
    """Of row."""
    args = CALL.check(row, len=len)
    row_ = len_(row)  # As row is.
    size_ = torch_.ones(args.size_, LIMIT_)
    total = row_ + size
    try:
        from .kernels import launch as launch_
    except ImportError as e_:
        raise RuntimeError(f"row is {row}, {row_}") from e_
    return kernel[1](row, row_=row), _private(row_=row), {"row": LIMIT, "size_": size_}, total, e, launch_(launch)


def _private(row_):
    return row_, {"row": row_}


@triton.jit(do_not_specialize=["row_"])
def kernel(row_):
    """Of row."""
    return row_

LIMIT_ = LIMIT
'''


def test_public_functions_take_what_the_author_wrote() -> None:
    got = as_written("stage_s/naive_recurrent.py", TEXT, NAMES, dims=("size_",), symbols={})
    assert ast.unparse(ast.parse(got)) == ast.unparse(ast.parse(EXPECTED))
    assert got.replace("\n\n\n", "\n\n").split("def")[1:] == EXPECTED.replace("\n\n\n", "\n\n").split("def")[1:]


def test_other_files_keep_what_was_printed_but_for_keywords_of_public_functions() -> None:
    got = as_written("fused_recurrent_kernels.py", TEXT, NAMES, dims=("size_",), symbols={})
    code = TEXT.split("def naive")[1].replace('"""Of row_."""', '"""Of row."""').replace("# As row_ is", "# As row is")
    for string in ('{"row_"', '"row_ is', "_, len_="):
        code = code.replace(string, string.replace("row_", "row").replace("len_", "len"))
    assert got.split("def naive")[1] == code


def test_documents() -> None:
    got = as_written("DERIVATION.md", r"$\mathrm{row\_}_t$ of row_", NAMES, (), {r"\mathrm{row\_}": r"\mathrm{row}"})
    assert got == r"$\mathrm{row}_t$ of row"
    assert in_words("row_ row__t", {}) == "row_ row__t"


def test_the_index_of_a_symbol_stays_one() -> None:
    names, symbols = {"R_": "R"}, {r"\mathrm{R\_}": "R"}
    got = as_written("DERIVATION.md", r"$\mathrm{R\_}_{t} + \mathrm{R\_}$ of R_, R_prev and {R_}", names, (), symbols)
    assert got == "$R_{t} + R$ of R, R_prev and {R}"


@pytest.mark.parametrize("path", ["layer.py", "naive_recurrent.py"])
def test_without_names_nothing_changes(path: str) -> None:
    assert as_written(path, TEXT, {}, (), {}) == TEXT
