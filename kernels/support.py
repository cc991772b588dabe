"""The teacher's top k and nucleus, as a floor on its logits: a token is mixed if its logit is at least the floor.

    top k:    floor = the k-th largest logit,
    nucleus:  floor = the largest logit f with  sum over {logit >= f} of exp(logit) >= p * sum over all of exp(logit),

over the tokens that may be mixed at all; with both, the nucleus is taken inside the top k, as vLLM does. Every token at
the floor is kept, so ties can leave more than k.

Neither needs a sort. A float's bits, read as an integer with the negative ones flipped, order as the float does; both
measures fall as the floor rises; so the floor is found by a search over 2^32 keys with 16 candidates a reading: 8
readings of both rows at most, fewer once a candidate has exactly k tokens above it. No exponential for top k, one an
element and reading for the nucleus, whose sum is float32: where the mass of a set is within about 1e-6 of p, the set
can be one token off.
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from .tilt import LOG2_E, load_pair

CANDIDATES = tl.constexpr(16)
KEY_OF_MINUS_INF = tl.constexpr(-2139095041)
KEY_ABOVE_INF = tl.constexpr(2139095041)


@triton.jit
def key_of(logit):
    """int32 that orders as the float32 does."""
    bits = logit.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def floor_of(key):
    """The float32 of a key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def highest_floor(
    teacher_row,  # [ROWS, 1] pointers
    theta_row,  # [ROWS, 1] pointers
    theta_decides,  # [ROWS]: tokens at -inf in theta's row take no part
    floor,  # [ROWS]: tokens below it take no part
    active,  # [ROWS]
    target,  # [ROWS]: tokens, or mass relative to exp(peak)
    peak,  # [ROWS]: the largest logit, in bits
    vocab,
    BY_MASS: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """The highest floor with at least `target` above or at it; -inf where even all tokens are fewer."""
    lane = tl.arange(0, LANES)[None, :]
    part = tl.arange(0, CANDIDATES)[None, :] + 1
    low = tl.full([ROWS], KEY_OF_MINUS_INF, tl.int64)
    high = tl.where(active, tl.full([ROWS], KEY_ABOVE_INF, tl.int64), low + 1)
    while tl.max(high - low, axis=0) > 1:
        candidate = low[:, None] + (high - low)[:, None] * part // (CANDIDATES + 1)
        candidate_key = candidate.to(tl.int32)[:, :, None]
        measure = tl.full([ROWS, CANDIDATES, LANES], 0.0, tl.float32)
        for start in range(0, vocab, LANES):
            ids = start + lane
            teacher, _, own, both = load_pair(
                teacher_row, theta_row, floor[:, None], active[:, None] & (ids < vocab), ids
            )
            taken = own & (both | (theta_decides[:, None] == 0))
            above = taken[:, None, :] & (key_of(teacher)[:, None, :] >= candidate_key)
            if BY_MASS:
                measure += tl.where(above, tl.exp2(teacher * LOG2_E - peak[:, None])[:, None, :], 0.0)
            else:
                measure += above.to(tl.float32)
        total = tl.sum(measure, axis=2)
        enough = total >= target[:, None]
        low = tl.maximum(low, tl.max(tl.where(enough, candidate, KEY_OF_MINUS_INF), axis=1))
        high = tl.minimum(high, tl.min(tl.where(enough, KEY_ABOVE_INF, candidate), axis=1))
        if not BY_MASS:
            exact = tl.max(tl.where(enough & (total == target[:, None]), candidate, KEY_OF_MINUS_INF), axis=1)
            found = exact > KEY_OF_MINUS_INF
            low = tl.where(found, exact, low)
            high = tl.where(found, exact + 1, high)
    return floor_of(low.to(tl.int32))
