"""Compile every kernel that a run of calls can need, before the first request.

A launch shape depends on the number of rows only through the number of splits, and a kernel on that only through its power
of two: at 151,936 tokens three variants serve 1 to any number of rows. Each is launched on one row without a slot, which
every kernel skips: nothing is read, written or recorded. The scratch remembers them, so that calls launch what is compiled.

All are compiled side by side, since Triton's compiler leaves Python to others while it works, and none takes much longer than
the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
import triton

from .mix import INTERPRETED, Rows, launch, launches
from .prepared_launch import Launch
from .record import MixRecord
from .scratch import LaunchShape, MixScratch
from .settings import MixSettings
from .token_logprobs import token_logprobs


def warm_up(
    teacher_vocab: int,
    theta_logits: torch.Tensor,
    settings: MixSettings,
    record: MixRecord,
    scratch: MixScratch,
    raw_teacher_dtype: torch.dtype | None = None,
    slots_dtype: torch.dtype = torch.int64,
) -> None:
    """Compile `mix_` for 1 to `scratch.max_rows` rows, and `token_logprobs` if `raw_teacher_dtype` is given.

    Args:
        teacher_vocab: V_t.
        theta_logits: `[slots, K + 1, V_theta]`, as the calls will pass it.
        settings, record, scratch: as the calls will pass them; left as they are.
        raw_teacher_dtype: dtype of the teacher's logits in calls of `token_logprobs`.
        slots_dtype: dtype of the slots in calls of both.
    """
    device = theta_logits.device
    teacher_logits = torch.zeros(1, teacher_vocab, device=device)
    no_slot = torch.full((1,), -1, dtype=slots_dtype, device=device)
    position = no_slot.int()
    vocab = min(teacher_vocab, theta_logits.shape[2])
    variants: dict[int, LaunchShape] = {}
    for num_rows in range(scratch.max_rows, 0, -1):
        shape = LaunchShape.choose(num_rows, vocab, interpreted=INTERPRETED)
        variants[triton.next_power_of_2(shape.splits)] = shape
    rows = Rows(teacher_logits, theta_logits, no_slot, position, no_slot.long())
    if not INTERPRETED:
        _compile(
            step.launch for shape in variants.values() for step in launches(rows, settings, record, scratch, shape)
        )
    for shape in variants.values():
        launch(*rows, settings, record, scratch, shape)
    if raw_teacher_dtype is not None:
        raw = teacher_logits.to(raw_teacher_dtype)
        token_logprobs(no_slot.long(), raw, theta_logits, no_slot, position, record)


def _compile(steps: Iterable[Launch]) -> None:
    """Compile what launches need, each kernel in a thread of its own, where that is not in Triton's cache."""
    with ThreadPoolExecutor() as executor, triton.AsyncCompileMode(executor):
        for step in steps:
            step.kernel.warmup(**step.arguments, grid=step.grid, num_warps=step.num_warps)
