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

import triton
import triton.language as tl

from .interpolate import KL_TOLERANCE
from .tilt import LN_2, LOG2_E, NOTHING, RESOLVED, load_pair

POINTS = tl.constexpr(8)
QUARTERS = tl.constexpr(3)
NEAR = tl.constexpr(2.0**-10)
FAR = tl.constexpr(2.0**-5)
"""How far from the step the points about it lie, in widths of the bracket."""
CLOSED = tl.constexpr(3.6e-9)
"""w (g(b) - g(a)) that is small: TV of at most 3e-5."""
LAST_BIT = tl.constexpr(1.2e-7)
"""Relative distance of neighbouring float32."""
MOST_ROUNDS = tl.constexpr(24)
"""Of which 12 take a bracket from 1 to the last bit of 1."""


@triton.jit
def point_sums(
    teacher_row,  # [ROWS, 1] pointers
    theta_row,  # [ROWS, 1] pointers
    floor,  # [ROWS]
    active,  # [ROWS]
    alpha,  # [ROWS, POINTS]
    lse_theta,  # [ROWS]: over the mixed tokens
    shift,  # [ROWS] fp64: what is taken off r, the teacher's less theta's
    vocab,
    ROWS: tl.constexpr,
    POINTS: tl.constexpr,
    LANES: tl.constexpr,
):
    """L, its slope and its curvature at any alphas; all [ROWS, POINTS], nats.

    Tilts are added in float64: what is left of 300 - 300 has lost 3e-5 in float32, and g is of r's size times that.
    """
    lane = tl.arange(0, LANES)[None, :]
    peak = tl.full([ROWS, POINTS, LANES], NOTHING, tl.float32)
    z = tl.full([ROWS, POINTS, LANES], 0.0, tl.float32)
    r = z
    q = z
    for start in range(0, vocab, LANES):
        ids = start + lane
        teacher, theta, _, both = load_pair(
            teacher_row, theta_row, floor[:, None], active[:, None] & (ids < vocab), ids
        )
        exact_theta = tl.where(both, theta.to(tl.float64), 0.0)
        exact_ratio = tl.where(both, teacher.to(tl.float64) - exact_theta, 0.0)
        exact_theta = ((exact_theta - lse_theta.to(tl.float64)[:, None]) * LOG2_E)[:, None, :]
        exact_ratio -= shift[:, None]
        ratio = tl.where(both, exact_ratio.to(tl.float32), 0.0)[:, None, :]
        exact_bits = exact_theta + alpha.to(tl.float64)[:, :, None] * (exact_ratio * LOG2_E)[:, None, :]
        exact_bits = tl.where(both[:, None, :], exact_bits, float("-inf"))
        top = tl.maximum(peak, exact_bits.to(tl.float32))
        scale = tl.exp2(peak - top)
        weight = tl.exp2((exact_bits - top.to(tl.float64)).to(tl.float32))
        moment = weight * ratio
        z = z * scale + weight
        r = r * scale + moment
        q = q * scale + moment * ratio
        peak = top
    highest = tl.max(peak, axis=2)
    scale = tl.exp2(peak - highest[:, :, None])
    z *= scale
    z_sum = tl.maximum(tl.sum(z, axis=2), RESOLVED)
    slope = tl.sum(r * scale, axis=2) / z_sum
    curvature = tl.sum(q * scale, axis=2) / z_sum - slope * slope
    # L is near 0 where the models nearly agree, and log z and the peak are not.
    log_z = tl.log2(tl.maximum(tl.sum(z.to(tl.float64), axis=2), RESOLVED)) + highest.to(tl.float64)
    return (log_z * LN_2).to(tl.float32), slope, tl.maximum(curvature, 0.0)


