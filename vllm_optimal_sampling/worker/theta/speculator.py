"""Theta as vLLM's draft model: its part of every prompt chunk before sampling, its round of drafts after it."""

from typing import Any

import numpy as np
import torch
from torch import nn
from vllm.compilation.backends import set_model_tag
from vllm.config import VllmConfig, replace
from vllm.config.compilation import CUDAGraphMode
from vllm.logger import init_logger
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu.block_table import BlockTables
from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers
from vllm.v1.worker.gpu.model_states.interface import ModelState
from vllm.v1.worker.gpu.states import RequestState
from vllm.v1.worker.utils import AttentionGroup

from vllm_optimal_sampling.config.refusals import no_adapter
from vllm_optimal_sampling.config.state_layers import layout_block_size
from vllm_optimal_sampling.kernels import MixRecord, MixScratch
from vllm_optimal_sampling.worker.recorder import Recorder
from vllm_optimal_sampling.worker.theta.block_tables import ThetaBlockTables, widen_kernel_block_tables
from vllm_optimal_sampling.worker.theta.drafting_round import RoundSpeculator
from vllm_optimal_sampling.worker.theta.loading import load_theta, reload_theta, weight_bytes
from vllm_optimal_sampling.worker.theta.rows import chunk_rows, passes
from vllm_optimal_sampling.worker.theta.scoring_pass import ScoringPass
from vllm_optimal_sampling.worker.theta.shared_weights import same_model, share_weights
from vllm_optimal_sampling.worker.verification_memory import GIB, RowMemory

logger = init_logger(__name__)


