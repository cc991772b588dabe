"""Mix the teacher's rows with theta's, in place: every row that asks for it becomes log q*.

The mathematics
    q*(y) = theta(y)^(1 - alpha) teacher(y)^alpha / Z(alpha), alpha by the row's method; `tilt.py` and `solution.py` say
    how. `ARITHMETIC` is q(y) = alpha teacher(y) + (1 - alpha) theta(y).

The passes (rows x splits programs each, five launches, no atomics, no host sync, no allocation)
    plan    settings of each row; the support's floor and the balanced alpha for the rows that ask for one (`plan.py`)
    read    both rows at alpha 0, 1/4, .., 1
    refine  solve; read the open cell (1/4) again at nine alphas, and the divergences of rows that need them
    settle  solve; what is open still is read by one program a row until it is closed (`settle.py`)
    write   log q*, and the record; rows in reverse, so that what `read` touched last is still in L2
    `refine` and `settle` of a row that is solved, and has no divergence to compare, return at once.

What it costs, per element of an ordinary row: 6 bytes and 6 exponentials to read (theta in bf16; about 45
instructions), 10 bytes and no exponential to write: 16 bytes against the floor of 10 (teacher read and written once,
theta read once). The second reading costs 6 bytes and 9 exponentials. Rows whose teacher and theta differ by noise of 1.4
nats are all done after the first reading, 99 % of those with 2.0 nats, 86 % with 2.8 (96 rows of 3,000 tokens); `settle`
has work from noise of 7 nats on (1 % of the rows; 15 % at 13, 65 % at 21).
Rows that are not mixed: one load per program.

A row's tokens, and what happens to a row that cannot be mixed
    Tokens at -inf (at or below -1e4) in either row have no mass in q and take no part in alpha, and neither do those
    from min(V_t, V_theta) on. `ARITHMETIC` needs a token in the teacher's row only: -inf there is taken for a grammar's
    and binds both models, -inf in theta's row is theta's own. A row is left to the teacher, bit for bit and flagged, if
    no token is allowed by both, if a logit of either row is nan or +inf, or if the
    Jensen-Shannon divergence is above the request's limit.
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .checks import check_rows, check_tensor
from .divergences import divergence_sums
from .plan import (
    ALPHA_MAX,
    ALPHA_MIN,
    ARITHMETIC,
    BUDGET,
    FLOOR,
    KL_BUDGET,
    MAX_JS,
    METHOD,
    MIXED,
    PLAN_WIDTH,
    RESTRICTED,
    TEACHER_LSE,
    THETA_LSE,
    plan_kernel,
)
from .record import Kind, MixRecord
from .scratch import READINGS, LaunchShape, MixScratch
from .settings import MixSettings
from .settle import settle_alpha
from .solution import (
    JS,
    KL_TEACHER,
    KL_THETA,
    PARTIAL_WIDTH,
    load_solution,
    solve_first,
    solve_next,
    span_of,
    store_reading,
    store_solution,
)
from .tilt import LN_2, LOG2_E, load_pair, tilted_sums

FIRST_NODES = tl.constexpr(5)
FIRST_PAD = tl.constexpr(8)
NODES = tl.constexpr(9)
PAD = tl.constexpr(16)

TEACHER_ALONE = tl.constexpr(int(Kind.TEACHER))
GEOMETRIC_MIXTURE = tl.constexpr(int(Kind.GEOMETRIC))
ARITHMETIC_MIXTURE = tl.constexpr(int(Kind.ARITHMETIC))


@triton.jit(do_not_specialize=["num_rows"])
def read_kernel(
    teacher_ptr,  # [rows, V_t] fp32
    teacher_stride,
    theta_ptr,  # [slots, K + 1, V_theta] bf16, fp16 or fp32
    theta_offset_ptr,  # [max_rows] int64, -1 for a row to be left alone
    plan_ptr,  # [max_rows, PLAN_WIDTH] fp32
    partials_ptr,  # [rows, splits, PARTIAL_WIDTH] fp32, out
    num_rows,
    vocab,
    split_size,
    ROWS: tl.constexpr,
    SUB: tl.constexpr,
    LANES: tl.constexpr,
    JOIN: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    split = tl.program_id(1)
    offset = tl.load(theta_offset_ptr + row, mask=row < num_rows, other=-1)
    active = offset >= 0
    if tl.max(active.to(tl.int32), axis=0) == 0:
        return
    floor = tl.load(plan_ptr + row * PLAN_WIDTH + FLOOR, mask=active, other=0.0)
    low = tl.full([ROWS], 0.0, tl.float32)
    begin = split * split_size
    peak_low, peak_high, z, r, q, own, peak_own, spread_low, spread_high = tilted_sums(
        (teacher_ptr + row * teacher_stride)[:, None],
        (theta_ptr + tl.where(active, offset, 0))[:, None],
        floor,
        active,
        low,
        low + 1.0,
        low,
        low,
        begin,
        tl.minimum(begin + split_size, vocab),
        ROWS,
        FIRST_NODES,
        FIRST_PAD,
        SUB,
        LANES,
        True,
        JOIN,
    )
    part = row * tl.num_programs(1) + split
    store_reading(
        partials_ptr,
        part,
        active,
        peak_low,
        peak_high,
        z,
        r,
        q,
        own,
        peak_own,
        spread_low,
        spread_high,
        FIRST_PAD,
        True,
    )


@triton.jit(do_not_specialize=["num_rows", "splits"])
def refine_kernel(
    teacher_ptr,  # [rows, V_t] fp32
    teacher_stride,
    theta_ptr,  # [slots, K + 1, V_theta] bf16, fp16 or fp32
    theta_offset_ptr,  # [max_rows] int64, -1 for a row to be left alone
    plan_ptr,  # [max_rows, PLAN_WIDTH] fp32
    read_ptr,  # [rows, splits, PARTIAL_WIDTH] fp32: sums of the reading before
    partials_ptr,  # [rows, splits, PARTIAL_WIDTH] fp32, out
    solution_ptr,  # [max_rows, SOLUTION_WIDTH] fp32, out
    num_rows,
    vocab,
    split_size,
    splits,
    ROWS: tl.constexpr,
    SUB: tl.constexpr,
    LANES: tl.constexpr,
    SPLITS: tl.constexpr,
    JOIN: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    split = tl.program_id(1)
    offset = tl.load(theta_offset_ptr + row, mask=row < num_rows, other=-1)
    active = offset >= 0
    if tl.max(active.to(tl.int32), axis=0) == 0:
        return
    teacher_row = (teacher_ptr + row * teacher_stride)[:, None]
    theta_row = (theta_ptr + tl.where(active, offset, 0))[:, None]
    plan = plan_ptr + row * PLAN_WIDTH
    floor = tl.load(plan + FLOOR, mask=active, other=0.0)
    part = row * splits + split
    begin = split * split_size
    end = tl.minimum(begin + split_size, vocab)
    method = tl.load(plan + METHOD, mask=active, other=0.0).to(tl.int32)
    arithmetic = active & (method == ARITHMETIC)
    (
        done, low, high, delta, value, slope, sound, alpha_min, alpha_max, lse_theta, lse_teacher, own_lse, kl_end,
    ) = solve_first(
        read_ptr, row, active, method, arithmetic,
        tl.load(plan + ALPHA_MIN, mask=active, other=0.0), tl.load(plan + ALPHA_MAX, mask=active, other=1.0),
        tl.load(plan + BUDGET, mask=active, other=0.0), splits, ROWS, FIRST_NODES, FIRST_PAD, SPLITS,
    )  # fmt: skip
    max_js = tl.load(plan + MAX_JS, mask=active, other=float("inf"))
    compared = active & sound & (arithmetic | (max_js < float("inf")))
    if tl.max(compared.to(tl.int32), axis=0) > 0:
        js, kl_theta, kl_teacher = divergence_sums(
            teacher_row, theta_row, floor, compared, arithmetic, alpha_min, lse_theta, lse_teacher,
            begin, end, ROWS, LANES,
        )  # fmt: skip
        tl.store(partials_ptr + part * PARTIAL_WIDTH + JS, js, mask=compared)
        tl.store(partials_ptr + part * PARTIAL_WIDTH + KL_THETA, kl_theta, mask=compared)
        tl.store(partials_ptr + part * PARTIAL_WIDTH + KL_TEACHER, kl_teacher, mask=compared)
    if split == 0:
        not_settled = tl.full([ROWS], False, tl.int1)
        store_solution(
            solution_ptr, row, active, done, low, high, delta, value, slope, sound,
            alpha_min, alpha_max, lse_theta, lse_teacher, own_lse, kl_end, not_settled,
        )  # fmt: skip
    still_open = active & (done == 0)
    if tl.max(still_open.to(tl.int32), axis=0) > 0:
        low, high = span_of(low, high)
        peak_low, peak_high, z, r, q, own, peak_own, spread_low, spread_high = tilted_sums(
            teacher_row, theta_row, floor, still_open, low, high,
            ((1.0 - low) * lse_theta + low * lse_teacher) * LOG2_E, (high - low) * (lse_teacher - lse_theta) * LOG2_E,
            begin, end, ROWS, NODES, PAD, SUB, LANES, False, JOIN,
        )  # fmt: skip
        store_reading(
            partials_ptr,
            part,
            still_open,
            peak_low,
            peak_high,
            z,
            r,
            q,
            own,
            peak_own,
            spread_low,
            spread_high,
            PAD,
            False,
        )


@triton.jit(do_not_specialize=["num_rows", "splits"])
def settle_kernel(
    teacher_ptr,  # [rows, V_t] fp32
    teacher_stride,
    theta_ptr,  # [slots, K + 1, V_theta] bf16, fp16 or fp32
    theta_offset_ptr,  # [max_rows] int64, -1 for a row to be left alone
    plan_ptr,  # [max_rows, PLAN_WIDTH] fp32
    read_ptr,  # [rows, splits, PARTIAL_WIDTH] fp32: sums of the second reading
    solution_ptr,  # [max_rows, SOLUTION_WIDTH] fp32, in/out
    num_rows,
    vocab,
    splits,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    SPLITS: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    offset = tl.load(theta_offset_ptr + row, mask=row < num_rows, other=-1)
    (
        done, low, high, delta, value, slope, sound, alpha_min, alpha_max, lse_theta, lse_teacher, own_lse, kl_end, _,
    ) = load_solution(solution_ptr, row, offset >= 0)  # fmt: skip
    reread = done == 0
    if tl.max(reread.to(tl.int32), axis=0) == 0:
        return
    plan = plan_ptr + row * PLAN_WIDTH
    budgeted = reread & (tl.load(plan + METHOD, mask=reread, other=0.0) == KL_BUDGET)
    low, high = span_of(low, high)
    low, high, delta, value, slope, done = solve_next(
        read_ptr, row, reread, low, high, alpha_min, alpha_max, lse_theta, lse_teacher, splits, NODES, PAD, SPLITS
    )
    done = done & (budgeted == 0)
    low = tl.where(budgeted, 0.0, low)
    high = tl.where(budgeted, 1.0, high)
    still_open = reread & (done == 0)
    if tl.max(still_open.to(tl.int32), axis=0) > 0:
        floor = tl.load(plan + FLOOR, mask=still_open, other=0.0)
        alpha, alpha_value, alpha_slope = settle_alpha(
            (teacher_ptr + row * teacher_stride)[:, None],
            (theta_ptr + tl.where(still_open, offset, 0))[:, None],
            floor,
            still_open,
            tl.minimum(tl.maximum(low, alpha_min), alpha_max),
            tl.minimum(tl.maximum(high, alpha_min), alpha_max),
            budgeted,
            tl.load(plan + BUDGET, mask=still_open, other=0.0),
            lse_theta,
            lse_teacher,
            vocab,
            ROWS,
            LANES,
        )
        low = tl.where(still_open, alpha, low)
        delta = tl.where(still_open, 0.0, delta)
        value = tl.where(still_open, alpha_value, value)
        slope = tl.where(still_open, alpha_slope, slope)
    # inf - inf and nan - nan are nan
    sound = sound & ((value - value) + (slope - slope) == 0.0)
    store_solution(
        solution_ptr, row, reread, done | reread, low, high, delta, value, slope, sound,
        alpha_min, alpha_max, lse_theta, lse_teacher, own_lse, kl_end, still_open,
    )  # fmt: skip


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
    (
        _, low, _, delta, value, slope, sound, _, _, lse_theta, lse_teacher, own_lse, kl_end, exact,
    ) = load_solution(solution_ptr, row, active)  # fmt: skip

    plan = plan_ptr + row * PLAN_WIDTH
    method = tl.load(plan + METHOD, mask=active, other=0.0)
    arithmetic = method == ARITHMETIC
    mixed = active & (tl.load(plan + MIXED, mask=active, other=0.0) != 0.0)
    max_js = tl.load(plan + MAX_JS, mask=active, other=float("inf"))
    floor = tl.load(plan + FLOOR, mask=active, other=0.0)
    parts = compared_ptr + (row[:, None] * splits + tl.arange(0, SPLITS)[None, :]) * PARTIAL_WIDTH
    compared = active & sound & (arithmetic | (max_js < float("inf")))
    inside = compared[:, None] & (tl.arange(0, SPLITS)[None, :] < splits)
    js = tl.sum(tl.load(parts + JS, mask=inside, other=0.0), axis=1)
    alone = (sound == 0) | (js > max_js) | (mixed == 0)
    alpha = tl.where(alone, 1.0, low + delta)
    log_z = value + (1.0 - alpha) * lse_theta + alpha * lse_teacher

    if split == 0:
        geometric_theta = tl.maximum(alpha * slope - value, 0.0)
        # The budget holds, but for rounding, unless alpha was raised to its lower bound.
        budget = tl.load(plan + BUDGET, mask=active, other=0.0)
        alpha_min = tl.load(plan + ALPHA_MIN, mask=active, other=0.0)
        within = (method == KL_BUDGET) & ((alpha > alpha_min) | (alpha == 0.0))
        geometric_theta = tl.where(within, tl.minimum(geometric_theta, budget), geometric_theta)
        geometric_teacher = tl.maximum((alpha - 1.0) * slope - value, 0.0)
        sum_theta = tl.sum(tl.load(parts + KL_THETA, mask=inside, other=0.0), axis=1)
        sum_teacher = tl.sum(tl.load(parts + KL_TEACHER, mask=inside, other=0.0), axis=1)
        kl_theta = tl.where(alone, kl_end, tl.where(arithmetic, tl.maximum(sum_theta, 0.0), geometric_theta))
        kl_teacher = tl.where(alone, 0.0, tl.where(arithmetic, tl.maximum(sum_teacher, 0.0), geometric_teacher))
        kind = tl.where(alone, TEACHER_ALONE, tl.where(arithmetic, ARITHMETIC_MIXTURE, GEOMETRIC_MIXTURE))
        restricted = tl.load(plan + RESTRICTED, mask=active, other=0.0) != 0.0
        full_teacher_lse = tl.load(plan + TEACHER_LSE, mask=active & restricted, other=0.0)
        full_theta_lse = tl.load(plan + THETA_LSE, mask=active & restricted, other=0.0)
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
        tl.store(teacher_lse_ptr + entry, tl.where(restricted, full_teacher_lse, own_lse), mask=active)
        tl.store(theta_lse_ptr + entry, tl.where(restricted, full_theta_lse, lse_theta), mask=active)

    written = active & (alone == 0)
    if tl.max(written.to(tl.int32), axis=0) == 0:
        return
    exact = exact & written
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


def launch(
    teacher_logits: torch.Tensor,
    theta_logits: torch.Tensor,
    slots: torch.Tensor,
    draft_positions: torch.Tensor,
    token_positions: torch.Tensor,
    settings: MixSettings,
    record: MixRecord,
    scratch: MixScratch,
    shape: LaunchShape,
) -> None:
    """The five kernels, at a given launch shape. Checks nothing; `mix_` does."""
    num_rows, teacher_vocab = teacher_logits.shape
    num_slots, num_positions, theta_vocab = theta_logits.shape
    vocab = min(teacher_vocab, theta_vocab)
    blocks = -(-num_rows // shape.rows)
    grid = (blocks, shape.splits)
    splits = triton.next_power_of_2(shape.splits)
    partials = [scratch.partials[reading * num_rows * shape.splits :] for reading in range(READINGS)]
    rows = (teacher_logits, teacher_logits.stride(0), theta_logits)
    plan_kernel[(blocks,)](
        *rows,
        theta_logits.stride(0),
        theta_logits.stride(1),
        slots,
        draft_positions,
        token_positions,
        settings.first_position,
        settings.method,
        settings.alpha,
        settings.alpha_min,
        settings.alpha_max,
        settings.support_top_k,
        settings.support_top_p,
        settings.max_js_divergence,
        settings.kl_budget,
        settings.js_sensitivity,
        settings.alpha_end,
        settings.alpha_min_end,
        settings.alpha_max_end,
        settings.kl_budget_end,
        settings.schedule_position,
        settings.schedule_steps,
        scratch.theta_offset,
        scratch.entry,
        scratch.plan,
        num_rows,
        num_slots,
        num_positions,
        vocab,
        ROWS=shape.rows,
        NODES=NODES.value,
        PAD=PAD.value,
        LANES=shape.lanes,
        num_warps=shape.plan_warps,
    )
    read_kernel[grid](
        *rows,
        scratch.theta_offset,
        scratch.plan,
        partials[0],
        num_rows,
        vocab,
        shape.split_size,
        ROWS=shape.rows,
        SUB=shape.sub,
        LANES=shape.lanes,
        JOIN=shape.join,
        num_warps=shape.num_warps,
    )
    refine_kernel[grid](
        *rows,
        scratch.theta_offset,
        scratch.plan,
        partials[0],
        partials[1],
        scratch.solutions,
        num_rows,
        vocab,
        shape.split_size,
        shape.splits,
        ROWS=shape.rows,
        SPLITS=splits,
        SUB=shape.refine_sub,
        LANES=shape.lanes,
        JOIN=shape.join,
        num_warps=shape.num_warps,
    )
    settle_kernel[(blocks,)](
        *rows,
        scratch.theta_offset,
        scratch.plan,
        partials[1],
        scratch.solutions,
        num_rows,
        vocab,
        shape.splits,
        ROWS=shape.rows,
        LANES=shape.lanes,
        SPLITS=splits,
        num_warps=shape.plan_warps,
    )
    write_kernel[grid](
        *rows,
        scratch.theta_offset,
        scratch.entry,
        scratch.plan,
        partials[1],
        scratch.solutions,
        record.alpha,
        record.kl_theta,
        record.kl_teacher,
        record.fallback,
        record.kind,
        record.log_z,
        record.floor,
        record.mixed_teacher_lse,
        record.mixed_theta_lse,
        record.teacher_lse,
        record.theta_lse,
        num_rows,
        teacher_vocab,
        vocab,
        shape.split_size,
        shape.splits,
        ROWS=shape.rows,
        BLOCK=shape.block,
        SPLITS=splits,
        num_warps=shape.num_warps,
    )


def mix_(
    teacher_logits: torch.Tensor,
    theta_logits: torch.Tensor,
    slots: torch.Tensor,
    draft_positions: torch.Tensor,
    token_positions: torch.Tensor,
    settings: MixSettings,
    record: MixRecord,
    scratch: MixScratch,
) -> None:
    """Overwrite the teacher's rows that are to be mixed with log q*.

    Args:
        teacher_logits: `[rows, V_t]` float32, changed in place; any row stride, the last dimension contiguous.
        theta_logits: `[slots, K + 1, V_theta]` bf16, fp16 or fp32; any outer strides, the last dimension contiguous.
        slots: `[rows]` int32, the request slot of each row; a row whose slot is out of range is skipped.
        draft_positions: `[rows]` int32, which of theta's rows belongs to it, 0..K; out of range is skipped.
        token_positions: `[rows]` int64, the teacher position of each row's input token.
        settings: what each slot asks for.
        record: what is left behind, per (slot, draft position).
        scratch: working memory.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: a tensor has the wrong device, shape or strides, or the scratch is too small.
    """
    check_rows(teacher_logits, theta_logits, slots, draft_positions, record, teacher_dtypes=(torch.float32,))
    num_rows, device = teacher_logits.shape[0], teacher_logits.device
    check_tensor("token_positions", token_positions, dtypes=(torch.int64,), shape=(num_rows,), device=device)
    num_slots = theta_logits.shape[0]
    check_tensor("settings.alpha", settings.alpha, dtypes=(torch.float32,), shape=(num_slots,), device=device)
    scratch.check(num_rows, teacher_logits.shape[1], device)
    if num_rows == 0:
        return
    vocab = min(teacher_logits.shape[1], theta_logits.shape[2])
    shape = LaunchShape.choose(num_rows, vocab, interpreted=teacher_logits.is_cpu)
    launch(teacher_logits, theta_logits, slots, draft_positions, token_positions, settings, record, scratch, shape)
