"""From the sums at equally spaced alphas to alpha, with a bound on what interpolation does to it. Device functions.

The cell
    g grows with alpha, so the nodes before and after its change of sign hold the root between them. A node whose g is
    within its rounding of 0 counts for neither side, and nothing that is interpolated moves a cell: it cannot lose the
    root. The next reading is of the cell, whatever the interpolation says.

The interpolation
    Five nodes -2..2, of distance h, t = 0 at the middle one; Z and r relative to L and g there, so that log Z and its
    slope are 0 at t = 0. Z' (t counts in nodes) is approximated by the polynomial through Z' and Z'' at -1, 0 and 1,
    `VALUES` added: corrected so that its integrals give Z(1) - Z(0) and Z(0) - Z(-1).

Its error
    Z is a sum of exponentials, and interpolation is linear: the error is the sum over tokens of w K(h r; t), where

        K(x; t) = x exp(t x) - [the same interpolation of exp(t x)],    |K(x; t)| <= kappa(t) x^2 (exp(-2 x) + exp(2 x))

    for every x, so whatever the rows are, Z' is off by at most kappa(t) (Z''(-2) + Z''(2)), and these two are known: a
    bound, not an estimate. kappa is that of `kappa_of`; `tests/kernels/test_interpolate.py` proves the inequality.
    With rows whose log-ratio has a deviation of 2.8 nats, g is so known to 2e-4 nats from nodes 1/4 apart.

A budget
    Alpha that spends a KL budget is the root of D_KL(q || theta) - budget = alpha g - L - budget, which grows with alpha too,
    by alpha Var r: the same search, with this in the place of g. L is off by at most the integral of the bound of Z'.

What is enough
    TV(q, q*) is about |g| E|r - g| / (2 Var r). E|r - g| is at most the deviation of r, or 2 sqrt(e) of it where one token is
    the peak of both rows and the others weigh e. So alpha is accepted where |g| plus the bound of its error is at most
    `TV_OF_DEVIATION` times the deviation over that part, and at most `KL_TOLERANCE`. Where alpha is given, or a bound of the
    request whose side of the root the nodes show, q does not depend on the interpolation: only the record and the
    normaliser do, and the size of the correction by `VALUES` stands for the error, where Z'' is of one size at the nodes.
    A nat that a budget is missed by moves q as 1 / alpha nats of g do.
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .tilt import LN_2, LOG2_E, RESOLVED, log_sum, pick

KL_TOLERANCE = tl.constexpr(5.0e-4)
"""Nats of g."""
TV_OF_DEVIATION = tl.constexpr(1.0e-4)
"""Nats of g for each nat of the deviation of r: total variation of 5e-5."""
MOST_GROWTH = tl.constexpr(8.0)
"""From one node to the next Z'' grows by less where no token with r of more than 2 nodes counts."""
MOST_LOG_Z = tl.constexpr(20.0)
"""Nats. Where L bends more between two nodes, the polynomial is of no use."""
LAST_BIT = tl.constexpr(6.0e-8)
"""Of a float32, relative."""
SURE = tl.constexpr(5.0)
"""A node is on its side of the root if its g is this many times as large as it is off."""
NO_DEVIATION = tl.constexpr(2.0e-4)
"""Nats. Where E|r - g| is less at all nodes of the cell, any of its alphas is within TV of 1e-4."""
RECORD_TOLERANCE = tl.constexpr(5.0e-4)
"""Nats of g, wherever it is."""
CORRECTION_TOLERANCE = tl.constexpr(2.0e-3)
"""Nats of g that `VALUES` correct where alpha is given: without them kappa is 7 to 17 times as large as with them. A search
found rows whose record was off by 1e-2 at twice as much."""
HIGHEST_CUBIC = tl.constexpr(0.385)
"""Of |t| (1 - t^2) for |t| <= 1."""
VALUES = tl.constexpr(0.02)
"""The differences of Z are used where Z''(-2) + Z''(2) is above this. Below it they would bring more rounding..."""
ROUNDING = tl.constexpr(3.0e-6)
"""...namely this much of Z', than they take away."""
RISING = tl.constexpr(0.577)
"""Up to here kappa grows with t, and beyond 1 again; in between it is at most..."""
BETWEEN = tl.constexpr(2.3e-4)
BETWEEN_WITH_VALUES = tl.constexpr(1.7e-5)
"""...this, without and with `VALUES`."""
STEPS = tl.constexpr(3)
"""Newton steps to the root of the polynomial. Six accept no more rows, two leave 2 to 4 % more of ordinary ones open."""


