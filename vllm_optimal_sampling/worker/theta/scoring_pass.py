"""One forward of rows that theta scores, in buffers of its own: laid out, run, as CUDA graphs where there are some."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from vllm.config import ModelConfig, VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.forward_context import BatchDescriptor, set_forward_context
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu.attn_utils import build_attn_metadata, build_slot_mappings_by_layer, init_attn_backend
from vllm.v1.worker.gpu.block_table import BlockTables
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor
from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers
from vllm.v1.worker.gpu.model_states.interface import ModelSpecificAttnMetadata
from vllm.v1.worker.gpu.states import RequestState
from vllm.v1.worker.utils import get_uniform_decode_token_count

from vllm_optimal_sampling.config.settings import EngineSettings
from vllm_optimal_sampling.worker.theta.block_tables import ThetaBlockTables, widen_kernel_block_tables
from vllm_optimal_sampling.worker.theta.piece_graphs import PieceGraphs, has_pieces
from vllm_optimal_sampling.worker.theta.requests import ThetaRequests
from vllm_optimal_sampling.worker.theta.rows import Rows
from vllm_optimal_sampling.worker.theta.scoring_graphs import ScoringGraphs
from vllm_optimal_sampling.worker.theta.scoring_inputs import FORWARDS, scoring_inputs
from vllm_optimal_sampling.worker.theta.states import state_metadata
from vllm_optimal_sampling.worker.theta.text_inputs import TextInputs


class ScoringPass:
    """Forwards of a model over `Rows`.

    Args:
        vllm_config: the engine's.
        max_num_reqs: most rows in one forward.
        req_states: the model runner's.
        requests: theta's.
        model_config: theta's.
        theta_ids: [teacher's ids], what theta reads; None where both read the same.
    """

    def __init__(
        self,
        vllm_config: VllmConfig,
        max_num_reqs: int,
        req_states: RequestState,
        requests: ThetaRequests,
        model_config: ModelConfig,
        theta_ids: torch.Tensor | None,
    ):
        # Metadata builders and graphs size their buffers by the number of requests.
        self.vllm_config = copy.copy(vllm_config)
        self.vllm_config.scheduler_config = copy.copy(vllm_config.scheduler_config)
        self.vllm_config.scheduler_config.max_num_seqs = max_num_reqs
        self.max_num_reqs = max_num_reqs
        self.max_num_tokens = vllm_config.scheduler_config.max_num_batched_tokens
        self.decode_query_len = vllm_config.num_speculative_tokens + 1
        self.req_states = req_states
        self.requests = requests
        self.model_max_len = model_config.max_model_len
        self.vocab_size = model_config.get_vocab_size()
        self.theta_ids = theta_ids
        self.device = req_states.device
        self.buffers = InputBuffers(max_num_reqs, self.max_num_tokens, self.device)
        self.inputs = TextInputs(model_config, self.max_num_tokens, self.device)
        self.graphs: ScoringGraphs | None = None
        self.pieces: PieceGraphs | None = None

    def set_attn(
        self,
        kv_cache_config: KVCacheConfig,
        block_tables: BlockTables,
        layer_names: Mapping[str, str],
        block_offset: int,
        accepted: torch.Tensor | None = None,
    ) -> None:
        """Take over the cache as it was laid out.

        Args:
            kv_cache_config: as the model runner has it.
            block_tables: the model runner's.
            layer_names: of the layers that hold theta's cache, by the names of those that run.
            block_offset: see `ThetaBlockTables`.
            accepted: see `accepted_tokens` in `states`.
        """
        self.kv_cache_config = kv_cache_config
        self.accepted_tokens = accepted
        self.layer_names = layer_names
        self.attn_groups, self.attn_cg_support, _ = init_attn_backend(
            kv_cache_config, self.vllm_config, self.device, active_layer_names=set(layer_names.values())
        )
        widen_kernel_block_tables(self.attn_groups, block_tables)
        self.block_tables = ThetaBlockTables(
            block_tables, self.requests, kv_cache_config, self.max_num_reqs, block_offset
        )

    def init_graphs(self, cudagraph_mode: CUDAGraphMode, lora_capture_cases: list[int]) -> None:
        """Make room for graphs of decode steps, in which every row has K + 1 tokens.

        Args:
            cudagraph_mode: the teacher's, as vLLM resolved it.
            lora_capture_cases: numbers of adapters that a forward may hold.
        """
        full = cudagraph_mode.decode_mode() == CUDAGraphMode.FULL
        self.graphs = ScoringGraphs(
            self.vllm_config,
            self.device,
            CUDAGraphMode.FULL_DECODE_ONLY if full else CUDAGraphMode.NONE,
            decode_query_len=self.decode_query_len,
            lora_capture_cases=lora_capture_cases,
        )

    def init_pieces(self, model: nn.Module, cudagraph_mode: CUDAGraphMode, runner: Any = None) -> None:
        """Use graphs of the model's pieces for all other passes, if the engine asks for them (`theta_prompt_graphs`).

        Only where vLLM makes some and their inputs stay in one place: embeddings are made anew for each pass.

        Args:
            model: that runs.
            cudagraph_mode: the teacher's, as vLLM resolved it.
            runner: the model runner where the model is the teacher, whose graphs then serve theta too.
        """
        self.pieces = None
        is_asked = EngineSettings.from_config(self.vllm_config).theta_prompt_graphs
        if not is_asked or self.inputs.takes_embeddings or not has_pieces(model, cudagraph_mode):
            return
        if runner is None:
            self.pieces = PieceGraphs.of_theta(self.vllm_config, self.device, self.buffers)
        # A piece that writes the cache would write to the teacher's slots.
        elif (
            self.inputs.rope_positions is None
            and self.vllm_config.compilation_config.splitting_ops_contain_kv_cache_update()
        ):
            self.pieces = PieceGraphs.of_teacher(runner)

    def profile(self, model: nn.Module) -> None:
        """The largest forward, without attention, for vLLM's memory profile.

        It compiles the model too. Pieces that are compiled while vLLM captures graphs to throw them away keep a memory pool
        that goes with those.
        """
        tokens, positions = self.buffers.input_ids, self.buffers.positions
        self.inputs.set_positions(positions)
        with set_forward_context(None, self.vllm_config, num_tokens=self.max_num_tokens):
            model(**self.inputs.arguments(model, tokens, positions))

    def drop_graphs(self) -> None:
        """Let go of graphs that vLLM captured to see what memory they take."""
        self.graphs = self.pieces = None

    @property
    def has_graphs(self) -> bool:
        """Whether a forward may be a replay of CUDA graphs."""
        return self.pieces is not None or self.graphs is not None

    def run(
        self,
        model: Callable[..., Any],
        rows: Rows,
        batch: InputBatch,
        num_active_loras: int = 0,
        teachers_positions: torch.Tensor | None = None,
    ) -> Any:
        """The model's output for the rows' tokens; rows follow one another as `Rows.lengths` says.

        Args:
            model: called as vLLM's model runner calls it.
            rows: what to compute.
            batch: vLLM's batch of the step.
            num_active_loras: adapters among the rows.
            teachers_positions: [dimensions, the teacher's tokens], of a model with M-RoPE.
        """
        desc = self._dispatch(rows, num_active_loras)
        num_reqs_padded, num_tokens_padded = desc.num_reqs or len(rows), desc.num_tokens
        starts = _query_starts(rows, num_reqs_padded)
        slots = self._lay_out(rows, batch, starts, num_tokens_padded)
        self.inputs.set_positions(self.buffers.positions[:num_tokens_padded], teachers_positions)
        slot_mappings = self._slot_mappings(rows, num_reqs_padded, num_tokens_padded)
        attn_metadata = self._attn_metadata_of(rows, desc, starts, slots, slot_mappings)
        if desc.cg_mode == CUDAGraphMode.FULL:
            assert self.graphs is not None
            self.graphs.run_fullgraph(desc)
            return self.graphs.output(num_tokens_padded)
        if desc.cg_mode == CUDAGraphMode.PIECEWISE:
            assert self.pieces is not None
            with self.pieces.holding(self.buffers, rows.num_tokens, num_tokens_padded):
                return self._forward(model, num_tokens_padded, attn_metadata, slot_mappings, desc, desc.cg_mode)
        return self._forward(model, num_tokens_padded, attn_metadata, slot_mappings, desc)

    def _lay_out(self, rows: Rows, batch: InputBatch, starts: np.ndarray, num_tokens_padded: int) -> torch.Tensor:
        """Fill the buffers with the rows' tokens, positions and lengths, and gather their block tables.

        Args:
            rows: see `run`, as `batch`.
            starts: see `_query_starts`.
            num_tokens_padded: of the forward.

        Returns:
            int64 [rows]: their request slots, on the device.
        """
        buffers, num_reqs, num_reqs_padded = self.buffers, len(rows), len(starts) - 1
        query_start_loc = buffers.query_start_loc[: num_reqs_padded + 1]
        async_tensor_h2d(starts, out=query_start_loc)
        # One copy for the three of them, each at an aligned address: another alignment is another compiled kernel.
        where = np.zeros((3, num_reqs + num_reqs % 2), dtype=np.int64)
        where[:, :num_reqs] = rows.slots, rows.sources, rows.firsts
        slots, sources, firsts = async_tensor_h2d(where, device=self.device)[:, :num_reqs]
        self.block_tables.gather(slots, num_reqs_padded, rows.num_teacher_rows)
        FORWARDS.run(
            scoring_inputs(
                slots,
                sources,
                firsts,
                query_start_loc,
                batch.input_ids,
                batch.positions,
                self.requests.prompts.gpu,
                self.requests.prompt_len.gpu,
                self.requests.delta.gpu,
                self.req_states.all_token_ids.gpu,
                buffers.input_ids,
                buffers.positions,
                buffers.seq_lens,
                num_tokens_padded,
                rows.num_teacher_rows,
                self.model_max_len,
                self.vocab_size,
                self.theta_ids,
            )
        )
        return slots

    def _slot_mappings(self, rows: Rows, num_reqs_padded: int, num_tokens_padded: int) -> torch.Tensor:
        """Where the cache takes the tokens that were laid out."""
        num_reqs, positions = len(rows), self.buffers.positions
        query_start_loc = self.buffers.query_start_loc[: num_reqs_padded + 1]
        self.block_tables.null_before_windows(query_start_loc, positions, num_reqs)
        one_each = rows.lengths.min() == rows.lengths.max() == 1 and num_tokens_padded == num_reqs_padded
        if one_each and self.device.type == "cpu":
            # Triton's interpreter pays for each program, and this is one for all rows: 1 ms instead of 8.
            return self.block_tables.compute_decode_slots(positions, num_tokens_padded)
        return self.block_tables.compute_slot_mappings(query_start_loc, positions, num_reqs, num_tokens_padded)

    def _attn_metadata_of(
        self,
        rows: Rows,
        desc: BatchExecutionDescriptor,
        starts: np.ndarray,
        slots: torch.Tensor,
        slot_mappings: torch.Tensor,
    ) -> dict[str, Any]:
        """What attention is told of the rows, by the names of the layers that run."""
        num_reqs, num_reqs_padded = len(rows), len(starts) - 1
        seq_lens_np = np.zeros(num_reqs_padded, dtype=np.int32)
        seq_lens_np[:num_reqs] = rows.seq_lens
        is_prefilling = torch.zeros(num_reqs_padded, dtype=torch.bool)
        is_prefilling[:num_reqs] = torch.from_numpy(rows.is_chunk)
        accepted = self.accepted_tokens
        return self._attn_metadata(
            num_reqs_padded,
            desc.num_tokens if desc.cg_mode == CUDAGraphMode.FULL else rows.num_tokens,
            starts,
            int(rows.lengths.max()),
            torch.from_numpy(seq_lens_np),
            int(seq_lens_np.max()),
            slot_mappings,
            is_prefilling,
            None if accepted is None else state_metadata(rows, is_prefilling, slots, accepted),
        )

    def capture(self, model: Callable[..., Any], lora_capture_hook: Callable[[int, int, int], None] | None) -> None:
        """Capture the graphs: of pieces, and of decode steps.

        Args:
            model: see `run`.
            lora_capture_hook: vLLM's, called with the numbers of adapters, requests and tokens of each graph.
        """
        if self.pieces is not None:  # first, as vLLM does: they hold the most tokens
            self.pieces.capture(lambda desc, warmup: self._forward_to_capture(model, desc))
        if self.graphs is None or not self.graphs.needs_capture():
            return

        def create_forward_fn(desc: BatchExecutionDescriptor, warmup: bool) -> Callable[[CUDAGraphMode], None]:
            num_tokens = desc.num_tokens
            num_reqs = desc.num_reqs or min(num_tokens, self.max_num_reqs)
            if lora_capture_hook is not None:
                lora_capture_hook(desc.num_active_loras, num_reqs, num_tokens)
            # With a schedule there are graphs of fewer drafts than the most.
            query_len = desc.uniform_token_count or self.decode_query_len
            attn_metadata, slot_mappings = self._inputs_to_capture(num_reqs, num_tokens, query_len)

            def forward_fn(cg_mode: CUDAGraphMode) -> None:
                output = self._forward(model, num_tokens, attn_metadata, slot_mappings, desc)
                assert self.graphs is not None
                self.graphs.keep(output, num_tokens)

            return forward_fn

        self.graphs.capture(create_forward_fn, "Capturing CUDA graphs of steps with theta")

    def _forward_to_capture(
        self, model: Callable[..., Any], desc: BatchExecutionDescriptor
    ) -> Callable[[CUDAGraphMode], None]:
        """One forward of so many tokens, whose pieces are captured."""
        num_tokens = desc.num_tokens
        attn_metadata, slot_mappings = self._inputs_to_capture(min(num_tokens, self.max_num_reqs), num_tokens, None)

        def forward_fn(cg_mode: CUDAGraphMode) -> None:
            self._forward(model, num_tokens, attn_metadata, slot_mappings, desc, cg_mode)

        return forward_fn

    def _dispatch(self, rows: Rows, num_active_loras: int) -> BatchExecutionDescriptor:
        """A graph of the whole forward where one fits, else those of its pieces, else none."""
        num_reqs, num_tokens = len(rows), rows.num_tokens
        if self.graphs is not None and not rows.is_chunk.any():
            uniform = get_uniform_decode_token_count(
                num_reqs, num_tokens, int(rows.lengths.max()), decode_graph_eligible=True
            )
            desc = self.graphs.dispatch(num_reqs, num_tokens, uniform, num_active_loras)
            if desc.cg_mode == CUDAGraphMode.FULL:
                return desc
        in_pieces = None if self.pieces is None else self.pieces.dispatch(num_reqs, num_tokens, num_active_loras)
        eager = BatchExecutionDescriptor(CUDAGraphMode.NONE, num_tokens, num_reqs, num_active_loras=num_active_loras)
        return in_pieces or eager

    def _inputs_to_capture(
        self, num_reqs: int, num_tokens: int, query_len: int | None
    ) -> tuple[dict[str, Any], torch.Tensor]:
        """Attention metadata and slots of a dummy batch: of `query_len` tokens a request; None for graphs of pieces."""
        batch = InputBatch.make_dummy(num_reqs, num_tokens, self.buffers, max_query_len=query_len)
        self.block_tables.get_dummy_block_tables(num_reqs)
        slot_mappings = self.block_tables.get_dummy_slot_mappings(num_tokens)
        attn_metadata = self._attn_metadata(
            num_reqs,
            num_tokens,
            batch.query_start_loc_np,
            query_len or int(batch.num_scheduled_tokens.max()),
            batch.seq_lens_cpu_upper_bound,
            self.vllm_config.model_config.max_model_len,
            slot_mappings,
            torch.zeros(num_reqs, dtype=torch.bool),
            for_capture=query_len is not None,  # attention is in no graph of pieces
        )
        return attn_metadata, slot_mappings

    def _attn_metadata(
        self,
        num_reqs: int,
        num_tokens: int,
        query_start_loc_np: np.ndarray,
        max_query_len: int,
        seq_lens_cpu: torch.Tensor,
        max_seq_len: int,
        slot_mappings: torch.Tensor,
        is_prefilling: torch.Tensor,
        of_states: ModelSpecificAttnMetadata | None = None,
        for_capture: bool = False,
    ) -> dict[str, Any]:
        by_cache = build_attn_metadata(
            attn_groups=self.attn_groups,
            num_reqs=num_reqs,
            num_tokens=num_tokens,
            query_start_loc_gpu=self.buffers.query_start_loc[: num_reqs + 1],
            query_start_loc_cpu=torch.from_numpy(query_start_loc_np),
            max_query_len=max_query_len,
            seq_lens=self.buffers.seq_lens[:num_reqs],
            max_seq_len=max_seq_len,
            block_tables=[table[:num_reqs] for table in self.block_tables.input_block_tables],
            slot_mappings=slot_mappings,
            kv_cache_config=self.kv_cache_config,
            seq_lens_cpu_upper_bound=seq_lens_cpu,
            positions=self.buffers.positions[:num_tokens],
            is_prefilling=is_prefilling,
            model_specific_attn_metadata=of_states,
            for_cudagraph_capture=for_capture,
        )
        return {name: by_cache[cache] for name, cache in self.layer_names.items()}

    def _forward(
        self,
        model: Callable[..., Any],
        num_tokens: int,
        attn_metadata: dict[str, Any],
        slot_mappings: torch.Tensor,
        desc: BatchExecutionDescriptor,
        cg_mode: CUDAGraphMode = CUDAGraphMode.NONE,
    ) -> Any:
        buffers, is_padding = self.buffers, None
        if desc.cg_mode == CUDAGraphMode.PIECEWISE:
            assert self.pieces is not None
            buffers = self.pieces.inputs
            is_padding = buffers.is_padding[:num_tokens]
        by_cache = build_slot_mappings_by_layer(slot_mappings, self.kv_cache_config)
        has_lora = self.vllm_config.lora_config is not None
        with set_forward_context(
            attn_metadata,
            self.vllm_config,
            num_tokens=num_tokens,
            cudagraph_runtime_mode=cg_mode,
            batch_descriptor=BatchDescriptor(
                num_tokens=num_tokens, has_lora=has_lora, num_active_loras=desc.num_active_loras
            ),
            slot_mapping={name: by_cache[cache] for name, cache in self.layer_names.items()},
            is_padding=is_padding,
        ):
            tokens, positions = buffers.input_ids[:num_tokens], buffers.positions[:num_tokens]
            return model(**self.inputs.arguments(model, tokens, positions))


def _query_starts(rows: Rows, num_reqs_padded: int) -> np.ndarray:
    """[num_reqs_padded + 1]: where each row's tokens begin, on the host; rows of padding begin behind all tokens."""
    starts = np.full(num_reqs_padded + 1, rows.num_tokens, dtype=np.int32)
    starts[0] = 0
    np.cumsum(rows.lengths, out=starts[1 : len(rows) + 1])
    return starts
