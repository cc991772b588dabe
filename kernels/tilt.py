"""Tilted sums of two rows, and the alpha that solves for them. Device functions.

The mathematics
    With theta's logits a, the teacher's b and r = b - a, the *tilt* of the pair at alpha is a + alpha r. Over the mixed
    tokens

        Z(alpha) = sum exp(a + alpha r),   R = sum r exp(a + alpha r),   Q = sum r^2 exp(a + alpha r),

    log Z is convex, its slope is R/Z = E[r], its second derivative Q/Z - (R/Z)^2 = Var[r]. With both rows normalised,
    L(alpha) = log Z(alpha) - (1 - alpha) log Z(0) - alpha log Z(1) and g = L', KL symmetry is g(alpha) = 0, and

        D_KL(q || theta) = alpha g - L,   D_KL(q || teacher) = (alpha - 1) g - L.

How it is computed
    One reading of a row gives Z, R and Q at `NODES` equally spaced alphas of a span [low, high]: `tilted_sums`. The
    nodes between which g changes sign are the cell that holds alpha; `interpolate.py` finds alpha inside it, with a
    bound of the error. Where that is too large, the cell is the span of the next reading, and what two readings leave
    open `settle.py` closes with sums at single alphas.

    Sums are kept relative to the largest tilts at low and at high that a lane has seen (`peak_low`, `peak_high`, in
    bits), so that shifting a row changes nothing. Where the peaks disagree, the sum at a node in between can be so
    small that its terms underflow: such a node is left out, and the cell is wider.
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def, assignment, misc"

# ruff: noqa: RUF005 - Triton adds tuples, but does not unpack one into another.

from typing import Any, NamedTuple

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)

LOWEST = tl.constexpr(-1.0e4)
"""A logit at or below this is -inf: finite masks (-1e9, the smallest float) mean the same."""

NOTHING = tl.constexpr(-1.0e30)
"""The peak of a lane that has seen no token: below every logit, and finite, so that differences are never nan."""

RESOLVED = tl.constexpr(2.0**-100)
"""A sum below this, relative to the peaks, may lack terms that underflowed."""

MOST_LEVELS = tl.constexpr(4)
"""Base-2 logarithm of the most nodes of a reading, padded."""


class Reading(NamedTuple):
    """The sums of a pair of rows at the nodes of a span, or of some of its tokens."""

    peak_low: Any
    """[ROWS], bits: the largest tilt at the low end, which the sums there are relative to."""
    peak_high: Any
    """[ROWS], bits: the same at the high end."""
    z: Any
    """[ROWS, PAD]: Z at each node, relative to the chord between the peaks; so are the next two."""
    r: Any
    """[ROWS, PAD]: R, in bits a span, relative to what the peaks turn by."""
    q: Any
    """[ROWS, PAD]: Q, in the same units squared."""
    own: Any
    """[ROWS]: the teacher's sum over the tokens that its own row keeps. This and the rest: first reading only."""
    peak_own: Any
    """[ROWS], bits: what it is relative to."""
    spread_low: Any
    """[ROWS]: the sum of weight times bits below the peak, at the low end."""
    spread_high: Any
    """[ROWS]: the same at the high end."""


@triton.jit
def load_pair(
    teacher_row,  # [ROWS, 1] pointers to fp32
    theta_row,  # [ROWS, 1] pointers to bf16, fp16 or fp32
    floor,  # [ROWS, 1]: the teacher's logit below which a token is not mixed
    inside,  # [ROWS, LANES]: tokens to look at
    ids,  # [1, LANES]
):
    """Both rows, the tokens that the teacher's row keeps, and those that both keep. A nan stays in, and is seen."""
    teacher = tl.load(teacher_row + ids, mask=inside, other=float("-inf"))
    theta = tl.load(theta_row + ids, mask=inside, other=float("-inf")).to(tl.float32)
    dropped = (teacher <= LOWEST) | (teacher < floor)
    return teacher, theta, dropped == 0, (dropped | (theta <= LOWEST)) == 0


@triton.jit
def move_peaks(z, r, q, fall_low, fall_high, tau):
    """Sums relative to peaks that lie `-fall` bits higher."""
    turn = fall_high - fall_low
    scale = tl.exp2((1.0 - tau) * fall_low + tau * fall_high)
    return z * scale, (r + turn * z) * scale, (q + turn * (2.0 * r + turn * z)) * scale


