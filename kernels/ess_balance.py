"""The alpha at which reweighting draws of q to theta, and to the teacher, leaves the same effective sample size.

    sum theta^2 / q = sum teacher^2 / q,   q = theta^(1 - alpha) teacher^alpha / Z(alpha)

With L as in `tilt.py`, but alpha beyond [0, 1] too, the two sides are exp(L(-alpha) + L(alpha)) and exp(L(2 - alpha) +
L(alpha)), so alpha solves F = L(2 - alpha) - L(-alpha) = 0. L is convex with zeros at 0 and 1, hence F falls from
L(2) >= 0 at alpha 0 to -L(-1) <= 0 at alpha 1, and the zero is unique.

Three readings, each of two spans of nine tilts that mirror each other, narrow alpha to 1/512; a cubic through values
and slopes ends it. 54 exponentials an element, paid only by the rows that ask for this method.
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from .tilt import LN_2, RESOLVED, log_sum, pick, tilted_sums, zero_of_slope

READINGS = tl.constexpr(3)
FLAT = tl.constexpr(1.0e-5)
"""Nats. If F grows by less over all of [0, 1], every alpha balances, and 1/2 is taken."""


@triton.jit
def values_and_slopes(
    teacher_row,
    theta_row,
    floor,
    active,
    low,
    high,
    lse_theta,
    lse_teacher,
    vocab,
    ROWS: tl.constexpr,
    NODES: tl.constexpr,
    PAD: tl.constexpr,
    LANES: tl.constexpr,
):
    """L and its slope at the nodes of [low, high], and where they are numbers; all [ROWS, PAD]."""
    peak_low, peak_high, z, r, _, _, _, _, _ = tilted_sums(
        teacher_row, theta_row, floor, active, low, high, 0, vocab, ROWS, NODES, PAD, 1, LANES, False, False
    )
    rest_low = peak_low * LN_2 - (1.0 - low) * lse_theta - low * lse_teacher
    rest_high = peak_high * LN_2 - (1.0 - high) * lse_theta - high * lse_teacher
    tau = tl.arange(0, PAD)[None, :] / (NODES - 1)
    resolved = z >= RESOLVED
    safe_z = tl.where(resolved, z, 1.0)
    value = log_sum(safe_z) + (1.0 - tau) * rest_low[:, None] + tau * rest_high[:, None]
    span = (high - low)[:, None]
    return value, (r / safe_z * LN_2 + (rest_high - rest_low)[:, None]) / span, resolved


@triton.jit
def ess_balance_alpha(
    teacher_row,  # [ROWS, 1] pointers
    theta_row,  # [ROWS, 1] pointers
    floor,  # [ROWS]
    active,  # [ROWS]
    lse_theta,  # [ROWS]: over the mixed tokens
    lse_teacher,  # [ROWS]
    vocab,
    ROWS: tl.constexpr,
    NODES: tl.constexpr,
    PAD: tl.constexpr,
    LANES: tl.constexpr,
):
    """alpha [ROWS]; nan where the rows have nothing in common."""
    low = tl.full([ROWS], 0.0, tl.float32)
    high = low + 1.0
    alpha = low
    sound = active
    index = tl.arange(0, PAD)[None, :]
    flat = sound
    for reading in range(READINGS):
        # Node i of either span belongs to alpha = high - i step, and F grows along it.
        right, right_slope, right_resolved = values_and_slopes(
            teacher_row, theta_row, floor, active, 2.0 - high, 2.0 - low, lse_theta, lse_teacher, vocab,
            ROWS, NODES, PAD, LANES,
        )  # fmt: skip
        left, left_slope, left_resolved = values_and_slopes(
            teacher_row, theta_row, floor, active, -high, -low, lse_theta, lse_teacher, vocab,
            ROWS, NODES, PAD, LANES,
        )  # fmt: skip
        balance = right - left
        growth = right_slope - left_slope
        resolved = (index < NODES) & right_resolved & left_resolved
        step = (high - low) / (NODES - 1)
        before = tl.max(tl.where(resolved & (index < NODES - 1) & (balance < 0.0), index, 0), axis=1)
        # Where a sum is no number alpha is none either.
        balance = tl.where(resolved, balance, float("nan"))
        balance_0 = pick(balance, index, before)
        balance_1 = pick(balance, index, before + 1)
        growth_0 = pick(growth, index, before)
        growth_1 = pick(growth, index, before + 1)
        sound = sound & (balance_0 - balance_1 == balance_0 - balance_1)
        t = zero_of_slope(balance_0, balance_1, growth_0 * step, growth_1 * step, tl.full([ROWS], 0.0, tl.float32))
        largest = tl.max(tl.where(resolved, tl.abs(balance), 0.0), axis=1)
        flat = flat & ((reading > 0) | (largest < FLAT))
        high = high - step * before
        low = high - step
        alpha = high - t * step
    return tl.where(flat, 0.5, tl.where(sound, alpha, float("nan")))
