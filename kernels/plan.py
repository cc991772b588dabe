"""First kernel of a mix: what each row asks for, and the two searches that few rows ask for.

Reads the slot's settings once, so that the kernels after it need one small row of `plan` each. Rows that restrict the
support or balance effective sample sizes are read here as often as `support.py` and `ess_balance.py` say; the others
not at all.
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from . import scratch
from .ess_balance import ess_balance_alpha
from .settings import NEVER, Method
from .support import highest_floor
from .tilt import LN_2, log_sum, tilted_sums

# Columns of `plan`.
MIXED = tl.constexpr(0)
METHOD = tl.constexpr(1)
FLOOR = tl.constexpr(2)
ALPHA_MIN = tl.constexpr(3)
ALPHA_MAX = tl.constexpr(4)
MAX_JS = tl.constexpr(5)
RESTRICTED = tl.constexpr(6)
TEACHER_LSE = tl.constexpr(7)
THETA_LSE = tl.constexpr(8)
PLAN_WIDTH = tl.constexpr(scratch.PLAN_WIDTH)

OPTED_OUT = tl.constexpr(NEVER)
FIXED = tl.constexpr(int(Method.FIXED))
ENTROPY = tl.constexpr(int(Method.ENTROPY))
ESS_BALANCE = tl.constexpr(int(Method.ESS_BALANCE))
REVERSE_KL_SYMMETRY = tl.constexpr(int(Method.REVERSE_KL_SYMMETRY))
KL_SYMMETRY = tl.constexpr(int(Method.KL_SYMMETRY))
ARITHMETIC = tl.constexpr(int(Method.ARITHMETIC))


# Calls take any slice of a step's rows: neither their number nor the alignment of a slice is worth a compilation.
@triton.jit(
    do_not_specialize=["num_rows"],
    do_not_specialize_on_alignment=["slots_ptr", "draft_positions_ptr", "token_positions_ptr"],
)
def plan_kernel(
    teacher_ptr,  # [rows, V_t] fp32
    teacher_stride,
    theta_ptr,  # [slots, K + 1, V_theta] bf16, fp16 or fp32
    theta_slot_stride,
    theta_position_stride,
    slots_ptr,  # [rows] int32
    draft_positions_ptr,  # [rows] int32
    token_positions_ptr,  # [rows] int64
    first_position_ptr,  # [slots] int64
    method_ptr,  # [slots] int32
    alpha_ptr,  # [slots] fp32
    alpha_min_ptr,  # [slots] fp32
    alpha_max_ptr,  # [slots] fp32
    support_top_k_ptr,  # [slots] int32
    support_top_p_ptr,  # [slots] fp32
    max_js_divergence_ptr,  # [slots] fp32
    theta_offset_ptr,  # [max_rows] int64, out: elements to theta's row; -1 for a row to be left alone
    entry_ptr,  # [max_rows] int64, out: element of the record
    plan_ptr,  # [max_rows, PLAN_WIDTH] fp32, out
    num_rows,
    num_slots,
    num_positions,
    vocab,
    ROWS: tl.constexpr,
    NODES: tl.constexpr,
    PAD: tl.constexpr,
    LANES: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < num_rows
    slot = tl.load(slots_ptr + row, mask=inside, other=-1).to(tl.int64)
    position = tl.load(draft_positions_ptr + row, mask=inside, other=-1).to(tl.int64)
    known = (slot >= 0) & (slot < num_slots) & (position >= 0) & (position < num_positions)
    first_position = tl.load(first_position_ptr + slot, mask=known, other=OPTED_OUT)
    active = known & (first_position != OPTED_OUT)
    offset = slot * theta_slot_stride + position * theta_position_stride
    tl.store(theta_offset_ptr + row, tl.where(active, offset, -1), mask=inside)
    if tl.max(active.to(tl.int32), axis=0) == 0:
        return

    mixed = active & (tl.load(token_positions_ptr + row, mask=active, other=0) >= first_position)
    method = tl.load(method_ptr + slot, mask=mixed, other=FIXED)
    # Rows that the teacher draws alone are measured as a fixed alpha of 1.
    alpha_min = tl.load(alpha_min_ptr + slot, mask=mixed, other=1.0)
    alpha_max = tl.load(alpha_max_ptr + slot, mask=mixed, other=1.0)
    alpha = tl.load(alpha_ptr + slot, mask=mixed, other=1.0)
    top_k = tl.load(support_top_k_ptr + slot, mask=mixed, other=0)
    top_p = tl.load(support_top_p_ptr + slot, mask=mixed, other=1.0)
    max_js = tl.load(max_js_divergence_ptr + slot, mask=mixed, other=float("inf"))
    restricted = (top_k > 0) | (top_p < 1.0)
    balanced = method == ESS_BALANCE
    floor = tl.full([ROWS], float("-inf"), tl.float32)
    teacher_lse = tl.full([ROWS], 0.0, tl.float32)
    theta_lse = teacher_lse

    if tl.max((restricted | balanced).to(tl.int32), axis=0) > 0:
        read = restricted | balanced
        teacher_row = (teacher_ptr + row.to(tl.int64) * teacher_stride)[:, None]
        theta_row = (theta_ptr + tl.where(read, offset, 0))[:, None]
        low = tl.full([ROWS], 0.0, tl.float32)
        peak_theta, _, z, _, _, own, peak_own, _, _ = tilted_sums(
            teacher_row, theta_row, floor, read, low, low + 1.0, low, low, 0, vocab, ROWS, 2, 2, 1, LANES, True, False
        )
        first = tl.arange(0, 2)[None, :] == 0
        teacher_lse = log_sum(own) + peak_own * LN_2
        theta_lse = log_sum(tl.sum(tl.where(first, z, 0.0), axis=1)) + peak_theta * LN_2
        if tl.max(restricted.to(tl.int32), axis=0) > 0:
            theta_decides = method != ARITHMETIC
            limited = restricted & (top_k > 0)
            floor = highest_floor(
                teacher_row, theta_row, theta_decides, floor, limited, top_k.to(tl.float32), peak_own, vocab,
                False, ROWS, LANES,
            )  # fmt: skip
            nucleus = restricted & (top_p < 1.0)
            _, peak_both, z, _, _, own, peak_own, _, _ = tilted_sums(
                teacher_row,
                theta_row,
                floor,
                nucleus,
                low,
                low + 1.0,
                low,
                low,
                0,
                vocab,
                ROWS,
                2,
                2,
                1,
                LANES,
                True,
                False,
            )
            mass = tl.where(theta_decides, tl.sum(tl.where(first, 0.0, z), axis=1), own)
            peak = tl.where(theta_decides, peak_both, peak_own)
            nucleus_floor = highest_floor(
                teacher_row, theta_row, theta_decides, floor, nucleus, top_p * mass, peak, vocab, True, ROWS, LANES
            )
            # A nan outside the support is to be seen too, so that a broken row is always flagged.
            broken = teacher_lse + theta_lse != teacher_lse + theta_lse
            floor = tl.where(broken, float("-inf"), tl.maximum(floor, nucleus_floor))
        if tl.max(balanced.to(tl.int32), axis=0) > 0:
            peak_theta, peak_teacher, z, r, _, _, _, _, _ = tilted_sums(
                teacher_row,
                theta_row,
                floor,
                balanced,
                low,
                low + 1.0,
                low,
                low,
                0,
                vocab,
                ROWS,
                2,
                2,
                1,
                LANES,
                True,
                False,
            )
            mixed_theta_lse = log_sum(tl.sum(tl.where(first, z, 0.0), axis=1)) + peak_theta * LN_2
            mixed_teacher_lse = log_sum(tl.sum(tl.where(first, 0.0, z), axis=1)) + peak_teacher * LN_2
            # g(1) - g(0): what r is relative to cancels.
            mean = r / z
            divergences = tl.sum(tl.where(first, -mean, mean), axis=1) * LN_2
            balanced_alpha = ess_balance_alpha(
                teacher_row, theta_row, floor, balanced, mixed_theta_lse, mixed_teacher_lse, divergences, vocab,
                ROWS, NODES, PAD, LANES,
            )  # fmt: skip
            alpha = tl.where(balanced, balanced_alpha, alpha)

    # Where alpha is known, the bounds say so.
    given = (method == FIXED) | (method == ARITHMETIC) | balanced
    above = tl.where(alpha < alpha_min, alpha_min, alpha)
    bounded = tl.where(above > alpha_max, alpha_max, above)
    out = plan_ptr + row.to(tl.int64) * PLAN_WIDTH
    tl.store(out + MIXED, mixed.to(tl.float32), mask=active)
    tl.store(out + METHOD, method.to(tl.float32), mask=active)
    tl.store(out + FLOOR, floor, mask=active)
    tl.store(out + ALPHA_MIN, tl.where(given, bounded, alpha_min), mask=active)
    tl.store(out + ALPHA_MAX, tl.where(given, bounded, alpha_max), mask=active)
    tl.store(out + MAX_JS, max_js, mask=active)
    tl.store(out + RESTRICTED, restricted.to(tl.float32), mask=active)
    tl.store(out + TEACHER_LSE, teacher_lse, mask=active)
    tl.store(out + THETA_LSE, theta_lse, mask=active)
    tl.store(entry_ptr + row, slot * num_positions + position, mask=active)
