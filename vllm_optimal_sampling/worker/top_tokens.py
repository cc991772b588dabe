"""The likeliest tokens of a row under q*, for requests that set `return_top_k`.

    log q of every token, as `kernels.token_logprobs` has it of one:
      geometric    alpha b + (1 - alpha) a - log_z
      arithmetic   log(alpha exp(b - lse_b) + (1 - alpha) exp(a - lse_a))
      teacher      b - lse(b)

with a, b theta's and the teacher's logits and the normalisers that `mix_` left in the record. Plain torch, some rows at a
time: it reads both rows once more and sorts nothing but the k best. Nothing runs in a step that no such request is in.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from vllm_optimal_sampling.kernels import MixRecord
from vllm_optimal_sampling.kernels.record import Kind
from vllm_optimal_sampling.kernels.tilt import LOWEST

ROWS_AT_ONCE = 32
"""Some 20 MB a temporary for rows of 151,936."""


@dataclass(frozen=True)
class TopTokens:
    """By request slot and draft position, `[slots, K + 1, k]` each, the likeliest first."""

    token_ids: torch.Tensor
    """int32."""
    logprob: torch.Tensor
    """float32: log q*; -inf behind the last token that can be drawn."""
    teacher_logprob: torch.Tensor
    """float32."""
    theta_logprob: torch.Tensor
    """float32."""

    @classmethod
    def allocate(cls, num_slots: int, num_rows_per_slot: int, k: int, device: torch.device) -> TopTokens:
        shape = (num_slots, num_rows_per_slot, k)
        numbers = (torch.zeros(shape, dtype=torch.float32, device=device) for _ in range(3))
        return cls(torch.zeros(shape, dtype=torch.int32, device=device), *numbers)

    @property
    def k(self) -> int:
        return self.token_ids.shape[-1]

    def columns(self, slots: torch.Tensor) -> torch.Tensor:
        """All fields of these slots side by side, `[slots, K + 1, fields * k]` float32: a token's id is exact below 2^24."""
        return torch.cat([getattr(self, field.name).index_select(0, slots).float() for field in fields(self)], dim=-1)

    def write(
        self,
        teacher_logits: torch.Tensor,
        theta_logits: torch.Tensor,
        slots: torch.Tensor,
        draft_positions: torch.Tensor,
        record: MixRecord,
    ) -> None:
        """Fill in some rows.

        Args:
            teacher_logits: `[rows, vocab]` as the teacher gave them, a grammar applied.
            theta_logits: `[slots, K + 1, vocab]`, theta's rows as the mix reads them.
            slots: `[rows]`, the request slot of each row.
            draft_positions: `[rows]`, how many drafts are before it.
            record: what the mix of these rows wrote.
        """
        for start in range(0, len(slots), ROWS_AT_ONCE):
            entry = slots[start : start + ROWS_AT_ONCE].long(), draft_positions[start : start + ROWS_AT_ONCE].long()
            teacher = teacher_logits[start : start + ROWS_AT_ONCE].float()
            theta = theta_logits[entry].float()
            if missing := teacher.shape[-1] - theta.shape[-1]:
                theta = torch.nn.functional.pad(theta, (0, missing), value=-torch.inf)
            log_q = _log_q(teacher, theta, entry, record)
            best, tokens = log_q.topk(self.k, dim=-1)
            of_teacher, of_theta = teacher.gather(-1, tokens), theta.gather(-1, tokens)
            self.token_ids[entry] = tokens.int()
            self.logprob[entry] = best
            self.teacher_logprob[entry] = of_teacher - record.teacher_lse[entry][:, None]
            of_theta = torch.where(of_teacher > LOWEST.value, of_theta - record.theta_lse[entry][:, None], -torch.inf)
            self.theta_logprob[entry] = of_theta


def _log_q(
    teacher: torch.Tensor, theta: torch.Tensor, entry: tuple[torch.Tensor, torch.Tensor], record: MixRecord
) -> torch.Tensor:
    """`[rows, vocab]` float32."""

    def of(column: torch.Tensor) -> torch.Tensor:
        return column[entry][:, None]

    alpha, kind = of(record.alpha), of(record.kind)
    in_teacher = (teacher > LOWEST.value) & (teacher >= of(record.floor))
    in_both = in_teacher & (theta > LOWEST.value)
    geometric = torch.where(in_both, theta + alpha * (teacher - theta) - of(record.log_z), -torch.inf)
    from_teacher = torch.where(in_teacher, alpha * (teacher - of(record.mixed_teacher_lse)).exp(), 0.0)
    from_theta = torch.where(in_both, (1 - alpha) * (theta - of(record.mixed_theta_lse)).exp(), 0.0)
    arithmetic = (from_teacher + from_theta).log()
    alone = teacher - of(record.teacher_lse)
    mixture = torch.where(kind == int(Kind.ARITHMETIC), arithmetic, alone)
    return torch.where(kind == int(Kind.GEOMETRIC), geometric, mixture)
