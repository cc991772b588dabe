"""What a request asks of the mix: one device tensor per setting, one entry per request slot."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntFlag

import torch

from vllm_optimal_sampling.alpha_methods import Method

from .checks import check_tensor

NEVER = torch.iinfo(torch.int64).max
"""`first_position` of a request that opted out: no token position reaches it."""


class Search(IntFlag):
    """What of a row is found before its first reading, in the order in which the mix does it.

    The host says which of them a call's rows may ask for, so that the others are not launched.
    """

    TOP_K = 1
    """`support_top_k` above 0."""
    TOP_P = 2
    """`support_top_p` below 1."""
    ESS_BALANCE = 4
    """The method of that name; so is the next."""
    JS_GATE = 8
    ALL = TOP_K | TOP_P | ESS_BALANCE | JS_GATE

    @classmethod
    def of(cls, method: Method, support_top_k: int, support_top_p: float) -> Search:
        """What a request with these settings asks for."""
        found = {Method.ESS_BALANCE: cls.ESS_BALANCE, Method.JS_GATE: cls.JS_GATE}.get(method, cls(0))
        if support_top_k > 0:
            found |= cls.TOP_K
        if support_top_p < 1.0:
            found |= cls.TOP_P
        return found


@dataclass(frozen=True)
class MixSettings:
    """Settings of every request slot, on the device. All tensors are `[slots]`; write entries in place.

    Four of them can change from token to token, each from its value to its `_end`, in a straight line:

        value + (end - value) * min((token_position - schedule_position) / schedule_steps, 1)

    so the first token drawn has the value itself, and token `schedule_steps`, counted from 0, and those after it have the
    end. Before `schedule_position` the value holds; `schedule_position = NEVER` means that it always does.

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
    """float32 in [0, 1]: lower bound, applied after alpha is found; where `JS_GATE` ends."""
    alpha_max: torch.Tensor
    """float32 in [0, 1]: upper bound; where `JS_GATE` begins."""
    kl_budget: torch.Tensor
    """float32, nats, at least 0: the most that D_KL(q || theta) may be for `KL_BUDGET`; 0 gives theta alone, inf the
    teacher. Budgets from 1e-6 on are as exact as other methods; one below 1e-8 counts as 0."""
    js_sensitivity: torch.Tensor
    """float32 per nat, at least 0: how fast alpha falls for `JS_GATE`."""
    support_top_k: torch.Tensor
    """int32: mix over the teacher's k likeliest tokens only; 0 is off."""
    support_top_p: torch.Tensor
    """float32 in (0, 1]: mix over the smallest set of the teacher's likeliest tokens with this mass; 1 is off."""
    max_js_divergence: torch.Tensor
    """float32, nats: above this Jensen-Shannon divergence the teacher draws alone; inf is off."""
    alpha_end: torch.Tensor
    """float32 in [0, 1]: what `alpha` goes to."""
    alpha_min_end: torch.Tensor
    """float32 in [0, 1]: what `alpha_min` goes to."""
    alpha_max_end: torch.Tensor
    """float32 in [0, 1]: what `alpha_max` goes to."""
    kl_budget_end: torch.Tensor
    """float32, nats, at least 0: what `kl_budget` goes to. If one of the two is inf, so is every value in between."""
    schedule_position: torch.Tensor
    """int64: the token position of the row of the request's first drawn token, or `NEVER`."""
    schedule_steps: torch.Tensor
    """int32, at least 1: tokens from the first value to the last."""

    def __post_init__(self) -> None:
        dtypes = dict.fromkeys(("first_position", "schedule_position"), torch.int64)
        dtypes |= dict.fromkeys(("method", "support_top_k", "schedule_steps"), torch.int32)
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
            kl_budget=full(float("inf"), torch.float32),
            js_sensitivity=full(50.0, torch.float32),
            support_top_k=full(0, torch.int32),
            support_top_p=full(1.0, torch.float32),
            max_js_divergence=full(float("inf"), torch.float32),
            alpha_end=full(0.5, torch.float32),
            alpha_min_end=full(0.0, torch.float32),
            alpha_max_end=full(1.0, torch.float32),
            kl_budget_end=full(float("inf"), torch.float32),
            schedule_position=full(NEVER, torch.int64),
            schedule_steps=full(1, torch.int32),
        )
