"""Alpha of the rows that two readings leave open: one program a row reads it again until its bracket is closed.

A row is left open where g rises in so small a part of the last cell that interpolation is not exact enough: r deviates by
tens of nats, as where the models' peaks disagree and both are sure. Each round evaluates g at `POINTS` alphas of
the bracket, with a peak of its own for each, so that nothing underflows: three quarter it, five lie about the Newton step
from its better end. The bracket's ends are always evaluated alphas with g < 0 and g >= 0, so it cannot lose the root,
shrinks to a quarter at least, and soon by a thousand. With w its width,

    TV(q_a, q_b)^2 <= D_KL(q_a || q_b) / 2, and D_KL(q_a || q_b) + D_KL(q_b || q_a) = w (g(b) - g(a)):

TV(q, q*) <= sqrt(w (g(b) - g(a))) / 2 for either end. The better one is taken as soon as that is small, or when there is
no float32 between them.
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .columns import KL_BUDGET, load_plan
from .interpolate import KL_TOLERANCE
from .points import at_end, newton, point_sums, shift_of
from .solution import NODES, PAD, Solution, load_solution, solve_next, span_of, store_solution

POINTS = tl.constexpr(8)
QUARTERS = tl.constexpr(3)
NEAR = tl.constexpr(2.0**-10)
FAR = tl.constexpr(2.0**-5)
"""How far from the step the points about it lie, in widths of the bracket."""
CLOSED = tl.constexpr(3.6e-9)
"""w (g(b) - g(a)) that is small: TV of at most 3e-5."""
MOST_ROUNDS = tl.constexpr(24)
"""Of which 12 take a bracket from 1 to the last bit of 1."""


class Settled(NamedTuple):
    """What a search ends with; all [ROWS]."""

    alpha: Any
    value: Any
    """L at alpha, nats."""
    slope: Any
    """g at alpha, nats."""


@triton.jit
def points_of(a, b, step_to, begun, POINTS: tl.constexpr):
    """[ROWS, POINTS] alphas of the bracket [a, b]: evenly at first, then its quarters and `step_to` with its surroundings."""
    index = tl.arange(0, POINTS)[None, :]
    width = (b - a)[:, None]
    even = a[:, None] + width * (index / (POINTS - 1))
    even = tl.where(index == POINTS - 1, b[:, None], even)
    place = index - QUARTERS - 2
    far = tl.where(tl.abs(place) == 2, FAR, tl.where(place == 0, 0.0, NEAR))
    about = step_to[:, None] + width * tl.where(place < 0, -far, far)
    chosen = tl.where(index < QUARTERS, a[:, None] + width * ((index + 1) * 0.25), about)
    alpha = tl.where(begun[:, None], chosen, even)
    return tl.minimum(tl.maximum(alpha, a[:, None]), b[:, None])


@triton.jit
def off_of(alpha, value, slope, budgeted, spare):
    """What is to become 0, growing with alpha: g, or what D_KL(q || theta) is above the budget."""
    return tl.where(budgeted, alpha * slope - value - spare, slope)


@triton.jit
def settle_alpha(
    teacher_row,  # [ROWS, 1] pointers
    theta_row,  # [ROWS, 1] pointers
    floor,  # [ROWS]
    active,  # [ROWS]
    low,  # [ROWS]: the bracket; equal ends where alpha is given
    high,  # [ROWS]
    budgeted,  # [ROWS]: alpha spends a budget
    budget,  # [ROWS]: nats, of those
    lse_theta,  # [ROWS]
    lse_teacher,  # [ROWS]
    vocab,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """The `Settled` alpha. An end of [low, high] beyond which the root lies is the answer.

    A budget is not exceeded if that can be helped: of its bracket the lower end is taken.
    """
    a = low
    b = high
    value_a = tl.full([ROWS], 0.0, tl.float32)
    value_b = value_a
    slope_a = value_a
    slope_b = value_a
    rise_a = value_a
    rise_b = value_a
    shift = shift_of(teacher_row, theta_row, floor, active, lse_theta, lse_teacher, vocab, ROWS, LANES)
    spare = budget - shift.value_0
    # alpha g - L is the same whatever is taken off r. With its mean under theta little is left to cancel.
    mean = tl.where(budgeted, shift.slope_0, 0.0)
    off_r = shift.total + mean.to(tl.float64)
    still_open = active
    rounds = 0
    while (tl.max(still_open.to(tl.int32), axis=0) > 0) & (rounds < MOST_ROUNDS):
        off_a = off_of(a, value_a, slope_a, budgeted, spare)
        off_b = off_of(b, value_b, slope_b, budgeted, spare)
        step_to = newton(a, b, off_a, off_b, rise_a, rise_b)
        begun = still_open & (rounds > 0)
        alpha = points_of(a, b, step_to, begun, POINTS)
        sums = point_sums(
            teacher_row, theta_row, floor, still_open, alpha, lse_theta, off_r, vocab, ROWS, POINTS, LANES
        )
        off = off_of(alpha, sums.value, sums.slope, budgeted[:, None], spare[:, None])
        rise = sums.curvature * tl.where(budgeted[:, None], alpha, 1.0)
        below = still_open[:, None] & (off < 0.0)
        above = still_open[:, None] & (off >= 0.0)
        new_a = tl.max(tl.where(below, alpha, low[:, None] - 1.0), axis=1)
        new_b = tl.min(tl.where(above, alpha, high[:, None] + 1.0), axis=1)
        any_below = new_a >= low
        any_above = new_b <= high
        at_a = below & (alpha == new_a[:, None])
        at_b = above & (alpha == new_b[:, None])
        # Rounding can make g change sign twice about the root; the ends stay on their sides.
        better_a = any_below & ((rounds == 0) | (new_a > a))
        better_b = any_above & ((rounds == 0) | (new_b < b))
        value_a = tl.where(better_a, at_end(sums.value, at_a, value_a), value_a)
        slope_a = tl.where(better_a, at_end(sums.slope, at_a, slope_a), slope_a)
        rise_a = tl.where(better_a, at_end(rise, at_a, rise_a), rise_a)
        value_b = tl.where(better_b, at_end(sums.value, at_b, value_b), value_b)
        slope_b = tl.where(better_b, at_end(sums.slope, at_b, slope_b), slope_b)
        rise_b = tl.where(better_b, at_end(rise, at_b, rise_b), rise_b)
        a = tl.where(better_a, new_a, a)
        b = tl.where(better_b, new_b, b)
        # One side only: its end is the answer, and both ends of the bracket.
        only_a = (rounds == 0) & any_below & (any_above == 0)
        only_b = (rounds == 0) & any_above & (any_below == 0)
        a = tl.where(only_b, b, a)
        value_a = tl.where(only_b, value_b, value_a)
        slope_a = tl.where(only_b, slope_b, slope_a)
        b = tl.where(only_a, a, b)
        value_b = tl.where(only_a, value_a, value_b)
        slope_b = tl.where(only_a, slope_a, slope_b)
        width = b - a
        off_a = tl.abs(off_of(a, value_a, slope_a, budgeted, spare))
        off_b = tl.abs(off_of(b, value_b, slope_b, budgeted, spare))
        near = tl.where(budgeted, off_a, tl.minimum(off_a, off_b)) <= KL_TOLERANCE
        small = (width * (slope_b - slope_a) <= CLOSED) & near
        middle = a + 0.5 * width
        still_open = still_open & (small == 0) & (middle > a) & (middle < b)
        rounds += 1
    off_a = tl.abs(off_of(a, value_a, slope_a, budgeted, spare))
    off_b = tl.abs(off_of(b, value_b, slope_b, budgeted, spare))
    from_a = budgeted | (off_a <= off_b)
    alpha_found = tl.where(from_a, a, b)
    # L is relative to the normalisers as they are, from which log Z is made of it.
    value_found = tl.where(from_a, value_a, value_b) + alpha_found * (shift.rounding + mean)
    return Settled(alpha=alpha_found, value=value_found, slope=tl.where(from_a, slope_a, slope_b) + mean)


@triton.jit(do_not_specialize=["num_rows", "splits"])
def settle_kernel(
    teacher_ptr,  # [rows, V_t] fp32
    teacher_stride,
    theta_ptr,  # [slots, K + 1, V_theta] bf16, fp16 or fp32
    theta_offset_ptr,  # [max_rows] int64, -1 for a row to be left alone
    plan_ptr,  # [max_rows, PLAN_WIDTH] fp32
    read_ptr,  # [rows, splits, PARTIAL_WIDTH] fp32: sums of the second reading
    solution_ptr,  # [max_rows, SOLUTION_WIDTH] fp32, in/out
    num_rows,
    vocab,
    splits,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    SPLITS: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    offset = tl.load(theta_offset_ptr + row, mask=row < num_rows, other=-1)
    found = load_solution(solution_ptr, row, offset >= 0)
    reread = found.done == 0.0
    if tl.max(reread.to(tl.int32), axis=0) == 0:
        return
    plan = load_plan(plan_ptr, row, reread)
    budgeted = reread & (plan.method == KL_BUDGET)
    low, high = span_of(found.low, found.high)
    cell = solve_next(
        read_ptr, row, reread, low, high, found.alpha_min, found.alpha_max, budgeted, plan.budget, found.lse_theta,
        found.lse_teacher, splits, NODES, PAD, SPLITS,
    )  # fmt: skip
    low = cell.low
    high = cell.high
    delta = cell.delta
    value = cell.value
    slope = cell.slope
    still_open = reread & (cell.done == 0)
    if tl.max(still_open.to(tl.int32), axis=0) > 0:
        settled = settle_alpha(
            teacher_row=(teacher_ptr + row * teacher_stride)[:, None],
            theta_row=(theta_ptr + tl.where(still_open, offset, 0))[:, None],
            floor=plan.floor,
            active=still_open,
            low=tl.minimum(tl.maximum(low, found.alpha_min), found.alpha_max),
            high=tl.minimum(tl.maximum(high, found.alpha_min), found.alpha_max),
            budgeted=budgeted,
            budget=plan.budget,
            lse_theta=found.lse_theta,
            lse_teacher=found.lse_teacher,
            vocab=vocab,
            ROWS=ROWS,
            LANES=LANES,
        )
        low = tl.where(still_open, settled.alpha, low)
        delta = tl.where(still_open, 0.0, delta)
        value = tl.where(still_open, settled.value, value)
        slope = tl.where(still_open, settled.slope, slope)
    solution = Solution(
        done=cell.done | reread,
        low=low,
        high=high,
        delta=delta,
        value=value,
        slope=slope,
        # inf - inf and nan - nan are nan
        sound=(found.sound != 0.0) & ((value - value) + (slope - slope) == 0.0),
        alpha_min=found.alpha_min,
        alpha_max=found.alpha_max,
        lse_theta=found.lse_theta,
        lse_teacher=found.lse_teacher,
        own_lse=found.own_lse,
        kl_end=found.kl_end,
        exact=still_open,
    )
    store_solution(solution_ptr, row, reread, solution)
