"""Second kernel of a mix: solve for alpha, and read again the cell of the rows that are still open.

The second reading has nine nodes in a cell of 1/4. The divergences of the rows that compare theirs with a limit, or whose
mixture is arithmetic, are summed here too: both need the normalisers of the first reading.
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from .columns import (
    ARITHMETIC,
    PARTIAL_JS,
    PARTIAL_KL_TEACHER,
    PARTIAL_KL_THETA,
    PARTIAL_WIDTH,
    load_plan,
)
from .divergences import divergence_sums
from .read import FIRST_NODES, FIRST_PAD, store_reading
from .solution import NODES, PAD, solve_first, span_of, store_solution
from .tilt import LOG2_E, tilted_sums


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
    plan = load_plan(plan_ptr, row, active)
    part = row * splits + split
    begin = split * split_size
    end = tl.minimum(begin + split_size, vocab)
    arithmetic = active & (plan.method == ARITHMETIC)
    solution = solve_first(
        partials_ptr=read_ptr,
        row=row,
        active=active,
        method=plan.method,
        arithmetic=arithmetic,
        alpha_min=plan.alpha_min,
        alpha_max=plan.alpha_max,
        budget=plan.budget,
        splits=splits,
        ROWS=ROWS,
        NODES=FIRST_NODES,
        PAD=FIRST_PAD,
        SPLITS=SPLITS,
    )
    compared = active & solution.sound & (arithmetic | (plan.max_js < float("inf")))
    if tl.max(compared.to(tl.int32), axis=0) > 0:
        divergences = divergence_sums(
            teacher_row, theta_row, plan.floor, compared, arithmetic, solution.alpha_min, solution.lse_theta,
            solution.lse_teacher, begin, end, ROWS, LANES,
        )  # fmt: skip
        out = partials_ptr + part * PARTIAL_WIDTH
        tl.store(out + PARTIAL_JS, divergences.js, mask=compared)
        tl.store(out + PARTIAL_KL_THETA, divergences.kl_theta, mask=compared)
        tl.store(out + PARTIAL_KL_TEACHER, divergences.kl_teacher, mask=compared)
    if split == 0:
        store_solution(solution_ptr, row, active, solution)
    still_open = active & (solution.done == 0)
    if tl.max(still_open.to(tl.int32), axis=0) > 0:
        low, high = span_of(solution.low, solution.high)
        lse_theta = solution.lse_theta
        lse_teacher = solution.lse_teacher
        reading = tilted_sums(
            teacher_row=teacher_row,
            theta_row=theta_row,
            floor=plan.floor,
            active=still_open,
            low=low,
            high=high,
            shift_low=((1.0 - low) * lse_theta + low * lse_teacher) * LOG2_E,
            shift_span=(high - low) * (lse_teacher - lse_theta) * LOG2_E,
            begin=begin,
            end=end,
            ROWS=ROWS,
            NODES=NODES,
            PAD=PAD,
            SUB=SUB,
            LANES=LANES,
            FIRST=False,
            JOIN=JOIN,
        )
        store_reading(partials_ptr, part, still_open, reading, PAD, False)