class ThetaSpeculator(RoundSpeculator):
    """A draft model of vLLM's with a prompt of its own, whose logits stay for the mix.

    Two entry points, both on every rank that samples:

    - `prefill`, before sampling: theta's part of the prompt chunks in this step. Where the teacher's prompt ends, so
      does theta's, and row 0 of the request's logits is ready for the first token.
    - `propose`, after sampling: theta's *round*, K + 1 decodes of one token per request (see `RoundSpeculator`).
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, req_states: RequestState):
        super().__init__(vllm_config, device, req_states)
        # What the mix works with. Here and not where it is put to use: that is inside the loading of the weights, whose
        # memory sleep mode gives away.
        num_rows = self.max_num_reqs * (self.num_speculative_steps + 1)
        self.record = MixRecord.allocate(self.max_num_reqs, self.num_speculative_steps + 1, device)
        self.scratch = MixScratch.allocate(num_rows, self.rows.shape[-1], device)
        self.recorder = Recorder(self.rows, self.requests.settings.first_position, self.record)
        self.prompt_pass = ScoringPass(
            vllm_config,
            self.max_num_reqs,
            req_states,
            self.requests,
            self.draft_model_config,
            self.vocabulary.ids,
        )
        self.shares_weights = False

    # Set-up

    def load_model(self, target_model: nn.Module) -> None:
        super().load_model(target_model)
        self.inputs.check(self.model)
        # Theta reads nothing of the teacher's prompt, so vLLM need not gather its images.
        self.supports_mm_inputs = False

    def load_draft_model(self, target_model: nn.Module, target_attn_layer_names: set[str]) -> nn.Module:
        """Load theta, or share the teacher's weights where both are the same model."""
        teacher_config, theta_config = self.vllm_config.model_config, self.draft_model_config
        same_ranks = (
            self.speculative_config.draft_parallel_config.tensor_parallel_size
            == self.vllm_config.parallel_config.tensor_parallel_size
        )
        self.shares_weights = same_ranks and same_model(teacher_config, theta_config)
        if not self.shares_weights:
            theta = self._load_own_weights()
            note = f"{weight_bytes(theta) / GIB:.2f} GiB of weights"
        else:
            with set_model_tag("draft_model"):
                theta = share_weights(target_model, self.vllm_config, prefix="draft_model")
            note = "no weights of its own: teacher and theta are the same model"
        logger.info(
            "Theta %s takes %s, and with the teacher %s; its KV cache lies in the teacher's blocks",
            theta_config.model,
            note,
            RowMemory(
                self.max_num_reqs,
                self.num_speculative_steps,
                self.rows.shape[-1],
                self.rows.element_size(),
            ),
        )
        return theta

    def _load_own_weights(self) -> nn.Module:
        self._draft_vllm_config = replace(
            self.vllm_config,
            model_config=self.draft_model_config,
            quant_config=None,
            parallel_config=replace(
                self.speculative_config.draft_parallel_config, rank=self.vllm_config.parallel_config.rank
            ),
        )
        return load_theta(self._draft_vllm_config, prefix="draft_model")

    def check_own_weights(self) -> None:
        """Raise ValueError where new weights for theta would be new weights for the teacher."""
        if self.shares_weights:
            raise ValueError(
                "theta has no weights of its own here, it shares the teacher's; update the teacher, or start the engine "
                "with a copy of theta under another path"
            )

    def check_adapter(self) -> None:
        """Raise ValueError: a theta that drafts has weights of its own, and no adapter."""
        raise no_adapter()

    def reload_weights(self, *args: Any, **kwargs: Any) -> None:
        """Reload theta in place; see `reload_theta` for the arguments."""
        self.check_own_weights()
        reload_theta(self._draft_vllm_config, self.model, *args, **kwargs)

    def set_attn(
        self,
        model_state: ModelState,
        kv_cache_config: KVCacheConfig,
        block_tables: BlockTables,
        target_input_buffers: InputBuffers,
        target_attn_groups: list[list[AttentionGroup]],
    ) -> None:
        super().set_attn(model_state, kv_cache_config, block_tables, target_input_buffers, target_attn_groups)
        self.requests.block_size = layout_block_size(self.vllm_config, kv_cache_config)
        self.block_tables = ThetaBlockTables(block_tables, self.requests, kv_cache_config)
        self.prompt_pass.set_attn(
            kv_cache_config, block_tables, {name: name for name in self.draft_attn_layer_names}, 0
        )
        widen_kernel_block_tables([*self.attn_groups, *target_attn_groups], block_tables)

    # CUDA graphs, beside those of the round

    def init_cudagraph_manager(self, cudagraph_mode: CUDAGraphMode) -> None:
        super().init_cudagraph_manager(cudagraph_mode)
        self.prompt_pass.init_pieces(self.model, cudagraph_mode)

    def capture(self) -> None:
        self.prompt_pass.capture(self.model, None)
        super().capture()

    # Before sampling: theta's part of the prompt chunks

    def replays_before_sampling(self, batch: InputBatch) -> bool:
        """Whether theta's part of an executed step may replay CUDA graphs while the teacher's output is still to be read."""
        return bool(batch.has_prefill) and self.prompt_pass.has_graphs

    @torch.inference_mode()
    def prefill(self, input_batch: InputBatch) -> None:
        """Compute theta's part of this step's prompt chunks; row 0 of the logits for the prompts that end here.

        Ranges of positions are known on the host: a request in its prompt has no drafts that could be rejected.
        """
        self.block_tables.keep_block_counts()  # theta's round reads them after sampling
        if not input_batch.has_prefill:
            return
        chunks = chunk_rows(self.requests, input_batch, np.flatnonzero(input_batch.is_prefilling_np))
        for rows in passes(None, chunks, self.max_num_tokens):
            hidden_states = self.prompt_pass.run(self.model, rows, input_batch)
            if not rows.finished.any():
                continue
            last, slots = async_tensor_h2d(
                np.stack((np.cumsum(rows.lengths) - 1, rows.slots))[:, rows.finished], device=self.device
            )
            logits = self.vocabulary.rows(self.compute_draft_logits(hidden_states[last], 0))
            kept = self.rows[:, 0, : self.vocabulary.width]
            kept[slots] = logits.to(kept.dtype)
