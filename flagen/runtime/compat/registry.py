"""What is imported as fla, mamba_ssm and causal_conv1d: the modules of this package, registered on request."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module, metadata
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

HERE = __name__.rpartition(".")[0]
AROUND = HERE.rpartition(".")[0]

VERSIONS = {
    "fla-core": "0.6.0",
    "flash-linear-attention": "0.6.0",
    "mamba-ssm": "2.2.6",
    "causal-conv1d": "1.5.3",
}
"""The distributions that seem to be installed, in the versions whose signatures these are."""

PACKAGES = {
    "fla-core": "fla",
    "flash-linear-attention": "fla",
    "mamba-ssm": "mamba_ssm",
    "causal-conv1d": "causal_conv1d",
}

PLACES = {
    "fla.layers": f"{AROUND}.layers",
    "fla.layers.utils": f"{HERE}.layer_utilities",
    "fla.models": f"{AROUND}.models",
    "fla.models.cache_utils": f"{HERE}.model_utilities",
    "fla.models.generation_utils": f"{HERE}.model_utilities",
    "fla.models.utils": f"{HERE}.model_utilities",
    "fla.modules": f"{AROUND}.modules",
    "fla.modules.causal_conv1d": f"{AROUND}.modules.convolution",
    "fla.modules.conv": f"{AROUND}.modules.convolution",
    "fla.modules.long_conv": f"{AROUND}.modules.convolution",
    "fla.modules.norm": f"{AROUND}.modules",
    "fla": f"{HERE}.fla",
    "mamba_ssm": f"{HERE}.mamba_ssm",
    "causal_conv1d": f"{HERE}.causal_conv1d",
}
"""Where a name and those below it are looked for; the longest that fits counts."""

FILES = frozenset(
    "causal_conv1d_interface chunk chunk_naive chunk_ref decoding_one_step dplr fused_chunk fused_recurrent gate iplr "
    "naive parallel recurrent_naive".split()
)
"""Files that the others spread over what is one module here: `fla.ops.kda.chunk` is `fla.ops.kda`."""

LAYERS = frozenset(
    "abc based comba cyfa delta_net gated_deltanet gated_deltaproduct gdn2 gla gsa hgrn hgrn2 kda lightnet linear_attn "
    "log_linear_mamba2 mamba mamba2 mamba3 mesa_net momentum_deltanet multiscale_retention precond_gated_deltanet "
    "precond_kda rebased rwkv6 rwkv7 simple_gla".split()
)
"""The same of layers: `fla.layers.gla` is `fla.layers`."""

IN_ONE_MODULE = {"fla.ops.": (3, FILES), "causal_conv1d.": (1, FILES), "fla.layers.": (2, LAYERS)}
"""How many names lead to such a module, and which files it stands for."""

INSTEAD = {
    "fla.utils": "it is for code that launches fla's own kernels; call operators as a whole, from fla.ops, or torch",
    "fla.ops.utils": "it is a part of fla's own kernels; call operators as a whole, from fla.ops, or torch",
    "fla.layers.utils": "layers here find tokens by themselves: hand them attention_mask or cu_seqlens",
    "fla.models.utils": "models here generate by themselves; for others, install transformers",
    "fla.models.generation_utils": "models here generate by themselves; for others, install transformers",
}
"""Modules of utilities, of which some have no meaning here: what to do instead."""


class Registration:
    """What `as_fla` did: undone by `undo`, or at the end of a `with` block.

    Modules that were imported in the meantime keep what they have taken from it.
    """

    def __init__(self, finder: Finder | None) -> None:
        self._finder = finder

    def undo(self) -> None:
        """Take the names back, if this call was the one that registered them."""
        if self._finder is None:
            return
        sys.meta_path.remove(self._finder)
        for name in [name for name, module in sys.modules.items() if _is_ours(module)]:
            del sys.modules[name]
        self._finder = None
        _forget_availability()

    def __enter__(self) -> Registration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def as_fla() -> Registration:
    """Let `import fla`, `import mamba_ssm` and `import causal_conv1d` find these operators in this process.

    The functions have the names, the order of arguments, the defaults and the results of flash-linear-attention 0.6.0,
    mamba_ssm 2.2 and causal_conv1d 1.5; what they cannot do they refuse by name. transformers, and whoever else looks
    for those packages, looks once, when a modeling file is imported: call this before.

    ```python
    as_fla()
    from transformers import AutoModelForCausalLM
    ```

    A second call changes nothing. Where the real packages are installed, they are hidden, not touched.

    Returns:
        a registration, to undo it; or to use as a context manager.

    Raises:
        RuntimeError: one of the three has been imported from elsewhere, or a modeling file of transformers has already
            looked for them.
    """
    if any(isinstance(finder, Finder) for finder in sys.meta_path):
        return Registration(None)
    for name in sorted({name.partition(".")[0] for name in PLACES}):
        if name in sys.modules:
            place = getattr(sys.modules[name], "__file__", None) or "nowhere: sys.modules has it as missing"
            raise RuntimeError(
                f"as_fla: {name} has been imported already, from {place}; call as_fla() before anything imports {name}"
            )
    late = sorted(name for name, module in sys.modules.items() if _has_looked(name, module))
    if late:
        raise RuntimeError(
            f"as_fla: {', '.join(late)} looked for fla and mamba_ssm when it was imported, and does so once; "
            "call as_fla() before it is imported"
        )
    finder = Finder()
    sys.meta_path.insert(0, finder)
    _forget_availability()
    return Registration(finder)


class Finder(MetaPathFinder):
    """Finds the modules of this package under the other names, and says which versions they stand for."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        place = _place(name)
        found = None if place is None else _find(place)
        if found is None:
            if message := _refusal(*name.rpartition(".")[::2]):
                raise ImportError(message, name=name)
            return None
        spec = ModuleSpec(name, Alias(found.name), origin=found.origin, is_package=True)
        spec.has_location = found.origin is not None
        return spec

    def find_distributions(self, context: metadata.DistributionFinder.Context) -> Iterable[metadata.Distribution]:
        asked = None if context.name is None else context.name.lower().replace("_", "-").replace(".", "-")
        return [Distribution(name) for name in VERSIONS if asked in (None, name)]


