"""Mix the teacher's rows with theta's, in place: every row that asks for it becomes log q*.

The mathematics
    q*(y) = theta(y)^(1 - alpha) teacher(y)^alpha / Z(alpha), alpha by the row's method; `tilt.py` and `solution.py` say
    how. `ARITHMETIC` is q(y) = alpha teacher(y) + (1 - alpha) theta(y).

The passes (rows x splits programs each, four launches, no atomics, no host sync, no allocation)
    search  only in calls that ask for it: the support's floor, the balanced or gated alpha; a launch each (`search.py`)
    read    settings of each row (`plan.py`), both rows at alpha 0, 1/4, .., 1 (`read.py`)
    refine  solve; read the open cell (1/4) again at nine alphas, and the divergences of rows that need them (`refine.py`)
    settle  solve; what is open still is read by one program a row until it is closed (`settle.py`)
    write   log q*, and the record; rows in reverse, so that what `read` touched last is still in L2 (`write.py`)
    `refine` and `settle` of a row that is solved, and has no divergence to compare, return at once.

What it costs the host: the first call of a kind launches the kernels as Triton does and keeps what that compiled; calls after
it launch that (`prepared_launch.py`), and check only that nothing but contents, addresses and the number of rows has changed.

What it costs, per element of an ordinary row: 6 bytes and 6 exponentials to read (theta in bf16; about 45
instructions), 10 bytes and no exponential to write: 16 bytes against the floor of 10 (teacher read and written once,
theta read once). The second reading costs 6 bytes and 9 exponentials. Rows whose teacher and theta differ by noise of 1.4
nats are all done after the first reading, 99 % of those with 2.0 nats, 86 % with 2.8 (96 rows of 3,000 tokens); `settle`
has work from noise of 7 nats on (1 % of the rows; 15 % at 13, 65 % at 21).
`KL_BUDGET` is read as often as KL symmetry or once more: with noise of 1.4 nats 81 % of the rows are done after the first
reading for a budget of 0.1, 27 % for 0.01, all after the second; from 1e-3 down `settle` has most of them, since sums of
float32 do not know so small a budget (64 rows of 3,000 tokens). `search` reads rows more often, one program each: for `JS_GATE`
twice, for `ESS_BALANCE` four times, for a limit of the support twice, for one that leaves thousands of tokens five times.
Rows that are not mixed: a few loads per program.

A row's tokens, and what happens to a row that cannot be mixed
    Tokens at -inf (at or below -1e4) in either row have no mass in q and take no part in alpha, and neither do those
    from min(V_t, V_theta) on. `ARITHMETIC` needs a token in the teacher's row only: -inf there is taken for a grammar's
    and binds both models, -inf in theta's row is theta's own. A row is left to the teacher, bit for bit and flagged, if
    no token is allowed by both, if a logit of either row is nan or +inf, or if the
    Jensen-Shannon divergence is above the request's limit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

from .checks import check_rows, check_tensor
from .prepared_launch import Launch, PreparedLaunch, current_device, current_stream
from .read import read_kernel
from .record import MixRecord
from .refine import refine_kernel
from .scratch import READINGS, THETA_UNIT, LaunchShape, MixScratch
from .search import search_kernel
from .settings import MixSettings, Search
from .settle import settle_kernel
from .write import write_kernel

INTERPRETED = not isinstance(read_kernel, triton.runtime.JITFunction)

CHANGING = (
    "teacher_ptr",
    "theta_ptr",
    "slots_ptr",
    "draft_positions_ptr",
    "token_positions_ptr",
    "num_rows",
    "split_size",
    "splits",
)
"""Arguments of the kernels in which calls of the same `Variant` differ."""
DIVISIBLE = ("teacher_ptr", "theta_ptr", "split_size")
"""Those of them that Triton asks whether 16 divides them, as the variant's key does."""
MOST_FORMS, MOST_VARIANTS = 16384, 256
"""How many a scratch remembers. A form for each number of rows and a few variants are usual."""


