"""What Model Runner V1 gets of this package: a processor that does nothing (optimal sampling needs V2)."""

from typing import Any

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor


class _InertLogitsProcessor(LogitsProcessor):
    def __init__(self, *_: Any):
        pass

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        pass

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        return logits


def inert_processor() -> LogitsProcessor:
    return _InertLogitsProcessor()
