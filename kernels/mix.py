"""Mix the teacher's rows with theta's, in place: log q*, q* ~ theta^(1 - alpha) * teacher^alpha."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .record import MixRecord
from .scratch import MixScratch
from .settings import NEVER, MixSettings


@triton.jit
def _mix_kernel(
    teacher_ptr,  # [rows, V_t] fp32, in/out
    teacher_stride,
    theta_ptr,  # [slots, K + 1, V_theta]
    theta_slot_stride,
    theta_position_stride,
    slots_ptr,  # [rows] int32
    draft_positions_ptr,  # [rows] int32
    token_positions_ptr,  # [rows] int64
    first_position_ptr,  # [slots] int64
    method_ptr,  # [slots] int32
    alpha_ptr,
    alpha_min_ptr,
    alpha_max_ptr,
    record_alpha_ptr,  # [slots, K + 1]
    record_kl_theta_ptr,
    record_kl_teacher_ptr,
    record_fallback_ptr,
    record_log_z_ptr,
    record_teacher_lse_ptr,
    record_theta_lse_ptr,
    num_slots,
    num_positions,
    teacher_vocab,
    theta_vocab,
    NEVER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    position = tl.load(draft_positions_ptr + row).to(tl.int64)
    if (slot < 0) | (slot >= num_slots) | (position < 0) | (position >= num_positions):
        return
    first_position = tl.load(first_position_ptr + slot)
    if first_position == NEVER:
        return
    mixed = tl.load(token_positions_ptr + row) >= first_position
    ids = tl.arange(0, BLOCK)
    t = tl.load(teacher_ptr + row * teacher_stride + ids, mask=ids < teacher_vocab, other=float("-inf"))
    theta_row = theta_ptr + slot * theta_slot_stride + position * theta_position_stride
    s = tl.load(theta_row + ids, mask=ids < theta_vocab, other=float("-inf")).to(tl.float32)
    support = (t + s) != float("-inf")
    t_max = tl.maximum(tl.max(t, axis=0), -1e30)
    teacher_lse = t_max + tl.log(tl.sum(tl.exp(t - t_max), axis=0))
    a = tl.where(support, s, float("-inf"))
    b = tl.where(support, t, float("-inf"))
    a_max = tl.maximum(tl.max(a, axis=0), -1e30)
    b_max = tl.maximum(tl.max(b, axis=0), -1e30)
    theta_lse = a_max + tl.log(tl.sum(tl.exp(a - a_max), axis=0))
    b_lse = b_max + tl.log(tl.sum(tl.exp(b - b_max), axis=0))
    r = tl.where(support, b - a, 0.0) - (b_lse - theta_lse)
    fixed = tl.load(method_ptr + slot) == 1
    lo = 0.0
    hi = 1.0
    for _ in range(20):
        alpha = 0.5 * (lo + hi)
        m = tl.where(support, a + alpha * (b - a), float("-inf"))
        top = tl.maximum(tl.max(m, axis=0), -1e30)
        w = tl.exp(m - top)
        g = tl.sum(w * r, axis=0)
        lo = tl.where(g < 0, alpha, lo)
        hi = tl.where(g > 0, alpha, hi)
    alpha = tl.where(fixed, tl.load(alpha_ptr + slot), 0.5 * (lo + hi))
    alpha = tl.minimum(tl.maximum(alpha, tl.load(alpha_min_ptr + slot)), tl.load(alpha_max_ptr + slot))
    alpha = tl.where(mixed, alpha, 1.0)
    m = tl.where(support, a + alpha * (b - a), float("-inf"))
    top = tl.maximum(tl.max(m, axis=0), -1e30)
    w = tl.exp(m - top)
    z = tl.sum(w, axis=0)
    log_z = top + tl.log(z)
    g = tl.sum(w * r, axis=0) / z
    normalised = log_z - alpha * b_lse - (1 - alpha) * theta_lse
    sound = (z > 0) & (g == g) & (normalised == normalised)
    if mixed & sound:
        tl.store(teacher_ptr + row * teacher_stride + ids, m - log_z, mask=ids < teacher_vocab)
    out = slot * num_positions + position
    tl.store(record_alpha_ptr + out, tl.where(sound, alpha, 1.0))
    tl.store(record_kl_theta_ptr + out, tl.where(sound, alpha * g - normalised, float("nan")))
    tl.store(record_kl_teacher_ptr + out, tl.where(sound, (alpha - 1) * g - normalised, 0.0))
    tl.store(record_fallback_ptr + out, mixed & (sound == 0))
    tl.store(record_log_z_ptr + out, log_z)
    tl.store(record_teacher_lse_ptr + out, teacher_lse)
    tl.store(record_theta_lse_ptr + out, theta_lse)


def mix_(
    teacher_logits: torch.Tensor,
    theta_logits: torch.Tensor,
    slots: torch.Tensor,
    draft_positions: torch.Tensor,
    token_positions: torch.Tensor,
    settings: MixSettings,
    record: MixRecord,
    scratch: MixScratch,
) -> None:
    """Overwrite the teacher's rows that are to be mixed with log q*.

    Args:
        teacher_logits: `[rows, V_t]` float32, changed in place; any row stride, the last dimension contiguous.
        theta_logits: `[slots, K + 1, V_theta]` bf16, fp16 or fp32; any outer strides.
        slots: `[rows]` int32, the request slot of each row; a row whose slot is out of range is skipped.
        draft_positions: `[rows]` int32, which of theta's rows belongs to it, 0..K.
        token_positions: `[rows]` int64, the teacher position of each row's input token.
        settings: what each slot asks for.
        record: what is left behind, per (slot, draft position).
        scratch: working memory.
    """
    num_rows, teacher_vocab = teacher_logits.shape
    num_slots, num_positions, theta_vocab = theta_logits.shape
    if num_rows == 0:
        return
    _mix_kernel[(num_rows,)](
        teacher_logits,
        teacher_logits.stride(0),
        theta_logits,
        theta_logits.stride(0),
        theta_logits.stride(1),
        slots,
        draft_positions,
        token_positions,
        settings.first_position,
        settings.method,
        settings.alpha,
        settings.alpha_min,
        settings.alpha_max,
        record.alpha,
        record.kl_theta,
        record.kl_teacher,
        record.fallback,
        record.log_z,
        record.teacher_lse,
        record.theta_lse,
        num_slots,
        num_positions,
        teacher_vocab,
        theta_vocab,
        NEVER=NEVER,
        BLOCK=triton.next_power_of_2(teacher_vocab),
    )
