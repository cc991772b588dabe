"""The alpha at which reweighting draws of q to theta, and to the teacher, leaves the same effective sample size.

    sum theta^2 / q = sum teacher^2 / q,   q = theta^(1 - alpha) teacher^alpha / Z(alpha)

With L as in `tilt.py`, but alpha beyond [0, 1] too, the two sides are exp(L(-alpha) + L(alpha)) and exp(L(2 - alpha) +
L(alpha)), so alpha solves F = L(2 - alpha) - L(-alpha) = 0. L is convex with zeros at 0 and 1, hence F falls from
L(2) >= 0 at alpha 0 to -L(-1) <= 0 at alpha 1, and the zero is unique.

A first reading of two spans of nine tilts that mirror each other narrows alpha to 1/8. Then rounds as in `settle.py`, each of
`PAIRS` alphas with their mirrored tilts in one reading. The first one measures the ends 0 and 1 as well, since what float32
leaves of the normalisers' difference moves every tilt, and three alphas about the zero of an inverse cubic, so near each
other that two of them with the zero in between close the bracket; further ones its half, and three about the Newton step.
The bracket is closed when it is too narrow to matter: the deviation of r at any alpha is about half of
J = D_KL(theta || teacher) + D_KL(teacher || theta) at most (where it is large, g rises by twice the deviation, and by J in
all), so TV is at most w (1 + J) / 4. One round closes ordinary rows: 34 exponentials an element, paid only by the rows that
ask for this method.
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from .points import at_end, newton, point_sums
from .tilt import LN_2, LOG2_E, RESOLVED, log_sum, tilted_sums

PAIRS = tl.constexpr(4)
"""Of alphas that mirror each other, of a round."""
MOST_SUB = tl.constexpr(2)
"""Tiles a step of a round, which keeps their exact tilts in registers: with four and theta in fp16 it spills."""
NEAR = tl.constexpr(2.0**-6)
"""How far from the step the points about it lie, in widths of the bracket."""
CLOSED = tl.constexpr(1.0e-4)
"""w (1 + J)."""
LAST_BIT = tl.constexpr(1.2e-7)
"""Relative distance of neighbouring float32."""
CLOSES = tl.constexpr(0.9)
"""How far the points of the first round lie from each other, in widths of a bracket that is closed."""
HAZY = tl.constexpr(3.0e-5)
"""Nats. Where J is less the rounding of F, 1.5e-7, can change its sign within more than a closed bracket: further apart."""
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
def tried_at(pair, a, b, step_to, near):
    """[ROWS, pairs] alphas of the bracket: its middle, and three about the step."""
    about = step_to[:, None] + (pair - 2) * near[:, None]
    tried = tl.where(pair == 0, (a + 0.5 * (b - a))[:, None], about)
    return tl.minimum(tl.maximum(tried, a[:, None]), b[:, None])


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
    SUB: tl.constexpr,
    LANES: tl.constexpr,
):
    """alpha [ROWS]; nan where the rows have nothing in common."""
    zero = tl.full([ROWS], 0.0, tl.float32)
    index = tl.arange(0, PAD)[None, :]
    # -F = L(-alpha) - L(2 - alpha) grows with alpha. Node i of either span belongs to alpha = 1 - i / (NODES - 1).
    right, right_slope, right_resolved = mirrored_reading(
        teacher_row, theta_row, floor, active, zero + 1.0, lse_theta, lse_teacher, vocab, ROWS, NODES, PAD, SUB, LANES
    )
    left, left_slope, left_resolved = mirrored_reading(
        teacher_row, theta_row, floor, active, zero - 1.0, lse_theta, lse_teacher, vocab, ROWS, NODES, PAD, SUB, LANES
    )
    # Where a sum is no number alpha is none either.
    resolved = (index < NODES) & right_resolved & left_resolved
    alpha = 1.0 - index / (NODES - 1)
    off = left - right
    rise = right_slope - left_slope
    flat = divergences < FLAT
    hazy = divergences < HAZY
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
    shift = lse_teacher.to(tl.float64) - lse_theta.to(tl.float64)
    pair = tl.arange(0, PAIRS)[None, :]
    of_pair = tl.arange(0, 2 * PAIRS)[None, :] // 2
    is_more = tl.arange(0, 2 * PAIRS)[None, :] % 2 == 1
    which = tl.arange(0, 2)[None, None, :]
    while (tl.max(still_open.to(tl.int32), axis=0) > 0) & (rounds < MOST_ROUNDS):
        begun = still_open & (rounds > 0)
        by_newton = newton(a, b, off_a, off_b, rise_a, rise_b)
        step_to = tl.where(begun, by_newton, inverse_cubic(a, b, off_a, off_b, rise_a, rise_b, by_newton))
        near = tl.where(begun | hazy, (b - a) * NEAR, CLOSES * CLOSED / (1.0 + divergences))
        tried = tried_at(pair, a, b, step_to, near)
        alphas = tried_at(of_pair, a, b, step_to, near)
        alphas = tl.where(is_more, 2.0 - alphas, -alphas)
        measures_ends = (begun[:, None] == 0) & (of_pair == 0)
        alphas = tl.where(measures_ends, tl.where(is_more, 1.0, 0.0), alphas)
        sums = point_sums(
            teacher_row, theta_row, floor, still_open, alphas, lse_theta, shift, vocab, ROWS, 2 * PAIRS,
            SUB if SUB < MOST_SUB else MOST_SUB, LANES,
        )  # fmt: skip
        values = tl.reshape(sums.value, [ROWS, PAIRS, 2])
        slopes = tl.reshape(sums.slope, [ROWS, PAIRS, 2])
        tried_off = tl.sum(tl.where(which == 0, values, -values), axis=2)
        tried_rise = tl.sum(tl.where(which == 0, -slopes, slopes), axis=2)
        # L(1) - L(0) is the rounding of the normalisers' difference, which every r is relative to.
        rounding = tl.sum(tl.where(measures_ends, tl.where(is_more, sums.value, -sums.value), 0.0), axis=1)
        shift += rounding.to(tl.float64)
        tried_off += 2.0 * rounding[:, None]
        usable = still_open[:, None] & (begun[:, None] | (pair > 0))
        is_below = usable & (tried_off < 0.0)
        is_above = usable & (tried_off >= 0.0)
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