class Alias(Loader):
    """Makes the module that has another one's names; those it has not yet, as they are asked for."""

    def __init__(self, place: str) -> None:
        self.place = place

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        original = import_module(self.place)
        module.__doc__ = original.__doc__
        module.__dict__["__getattr__"] = _attributes(module.__name__, original)
        module.__dict__["__dir__"] = lambda: sorted({*dir(original), *module.__dict__})
        for name in ("__all__", "__version__"):
            if hasattr(original, name):
                setattr(module, name, getattr(original, name))


class Distribution(metadata.Distribution):
    """The metadata of a distribution that is not installed."""

    def __init__(self, name: str) -> None:
        self._name = name

    def read_text(self, filename: str) -> str | None:
        if filename == "METADATA":
            return f"Metadata-Version: 2.1\nName: {self._name}\nVersion: {VERSIONS[self._name]}\n"
        return PACKAGES[self._name] + "\n" if filename == "top_level.txt" else None

    def locate_file(self, path: str | os.PathLike[str]) -> Path:
        return Path(__file__).parent / path


def _place(name: str) -> str | None:
    """The module that stands for the one of this name."""
    parts = name.split(".")
    known = (of for top, of in IN_ONE_MODULE.items() if name.startswith(top))
    whole, files = next(known, (len(parts), FILES))
    while len(parts) > whole and parts[-1] in files:
        parts.pop()
    for length in range(len(parts), 0, -1):
        place = PLACES.get(".".join(parts[:length]))
        if place is not None:
            return ".".join([place, *parts[length:]])
    return None


def _find(place: str) -> ModuleSpec | None:
    try:
        return find_spec(place)
    except ModuleNotFoundError as error:  # A package above it is missing, or is a module.
        if error.name is not None and place.startswith(error.name):
            return None
        raise


def _attributes(name: str, original: ModuleType) -> Callable[[str], Any]:
    def attribute(wanted: str) -> Any:
        if not wanted.startswith("__"):
            if hasattr(original, wanted):
                return getattr(original, wanted)
            if message := _refusal(name, wanted):
                raise AttributeError(message)
            if find_spec(f"{name}.{wanted}") is not None:
                return import_module(f"{name}.{wanted}")
        raise AttributeError(f"module {name!r}, which stands in for a package, has no attribute {wanted!r}")

    return attribute


def _refusal(module: str, wanted: str) -> str | None:
    """What to say of a name that a module of utilities has not, nor a module below it."""
    if module not in INSTEAD or _find(f"{_place(module)}.{wanted}") is not None:
        return None
    return f"{module} has no {wanted} here: {INSTEAD[module]}"


def _is_ours(module: ModuleType | None) -> bool:
    return isinstance(getattr(getattr(module, "__spec__", None), "loader", None), Alias)


def _has_looked(name: str, module: ModuleType | None) -> bool:
    """Whether this is a modeling file of transformers that looks for the packages when it is imported."""
    return name.startswith("transformers.models.") and "causal_conv1d_fn" in getattr(module, "__dict__", ())


def _forget_availability() -> None:
    """transformers asks once a process whether a package is there: let it ask again."""
    utilities = sys.modules.get("transformers.utils.import_utils")
    for name in (
        "is_flash_linear_attention_available",
        "is_mamba_ssm_available",
        "is_mamba_2_ssm_available",
        "is_causal_conv1d_available",
        "_package_distribution_mapping",
    ):
        forget = getattr(getattr(utilities, name, None), "cache_clear", None)
        if forget is not None:
            forget()
