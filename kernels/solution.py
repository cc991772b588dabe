"""From the partial sums of a reading to alpha: the step between two readings. Device functions.

The consumers of a reading reduce its partial sums again, each for itself: no atomics, no kernel only for that. The
first reading, of the span [0, 1], also gives what the other methods need. With F_theta = -g(0) = D_KL(theta || teacher)
and F_teacher = g(1) = D_KL(teacher || theta), and H the entropies,

    KL symmetry           g(alpha) = 0
    reverse KL symmetry   D_KL(theta || q) = alpha F_theta + L,  D_KL(teacher || q) = (1 - alpha) F_teacher + L,
                          hence alpha = F_teacher / (F_theta + F_teacher)
    entropy               alpha = H_theta / (H_theta + H_teacher)
    KL budget             D_KL(q || theta) = alpha g - L = budget; 1 where F_teacher <= budget

and what cannot be told apart in float32 (identical rows; two certain rows) has alpha = 1/2. An alpha that is known is a
lower and upper bound at once, so that one search serves every method.
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .columns import (
    ENTROPY,
    KL_BUDGET,
    KL_SYMMETRY,
    REVERSE_KL_SYMMETRY,
    SOLUTION_ALPHA_MAX,
    SOLUTION_ALPHA_MIN,
    SOLUTION_DELTA,
    SOLUTION_DONE,
    SOLUTION_EXACT,
    SOLUTION_HIGH,
    SOLUTION_KL_END,
    SOLUTION_LOW,
    SOLUTION_LSE_TEACHER,
    SOLUTION_LSE_THETA,
    SOLUTION_OWN_LSE,
    SOLUTION_SLOPE,
    SOLUTION_SOUND,
    SOLUTION_VALUE,
    SOLUTION_WIDTH,
)
from .interpolate import LAST_BIT, SURE, close_cell
from .read import load_reading
from .tilt import LN_2, LOG2_E, RESOLVED, log_sum, log_sum_exp, pick

NODES = tl.constexpr(9)
PAD = tl.constexpr(16)
"""Of the second reading."""
SAME = tl.constexpr(1.0e-8)
"""Nats. Rows whose two divergences add up to less have alpha = 1/2: TV(q, q*) is at most sqrt(1e-8) / 4."""
ROUNDING = tl.constexpr(3.0e-7)
ROUNDING_OF_BIT = tl.constexpr(2.0e-8)
"""Nats, and nats for each bit of a peak: how far log Z(0) - log Z(1) is off, as sums and peaks are rounded."""
LEAST_DOUBT = tl.constexpr(2.0e-8)
"""Nats. What sums of float32 leave of g where the models nearly agree."""
LEAST_BUDGET = tl.constexpr(1.0e-8)
"""Nats. A smaller budget leaves theta alone: TV(q, q*) is at most sqrt(1e-8 / 2)."""
CERTAIN = tl.constexpr(1.0e-20)
"""Nats. Entropies that add up to less are those of two certain rows."""


class Solution(NamedTuple):
    """What is known of a row's alpha after a reading; all [ROWS]."""

    done: Any
    """alpha is known well enough."""
    low: Any
    """The cell that holds alpha."""
    high: Any
    """Its upper end."""
    delta: Any
    """alpha = low + delta, kept apart: near a step of g the last bit of alpha counts."""
    value: Any
    """L at alpha, nats."""
    slope: Any
    """g at alpha, nats."""
    sound: Any
    """The row can be mixed."""
    alpha_min: Any
    """Bounds of alpha; equal where it is given."""
    alpha_max: Any
    lse_theta: Any
    """Log-sum-exp over the mixed tokens."""
    lse_teacher: Any
    """The same of the teacher; of its own row for an arithmetic mixture."""
    own_lse: Any
    """Log-sum-exp of the teacher over the tokens that its own row keeps."""
    kl_end: Any
    """D_KL(teacher || theta), nats: what the record says where the teacher draws alone."""
    exact: Any
    """Found by `settle_kernel`: log q is to be added up as there."""


@triton.jit
def store_solution(solution_ptr, row, active, solution):
    out = solution_ptr + row * SOLUTION_WIDTH
    tl.store(out + SOLUTION_DONE, solution.done.to(tl.float32), mask=active)
    tl.store(out + SOLUTION_LOW, solution.low, mask=active)
    tl.store(out + SOLUTION_HIGH, solution.high, mask=active)
    tl.store(out + SOLUTION_DELTA, solution.delta, mask=active)
    tl.store(out + SOLUTION_VALUE, solution.value, mask=active)
    tl.store(out + SOLUTION_SLOPE, solution.slope, mask=active)
    tl.store(out + SOLUTION_SOUND, solution.sound.to(tl.float32), mask=active)
    tl.store(out + SOLUTION_ALPHA_MIN, solution.alpha_min, mask=active)
    tl.store(out + SOLUTION_ALPHA_MAX, solution.alpha_max, mask=active)
    tl.store(out + SOLUTION_LSE_THETA, solution.lse_theta, mask=active)
    tl.store(out + SOLUTION_LSE_TEACHER, solution.lse_teacher, mask=active)
    tl.store(out + SOLUTION_OWN_LSE, solution.own_lse, mask=active)
    tl.store(out + SOLUTION_KL_END, solution.kl_end, mask=active)
    tl.store(out + SOLUTION_EXACT, solution.exact.to(tl.float32), mask=active)