class Rows(NamedTuple):
    """The tensors of a call that its `settings`, `record` and `scratch` do not hold; `mix_` describes them."""

    teacher_logits: torch.Tensor
    theta_logits: torch.Tensor
    slots: torch.Tensor
    draft_positions: torch.Tensor
    token_positions: torch.Tensor


Grid = tuple[int, int, int]


def grids(num_rows: int, shape: LaunchShape) -> tuple[Grid, Grid]:
    """Programs of the kernels that take whole rows, and of those that take parts of them."""
    blocks = -(-num_rows // shape.rows)
    return (blocks, 1, 1), (blocks, shape.splits, 1)


class Step(NamedTuple):
    """One kernel of a call."""

    launch: Launch
    is_of_parts: bool
    """Whether its programs take parts of rows, or whole ones."""


def launches(
    rows: Rows,
    settings: MixSettings,
    record: MixRecord,
    scratch: MixScratch,
    shape: LaunchShape,
    searches: Search = Search.ALL,
) -> list[Step]:
    """The kernels of a call, at a given launch shape."""
    num_rows, teacher_vocab = rows.teacher_logits.shape
    num_slots, num_positions, theta_vocab = rows.theta_logits.shape
    of_rows, of_parts = grids(num_rows, shape)
    splits = triton.next_power_of_2(shape.splits)
    first, second = scratch.partials.chunk(READINGS)
    logits = {
        "teacher_ptr": rows.teacher_logits,
        "teacher_stride": rows.teacher_logits.stride(0),
        "theta_ptr": rows.theta_logits,
        "plan_ptr": scratch.plan,
        "num_rows": num_rows,
        "vocab": min(teacher_vocab, theta_vocab),
    }
    asked = logits | {
        "theta_slot_stride": rows.theta_logits.stride(0),
        "theta_position_stride": rows.theta_logits.stride(1),
        "slots_ptr": rows.slots,
        "draft_positions_ptr": rows.draft_positions,
        "token_positions_ptr": rows.token_positions,
        **{f"{name}_ptr": tensor for name, tensor in vars(settings).items()},
        "num_slots": num_slots,
        "num_positions": num_positions,
    }
    common = logits | {"theta_offset_ptr": scratch.theta_offset}
    search = asked | {"ROWS": shape.rows, "SUB": shape.sub, "LANES": shape.search_lanes}
    read = asked | {
        "theta_offset_ptr": scratch.theta_offset,
        "entry_ptr": scratch.entry,
        "partials_ptr": first,
        "split_size": shape.split_size,
        "ROWS": shape.rows,
        "SUB": shape.sub,
        "LANES": shape.lanes,
        "JOIN": shape.join,
        "QUICK_LANES": shape.quick_lanes,
        "EACH": shape.each,
        "ALIGNED": is_aligned(rows.theta_logits),
    }
    refine = common | {
        "read_ptr": first,
        "partials_ptr": second,
        "solution_ptr": scratch.solutions,
        "split_size": shape.split_size,
        "splits": shape.splits,
        "ROWS": shape.rows,
        "SPLITS": splits,
        "SUB": shape.refine_sub,
        "LANES": shape.lanes,
        "JOIN": shape.join,
    }
    settle = common | {
        "read_ptr": second,
        "solution_ptr": scratch.solutions,
        "splits": shape.splits,
        "ROWS": shape.rows,
        "LANES": shape.lanes,
        "SPLITS": shape.settle_splits,
    }
    write = common | {
        "entry_ptr": scratch.entry,
        "compared_ptr": second,
        "solution_ptr": scratch.solutions,
        "alpha_ptr": record.alpha,
        "kl_theta_ptr": record.kl_theta,
        "kl_teacher_ptr": record.kl_teacher,
        "fallback_ptr": record.fallback,
        "kind_ptr": record.kind,
        "log_z_ptr": record.log_z,
        "floor_ptr": record.floor,
        "mixed_teacher_lse_ptr": record.mixed_teacher_lse,
        "mixed_theta_lse_ptr": record.mixed_theta_lse,
        "teacher_lse_ptr": record.teacher_lse,
        "theta_lse_ptr": record.theta_lse,
        "teacher_vocab": teacher_vocab,
        "split_size": shape.split_size,
        "splits": shape.splits,
        "ROWS": shape.rows,
        "BLOCK": shape.block,
        "SPLITS": splits,
    }
    return [
        *(
            Step(Launch(search_kernel, of_rows, search | {"SEARCH": int(one)}, shape.search_warps), is_of_parts=False)
            for one in Search
            if one in searches
        ),
        Step(Launch(read_kernel, of_parts, read, shape.num_warps), is_of_parts=True),
        Step(Launch(refine_kernel, of_parts, refine, shape.num_warps), is_of_parts=True),
        Step(Launch(settle_kernel, of_rows, settle, shape.settle_warps), is_of_parts=False),
        Step(Launch(write_kernel, of_parts, write, shape.num_warps), is_of_parts=True),
    ]


def is_aligned(theta_logits: torch.Tensor) -> bool:
    """Whether all of theta's rows can be loaded by 16 bytes."""
    slot_stride, position_stride, _ = theta_logits.stride()
    return (slot_stride % THETA_UNIT, position_stride % THETA_UNIT, theta_logits.data_ptr() % 16) == (0, 0, 0)


class Variant:
    """Calls that are alike but for `CHANGING`: the same compiled kernels on the same settings, record and scratch."""

    def __init__(self, settings: MixSettings, record: MixRecord, searches: Search):
        self.settings = settings
        self.record = record
        self.searches = searches
        self.is_new = True
        self.prepared: list[tuple[PreparedLaunch, bool]] = []
        """Each with whether its programs take parts of rows."""

    def run(self, rows: Rows, scratch: MixScratch, shape: LaunchShape, device: int | None) -> None:
        """Launch the kernels of a call. Checks nothing."""
        if self.prepared and device is not None:
            teacher_logits, theta_logits, slots, draft_positions, token_positions = rows
            num_rows = teacher_logits.shape[0]
            values = {
                "teacher_ptr": teacher_logits.data_ptr(),
                "theta_ptr": theta_logits.data_ptr(),
                "slots_ptr": slots.data_ptr(),
                "draft_positions_ptr": draft_positions.data_ptr(),
                "token_positions_ptr": token_positions.data_ptr(),
                "num_rows": num_rows,
                "split_size": shape.split_size,
                "splits": shape.splits,
            }
            stream = current_stream(device)
            of_rows, of_parts = grids(num_rows, shape)
            for prepared, is_of_parts in self.prepared:
                prepared.run(of_parts if is_of_parts else of_rows, stream, values)
            return
        steps = launches(rows, self.settings, self.record, scratch, shape, self.searches)
        compiled = [step.launch() for step in steps]
        if self.is_new:
            self.is_new = False
            for step, kernel in zip(steps, compiled, strict=True):
                again = PreparedLaunch.of(step.launch, kernel, CHANGING, DIVISIBLE)
                if again is None:
                    self.prepared.clear()
                    break
                self.prepared.append((again, step.is_of_parts))


class Form(NamedTuple):
    """Calls of one form, which has been checked: the same shapes, strides, dtypes, devices and alignments."""

    shape: LaunchShape
    variant: Variant


def variant_of(
    rows: Rows,
    settings: MixSettings,
    record: MixRecord,
    scratch: MixScratch,
    shape: LaunchShape,
    searches: Search,
    device: int | None,
) -> Variant:
    """The variant of a call, new if there was none like it."""
    teacher_logits, theta_logits, slots, _, _ = rows
    key = (
        device,
        id(settings),
        id(record),
        teacher_logits.shape[1],
        teacher_logits.stride(0),
        teacher_logits.data_ptr() % 16,
        theta_logits.shape,
        theta_logits.stride(),
        theta_logits.dtype,
        theta_logits.data_ptr() % 16,
        slots.dtype,
        shape.compiled_for,
        searches,
    )
    variant = scratch.variants.get(key)
    if variant is None:
        if len(scratch.variants) >= MOST_VARIANTS:
            scratch.variants.clear()
            scratch.forms.clear()
        variant = scratch.variants[key] = Variant(settings, record, searches)
    return variant


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
    searches: Search = Search.ALL,
) -> None:
    """What `mix_` does, at a given launch shape. Checks nothing."""
    rows = Rows(teacher_logits, theta_logits, slots, draft_positions, token_positions)
    device = None if INTERPRETED else current_device()
    variant_of(rows, settings, record, scratch, shape, searches, device).run(rows, scratch, shape, device)


