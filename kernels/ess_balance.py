"""The alpha at which reweighting draws of q to theta, and to the teacher, leaves the same effective sample size.

    sum theta^2 / q = sum teacher^2 / q,   q = theta^(1 - alpha) teacher^alpha / Z(alpha)

With L as in `tilt.py`, but alpha beyond [0, 1] too, the two sides are exp(L(-alpha) + L(alpha)) and exp(L(2 - alpha) +
L(alpha)), so alpha solves F = L(2 - alpha) - L(-alpha) = 0. L is convex with zeros at 0 and 1, hence F falls from
L(2) >= 0 at alpha 0 to -L(-1) <= 0 at alpha 1, and the zero is unique.

A first reading of two spans of nine tilts that mirror each other narrows alpha to 1/8. Then rounds as in `settle.py`, with
`POINTS` alphas each: the half of the bracket, and three about the Newton step. The bracket is closed when it is too
narrow to matter: the deviation of r at any alpha is about half of J = D_KL(theta || teacher) + D_KL(teacher || theta) at
most (where it is large, g rises by twice the deviation, and by J in all), so TV is at most w (1 + J) / 4. Two rounds close
ordinary rows: 50 exponentials an element, paid only by the rows that ask for this method.
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from .points import at_end, newton, point_sums, shift_of
from .tilt import LN_2, LOG2_E, RESOLVED, log_sum, tilted_sums

POINTS = tl.constexpr(4)
NEAR = tl.constexpr(2.0**-6)
"""How far from the step the points about it lie, in widths of the bracket."""
CLOSED = tl.constexpr(1.0e-4)
"""w (1 + J)."""
LAST_BIT = tl.constexpr(1.2e-7)
"""Relative distance of neighbouring float32."""
MOST_ROUNDS = tl.constexpr(40)
"""Of which 24 take a bracket from 1 to the last bit of 1."""
FLAT = tl.constexpr(3.5e-7)
"""Nats. Where J is less 1/2 is taken, since F is known to 1.5e-7 only. Over 20,000 rows that differ by little, but for rare
tokens or for none, either way leaves at most 7e-5 of TV; at 1.6e-7 F alone left 1e-4, at 6e-7 the 1/2 left 8e-5."""


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
    NODES: tl.constexpr,
    PAD: tl.constexpr,
    LANES: tl.constexpr,
):
    """L and its slope at the nodes of [low, low + 1], and where they are numbers; all [ROWS, PAD]."""
    shift_low = ((1.0 - low) * lse_theta + low * lse_teacher) * LOG2_E
    reading = tilted_sums(
        teacher_row, theta_row, floor, active, low, low + 1.0, shift_low, (lse_teacher - lse_theta) * LOG2_E, 0, vocab,
        ROWS, NODES, PAD, 1, LANES, False, False,
    )  # fmt: skip
    tau = tl.arange(0, PAD)[None, :] / (NODES - 1)
    resolved = reading.z >= RESOLVED
    safe_z = tl.where(resolved, reading.z, 1.0)
    turn = (reading.peak_high - reading.peak_low)[:, None]
    value = log_sum(safe_z) + (reading.peak_low[:, None] + tau * turn) * LN_2
    return value, (reading.r / safe_z + turn) * LN_2, resolved


@triton.jit
def ess_balance_alpha(
    teacher_row,  # [ROWS, 1] pointers
    theta_row,  # [ROWS, 1] pointers
    floor,  # [ROWS]
    active,  # [ROWS]
    lse_theta,  # [ROWS]: over the mixed tokens
    lse_teacher,  # [ROWS]
    divergences,  # [ROWS]: J
    vocab,
    ROWS: tl.constexpr,
    NODES: tl.constexpr,
    PAD: tl.constexpr,
    LANES: tl.constexpr,
):
    """alpha [ROWS]; nan where the rows have nothing in common."""
    zero = tl.full([ROWS], 0.0, tl.float32)
    index = tl.arange(0, PAD)[None, :]
    # -F = L(-alpha) - L(2 - alpha) grows with alpha. Node i of either span belongs to alpha = 1 - i / (NODES - 1).
    right, right_slope, right_resolved = mirrored_reading(
        teacher_row, theta_row, floor, active, zero + 1.0, lse_theta, lse_teacher, vocab, ROWS, NODES, PAD, LANES
    )
    left, left_slope, left_resolved = mirrored_reading(
        teacher_row, theta_row, floor, active, zero - 1.0, lse_theta, lse_teacher, vocab, ROWS, NODES, PAD, LANES
    )
    # Where a sum is no number alpha is none either.
    resolved = (index < NODES) & right_resolved & left_resolved
    shift = shift_of(teacher_row, theta_row, floor, active, lse_theta, lse_teacher, vocab, ROWS, LANES).total
    alpha = 1.0 - index / (NODES - 1)
    off = left - right
    rise = right_slope - left_slope
    flat = divergences < FLAT
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
    sound = active & (lse_theta - lse_theta == 0.0) & (lse_teacher - lse_teacher == 0.0)
    still_open = sound & (flat == 0)
    rounds = 0
    point = tl.arange(0, POINTS)[None, :]
    while (tl.max(still_open.to(tl.int32), axis=0) > 0) & (rounds < MOST_ROUNDS):
        width = b - a
        about = newton(a, b, off_a, off_b, rise_a, rise_b)[:, None] + (point - 1) * (width * NEAR)[:, None]
        tried = tl.where(point == POINTS - 1, (a + 0.5 * width)[:, None], about)
        tried = tl.minimum(tl.maximum(tried, a[:, None]), b[:, None])
        less = point_sums(
            teacher_row, theta_row, floor, still_open, -tried, lse_theta, shift, vocab, ROWS, POINTS, LANES
        )
        more = point_sums(
            teacher_row, theta_row, floor, still_open, 2.0 - tried, lse_theta, shift, vocab, ROWS, POINTS, LANES
        )
        tried_off = less.value - more.value
        tried_rise = more.slope - less.slope
        is_below = still_open[:, None] & (tried_off < 0.0)
        is_above = still_open[:, None] & (tried_off >= 0.0)
        new_a = tl.maximum(tl.max(tl.where(is_below, tried, 0.0), axis=1), a)
        new_b = tl.minimum(tl.min(tl.where(is_above, tried, 1.0), axis=1), b)
        here_a = is_below & (tried == new_a[:, None])
        here_b = is_above & (tried == new_b[:, None])
        off_a = at_end(tried_off, here_a, off_a)
        rise_a = at_end(tried_rise, here_a, rise_a)
        off_b = at_end(tried_off, here_b, off_b)
        rise_b = at_end(tried_rise, here_b, rise_b)
        a = tl.where(still_open, new_a, a)
        b = tl.where(still_open, new_b, b)
        width = b - a
        still_open = still_open & (width * (1.0 + divergences) > CLOSED) & (width > LAST_BIT * b)
        rounds += 1
    found = newton(a, b, off_a, off_b, rise_a, rise_b)
    found = tl.minimum(tl.maximum(found, a), b)
    return tl.where(flat, 0.5, tl.where(sound, found, float("nan")))