@triton.jit
def load_solution(solution_ptr, row, active):
    """As stored; a row that is not `active` is done and sound."""
    out = solution_ptr + row * SOLUTION_WIDTH
    return Solution(
        done=tl.load(out + SOLUTION_DONE, mask=active, other=1.0) != 0.0,
        low=tl.load(out + SOLUTION_LOW, mask=active, other=0.0),
        high=tl.load(out + SOLUTION_HIGH, mask=active, other=1.0),
        delta=tl.load(out + SOLUTION_DELTA, mask=active, other=0.0),
        value=tl.load(out + SOLUTION_VALUE, mask=active, other=0.0),
        slope=tl.load(out + SOLUTION_SLOPE, mask=active, other=0.0),
        sound=tl.load(out + SOLUTION_SOUND, mask=active, other=1.0) != 0.0,
        alpha_min=tl.load(out + SOLUTION_ALPHA_MIN, mask=active, other=0.0),
        alpha_max=tl.load(out + SOLUTION_ALPHA_MAX, mask=active, other=1.0),
        lse_theta=tl.load(out + SOLUTION_LSE_THETA, mask=active, other=0.0),
        lse_teacher=tl.load(out + SOLUTION_LSE_TEACHER, mask=active, other=0.0),
        own_lse=tl.load(out + SOLUTION_OWN_LSE, mask=active, other=0.0),
        kl_end=tl.load(out + SOLUTION_KL_END, mask=active, other=0.0),
        exact=tl.load(out + SOLUTION_EXACT, mask=active, other=0.0) != 0.0,
    )


@triton.jit
def log_ratio_of_ends(z, r, q, z_0, z_1, peak_low, peak_high, NODES: tl.constexpr, PAD: tl.constexpr):
    """log(Z(0) / Z(1)) relative to the peaks, which every slope of the first reading is relative to, and how far it may be
    off; both [ROWS], nats.

    Where the models nearly agree g is far below the rounding of log Z(0) - log Z(1), which is that of logits. Then
    Z(1) - Z(0) is integrated instead, from the slopes Z' at the nodes (the trapezoid with its correction by Z''): errors
    that the slopes share cancel in g, and r is small. Every second node gives the integral's error. Taken where it agrees
    with the difference up to rounding.
    """
    index = tl.arange(0, PAD)[None, :]
    difference = log_sum(z_0) - log_sum(z_1)
    step = LN_2 / (NODES - 1)
    weight = tl.where((index == 0) | (index == NODES - 1), 0.5, tl.where(index < NODES, 1.0, 0.0))
    area = step * tl.sum(weight * r, axis=1)
    coarse_area = 2.0 * step * tl.sum(tl.where(index % 2 == 0, weight * r, 0.0), axis=1)
    bend = tl.sum(tl.where(index == 0, q, tl.where(index == NODES - 1, -q, 0.0)), axis=1) * (step * step / 12.0)
    x = (area + bend) / z_0
    coarse_x = (coarse_area + 4.0 * bend) / z_0
    near = tl.abs(x) < 0.5
    # log(1 + x) = 2 artanh(s), whose relative error is small where x is.
    s = tl.where(near, x, 0.0) / (2.0 + tl.where(near, x, 0.0))
    s2 = s * s
    integrated = -2.0 * s * (1.0 + s2 * (1.0 / 3.0 + s2 * (0.2 + s2 / 7.0)))
    rounding = ROUNDING + ROUNDING_OF_BIT * (tl.abs(peak_low) + tl.abs(peak_high))
    # The integral's error is a fifteenth of the difference for small r, and a third of it at most for large.
    doubt = tl.abs(x - coarse_x) * 0.34 + LEAST_DOUBT
    taken = near & (doubt < rounding) & (tl.abs(integrated - difference) <= SURE * rounding)
    return tl.where(taken, integrated, difference), tl.where(taken, doubt, rounding)


