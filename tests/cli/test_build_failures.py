"""What `flagen build` says, and what it leaves, when something fails or somebody interrupts it."""

from __future__ import annotations

import multiprocessing
import signal
import time

import pytest

from flagen import builds, pipeline
from flagen.cli import FAILED, WRONG
from flagen.diagnostics import InternalError
from tests.cli.conftest import Flagen, Workspace


def test_a_wrong_spec_is_reported_where_it_is_wrong(flagen: Flagen, project: Workspace) -> None:
    project.take("gla")
    flagen("build", "gla")
    before = project.generated()
    project.edit("gla", "outer(k, v)", "outer(k, vv)")
    done = flagen("build", "gla")
    assert done.code == WRONG
    assert done.err.startswith("specs/gla.yaml:") and "^^" in done.err
    assert project.generated() == before


def test_one_bad_spec_does_not_stop_the_others(flagen: Flagen, project: Workspace) -> None:
    project.take("gla", "retention", "simple_gla")
    project.edit("retention", "flagen: 1", "flagen: 99")
    done = flagen("build", "--all")
    assert done.code == WRONG
    assert "specs/retention.yaml:1:" in done.err
    assert "3 specs: 2 built, 1 failed" in done.out
    assert {path.split("/")[0] for path in project.generated()} == {"gla", "simple_gla"}


@pytest.mark.parametrize("stage", ["prove", "plan", "emit"])
def test_a_failing_stage_leaves_nothing_behind(
    flagen: Flagen, project: Workspace, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    project.take("gla", "retention")
    function = {"plan": "make_plan"}.get(stage, stage)
    original = getattr(pipeline, function)

    def fail_for_gla(spec: pipeline.Spec, *rest: object) -> object:
        if spec.name == "gla":
            raise InternalError(f"{stage} failed")
        return original(spec, *rest)

    monkeypatch.setattr(pipeline, function, fail_for_gla)
    done = flagen("build", "gla", "retention")
    assert done.code == FAILED
    assert f"specs/gla.yaml: {stage} failed" in done.err and "bug in flagen" in done.err
    assert {path.split("/")[0] for path in project.generated()} == {"retention"}
    assert not (project.root / "generated" / "gla").exists()


def test_a_crash_is_reported_as_one_with_its_traceback(
    flagen: Flagen, project: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.take("gla")
    monkeypatch.setattr(pipeline, "derive", lambda spec: {}["lost"])
    done = flagen("build", "gla")
    assert done.code == FAILED and "KeyError: 'lost'" in done.err and "bug in flagen" in done.err


def test_a_bug_that_meets_every_spec_is_reported_once(
    flagen: Flagen, project: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.take("gla", "kda")
    monkeypatch.setattr(pipeline, "derive", lambda spec: {}["lost"])
    done = flagen("build", "gla", "kda")
    assert done.code == FAILED and done.err.count("KeyError: 'lost'") == 1
    assert "specs/kda.yaml: the same bug as for specs/gla.yaml" in done.err


def test_a_file_of_ones_own_is_not_overwritten(flagen: Flagen, project: Workspace) -> None:
    project.take("gla")
    own = project.root / "generated" / "gla" / "naive_recurrent.py"
    own.parent.mkdir(parents=True)
    own.write_text("print('mine')\n")
    done = flagen("build", "gla")
    assert done.code == FAILED and "was not written by flagen" in done.err
    assert project.generated() == {"gla/naive_recurrent.py": "print('mine')\n"}


@pytest.mark.parametrize("together", [True, False])
def test_two_specs_cannot_make_one_layer(flagen: Flagen, project: Workspace, together: bool) -> None:
    project.take("gated_deltanet")
    text = project.spec("gated_deltanet").read_text()
    project.spec("other").write_text(text.replace("name: gated_deltanet\n", "name: other\n", 1))
    said = "specs/other.yaml: makes the layer GatedDeltaNet, and so does specs/gated_deltanet.yaml"
    if together:
        done = flagen("build", "gated_deltanet", "other")
    else:
        assert flagen("build", "gated_deltanet").code == 0
        done = flagen("build", "other")
    assert done.code == FAILED and said in done.err
    assert not any(path.startswith("other/") for path in project.generated())
    # One that is built again, or whose spec was renamed, is no other.
    assert flagen("build", "gated_deltanet", "--force").code == 0
    project.spec("gated_deltanet").unlink()
    assert flagen("build", "other").code == 0


def test_two_specs_cannot_build_one_package(flagen: Flagen, project: Workspace) -> None:
    project.take("gla")
    project.spec("other").write_text(project.spec("gla").read_text())
    done = flagen("build", "gla", "other")
    assert done.code == FAILED
    assert "specs/other.yaml: builds the package gla, and so does specs/gla.yaml" in done.err
    assert "from specs/gla.yaml" in project.generated()["gla/naive_recurrent.py"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("build",), "--all"),
        (("build", "--all", "gla"), "not both"),
        (("build", "glaa"), "no variant of this name in specs/; did you mean gla?"),
        (("new", "mine", "--like", "kdaa"), "did you mean kda?"),
        (("build", "specs/glaa.yaml"), "did you mean gla?"),
        (("build", "specs"), "is a directory"),
        (("build", "--nonsense"), "--nonsense"),
        (("nonsense",), "nonsense"),
        (("explain", "gla", "--stage", "nonsense"), "nonsense"),
    ],
)
def test_a_wrong_command_line(flagen: Flagen, project: Workspace, arguments: tuple[str, ...], said: str) -> None:
    project.take("gla")
    done = flagen(*arguments)
    assert done.code == FAILED and said in done.err and done.out == ""


def test_no_specs_at_all(flagen: Flagen) -> None:
    done = flagen("build", "--all")
    assert done.code == FAILED and "there are no specs" in done.err


def test_a_spec_that_cannot_be_read(flagen: Flagen, project: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    project.take("gla")
    project.spec("gla").write_bytes(b"\xff\xfe\x00")
    assert flagen("build", "gla").code == WRONG


# ----------------------------------------------------------------------------------------------------------- interrupts


def test_an_interrupt_ends_a_command_without_a_word(
    flagen: Flagen, project: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(spec: object) -> object:
        raise KeyboardInterrupt

    project.take("gla")
    monkeypatch.setattr(pipeline, "derive", interrupted)
    done = flagen("build", "gla")
    assert (done.code, done.out, done.err) == (130, "", "")
    assert project.generated() == {}


needs_two_processors = pytest.mark.skipif(builds._processors() < 2, reason="one processor builds by itself")


@needs_two_processors
def test_an_interrupt_is_not_for_the_processes_of_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """They start with it ignored, so that none of them prints a traceback, not even while it starts."""
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(builds, "_try_compile", signal.getsignal)
    found = builds._compile_all([signal.SIGINT] * 4)  # type: ignore[list-item]
    assert list(found) == [signal.SIG_IGN] * 4
    assert signal.getsignal(signal.SIGINT) == before


@needs_two_processors
def test_a_build_that_is_left_ends_its_processes_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "_try_compile", time.sleep)
    bystander = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    bystander.start()
    try:
        building = builds._compile_all([0, 600, 600, 600])  # type: ignore[list-item]
        next(building)
        workers = set(multiprocessing.active_children()) - {bystander}
        building.close()
        assert workers and {worker.exitcode for worker in workers} == {-signal.SIGTERM}
        assert bystander.is_alive()
    finally:
        bystander.kill()
        bystander.join()
