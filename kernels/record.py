"""What the mix leaves behind for each row, so that it can be reported with the token drawn."""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields

import torch

from .checks import check_tensor

_DTYPES = {"fallback": torch.bool, "kind": torch.int32}


class Kind(enum.IntEnum):
    """Which distribution a row became."""

    TEACHER = 0
    GEOMETRIC = 1
    ARITHMETIC = 2


@dataclass(frozen=True)
class MixRecord:
    """One entry per (request slot, draft position), on the device. All tensors are `[slots, K + 1]`, contiguous.

    `mix_` writes the entries of its rows unless the request opted out; `token_logprobs` writes the last three fields.
    Divergences and log-probabilities are natural logarithms at temperature 1, good to 5e-4 (divergences at an alpha
    that is not KL-symmetric: 2e-3) nats or that part of their size. `theta` and `teacher` in a divergence are the
    distributions that were mixed: over the tokens that both rows allow, inside the support if that is restricted.
    """

    alpha: torch.Tensor
    """float32: the weight of the teacher in q; 1 where the teacher draws alone."""
    kl_theta: torch.Tensor
    """float32: D_KL(q || theta). Where the teacher draws alone D_KL(teacher || theta); inf if no token is allowed by
    both rows, nan if a logit is."""
    kl_teacher: torch.Tensor
    """float32: D_KL(q || teacher); 0 where the teacher draws alone."""
    fallback: torch.Tensor
    """bool: the row was to be mixed but is left to the teacher."""
    kind: torch.Tensor
    """int32: a `Kind`."""
    log_z: torch.Tensor
    """float32: log q = alpha * teacher_logit + (1 - alpha) * theta_logit - log_z of a geometric mixture."""
    floor: torch.Tensor
    """float32: tokens whose teacher logit is below it are outside the support."""
    mixed_teacher_lse: torch.Tensor
    """float32: log-sum-exp of the teacher's row over the mixed tokens."""
    mixed_theta_lse: torch.Tensor
    """float32: the same of theta's row."""
    teacher_lse: torch.Tensor
    """float32: log-sum-exp of the teacher's row."""
    theta_lse: torch.Tensor
    """float32: log-sum-exp of theta's row over the tokens that the teacher's row allows (a grammar restricts both)."""
    logprob: torch.Tensor
    """float32: log q of the token drawn."""
    teacher_logprob: torch.Tensor
    """float32: its log-probability under the teacher alone."""
    theta_logprob: torch.Tensor
    """float32: its log-probability under theta alone."""

    def __post_init__(self) -> None:
        rows, columns = (*self.alpha.shape, None, None)[:2]
        for field in fields(self):
            check_tensor(
                f"MixRecord.{field.name}",
                getattr(self, field.name),
                dtypes=(_DTYPES.get(field.name, torch.float32),),
                shape=(rows, columns),
                device=self.alpha.device,
            )

    @classmethod
    def allocate(cls, num_slots: int, num_rows_per_slot: int, device: torch.device | str) -> MixRecord:
        """A record of zeros for `num_slots` requests of `num_rows_per_slot = K + 1` rows each."""
        shape = (num_slots, num_rows_per_slot)
        return cls(
            **{
                field.name: torch.zeros(shape, dtype=_DTYPES.get(field.name, torch.float32), device=device)
                for field in fields(cls)
            }
        )
