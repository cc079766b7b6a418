"""The words of generated code: what it calls its own, and what a spec's names are there that meet one of them.

No name is reserved in the language for the sake of generated code. A spec that calls something `row` is planned,
proved and printed as one that calls it `row_`; `flagen.emit.written` gives it back its name wherever a user meets it.
Names that are made of a spec's own (`S_initial`, `d_q`) and arguments that few functions have (`keep`) are no words of
the table: they give way themselves (`flagen.plan.free_names`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from flagen.plan.free_names import free_name
from flagen.plan.kernel_names import LOCALS, SETTINGS
from flagen.plan.schedule import names_of
from flagen.spec.layer.model import Layer
from flagen.spec.layer.renaming import OWN as OWN_OF_LAYERS
from flagen.spec.layer.renaming import declared_names as layer_names
from flagen.spec.layer.renaming import renamed as layer_renamed
from flagen.spec.model import Spec
from flagen.spec.renaming import renamed


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PYTHON = _words("""
    abs all Any any bool Callable Collection dict enumerate Exception float ImportError int isinstance Iterator len
    list map max min next NotImplementedError property range reversed round RuntimeError Sequence set slice sorted str
    sum super tuple type TypeError ValueError zip
""")
"""Of Python itself and its library."""

_TORCH = _words("""
    annotations args Arguments arguments axes batch by_step by_token Call CALL columns dataclass device dtype einsum
    Ellipsis final final_state finals functional fused_recurrent j last layouts Levels levels LevelRuns lookahead math
    mini_batches MiniBatches Module module naive name nn NoneType offsets operators outputs Parameter partial
    promote Recurrence registers run runs scans self sequences shapes_only Size sizes solves State t Tensor tensor
    tensors TokenRows tokens torch WholeRun
""")
"""Of the PyTorch forms, of modules and of the table of arguments."""

_ARGUMENTS = _words("chunk_size cu_seqlens initial_state max_iterations output_final_state save_states")
"""Arguments of public functions: no input is called so, but a local may be."""

_TRITON = _words("""
    all_pairs begun block blocks by_sequence call_key capability CHUNK chunk chunk_sequence chunks chunks_done
    chunks_of config dot_of_few_rows dot_precision empty_arrays end_token first_chunk first_segment first_stretch
    first_token given gradients_config handed_on import_error inside is_first is_last kept_arrays kept_row
    kept_states kernels key_head launch_config launches LENGTH length micro_step num_warps of_angles of_angles_half
    of_first of_second os output_blocks output_tiles pairwise precision prepare_tiles products_of program reduce
    rotate rotate_half row rows SEGMENT segment segment_end segment_row segment_sequence segment_start segments
    segments_before segments_done sequence shares start state_row stretch stretch_sequence stretches T tile tiles tl
    token tokens_at_once tokens_begun tokens_done triton TURNED turned_dots value_head walk walk_tiles wanted
""")
"""Of launchers, and of kernels that go token by token."""

WORDS = (_PYTHON | _TORCH | _ARGUMENTS | _TRITON | LOCALS | SETTINGS) - {"o", "head", "H", "HV"}
"""What generated code calls its own."""

LAYER_WORDS = _PYTHON | OWN_OF_LAYERS
"""What a generated layer calls its own."""

_LIKE_WORDS = re.compile(
    r"\w*_(decayed|gradient|operand|ptr|reading|slope|sums|writing)"
    r"|([A-Za-z]+_)?(carry|dot|end|gradient|into|mix|of|operand|other|part|start|whole)(_\d+)+|(met|weights)_[qy][wk]"
    r"|(scores|erasures|write_scores|erased_writes)_keys"
    r"|(BLOCK|chunk|fused_recurrent|naive_chunk|naive_recurrent|tune_chunk)_\w+"
)
"""Names made of others in the same functions: pointers, gradients, operands, blocks; and functions of packages."""


def is_word(name: str) -> bool:
    """Whether generated code has this name for itself."""
    return name in WORDS or _LIKE_WORDS.fullmatch(name) is not None


def layer_for_generated_code(layer: Layer) -> Layer:
    """`layer` with an underscore behind each name that a generated layer has for itself, or the layer as it is."""
    declared = dict.fromkeys(layer_names(layer))
    taken = {*declared, *LAYER_WORDS, *(word for text in _texts(layer) for word in re.findall(r"\w+", text))}
    names: dict[str, str] = {}
    for name in declared:
        if name in LAYER_WORDS:
            names[name] = free_name(f"{name}_", taken)
            taken.add(names[name])
    return layer_renamed(layer, names)


def _texts(layer: Layer) -> Iterator[str]:
    """What a layer's section says in words, which stand in what is printed."""
    yield layer.notes
    yield from (decl.description for group in (layer.config, layer.params, layer.inputs) for decl in group)


def for_generated_code(spec: Spec) -> Spec:
    """`spec` with an underscore behind each name that generated code has for itself, or the spec as it is."""
    declared = dict.fromkeys(names_of(spec))
    met = [name for name in declared if name != "o" and is_word(name)]
    if not met:
        return spec
    # A new name is nowhere in the text: whoever finds it in what is printed knows what it was.
    taken = {*declared, *spec.written, *re.findall(r"\w+", spec.source.text)}
    names: dict[str, str] = {}
    for name in met:
        wanted = f"{name}_"
        names[name] = free_name(f"x_{wanted}" if is_word(wanted) else wanted, taken)
        taken.add(names[name])
    return renamed(spec, names)
