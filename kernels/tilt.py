"""Tilted sums of two rows, and the alpha that solves for them. Device functions; `mix.py` and `support.py` launch them.

The mathematics
    With theta's logits a, the teacher's b and r = b - a, the *tilt* of the pair at alpha is a + alpha r. Over the mixed tokens

        Z(alpha) = sum exp(a + alpha r),   R = sum r exp(a + alpha r),   Q = sum r^2 exp(a + alpha r),

    log Z is convex, its slope is R/Z = E[r], its second derivative Q/Z - (R/Z)^2 = Var[r]. With both rows normalised,
    L(alpha) = log Z(alpha) - (1 - alpha) log Z(0) - alpha log Z(1) and g = L', KL symmetry is g(alpha) = 0, and

        D_KL(q || theta) = alpha g - L,   D_KL(q || teacher) = (alpha - 1) g - L.

How it is computed
    One reading of a row gives Z, R and Q at `NODES` equally spaced alphas of a span [low, high]: `tilted_sums`. In the cell
    between two nodes where g changes sign, L has six known numbers (value, slope and curvature at both ends): `close_cell`
    puts the quintic through them, finds the zero of its slope and estimates the error from the difference to the cubic
    that does without the values. Where that is too large, the cell is the span of the next reading.

    Sums are kept relative to the largest tilts at low and at high that a lane has seen (`peak_low`, `peak_high`, in bits), so
    that shifting a row changes nothing. The tilt at a node in between can lie far below both (peaks that disagree):
    weights carry a factor 2^BIAS, so that a sum stays exact down to exp(-124) of the peaks. What lies below that is not
    a number here: such a node is left out, and a row without enough nodes counts as having nothing in common.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)

LOWEST = tl.constexpr(-1.0e4)
"""A logit at or below this is -inf: finite masks (-1e9, the smallest float) mean the same."""

NOTHING = tl.constexpr(-1.0e30)
"""The peak of a lane that has seen no token: below every logit, and finite, so that differences are never nan."""

BIAS = tl.constexpr(80.0)
RESOLVED = tl.constexpr(7.8886090522101181e-31)
"""2^-100: a biased sum below this may lack terms that underflowed."""

GRID = tl.constexpr(256)
"""Points on which the slope is looked at for its zero; a secant step follows."""

CUBIC_TOLERANCE = tl.constexpr(1.0e-3)
"""Nats. A reading is enough if the quintic's correction of the cubic is at most twice this..."""
SLOPE_TOLERANCE = tl.constexpr(5.0e-2)
"""...and the trapezoid of the curvatures gives the growth of the slope to this. Over 1,200 rows of 14 families that left
a KL gap of at most 4e-4; the first test alone let 1.5e-2 through, since errors of both signs cancel in it."""


@triton.jit
def load_pair(
    teacher_row,  # [ROWS, 1, 1] pointers to fp32
    theta_row,  # [ROWS, 1, 1] pointers to bf16, fp16 or fp32
    floor,  # [ROWS, 1, 1]: the teacher's logit below which a token is not mixed
    active,  # [ROWS, 1, 1]
    ids,  # [1, SUB, LANES]
    vocab,
):
    """Both rows, the tokens that the teacher's row keeps, and those that both keep. A nan stays in, and is seen."""
    inside = active & (ids < vocab)
    teacher = tl.load(teacher_row + ids, mask=inside, other=float("-inf"))
    theta = tl.load(theta_row + ids, mask=inside, other=float("-inf")).to(tl.float32)
    own = (teacher <= LOWEST) | (teacher < floor)
    both = own | (theta <= LOWEST)
    return teacher, theta, own == 0, both == 0


@triton.jit
def move_peaks(z, r, q, fall_low, fall_high, tau):
    """Sums relative to peaks that lie `fall` bits higher (fall <= 0). The scale is split: alone it may underflow."""
    turn = fall_high - fall_low
    half = tl.exp2(0.5 * (fall_low + tau * turn))
    moved_q = q + turn * (2.0 * r + turn * z)
    moved_r = r + turn * z
    return z * half * half, moved_r * half * half, moved_q * half * half


