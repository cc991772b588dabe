"""Triton kernels that lay out the inputs of theta's round on the device, so that no step waits for the host.

A theta that drafts begins its round with the newest tokens (`round_inputs`) and goes on with what it drafts
(`advance_round`). All index per-request state by the request slot; a slot of -1 marks a row that must not touch anything (a
request still in its prompt, or padding). What other forwards read is in `scoring_inputs`.
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl

from vllm_optimal_sampling.kernels.prepared_launch import Launch, RepeatedLaunches

BLOCK, NUM_WARPS = 1024, 4
BATCH_BLOCK = 256
"""The same for every batch, so that one compiled kernel serves all."""


def last_id(theta_ids: torch.Tensor | None) -> int:
    return 0 if theta_ids is None else theta_ids.shape[0] - 1


# Numbers that another step has another of are not specialised: Triton would compile a kernel anew where one is 1, or divisible
# by 16, and a request would wait for it.


@triton.jit
def as_theta_reads(token, mask, theta_ids_ptr, last_teacher_id, IS_PAIRED: tl.constexpr):
    """Theta's ids of the teacher's tokens; the same where the two vocabularies agree."""
    if IS_PAIRED:
        token = tl.load(theta_ids_ptr + tl.minimum(tl.maximum(token, 0), last_teacher_id), mask=mask, other=0)
    return token


@triton.jit(do_not_specialize=["num_reqs"])
def _round_inputs_kernel(
    idx_mapping_ptr,  # [num_reqs] int64, request slots of the batch
    num_sampled_ptr,  # [num_reqs] int32, tokens drawn in this step; 0 in the middle of a prompt
    last_sampled_ptr,  # [max_num_reqs, 1] int64
    total_len_ptr,  # [max_num_reqs] int32, the teacher's prompt and everything generated, this step included
    delta_ptr,  # [max_num_reqs] int32
    slots_ptr,  # [max_num_reqs] int64, out: -1 for rows that take no part
    input_ids_ptr,  # [max_num_tokens] int32, out
    positions_ptr,  # [max_num_tokens] int64, out: theta's
    sample_positions_ptr,  # [max_num_reqs] int64, out: the teacher's, which key the random draws
    query_start_loc_ptr,  # [max_num_reqs + 1] int32, out
    seq_lens_ptr,  # [max_num_reqs] int32, out
    theta_ids_ptr,  # [teacher's ids] int32, what theta reads; None where both read the same
    num_reqs,
    max_num_reqs,
    max_model_len,
    last_token_id,
    last_teacher_id,
    IS_PAIRED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    if row == num_reqs:  # padding: requests of no tokens behind the batch
        for i in range(num_reqs, max_num_reqs + 1, BLOCK):
            block = i + tl.arange(0, BLOCK)
            tl.store(query_start_loc_ptr + block, num_reqs, mask=block <= max_num_reqs)
            padded = block < max_num_reqs
            tl.store(slots_ptr + block, -1, mask=padded)
            tl.store(seq_lens_ptr + block, 0, mask=padded)
            tl.store(input_ids_ptr + block, 0, mask=padded)
            tl.store(positions_ptr + block, 0, mask=padded)
            tl.store(sample_positions_ptr + block, 0, mask=padded)
        return
    slot = tl.load(idx_mapping_ptr + row)
    active = (slot >= 0) & (tl.load(num_sampled_ptr + row) > 0)
    token = tl.load(last_sampled_ptr + slot, mask=active, other=0)
    token = as_theta_reads(token, active, theta_ids_ptr, last_teacher_id, IS_PAIRED)
    teacher_position = tl.load(total_len_ptr + slot, mask=active, other=1).to(tl.int64) - 1
    position = teacher_position + tl.load(delta_ptr + slot, mask=active, other=0)
    position = tl.minimum(position, max_model_len - 1)
    tl.store(slots_ptr + row, tl.where(active, slot, -1))
    tl.store(input_ids_ptr + row, tl.minimum(token, last_token_id).to(tl.int32))
    tl.store(positions_ptr + row, position)
    tl.store(sample_positions_ptr + row, teacher_position)
    tl.store(query_start_loc_ptr + row, row)
    tl.store(seq_lens_ptr + row, (position + 1).to(tl.int32))


ROUNDS = RepeatedLaunches(("idx_mapping_ptr", "num_sampled_ptr", "num_reqs"))
"""Of one engine, whose other tensors stay where they are."""


def round_inputs(
    idx_mapping: torch.Tensor,  # [num_reqs] int64
    num_sampled: torch.Tensor,  # [num_reqs] int32
    last_sampled: torch.Tensor,  # [max_num_reqs, 1] int64
    total_len: torch.Tensor,  # [max_num_reqs] int32
    delta: torch.Tensor,  # [max_num_reqs] int32
    slots: torch.Tensor,  # [max_num_reqs] int64, out
    input_ids: torch.Tensor,  # [max_num_tokens] int32, out
    positions: torch.Tensor,  # [max_num_tokens] int64, out
    sample_positions: torch.Tensor,  # [max_num_reqs] int64, out
    query_start_loc: torch.Tensor,  # [max_num_reqs + 1] int32, out
    seq_lens: torch.Tensor,  # [max_num_reqs] int32, out
    max_model_len: int,
    vocab_size: int,
    theta_ids: torch.Tensor | None,  # [teacher's ids] int32, what theta reads; None where both read the same
) -> Launch:
    """The launch that lays out the first decode of a round: the newest token of every request that drew one in this step."""
    num_reqs = idx_mapping.shape[0]
    arguments = {
        "idx_mapping_ptr": idx_mapping,
        "num_sampled_ptr": num_sampled,
        "last_sampled_ptr": last_sampled,
        "total_len_ptr": total_len,
        "delta_ptr": delta,
        "slots_ptr": slots,
        "input_ids_ptr": input_ids,
        "positions_ptr": positions,
        "sample_positions_ptr": sample_positions,
        "query_start_loc_ptr": query_start_loc,
        "seq_lens_ptr": seq_lens,
        "theta_ids_ptr": theta_ids,
        "num_reqs": num_reqs,
        "max_num_reqs": slots.shape[0],
        "max_model_len": max_model_len,
        "last_token_id": vocab_size - 1,
        "last_teacher_id": last_id(theta_ids),
        "IS_PAIRED": theta_ids is not None,
        "BLOCK": BLOCK,
    }
    return Launch(_round_inputs_kernel, (num_reqs + 1, 1, 1), arguments, NUM_WARPS)


@triton.jit(do_not_specialize=["num_reqs"])
def _advance_round_kernel(
    drafted_ptr,  # [num_reqs] int64, the tokens drawn from theta in this decode
    slots_ptr,  # [max_num_reqs] int64
    draft_tokens_ptr,  # [max_num_reqs, K] int64, out
    draft_tokens_stride,
    input_ids_ptr,  # [max_num_tokens] int32, in/out
    positions_ptr,  # [max_num_tokens] int64, in/out
    sample_positions_ptr,  # [max_num_reqs] int64, in/out
    seq_lens_ptr,  # [max_num_reqs] int32, in/out
    step_ptr,  # [] int64, the number of this decode, 0..K
    theta_ids_ptr,  # [teacher's ids] int32, what theta reads; None where both read the same
    num_drafts,
    num_reqs,
    max_model_len,
    last_teacher_id,
    IS_PAIRED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    step = tl.load(step_ptr)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = row < num_reqs
    active = mask & (tl.load(slots_ptr + row, mask=mask, other=-1) >= 0)
    token = tl.load(drafted_ptr + row, mask=active, other=0)
    tl.store(draft_tokens_ptr + row * draft_tokens_stride + step, token, mask=mask & (step < num_drafts))
    # A row that takes no part may hold anything, NaN included: it keeps token 0, an index every embedding has.
    token = as_theta_reads(token, active, theta_ids_ptr, last_teacher_id, IS_PAIRED)
    tl.store(input_ids_ptr + row, token.to(tl.int32), mask=mask)
    position = tl.load(positions_ptr + row, mask=active)
    tl.store(positions_ptr + row, tl.minimum(position + 1, max_model_len - 1), mask=active)
    sample_position = tl.load(sample_positions_ptr + row, mask=active)
    tl.store(sample_positions_ptr + row, sample_position + 1, mask=active)
    seq_len = tl.load(seq_lens_ptr + row, mask=active)
    tl.store(seq_lens_ptr + row, tl.minimum(seq_len + 1, max_model_len), mask=active)


def advance_round(
    drafted: torch.Tensor,  # [num_reqs] int64
    slots: torch.Tensor,  # [max_num_reqs] int64
    draft_tokens: torch.Tensor,  # [max_num_reqs, K] int64, out
    input_ids: torch.Tensor,  # [max_num_tokens] int32, in/out
    positions: torch.Tensor,  # [max_num_tokens] int64, in/out
    sample_positions: torch.Tensor,  # [max_num_reqs] int64, in/out
    seq_lens: torch.Tensor,  # [max_num_reqs] int32, in/out
    step: torch.Tensor,  # [] int64, on the device, so that one captured decode serves every step
    max_model_len: int,
    theta_ids: torch.Tensor | None,  # [teacher's ids] int32, what theta reads; None where both read the same
) -> None:
    """Record the drafts of decode `step` and make them the input of the next; the last decode (K) drafts nothing."""
    num_reqs = drafted.shape[0]
    _advance_round_kernel[(triton.cdiv(num_reqs, BATCH_BLOCK),)](
        drafted,
        slots,
        draft_tokens,
        draft_tokens.stride(0),
        input_ids,
        positions,
        sample_positions,
        seq_lens,
        step,
        theta_ids,
        draft_tokens.shape[1],
        num_reqs,
        max_model_len,
        last_id(theta_ids),
        IS_PAIRED=theta_ids is not None,
        BLOCK=BATCH_BLOCK,
    )


@triton.jit
def _keep_rows_kernel(
    logits_ptr,  # [num_reqs, vocab_size], any row stride
    logits_stride,
    slots_ptr,  # [max_num_reqs] int64
    rows_ptr,  # [max_num_reqs, K + 1, teacher's vocab]
    rows_slot_stride,
    rows_step_stride,
    step_ptr,  # [] int64
    vocab_size,
    BLOCK: tl.constexpr,
):
    slot = tl.load(slots_ptr + tl.program_id(0))
    if slot < 0:
        return
    step = tl.load(step_ptr)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < vocab_size
    row = tl.load(logits_ptr + tl.program_id(0).to(tl.int64) * logits_stride + column, mask=mask)
    tl.store(rows_ptr + slot * rows_slot_stride + step * rows_step_stride + column, row, mask=mask)


def keep_rows(
    logits: torch.Tensor,  # [num_reqs, vocab_size]
    slots: torch.Tensor,  # [max_num_reqs] int64
    rows: torch.Tensor,  # [max_num_reqs, K + 1, teacher's vocab], out, in the dtype of `logits`
    step: torch.Tensor,  # [] int64
) -> None:
    """Keep theta's logits of decode `step` without drawing from them: the last decode's row is for the bonus token."""
    num_reqs, vocab_size = logits.shape
    block = min(8192, triton.next_power_of_2(vocab_size))
    _keep_rows_kernel[(num_reqs, triton.cdiv(vocab_size, block))](
        logits,
        logits.stride(0),
        slots,
        rows,
        rows.stride(0),
        rows.stride(1),
        step,
        vocab_size,
        BLOCK=block,
    )
