"""From the partial sums of a reading to alpha: the step between two readings. Device functions; `mix.py` launches them.

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

import triton
import triton.language as tl

from . import scratch
from .interpolate import LAST_BIT, SURE, close_cell
from .plan import ENTROPY, KL_BUDGET, KL_SYMMETRY, REVERSE_KL_SYMMETRY
from .tilt import LN_2, LOG2_E, NOTHING, RESOLVED, log_sum, move_peaks, pick

# Columns of a partial sum, after the reading.
PEAK_LOW = tl.constexpr(0)
PEAK_HIGH = tl.constexpr(1)
OWN = tl.constexpr(2)
SPREAD_LOW = tl.constexpr(3)
SPREAD_HIGH = tl.constexpr(4)
JS = tl.constexpr(5)
KL_THETA = tl.constexpr(6)
KL_TEACHER = tl.constexpr(7)
PEAK_OWN = tl.constexpr(8)
Z = tl.constexpr(16)
R = tl.constexpr(32)
Q = tl.constexpr(48)
PARTIAL_WIDTH = tl.constexpr(scratch.PARTIAL_WIDTH)

SOLUTION_WIDTH = tl.constexpr(scratch.SOLUTION_WIDTH)

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


@triton.jit
def store_reading(
    partials_ptr,
    part,  # [ROWS] int64: row and split of this program
    active,  # [ROWS]
    peak_low,
    peak_high,
    z,
    r,
    q,
    own,
    peak_own,
    spread_low,
    spread_high,
    PAD: tl.constexpr,
    FIRST: tl.constexpr,
):
    out = partials_ptr + part * PARTIAL_WIDTH
    tl.store(out + PEAK_LOW, peak_low, mask=active)
    tl.store(out + PEAK_HIGH, peak_high, mask=active)
    if FIRST:
        tl.store(out + OWN, own, mask=active)
        tl.store(out + PEAK_OWN, peak_own, mask=active)
        tl.store(out + SPREAD_LOW, spread_low, mask=active)
        tl.store(out + SPREAD_HIGH, spread_high, mask=active)
    nodes = out[:, None] + tl.arange(0, PAD)[None, :]
    tl.store(nodes + Z, z, mask=active[:, None])
    tl.store(nodes + R, r, mask=active[:, None])
    tl.store(nodes + Q, q, mask=active[:, None])


@triton.jit
def load_reading(
    partials_ptr,
    row,  # [ROWS] int64
    active,  # [ROWS]
    splits,
    NODES: tl.constexpr,
    PAD: tl.constexpr,
    SPLITS: tl.constexpr,  # splits rounded up to a power of two
    FIRST: tl.constexpr,
):
    """The sums of a reading over all splits, as `tilted_sums` returns those of one."""
    split = tl.arange(0, SPLITS)[None, :]
    inside = active[:, None] & (split < splits)
    parts = partials_ptr + (row[:, None] * splits + split) * PARTIAL_WIDTH
    peaks_low = tl.load(parts + PEAK_LOW, mask=inside, other=NOTHING)
    peaks_high = tl.load(parts + PEAK_HIGH, mask=inside, other=NOTHING)
    index = tl.arange(0, PAD)[None, None, :]
    nodes = parts[:, :, None] + index
    wanted = inside[:, :, None] & (index < NODES)
    z = tl.load(nodes + Z, mask=wanted, other=0.0)
    r = tl.load(nodes + R, mask=wanted, other=0.0)
    q = tl.load(nodes + Q, mask=wanted, other=0.0)
    peak_low = tl.max(peaks_low, axis=1)
    peak_high = tl.max(peaks_high, axis=1)
    fall_low = peaks_low - peak_low[:, None]
    fall_high = peaks_high - peak_high[:, None]
    own = peak_low
    peak_own = peak_low
    spread_low = peak_low
    spread_high = peak_low
    if FIRST:
        peaks_own = tl.load(parts + PEAK_OWN, mask=inside, other=NOTHING)
        peak_own = tl.max(peaks_own, axis=1)
        own = tl.sum(tl.load(parts + OWN, mask=inside, other=0.0) * tl.exp2(peaks_own - peak_own[:, None]), axis=1)
        z_low = tl.load(parts + Z, mask=inside, other=0.0)
        z_high = tl.load(parts + Z + (NODES - 1), mask=inside, other=0.0)
        spreads_low = tl.load(parts + SPREAD_LOW, mask=inside, other=0.0) + fall_low * z_low
        spreads_high = tl.load(parts + SPREAD_HIGH, mask=inside, other=0.0) + fall_high * z_high
        spread_low = tl.sum(spreads_low * tl.exp2(fall_low), axis=1)
        spread_high = tl.sum(spreads_high * tl.exp2(fall_high), axis=1)
    tau = index / (NODES - 1)
    z, r, q = move_peaks(z, r, q, fall_low[:, :, None], fall_high[:, :, None], tau)
    return (
        peak_low,
        peak_high,
        tl.sum(z, axis=1),
        tl.sum(r, axis=1),
        tl.sum(q, axis=1),
        own,
        peak_own,
        spread_low,
        spread_high,
    )


@triton.jit
def store_solution(
    solution_ptr,
    row,
    active,
    done,
    cell_low,
    cell_high,
    delta,
    value,
    slope,
    sound,
    alpha_min,
    alpha_max,
    lse_theta,
    lse_teacher,
    own_lse,
    kl_end,
    exact,
):
    out = solution_ptr + row * SOLUTION_WIDTH
    tl.store(out, done.to(tl.float32), mask=active)
    tl.store(out + 1, cell_low, mask=active)
    tl.store(out + 2, cell_high, mask=active)
    tl.store(out + 3, delta, mask=active)
    tl.store(out + 4, value, mask=active)
    tl.store(out + 5, slope, mask=active)
    tl.store(out + 6, sound.to(tl.float32), mask=active)
    tl.store(out + 7, alpha_min, mask=active)
    tl.store(out + 8, alpha_max, mask=active)
    tl.store(out + 9, lse_theta, mask=active)
    tl.store(out + 10, lse_teacher, mask=active)
    tl.store(out + 11, own_lse, mask=active)
    tl.store(out + 12, kl_end, mask=active)
    tl.store(out + 13, exact.to(tl.float32), mask=active)


@triton.jit
def load_solution(solution_ptr, row, active):
    """As stored; a row that is not `active` is done and sound."""
    out = solution_ptr + row * SOLUTION_WIDTH
    return (
        tl.load(out, mask=active, other=1.0) != 0.0,
        tl.load(out + 1, mask=active, other=0.0),
        tl.load(out + 2, mask=active, other=1.0),
        tl.load(out + 3, mask=active, other=0.0),
        tl.load(out + 4, mask=active, other=0.0),
        tl.load(out + 5, mask=active, other=0.0),
        tl.load(out + 6, mask=active, other=1.0) != 0.0,
        tl.load(out + 7, mask=active, other=0.0),
        tl.load(out + 8, mask=active, other=1.0),
        tl.load(out + 9, mask=active, other=0.0),
        tl.load(out + 10, mask=active, other=0.0),
        tl.load(out + 11, mask=active, other=0.0),
        tl.load(out + 12, mask=active, other=0.0),
        tl.load(out + 13, mask=active, other=0.0) != 0.0,
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
    """The solution after the reading of [0, 1], in the order of `store_solution`."""
    peak_low, peak_high, z, r, q, own, peak_own, spread_low, spread_high = load_reading(
        partials_ptr, row, active, splits, NODES, PAD, SPLITS, True
    )
    index = tl.arange(0, PAD)[None, :]
    start = tl.full([ROWS], 0, tl.int32)
    z_0 = pick(z, index, start)
    z_1 = pick(z, index, start + (NODES - 1))
    r_0 = pick(r, index, start)
    r_1 = pick(r, index, start + (NODES - 1))
    poisoned = (z_0 + own) != (z_0 + own)
    # A sum relative to its own peak is at least 1, or of nothing.
    empty = z_0 < RESOLVED
    safe_0 = tl.where(z_0 >= RESOLVED, z_0, 1.0)
    safe_1 = tl.where(z_1 >= RESOLVED, z_1, 1.0)
    log_0 = log_sum(safe_0)
    log_1 = log_sum(safe_1)
    growth, doubt = log_ratio_of_ends(z, r, q, safe_0, safe_1, peak_low, peak_high, NODES, PAD)
    slope_0 = r_0 / safe_0 * LN_2 + growth
    slope_1 = r_1 / safe_1 * LN_2 + growth
    kl_theta_teacher = tl.maximum(-slope_0, 0.0)
    kl_teacher_theta = tl.maximum(slope_1, 0.0)
    divergences = kl_theta_teacher + kl_teacher_theta
    same = divergences < SAME
    entropy_theta = tl.maximum(log_0 - spread_low / safe_0 * LN_2, 0.0)
    entropy_teacher = tl.maximum(log_1 - spread_high / safe_1 * LN_2, 0.0)
    entropies = entropy_theta + entropy_teacher
    by_divergence = tl.where(same, 0.5, kl_teacher_theta / tl.where(same, 1.0, divergences))
    certain = entropies < CERTAIN
    by_entropy = tl.where(certain, 0.5, entropy_theta / tl.where(certain, 1.0, entropies))
    alpha = tl.where(method == ENTROPY, by_entropy, by_divergence)
    known = (method == ENTROPY) | (method == REVERSE_KL_SYMMETRY) | ((method == KL_SYMMETRY) & same)
    doubt_1 = 2.0 * doubt + 8.0 * LAST_BIT * LN_2 * tl.abs(r_1 / safe_1)
    affordable = same | (kl_teacher_theta + doubt_1 <= budget)
    alpha = tl.where(method == KL_BUDGET, tl.where(affordable, 1.0, 0.0), alpha)
    known = known | ((method == KL_BUDGET) & (affordable | (budget < LEAST_BUDGET)))
    alpha = tl.minimum(tl.maximum(alpha, alpha_min), alpha_max)
    sound = (poisoned == 0) & (empty == 0) & (alpha_min == alpha_min)
    alpha_min = tl.where(known, alpha, alpha_min)
    alpha_max = tl.where(known, alpha, alpha_max)
    low = tl.full([ROWS], 0.0, tl.float32)
    cell_low, cell_high, delta, value, slope, done = close_cell(
        z, r, q, -log_0, growth, doubt, low, low + 1.0, alpha_min, alpha_max, NODES, PAD
    )
    kl_end = tl.where(poisoned, float("nan"), tl.where(empty, float("inf"), kl_teacher_theta))
    own_lse = log_sum(own) + peak_own * LN_2
    done = done & (known | (method != KL_BUDGET))
    return (
        done | arithmetic | (sound == 0),
        tl.where(arithmetic, alpha_min, cell_low),
        cell_high,
        tl.where(arithmetic, 0.0, delta),
        value,
        slope,
        sound,
        alpha_min,
        alpha_max,
        log_0 + peak_low * LN_2,
        tl.where(arithmetic, own_lse, log_1 + peak_high * LN_2),
        own_lse,
        kl_end,
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
    lse_theta,
    lse_teacher,
    splits,
    NODES: tl.constexpr,
    PAD: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """cell_low, cell_high, delta, L, g, done after a reading of [low, high] with normalised rows."""
    peak_low, peak_high, z, r, q, _, _, _, _ = load_reading(
        partials_ptr, row, active, splits, NODES, PAD, SPLITS, False
    )
    base = peak_low * LN_2
    growth = (peak_high - peak_low) * LN_2
    # g is relative to the normalisers.
    doubt = ROUNDING + 2.0 * ROUNDING_OF_BIT * LOG2_E * (tl.abs(lse_theta) + tl.abs(lse_teacher))
    return close_cell(z, r, q, base, growth, doubt, low, high, alpha_min, alpha_max, NODES, PAD)