class Cell(NamedTuple):
    """The cell that holds alpha, and alpha inside it; all [ROWS]. Unless done, `low` and `high` alone mean something."""

    low: Any
    high: Any
    delta: Any
    """alpha = low + delta, kept apart: near a step of g the last bit of alpha counts."""
    value: Any
    """L at alpha, nats."""
    slope: Any
    """g at alpha, nats."""
    done: Any
    """Whether that is known to be good enough."""


@triton.jit
def kappa_of(t, with_values):
    """Bounds |K(x; t)| / (x^2 (exp(-2 x) + exp(2 x))) for every x, |t| <= 2."""
    t2 = t * t
    bubble = t2 * (1.0 - t2) * (1.0 - t2)
    return bubble * tl.where(with_values, 7.5e-5 + 2.4e-4 * t2 * t2, 1.25e-3 + 8.5e-4 * t2)


@triton.jit
def highest_kappa(t, with_values):
    """Bounds kappa on [-|t|, |t|], |t| <= 2."""
    between = tl.where(with_values, BETWEEN_WITH_VALUES, BETWEEN)
    return tl.maximum(kappa_of(t, with_values), tl.where(tl.abs(t) < RISING, 0.0, between))


@triton.jit
def coefficients(z_less, z_more, first_less, first_more, second_less, second_0, second_more, with_values):
    """c1 .. c7 of Z' = c1 t + .. + c7 t^7 from Z, Z' and Z'' at -1, 0 and 1, where Z(0) = 1 and Z'(0) = 0."""
    c1 = second_0
    even = 0.5 * (first_more + first_less)
    odd = 0.5 * (first_more - first_less) - c1
    c4 = 0.25 * (second_more - second_less) - even
    c2 = even - c4
    c5 = 0.25 * (second_more + second_less) - 0.5 * c1 - 1.5 * odd
    c3 = odd - c5
    # What (c6 + c7 t) t^2 (1 - t^2)^2, which changes nothing at the nodes, has to add to the integrals on either side.
    area_even = c2 / 3 + c4 / 5
    area_odd = c1 / 2 + c3 / 4 + c5 / 6
    rest_more = (z_more - 1.0) - (area_even + area_odd)
    rest_less = (1.0 - z_less) - (area_even - area_odd)
    c6 = tl.where(with_values, (rest_more + rest_less) * (105.0 / 16.0), 0.0)
    c7 = tl.where(with_values, (rest_more - rest_less) * 12.0, 0.0)
    return c1, c2 + c6, c3 + c7, c4 - 2.0 * c6, c5 - 2.0 * c7, c6, c7


@triton.jit
def polynomial_at(t, c1, c2, c3, c4, c5, c6, c7):
    """Z, Z' and Z'' at t, of Z' = c1 t + .. + c7 t^7 and Z(0) = 1."""
    rise = c1 + t * (2.0 * c2 + t * (3.0 * c3 + t * (4.0 * c4 + t * (5.0 * c5 + t * (6.0 * c6 + t * (7.0 * c7))))))
    slope = t * (c1 + t * (c2 + t * (c3 + t * (c4 + t * (c5 + t * (c6 + t * c7))))))
    area = c1 / 2 + t * (c2 / 3 + t * (c3 / 4 + t * (c4 / 5 + t * (c5 / 6 + t * (c6 / 7 + t * (c7 / 8))))))
    return 1.0 + t * t * area, slope, rise