@triton.jit
def tilted_sums(
    teacher_row,  # [ROWS, 1, 1] pointers
    theta_row,  # [ROWS, 1, 1] pointers
    floor,  # [ROWS]
    active,  # [ROWS]
    low,  # [ROWS]: the span
    high,  # [ROWS]
    vocab,
    begin,  # the tokens of this program
    end,
    ROWS: tl.constexpr,
    NODES: tl.constexpr,
    PAD: tl.constexpr,  # NODES rounded up to a power of two
    SUB: tl.constexpr,  # a tile is [SUB, LANES] tokens; sums are kept per lane, so that the loop has no barrier
    LANES: tl.constexpr,
    FIRST: tl.constexpr,  # the span is [0, 1], and the teacher's own mass and both entropies are wanted too
):
    """peak_low, peak_high [ROWS] in bits, z, r, q [ROWS, PAD], and (FIRST) own, spread_low, spread_high [ROWS].

    r counts in bits per span, relative to the peaks. `own` is the teacher's sum at its peak over the tokens that only
    its own row decides on, and spread the sum of weight times bits below the peak at each end of the span.
    """
    tile_ids = (tl.arange(0, SUB)[:, None] * LANES + tl.arange(0, LANES)[None, :])[None, :, :]
    peak_low = tl.full([ROWS, LANES], NOTHING, tl.float32)
    peak_high = tl.full([ROWS, LANES], NOTHING, tl.float32)
    zero = tl.zeros([ROWS, LANES], tl.float32)
    z = ()
    r = ()
    q = ()
    for _ in tl.static_range(NODES):
        z = z + (zero,)
        r = r + (zero,)
        q = q + (zero,)
    own_sum = zero
    spread_low = zero
    spread_high = zero
    span = ((high - low) * LOG2_E)[:, None, None]

    for start in range(begin, end, SUB * LANES):
        ids = start + tile_ids
        teacher, theta, own, both = load_pair(
            teacher_row, theta_row, floor[:, None, None], active[:, None, None] & (ids < end), ids, vocab
        )
        ratio = tl.where(both, teacher - theta, 0.0)
        tilt = tl.where(both, (theta + low[:, None, None] * ratio) * LOG2_E, float("-inf"))
        slope = ratio * span
        top_low = tl.maximum(peak_low, tl.max(tilt, axis=1))
        if FIRST:
            own_bits = tl.where(own, teacher * LOG2_E, float("-inf"))
            top_high = tl.maximum(peak_high, tl.max(own_bits, axis=1))
        else:
            top_high = tl.maximum(peak_high, tl.max(tilt + slope, axis=1))
        fall_low = peak_low - top_low
        fall_high = peak_high - top_high
        peak_low = top_low
        peak_high = top_high
        tilt = tilt - top_low[:, None, :]
        slope = slope - (top_high - top_low)[:, None, :]
        if FIRST:
            # Before the sums that they refer to are moved.
            spread_low = (spread_low + fall_low * z[0]) * tl.exp2(fall_low)
            spread_high = (spread_high + fall_high * z[NODES - 1]) * tl.exp2(fall_high)
        new_z = ()
        new_r = ()
        new_q = ()
        for node in tl.static_range(NODES):
            tau = node / (NODES - 1)
            if FIRST and node == NODES - 1:
                own_weight = tl.exp2(own_bits - top_high[:, None, :] + BIAS)
                own_sum = own_sum * tl.exp2(fall_high) + tl.sum(own_weight, axis=1)
                weight = tl.where(both, own_weight, 0.0)
                spread_high += tl.sum(weight * tl.where(both, own_bits - top_high[:, None, :], 0.0), axis=1)
            else:
                weight = tl.exp2(tilt + (tau * slope + BIAS))
            if FIRST and node == 0:
                spread_low += tl.sum(weight * tl.where(both, tilt, 0.0), axis=1)
            moved_z, moved_r, moved_q = move_peaks(z[node], r[node], q[node], fall_low, fall_high, tau)
            first_moment = weight * slope
            new_z = new_z + (moved_z + tl.sum(weight, axis=1),)
            new_r = new_r + (moved_r + tl.sum(first_moment, axis=1),)
            new_q = new_q + (moved_q + tl.sum(first_moment * slope, axis=1),)
        z = new_z
        r = new_r
        q = new_q

    top_low = tl.max(peak_low, axis=1)
    top_high = tl.max(peak_high, axis=1)
    fall_low = peak_low - top_low[:, None]
    fall_high = peak_high - top_high[:, None]
    own_sum = tl.sum(own_sum * tl.exp2(fall_high), axis=1)
    spread_low = tl.sum((spread_low + fall_low * z[0]) * tl.exp2(fall_low), axis=1)
    spread_high = tl.sum((spread_high + fall_high * z[NODES - 1]) * tl.exp2(fall_high), axis=1)
    index = tl.arange(0, PAD)[None, :]
    z_nodes = tl.zeros([ROWS, PAD], tl.float32)
    r_nodes = tl.zeros([ROWS, PAD], tl.float32)
    q_nodes = tl.zeros([ROWS, PAD], tl.float32)
    for node in tl.static_range(NODES):
        moved_z, moved_r, moved_q = move_peaks(z[node], r[node], q[node], fall_low, fall_high, node / (NODES - 1))
        z_nodes = tl.where(index == node, tl.sum(moved_z, axis=1)[:, None], z_nodes)
        r_nodes = tl.where(index == node, tl.sum(moved_r, axis=1)[:, None], r_nodes)
        q_nodes = tl.where(index == node, tl.sum(moved_q, axis=1)[:, None], q_nodes)
    return top_low, top_high, z_nodes, r_nodes, q_nodes, own_sum, spread_low, spread_high


