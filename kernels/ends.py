"""What a program that searches a row reads of it first: the normalisers of both models, and how far they are apart. A device
function.

Differences to the largest logit of a lane are exact where they are small, so that the normalisers are known better than
float32 holds them: `Ends.shift` has the digits that logits of 100 nats would leave no room for.
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def, assignment"

# ruff: noqa: RUF005 - Triton adds tuples, but does not unpack one into another.

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .tilt import LOG2_E, NOTHING, load_pair


class Ends(NamedTuple):
    """Theta (alpha 0) and the teacher (alpha 1) over the mixed tokens, the teacher over the tokens that its own row keeps.
    All [ROWS]; nats."""

    theta: Any
    """The sum of exp(logit - peak); so are the next two."""
    teacher: Any
    own: Any
    peak_theta: Any
    """The largest logit, which the sum is relative to; so are the next two."""
    peak_teacher: Any
    peak_own: Any
    shift: Any
    """fp64: the log-sum-exp of the teacher less that of theta."""
    divergences: Any
    """J = g(1) - g(0) = D_KL(theta || teacher) + D_KL(teacher || theta)."""
    square: Any
    """The larger of E[(r - c)^2] under either model, c the middle between its means there."""


@triton.jit
def lse_of(total, peak):
    """Log-sum-exp of a sum that is relative to a peak in nats."""
    return tl.log(total) + peak


@triton.jit
def added(total, lost, more):
    """A sum and what rounding has added to it too much (Kahan's summation), with a term more."""
    term = more - lost
    result = total + term
    return result, (result - total) - term


@triton.jit
def read_ends(teacher_row, theta_row, floor, active, vocab, ROWS: tl.constexpr, SUB: tl.constexpr, LANES: tl.constexpr):
    """The `Ends` of whole rows. Sums and peaks are kept per lane; SUB tiles share one change of peaks."""
    lane = tl.arange(0, LANES)[None, :]
    peak_low = tl.full([ROWS, LANES], NOTHING, tl.float32)
    peak_high = peak_low
    peak_own = peak_low
    zero = tl.full([ROWS, LANES], 0.0, tl.float32)
    z_low = zero
    z_high = zero
    lost_low = zero
    lost_high = zero
    own_sum = zero
    r_low = zero
    r_high = zero
    q_low = zero
    q_high = zero
    for start in range(0, vocab, SUB * LANES):
        lows = ()
        highs = ()
        owns = ()
        ratios = ()
        top_low = peak_low
        top_high = peak_high
        top_own = peak_own
        for sub in tl.static_range(SUB):
            ids = start + sub * LANES + lane
            teacher, theta, own, both = load_pair(
                teacher_row, theta_row, floor[:, None], active[:, None] & (ids < vocab), ids
            )
            at_low = tl.where(both, theta, float("-inf"))
            at_high = tl.where(both, teacher, float("-inf"))
            at_own = tl.where(own, teacher, float("-inf"))
            top_low = tl.maximum(top_low, at_low)
            top_high = tl.maximum(top_high, at_high)
            top_own = tl.maximum(top_own, at_own)
            lows = lows + (at_low,)
            highs = highs + (at_high,)
            owns = owns + (at_own,)
            ratios = ratios + (tl.where(both, teacher - theta, 0.0),)
        # r is relative to what the peaks are apart, and moves with them.
        fall_low = peak_low - top_low
        fall_high = peak_high - top_high
        turn = fall_high - fall_low
        apart = top_high - top_low
        scale = tl.exp2(fall_low * LOG2_E)
        q_low = (q_low + turn * (2.0 * r_low + turn * z_low)) * scale
        r_low = (r_low + turn * z_low) * scale
        z_low = z_low * scale
        lost_low = lost_low * scale
        scale = tl.exp2(fall_high * LOG2_E)
        q_high = (q_high + turn * (2.0 * r_high + turn * z_high)) * scale
        r_high = (r_high + turn * z_high) * scale
        z_high = z_high * scale
        lost_high = lost_high * scale
        step_low = zero
        step_high = zero
        own_sum = own_sum * tl.exp2((peak_own - top_own) * LOG2_E)
        for sub in tl.static_range(SUB):
            ratio = ratios[sub] - apart
            weight = tl.exp2((lows[sub] - top_low) * LOG2_E)
            moment = weight * ratio
            step_low += weight
            r_low += moment
            q_low += moment * ratio
            weight = tl.exp2((highs[sub] - top_high) * LOG2_E)
            moment = weight * ratio
            step_high += weight
            r_high += moment
            q_high += moment * ratio
            own_sum += tl.exp2((owns[sub] - top_own) * LOG2_E)
        z_low, lost_low = added(z_low, lost_low, step_low)
        z_high, lost_high = added(z_high, lost_high, step_high)
        peak_low = top_low
        peak_high = top_high
        peak_own = top_own

    highest_low = tl.max(peak_low, axis=1)
    highest_high = tl.max(peak_high, axis=1)
    highest_own = tl.max(peak_own, axis=1)
    fall_low = peak_low - highest_low[:, None]
    fall_high = peak_high - highest_high[:, None]
    turn = fall_high - fall_low
    scale_low = tl.exp2(fall_low * LOG2_E)
    scale_high = tl.exp2(fall_high * LOG2_E)
    theta_sum = tl.sum((z_low * scale_low).to(tl.float64), axis=1)
    teacher_sum = tl.sum((z_high * scale_high).to(tl.float64), axis=1)
    total_low = theta_sum.to(tl.float32)
    total_high = teacher_sum.to(tl.float32)
    mean_low = tl.sum((r_low + turn * z_low) * scale_low, axis=1) / total_low
    mean_high = tl.sum((r_high + turn * z_high) * scale_high, axis=1) / total_high
    square_low = tl.sum((q_low + turn * (2.0 * r_low + turn * z_low)) * scale_low, axis=1) / total_low
    square_high = tl.sum((q_high + turn * (2.0 * r_high + turn * z_high)) * scale_high, axis=1) / total_high
    # What r is relative to cancels.
    divergences = mean_high - mean_low
    variance = tl.maximum(square_low - mean_low * mean_low, square_high - mean_high * mean_high)
    logs = tl.log(teacher_sum) - tl.log(theta_sum)
    return Ends(
        theta=total_low,
        teacher=total_high,
        own=tl.sum(own_sum * tl.exp2((peak_own - highest_own[:, None]) * LOG2_E), axis=1),
        peak_theta=highest_low,
        peak_teacher=highest_high,
        peak_own=highest_own,
        shift=(highest_high.to(tl.float64) - highest_low.to(tl.float64)) + logs,
        divergences=divergences,
        square=tl.maximum(variance, 0.0) + 0.25 * divergences * divergences,
    )
