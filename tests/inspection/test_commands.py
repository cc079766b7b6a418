"""`flagen inspect` and `flagen meter`."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from importlib.metadata import version

import pytest

from flagen import report
from flagen.inspection import Direction, Figures, MeteredGradients
from tests.cli.conftest import ROOT, Flagen, Workspace, flagen, project
from tests.tiers import exhaustive

__all__ = ["flagen", "project"]

OK, FAILED = 0, 2

THREE_DIMS = """\
flagen: 1
name: cube
state: {S: [K, V, M]}
inputs: {k: [K], v: [V], m: [M]}
update: S = S + outer(outer(k, v), m)
output: o = (S @ m).T @ k
"""


ONE_KERNEL = """\
flagen: 1
name: cell
state: {S: [K, V]}
inputs: {q: [K], k: [K], v: [V], g: [K]}
update: S = exp(g) * tanh(S) + outer(k, v)
output: o = S.T @ q
"""
"""Not affine: it has no chunk form."""


def in_a_pipe(*arguments: str) -> list[str]:
    """Run the command in a process of its own; the lines it prints."""
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "40", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "flagen", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert (done.returncode, done.stderr) == (OK, "")
    assert "\x1b" not in done.stdout
    return done.stdout.splitlines()


@exhaustive
def test_inspect_prints_a_row_a_kernel_and_size(flagen: Flagen, project: Workspace) -> None:
    project.spec("cell").write_text(ONE_KERNEL)
    flagen("build", "cell")
    head, *rows, summary = in_a_pipe("inspect", "cell", "--arch", "sm_90")
    assert re.split(r"  +", head) == [
        *("kernel", "size", "config", "arch", "registers", "spilled", "shared", "matrix instructions", "verdict")
    ]
    cells = [re.split(r"  +", row) for row in rows]
    kernels = (
        "fused_recurrent_cell_kernel",
        "fused_recurrent_cell_states_kernel",
        "fused_recurrent_cell_gradients_kernel",
    )
    assert sorted(row[:2] for row in cells) == sorted(
        [kernel, size] for kernel in kernels for size in ("128x128", "256x256", "100x60")
    )
    assert all(row[3] == "sm_90" and 16 <= int(row[4]) <= 255 for row in cells)
    forward = [row for row in cells if row[0] == kernels[0]]
    assert all(row[5] == "0" and row[7:] == ["-", "ok"] for row in forward)
    assert summary.startswith(f"9 compiled by Triton {version('triton')}, bf16: ")


@exhaustive
def test_time_prints_a_row_a_kernel_and_direction(flagen: Flagen, project: Workspace) -> None:
    project.spec("cell").write_text(ONE_KERNEL)
    flagen("build", "cell")
    lines = in_a_pipe("inspect", "cell", "--time", "8,4096,16")
    titles = [line for line in lines if line.startswith("fused_recurrent_cell, ")]
    assert titles == [
        f"fused_recurrent_cell, {direction}, bf16, every dim 128, B 8, T 4096, H 16, HV 16"
        for direction in ("forward", "backward")
    ]
    rows = {cells[0]: cells for line in lines if len(cells := re.split(r"  +", line)) == 12}
    forward = rows["fused_recurrent_cell_kernel"]
    # 4096 tokens, one after the other, each of which waits for memory; no products of matrices.
    assert float(forward[2]) > 4096 * 100
    assert forward[7] == "-"
    assert float(forward[9]) == pytest.approx(8 * 4096 * 16 * 1280 / 1e6, rel=0.1)
    milliseconds = [float(cells[10]) for cells in rows.values()]
    said = [float(line.split()[1]) for line in lines if line.startswith("predicted: ")]
    assert len(said) == 2
    assert sum(said) == pytest.approx(sum(milliseconds), abs=0.01)
    assert lines[-1].startswith("estimated for an H200 from what Triton ")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--time", "8,4096"), "--time takes B,T,H or B,T,H,HV, positive whole numbers, such as 8,4096,16"),
        (("--time", "8,0,16"), "positive whole numbers"),
        (("--time", "8,4096,3,4"), "4 value heads cannot be shared by 3 heads; HV is a multiple of H"),
        (("--time", "8,4096,4", "--arch", "sm_80"), "--time is for sm_90; leave --arch out"),
    ],
)
def test_sizes_that_no_call_has(flagen: Flagen, project: Workspace, more: tuple[str, ...], said: str) -> None:
    project.spec("cell").write_text(ONE_KERNEL)
    flagen("build", "cell")
    done = flagen("inspect", "cell", *more)
    assert (done.code, done.out) == (FAILED, "")
    assert said in done.err


def test_meter_prints_bytes_for_each_token_and_head(flagen: Flagen, project: Workspace) -> None:
    project.spec("cell").write_text(ONE_KERNEL)
    flagen("build", "cell")
    title, head, kernel, moved, state, *_, note = in_a_pipe("meter", "cell")
    assert title == "fused_recurrent_cell, bf16, every dim 128, 16 tokens, 1 head"
    assert head.split() == ["launches", "programs", "read", "written", "requested", "flops", "of", "tl.dot"]
    # q, k, v and g read and o written: 128 elements of two bytes each.
    assert kernel.split()[:1] + kernel.split()[3:5] == ["fused_recurrent_cell_kernel", "1024", "256"]
    assert moved == "bytes moved for each token and head: 1280, 1.00 times the minimum of 1280"
    assert state == "bytes a final state adds for each head: 65536, at least 65536"
    assert note.startswith(f"counted from launches under Triton {version('triton')}")


def test_meter_prints_gradients_forward_and_backward(capsys: pytest.CaptureFixture[str]) -> None:
    kernel, copy = {"a_kernel": Figures(1, 4, 320, 160, 640, 800)}, {"neg": Figures(1, 0, 16, 16, 32, 0)}
    both = MeteredGradients(
        "x", "chunk", True, 16, 1, Direction(kernel, {}), Direction(kernel, copy), kept=800, minimum=496
    )
    report.metered([], [both], "3")
    title, head, *rows, moved, kept, note = capsys.readouterr().out.splitlines()
    assert title == "chunk_x and its gradients, save_states=True, bf16, every dim 128, 16 tokens, 1 head"
    assert head.split()[:4] == ["launches", "programs", "read", "written"]
    assert [row.split() for row in rows] == [
        ["forward", "a_kernel", *"1 4 20 10 40 50".split()],
        ["backward", "a_kernel", *"1 4 20 10 40 50".split()],
        ["backward", "torch.neg", *"1 0 1 1 2 0".split()],
    ]
    assert moved == "bytes moved for each token and head: 62, 2.00 times the minimum of 31"
    assert kept == "bytes kept between forward and backward for each token and head: 50"
    assert note.startswith("counted from launches under Triton 3; ")


def test_a_package_without_kernels(flagen: Flagen, project: Workspace) -> None:
    project.spec("cube").write_text(THREE_DIMS)
    assert flagen("build", "cube").code == OK
    for command in ("inspect", "meter"):
        done = flagen(command, "cube")
        assert (done.code, done.err) == (FAILED, "flagen: cube has no Triton kernel\n"), command


@pytest.mark.parametrize("command", ["inspect", "meter"])
class TestErrors:
    def test_an_unknown_variant(self, flagen: Flagen, project: Workspace, command: str) -> None:
        project.take("gla")
        done = flagen(command, "gal")
        assert (done.code, done.err) == (
            FAILED,
            "flagen: there is no spec gal: no such file, and no variant of this name in specs/; did you mean gla?\n",
        )

    def test_a_variant_that_is_not_built(self, flagen: Flagen, project: Workspace, command: str) -> None:
        project.take("gla")
        done = flagen(command, "gla")
        assert (done.code, done.out) == (FAILED, "")
        assert done.err == "flagen: there is no package generated/gla; run `flagen build gla`\n"

    @pytest.mark.parametrize("missing", ["torch", "triton"])
    def test_a_missing_extra(
        self, flagen: Flagen, project: Workspace, command: str, missing: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        project.take("gla")
        flagen("build", "gla")
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
        done = flagen(command, "gla")
        assert done.code == FAILED
        assert f"not installed: {missing} (pip install 'flagen[torch,triton]' numpy)" in done.err
