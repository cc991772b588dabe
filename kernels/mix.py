"""Mix the teacher's rows with theta's, in place: every row that asks for it becomes log q*.

The mathematics
    q*(y) = theta(y)^(1 - alpha) teacher(y)^alpha / Z(alpha), alpha by the row's method; `tilt.py` and `solution.py` say
    how. `ARITHMETIC` is q(y) = alpha teacher(y) + (1 - alpha) theta(y).

The passes (rows x splits programs each, five launches, no atomics, no host sync, no allocation)
    plan    settings of each row; the support's floor, the balanced or gated alpha for rows that ask for it (`plan.py`)
    read    both rows at alpha 0, 1/4, .., 1 (`read.py`)
    refine  solve; read the open cell (1/4) again at nine alphas, and the divergences of rows that need them (`refine.py`)
    settle  solve; what is open still is read by one program a row until it is closed (`settle.py`)
    write   log q*, and the record; rows in reverse, so that what `read` touched last is still in L2 (`write.py`)
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

from __future__ import annotations

import torch
import triton

from .checks import check_rows, check_tensor
from .plan import plan_kernel
from .read import read_kernel
from .record import MixRecord
from .refine import refine_kernel
from .scratch import READINGS, LaunchShape, MixScratch
from .settings import MixSettings
from .settle import settle_kernel
from .solution import NODES, PAD
from .write import write_kernel


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
    rows = {
        "teacher_ptr": teacher_logits,
        "teacher_stride": teacher_logits.stride(0),
        "theta_ptr": theta_logits,
        "theta_offset_ptr": scratch.theta_offset,
        "plan_ptr": scratch.plan,
        "num_rows": num_rows,
        "vocab": vocab,
    }
    plan_kernel[(blocks,)](
        **rows,
        theta_slot_stride=theta_logits.stride(0),
        theta_position_stride=theta_logits.stride(1),
        slots_ptr=slots,
        draft_positions_ptr=draft_positions,
        token_positions_ptr=token_positions,
        **{f"{name}_ptr": tensor for name, tensor in vars(settings).items()},
        entry_ptr=scratch.entry,
        num_slots=num_slots,
        num_positions=num_positions,
        ROWS=shape.rows,
        NODES=NODES.value,
        PAD=PAD.value,
        LANES=shape.lanes,
        num_warps=shape.plan_warps,
    )
    read_kernel[grid](
        **rows,
        partials_ptr=partials[0],
        split_size=shape.split_size,
        ROWS=shape.rows,
        SUB=shape.sub,
        LANES=shape.lanes,
        JOIN=shape.join,
        num_warps=shape.num_warps,
    )
    refine_kernel[grid](
        **rows,
        read_ptr=partials[0],
        partials_ptr=partials[1],
        solution_ptr=scratch.solutions,
        split_size=shape.split_size,
        splits=shape.splits,
        ROWS=shape.rows,
        SPLITS=splits,
        SUB=shape.refine_sub,
        LANES=shape.lanes,
        JOIN=shape.join,
        num_warps=shape.num_warps,
    )
    settle_kernel[(blocks,)](
        **rows,
        read_ptr=partials[1],
        solution_ptr=scratch.solutions,
        splits=shape.splits,
        ROWS=shape.rows,
        LANES=shape.lanes,
        SPLITS=splits,
        num_warps=shape.plan_warps,
    )
    write_kernel[grid](
        **rows,
        entry_ptr=scratch.entry,
        compared_ptr=partials[1],
        solution_ptr=scratch.solutions,
        alpha_ptr=record.alpha,
        kl_theta_ptr=record.kl_theta,
        kl_teacher_ptr=record.kl_teacher,
        fallback_ptr=record.fallback,
        kind_ptr=record.kind,
        log_z_ptr=record.log_z,
        floor_ptr=record.floor,
        mixed_teacher_lse_ptr=record.mixed_teacher_lse,
        mixed_theta_lse_ptr=record.mixed_theta_lse,
        teacher_lse_ptr=record.teacher_lse,
        theta_lse_ptr=record.theta_lse,
        teacher_vocab=teacher_vocab,
        split_size=shape.split_size,
        splits=shape.splits,
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
