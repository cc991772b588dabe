"""The teacher's top k and nucleus, as a floor on its logits: a token is mixed if its logit is at least the floor.

    top k:    floor = the k-th largest logit,
    nucleus:  floor = the largest logit f with  sum over {logit >= f} of exp(logit) >= p * sum over all of exp(logit),

over the tokens that may be mixed at all; with both, the nucleus is taken inside the top k, as vLLM does. Every token at
the floor is kept, so ties can leave more than k.

Neither needs a sort, and few rows more than one reading: each place of a program keeps the `DEPTH` largest logits that it
meets (`largest_of_places`). Above the highest of the places' last ones no token can be missing, so where the kept ones from
there on are enough, the floor is found among them by bisection, in registers. 4,096 places that tokens fall on at random
hold the top 300 in 199 of 200 rows. Where they are not enough, that logit is an upper bound, and readings that measure the
row at 16 thresholds (`narrowed`) close in on the floor until about `FEW` tokens are left: two where a nucleus of 12,000
tokens is flat. Then the places keep the largest of those.

A float's bits, read as an integer with the negative ones flipped, order as the float does, so a bracket of such keys ends.
The nucleus' sums are float32: where the mass of a set is within about 1e-6 of p, the set can be one token off.
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def, assignment"

# ruff: noqa: RUF005 - Triton adds tuples, but does not unpack one into another.

import triton
import triton.language as tl

from .tilt import LOG2_E, load_pair

DEPTH = tl.constexpr(4)
CANDIDATES = tl.constexpr(16)
FEW = tl.constexpr(512.0)
SPAN = tl.constexpr(16.0)
"""Nats: how far below the first upper bound the first thresholds reach."""
BY_VALUE = tl.constexpr(4)
"""Readings whose thresholds are spaced evenly by value; those of further ones are by key, which ends in eight."""
MOST_READINGS = tl.constexpr(16)
"""More than those take."""
KEY_OF_MINUS_INF = tl.constexpr(-2139095041)
KEY_OF_INF = tl.constexpr(2139095040)


@triton.jit
def key_of(logit):
    """int64 that orders as the float32 does."""
    bits = logit.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def floor_of(key):
    """The float32 of a key."""
    bits = key.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def measured(logit, peak, BY_MASS: tl.constexpr):
    """What a token counts for: 1, or its mass relative to exp(peak)."""
    if BY_MASS:
        result = tl.exp2((logit - peak) * LOG2_E)
    else:
        result = tl.where(logit > float("-inf"), 1.0, 0.0)
    return result


@triton.jit
def logits_taken(teacher_row, theta_row, theta_decides, floor, active, begin, vocab, LANES: tl.constexpr):
    """[ROWS, LANES]: the teacher's logits from `begin` on; -inf for tokens that take no part."""
    ids = begin + tl.arange(0, LANES)[None, :]
    teacher, _, own, both = load_pair(teacher_row, theta_row, floor[:, None], active[:, None] & (ids < vocab), ids)
    return tl.where(own & (both | (theta_decides[:, None] == 0)), teacher, float("-inf"))


@triton.jit
def largest_of_places(
    teacher_row,
    theta_row,
    theta_decides,
    floor,
    active,
    below,  # [ROWS]: only tokens under it
    vocab,
    ROWS: tl.constexpr,
    SUB: tl.constexpr,
    LANES: tl.constexpr,
):
    """SUB * DEPTH tensors [ROWS, LANES]: the largest logits that each place meets, those of one in falling order, place
    after place; -inf where it met fewer."""
    kept = ()
    for _place in tl.static_range(SUB * DEPTH):
        kept = kept + (tl.full([ROWS, LANES], float("-inf"), tl.float32),)
    for start in range(0, vocab, SUB * LANES):
        updated = ()
        for sub in tl.static_range(SUB):
            logit = logits_taken(
                teacher_row, theta_row, theta_decides, floor, active, start + sub * LANES, vocab, LANES
            )
            logit = tl.where(logit < below[:, None], logit, float("-inf"))
            for depth in tl.static_range(DEPTH):
                updated = updated + (tl.maximum(kept[sub * DEPTH + depth], logit),)
                logit = tl.minimum(kept[sub * DEPTH + depth], logit)
        kept = updated
    return kept


@triton.jit
def complete_from(kept, SUB: tl.constexpr):
    """[ROWS]: no token above it is missing; of those at it some may be."""
    last = kept[DEPTH - 1]
    for sub in tl.static_range(1, SUB):
        last = tl.maximum(last, kept[sub * DEPTH + DEPTH - 1])
    return tl.max(last, axis=1)


@triton.jit
def measure_of_kept(kept, weights, least, SUB: tl.constexpr):
    """[ROWS]: what the kept tokens from `least` on measure."""
    total = weights[0] * (kept[0] >= least[:, None]).to(tl.float32)
    for index in tl.static_range(1, SUB * DEPTH):
        total += weights[index] * (kept[index] >= least[:, None]).to(tl.float32)
    return tl.sum(total, axis=1)


@triton.jit
def thresholds_between(low, high, first_low, by_value, INDEX: tl.constexpr):
    """[ROWS] keys of one of the thresholds in [low + 1, high - 1]; the last one is high - 1."""
    if INDEX == CANDIDATES - 1:
        key = high - 1
    else:
        value_low = tl.where(low == KEY_OF_MINUS_INF, first_low, floor_of(low))
        span = floor_of(high - 1) - value_low
        spaced_by_value = key_of(value_low + span * ((INDEX + 1) / CANDIDATES))
        spaced_by_key = low + (high - low) * (INDEX + 1) // CANDIDATES
        key = tl.where(by_value, spaced_by_value, spaced_by_key)
    return tl.minimum(tl.maximum(key, low + 1), high - 1)