@triton.jit
def log_sum(z):
    """Natural logarithm of a biased sum; -inf of none."""
    return (tl.log2(z) - BIAS) * LN_2


@triton.jit
def pick(values, index, wanted):
    """values[row, wanted[row]] of [ROWS, PAD] values."""
    return tl.sum(tl.where(index == wanted[:, None], values, 0.0), axis=1)


@triton.jit
def slope_at(t, slope_0, slope_1, rise_0, rise_1, correction):
    """Slope of the quintic at t in [0, 1] of a cell: the cubic through slopes and rises (step times curvature), corrected."""
    s = 1.0 - t
    cubic = s * s * ((1.0 + 2.0 * t) * slope_0 + t * rise_0) + t * t * ((1.0 + 2.0 * s) * slope_1 - s * rise_1)
    return cubic + 30.0 * correction * (t * t) * (s * s)


@triton.jit
def zero_of_slope(slope_0, slope_1, rise_0, rise_1, correction):
    """t in [0, 1] where the slope crosses zero upwards, on a grid and by one secant step; all arguments [ROWS]."""
    point = tl.arange(0, GRID)[None, :]
    step = 1.0 / (GRID - 1)
    grid_slope = slope_at(
        point * step, slope_0[:, None], slope_1[:, None], rise_0[:, None], rise_1[:, None], correction[:, None]
    )
    below = tl.sum((grid_slope < 0.0).to(tl.int32), axis=1)
    left = tl.minimum(tl.maximum(below - 1, 0), GRID - 2)
    left_slope = pick(grid_slope, point, left)
    right_slope = pick(grid_slope, point, left + 1)
    growth = right_slope - left_slope
    part = tl.where(growth > 0.0, -left_slope / tl.where(growth > 0.0, growth, 1.0), 0.5)
    return (left + tl.minimum(tl.maximum(part, 0.0), 1.0)) * step


