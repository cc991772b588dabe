"""Compile every kernel that a run of calls can need, before the first request, and while the engine loads its models.

A launch shape depends on the number of rows only through the number of splits, and a kernel on that only through its power
of two: at 151,936 tokens three variants serve 1 to any number of rows. Each is launched on one row without a slot, which
every kernel skips: nothing is read, written or recorded. The scratch remembers these launches, which have every search;
the first call with fewer is launched as Triton does it, of the same compiled kernels.

All are compiled side by side, since Triton's compiler leaves Python to others while it works, and none takes much longer than
the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
import triton

from .drawn_tokens import drawn_tokens
from .mix import INTERPRETED, Rows, launch, launches
from .prepared_launch import Launch
from .record import MixRecord
from .scratch import LaunchShape, MixScratch
from .settings import MixSettings
from .token_logprobs import token_logprobs


@dataclass
class WarmUp:
    """The warm-up of `mix_` for 1 to `scratch.max_rows` rows, and of what records take if `raw_teacher_dtype` is given.

    `begin` compiles in the background, in threads; `finish` waits for that and makes the first launches. An engine loads its
    models in between. Without `begin`, `finish` does all of it.
    """

    teacher_vocab: int
    """V_t."""
    theta_logits: torch.Tensor
    """`[slots, K + 1, V_theta]`, as the calls will pass it."""
    settings: MixSettings
    """As the calls will pass it, and so are the next two; left as they are."""
    record: MixRecord
    scratch: MixScratch
    raw_teacher_dtype: torch.dtype | None = None
    """Of the teacher's logits in calls of `token_logprobs`; then `drawn_tokens` is called too."""
    slots_dtype: torch.dtype = torch.int64
    """Of the slots in calls of both."""
    compiled: Future[None] | None = field(default=None, init=False)
    """Done when all is compiled; None before `begin`."""

    def begin(self) -> None:
        """Begin to compile, where Triton compiles."""
        if INTERPRETED:
            return
        executor = ThreadPoolExecutor(1, "compiles the mix")
        self.compiled = executor.submit(self._compile)
        executor.shutdown(wait=False)

    def finish(self) -> None:
        """Leave nothing to be compiled later.

        Raises:
            Exception: whatever the compiler raised.
        """
        if not INTERPRETED and self.compiled is None:
            self.begin()
        if self.compiled is not None:
            self.compiled.result()
        rows = self._rows()
        for shape in self._shapes():
            launch(*rows, self.settings, self.record, self.scratch, shape)
        if self.raw_teacher_dtype is not None:
            raw = rows.teacher_logits.to(self.raw_teacher_dtype)
            token_logprobs(rows.token_positions, raw, self.theta_logits, rows.slots, rows.draft_positions, self.record)
            sampled = rows.token_positions.new_zeros(1, self.theta_logits.shape[1])  # as verification has them
            nothing = torch.zeros(2, dtype=torch.int32, device=raw.device)
            drawn_tokens(sampled, nothing[:1], nothing, num_rows=1)

    def _shapes(self) -> Iterable[LaunchShape]:
        """One for each variant that is compiled."""
        vocab = min(self.teacher_vocab, self.theta_logits.shape[2])
        variants: dict[int, LaunchShape] = {}
        for num_rows in range(self.scratch.max_rows, 0, -1):
            shape = LaunchShape.choose(num_rows, vocab, interpreted=INTERPRETED)
            variants[triton.next_power_of_2(shape.splits)] = shape
        return variants.values()

    def _rows(self) -> Rows:
        """One row without a slot."""
        device = self.theta_logits.device
        no_slot = torch.full((1,), -1, dtype=self.slots_dtype, device=device)
        return Rows(
            teacher_logits=torch.zeros(1, self.teacher_vocab, device=device),
            theta_logits=self.theta_logits,
            slots=no_slot,
            draft_positions=no_slot.int(),
            token_positions=no_slot.long(),
        )

    def _compile(self) -> None:
        # Triton compiles for the device of the thread.
        with torch.cuda.device_of(self.theta_logits):
            rows = self._rows()
            _compile(
                step.launch
                for shape in self._shapes()
                for step in launches(rows, self.settings, self.record, self.scratch, shape)
            )


def _compile(steps: Iterable[Launch]) -> None:
    """Compile what launches need, each kernel in a thread of its own, where that is not in Triton's cache."""
    with ThreadPoolExecutor() as executor, triton.AsyncCompileMode(executor):
        for step in steps:
            step.kernel.warmup(**step.arguments, grid=step.grid, num_warps=step.num_warps)
