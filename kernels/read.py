"""First kernel of every mix: the sums of its rows at alpha 0, 1/4, .., 1, and how partial sums are kept and reduced.

Every split of a row leaves the sums of its own tokens. The consumers of a reading reduce them again, each for itself: no
atomics, no kernel only for that.
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from . import scratch
from .columns import (
    ENTROPY,
    PARTIAL_OWN,
    PARTIAL_PEAK_HIGH,
    PARTIAL_PEAK_LOW,
    PARTIAL_PEAK_OWN,
    PARTIAL_Q,
    PARTIAL_R,
    PARTIAL_SPREAD_HIGH,
    PARTIAL_SPREAD_LOW,
    PARTIAL_WIDTH,
    PARTIAL_Z,
    load_plan,
)
from .plan import read_settings, store_plan
from .quick_sums import quick_sums
from .tilt import NOTHING, Reading, move_peaks, tilted_sums

FIRST_NODES = tl.constexpr(5)
FIRST_PAD = tl.constexpr(8)
THETA_UNIT = tl.constexpr(scratch.THETA_UNIT)


@triton.jit
def store_reading(
    partials_ptr,
    part,  # [ROWS] int64: row and split of this program
    active,  # [ROWS]
    reading,
    PAD: tl.constexpr,
    FIRST: tl.constexpr,
):
    out = partials_ptr + part * PARTIAL_WIDTH
    tl.store(out + PARTIAL_PEAK_LOW, reading.peak_low, mask=active)
    tl.store(out + PARTIAL_PEAK_HIGH, reading.peak_high, mask=active)
    if FIRST:
        tl.store(out + PARTIAL_OWN, reading.own, mask=active)
        tl.store(out + PARTIAL_PEAK_OWN, reading.peak_own, mask=active)
        tl.store(out + PARTIAL_SPREAD_LOW, reading.spread_low, mask=active)
        tl.store(out + PARTIAL_SPREAD_HIGH, reading.spread_high, mask=active)
    nodes = out[:, None] + tl.arange(0, PAD)[None, :]
    tl.store(nodes + PARTIAL_Z, reading.z, mask=active[:, None])
    tl.store(nodes + PARTIAL_R, reading.r, mask=active[:, None])
    tl.store(nodes + PARTIAL_Q, reading.q, mask=active[:, None])


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
    """The `Reading` of all splits."""
    split = tl.arange(0, SPLITS)[None, :]
    inside = active[:, None] & (split < splits)
    parts = partials_ptr + (row[:, None] * splits + split) * PARTIAL_WIDTH
    peaks_low = tl.load(parts + PARTIAL_PEAK_LOW, mask=inside, other=NOTHING)
    peaks_high = tl.load(parts + PARTIAL_PEAK_HIGH, mask=inside, other=NOTHING)
    index = tl.arange(0, PAD)[None, None, :]
    nodes = parts[:, :, None] + index
    wanted = inside[:, :, None] & (index < NODES)
    z = tl.load(nodes + PARTIAL_Z, mask=wanted, other=0.0)
    r = tl.load(nodes + PARTIAL_R, mask=wanted, other=0.0)
    q = tl.load(nodes + PARTIAL_Q, mask=wanted, other=0.0)
    peak_low = tl.max(peaks_low, axis=1)
    peak_high = tl.max(peaks_high, axis=1)
    fall_low = peaks_low - peak_low[:, None]
    fall_high = peaks_high - peak_high[:, None]
    own = peak_low
    peak_own = peak_low
    spread_low = peak_low
    spread_high = peak_low
    if FIRST:
        peaks_own = tl.load(parts + PARTIAL_PEAK_OWN, mask=inside, other=NOTHING)
        peak_own = tl.max(peaks_own, axis=1)
        own = tl.sum(
            tl.load(parts + PARTIAL_OWN, mask=inside, other=0.0) * tl.exp2(peaks_own - peak_own[:, None]), axis=1
        )
        z_low = tl.load(parts + PARTIAL_Z, mask=inside, other=0.0)
        z_high = tl.load(parts + PARTIAL_Z + (NODES - 1), mask=inside, other=0.0)
        spreads_low = tl.load(parts + PARTIAL_SPREAD_LOW, mask=inside, other=0.0) + fall_low * z_low
        spreads_high = tl.load(parts + PARTIAL_SPREAD_HIGH, mask=inside, other=0.0) + fall_high * z_high
        spread_low = tl.sum(spreads_low * tl.exp2(fall_low), axis=1)
        spread_high = tl.sum(spreads_high * tl.exp2(fall_high), axis=1)
    tau = index / (NODES - 1)
    z, r, q = move_peaks(z, r, q, fall_low[:, :, None], fall_high[:, :, None], tau)
    return Reading(
        peak_low=peak_low,
        peak_high=peak_high,
        z=tl.sum(z, axis=1),
        r=tl.sum(r, axis=1),
        q=tl.sum(q, axis=1),
        own=own,
        peak_own=peak_own,
        spread_low=spread_low,
        spread_high=spread_high,
    )


# Calls take any slice of a step's rows: neither their number nor the alignment of a slice is worth a compilation, and neither
# are the numbers of requests and drafts of an engine.
@triton.jit(
    do_not_specialize=["num_rows", "num_slots", "num_positions"],
    do_not_specialize_on_alignment=["slots_ptr", "draft_positions_ptr", "token_positions_ptr"],
)
def read_kernel(
    teacher_ptr,  # [rows, V_t] fp32
    teacher_stride,
    theta_ptr,  # [slots, K + 1, V_theta] bf16, fp16 or fp32
    theta_slot_stride,
    theta_position_stride,
    slots_ptr,  # [rows] int32 or int64
    draft_positions_ptr,  # [rows] int32
    token_positions_ptr,  # [rows] int64
    first_position_ptr,  # [slots]; so are the following: `MixSettings`
    method_ptr,
    alpha_ptr,
    alpha_min_ptr,
    alpha_max_ptr,
    support_top_k_ptr,
    support_top_p_ptr,
    max_js_divergence_ptr,
    kl_budget_ptr,
    js_sensitivity_ptr,
    alpha_end_ptr,
    alpha_min_end_ptr,
    alpha_max_end_ptr,
    kl_budget_end_ptr,
    schedule_position_ptr,
    schedule_steps_ptr,
    theta_offset_ptr,  # [max_rows] int64, out: elements to theta's row; -1 for a row to be left alone
    entry_ptr,  # [max_rows] int64, out: element of the record
    plan_ptr,  # [max_rows, PLAN_WIDTH] fp32, out but for rows that were searched
    partials_ptr,  # [rows, splits, PARTIAL_WIDTH] fp32, out
    num_rows,
    num_slots,
    num_positions,
    vocab,
    split_size,
    ROWS: tl.constexpr,
    SUB: tl.constexpr,
    LANES: tl.constexpr,
    JOIN: tl.constexpr,
    QUICK_LANES: tl.constexpr,
    EACH: tl.constexpr,  # tokens of a lane of the quick reading; 0: there is none
    ALIGNED: tl.constexpr,  # theta's rows begin at addresses that 16 divides
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    split = tl.program_id(1)
    asked = read_settings(
        row, theta_slot_stride, theta_position_stride, slots_ptr, draft_positions_ptr, token_positions_ptr,
        first_position_ptr, method_ptr, alpha_ptr, alpha_min_ptr, alpha_max_ptr, support_top_k_ptr, support_top_p_ptr,
        max_js_divergence_ptr, kl_budget_ptr, js_sensitivity_ptr, alpha_end_ptr, alpha_min_end_ptr, alpha_max_end_ptr,
        kl_budget_end_ptr, schedule_position_ptr, schedule_steps_ptr, num_rows, num_slots, num_positions, ROWS,
    )  # fmt: skip
    active = asked.active
    offset = asked.offset
    plan = asked.plan
    if split == 0:
        tl.store(theta_offset_ptr + row, offset, mask=row < num_rows)
        tl.store(entry_ptr + row, asked.entry, mask=active)
        store_plan(plan_ptr, row, active & (asked.searched == 0), plan)
    if tl.max(active.to(tl.int32), axis=0) == 0:
        return
    floor = tl.where(asked.searched, load_plan(plan_ptr, row, asked.searched).floor, plan.floor)
    low = tl.full([ROWS], 0.0, tl.float32)
    begin = split * split_size
    end = tl.minimum(begin + split_size, vocab)
    part = row * tl.num_programs(1) + split
    teacher_row = (teacher_ptr + row * teacher_stride)[:, None]
    offset = tl.where(active, offset, 0)
    if ALIGNED:
        # Said by arithmetic: Triton 3.9 forgets the hint `tl.multiple_of`.
        offset = offset // THETA_UNIT * THETA_UNIT
    theta_row = (theta_ptr + offset)[:, None]
    if EACH > 0:
        quick = active & (plan.method != ENTROPY)
        if tl.max(quick.to(tl.int32), axis=0) > 0:
            quick_reading, good = quick_sums(
                teacher_row, theta_row, floor, quick, begin, end, ROWS, QUICK_LANES, EACH, JOIN
            )
            quick = quick & good
            store_reading(partials_ptr, part, quick, quick_reading, FIRST_PAD, True)
            active = active & (quick == 0)
            if tl.max(active.to(tl.int32), axis=0) == 0:
                return
    reading = tilted_sums(
        teacher_row=teacher_row,
        theta_row=theta_row,
        floor=floor,
        active=active,
        low=low,
        high=low + 1.0,
        shift_low=low,
        shift_span=low,
        begin=begin,
        end=end,
        ROWS=ROWS,
        NODES=FIRST_NODES,
        PAD=FIRST_PAD,
        SUB=SUB,
        LANES=LANES,
        FIRST=True,
        JOIN=JOIN,
    )
    store_reading(partials_ptr, part, active, reading, FIRST_PAD, True)