@triton.jit
def shift_of(
    teacher_row,  # [ROWS, 1] pointers
    theta_row,  # [ROWS, 1] pointers
    floor,  # [ROWS]
    active,  # [ROWS]
    lse_theta,  # [ROWS]
    lse_teacher,  # [ROWS]
    vocab,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """What to take off r, [ROWS] fp64: the normalisers' difference and L(1) - L(0), which is their rounding. That rounding,
    and L and g at 0, [ROWS].

    Where the models nearly agree the rounding is more than g.
    """
    shift = lse_teacher.to(tl.float64) - lse_theta.to(tl.float64)
    end = tl.arange(0, 2)[None, :]
    ends = tl.full([ROWS], 0.0, tl.float32)[:, None] + end
    value, slope, _ = point_sums(teacher_row, theta_row, floor, active, ends, lse_theta, shift, vocab, ROWS, 2, LANES)
    value_0 = tl.sum(tl.where(end == 0, value, 0.0), axis=1)
    slope_0 = tl.sum(tl.where(end == 0, slope, 0.0), axis=1)
    rounding = tl.sum(tl.where(end == 0, -value, value), axis=1)
    return shift + rounding.to(tl.float64), rounding, value_0, slope_0


@triton.jit
def at_end(values, chosen, otherwise):
    """[ROWS]: the largest of the chosen of [ROWS, POINTS] values, which are all the same; `otherwise` if none is."""
    largest = tl.max(tl.where(chosen, values, float("-inf")), axis=1)
    return tl.where(tl.max(chosen.to(tl.int32), axis=1) > 0, largest, otherwise)


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
def newton(a, b, off_a, off_b, rise_a, rise_b):
    """[ROWS]: where the better end's tangent meets 0, or the chord where that is outside the bracket."""
    from_a = -off_a <= off_b
    end = tl.where(from_a, a, b)
    off = tl.where(from_a, off_a, off_b)
    rise = tl.where(from_a, rise_a, rise_b)
    step_to = end - off / tl.where(rise > 0.0, rise, 1.0)
    good = (rise > 0.0) & (step_to > a) & (step_to < b)
    growth = off_b - off_a
    chord = a - off_a * ((b - a) / tl.where(growth > 0.0, growth, 1.0))
    return tl.where(good, step_to, chord)


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
    """alpha, L and g there, all [ROWS]. An end of [low, high] beyond which the root lies is the answer.

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
    shift, off_ends, value_0, slope_0 = shift_of(
        teacher_row, theta_row, floor, active, lse_theta, lse_teacher, vocab, ROWS, LANES
    )
    spare = budget - value_0
    # alpha g - L is the same whatever is taken off r. With its mean under theta little is left to cancel.
    off_mean = tl.where(budgeted, slope_0, 0.0)
    shift += off_mean.to(tl.float64)
    still_open = active
    rounds = 0
    while (tl.max(still_open.to(tl.int32), axis=0) > 0) & (rounds < MOST_ROUNDS):
        off_a = off_of(a, value_a, slope_a, budgeted, spare)
        off_b = off_of(b, value_b, slope_b, budgeted, spare)
        step_to = newton(a, b, off_a, off_b, rise_a, rise_b)
        begun = still_open & (rounds > 0)
        alpha = points_of(a, b, step_to, begun, POINTS)
        value, slope, curvature = point_sums(
            teacher_row, theta_row, floor, still_open, alpha, lse_theta, shift, vocab, ROWS, POINTS, LANES
        )
        off = off_of(alpha, value, slope, budgeted[:, None], spare[:, None])
        rise = curvature * tl.where(budgeted[:, None], alpha, 1.0)
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
        value_a = tl.where(better_a, at_end(value, at_a, value_a), value_a)
        slope_a = tl.where(better_a, at_end(slope, at_a, slope_a), slope_a)
        rise_a = tl.where(better_a, at_end(rise, at_a, rise_a), rise_a)
        value_b = tl.where(better_b, at_end(value, at_b, value_b), value_b)
        slope_b = tl.where(better_b, at_end(slope, at_b, slope_b), slope_b)
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
    value_found = tl.where(from_a, value_a, value_b) + alpha_found * (off_ends + off_mean)
    return alpha_found, value_found, tl.where(from_a, slope_a, slope_b) + off_mean
