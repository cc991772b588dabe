"""What a call of a kernel must satisfy, checked on the host before anything is launched. No device is waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .record import MixRecord

THETA_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SLOT_DTYPES = (torch.int32, torch.int64)


def check_tensor(
    name: str,
    tensor: torch.Tensor,
    *,
    dtypes: tuple[torch.dtype, ...],
    shape: tuple[int | None, ...],
    device: torch.device,
    last_dim_only: bool = False,
) -> None:
    """Raise TypeError for a wrong dtype, ValueError for a wrong device, shape (None: any) or layout.

    Args:
        last_dim_only: only the last dimension has to be contiguous; without it the whole tensor has to be.
    """
    if tensor.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name} is {str(tensor.dtype).removeprefix('torch.')}; it has to be {wanted}")
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, but has to be on {device}; move it there")
    matches = tensor.ndim == len(shape) and all(
        wanted is None or size == wanted for size, wanted in zip(tensor.shape, shape, strict=True)
    )
    if not matches:
        wanted = "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
        raise ValueError(f"{name} has shape {list(tensor.shape)}; it has to be {wanted}")
    if last_dim_only:
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(f"{name} has stride {tensor.stride(-1)} in its last dimension; it has to be 1: copy it")
    elif not tensor.is_contiguous():
        raise ValueError(f"{name} has strides {tensor.stride()}; it has to be contiguous: copy it")


def check_rows(
    teacher_logits: torch.Tensor,
    theta_logits: torch.Tensor,
    slots: torch.Tensor,
    draft_positions: torch.Tensor,
    record: MixRecord,
    *,
    teacher_dtypes: tuple[torch.dtype, ...],
) -> None:
    """Check what `mix_` and `token_logprobs` take alike."""
    device = teacher_logits.device
    check_tensor(
        "teacher_logits",
        teacher_logits,
        dtypes=teacher_dtypes,
        shape=(None, None),
        device=device,
        last_dim_only=True,
    )
    check_tensor(
        "theta_logits",
        theta_logits,
        dtypes=THETA_DTYPES,
        shape=(None, None, None),
        device=device,
        last_dim_only=True,
    )
    rows = teacher_logits.shape[0]
    num_slots, num_positions, _ = theta_logits.shape
    check_tensor("slots", slots, dtypes=SLOT_DTYPES, shape=(rows,), device=device)
    check_tensor("draft_positions", draft_positions, dtypes=(torch.int32,), shape=(rows,), device=device)
    check_tensor("record.alpha", record.alpha, dtypes=(torch.float32,), shape=(num_slots, num_positions), device=device)
