"""Kernel of a mix that only some calls need, once for each search that a row of theirs asks for, before the first reading.

A support is limited by a floor on the teacher's logits, first to the top k, then to a nucleus of what that leaves. Then the
alpha that balances effective sample sizes or is gated by a divergence is found over the tokens that are left. Rows are read
here, one program each, as often as `support.py`, `ess_balance.py` and `divergences.py` say; rows that do not ask for it
return at once. The host launches a search only in calls that may ask for it. Each is compiled by itself: in one kernel all of
them took the compiler longer than every other kernel together.
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from .columns import (
    ARITHMETIC,
    ESS_BALANCE,
    JS_GATE,
    SEARCH_ESS_BALANCE,
    SEARCH_TOP_K,
    SEARCH_TOP_P,
    Plan,
    load_plan,
)
from .divergences import divergence_sums, gated_alpha
from .ends import lse_of, read_ends
from .ess_balance import ess_balance_alpha
from .plan import bounded, read_settings, store_plan
from .support import highest_floor


# Calls take any slice of a step's rows: neither their number nor the alignment of a slice is worth a compilation, and neither
# are the numbers of requests and drafts of an engine.
@triton.jit(
    do_not_specialize=["num_rows", "num_slots", "num_positions"],
    do_not_specialize_on_alignment=["slots_ptr", "draft_positions_ptr", "token_positions_ptr"],
)
def search_kernel(
    teacher_ptr,  # [rows, V_t] fp32
    teacher_stride,
    theta_ptr,  # [slots, K + 1, V_theta] bf16, fp16 or fp32
    theta_slot_stride,
    theta_position_stride,
    slots_ptr,  # [rows] int32 or int64
    draft_positions_ptr,  # [rows] int32
    token_positions_ptr,  # [rows] int64
    first_position_ptr,  # [slots]; so are the following: `MixSettings`
    method_ptr,
    alpha_ptr,
    alpha_min_ptr,
    alpha_max_ptr,
    support_top_k_ptr,
    support_top_p_ptr,
    max_js_divergence_ptr,
    kl_budget_ptr,
    js_sensitivity_ptr,
    alpha_end_ptr,
    alpha_min_end_ptr,
    alpha_max_end_ptr,
    kl_budget_end_ptr,
    schedule_position_ptr,
    schedule_steps_ptr,
    plan_ptr,  # [max_rows, PLAN_WIDTH] fp32, in/out
    num_rows,
    num_slots,
    num_positions,
    vocab,
    SEARCH: tl.constexpr,  # one `Search`
    ROWS: tl.constexpr,
    SUB: tl.constexpr,
    LANES: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    asked = read_settings(
        row, theta_slot_stride, theta_position_stride, slots_ptr, draft_positions_ptr, token_positions_ptr,
        first_position_ptr, method_ptr, alpha_ptr, alpha_min_ptr, alpha_max_ptr, support_top_k_ptr, support_top_p_ptr,
        max_js_divergence_ptr, kl_budget_ptr, js_sensitivity_ptr, alpha_end_ptr, alpha_min_end_ptr, alpha_max_end_ptr,
        kl_budget_end_ptr, schedule_position_ptr, schedule_steps_ptr, num_rows, num_slots, num_positions, ROWS,
    )  # fmt: skip
    plan = asked.plan
    limited = asked.top_k > 0
    if SEARCH == SEARCH_TOP_K:
        searched = limited
        found_before = limited & False
    elif SEARCH == SEARCH_TOP_P:
        searched = asked.top_p < 1.0
        found_before = limited
    elif SEARCH == SEARCH_ESS_BALANCE:
        searched = plan.method == ESS_BALANCE
        found_before = plan.restricted
    else:
        searched = plan.method == JS_GATE
        found_before = plan.restricted
    if tl.max(searched.to(tl.int32), axis=0) == 0:
        return
    # By another search of this call.
    found = load_plan(plan_ptr, row, searched & found_before)
    floor = tl.where(found_before, found.floor, float("-inf"))
    teacher_row = (teacher_ptr + row * teacher_stride)[:, None]
    theta_row = (theta_ptr + tl.where(searched, asked.offset, 0))[:, None]
    ends = read_ends(teacher_row, theta_row, floor, searched, vocab, ROWS, SUB, LANES)
    # Of the whole rows.
    teacher_lse = tl.where(found_before, found.teacher_lse, lse_of(ends.own, ends.peak_own))
    theta_lse = tl.where(found_before, found.theta_lse, lse_of(ends.theta, ends.peak_theta))
    alpha_min = plan.alpha_min
    alpha_max = plan.alpha_max
    BY_MASS: tl.constexpr = SEARCH == SEARCH_TOP_P
    if SEARCH == SEARCH_TOP_K or BY_MASS:
        theta_decides = plan.method != ARITHMETIC
        peak = tl.where(theta_decides, ends.peak_teacher, ends.peak_own)
        if BY_MASS:
            target = asked.top_p * tl.where(theta_decides, ends.teacher, ends.own)
        else:
            target = asked.top_k.to(tl.float32)
        highest = highest_floor(
            teacher_row, theta_row, theta_decides, floor, searched, target, peak, vocab, BY_MASS, ROWS, SUB, LANES
        )
        # A nan outside the support is to be seen too, so that a broken row is always flagged.
        broken = teacher_lse + theta_lse != teacher_lse + theta_lse
        floor = tl.where(broken, float("-inf"), tl.maximum(floor, highest))
    else:
        mixed_theta_lse = lse_of(ends.theta, ends.peak_theta)
        mixed_teacher_lse = lse_of(ends.teacher, ends.peak_teacher)
        if SEARCH == SEARCH_ESS_BALANCE:
            alpha = ess_balance_alpha(
                teacher_row, theta_row, floor, searched, mixed_theta_lse, mixed_teacher_lse, ends.shift,
                ends.divergences, ends.square, vocab, ROWS, SUB, LANES,
            )  # fmt: skip
        else:
            nothing = tl.full([ROWS], 0.0, tl.float32)
            divergences = divergence_sums(
                teacher_row, theta_row, floor, searched, searched == 0, nothing, mixed_theta_lse, mixed_teacher_lse,
                0, vocab, ROWS, LANES,
            )  # fmt: skip
            alpha = gated_alpha(divergences.js, asked.js_sensitivity, alpha_min, alpha_max)
        alpha_min = bounded(alpha, alpha_min, alpha_max)
        alpha_max = alpha_min
    plan = Plan(
        mixed=plan.mixed,
        method=plan.method,
        floor=floor,
        alpha_min=alpha_min,
        alpha_max=alpha_max,
        max_js=plan.max_js,
        restricted=plan.restricted,
        teacher_lse=teacher_lse,
        theta_lse=theta_lse,
        budget=plan.budget,
    )
    store_plan(plan_ptr, row, searched, plan)
