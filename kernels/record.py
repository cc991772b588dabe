"""What the mix leaves behind for each row, so that it can be reported with the token drawn."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch


@dataclass(frozen=True)
class MixRecord:
    """One entry per (request slot, draft position), on the device. All tensors are `[slots, K + 1]`.

    `mix_` writes every field but the last three; `token_logprobs` writes those, once the token is drawn.
    """

    alpha: torch.Tensor
    """float32: the weight of the teacher in q; 1 where the teacher drew alone."""
    kl_theta: torch.Tensor
    """float32, nats: D_KL(q || theta) over the mixed tokens; inf if no token is allowed by both rows, nan if one is nan."""
    kl_teacher: torch.Tensor
    """float32, nats: D_KL(q || teacher) over the mixed tokens; 0 where the teacher drew alone."""
    fallback: torch.Tensor
    """bool: the row should have been mixed but was left to the teacher."""
    log_z: torch.Tensor
    """float32: log q = alpha * teacher_logit + (1 - alpha) * theta_logit - log_z, for a geometric mixture."""
    teacher_lse: torch.Tensor
    """float32: log-sum-exp of the teacher's row."""
    theta_lse: torch.Tensor
    """float32: log-sum-exp of theta's row over the tokens that the teacher's row allows."""

    @classmethod
    def allocate(cls, num_slots: int, num_rows_per_slot: int, device: torch.device | str) -> MixRecord:
        """An empty record for `num_slots` requests of `num_rows_per_slot = K + 1` rows each."""
        shape = (num_slots, num_rows_per_slot)
        floats = {
            field.name: torch.zeros(shape, dtype=torch.float32, device=device)
            for field in fields(cls)
            if field.name != "fallback"
        }
        return cls(fallback=torch.zeros(shape, dtype=torch.bool, device=device), **floats)