@triton.jit
def close_cell(
    z,  # [ROWS, PAD]: sums relative to the chord between the peaks
    r,
    q,
    base,  # [ROWS]: L less log z at the low end of the span, nats
    growth,  # [ROWS]: the same at the high end less `base`; large numbers cancel in it, so it comes as one
    doubt,  # [ROWS]: how far g at the nodes is off, nats
    low,  # [ROWS]: the span; g is negative at low, or low is 0, and not at high, or high is 1 (or what is above a budget)
    high,
    alpha_min,  # [ROWS]: bounds; equal where alpha is given
    alpha_max,
    budgeted,  # [ROWS]: alpha spends a budget
    budget,  # [ROWS]: nats, of those
    NODES: tl.constexpr,
    PAD: tl.constexpr,
):
    """The `Cell` inside the span that was read."""
    index = tl.arange(0, PAD)[None, :]
    span = high - low
    step = span / (NODES - 1)
    alpha = low[:, None] + step[:, None] * index
    resolved = (index < NODES) & (z >= RESOLVED)
    safe_z = tl.where(resolved, z, 1.0)
    mean = r / safe_z
    value = log_sum(safe_z) + base[:, None] + (index / (NODES - 1)) * growth[:, None]
    slope = (mean * LN_2 + growth[:, None]) / span[:, None]
    scale = LN_2 / span[:, None]
    curvature = tl.maximum(q / safe_z - mean * mean, 0.0) * (scale * scale)

    # What is far from both peaks has lost digits, a few times over: sums are moved from peak to peak.
    slope_doubt = doubt[:, None] + 8.0 * LAST_BIT * tl.abs(mean) * scale
    curvature_doubt = 16.0 * LAST_BIT * (q / safe_z) * (scale * scale)

    # What becomes 0 at the root. D_KL(q || theta) does not depend on what r is relative to, but L(0) has to be 0.
    spent = tl.where(alpha > 0.0, alpha * slope - value, 0.0)
    large = tl.abs(alpha * slope) + tl.abs(value) + tl.abs(base)[:, None] + tl.abs(growth)[:, None]
    off = tl.where(budgeted[:, None], spent - budget[:, None], slope)
    spent_doubt = tl.abs(alpha) * slope_doubt + 2.0 * doubt[:, None] + 4.0 * LAST_BIT * large
    off_doubt = tl.where(budgeted[:, None], spent_doubt, slope_doubt)

    # Outside the bounds the sign is what would put alpha at the bound.
    above = off > SURE * off_doubt
    below = (off < -SURE * off_doubt) & (alpha <= alpha_max[:, None])
    left_nodes = resolved & (index < NODES - 1) & (below | (alpha < alpha_min[:, None]))
    left = tl.max(tl.where(left_nodes, index, 0), axis=1)
    right_nodes = (resolved & (index > left[:, None]) & (above | (alpha > alpha_max[:, None]))) | (index == NODES - 1)
    right = tl.min(tl.where(right_nodes, index, NODES - 1), axis=1)
    cell_low = low + step * left
    cell_high = tl.where(right == NODES - 1, high, low + step * right)
    at_most = (alpha_max <= cell_low) | (
        (alpha_max < cell_high) & (pick(off, index, right) < -SURE * pick(off_doubt, index, right))
    )
    at_least = (alpha_min >= cell_high) | (
        (alpha_min > cell_low) & (pick(off, index, left) > SURE * pick(off_doubt, index, left))
    )
    known = (alpha_min == alpha_max) | at_most | at_least

    # In nodes from the low end of the span.
    lowest = tl.maximum((alpha_min - low) / step, left.to(tl.float32))
    highest = tl.minimum((alpha_max - low) / step, right.to(tl.float32))
    lowest = tl.where(at_most, highest, lowest)
    highest = tl.where(at_least, lowest, highest)
    # Where to begin; signs that rounding may have made will do.
    inside = resolved & (index >= left[:, None]) & (index <= right[:, None])
    before = tl.max(tl.where(inside & (off < 0.0) & (index < right[:, None]), index, left[:, None]), axis=1)
    after = tl.min(tl.where(inside & (off >= 0.0) & (index > before[:, None]), index, right[:, None]), axis=1)
    # The root of what is spent is nearly straight, as it begins with the square of alpha.
    root = tl.sqrt(tl.maximum(spent, 0.0)) - tl.sqrt(tl.maximum(budget, 0.0))[:, None]
    straight = tl.where(budgeted[:, None], root, slope)
    straight_before = pick(straight, index, before)
    straight_after = pick(straight, index, after)
    between = (straight_before < 0.0) & (straight_after > 0.0)
    part = tl.where(between, -straight_before / tl.where(between, straight_after - straight_before, 1.0), 0.5)
    guess = tl.minimum(tl.maximum(before + part * (after - before), lowest), highest)
    # A root needs nodes on both sides of the three.
    nearest = (guess + 0.5).to(tl.int32)
    at_node = known & (tl.abs(guess - nearest) < 1.0e-6)
    edge = tl.where(at_node, 0, tl.where(known, 1, 2))
    middle = tl.minimum(tl.maximum(nearest, edge), NODES - 1 - edge)
    away = index - middle[:, None]
    value_0 = pick(value, index, middle)
    slope_0 = pick(slope, index, middle)
    log_z = value - value_0[:, None] - away * (step * slope_0)[:, None]
    near = (tl.abs(away) <= 2) & resolved & (log_z < MOST_LOG_Z)
    near_z = tl.where(near, tl.exp2(log_z * LOG2_E), 0.0)
    turn = step[:, None] * (slope - slope_0[:, None])
    first = near_z * turn
    second = near_z * (curvature * (step * step)[:, None] + turn * turn)
    z_less = pick(near_z, index, middle - 1)
    z_more = pick(near_z, index, middle + 1)
    first_less = pick(first, index, middle - 1)
    first_more = pick(first, index, middle + 1)
    second_less = pick(second, index, middle - 1)
    second_0 = pick(second, index, middle)
    second_more = pick(second, index, middle + 1)
    outer = tl.sum(tl.where(tl.abs(away) == 2, second, 0.0), axis=1)
    enough_nodes = tl.sum(near.to(tl.int32), axis=1) >= tl.where(known, 3, 5)
    enough_nodes = enough_nodes & (tl.sum((near & (tl.abs(away) <= 1)).to(tl.int32), axis=1) == 3)

    with_values = (outer > VALUES) | known
    c1, c2, c3, c4, c5, c6, c7 = coefficients(
        z_less, z_more, first_less, first_more, second_less, second_0, second_more, with_values
    )

    # alpha in nodes is `from_zero` + t; what is spent at the middle, less the budget.
    from_zero = low / step + middle
    overspent_0 = step * from_zero * slope_0 - value_0 - budget
    lowest -= middle
    highest -= middle
    least = lowest
    most = highest
    t = guess - middle
    for _ in range(STEPS):
        at_z, at_slope, at_rise = polynomial_at(t, c1, c2, c3, c4, c5, c6, c7)
        safe = tl.maximum(at_z, 0.5)
        relative = at_slope / safe
        overspent = overspent_0 - tl.log2(safe) * LN_2 + (from_zero + t) * relative
        at_off = tl.where(budgeted, overspent, step * slope_0 + relative)
        rising = (at_rise / safe - relative * relative) * tl.where(budgeted, from_zero + t, 1.0)
        least = tl.where(at_off < 0.0, tl.maximum(least, t), least)
        most = tl.where(at_off > 0.0, tl.minimum(most, t), most)
        t = tl.where(rising > 0.0, t - at_off / tl.where(rising > 0.0, rising, 1.0), t)
        t = tl.minimum(tl.maximum(t, least), most)
    delta = (middle - left + t) * step
    # There the polynomial may be steep, and is not needed.
    t = tl.where(at_node, 0.0, t)
    at_z, at_slope, at_rise = polynomial_at(t, c1, c2, c3, c4, c5, c6, c7)
    safe = tl.maximum(at_z, 0.5)
    relative = at_slope / safe
    g = slope_0 + relative / step
    deviation = tl.sqrt(tl.maximum(at_rise / safe - relative * relative, 0.0)) / step
    error = kappa_of(t, with_values) * outer + tl.where(with_values, ROUNDING, 0.0)
    # Between two nodes a curvature counts for at most 4 / 27 of a step.
    rounding = tl.max(tl.where(near, slope_doubt + 0.3 * step[:, None] * curvature_doubt, 0.0), axis=1)
    error = error * (1.0 + tl.abs(relative)) / (safe * step) + rounding
    alpha_t = tl.maximum((from_zero + t) * step, 0.0)
    overspent = overspent_0 - tl.log2(safe) * LN_2 + (from_zero + t) * relative
    value_error = highest_kappa(t, with_values) * outer + tl.where(with_values, ROUNDING, 0.0)
    spent_error = alpha_t * error + tl.abs(t) * value_error / safe
    spent_error += tl.max(tl.where(near, spent_doubt, 0.0), axis=1)
    at_off = tl.where(budgeted, overspent, g)
    off_error = tl.where(budgeted, spent_error, error)
    t2 = t * t
    # At least what is added at t: near a node that falls with the square of the distance, but what a token far away leaves
    # there, whose weight is gone a little further on, does not.
    correction = (tl.abs(c6) + tl.abs(c7 * t)) * tl.abs(t * (1.0 - t2)) * HIGHEST_CUBIC / (safe * step)
    # What the tokens beside the peaks weigh at either end of the span; in between it is less than the larger one. The sum
    # in the middle tells whether the peaks are one token.
    beside = tl.max(tl.where((index == 0) | (index == NODES - 1), z, 1.0), axis=1) - 1.0
    one_peak = (beside < 0.05) & (pick(z, index, left * 0 + NODES // 2) > 0.9)
    share = tl.where(one_peak, tl.minimum(2.0 * tl.sqrt(beside), 1.0), 1.0)
    asked = inside & (alpha >= alpha_min[:, None]) & (alpha <= alpha_max[:, None])
    moved = tl.sqrt(tl.max(tl.where(asked, curvature, 0.0), axis=1)) * share
    tolerance = TV_OF_DEVIATION * deviation / tl.maximum(share, 1.0e-6)
    tolerance = tl.minimum(tolerance * tl.where(budgeted, alpha_t, 1.0), KL_TOLERANCE)
    tolerance = tl.where(moved < NO_DEVIATION, KL_TOLERANCE, tolerance)
    # Beyond a bound of the request the root may be as far as it likes, beyond an end of the cell not. There is always an
    # alpha above 0 that spends a budget.
    not_below = (at_off - off_error >= -tolerance) | ((t >= highest) & (alpha_max < cell_high))
    bounded_below = (alpha_min > cell_low) & ((alpha_min > 0.0) | (budgeted == 0))
    not_above = (at_off + off_error <= tolerance) | ((t <= lowest) & bounded_below)
    usable = enough_nodes & (at_z > 0.5) & (tl.abs(t) <= 2.0)
    solved = usable & not_below & not_above & (error <= RECORD_TOLERANCE)
    steady = tl.maximum(second_less, second_more) <= MOST_GROWTH * second_0
    given = (usable & steady & (correction <= CORRECTION_TOLERANCE)) | (at_node & (pick(z, index, middle) >= RESOLVED))
    done = tl.where(known, given, solved)
    delta = tl.minimum(tl.maximum(delta, alpha_min - cell_low), alpha_max - cell_low)
    return Cell(
        low=cell_low,
        high=cell_high,
        delta=delta,
        value=value_0 + t * step * slope_0 + tl.log2(safe) * LN_2,
        slope=g,
        done=done,
    )
