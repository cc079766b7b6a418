"""Names that the kernels over the rows of a chunk have for themselves, beside those of a spec."""

from __future__ import annotations

LOCALS = frozenset(
    """
    back below block block_start blocks CHUNK chunk chunk_row chunk_sequence chunks_before coarse coarse_before
    coarse_end coarse_read coarse_sum column column_across column_gradient column_gradient_across column_gradients
    column_keys column_scale_gradient column_state_gradient column_state_gradients column_states column_written common
    common_before cu_seqlens decay decay_over decay_to_cut do down_to_tokens dtype earlier end end_sums end_token
    erased_decay erased_part erased_sum erased_writes erased_writes_gradient erased_writes_operand erasures_gradient
    erasures_operand exponent final_gradient fine fine_before fine_end fine_read fine_sum first first_chunk first_state
    first_token from_middle from_start from_start_before from_start_read gradient_across gradient_before_chunk head
    initial_gradient inverse invert is_last is_upper k_dots k_end k_gradient k_row k_scaled k_to_end k_writing kept
    kept_sums key_head key_start key_sum L L_gradient last later LEAF LEAF_LEVELS level LEVELS log_decay
    log_decay_gradient member MEMBERS members near number o o_gradient onto_reader onto_row_before of_other_half
    onto_writer own_gradient own_k own_w pair_sum pair_sums pairs place PRECISION program put q_dots q_erasing
    q_from_start q_gradient q_operand q_reading q_row q_scale_gradient q_scaled q_start R R_gradient read read_erased
    read_gradient read_operand read_part read_sum read_sums reading reading_before row row_index row_mask row_sum
    row_sums rows_stored S_gradient S_operand scores scores_gradient scores_operand seen seen_across_cut seen_apart
    sequence shares split_log_decay start state state_across state_after_chunk state_dot state_gradients state_row
    state_start states step sum_of_earlier sum_of_later sum_of_pairs sum_of_shares sum_of_steps take TERMS to_end token
    token_index token_mask TOKENS U U_gradient upper U_operand v_dots v_gradient v_operand v_row v_scale_gradient
    value_head value_start values_part w_dots w_end w_gradient w_row w_scale_gradient w_scaled w_to_end w_writing wanted
    WANTS_KEYS WANTS_VALUES weights whole within write_scores write_scores_gradient write_scores_operand writing
    written_part y_dots y_erasing y_from_start y_gradient y_reading y_row y_scale_gradient y_scaled y_start
    """.split()
)
"""What the templates call things; what algebra makes up gets an underscore, as names of a spec have (`own_names`)."""

OPERANDS = ("_decayed", "_writing")
"""What ends the names of operands, which are those of the spec before."""

SETTINGS = frozenset(
    "Any TILES call capability heads hopper keys leaf_levels levels modern output prepare single widest".split()
)
"""What is called so where tiles and warps are chosen, by the sizes of dims."""


def is_taken(name: str) -> bool:
    """Whether the kernels over the rows of a chunk call something else `name`."""
    return name in LOCALS or name.endswith(OPERANDS)


def kernel_name(name: str) -> str:
    """What a name of the spec is called in a kernel: it gives way to what kernels call things."""
    return f"{name}_" if is_taken(name) else name
