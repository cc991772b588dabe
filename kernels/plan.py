"""What each row asks for, read from the settings of its request. Device functions.

The kernels that begin a call, `search.py` and `read.py`, read the settings for themselves, since a launch only for that would
take longer. They leave a small row of the scratch (`columns.Plan`) for each row of logits to the kernels that follow.
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .columns import ARITHMETIC, ESS_BALANCE, FIXED, JS_GATE, OPTED_OUT, PLAN_FIELDS, PLAN_WIDTH, Plan, store_fields

MOST_BUDGET = tl.constexpr(1.0e30)
"""Nats. More than any divergence, and finite, so that differences are never nan."""


class Asked(NamedTuple):
    """What rows ask for, and where they are; all [ROWS]."""

    active: Any
    """Whether the row is read at all."""
    offset: Any
    """int64: elements to theta's row; -1 for a row to be left alone."""
    entry: Any
    """int64: element of the record."""
    plan: Any
    """The `Plan`, without what searches find."""
    top_k: Any
    """int32: the limits of the support; 0 and 1 are off."""
    top_p: Any
    js_sensitivity: Any
    """Per nat, of `JS_GATE`."""
    searched: Any
    """Whether `search.py` has stored the row's plan before the first reading."""


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


@triton.jit
def bounded(alpha, alpha_min, alpha_max):
    """alpha, no less than the one and then no more than the other. A nan stays one."""
    above = tl.where(alpha < alpha_min, alpha_min, alpha)
    return tl.where(above > alpha_max, alpha_max, above)


@triton.jit
def read_settings(
    row,  # [ROWS] int64
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
    num_rows,
    num_slots,
    num_positions,
    ROWS: tl.constexpr,
):
    """What rows ask for: `Asked`."""
    inside = row < num_rows
    slot = tl.load(slots_ptr + row, mask=inside, other=-1).to(tl.int64)
    position = tl.load(draft_positions_ptr + row, mask=inside, other=-1).to(tl.int64)
    known = (slot >= 0) & (slot < num_slots) & (position >= 0) & (position < num_positions)
    first_position = tl.load(first_position_ptr + slot, mask=known, other=OPTED_OUT)
    active = known & (first_position != OPTED_OUT)
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
    restricted = (top_k > 0) | (top_p < 1.0)
    # Where alpha is known, the bounds say so.
    given = (method == FIXED) | (method == ARITHMETIC)
    alpha = bounded(alpha, alpha_min, alpha_max)
    nothing = tl.full([ROWS], 0.0, tl.float32)
    plan = Plan(
        mixed=mixed,
        method=method,
        floor=tl.full([ROWS], float("-inf"), tl.float32),
        alpha_min=tl.where(given, alpha, alpha_min),
        alpha_max=tl.where(given, alpha, alpha_max),
        max_js=tl.load(max_js_divergence_ptr + slot, mask=mixed, other=float("inf")),
        restricted=restricted,
        teacher_lse=nothing,
        theta_lse=nothing,
        budget=budget,
    )
    return Asked(
        active=active,
        offset=tl.where(active, slot * theta_slot_stride + position * theta_position_stride, -1),
        entry=slot * num_positions + position,
        plan=plan,
        top_k=top_k,
        top_p=top_p,
        js_sensitivity=tl.load(js_sensitivity_ptr + slot, mask=mixed, other=0.0),
        searched=restricted | (method == ESS_BALANCE) | (method == JS_GATE),
    )


@triton.jit
def store_plan(plan_ptr, row, active, plan):
    store_fields(plan_ptr + row * PLAN_WIDTH, plan, active, PLAN_FIELDS)
