"""What a model is called with for theta's tokens: all of them text, in the form in which vLLM's model runner gives its batch.

The form matters where theta is the teacher itself: compiled code knows the arguments that the model was first called with.
vLLM gives a model that takes images embeddings in place of token ids, and one with M-RoPE positions of several dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.config import ModelConfig
from vllm.model_executor.models.interfaces import supports_mrope, supports_realtime

from vllm_optimal_sampling.config.errors import UnsupportedEngineError


class TextInputs:
    """Makes a model's arguments of token ids and positions.

    Args:
        model_config: of the model.
        max_num_tokens: most tokens in one forward.
        device: of the model.
    """

    def __init__(self, model_config: ModelConfig, max_num_tokens: int, device: torch.device):
        self.takes_embeddings = model_config.supports_multimodal_inputs
        self.rope_positions: torch.Tensor | None = None
        if model_config.uses_mrope:
            # A column more than is used, as in vLLM's `RopeState`: compiled code sees rows at the same distance.
            shape = (model_config.mrope_num_dims, max_num_tokens + 1)
            self.rope_positions = torch.zeros(shape, dtype=torch.int64, device=device)

    def set_positions(self, positions: torch.Tensor, teachers: torch.Tensor | None = None) -> None:
        """Lay out the positions of the next forward, where the model has several dimensions of them.

        Text has the same position in every dimension, which makes M-RoPE plain RoPE.

        Args:
            positions: int64 [tokens].
            teachers: int64 [dimensions, the teacher's tokens] positions of the first tokens, which follow images.
        """
        if self.rope_positions is None:
            return
        num_teachers = 0 if teachers is None else teachers.shape[1]
        self.rope_positions[:, num_teachers : len(positions)] = positions[num_teachers:]
        if teachers is not None:
            self.rope_positions[:, :num_teachers] = teachers

    def arguments(self, model: Any, input_ids: torch.Tensor, positions: torch.Tensor) -> dict[str, torch.Tensor | None]:
        """What `model` is called with, after `set_positions`; a CUDA graph may hold this too.

        Args:
            model: of vLLM's.
            input_ids: int32 [tokens].
            positions: int64 [tokens].
        """
        if self.rope_positions is not None:
            positions = self.rope_positions[:, : len(positions)]
        if not self.takes_embeddings:
            return {"input_ids": input_ids, "positions": positions}
        return {"input_ids": None, "positions": positions, "inputs_embeds": model.embed_input_ids(input_ids)}

    def check(self, model: Any) -> None:
        """Refuse a model of which ids and positions are not all that text is.

        Raises:
            UnsupportedEngineError: (a ValueError) it hears while it generates, or theta's positions would not be those that
                vLLM gives the same text.
        """
        if supports_realtime(model):
            raise UnsupportedEngineError(
                f"optimal sampling cannot start: {type(model).__name__} reads audio while it generates, which theta does "
                "not; use another model"
            )
        if self.rope_positions is None:
            return
        text = model.get_mrope_input_positions([1] * 5, []) if supports_mrope(model) else None
        if text is None or text[1] != 0 or not (text[0].cpu() == torch.arange(5)).all():
            raise UnsupportedEngineError(
                f"optimal sampling cannot start: vLLM does not say of {type(model).__name__} that text is at the positions "
                "0, 1, 2, ... in every dimension, where theta reads it; use another model"
            )
