"""First kernel of a mix: what each row asks for, and the searches that few rows ask for.

Reads the slot's settings once, so that the kernels after it need one small row of `plan` each. Rows that restrict the
support, balance effective sample sizes or are gated by a divergence are read here as often as `support.py`,
`ess_balance.py` and `divergences.py` say; the others not at all.
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from .columns import (
    ARITHMETIC,
    ESS_BALANCE,
    FIXED,
    JS_GATE,
    OPTED_OUT,
    PLAN_FIELDS,
    PLAN_WIDTH,
    Plan,
    store_fields,
)
from .divergences import divergence_sums, gated_alpha
from .ends import lse_of, read_ends
from .ess_balance import ess_balance_alpha
from .support import highest_floor

MOST_BUDGET = tl.constexpr(1.0e30)
"""Nats. More than any divergence, and finite, so that differences are never nan."""


@triton.jit
def progress_at(token_position, schedule_position, schedule_steps):
    """How much of its schedule a row has behind it, in [0, 1]."""
    behind = tl.maximum(token_position - schedule_position, 0).to(tl.float32)
    return tl.minimum(behind / schedule_steps.to(tl.float32), 1.0)


@triton.jit
def scheduled(start, end, progress):
    """The value at `progress`, which is exactly `start` at 0 and `end` at 1; inf in between if either is."""
    endless = (start == float("inf")) | (end == float("inf"))
    change = tl.where(endless | (start == end), 0.0, end - start)
    between = tl.where(endless & (start != end), float("inf"), start + change * progress)
    return tl.where(progress <= 0.0, start, tl.where(progress >= 1.0, end, between))


# Calls take any slice of a step's rows: neither their number nor the alignment of a slice is worth a compilation, and neither
# are the numbers of requests and drafts of an engine.
@triton.jit(
    do_not_specialize=["num_rows", "num_slots", "num_positions"],
    do_not_specialize_on_alignment=["slots_ptr", "draft_positions_ptr", "token_positions_ptr"],
)
def plan_kernel(
    teacher_ptr,  # [rows, V_t] fp32
    teacher_stride,
    theta_ptr,  # [slots, K + 1, V_theta] bf16, fp16 or fp32
    theta_slot_stride,
    theta_position_stride,
    slots_ptr,  # [rows] int32 or int64
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
    kl_budget_ptr,  # [slots] fp32
    js_sensitivity_ptr,  # [slots] fp32
    alpha_end_ptr,  # [slots] fp32
    alpha_min_end_ptr,  # [slots] fp32
    alpha_max_end_ptr,  # [slots] fp32
    kl_budget_end_ptr,  # [slots] fp32
    schedule_position_ptr,  # [slots] int64
    schedule_steps_ptr,  # [slots] int32
    theta_offset_ptr,  # [max_rows] int64, out: elements to theta's row; -1 for a row to be left alone
    entry_ptr,  # [max_rows] int64, out: element of the record
    plan_ptr,  # [max_rows, PLAN_WIDTH] fp32, out
    num_rows,
    num_slots,
    num_positions,
    vocab,
    ROWS: tl.constexpr,
    SUB: tl.constexpr,
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

    token_position = tl.load(token_positions_ptr + row, mask=active, other=0)
    mixed = active & (token_position >= first_position)
    method = tl.load(method_ptr + slot, mask=mixed, other=FIXED)
    progress = progress_at(
        token_position,
        tl.load(schedule_position_ptr + slot, mask=mixed, other=OPTED_OUT),
        tl.load(schedule_steps_ptr + slot, mask=mixed, other=1),
    )
    # Rows that the teacher draws alone are measured as a fixed alpha of 1.
    alpha_min = tl.load(alpha_min_ptr + slot, mask=mixed, other=1.0)
    alpha_min = scheduled(alpha_min, tl.load(alpha_min_end_ptr + slot, mask=mixed, other=1.0), progress)
    alpha_max = tl.load(alpha_max_ptr + slot, mask=mixed, other=1.0)
    alpha_max = scheduled(alpha_max, tl.load(alpha_max_end_ptr + slot, mask=mixed, other=1.0), progress)
    alpha = tl.load(alpha_ptr + slot, mask=mixed, other=1.0)
    alpha = scheduled(alpha, tl.load(alpha_end_ptr + slot, mask=mixed, other=1.0), progress)
    budget = tl.load(kl_budget_ptr + slot, mask=mixed, other=float("inf"))
    budget = scheduled(budget, tl.load(kl_budget_end_ptr + slot, mask=mixed, other=float("inf")), progress)
    budget = tl.minimum(budget, MOST_BUDGET)
    top_k = tl.load(support_top_k_ptr + slot, mask=mixed, other=0)
    top_p = tl.load(support_top_p_ptr + slot, mask=mixed, other=1.0)
    max_js = tl.load(max_js_divergence_ptr + slot, mask=mixed, other=float("inf"))
    restricted = (top_k > 0) | (top_p < 1.0)
    balanced = method == ESS_BALANCE
    gated = method == JS_GATE
    searched = balanced | gated
    floor = tl.full([ROWS], float("-inf"), tl.float32)
    teacher_lse = tl.full([ROWS], 0.0, tl.float32)
    theta_lse = teacher_lse

    if tl.max((restricted | searched).to(tl.int32), axis=0) > 0:
        read = restricted | searched
        teacher_row = (teacher_ptr + row.to(tl.int64) * teacher_stride)[:, None]
        theta_row = (theta_ptr + tl.where(read, offset, 0))[:, None]
        ends = read_ends(teacher_row, theta_row, floor, read, vocab, ROWS, SUB, LANES)
        teacher_lse = lse_of(ends.own, ends.peak_own)
        theta_lse = lse_of(ends.theta, ends.peak_theta)
        if tl.max(restricted.to(tl.int32), axis=0) > 0:
            theta_decides = method != ARITHMETIC
            limited = restricted & (top_k > 0)
            floor = highest_floor(
                teacher_row, theta_row, theta_decides, floor, limited, top_k.to(tl.float32), ends.peak_own, vocab,
                False, ROWS, SUB, LANES,
            )  # fmt: skip
            nucleus = restricted & (top_p < 1.0)
            if tl.max((limited & nucleus).to(tl.int32), axis=0) > 0:
                ends = read_ends(teacher_row, theta_row, floor, nucleus, vocab, ROWS, SUB, LANES)
            mass = tl.where(theta_decides, ends.teacher, ends.own)
            peak = tl.where(theta_decides, ends.peak_teacher, ends.peak_own)
            nucleus_floor = highest_floor(
                teacher_row, theta_row, theta_decides, floor, nucleus, top_p * mass, peak, vocab, True, ROWS, SUB, LANES
            )
            # A nan outside the support is to be seen too, so that a broken row is always flagged.
            broken = teacher_lse + theta_lse != teacher_lse + theta_lse
            floor = tl.where(broken, float("-inf"), tl.maximum(floor, nucleus_floor))
        if tl.max(searched.to(tl.int32), axis=0) > 0:
            if tl.max(restricted.to(tl.int32), axis=0) > 0:
                ends = read_ends(teacher_row, theta_row, floor, searched, vocab, ROWS, SUB, LANES)
            mixed_theta_lse = lse_of(ends.theta, ends.peak_theta)
            mixed_teacher_lse = lse_of(ends.teacher, ends.peak_teacher)
            if tl.max(balanced.to(tl.int32), axis=0) > 0:
                balanced_alpha = ess_balance_alpha(
                    teacher_row, theta_row, floor, balanced, mixed_theta_lse, mixed_teacher_lse, ends.shift,
                    ends.divergences, ends.square, vocab, ROWS, SUB, LANES,
                )  # fmt: skip
                alpha = tl.where(balanced, balanced_alpha, alpha)
            if tl.max(gated.to(tl.int32), axis=0) > 0:
                divergences = divergence_sums(
                    teacher_row, theta_row, floor, gated, balanced, alpha, mixed_theta_lse, mixed_teacher_lse,
                    0, vocab, ROWS, LANES,
                )  # fmt: skip
                sensitivity = tl.load(js_sensitivity_ptr + slot, mask=gated, other=0.0)
                alpha = tl.where(gated, gated_alpha(divergences.js, sensitivity, alpha_min, alpha_max), alpha)

    # Where alpha is known, the bounds say so.
    given = (method == FIXED) | (method == ARITHMETIC) | searched
    above = tl.where(alpha < alpha_min, alpha_min, alpha)
    bounded = tl.where(above > alpha_max, alpha_max, above)
    plan = Plan(
        mixed=mixed,
        method=method,
        floor=floor,
        alpha_min=tl.where(given, bounded, alpha_min),
        alpha_max=tl.where(given, bounded, alpha_max),
        max_js=max_js,
        restricted=restricted,
        teacher_lse=teacher_lse,
        theta_lse=theta_lse,
        budget=budget,
    )
    store_fields(plan_ptr + row.to(tl.int64) * PLAN_WIDTH, plan, active, PLAN_FIELDS)
    tl.store(entry_ptr + row, slot * num_positions + position, mask=active)