@triton.jit
def sum_lanes(
    sums,
    ROWS: tl.constexpr,
    NODES: tl.constexpr,
    PAD: tl.constexpr,
    LANES: tl.constexpr,
    JOIN: tl.constexpr,
):
    """[ROWS, PAD] of NODES times [ROWS, LANES].

    JOIN makes it one reduction, which keeps the nodes of a lane in the registers of its thread; without it
    `refine_kernel` spills. Where the result is used in the same kernel, Triton 3.9 gives the joined sums a layout in
    which every thread holds all lanes (30 KB of stack); there, and in the interpreter, each node is reduced by itself.
    """
    if JOIN:
        parts = sums
        for _ in tl.static_range(PAD - NODES):
            parts = parts + (tl.full([ROWS, LANES], 0.0, tl.float32),)
        for level in tl.static_range(1, MOST_LEVELS + 1):
            if (PAD >> level) > 0:
                joined = ()
                for node in tl.static_range(PAD >> level):
                    joined = joined + (tl.join(parts[node], parts[node + (PAD >> level)]),)
                parts = joined
        result = tl.reshape(tl.sum(parts[0], axis=1), [ROWS, PAD])
    else:
        index = tl.arange(0, PAD)[None, :]
        result = tl.full([ROWS, PAD], 0.0, tl.float32)
        for node in tl.static_range(NODES):
            result = tl.where(index == node, tl.sum(sums[node], axis=1)[:, None], result)
    return result


