"""The Triton kernel that lays out on the device what theta reads in a forward over prompt chunks, or of a theta that scores.

Tokens come from theta's prompt, from what was generated and from the step's own batch.
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl

from vllm_optimal_sampling.kernels.prepared_launch import Launch, RepeatedLaunches
from vllm_optimal_sampling.worker.theta.inputs import BLOCK, NUM_WARPS, as_theta_reads, last_id


@triton.jit
def _known_tokens(
    x,
    mask,
    theta_prompt_row_ptr,
    theta_len,
    all_token_ids_row_ptr,
    delta,
    theta_ids_ptr,
    last_teacher_id,
    IS_PAIRED: tl.constexpr,
):
    """Theta's tokens at its positions `x`: of its own prompt, and behind it the teacher's."""
    own = x < theta_len
    prompt_token = tl.load(theta_prompt_row_ptr + x, mask=mask & own, other=0)
    other_token = tl.load(all_token_ids_row_ptr + x - delta, mask=mask & ~own, other=0)
    other_token = as_theta_reads(other_token, mask & ~own, theta_ids_ptr, last_teacher_id, IS_PAIRED)
    return tl.where(own, prompt_token, other_token)


@triton.jit(do_not_specialize=["num_reqs", "num_reqs_padded", "num_tokens_padded", "first_theta_row"])
def _scoring_inputs_kernel(
    slots_ptr,  # [num_reqs] int64, request slot
    source_ptr,  # [num_reqs] int64, where the row's tokens begin in the batch; -1: they are theta's part of a prompt chunk
    first_ptr,  # [num_reqs] int64, theta's first position of a prompt chunk
    query_start_loc_ptr,  # [max_num_reqs + 1] int32
    batch_input_ids_ptr,  # [num_batch_tokens] int32
    batch_positions_ptr,  # [num_batch_tokens] int64
    theta_prompt_ptr,  # [max_num_reqs, max_model_len] int32
    theta_prompt_stride,
    theta_len_ptr,  # [max_num_reqs] int32, 0: theta reads the teacher's prompt
    delta_ptr,  # [max_num_reqs] int32
    all_token_ids_ptr,  # [max_num_reqs, max_model_len] int32
    all_token_ids_stride,
    input_ids_ptr,  # [max_num_tokens] int32, out
    positions_ptr,  # [max_num_tokens] int64, out
    seq_lens_ptr,  # [max_num_reqs] int32, out
    theta_ids_ptr,  # [teacher's ids] int32, what theta reads; None where both read the same
    num_reqs,
    num_reqs_padded,
    num_tokens_padded,
    first_theta_row,
    max_model_len,
    last_token_id,
    last_teacher_id,
    IS_PAIRED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    start = tl.load(query_start_loc_ptr + row)
    if row == num_reqs:  # padding of a CUDA graph: no requests, and tokens without a slot
        for i in range(num_reqs, num_reqs_padded, BLOCK):
            block = i + tl.arange(0, BLOCK)
            tl.store(seq_lens_ptr + block, 0, mask=block < num_reqs_padded)
        for i in range(start, num_tokens_padded, BLOCK):
            block = i + tl.arange(0, BLOCK)
            tl.store(input_ids_ptr + block, 0, mask=block < num_tokens_padded)
            tl.store(positions_ptr + block, 0, mask=block < num_tokens_padded)
        return
    length = tl.load(query_start_loc_ptr + row + 1) - start
    slot = tl.load(slots_ptr + row)
    source = tl.load(source_ptr + row)
    is_theta = row >= first_theta_row
    delta = tl.load(delta_ptr + slot, mask=is_theta, other=0)
    first = tl.load(first_ptr + row)
    if source >= 0:
        first = tl.load(batch_positions_ptr + source) + delta
    for i in range(0, length, BLOCK):
        offset = i + tl.arange(0, BLOCK)
        mask = offset < length
        x = first + offset
        if source >= 0:
            token = tl.load(batch_input_ids_ptr + source + offset, mask=mask, other=0)
            token = as_theta_reads(token, mask, theta_ids_ptr, last_teacher_id, IS_PAIRED)
        else:
            token = _known_tokens(
                x,
                mask,
                theta_prompt_ptr + slot * theta_prompt_stride,
                tl.load(theta_len_ptr + slot),
                all_token_ids_ptr + slot * all_token_ids_stride,
                delta,
                theta_ids_ptr,
                last_teacher_id,
                IS_PAIRED,
            )
        tl.store(input_ids_ptr + start + offset, tl.minimum(token, last_token_id), mask=mask)
        # Drafts beyond the request's own limit may lie beyond the model's; what they yield is dropped.
        tl.store(positions_ptr + start + offset, tl.minimum(x, max_model_len - 1), mask=mask)
    tl.store(seq_lens_ptr + row, (first + length).to(tl.int32))


FORWARDS = RepeatedLaunches(
    (
        "slots_ptr",
        "source_ptr",
        "first_ptr",
        "batch_input_ids_ptr",
        "batch_positions_ptr",
        "num_reqs",
        "num_reqs_padded",
        "num_tokens_padded",
        "first_theta_row",
    )
)
"""Of one engine, whose other tensors stay where they are."""


def scoring_inputs(
    slots: torch.Tensor,  # [num_reqs] int64
    source: torch.Tensor,  # [num_reqs] int64
    first: torch.Tensor,  # [num_reqs] int64
    query_start_loc: torch.Tensor,  # [num_reqs_padded + 1] int32
    batch_input_ids: torch.Tensor,  # [num_batch_tokens] int32
    batch_positions: torch.Tensor,  # [num_batch_tokens] int64
    theta_prompts: torch.Tensor,  # [max_num_reqs, max_model_len] int32
    theta_len: torch.Tensor,  # [max_num_reqs] int32
    delta: torch.Tensor,  # [max_num_reqs] int32
    all_token_ids: torch.Tensor,  # [max_num_reqs, max_model_len] int32
    input_ids: torch.Tensor,  # [max_num_tokens] int32, out
    positions: torch.Tensor,  # [max_num_tokens] int64, out
    seq_lens: torch.Tensor,  # [max_num_reqs] int32, out
    num_tokens_padded: int,
    first_theta_row: int,
    max_model_len: int,
    vocab_size: int,
    theta_ids: torch.Tensor | None,  # [teacher's ids] int32, what theta reads; None where both read the same
) -> Launch:
    """The launch that lays out one forward in which theta scores; rows before `first_theta_row` are the teacher's.

    A row takes the step's own tokens from the batch, `source` its first, since drafts stand nowhere else and positions of
    running requests are known on the device alone. Theta's part of a prompt chunk (`source` -1) begins at position
    `first` and may reach back before the batch's tokens.
    """
    num_reqs = slots.shape[0]
    arguments = {
        "slots_ptr": slots,
        "source_ptr": source,
        "first_ptr": first,
        "query_start_loc_ptr": query_start_loc,
        "batch_input_ids_ptr": batch_input_ids,
        "batch_positions_ptr": batch_positions,
        "theta_prompt_ptr": theta_prompts,
        "theta_prompt_stride": theta_prompts.stride(0),
        "theta_len_ptr": theta_len,
        "delta_ptr": delta,
        "all_token_ids_ptr": all_token_ids,
        "all_token_ids_stride": all_token_ids.stride(0),
        "input_ids_ptr": input_ids,
        "positions_ptr": positions,
        "seq_lens_ptr": seq_lens,
        "theta_ids_ptr": theta_ids,
        "num_reqs": num_reqs,
        "num_reqs_padded": query_start_loc.shape[0] - 1,
        "num_tokens_padded": num_tokens_padded,
        "first_theta_row": first_theta_row,
        "max_model_len": max_model_len,
        "last_token_id": vocab_size - 1,
        "last_teacher_id": last_id(theta_ids),
        "IS_PAIRED": theta_ids is not None,
        "BLOCK": BLOCK,
    }
    return Launch(_scoring_inputs_kernel, (num_reqs + 1, 1, 1), arguments, NUM_WARPS)