@triton.jit
def narrowed(
    teacher_row,
    theta_row,
    theta_decides,
    floor,
    active,
    target,
    peak,
    low,  # [ROWS] int64: the bracket of keys
    high,
    first_low,  # [ROWS]: the logit where the thresholds begin if low is that of -inf
    by_value,  # [ROWS]
    at_low,  # [ROWS]: what is measured at the lower end, from `target` on unless that is -inf
    above,  # [ROWS]: the same at the upper end
    vocab,
    BY_MASS: tl.constexpr,
    ROWS: tl.constexpr,
    SUB: tl.constexpr,
    LANES: tl.constexpr,
):
    """low, high, at_low and above after one reading."""
    keys = ()
    limits = ()
    totals = ()
    for index in tl.static_range(CANDIDATES):
        key = thresholds_between(low, high, first_low, by_value, index)
        keys = keys + (key,)
        limits = limits + (floor_of(key)[:, None],)
        totals = totals + (tl.full([ROWS, LANES], 0.0, tl.float32),)
    for start in range(0, vocab, SUB * LANES):
        for sub in tl.static_range(SUB):
            logit = logits_taken(
                teacher_row, theta_row, theta_decides, floor, active, start + sub * LANES, vocab, LANES
            )
            weight = measured(logit, peak[:, None], BY_MASS)
            updated = ()
            for index in tl.static_range(CANDIDATES):
                updated = updated + (totals[index] + weight * (logit >= limits[index]).to(tl.float32),)
            totals = updated
    new_low = low
    new_high = high
    for index in tl.static_range(CANDIDATES):
        total = tl.sum(totals[index], axis=1)
        # They rise with their place, and what they measure falls: the last that is enough, the first that is not.
        raised = active & (total >= target)
        lowered = active & (total < target) & (keys[index] < new_high)
        at_low = tl.where(raised, total, at_low)
        new_low = tl.where(raised, keys[index], new_low)
        above = tl.where(lowered, total, above)
        new_high = tl.where(lowered, keys[index], new_high)
    return new_low, new_high, at_low, above


@triton.jit
def highest_floor(
    teacher_row,  # [ROWS, 1] pointers
    theta_row,  # [ROWS, 1] pointers
    theta_decides,  # [ROWS]: tokens at -inf in theta's row take no part
    floor,  # [ROWS]: tokens below it take no part
    active,  # [ROWS]
    target,  # [ROWS]: tokens, or mass relative to exp(peak)
    peak,  # [ROWS]: the largest logit
    vocab,
    BY_MASS: tl.constexpr,
    ROWS: tl.constexpr,
    SUB: tl.constexpr,
    LANES: tl.constexpr,
):
    """The highest floor with at least `target` above or at it; -inf where even all tokens are fewer."""
    low = tl.full([ROWS], KEY_OF_MINUS_INF, tl.int64)
    high = tl.full([ROWS], KEY_OF_INF, tl.int64)
    at_low = tl.full([ROWS], float("inf"), tl.float32)
    above = tl.full([ROWS], 0.0, tl.float32)
    # A sum that is no number is of a broken row.
    still_open = active & (target == target)
    readings = 0
    while (tl.max(still_open.to(tl.int32), axis=0) > 0) & (readings < MOST_READINGS):
        kept = largest_of_places(
            teacher_row, theta_row, theta_decides, floor, still_open, floor_of(high), vocab, ROWS, SUB, LANES
        )
        weights = ()
        for index in tl.static_range(SUB * DEPTH):
            weights = weights + (measured(kept[index], peak[:, None], BY_MASS),)
        complete = complete_from(kept, SUB)
        complete_key = key_of(complete)
        enough = (complete_key <= low) | (above + measure_of_kept(kept, weights, complete, SUB) >= target)
        enough = still_open & enough
        left = tl.where(enough, tl.maximum(low, complete_key), low)
        right = tl.where(enough, high, left + 1)
        while tl.max(right - left, axis=0) > 1:
            middle = left + (right - left) // 2
            total = above + measure_of_kept(kept, weights, floor_of(middle), SUB)
            left = tl.where(total >= target, middle, left)
            right = tl.where(total < target, middle, right)
            if not BY_MASS:
                right = tl.where(enough & (total == target), left + 1, right)
        low = tl.where(enough, left, low)
        still_open = still_open & (enough == 0)
        # The floor is at `complete`, where tokens may be missing, or below.
        above = tl.where(still_open, above + measure_of_kept(kept, weights, floor_of(complete_key + 1), SUB), above)
        high = tl.where(still_open, complete_key + 1, high)
        first_low = complete - SPAN
        narrowing = still_open
        while (tl.max(narrowing.to(tl.int32), axis=0) > 0) & (readings < MOST_READINGS):
            by_value = (low > KEY_OF_MINUS_INF) | (readings == 0)
            low, high, at_low, above = narrowed(
                teacher_row, theta_row, theta_decides, floor, narrowing, target, peak, low, high, first_low,
                by_value & (readings < BY_VALUE), at_low, above, vocab, BY_MASS, ROWS, SUB, LANES,
            )  # fmt: skip
            readings += 1
            # No token of the bracket measures less than one at its lower end.
            left_over = (at_low - above) / measured(floor_of(low), peak, BY_MASS)
            still_open = still_open & (high - low > 1)
            narrowing = narrowing & still_open & ((low == KEY_OF_MINUS_INF) | (left_over > FEW))
    return floor_of(low)