@triton.jit
def tilted_sums(
    teacher_row,  # [ROWS, 1] pointers
    theta_row,  # [ROWS, 1] pointers
    floor,  # [ROWS]
    active,  # [ROWS]
    low,  # [ROWS]: the span
    high,  # [ROWS]
    shift_low,  # [ROWS]: taken off every tilt at low, in bits; it is 0, and not looked at, if FIRST
    shift_span,  # [ROWS]: what shift grows by from low to high
    begin,  # the tokens of this program
    end,
    ROWS: tl.constexpr,
    NODES: tl.constexpr,
    PAD: tl.constexpr,  # NODES rounded up to a power of two
    SUB: tl.constexpr,  # tiles of LANES tokens a step
    LANES: tl.constexpr,
    FIRST: tl.constexpr,  # the span is [0, 1], and the teacher's own mass and both entropies are wanted too
    JOIN: tl.constexpr,  # see `sum_lanes`
):
    """The `Reading` of the tokens [begin, end).

    Sums and peaks are kept per lane, so that the loop has no barrier; SUB tiles share one change of peaks.
    """
    lane = tl.arange(0, LANES)[None, :]
    peak_low = tl.full([ROWS, LANES], NOTHING, tl.float32)
    peak_high = tl.full([ROWS, LANES], NOTHING, tl.float32)
    zero = tl.full([ROWS, LANES], 0.0, tl.float32)
    z = ()
    r = ()
    q = ()
    for _ in tl.static_range(NODES):
        z = z + (zero,)
        r = r + (zero,)
        q = q + (zero,)
    peak_own = peak_low
    own_sum = zero
    spread_low = zero
    spread_high = zero
    span = ((high - low) * LOG2_E)[:, None]

    for start in range(begin, end, SUB * LANES):
        tilts = ()
        slopes = ()
        owns = ()
        highs = ()
        top_low = peak_low
        top_high = peak_high
        top_own = peak_own
        for sub in tl.static_range(SUB):
            ids = start + sub * LANES + lane
            teacher, theta, own, both = load_pair(
                teacher_row, theta_row, floor[:, None], active[:, None] & (ids < end), ids
            )
            ratio = tl.where(both, teacher - theta, 0.0)
            if FIRST:
                tilt = tl.where(both, theta * LOG2_E, float("-inf"))
                slope = ratio * span
            else:
                # Near 0 at the peaks, which the rest refers to: g is known to the rounding of what is near, not of 80.
                bits = (theta + low[:, None] * ratio) * LOG2_E - shift_low[:, None]
                tilt = tl.where(both, bits, float("-inf"))
                slope = ratio * span - shift_span[:, None]
            # At high = 1 the teacher's own logit, exactly: the entropy of a certain row is a sum of last bits.
            at_high = tl.where(both, teacher * LOG2_E, float("-inf")) if FIRST else tilt + slope
            top_low = tl.maximum(top_low, tilt)
            top_high = tl.maximum(top_high, at_high)
            tilts = tilts + (tilt,)
            slopes = slopes + (slope,)
            if FIRST:
                own_bits = tl.where(own, teacher * LOG2_E, float("-inf"))
                top_own = tl.maximum(top_own, own_bits)
                owns = owns + (own_bits,)
                highs = highs + (at_high,)
        fall_low = peak_low - top_low
        fall_high = peak_high - top_high
        peak_low = top_low
        peak_high = top_high
        turn = fall_high - fall_low
        if FIRST:
            # Before the sums that these refer to move.
            spread_low = (spread_low + fall_low * z[0]) * tl.exp2(fall_low)
            spread_high = (spread_high + fall_high * z[NODES - 1]) * tl.exp2(fall_high)
            own_sum = own_sum * tl.exp2(peak_own - top_own)
            for sub in tl.static_range(SUB):
                own_sum += tl.exp2(owns[sub] - top_own)
            peak_own = top_own
        # Relative to the peaks before anything is added: what is left of large logits is small, and exact.
        near_tilts = ()
        near_slopes = ()
        for sub in tl.static_range(SUB):
            near_tilts = near_tilts + (tilts[sub] - top_low,)
            near_slopes = near_slopes + (slopes[sub] - (top_high - top_low),)
        new_z = ()
        new_r = ()
        new_q = ()
        for node in tl.static_range(NODES):
            tau = node / (NODES - 1)
            # `move_peaks` written out, here and below: a call costs the interpreter more than its sums do.
            # At the high end exactly: its peak may have fallen by little and the other by thousands.
            scale = tl.exp2(fall_high if node == NODES - 1 else fall_low + tau * turn)
            node_q = (q[node] + turn * (2.0 * r[node] + turn * z[node])) * scale
            node_r = (r[node] + turn * z[node]) * scale
            node_z = z[node] * scale
            for sub in tl.static_range(SUB):
                if FIRST and node == NODES - 1:
                    bits = highs[sub] - top_high
                else:
                    bits = near_tilts[sub] + tau * near_slopes[sub]
                weight = tl.exp2(bits)
                # A dropped token has no weight, and bits of -inf that must not make it nan.
                if FIRST and node == 0:
                    spread_low += weight * tl.maximum(bits, NOTHING)
                if FIRST and node == NODES - 1:
                    spread_high += weight * tl.maximum(bits, NOTHING)
                moment = weight * near_slopes[sub]
                node_z += weight
                node_r += moment
                node_q += moment * near_slopes[sub]
            new_z = new_z + (node_z,)
            new_r = new_r + (node_r,)
            new_q = new_q + (node_q,)
        z = new_z
        r = new_r
        q = new_q

    top_low = tl.max(peak_low, axis=1)
    top_high = tl.max(peak_high, axis=1)
    fall_low = peak_low - top_low[:, None]
    fall_high = peak_high - top_high[:, None]
    if FIRST:
        top_own = tl.max(peak_own, axis=1)
        own_sum = tl.sum(own_sum * tl.exp2(peak_own - top_own[:, None]), axis=1)
        spread_low = tl.sum((spread_low + fall_low * z[0]) * tl.exp2(fall_low), axis=1)
        spread_high = tl.sum((spread_high + fall_high * z[NODES - 1]) * tl.exp2(fall_high), axis=1)
    else:
        top_own = top_low
        own_sum = top_low
        spread_low = top_low
        spread_high = top_low
    turn = fall_high - fall_low
    moved_z = ()
    moved_r = ()
    moved_q = ()
    for node in tl.static_range(NODES):
        scale = tl.exp2(fall_high if node == NODES - 1 else fall_low + node / (NODES - 1) * turn)
        moved_z = moved_z + (z[node] * scale,)
        moved_r = moved_r + ((r[node] + turn * z[node]) * scale,)
        moved_q = moved_q + ((q[node] + turn * (2.0 * r[node] + turn * z[node])) * scale,)
    return Reading(
        peak_low=top_low,
        peak_high=top_high,
        z=sum_lanes(moved_z, ROWS, NODES, PAD, LANES, JOIN),
        r=sum_lanes(moved_r, ROWS, NODES, PAD, LANES, JOIN),
        q=sum_lanes(moved_q, ROWS, NODES, PAD, LANES, JOIN),
        own=own_sum,
        peak_own=top_own,
        spread_low=spread_low,
        spread_high=spread_high,
    )


@triton.jit
def log_sum(z):
    """Natural logarithm of a sum of powers of two."""
    return tl.log2(z) * LN_2


@triton.jit
def log_sum_exp(total, peak):
    """Natural logarithm of a sum that is relative to a peak in bits."""
    return log_sum(total) + peak * LN_2


@triton.jit
def pick(values, index, wanted):
    """values[row, wanted[row]] of [ROWS, PAD] values."""
    return tl.sum(tl.where(index == wanted[:, None], values, 0.0), axis=1)
