"""The teacher's ids and theta's on the device: what theta reads for a token, and theta's logits in the teacher's ids."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import pad
from vllm.config import VllmConfig

from vllm_optimal_sampling.config.theta import theta_model_config
from vllm_optimal_sampling.config.vocabulary_pairs import NO_PARTNER, VocabularyPairs


class ThetaVocabulary:
    """Theta's vocabulary beside the teacher's.

    Where the two agree `ids` is None and `rows` is a slice; nothing runs. Elsewhere few columns of a row are moved, by
    operations of static shapes, which a CUDA graph can hold.

    Attributes:
        width: columns of `rows`, a part of the teacher's; theta has nothing for the teacher's ids behind them.
        ids: [the teacher's ids] int32, what theta reads for each; None where both read the same.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device):
        self.width = min(vllm_config.model_config.get_vocab_size(), theta_model_config(vllm_config).get_vocab_size())
        self.ids: torch.Tensor | None = None
        self._moved: torch.Tensor | None = None
        pairs = VocabularyPairs.from_config(vllm_config)
        if pairs is None:
            return
        self.ids = torch.from_numpy(pairs.reads.astype(np.int32)).to(device)
        self.width = int(np.flatnonzero(pairs.partners != NO_PARTNER)[-1]) + 1
        partners = pairs.partners[: self.width]
        moved = np.flatnonzero(partners != np.arange(self.width))
        if len(moved):
            self._moved = torch.from_numpy(moved).to(device)
            self._sources = torch.from_numpy(partners[moved].clip(0)).to(device)
            self._lost = torch.from_numpy(partners[moved] == NO_PARTNER).to(device)

    def rows(self, logits: torch.Tensor) -> torch.Tensor:
        """Theta's logits in the teacher's ids, [n, width]; -inf for those without a partner.

        Args:
            logits: [n, at least theta's ids], of theta's head; written to where columns move.
        """
        if self._moved is None:
            return logits[:, : self.width]
        moved = logits.index_select(1, self._sources).masked_fill_(self._lost, float("-inf"))
        missing = self.width - logits.shape[1]
        rows = logits[:, : self.width] if missing <= 0 else pad(logits, (0, missing), value=float("-inf"))
        return rows.index_copy_(1, self._moved, moved)
