"""Last kernel of a mix: log q*, in place of the teacher's row, and the record."""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from .columns import (
    ARITHMETIC,
    KL_BUDGET,
    PARTIAL_JS,
    PARTIAL_KL_TEACHER,
    PARTIAL_KL_THETA,
    PARTIAL_WIDTH,
    PLAN_ALPHA_MIN,
    PLAN_BUDGET,
    PLAN_FLOOR,
    PLAN_MAX_JS,
    PLAN_METHOD,
    PLAN_MIXED,
    PLAN_RESTRICTED,
    PLAN_TEACHER_LSE,
    PLAN_THETA_LSE,
    PLAN_WIDTH,
)
from .record import Kind
from .solution import load_solution
from .tilt import LN_2, LOG2_E, load_pair

TEACHER_ALONE = tl.constexpr(int(Kind.TEACHER))
GEOMETRIC_MIXTURE = tl.constexpr(int(Kind.GEOMETRIC))
ARITHMETIC_MIXTURE = tl.constexpr(int(Kind.ARITHMETIC))


@triton.jit
def _write_settled(
    teacher_row,  # [ROWS, 1] pointers
    theta_row,  # [ROWS, 1] pointers
    floor,  # [ROWS]
    settled,  # [ROWS]
    alpha,  # [ROWS]
    log_z,  # [ROWS]
    begin,
    end,
    vocab,
    teacher_vocab,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """log q of the rows of `settle_kernel`, added up as there: where r is 300 nats, rounding in float32 moves g by 5e-3."""
    weight = alpha.to(tl.float64)[:, None]
    for start in range(begin, end, BLOCK):
        ids = start + tl.arange(0, BLOCK)[None, :]
        teacher, theta, _, both = load_pair(
            teacher_row, theta_row, floor[:, None], settled[:, None] & (ids < vocab), ids
        )
        exact_theta = theta.to(tl.float64)
        mixture = exact_theta + weight * (teacher.to(tl.float64) - exact_theta) - log_z.to(tl.float64)[:, None]
        result = tl.where(both, mixture.to(tl.float32), float("-inf"))
        tl.store(teacher_row + ids, result, mask=settled[:, None] & (ids < tl.minimum(end, teacher_vocab)))


@triton.jit(do_not_specialize=["num_rows", "splits"])
def write_kernel(
    teacher_ptr,  # [rows, V_t] fp32, in/out
    teacher_stride,
    theta_ptr,  # [slots, K + 1, V_theta] bf16, fp16 or fp32
    theta_offset_ptr,  # [max_rows] int64, -1 for a row to be left alone
    entry_ptr,  # [max_rows] int64
    plan_ptr,  # [max_rows, PLAN_WIDTH] fp32
    compared_ptr,  # [rows, splits, PARTIAL_WIDTH] fp32: divergences, from the refinement
    solution_ptr,  # [max_rows, SOLUTION_WIDTH] fp32
    alpha_ptr,  # [slots, K + 1] fp32, out; so are the following
    kl_theta_ptr,
    kl_teacher_ptr,
    fallback_ptr,  # bool
    kind_ptr,  # int32
    log_z_ptr,
    floor_ptr,
    mixed_teacher_lse_ptr,
    mixed_theta_lse_ptr,
    teacher_lse_ptr,
    theta_lse_ptr,
    num_rows,
    teacher_vocab,
    vocab,
    split_size,
    splits,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
):
    row = ((tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    split = tl.program_id(1)
    offset = tl.load(theta_offset_ptr + row, mask=row < num_rows, other=-1)
    active = offset >= 0
    if tl.max(active.to(tl.int32), axis=0) == 0:
        return
    solution = load_solution(solution_ptr, row, active)
    low = solution.low
    delta = solution.delta
    value = solution.value
    slope = solution.slope
    lse_theta = solution.lse_theta
    lse_teacher = solution.lse_teacher

    plan = plan_ptr + row * PLAN_WIDTH
    method = tl.load(plan + PLAN_METHOD, mask=active, other=0.0)
    arithmetic = method == ARITHMETIC
    mixed = active & (tl.load(plan + PLAN_MIXED, mask=active, other=0.0) != 0.0)
    max_js = tl.load(plan + PLAN_MAX_JS, mask=active, other=float("inf"))
    floor = tl.load(plan + PLAN_FLOOR, mask=active, other=0.0)
    parts = compared_ptr + (row[:, None] * splits + tl.arange(0, SPLITS)[None, :]) * PARTIAL_WIDTH
    compared = active & solution.sound & (arithmetic | (max_js < float("inf")))
    inside = compared[:, None] & (tl.arange(0, SPLITS)[None, :] < splits)
    js = tl.sum(tl.load(parts + PARTIAL_JS, mask=inside, other=0.0), axis=1)
    alone = (solution.sound == 0) | (js > max_js) | (mixed == 0)
    alpha = tl.where(alone, 1.0, low + delta)
    log_z = value + (1.0 - alpha) * lse_theta + alpha * lse_teacher

    if split == 0:
        geometric_theta = tl.maximum(alpha * slope - value, 0.0)
        # The budget holds, but for rounding, unless alpha was raised to its lower bound.
        budget = tl.load(plan + PLAN_BUDGET, mask=active, other=0.0)
        alpha_min = tl.load(plan + PLAN_ALPHA_MIN, mask=active, other=0.0)
        within = (method == KL_BUDGET) & ((alpha > alpha_min) | (alpha == 0.0))
        geometric_theta = tl.where(within, tl.minimum(geometric_theta, budget), geometric_theta)
        geometric_teacher = tl.maximum((alpha - 1.0) * slope - value, 0.0)
        sum_theta = tl.sum(tl.load(parts + PARTIAL_KL_THETA, mask=inside, other=0.0), axis=1)
        sum_teacher = tl.sum(tl.load(parts + PARTIAL_KL_TEACHER, mask=inside, other=0.0), axis=1)
        kl_theta = tl.where(alone, solution.kl_end, tl.where(arithmetic, tl.maximum(sum_theta, 0.0), geometric_theta))
        kl_teacher = tl.where(alone, 0.0, tl.where(arithmetic, tl.maximum(sum_teacher, 0.0), geometric_teacher))
        kind = tl.where(alone, TEACHER_ALONE, tl.where(arithmetic, ARITHMETIC_MIXTURE, GEOMETRIC_MIXTURE))
        restricted = tl.load(plan + PLAN_RESTRICTED, mask=active, other=0.0) != 0.0
        full_teacher_lse = tl.load(plan + PLAN_TEACHER_LSE, mask=active & restricted, other=0.0)
        full_theta_lse = tl.load(plan + PLAN_THETA_LSE, mask=active & restricted, other=0.0)
        entry = tl.load(entry_ptr + row, mask=active, other=0)
        tl.store(alpha_ptr + entry, alpha, mask=active)
        tl.store(kl_theta_ptr + entry, kl_theta, mask=active)
        tl.store(kl_teacher_ptr + entry, kl_teacher, mask=active)
        tl.store(fallback_ptr + entry, alone & mixed, mask=active)
        tl.store(kind_ptr + entry, kind, mask=active)
        tl.store(log_z_ptr + entry, log_z, mask=active)
        tl.store(floor_ptr + entry, floor, mask=active)
        tl.store(mixed_teacher_lse_ptr + entry, lse_teacher, mask=active)
        tl.store(mixed_theta_lse_ptr + entry, lse_theta, mask=active)
        tl.store(teacher_lse_ptr + entry, tl.where(restricted, full_teacher_lse, solution.own_lse), mask=active)
        tl.store(theta_lse_ptr + entry, tl.where(restricted, full_theta_lse, lse_theta), mask=active)

    written = active & (alone == 0)
    if tl.max(written.to(tl.int32), axis=0) == 0:
        return
    exact = solution.exact & written
    written = written & (exact == 0)
    sums = written & arithmetic
    any_sums = tl.max(sums.to(tl.int32), axis=0) > 0
    log_weight_teacher = tl.log2(alpha) - lse_teacher * LOG2_E
    log_weight_theta = tl.log2(1.0 - alpha) - lse_theta * LOG2_E
    teacher_row = (teacher_ptr + row * teacher_stride)[:, None]
    theta_row = (theta_ptr + tl.where(active, offset, 0))[:, None]
    begin = split * split_size
    # The last split also clears what lies beyond theta's vocabulary.
    end = tl.where(split == splits - 1, teacher_vocab, begin + split_size)
    if tl.max(exact.to(tl.int32), axis=0) > 0:
        _write_settled(
            teacher_row,
            theta_row,
            floor,
            exact,
            low,
            log_z,
            begin,
            end,
            vocab,
            teacher_vocab,
            ROWS,
            BLOCK // 4 if BLOCK >= 4 else BLOCK,
        )
        if tl.max(written.to(tl.int32), axis=0) == 0:
            return
    for start in range(begin, end, BLOCK):
        ids = start + tl.arange(0, BLOCK)[None, :]
        teacher, theta, own, both = load_pair(
            teacher_row, theta_row, floor[:, None], written[:, None] & (ids < vocab), ids
        )
        ratio = teacher - theta
        # Two steps, since near a step of g the last bit of alpha counts.
        mixture = theta + low[:, None] * ratio + delta[:, None] * ratio - log_z[:, None]
        result = tl.where(both, mixture, float("-inf"))
        if any_sums:
            from_teacher = tl.where(own, log_weight_teacher[:, None] + teacher * LOG2_E, float("-inf"))
            from_theta = tl.where(both, log_weight_theta[:, None] + theta * LOG2_E, float("-inf"))
            larger = tl.maximum(from_teacher, from_theta)
            # -inf - (-inf) would be nan.
            base = tl.where(larger == float("-inf"), 0.0, larger)
            total = larger + tl.log2(tl.exp2(from_teacher - base) + tl.exp2(from_theta - base))
            result = tl.where(sums[:, None], tl.where(own, total * LN_2, float("-inf")), result)
        tl.store(teacher_row + ids, result, mask=written[:, None] & (ids < tl.minimum(end, teacher_vocab)))
