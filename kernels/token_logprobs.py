"""Log-probabilities of the token drawn in each row: under q, under the teacher alone, under theta alone.

    geometric    log q = alpha b + (1 - alpha) a - log_z
    arithmetic   log q = log(alpha exp(b - lse_b) + (1 - alpha) exp(a - lse_a))
    teacher      log q = b - lse(b)

with a, b theta's and the teacher's logit of the token and the normalisers that `mix_` left in the record. Two gathered
logits and a dozen numbers a row; nothing where it is not called.
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .checks import THETA_DTYPES, check_rows, check_tensor
from .prepared_launch import Launch, RepeatedLaunches
from .record import Kind, MixRecord
from .tilt import LOWEST

BLOCK, NUM_WARPS = 128, 4
GEOMETRIC = tl.constexpr(int(Kind.GEOMETRIC))
ARITHMETIC = tl.constexpr(int(Kind.ARITHMETIC))


# Calls take any slice of a step's rows, of a vocabulary that vLLM may have padded: neither their number nor the alignment of a
# slice or of a row is worth a compilation.
@triton.jit(
    do_not_specialize=["num_rows", "teacher_stride"],
    do_not_specialize_on_alignment=["token_ids_ptr", "teacher_ptr", "slots_ptr", "draft_positions_ptr"],
)
def token_logprobs_kernel(
    token_ids_ptr,  # [rows] int32 or int64; negative: none was drawn
    teacher_ptr,  # [rows, V_t] fp32, bf16 or fp16, as it was before the mix
    teacher_stride,
    theta_ptr,  # [slots, K + 1, V_theta] bf16, fp16 or fp32
    theta_slot_stride,
    theta_position_stride,
    slots_ptr,  # [rows] int32 or int64
    draft_positions_ptr,  # [rows] int32
    alpha_ptr,  # [slots, K + 1] fp32; so are the following
    kind_ptr,  # int32
    log_z_ptr,
    floor_ptr,
    mixed_teacher_lse_ptr,
    mixed_theta_lse_ptr,
    teacher_lse_ptr,
    theta_lse_ptr,
    logprob_ptr,  # out; so are the following
    teacher_logprob_ptr,
    theta_logprob_ptr,
    num_rows,
    num_slots,
    num_positions,
    teacher_vocab,
    theta_vocab,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_rows
    token = tl.load(token_ids_ptr + row, mask=inside, other=-1).to(tl.int64)
    slot = tl.load(slots_ptr + row, mask=inside, other=-1).to(tl.int64)
    position = tl.load(draft_positions_ptr + row, mask=inside, other=-1).to(tl.int64)
    wanted = (token >= 0) & (token < teacher_vocab)
    wanted = wanted & (slot >= 0) & (slot < num_slots) & (position >= 0) & (position < num_positions)
    common = wanted & (token < theta_vocab)
    teacher = tl.load(teacher_ptr + row.to(tl.int64) * teacher_stride + token, mask=wanted, other=0.0).to(tl.float32)
    theta_address = theta_ptr + slot * theta_slot_stride + position * theta_position_stride + token
    theta = tl.load(theta_address, mask=common, other=float("-inf")).to(tl.float32)
    entry = slot * num_positions + position
    alpha = tl.load(alpha_ptr + entry, mask=wanted, other=1.0)
    kind = tl.load(kind_ptr + entry, mask=wanted, other=0)
    log_z = tl.load(log_z_ptr + entry, mask=wanted, other=0.0)
    floor = tl.load(floor_ptr + entry, mask=wanted, other=0.0)
    mixed_teacher_lse = tl.load(mixed_teacher_lse_ptr + entry, mask=wanted, other=0.0)
    mixed_theta_lse = tl.load(mixed_theta_lse_ptr + entry, mask=wanted, other=0.0)
    teacher_lse = tl.load(teacher_lse_ptr + entry, mask=wanted, other=0.0)
    theta_lse = tl.load(theta_lse_ptr + entry, mask=wanted, other=0.0)

    in_teacher = (teacher > LOWEST) & (teacher >= floor) & common
    in_both = in_teacher & (theta > LOWEST)
    nothing = float("-inf")
    geometric = tl.where(in_both, theta + alpha * (teacher - theta) - log_z, nothing)
    from_teacher = tl.where(in_teacher, alpha * tl.exp(teacher - mixed_teacher_lse), 0.0)
    from_theta = tl.where(in_both, (1.0 - alpha) * tl.exp(theta - mixed_theta_lse), 0.0)
    arithmetic = tl.log(from_teacher + from_theta)
    teacher_logprob = teacher - teacher_lse
    theta_logprob = tl.where(teacher > LOWEST, theta - theta_lse, nothing)
    mixture = tl.where(kind == ARITHMETIC, arithmetic, teacher_logprob)
    tl.store(logprob_ptr + entry, tl.where(kind == GEOMETRIC, geometric, mixture), mask=wanted)
    tl.store(teacher_logprob_ptr + entry, teacher_logprob, mask=wanted)
    tl.store(theta_logprob_ptr + entry, theta_logprob, mask=wanted)


LAUNCHES = RepeatedLaunches(("token_ids_ptr", "teacher_ptr", "slots_ptr", "draft_positions_ptr", "num_rows"))


def launch_of(
    token_ids: torch.Tensor,
    teacher_logits: torch.Tensor,
    theta_logits: torch.Tensor,
    slots: torch.Tensor,
    draft_positions: torch.Tensor,
    record: MixRecord,
) -> Launch:
    """The launch of `token_logprobs`."""
    num_rows, teacher_vocab = teacher_logits.shape
    num_slots, num_positions, theta_vocab = theta_logits.shape
    arguments = {
        "token_ids_ptr": token_ids,
        "teacher_ptr": teacher_logits,
        "teacher_stride": teacher_logits.stride(0),
        "theta_ptr": theta_logits,
        "theta_slot_stride": theta_logits.stride(0),
        "theta_position_stride": theta_logits.stride(1),
        "slots_ptr": slots,
        "draft_positions_ptr": draft_positions,
        "alpha_ptr": record.alpha,
        "kind_ptr": record.kind,
        "log_z_ptr": record.log_z,
        "floor_ptr": record.floor,
        "mixed_teacher_lse_ptr": record.mixed_teacher_lse,
        "mixed_theta_lse_ptr": record.mixed_theta_lse,
        "teacher_lse_ptr": record.teacher_lse,
        "theta_lse_ptr": record.theta_lse,
        "logprob_ptr": record.logprob,
        "teacher_logprob_ptr": record.teacher_logprob,
        "theta_logprob_ptr": record.theta_logprob,
        "num_rows": num_rows,
        "num_slots": num_slots,
        "num_positions": num_positions,
        "teacher_vocab": teacher_vocab,
        "theta_vocab": theta_vocab,
        "BLOCK": BLOCK,
    }
    return Launch(token_logprobs_kernel, (-(-num_rows // BLOCK), 1, 1), arguments, NUM_WARPS)


def token_logprobs(
    token_ids: torch.Tensor,
    teacher_logits: torch.Tensor,
    theta_logits: torch.Tensor,
    slots: torch.Tensor,
    draft_positions: torch.Tensor,
    record: MixRecord,
) -> None:
    """Write `record.logprob`, `.teacher_logprob` and `.theta_logprob` of the token drawn in each row.

    `teacher_logprob` is under the teacher's row, `theta_logprob` under theta's where the teacher's row allows a token
    (a grammar restricts both), both over the whole vocabulary even if the support of the mix was restricted.

    Args:
        token_ids: `[rows]` int32 or int64; negative where the row has no token, whose entries are left as they are.
        teacher_logits: `[rows, V_t]` float32, bf16 or fp16, as they were before `mix_`; any row stride.
        theta_logits: `[slots, K + 1, V_theta]`, as they were given to `mix_`.
        slots: `[rows]` int32 or int64, the request slot of each row.
        draft_positions: `[rows]` int32, 0..K.
        record: as `mix_` left it; slots that opted out have no entry to build on, and get nothing of use.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: a tensor has the wrong device, shape or strides.
    """
    check_rows(teacher_logits, theta_logits, slots, draft_positions, record, teacher_dtypes=THETA_DTYPES)
    num_rows = teacher_logits.shape[0]
    device = teacher_logits.device
    check_tensor("token_ids", token_ids, dtypes=(torch.int32, torch.int64), shape=(num_rows,), device=device)
    if num_rows == 0:
        return
    LAUNCHES.run(launch_of(token_ids, teacher_logits, theta_logits, slots, draft_positions, record))
