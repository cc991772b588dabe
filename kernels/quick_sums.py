"""The first reading of ordinary rows: tilted sums with a fixed reference, three exponentials a token. Device functions.

`tilted_sums` moves its sums whenever a lane meets a larger tilt. Here a program takes the largest tilts of its first tokens
as references, and sums all its tokens relative to them; afterwards its sums are moved once, to the peaks that it met. With u
and v the tilts at alpha 0 and 1 relative to the references, in bits, and s = v - u, the weights at five nodes are

    w0 = 2^u,  w4 = 2^v,  w2 = max(w0, w4) 2^(-|s| / 2),  w1 = max(w0, w2) 2^(-|s| / 4),  w3 = max(w2, w4) 2^(-|s| / 4):

the weight between two nodes is the geometric mean of theirs, which is the larger one times 2^-(half of their distance), and
underflows only where that nearly has. Two of the three exponentials are w0 and w4, the third is 2^(-|s| / 4).

A program's sums are used if they are finite, and if the way from the references to the peaks turns r by little, since what r
is moved by, it loses in digits. Else, and for entropies, which need sums below the very peak, `tilted_sums` reads again.
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def, assignment, misc"

# ruff: noqa: RUF005 - Triton adds tuples, but does not unpack one into another.

import triton
import triton.language as tl

from .tilt import LOG2_E, LOWEST, MOST_LEVELS, NOTHING, RESOLVED, Reading, load_pair, move_peaks, sum_lanes

QUICK_NODES = tl.constexpr(5)
QUICK_PAD = tl.constexpr(8)
ABOVE_LOWEST = tl.constexpr(-9999.9990234375)
"""The next float32 above `LOWEST`."""
MOST_TURN = tl.constexpr(12.0)
"""Bits. Sums of r that are moved by so much lose 2^-24 of it, which is a rounding of the peaks themselves."""
MOST_DEVIATIONS = tl.constexpr(128.0)
"""And deviations of r: TV(q, q*) grows by 4e-8 for each (rows that differ by 1e-4 to 0.01 nats, and by 8 in a token without
weight)."""


@triton.jit
def apart(tokens, ROWS: tl.constexpr, LANES: tl.constexpr, EACH: tl.constexpr):
    """EACH times [ROWS, LANES]: the first token of every lane, the second, ..; a lane's tokens lie side by side."""
    parts = (tl.reshape(tokens, [ROWS, LANES, EACH]),)
    for level in tl.static_range(1, MOST_LEVELS + 1):
        if (EACH >> level) > 0:
            halves = ()
            for part in tl.static_range(1 << (level - 1)):
                first, second = tl.split(tl.reshape(parts[part], [ROWS, LANES, EACH >> level, 2]))
                halves = halves + (first, second)
            parts = halves
    tiles = ()
    for part in tl.static_range(EACH):
        tiles = tiles + (tl.reshape(parts[part], [ROWS, LANES]),)
    return tiles


@triton.jit
def references(teacher_row, theta_row, floor, active, begin, end, STEP: tl.constexpr):
    """The largest tilts at alpha 0 and 1 among the first STEP tokens, in bits [ROWS]; `NOTHING` where none is mixed."""
    ids = begin + tl.arange(0, STEP)[None, :]
    teacher, theta, _, both = load_pair(teacher_row, theta_row, floor[:, None], active[:, None] & (ids < end), ids)
    low = tl.max(tl.where(both, theta * LOG2_E, NOTHING), axis=1)
    high = tl.max(tl.where(both, teacher * LOG2_E, NOTHING), axis=1)
    return low, high


@triton.jit
def add_tokens(
    sums,
    teachers,  # [ROWS, LANES * EACH]
    thetas,
    least,  # [ROWS, 1]: the teacher's logit below which a token is dropped
    ref_low,  # [ROWS, 1]
    ref_high,  # [ROWS, 1]
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    EACH: tl.constexpr,
):
    """The sums of a lane, (z, r, q, own, largest w0, largest w4), with some tokens more."""
    z, r, q, own_sum, top_low, top_high = sums
    teacher_tiles = apart(teachers, ROWS, LANES, EACH)
    theta_tiles = apart(thetas, ROWS, LANES, EACH)
    for token in tl.static_range(EACH):
        teacher = teacher_tiles[token]
        theta = theta_tiles[token].to(tl.float32)
        # nan compares false: it stays in, and makes every sum nan.
        no_teacher = teacher < least
        dropped = no_teacher | (theta <= LOWEST)
        u = tl.where(dropped, float("-inf"), theta * LOG2_E - ref_low)
        v = tl.where(no_teacher, float("-inf"), teacher * LOG2_E - ref_high)
        # Of the difference itself: where the models nearly agree it is exact, and v - u is not.
        s = tl.where(dropped, 0.0, (teacher - theta) * LOG2_E - (ref_high - ref_low))
        own = tl.exp2(v)
        w0 = tl.exp2(u)
        w4 = tl.where(dropped, 0.0, own)
        quarter = tl.exp2(tl.abs(s) * -0.25)
        w2 = tl.maximum(w0, w4) * (quarter * quarter)
        w1 = tl.maximum(w0, w2) * quarter
        w3 = tl.maximum(w2, w4) * quarter
        weights = (w0, w1, w2, w3, w4)
        square = s * s
        new_z = ()
        new_r = ()
        new_q = ()
        for node in tl.static_range(QUICK_NODES):
            new_z = new_z + (z[node] + weights[node],)
            new_r = new_r + (r[node] + weights[node] * s,)
            new_q = new_q + (q[node] + weights[node] * square,)
        z = new_z
        r = new_r
        q = new_q
        own_sum += own
        top_low = tl.maximum(top_low, w0)
        top_high = tl.maximum(top_high, w4)
    return z, r, q, own_sum, top_low, top_high


