"""Working memory of the mix, allocated once so that no call allocates."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class MixScratch:
    """Working memory for calls of up to `max_rows` rows over a vocabulary of up to `vocab_size` tokens."""

    max_rows: int
    vocab_size: int

    @classmethod
    def allocate(cls, max_rows: int, vocab_size: int, device: torch.device | str) -> MixScratch:
        return cls(max_rows=max_rows, vocab_size=vocab_size)
