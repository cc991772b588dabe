"""One call of the mix on a list of pairs, with the settings of each."""

from dataclasses import dataclass
from typing import Any

import torch
from adversarial_rows import Pair
from vllm_optimal_sampling.kernels import Method, MixRecord, MixScratch, MixSettings, mix_, reference
from vllm_optimal_sampling.kernels.mix import launch
from vllm_optimal_sampling.kernels.scratch import LaunchShape


@dataclass(frozen=True)
class Mixed:
    """What a call left: rows `[n, V_t]`, and the record, whose entry [i, 0] belongs to pair i."""

    rows: torch.Tensor
    record: MixRecord
    settings: MixSettings


def mix(
    pairs: list[Pair],
    method: Method | torch.Tensor = Method.KL_SYMMETRY,
    *,
    theta_dtype: torch.dtype = torch.float32,
    shape: LaunchShape | None = None,
    **settings: Any,
) -> Mixed:
    """Mix pair i in slot i. The method and the `settings` go to every slot, or hold one entry for each."""
    n = len(pairs)
    rows = torch.stack([teacher for teacher, _ in pairs])
    theta = torch.stack([theta for _, theta in pairs]).to(theta_dtype)[:, None, :].contiguous()
    asked = MixSettings.allocate(n, "cpu")
    asked.first_position.zero_()
    asked.method[:] = method
    for name, value in settings.items():
        getattr(asked, name)[:] = value
    record = MixRecord.allocate(n, 1, "cpu")
    slots = torch.arange(n, dtype=torch.int32)
    zeros = torch.zeros(n, dtype=torch.int32)
    scratch = MixScratch.allocate(max(n, 64), max(rows.shape[1], 4096), "cpu")
    arguments = (rows, theta, slots, zeros, zeros.long(), asked, record, scratch)
    if shape is None:
        mix_(*arguments)
    else:
        launch(*arguments, shape)
    return Mixed(rows, record, asked)


def references(pairs: list[Pair], method: Method = Method.KL_SYMMETRY, **settings: Any) -> list[reference.Mixture]:
    return [reference.mix(teacher, theta, method, **settings) for teacher, theta in pairs]


def probabilities(row: torch.Tensor) -> torch.Tensor:
    return row.double().softmax(0)


def total_variation(row: torch.Tensor, other: torch.Tensor) -> float:
    return float((probabilities(row) - probabilities(other)).abs().sum()) / 2


def kl_gap(row: torch.Tensor, teacher: torch.Tensor, theta: torch.Tensor) -> float:
    """|D_KL(q || theta) - D_KL(q || teacher)| = |E_q[log teacher - log theta]| of a geometric mixture."""
    support = (teacher > reference.LOWEST) & (theta > reference.LOWEST)
    u, v = theta[support].double().log_softmax(0), teacher[support].double().log_softmax(0)
    return abs(float((probabilities(row)[support] * (v - u)).sum()))