@triton.jit
def quick_sums(
    teacher_row,  # [ROWS, 1] pointers
    theta_row,  # [ROWS, 1] pointers
    floor,  # [ROWS]
    active,  # [ROWS]
    begin,  # the tokens of this program
    end,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    EACH: tl.constexpr,  # tokens of a lane, side by side
    JOIN: tl.constexpr,  # see `sum_lanes`
):
    """The `Reading` of the tokens [begin, end) at alpha 0, 1/4, .., 1, without entropies, and [ROWS] whether it is good."""
    STEP: tl.constexpr = LANES * EACH
    ref_low, ref_high = references(teacher_row, theta_row, floor, active, begin, end, STEP)
    zero = tl.full([ROWS, LANES], 0.0, tl.float32)
    least = tl.maximum(floor, ABOVE_LOWEST)[:, None]
    zeros = (zero, zero, zero, zero, zero)
    sums = (zeros, zeros, zeros, zero, zero, zero)
    whole = begin
    if ROWS == 1:
        # Without a mask: a program with one row has returned if that is not active.
        whole = begin + (end - begin) // STEP * STEP
        for start in range(begin, whole, STEP):
            ids = start + tl.arange(0, STEP)[None, :]
            teacher = tl.load(teacher_row + ids)
            theta = tl.load(theta_row + ids)
            sums = add_tokens(sums, teacher, theta, least, ref_low[:, None], ref_high[:, None], ROWS, LANES, EACH)
    for start in range(whole, end, STEP):
        ids = start + tl.arange(0, STEP)[None, :]
        inside = active[:, None] & (ids < end)
        teacher = tl.load(teacher_row + ids, mask=inside, other=float("-inf"))
        theta = tl.load(theta_row + ids, mask=inside, other=float("-inf"))
        sums = add_tokens(sums, teacher, theta, least, ref_low[:, None], ref_high[:, None], ROWS, LANES, EACH)
    z = sum_lanes(sums[0], ROWS, QUICK_NODES, QUICK_PAD, LANES, JOIN)
    r = sum_lanes(sums[1], ROWS, QUICK_NODES, QUICK_PAD, LANES, JOIN)
    q = sum_lanes(sums[2], ROWS, QUICK_NODES, QUICK_PAD, LANES, JOIN)
    own = tl.sum(sums[3], axis=1)
    peak_low = ref_low + tl.log2(tl.max(sums[4], axis=1))
    peak_high = ref_high + tl.log2(tl.max(sums[5], axis=1))
    # What the peaks were rounded to is what the sums are moved by.
    fall_low = ref_low - peak_low
    fall_high = ref_high - peak_high
    index = tl.arange(0, QUICK_PAD)[None, :]
    tau = tl.minimum(index / (QUICK_NODES - 1), 1.0)
    z, r, q = move_peaks(z, r, q, fall_low[:, None], fall_high[:, None], tau)
    # What r loses counts beside its deviation, by which alpha is known; in the middle, where both models' tokens have weight.
    middle = index == QUICK_NODES // 2
    mass = tl.sum(tl.where(middle, z, 0.0), axis=1)
    safe = tl.where(mass >= RESOLVED, mass, 1.0)
    mean = tl.sum(tl.where(middle, r, 0.0), axis=1) / safe
    variance = tl.sum(tl.where(middle, q, 0.0), axis=1) / safe - mean * mean
    turn = fall_high - fall_low
    exact = (
        (mass >= RESOLVED) & (tl.abs(turn) <= MOST_TURN) & (turn * turn <= MOST_DEVIATIONS * MOST_DEVIATIONS * variance)
    )
    # inf - inf and nan - nan are nan.
    total = tl.sum(z + tl.abs(r) + q, axis=1) + own
    good = exact & (total - total == 0.0)
    reading = Reading(
        peak_low=peak_low,
        peak_high=peak_high,
        z=z,
        r=r,
        q=q,
        own=own,
        peak_own=ref_high,
        spread_low=own,
        spread_high=own,
    )
    return reading, good
