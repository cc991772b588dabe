"""The alpha at which reweighting draws of q to theta, and to the teacher, leaves the same effective sample size.

    sum theta^2 / q = sum teacher^2 / q,   q = theta^(1 - alpha) teacher^alpha / Z(alpha)

With L as in `tilt.py`, but alpha beyond [0, 1] too, the two sides are exp(L(-alpha) + L(alpha)) and exp(L(2 - alpha) +
L(alpha)), so alpha solves F = L(-alpha) - L(2 - alpha) = 0. L is convex with zeros at 0 and 1, hence F grows from
-L(2) <= 0 at alpha 0 to L(-1) >= 0 at alpha 1. Its slope is g(2 - alpha) - g(-alpha), and g grows, so that is at least
J = g(1) - g(0) = D_KL(theta || teacher) + D_KL(teacher || theta), and the zero is unique.

Two readings of spans of five tilts that mirror each other narrow alpha to 1/4, and an inverse cubic to about a thousandth.
Then rounds of two alphas on either side of a step, in one reading. Between neighbouring alphas the slope lies between what g
is at the ends: if F(x) is off by f there, the zero is between f / (largest slope) and f / (least slope) away from x. That
closes the bracket as soon as it is too narrow to matter. Rounds go on from the better end's Newton step, or from the middle
where the last one has not halved the bracket. One round closes ordinary rows.

What matters: TV(q, q*) is at most w E|r - g| / 2 where alpha is off by w. The deviation E|r - g| is about half of J at most
(where it is large, g rises by twice the deviation, and by J in all), and at most the square root of the variance. That is
at most E[(r - c)^2] for any c, which times Z is convex in alpha: at most what it is at 0 or 1 over Z >= exp(-J / 4).
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def, assignment, misc, var-annotated"

# ruff: noqa: RUF005 - Triton adds tuples, but does not unpack one into another.

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .ends import added
from .points import at_end, newton
from .tilt import LN_2, LOG2_E, NOTHING, RESOLVED, load_pair, log_sum, tilted_sums

NODES = tl.constexpr(5)
PAD = tl.constexpr(8)
MOST_SUB = tl.constexpr(4)
"""Tiles a step of a round."""
CLOSED = tl.constexpr(1.0e-4)
"""Of what alpha is off by, times `scale_of`: four times the total variation."""
OF_SQUARE = tl.constexpr(2.3)
"""2 exp(J / 8), as far as J is below 1; above, 1 + J is less."""
REACH = tl.constexpr(0.5)
"""How far from the step the two alphas lie, as part of where a bracket between them is closed at once if g grows evenly.
At 0.9 four of 24 rows of 3,000 tokens with noise of 1.0 and 1.4 nats took a second round, at 0.5 none."""
MOST_TURN = tl.constexpr(4.0)
"""Nats that a sum may change by on the way from the step to either alpha: both are relative to one peak."""
WIDEST = tl.constexpr(0.125)
"""Of the bracket."""
LAST_BIT = tl.constexpr(1.2e-7)
"""Relative distance of neighbouring float32."""
MOST_ROUNDS = tl.constexpr(64)
"""Two halve a bracket at least, and 24 times that is from 1 to the last bit of 1."""
FLAT = tl.constexpr(3.5e-7)
"""Nats. Where J is less 1/2 is taken, since F is known to 1.5e-7 only. Over 20,000 rows that differ by little, but for rare
tokens or for none, either way leaves at most 7e-5 of TV; at 1.6e-7 F alone left 1e-4, at 6e-7 the 1/2 left 8e-5."""


class Off(NamedTuple):
    """F at some alpha and what it is made of; all [ROWS], nats."""

    off: Any
    """F = L(-alpha) - L(2 - alpha)."""
    less: Any
    """g(-alpha)."""
    more: Any
    """g(2 - alpha)."""


@triton.jit
def scale_of(divergences, square):
    """[ROWS]: four times the total variation that alpha costs where it is off by 1, at most."""
    return tl.minimum(1.0 + divergences, tl.sqrt(square) * OF_SQUARE)


@triton.jit
def mirrored_reading(
    teacher_row,
    theta_row,
    floor,
    active,
    low,
    lse_theta,
    lse_teacher,
    vocab,
    ROWS: tl.constexpr,
    SUB: tl.constexpr,
    LANES: tl.constexpr,
):
    """L and its slope at the nodes of [low, low + 1], and where they are numbers; all [ROWS, PAD]."""
    shift_low = ((1.0 - low) * lse_theta + low * lse_teacher) * LOG2_E
    reading = tilted_sums(
        teacher_row, theta_row, floor, active, low, low + 1.0, shift_low, (lse_teacher - lse_theta) * LOG2_E, 0, vocab,
        ROWS, NODES, PAD, SUB, LANES, False, False,
    )  # fmt: skip
    tau = tl.arange(0, PAD)[None, :] / (NODES - 1)
    resolved = reading.z >= RESOLVED
    safe_z = tl.where(resolved, reading.z, 1.0)
    turn = (reading.peak_high - reading.peak_low)[:, None]
    value = log_sum(safe_z) + (reading.peak_low[:, None] + tau * turn) * LN_2
    return value, (reading.r / safe_z + turn) * LN_2, resolved


@triton.jit
def inverse_cubic(a, b, off_a, off_b, rise_a, rise_b, otherwise):
    """[ROWS]: where alpha as a cubic of F, from its values and slopes at both ends, has F = 0; else `otherwise`."""
    growth = off_b - off_a
    rising = (growth > 0.0) & (rise_a > 0.0) & (rise_b > 0.0)
    t = -off_a / tl.where(growth > 0.0, growth, 1.0)
    tangent_a = growth / tl.where(rising, rise_a, 1.0)
    tangent_b = growth / tl.where(rising, rise_b, 1.0)
    step_to = a + (b - a) * t * t * (3.0 - 2.0 * t) + t * (1.0 - t) * (tangent_a * (1.0 - t) - tangent_b * t)
    good = rising & (step_to > a) & (step_to < b)
    return tl.where(good, step_to, otherwise)


@triton.jit
def sums_about(
    teacher_row,  # [ROWS, 1] pointers
    theta_row,  # [ROWS, 1] pointers
    floor,  # [ROWS]
    active,  # [ROWS]
    step_to,  # [ROWS]
    near,  # [ROWS]
    shift,  # [ROWS] fp64: the teacher's log-sum-exp less theta's
    vocab,
    ROWS: tl.constexpr,
    SUB: tl.constexpr,  # tiles of LANES tokens a step
    LANES: tl.constexpr,
):
    """The `Off` at step_to - near, and that at step_to + near.

    The tilts at -step_to and 2 - step_to are added in float64: what is left of 300 - 300 has lost 3e-5 in float32. Those that
    a peak is chosen among are not, since a sum may be relative to anything near its largest term, and neither is what leads
    from there to the two alphas, r times `near`, which is small. Of a token and tilt that leaves one conversion from float64.
    """
    lane = tl.arange(0, LANES)[None, :]
    nothing = tl.full([ROWS, LANES], NOTHING, tl.float32)
    zero = tl.full([ROWS, LANES], 0.0, tl.float32)
    peaks = (nothing, nothing)
    # Of the tilts at less and at more, each at the lower alpha and at the higher one.
    z = (zero, zero, zero, zero)
    lost = (zero, zero, zero, zero)
    r = (zero, zero, zero, zero)
    alphas = ((-step_to)[:, None], (2.0 - step_to)[:, None])
    exact_alphas = ((-step_to.to(tl.float64))[:, None], (2.0 - step_to.to(tl.float64))[:, None])
    off_r = shift.to(tl.float32)[:, None]
    for start in range(0, vocab, SUB * LANES):
        teachers = ()
        thetas = ()
        boths = ()
        tops = peaks
        for sub in tl.static_range(SUB):
            ids = start + sub * LANES + lane
            teacher, theta, _, both = load_pair(
                teacher_row, theta_row, floor[:, None], active[:, None] & (ids < vocab), ids
            )
            teacher = tl.where(both, teacher, 0.0)
            theta = tl.where(both, theta, 0.0)
            ratio = teacher - theta
            new_tops = ()
            for side in tl.static_range(2):
                tilt = tl.where(both, theta + alphas[side] * ratio, float("-inf"))
                new_tops = new_tops + (tl.maximum(tops[side], tilt),)
            tops = new_tops
            teachers = teachers + (teacher,)
            thetas = thetas + (theta,)
            boths = boths + (both,)
        scales = ()
        for side in tl.static_range(2):
            scales = scales + (tl.exp2((peaks[side] - tops[side]) * LOG2_E),)
        peaks = tops
        step_z = (zero, zero, zero, zero)
        step_r = step_z
        for sub in tl.static_range(SUB):
            ratio = (teachers[sub] - thetas[sub]) - off_r
            turn = ratio * (near * LOG2_E)[:, None]
            exact_theta = thetas[sub].to(tl.float64)
            exact_ratio = teachers[sub].to(tl.float64) - exact_theta
            new_z = ()
            new_r = ()
            for side in tl.static_range(2):
                exact = (exact_theta + exact_alphas[side] * exact_ratio) - tops[side].to(tl.float64)
                bits = tl.where(boths[sub], exact.to(tl.float32) * LOG2_E, float("-inf"))
                for at in tl.static_range(2):
                    # A higher alpha is a lower tilt.
                    weight = tl.exp2(bits + turn if at == 0 else bits - turn)
                    new_z = new_z + (step_z[2 * side + at] + weight,)
                    new_r = new_r + (step_r[2 * side + at] + weight * ratio,)
            step_z = new_z
            step_r = new_r
        new_z = ()
        new_lost = ()
        new_r = ()
        for index in tl.static_range(4):
            total, rest = added(z[index] * scales[index // 2], lost[index] * scales[index // 2], step_z[index])
            new_z = new_z + (total,)
            new_lost = new_lost + (rest,)
            new_r = new_r + (r[index] * scales[index // 2] + step_r[index],)
        z = new_z
        lost = new_lost
        r = new_r
    logs = ()
    slopes = ()
    for side in tl.static_range(2):
        highest = tl.max(peaks[side], axis=1)
        scale = tl.exp2((peaks[side] - highest[:, None]) * LOG2_E)
        for at in tl.static_range(2):
            total = tl.maximum(tl.sum((z[2 * side + at] * scale).to(tl.float64), axis=1), RESOLVED)
            logs = logs + (tl.log(total) + highest.to(tl.float64),)
            slopes = slopes + (tl.sum(r[2 * side + at] * scale, axis=1) / total.to(tl.float32),)
    at_lower = Off(off=(logs[0] - logs[2] + 2.0 * shift).to(tl.float32), less=slopes[0], more=slopes[2])
    at_higher = Off(off=(logs[1] - logs[3] + 2.0 * shift).to(tl.float32), less=slopes[1], more=slopes[3])
    return at_lower, at_higher


@triton.jit
def ess_balance_alpha(
    teacher_row,  # [ROWS, 1] pointers
    theta_row,  # [ROWS, 1] pointers
    floor,  # [ROWS]
    active,  # [ROWS]
    lse_theta,  # [ROWS]: over the mixed tokens
    lse_teacher,  # [ROWS]
    shift,  # [ROWS] fp64: what they are apart, exactly
    divergences,  # [ROWS]: J
    square,  # [ROWS]: of `Ends`
    vocab,
    ROWS: tl.constexpr,
    SUB: tl.constexpr,
    LANES: tl.constexpr,
):
    """alpha [ROWS]; nan where the rows have nothing in common."""
    zero = tl.full([ROWS], 0.0, tl.float32)
    index = tl.arange(0, PAD)[None, :]
    # Node i of either span belongs to alpha = 1 - i / (NODES - 1).
    right, right_slope, right_resolved = mirrored_reading(
        teacher_row, theta_row, floor, active, zero + 1.0, lse_theta, lse_teacher, vocab, ROWS, SUB, LANES
    )
    left, left_slope, left_resolved = mirrored_reading(
        teacher_row, theta_row, floor, active, zero - 1.0, lse_theta, lse_teacher, vocab, ROWS, SUB, LANES
    )
    # Where a sum is no number alpha is none either.
    resolved = (index < NODES) & right_resolved & left_resolved
    alpha = 1.0 - index / (NODES - 1)
    off = left - right
    rise = right_slope - left_slope
    # The spans' own constants are rounded too: nodes so close to the zero are left to the rounds.
    doubt = (2.0e-6 + 6.0e-7 * (tl.abs(lse_theta) + tl.abs(lse_teacher)))[:, None]
    below = resolved & (off < -doubt)
    above = resolved & (off > doubt)
    a = tl.maximum(tl.max(tl.where(below, alpha, 0.0), axis=1), 0.0)
    b = tl.min(tl.where(above, alpha, 1.0), axis=1)
    at_a = below & (alpha == a[:, None])
    at_b = above & (alpha == b[:, None])
    # An end that underflowed is known by its sign alone.
    off_a = at_end(off, at_a, zero - 1.0)
    off_b = at_end(off, at_b, zero + 1.0)
    rise_a = at_end(rise, at_a, zero)
    rise_b = at_end(rise, at_b, zero)
    step_to = inverse_cubic(a, b, off_a, off_b, rise_a, rise_b, newton(a, b, off_a, off_b, rise_a, rise_b))
    # g at the spans' ends, the least and the most that it can be.
    first = index == 0
    last = index == NODES - 1
    most_more = tl.sum(tl.where(last, right_slope, 0.0), axis=1)
    least_less = tl.sum(tl.where(first, left_slope, 0.0), axis=1)
    more_a = at_end(right_slope, at_a, most_more)
    less_a = at_end(left_slope, at_a, tl.sum(tl.where(last, left_slope, 0.0), axis=1))
    more_b = at_end(right_slope, at_b, tl.sum(tl.where(first, right_slope, 0.0), axis=1))
    less_b = at_end(left_slope, at_b, least_less)

    scale = scale_of(divergences, square)
    # Between two alphas 2 d apart the zero is known to 2 d^2 where g grows evenly.
    nearest = tl.sqrt(0.5 / tl.maximum(scale, 1.0e-30) * CLOSED) * REACH
    nearest = tl.minimum(nearest, 1.0 / tl.maximum(most_more - least_less, 1.0e-30) * MOST_TURN)
    flat = divergences < FLAT
    sound = active & (lse_theta - lse_theta == 0.0) & (lse_teacher - lse_teacher == 0.0)
    still_open = sound & (flat == 0)
    rounds = 0
    while (tl.max(still_open.to(tl.int32), axis=0) > 0) & (rounds < MOST_ROUNDS):
        width = b - a
        near = tl.minimum(nearest, width * WIDEST)
        step_to = tl.minimum(tl.maximum(step_to, a + near), b - near)
        lower = step_to - near
        higher = step_to + near
        at_lower, at_higher = sums_about(
            teacher_row, theta_row, floor, still_open, step_to, near, shift, vocab, ROWS,
            SUB if SUB < MOST_SUB else MOST_SUB, LANES,
        )  # fmt: skip
        lower_is_below = still_open & (at_lower.off < 0.0)
        higher_is_below = still_open & (at_higher.off < 0.0)
        lower_is_above = still_open & (lower_is_below == 0)
        higher_is_above = still_open & (higher_is_below == 0)
        # Where rounding is all that is left of F, both can be true of the wrong one: then the ends cross.
        a = tl.where(higher_is_below, higher, tl.where(lower_is_below, lower, a))
        off_a = tl.where(higher_is_below, at_higher.off, tl.where(lower_is_below, at_lower.off, off_a))
        less_a = tl.where(higher_is_below, at_higher.less, tl.where(lower_is_below, at_lower.less, less_a))
        more_a = tl.where(higher_is_below, at_higher.more, tl.where(lower_is_below, at_lower.more, more_a))
        b = tl.where(lower_is_above, lower, tl.where(higher_is_above, higher, b))
        off_b = tl.where(lower_is_above, at_lower.off, tl.where(higher_is_above, at_higher.off, off_b))
        less_b = tl.where(lower_is_above, at_lower.less, tl.where(higher_is_above, at_higher.less, less_b))
        more_b = tl.where(lower_is_above, at_lower.more, tl.where(higher_is_above, at_higher.more, more_b))
        least = tl.maximum(more_b - less_a, divergences)
        most = tl.maximum(more_a - less_b, least)
        known_to = tl.minimum(tl.abs(at_lower.off), tl.abs(at_higher.off)) * (1.0 / least - 1.0 / most)
        halved = b - a <= 0.5 * width
        step_to = tl.where(halved, newton(a, b, off_a, off_b, more_a - less_a, more_b - less_b), a + 0.5 * (b - a))
        width = b - a
        still_open = still_open & (tl.minimum(known_to, width) * scale > CLOSED) & (width > LAST_BIT * b)
        rounds += 1
    found = newton(a, b, off_a, off_b, more_a - less_a, more_b - less_b)
    found = tl.minimum(tl.maximum(found, tl.minimum(a, b)), tl.maximum(a, b))
    return tl.where(flat, 0.5, tl.where(sound, found, float("nan")))
