"""Theta's round of drafts after sampling: K + 1 decodes of one token a request, eagerly or as CUDA graphs."""

from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.forward_context import BatchDescriptor, set_forward_context
from vllm.logger import init_logger
from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup
from vllm.v1.worker.gpu.attn_utils import build_slot_mappings_by_layer
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor
from vllm.v1.worker.gpu.dp_utils import DPSyncState, dispatch_cg_and_sync_dp
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample
from vllm.v1.worker.gpu.spec_decode.speculator import DraftModelSpeculator
from vllm.v1.worker.gpu.states import RequestState

from vllm_optimal_sampling.worker.theta.block_tables import ThetaBlockTables
from vllm_optimal_sampling.worker.theta.inputs import ROUNDS, advance_round, keep_rows, round_inputs
from vllm_optimal_sampling.worker.theta.requests import ThetaRequests
from vllm_optimal_sampling.worker.theta.round_graphs import RoundGraphs
from vllm_optimal_sampling.worker.theta.text_inputs import TextInputs
from vllm_optimal_sampling.worker.theta.vocabulary import ThetaVocabulary
from vllm_optimal_sampling.worker.verification_memory import chunk_rows_in_float32

logger = init_logger(__name__)


class RoundSpeculator(DraftModelSpeculator):
    """A draft model of vLLM's that drafts in positions of its own, and keeps every row it draws from.

    Row j of a round is theta's distribution after j drafts; drafts are drawn from rows 0 .. K-1, and row K is what the
    bonus token is mixed with.

    The rows are `draft_logits` [max_num_reqs, K + 1, vocab of the teacher], before temperature, in the dtype of the
    model's head: the same tensor that vLLM's rejection sampler verifies against.
    """

    block_tables: ThetaBlockTables

    def __init__(self, vllm_config: VllmConfig, device: torch.device, req_states: RequestState):
        super().__init__(vllm_config, device)
        self.req_states = req_states
        self.requests = ThetaRequests(req_states)
        self.current_draft_step = torch.tensor(0, dtype=torch.int64, device=device)
        # Of the parent's cache nothing fits: one row more, the teacher's width (the rejection sampler reads rows at
        # that width), and -inf in the tail that theta's smaller padded vocabulary does not reach.
        self.draft_logits = None
        teacher_vocab_size = vllm_config.model_config.get_vocab_size()
        self.draft_logits = torch.full(
            (self.max_num_reqs, self.num_speculative_steps + 1, teacher_vocab_size),
            float("-inf"),
            dtype=vllm_config.model_config.head_dtype,
            device=device,
        )
        self.vocabulary = ThetaVocabulary(vllm_config, device)
        self.inputs = TextInputs(self.draft_model_config, self.max_num_tokens, device)
        self.drafts_by_batch_size = self._scheduled_drafts()
        self.slots = torch.full((self.max_num_reqs,), -1, dtype=torch.int64, device=device)
        self.sample_positions = torch.zeros(self.max_num_reqs, dtype=torch.int64, device=device)
        self.round_graphs: RoundGraphs | None = None

    @property
    def rows(self) -> torch.Tensor:
        """Theta's rows as the mix and the recorder read them; here they are what the drafts were drawn from too."""
        assert self.draft_logits is not None
        return self.draft_logits

    # CUDA graphs

    def init_cudagraph_manager(self, cudagraph_mode: CUDAGraphMode) -> None:
        is_full = cudagraph_mode.decode_mode() == CUDAGraphMode.FULL
        # One graph holds a whole round, so each number of drafts in the schedule needs its own.
        drafts = sorted(self.drafts_by_batch_size, reverse=True) if self.supports_decode_metadata_update else []
        self.round_graphs = RoundGraphs(self.vllm_config, self.device, is_full, drafts)

    @property
    def has_round_graphs(self) -> bool:
        """Whether theta's round was captured."""
        return self.round_graphs is not None and bool(self.round_graphs.graphs)

    def _scheduled_drafts(self) -> set[int]:
        """The numbers of drafts that `num_speculative_tokens_per_batch_size` can ask for; empty without one."""
        schedule = self.speculative_config.num_speculative_tokens_per_batch_size
        if not schedule:
            return set()
        return set(
            build_dynamic_sd_schedule_lookup(
                schedule,
                vllm_max_batch_size=self.max_num_reqs,
                vllm_num_speculative_tokens=self.num_speculative_steps,
            )
        )

    def capture(self) -> None:
        """Capture theta's round for vLLM's batch sizes: as one graph where the attention backend can, else by decode."""
        assert self.round_graphs is not None
        if not self.round_graphs.needs_capture():
            return
        logger.info("Capturing theta's round of %d decodes", self.num_speculative_steps + 1)
        self.slots.fill_(-1)  # the dummy rows of a capture touch no request
        self.round_graphs.capture_round(
            self._decode_round if self.supports_decode_metadata_update else self._decode,
            self.num_speculative_steps,
            self.model_state,
            self.input_buffers,
            self.block_tables,
            self.attn_groups,
            self.kv_cache_config,
        )

    # The round

    @torch.inference_mode()
    def propose(
        self,
        input_batch: InputBatch,
        attn_metadata: dict[str, Any],  # the teacher's; theta builds its own
        slot_mappings: dict[str, torch.Tensor],
        last_hidden_states: torch.Tensor,
        aux_hidden_states: list[torch.Tensor] | None,
        num_sampled: torch.Tensor,  # [num_reqs] int32
        num_rejected: torch.Tensor,  # [num_reqs] int32; the request state already counts without them
        last_sampled: torch.Tensor,  # [max_num_reqs, 1] int64
        next_prefill_tokens: torch.Tensor,
        temperature: torch.Tensor,  # [max_num_reqs] float32
        seeds: torch.Tensor,  # [max_num_reqs] int64
        dp_sync_state: DPSyncState | None = None,
        dummy_run: bool = False,
        skip_attn_for_dummy_run: bool = False,
        mm_inputs: tuple[list[torch.Tensor], torch.Tensor] | None = None,
        is_profile: bool = False,
        num_speculative_tokens: int | None = None,
    ) -> torch.Tensor:
        """Feed the newest token of each request and its drafts; returns the drafts [num_reqs, K] int64.

        With `num_speculative_tokens` < K only that many drafts are made, down to none: theta then does the one decode
        that the next token needs.
        """
        num_reqs = input_batch.num_reqs
        if dummy_run and skip_attn_for_dummy_run:
            self._profile(input_batch)
            return self.draft_tokens[:num_reqs]
        drafts = self.num_speculative_steps if num_speculative_tokens is None else num_speculative_tokens
        self.temperature.copy_(temperature)
        self.seeds.copy_(seeds)
        ROUNDS.run(
            round_inputs(
                input_batch.idx_mapping,
                torch.zeros_like(num_sampled) if dummy_run else num_sampled,
                last_sampled,
                self.req_states.total_len.gpu,
                self.requests.delta.gpu,
                self.slots,
                self.input_buffers.input_ids,
                self.input_buffers.positions,
                self.sample_positions,
                self.input_buffers.query_start_loc,
                self.input_buffers.seq_lens,
                self.draft_model_config.max_model_len,
                self.vocab_size,
                self.vocabulary.ids,
            )
        )

        num_tokens, sync = num_reqs, None
        if dp_sync_state is not None:
            sync, num_tokens = self._build_uniform_batch_dp_sync(dp_sync_state, num_reqs)
        batch_desc, sync = dispatch_cg_and_sync_dp(
            self.round_graphs,
            num_reqs,
            num_tokens,
            uniform_token_count=1,
            dp_size=self.dp_size,
            dp_rank=self.dp_rank,
            need_eager=is_profile,
            dp_sync_state=sync,
        )
        if self.round_graphs is not None:
            batch_desc = self.round_graphs.for_drafts(batch_desc, drafts)
        num_tokens_across_dp = sync.num_tokens_across_dp if sync is not None else None
        self.block_tables.gather(self.slots[:num_reqs], min(batch_desc.num_tokens, self.max_num_reqs))
        self.block_tables.null_before_windows(
            self.input_buffers.query_start_loc, self.input_buffers.positions, num_reqs
        )

        if batch_desc.cg_mode == CUDAGraphMode.FULL and self.supports_decode_metadata_update:
            assert self.round_graphs is not None
            for groups in self.attn_groups:
                for group in groups:
                    group.map_to_kernel_block_table(self.block_tables.input_block_tables[group.kv_cache_group_id])
            self.round_graphs.run_fullgraph(batch_desc)
            return self.draft_tokens[:num_reqs]

        self._decode_by_decode(input_batch, batch_desc, drafts, num_tokens_across_dp)
        return self.draft_tokens[:num_reqs]

    def _decode_by_decode(
        self,
        input_batch: InputBatch,
        batch_desc: BatchExecutionDescriptor,
        drafts: int,
        num_tokens_across_dp: torch.Tensor | None,
    ) -> None:
        """A round that is no graph as a whole: each decode eagerly, or a graph of its own."""
        num_reqs = input_batch.num_reqs
        # seq_lens of the teacher, bounded on the host, in theta's positions
        upper_bound = input_batch.seq_lens_cpu_upper_bound[:num_reqs] + torch.from_numpy(
            self.requests.delta.np[input_batch.idx_mapping_np]
        )
        for step in range(drafts + 1):
            theta_slots = self._slot_mappings(batch_desc.num_tokens)
            metadata = self._build_uniform_attn_metadata(
                batch_desc=batch_desc,
                num_reqs=num_reqs,
                num_query_per_req=1,
                seq_lens_cpu_upper_bound=upper_bound.clamp(min=0),
                step=step + 1,  # the newest token is not in the teacher's bound
            )
            self.current_draft_step.fill_(step)
            if batch_desc.cg_mode == CUDAGraphMode.FULL:
                assert self.round_graphs is not None
                self.round_graphs.run_fullgraph(batch_desc)
            else:
                self._decode(
                    num_reqs, batch_desc.num_tokens, metadata, theta_slots, num_tokens_across_dp, draw=step < drafts
                )

    @torch.inference_mode()
    def _run_model(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        attn_metadata: dict[str, Any] | None,
        slot_mappings: dict[str, torch.Tensor] | None,
        num_tokens_across_dp: torch.Tensor | None,
    ) -> torch.Tensor:
        """Theta's hidden states, `[num_tokens, hidden_size]`, of tokens `input_ids` at theta's `positions`."""
        num_tokens = input_ids.shape[0]
        with set_forward_context(
            attn_metadata,
            self.vllm_config,
            num_tokens=num_tokens,
            cudagraph_runtime_mode=CUDAGraphMode.NONE,
            num_tokens_across_dp=num_tokens_across_dp,
            slot_mapping=slot_mappings,
            batch_descriptor=BatchDescriptor(num_tokens=num_tokens),
        ):
            self.inputs.set_positions(positions)
            hidden_states = self.model(**self.inputs.arguments(self.model, input_ids, positions))
        return hidden_states[0] if isinstance(hidden_states, tuple) else hidden_states

    def _slot_mappings(self, num_tokens: int) -> dict[str, torch.Tensor]:
        slot_mappings = self.block_tables.compute_decode_slots(self.input_buffers.positions, num_tokens)
        return build_slot_mappings_by_layer(slot_mappings, self.kv_cache_config)

    def _decode_round(
        self,
        num_reqs: int,
        num_tokens: int,
        attn_metadata: dict[str, Any],
        slot_mappings: dict[str, torch.Tensor],
        num_tokens_across_dp: torch.Tensor | None,
        cudagraph_runtime_mode: CUDAGraphMode,
        num_drafts: int,
    ) -> None:
        """The whole round, as a CUDA graph holds it: slots and attention metadata are brought forward in place."""
        for step in range(num_drafts + 1):
            self._slot_mappings(num_tokens)
            self._update_draft_decode_metadata(attn_metadata, num_reqs)
            self.current_draft_step.fill_(step)
            self._decode(
                num_reqs,
                num_tokens,
                attn_metadata,
                slot_mappings,
                num_tokens_across_dp,
                draw=step < num_drafts,
            )

    def _decode(
        self,
        num_reqs: int,
        num_tokens: int,
        attn_metadata: dict[str, Any] | None,
        slot_mappings: dict[str, torch.Tensor] | None,
        num_tokens_across_dp: torch.Tensor | None,
        cudagraph_runtime_mode: CUDAGraphMode = CUDAGraphMode.NONE,
        num_drafts: int = 0,
        draw: bool = True,
    ) -> None:
        """One decode: theta's logits into row `current_draft_step`, a token drawn from them into the next input."""
        hidden_states = self._run_model(
            self.input_buffers.input_ids[:num_tokens],
            self.input_buffers.positions[:num_tokens],
            attn_metadata,
            slot_mappings,
            num_tokens_across_dp,
        )
        logits = self.vocabulary.rows(self.compute_draft_logits(hidden_states[:num_reqs], 0))
        if not draw:
            keep_rows(logits, self.slots, self.draft_logits, self.current_draft_step)
            return
        drafted = gumbel_sample(
            logits,
            self.slots[:num_reqs],
            self.temperature,
            self.seeds,
            self.sample_positions[:num_reqs],
            apply_temperature=True,
            is_drafting=True,
            logits_cache=self.draft_logits,
            logits_cache_col=self.current_draft_step,
            use_fp64=self.use_fp64_gumbel,
        )
        advance_round(
            drafted,
            self.slots,
            self.draft_tokens,
            self.input_buffers.input_ids,
            self.input_buffers.positions,
            self.sample_positions,
            self.input_buffers.seq_lens,
            self.current_draft_step,
            self.draft_model_config.max_model_len,
            self.vocabulary.ids,
        )

    def _profile(self, input_batch: InputBatch) -> None:
        """What a step with theta takes at most, for vLLM's memory profile."""
        hidden_states = self._run_model(
            self.input_buffers.input_ids[: input_batch.num_tokens],
            self.input_buffers.positions[: input_batch.num_tokens],
            None,
            None,
            None,
        )
        self.compute_draft_logits(hidden_states[: input_batch.num_reqs], 0)
        del hidden_states
        # vLLM profiles one row a request. A step verifies K + 1: all in the head's dtype, a chunk of them in float32.
        vocab_size = self.rows.shape[-1]
        num_rows = min(self.max_num_reqs * (self.num_speculative_steps + 1), self.max_num_tokens)
        rows = self.rows.new_empty(num_rows, vocab_size)
        chunk = rows.new_empty(min(num_rows, chunk_rows_in_float32(vocab_size)), vocab_size, dtype=torch.float32)
        del rows, chunk
