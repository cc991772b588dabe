"""What a request asks of the mix: one device tensor per setting, one entry per request slot."""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields

import torch

from .checks import check_tensor

NEVER = torch.iinfo(torch.int64).max
"""`first_position` of a request that opted out: no token position reaches it."""


class Method(enum.IntEnum):
    """How alpha, the weight of the teacher, is found for a row. Names as `alpha_method` has them, in upper case."""

    KL_SYMMETRY = 0
    """D_KL(q || theta) = D_KL(q || teacher)."""
    FIXED = 1
    """alpha as given."""
    ENTROPY = 2
    """alpha = H(theta) / (H(theta) + H(teacher))."""
    ESS_BALANCE = 3
    """sum theta^2 / q = sum teacher^2 / q: draws of q, reweighted to either model, are worth as many draws of it."""
    REVERSE_KL_SYMMETRY = 4
    """D_KL(theta || q) = D_KL(teacher || q)."""
    ARITHMETIC = 5
    """alpha as given, and q = alpha * teacher + (1 - alpha) * theta instead of the geometric mixture."""


@dataclass(frozen=True)
class MixSettings:
    """Settings of every request slot, on the device. All tensors are `[slots]`; write entries in place.

    A row is mixed where `token_position >= first_position`. Below it the teacher draws alone (`teacher_only_tokens`);
    there the row stays bit for bit, and the record says alpha 1. A request that opted out has `first_position = NEVER`:
    its rows are neither read nor written, and its record is left as it was.
    """

    first_position: torch.Tensor
    """int64: the first token position whose row is mixed; `NEVER` for a request that opted out."""
    method: torch.Tensor
    """int32: a `Method`."""
    alpha: torch.Tensor
    """float32 in [0, 1]: the weight of the teacher for `FIXED` and `ARITHMETIC`."""
    alpha_min: torch.Tensor
    """float32 in [0, 1]: lower bound, applied after alpha is found."""
    alpha_max: torch.Tensor
    """float32 in [0, 1]: upper bound."""
    support_top_k: torch.Tensor
    """int32: mix over the teacher's k likeliest tokens only; 0 is off."""
    support_top_p: torch.Tensor
    """float32 in (0, 1]: mix over the smallest set of the teacher's likeliest tokens with this mass; 1 is off."""
    max_js_divergence: torch.Tensor
    """float32, nats: above this Jensen-Shannon divergence the teacher draws alone; inf is off."""

    def __post_init__(self) -> None:
        dtypes = {"first_position": torch.int64, "method": torch.int32, "support_top_k": torch.int32}
        for field in fields(self):
            check_tensor(
                f"MixSettings.{field.name}",
                getattr(self, field.name),
                dtypes=(dtypes.get(field.name, torch.float32),),
                shape=tuple(self.first_position.shape[:1]),
                device=self.first_position.device,
            )

    @classmethod
    def allocate(cls, num_slots: int, device: torch.device | str) -> MixSettings:
        """Settings of `num_slots` requests that have all opted out; every other entry is the default of the API."""

        def full(value: float, dtype: torch.dtype) -> torch.Tensor:
            return torch.full((num_slots,), value, dtype=dtype, device=device)

        return cls(
            first_position=full(NEVER, torch.int64),
            method=full(Method.KL_SYMMETRY, torch.int32),
            alpha=full(0.5, torch.float32),
            alpha_min=full(0.0, torch.float32),
            alpha_max=full(1.0, torch.float32),
            support_top_k=full(0, torch.int32),
            support_top_p=full(1.0, torch.float32),
            max_js_divergence=full(float("inf"), torch.float32),
        )