@triton.jit
def solve_first(
    partials_ptr,
    row,  # [ROWS] int64
    active,  # [ROWS]
    method,  # [ROWS] int32
    arithmetic,  # [ROWS]
    alpha_min,  # [ROWS]
    alpha_max,  # [ROWS]
    budget,  # [ROWS]: nats, of KL_BUDGET
    splits,
    ROWS: tl.constexpr,
    NODES: tl.constexpr,
    PAD: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """The `Solution` after the reading of [0, 1]."""
    reading = load_reading(partials_ptr, row, active, splits, NODES, PAD, SPLITS, True)
    z = reading.z
    r = reading.r
    index = tl.arange(0, PAD)[None, :]
    start = tl.full([ROWS], 0, tl.int32)
    z_0 = pick(z, index, start)
    z_1 = pick(z, index, start + (NODES - 1))
    r_0 = pick(r, index, start)
    r_1 = pick(r, index, start + (NODES - 1))
    poisoned = (z_0 + reading.own) != (z_0 + reading.own)
    # A sum relative to its own peak is at least 1, or of nothing.
    empty = z_0 < RESOLVED
    safe_0 = tl.where(z_0 >= RESOLVED, z_0, 1.0)
    safe_1 = tl.where(z_1 >= RESOLVED, z_1, 1.0)
    log_0 = log_sum(safe_0)
    log_1 = log_sum(safe_1)
    growth, doubt = log_ratio_of_ends(z, r, reading.q, safe_0, safe_1, reading.peak_low, reading.peak_high, NODES, PAD)
    slope_0 = r_0 / safe_0 * LN_2 + growth
    slope_1 = r_1 / safe_1 * LN_2 + growth
    kl_theta_teacher = tl.maximum(-slope_0, 0.0)
    kl_teacher_theta = tl.maximum(slope_1, 0.0)
    divergences = kl_theta_teacher + kl_teacher_theta
    same = divergences < SAME
    entropy_theta = tl.maximum(log_0 - reading.spread_low / safe_0 * LN_2, 0.0)
    entropy_teacher = tl.maximum(log_1 - reading.spread_high / safe_1 * LN_2, 0.0)
    entropies = entropy_theta + entropy_teacher
    by_divergence = tl.where(same, 0.5, kl_teacher_theta / tl.where(same, 1.0, divergences))
    certain = entropies < CERTAIN
    by_entropy = tl.where(certain, 0.5, entropy_theta / tl.where(certain, 1.0, entropies))
    alpha = tl.where(method == ENTROPY, by_entropy, by_divergence)
    known = (method == ENTROPY) | (method == REVERSE_KL_SYMMETRY) | ((method == KL_SYMMETRY) & same)
    doubt_1 = 2.0 * doubt + 8.0 * LAST_BIT * LN_2 * tl.abs(r_1 / safe_1)
    affordable = same | (kl_teacher_theta + doubt_1 <= budget)
    alpha = tl.where(method == KL_BUDGET, tl.where(affordable, 1.0, 0.0), alpha)
    budgeted = (method == KL_BUDGET) & (affordable == 0) & (budget >= LEAST_BUDGET)
    known = known | ((method == KL_BUDGET) & (budgeted == 0))
    alpha = tl.minimum(tl.maximum(alpha, alpha_min), alpha_max)
    sound = (poisoned == 0) & (empty == 0) & (alpha_min == alpha_min)
    alpha_min = tl.where(known, alpha, alpha_min)
    alpha_max = tl.where(known, alpha, alpha_max)
    low = tl.full([ROWS], 0.0, tl.float32)
    cell = close_cell(
        z, r, reading.q, -log_0, growth, doubt, low, low + 1.0, alpha_min, alpha_max, budgeted, budget, NODES, PAD
    )
    own_lse = log_sum_exp(reading.own, reading.peak_own)
    kl_end = tl.where(poisoned, float("nan"), tl.where(empty, float("inf"), kl_teacher_theta))
    return Solution(
        done=cell.done | arithmetic | (sound == 0),
        low=tl.where(arithmetic, alpha_min, cell.low),
        high=cell.high,
        delta=tl.where(arithmetic, 0.0, cell.delta),
        value=cell.value,
        slope=cell.slope,
        sound=sound,
        alpha_min=alpha_min,
        alpha_max=alpha_max,
        lse_theta=log_sum_exp(safe_0, reading.peak_low),
        lse_teacher=tl.where(arithmetic, own_lse, log_sum_exp(safe_1, reading.peak_high)),
        own_lse=own_lse,
        kl_end=kl_end,
        exact=tl.full([ROWS], False, tl.int1),
    )


@triton.jit
def span_of(cell_low, cell_high):
    """The span of the next reading: the cell and an eighth more on either side, so that alpha is not in its first or last
    cell, where interpolation is worst."""
    margin = (cell_high - cell_low) * 0.125
    return cell_low - margin, cell_high + margin


@triton.jit
def solve_next(
    partials_ptr,
    row,  # [ROWS] int64
    active,  # [ROWS]
    low,  # [ROWS]: the span that was read
    high,
    alpha_min,
    alpha_max,
    budgeted,
    budget,
    lse_theta,
    lse_teacher,
    splits,
    NODES: tl.constexpr,
    PAD: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """The `Cell` after a reading of [low, high] with normalised rows."""
    reading = load_reading(partials_ptr, row, active, splits, NODES, PAD, SPLITS, False)
    base = reading.peak_low * LN_2
    growth = (reading.peak_high - reading.peak_low) * LN_2
    # g is relative to the normalisers.
    doubt = ROUNDING + 2.0 * ROUNDING_OF_BIT * LOG2_E * (tl.abs(lse_theta) + tl.abs(lse_teacher))
    return close_cell(
        reading.z,
        reading.r,
        reading.q,
        base,
        growth,
        doubt,
        low,
        high,
        alpha_min,
        alpha_max,
        budgeted,
        budget,
        NODES,
        PAD,
    )
