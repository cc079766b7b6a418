"""The command as it is run: in a process of its own, in a pipe, under any hash seed, out of a wheel."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, Workspace

VARIANTS = ("gated_delta_product", "kda", "mamba2", "lightning_attn")


def flagen(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m flagen` in the working directory."""
    command = [sys.executable, "-m", "flagen", *arguments]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=900
    )


@pytest.mark.parametrize(
    "arguments",
    [("build", "--all"), ("build", "--all", "--check"), ("list",), ("check", "--all"), ("explain", "kda"), ("--help",)],
)
def test_a_pipe_gets_plain_text(project: Workspace, arguments: tuple[str, ...]) -> None:
    project.take("kda", "gla")
    project.edit("gla", "outer(k, v)", "outer(k, vv)")
    done = flagen(*arguments, COLUMNS="40", TERM="xterm-256color")
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stdout


def test_long_lines_are_not_wrapped_in_a_pipe(project: Workspace) -> None:
    project.take("gla")
    done = flagen("build", "gla", "-v", "--out", "a/rather/long/directory/that/does/not/fit", COLUMNS="20")
    assert any(
        line.endswith("a/rather/long/directory/that/does/not/fit/gla/naive_recurrent.py")
        for line in done.stdout.split("\n")
    )


def test_output_does_not_depend_on_the_hash_seed(project: Workspace) -> None:
    project.take(*VARIANTS[:2])
    built = []
    for seed in ("0", "4242"):
        done = flagen("build", "--all", "--force", PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
        explained = flagen("explain", VARIANTS[0], PYTHONHASHSEED=seed).stdout
        built.append((project.generated(), explained))
    assert built[0] == built[1]


def test_building_loads_no_torch(project: Workspace) -> None:
    project.take("gla")
    program = (
        "import sys; from flagen.cli import app; app(['build', 'gla'], standalone_mode=False);"
        "assert 'sympy' in sys.modules; assert not {'torch', 'triton', 'numpy'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [("list",), ("build", "gla")])
def test_what_derives_nothing_loads_no_sympy(project: Workspace, command: tuple[str, ...]) -> None:
    project.take("gla")
    assert flagen("build", "gla").returncode == 0
    program = (
        f"import sys; from flagen.cli import app; app({list(command)}, standalone_mode=False);"
        "assert not {'sympy', 'jinja2'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr


def test_a_closed_pipe_is_no_crash(project: Workspace) -> None:
    project.take("gated_delta_product")
    command = f"{sys.executable} -m flagen explain gated_delta_product | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, timeout=900)
    assert done.stdout == "Spec\n" and "Traceback" not in done.stderr


@pytest.mark.parametrize("module", ["typer", "flagen.report", "flagen.pipeline", "flagen.spec", "sympy"])
def test_an_interrupt_during_an_import_prints_nothing(project: Workspace, module: str) -> None:
    """As if Ctrl-C came while `module` is being imported."""
    project.take("gla")
    program = (
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "sys.argv = ['flagen', 'build', 'gla']\n"
        "from flagen.__main__ import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def heeding_interrupts() -> None:
    """What a shell starts in the background ignores them, and so do these tests and what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(os.name != "posix", reason="interrupts a group of processes")
def test_an_interrupt_ends_the_processes_of_a_build(project: Workspace) -> None:
    """Ctrl-C in a terminal reaches them as well: they are ended, and none of them prints a traceback."""
    project.take("gla", "kda", "gsa", "rwkv7", "comba", "oja", "mamba2", "gdn2")  # Most are to come after the first.
    command = [sys.executable, "-u", "-m", "flagen", "build", "--all"]
    with subprocess.Popen(
        command,
        text=True,
        start_new_session=True,
        preexec_fn=heeding_interrupts,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as build:
        assert build.stdout is not None
        first = build.stdout.readline()
        os.killpg(build.pid, signal.SIGINT)
        # What holds the pipes open is a process of the build: this ends when all of them have.
        _, said = build.communicate(timeout=60)
    assert first and said == "" and build.returncode == 130


def test_a_wheel_builds_outside_the_checkout(project: Workspace, tmp_path: Path) -> None:
    """It carries its templates and its specs, and finds them where it is installed."""
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    run = [sys.executable, "-m"]
    subprocess.run([*run, "hatchling", "build", "-t", "wheel", "-d", str(wheels)], cwd=ROOT, check=True, timeout=900)
    (wheel,) = wheels.glob("*.whl")
    install = ["pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run([*run, *install], check=True, timeout=900)

    where = flagen("--version", PYTHONPATH=str(site))
    program = "import flagen.project as p; print(p.PACKAGE, p.bundled('templates'), p.bundled('specs'))"
    located = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True
    ).stdout
    assert where.returncode == 0 and all(path.startswith(str(site)) for path in located.split()), located

    assert flagen("new", "mine", "--like", "gla", PYTHONPATH=str(site)).returncode == 0
    done = flagen("build", "mine", PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    from_wheel = project.generated()
    assert flagen("build", "mine", "--force").returncode == 0
    assert project.generated() == from_wheel