def check_call(rows: Rows, settings: MixSettings, record: MixRecord, scratch: MixScratch) -> None:
    """Raise what `mix_` raises."""
    teacher_logits, theta_logits, slots, draft_positions, token_positions = rows
    check_rows(teacher_logits, theta_logits, slots, draft_positions, record, teacher_dtypes=(torch.float32,))
    num_rows, device = teacher_logits.shape[0], teacher_logits.device
    check_tensor("token_positions", token_positions, dtypes=(torch.int64,), shape=(num_rows,), device=device)
    num_slots = theta_logits.shape[0]
    check_tensor("settings.alpha", settings.alpha, dtypes=(torch.float32,), shape=(num_slots,), device=device)
    scratch.check(num_rows, teacher_logits.shape[1], device)


def mix_(
    teacher_logits: torch.Tensor,
    theta_logits: torch.Tensor,
    slots: torch.Tensor,
    draft_positions: torch.Tensor,
    token_positions: torch.Tensor,
    settings: MixSettings,
    record: MixRecord,
    scratch: MixScratch,
    searches: Search = Search.ALL,
) -> None:
    """Overwrite the teacher's rows that are to be mixed with log q*.

    Args:
        teacher_logits: `[rows, V_t]` float32, changed in place; any row stride, the last dimension contiguous.
        theta_logits: `[slots, K + 1, V_theta]` bf16, fp16 or fp32; any outer strides, the last dimension contiguous.
        slots: `[rows]` int32 or int64, the request slot of each row; a row whose slot is out of range is skipped.
        draft_positions: `[rows]` int32, which of theta's rows belongs to it, 0..K; out of range is skipped.
        token_positions: `[rows]` int64, the teacher position of each row's input token.
        settings: what each slot asks for.
        record: what is left behind, per (slot, draft position).
        scratch: working memory.
        searches: at least what `Search.of` says of every slot that these rows have. A slot that asks for more than is named
            here is mixed wrongly; what is named too much costs a launch.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: a tensor has the wrong device, shape or strides, or the scratch is too small.
    """
    device = None if INTERPRETED else current_device()
    key = (
        device,
        id(settings),
        id(record),
        searches,
        teacher_logits.shape,
        teacher_logits.stride(),
        teacher_logits.dtype,
        teacher_logits.device,
        teacher_logits.data_ptr() % 16,
        theta_logits.shape,
        theta_logits.stride(),
        theta_logits.dtype,
        theta_logits.device,
        theta_logits.data_ptr() % 16,
        slots.shape,
        slots.stride(),
        slots.dtype,
        slots.device,
        draft_positions.shape,
        draft_positions.stride(),
        draft_positions.dtype,
        draft_positions.device,
        token_positions.shape,
        token_positions.stride(),
        token_positions.dtype,
        token_positions.device,
    )
    rows = Rows(teacher_logits, theta_logits, slots, draft_positions, token_positions)
    form = scratch.forms.get(key)
    if form is None:
        check_call(rows, settings, record, scratch)
        num_rows = teacher_logits.shape[0]
        if num_rows == 0:
            return
        vocab = min(teacher_logits.shape[1], theta_logits.shape[2])
        shape = LaunchShape.choose(num_rows, vocab, interpreted=INTERPRETED)
        form = Form(shape, variant_of(rows, settings, record, scratch, shape, searches, device))
        if len(scratch.forms) >= MOST_FORMS:
            scratch.forms.clear()
        scratch.forms[key] = form
    form.variant.run(rows, scratch, form.shape, device)
