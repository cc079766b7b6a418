"""Which lines of a kernel are needed for what it leaves behind."""

from __future__ import annotations

from flagen.backends.triton_.lines import live, names_in


def test_a_name_is_no_part_of_a_number():
    assert names_in("y = x * tl.rsqrt(s + 1e-06)") == {"y", "x", "tl", "s"}


def test_what_nothing_uses_is_left_out():
    lines = ["e = tl.load(e_ptr)", "x = tl.load(x_ptr)", "y = tl.rsqrt(x + 1e-06)", "tl.store(y_ptr, y)"]
    assert live(lines) == lines[1:]


def test_a_keyword_is_no_use_of_what_is_called_like_it():
    assert names_in("y = tl.load(y_ptr, mask=row_mask)") == {"y", "tl", "y_ptr", "row_mask"}


def test_an_attribute_is_no_use_of_what_is_called_like_it():
    assert names_in("y = tl.where(m, x.to(tl.float32), 0.0)") == {"y", "tl", "m", "x"}