@triton.jit
def close_cell(
    z,  # [ROWS, PAD]
    r,
    q,
    rest_low,  # [ROWS]: peak at the low end less the log-normalisers there, nats
    rest_high,
    low,  # [ROWS]: the span
    high,
    alpha_min,  # [ROWS]: bounds; equal where alpha is given
    alpha_max,
    NODES: tl.constexpr,
    PAD: tl.constexpr,
):
    """The cell that holds alpha, alpha inside it, L and g there, and whether that is good enough. All [ROWS].

    Returns cell_low, cell_high, delta (alpha = cell_low + delta, kept apart: near a step of g the last bit of alpha counts),
    L, g, done, and whether the cell's ends are neighbouring nodes, without which the other numbers mean nothing.
    """
    index = tl.arange(0, PAD)[None, :]
    span = high - low
    step = span / (NODES - 1)
    alpha = low[:, None] + step[:, None] * index
    resolved = (index < NODES) & (z >= RESOLVED)
    safe_z = tl.where(resolved, z, 1.0)
    scale = LN_2 / span
    mean = r / safe_z
    slope = mean * scale[:, None] + ((rest_high - rest_low) / span)[:, None]
    curvature = (q / safe_z - mean * mean) * (scale * scale)[:, None]

    # Outside the bounds the sign of the slope is what would put alpha at the bound.
    sign = tl.where(alpha < alpha_min[:, None], -1.0, tl.where(alpha > alpha_max[:, None], 1.0, slope))
    left = tl.max(tl.where(resolved & (index < NODES - 1) & (sign < 0.0), index, 0), axis=1)
    right_nodes = resolved & (index > left[:, None]) & ((sign >= 0.0) | (index == NODES - 1))
    right = tl.min(tl.where(right_nodes, index, NODES - 1), axis=1)
    adjacent = (right == left + 1) & (pick(z, index, left) >= RESOLVED) & (pick(z, index, right) >= RESOLVED)
    cell_low = low + step * left
    cell_high = tl.where(right == NODES - 1, high, low + step * right)

    log_left = log_sum(pick(safe_z, index, left))
    log_growth = log_sum(pick(safe_z, index, right)) - log_left
    slope_0 = pick(slope, index, left)
    slope_1 = pick(slope, index, right)
    rise_0 = tl.maximum(pick(curvature, index, left), 0.0) * step
    rise_1 = tl.maximum(pick(curvature, index, right), 0.0) * step
    secant = log_growth / step + (rest_high - rest_low) / span
    correction = secant - 0.5 * (slope_0 + slope_1) - (rise_0 - rise_1) / 12.0
    t = zero_of_slope(slope_0, slope_1, rise_0, rise_1, correction)
    # In this order alpha_min = alpha_max gives that alpha, whatever the slope.
    t = tl.maximum(t, (alpha_min - cell_low) / step)
    t = tl.minimum(t, (alpha_max - cell_low) / step)
    t = tl.minimum(tl.maximum(t, 0.0), 1.0)
    g = slope_at(t, slope_0, slope_1, rise_0, rise_1, correction)
    t2 = t * t
    t3 = t2 * t
    t4 = t2 * t2
    area = (
        slope_0 * (t - t3 + 0.5 * t4)
        + slope_1 * (t3 - 0.5 * t4)
        + rise_0 * (0.5 * t2 - t3 * (2.0 / 3.0) + 0.25 * t4)
        - rise_1 * (t3 / 3.0 - 0.25 * t4)
        + correction * t3 * (10.0 - 15.0 * t + 6.0 * t2)
    )
    tau = (left / (NODES - 1)).to(tl.float32)
    value = log_left + (1.0 - tau) * rest_low + tau * rest_high + step * area
    # The ends of the cell are exact, so errors count by how far t is from them.
    doubt = 16.0 * t2 * (1.0 - t) * (1.0 - t)
    trapezoid = slope_1 - slope_0 - 0.5 * (rise_0 + rise_1)
    done = adjacent & (doubt * tl.abs(correction) <= CUBIC_TOLERANCE) & (doubt * tl.abs(trapezoid) <= SLOPE_TOLERANCE)
    return cell_low, cell_high, t * step, value, g, done, adjacent
