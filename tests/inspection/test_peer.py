"""The comparison with a peer, on operators whose bytes are counted by hand; the peer itself need not be installed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest
from torch import Tensor

from benchmarks import peer
from benchmarks.peer import BOTH, Call, Inputs, Results, Row

Compare = Callable[[Callable[..., Results]], list[Row]]

ROOT = Path(__file__).parents[2]
ROW = 2 * 128
"""Bytes of a row of a head."""


def product(q: Tensor, k: Tensor, v: Tensor, save_states: bool = False) -> Results:
    # What is saved is not used: only that it is kept counts.
    return (q * k + v if not save_states else q * k + v + 0 * q.exp()), None


def peers_product(q: Tensor, k: Tensor, v: Tensor) -> Results:
    return q * k + v, None


def with_other_gradients(q: Tensor, k: Tensor, v: Tensor) -> Results:
    return q * k + v + (q - q.detach()), None


def against(its: Callable[..., Results]) -> Callable[[Inputs], Call]:
    def call(x: Inputs) -> Call:
        given = tuple(x.vectors("qkv"))
        return Call(partial(product, *given), partial(its, *given), given)

    return call


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> Compare:
    def compare(its: Callable[..., Results]) -> list[Row]:
        monkeypatch.setattr(peer, "OPERATORS", {"product": against(its)})
        return peer.meter("product")

    return compare


def test_bytes_are_those_of_each_way_to_run(compare: Compare) -> None:
    rows = {row.figure: row for row in compare(peers_product)}
    # A product and a sum, each of which reads two rows and writes one; backward two products.
    assert rows["forward"] == Row("product", "T 256", "forward", 6 * ROW, 6 * ROW)
    assert rows[BOTH] == Row("product", "T 256", BOTH, 12 * ROW, 12 * ROW)
    assert rows["kept"] == Row("product", "T 256", "kept", 2 * ROW, 2 * ROW)
    saved = rows["kept, save_states"]
    assert (saved.ours, saved.peer, saved.ratio) == (3 * ROW, 2 * ROW, 1.5)
    assert list(rows) == ["forward", BOTH, "kept", f"{BOTH}, save_states", "kept, save_states"]


def test_no_figure_is_shown_for_gradients_that_differ(
    compare: Compare,
) -> None:
    with pytest.raises(SystemExit, match=r"product: the two gradients of input 1 are .* apart"):
        compare(with_other_gradients)


def test_no_figure_is_shown_for_outputs_that_differ(compare: Compare) -> None:
    with pytest.raises(SystemExit, match=r"product: the two outputs are .* apart"):
        compare(lambda q, k, v: (q * k - v, None))


def test_the_readme_has_the_bytes_that_were_counted() -> None:
    counted: dict[str, dict[str, Row]] = {}
    for row in (Row(**row) for row in json.loads((peer.RESULTS / "peer_bytes.json").read_text())["rows"]):
        counted.setdefault(row.operator, {})[row.figure] = row
    shown = re.findall(r"^\| `chunk_(\w+)`[^|]*\| (\d.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert shown == [(operator, " | ".join(_cells(figures))) for operator, figures in counted.items()]


def _cells(figures: Mapping[str, Row]) -> Iterator[str]:
    """Ours with its ratio, also with states saved where that can be, then the peer's."""
    for figure, ways in {"forward": [""], BOTH: ["", ", save_states"], "kept": ["", ", save_states"]}.items():
        for row in (figures.get(f"{figure}{way}") for way in ways):
            yield f"{row.ours:.0f} ({row.ratio:.2f})" if row else "-"
        yield f"{figures[figure].peer:.0f}"
