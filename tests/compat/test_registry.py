"""What as_fla puts where the other packages are looked for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from generated.compat import Registration, as_fla

ROOTS = ("fla", "mamba_ssm", "causal_conv1d")


@pytest.fixture
def registered() -> Iterator[Registration]:
    with as_fla() as registration:
        yield registration


@pytest.mark.usefixtures("registered")
class TestNames:
    @pytest.mark.parametrize(
        ("module", "function", "home"),
        [
            ("fla.ops", "chunk_kda", "fla.ops.kda"),
            ("fla.ops.kda", "chunk_kda", "fla.ops.kda"),
            ("fla.ops.kda.chunk", "chunk_kda", "fla.ops.kda"),
            ("fla.ops.kda.gate", "fused_kda_gate", "fla.ops.kda"),
            ("fla.ops.simple_gla.parallel", "parallel_simple_gla", "fla.ops.simple_gla"),
            (
                "fla.ops.generalized_delta_rule.dplr.fused_recurrent",
                "fused_recurrent_dplr_delta_rule",
                "fla.ops.generalized_delta_rule",
            ),
            ("fla.ops.mesa_net.decoding_one_step", "mesa_net_decoding_one_step", "fla.ops.mesa_net"),
            ("fla.ops.momentum_delta_rule.naive", "recurrent_momentum_delta_rule_ref", "fla.ops.momentum_delta_rule"),
            ("fla.ops.rwkv6.recurrent_naive", "naive_recurrent_rwkv6", "fla.ops.rwkv6"),
            ("mamba_ssm", "selective_scan_fn", "mamba_ssm.ops.selective_scan_interface"),
            ("mamba_ssm.ops.selective_scan_interface", "mamba_inner_fn", "mamba_ssm.ops.selective_scan_interface"),
            (
                "mamba_ssm.ops.triton.ssd_combined",
                "mamba_split_conv1d_scan_combined",
                "mamba_ssm.ops.triton.ssd_combined",
            ),
            ("causal_conv1d", "causal_conv1d_fn", "causal_conv1d.convolution"),
            ("causal_conv1d.causal_conv1d_interface", "causal_conv1d_update", "causal_conv1d.convolution"),
        ],
    )
    def test_function_is_found(self, module: str, function: str, home: str) -> None:
        assert getattr(import_module(module), function) is getattr(import_module(f"generated.compat.{home}"), function)

    def test_submodules_are_attributes(self) -> None:
        import mamba_ssm  # type: ignore[import-not-found]

        assert mamba_ssm.ops.triton.ssd_combined.mamba_chunk_scan_combined

    @pytest.mark.parametrize("name", ["modules", "layers", "models"])
    def test_what_is_beside_the_operators(self, name: str) -> None:
        pytest.importorskip(f"generated.{name}")
        import fla

        beside = import_module(f"generated.{name}")
        there = getattr(fla, name)
        for exported in beside.__all__:
            assert getattr(there, exported) is getattr(beside, exported)

    def test_submodules_of_modules(self) -> None:
        home = pytest.importorskip("generated.modules.l2norm")
        assert import_module("fla.modules.l2norm").l2norm is home.l2norm

    def test_star_import_has_all_that_fla_ops_exports(self) -> None:
        names: dict[str, object] = {}
        exec("from fla.ops import *", names)
        assert {"chunk_gla", "chunk_gdn", "fused_recurrent_rwkv7", "parallel_retention"} <= set(names)

    @pytest.mark.parametrize(
        "name", ["fla.ops.path_attn", "fla.ops.kda.something", "fla.ops.chunk", "fla.naive", "mamba_ssm.models"]
    )
    def test_what_is_not_there_is_not_found(self, name: str) -> None:
        assert find_spec(name) is None
        with pytest.raises(ModuleNotFoundError, match=name):
            import_module(name)

    def test_function_that_is_not_there_is_named(self) -> None:
        with pytest.raises(ImportError, match="parallel_path_attn"):
            exec("from fla.ops import parallel_path_attn")

    @pytest.mark.parametrize("root", ROOTS)
    def test_specs_and_versions(self, root: str) -> None:
        assert find_spec(root) is not None
        module = import_module(root)
        assert module.__spec__ is not None and module.__spec__.name == module.__name__ == root
        assert find_spec(root) is module.__spec__
        distribution = "fla-core" if root == "fla" else root
        assert module.__version__ == metadata.version(distribution)
        assert distribution.replace("_", "-") in metadata.packages_distributions()[root]

    def test_only_what_is_asked_for_is_loaded(self) -> None:
        import fla.ops  # type: ignore[import-not-found]

        assert "fla.ops.gsa" not in sys.modules
        assert fla.ops.chunk_gsa
        assert "fla.ops.abc" not in sys.modules


class TestRegistration:
    def test_is_at_the_top(self) -> None:
        assert import_module("generated").as_fla is as_fla

    def test_loads_nothing_by_itself(self) -> None:
        code = "import sys, generated; generated.as_fla(); assert 'torch' not in sys.modules, sorted(sys.modules)"
        subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)

    def test_undone_at_the_end_of_a_block(self) -> None:
        with as_fla():
            import_module("fla.ops.gla")
        assert not [name for name in sys.modules if name.partition(".")[0] in ROOTS]
        assert find_spec("fla") is None or "generated" not in str(find_spec("fla"))

    def test_second_call_changes_nothing(self) -> None:
        with as_fla():
            finders = list(sys.meta_path)
            with as_fla():
                assert sys.meta_path == finders
            assert import_module("fla.ops")

    def test_can_be_done_again(self) -> None:
        for _ in range(2):
            registration = as_fla()
            assert import_module("fla.ops.gla").chunk_gla
            registration.undo()
            registration.undo()

    @pytest.mark.parametrize("name", ROOTS)
    def test_refused_after_the_real_one_is_imported(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        real = ModuleType(name)
        real.__file__ = "/site-packages/it.py"
        monkeypatch.setitem(sys.modules, name, real)
        with pytest.raises(RuntimeError, match=rf"{name} has been imported already, from /site-packages/it.py"):
            as_fla()

    def test_refused_after_a_modeling_file_has_looked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        name = "transformers.models.mamba.modeling_mamba"
        modeling = ModuleType(name)
        modeling.causal_conv1d_fn = None  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, modeling)
        with pytest.raises(RuntimeError, match=rf"{name} looked for fla"):
            as_fla()

    def test_installed_package_is_hidden(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "fla").mkdir()
        (tmp_path / "fla" / "__init__.py").write_text("real = True\n")
        monkeypatch.syspath_prepend(tmp_path)
        with as_fla():
            assert not hasattr(import_module("fla"), "real")
        assert import_module("fla").real
        del sys.modules["fla"]
