"""Records on the worker: log-probabilities of the tokens drawn, and the step's tally, copied beside the tokens.

Nothing here waits for the device. Which requests want a record is known on the host by request slot; while none in the
batch does, a step costs one small launch and one copy of some forty floats, for the metrics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vllm.v1.worker.gpu.async_utils import async_copy_to_np, stream

from vllm_optimal_sampling.kernels import MixRecord, drawn_tokens, tally, token_logprobs
from vllm_optimal_sampling.kernels.record import Kind
from vllm_optimal_sampling.kernels.tally import NUM_EDGES
from vllm_optimal_sampling.params import OptimalSamplingParams
from vllm_optimal_sampling.wire import ALPHA_EDGES, KL_EDGES, RECORD_FIELDS, TOP_FIELDS, StepRecords
from vllm_optimal_sampling.worker.top_tokens import TopTokens


@dataclass
class DeviceRecords:
    """A step's records on their way to the host."""

    rows: torch.Tensor | None
    """`[requests, K + 1, len(RECORD_FIELDS)]` float32, with the columns of `TopTokens` behind them where a request wants
    those; None where no request wants its rows."""
    tally: torch.Tensor
    """`[TALLY_SIZE]` float32."""
    wanted: list[tuple[str, int, int]]
    """Id, index in the batch and `return_top_k` of the requests that want their rows."""

    def start_copy(self, copy_stream: Any, main_stream: Any, event: Any) -> None:
        """Queue the copies behind vLLM's own, and move the event that the host waits for behind them."""
        with stream(copy_stream, main_stream):
            self.rows_np = None if self.rows is None else async_copy_to_np(self.rows)
            self.tally_np = async_copy_to_np(self.tally)
            event.record(copy_stream)

    def on_host(self) -> StepRecords:
        """The step as it arrived; only once the event has passed."""
        rows = {}
        if self.rows_np is not None:
            rows = {request_id: _own_columns(self.rows_np[index], k) for request_id, index, k in self.wanted}
        return StepRecords(rows, self.tally_np)


class Recorder:
    """Fills in and gathers the records of a worker's batches.

    Args:
        theta_logits: `[slots, K + 1, vocab]`, theta's rows as the mix reads them.
        first_position: `[slots]` int64, of `MixSettings`.
        record: what the mix writes.
    """

    def __init__(self, theta_logits: torch.Tensor, first_position: torch.Tensor, record: MixRecord):
        self.theta_logits = theta_logits
        self.first_position = first_position
        self.record = record
        self.edges = _histogram_edges().to(record.alpha.device)
        self.wanted = np.zeros(record.alpha.shape[0], dtype=bool)
        self.top_k = np.zeros(record.alpha.shape[0], dtype=np.int32)
        self.top: TopTokens | None = None

    def add(self, slot: int, params: OptimalSamplingParams) -> None:
        """Take over a slot for a request. One that opted out has no mix to report."""
        self.wanted[slot] = params.return_alpha and params.optimal_sampling
        self.top_k[slot] = k = min(params.return_top_k, self.theta_logits.shape[-1])
        if k > (0 if self.top is None else self.top.k):  # a larger one; what the last step wrote is on its way already
            num_slots, num_positions = self.record.alpha.shape
            self.top = TopTokens.allocate(num_slots, num_positions, k, self.record.alpha.device)

    def is_wanted(self, slots: np.ndarray) -> bool:
        """Whether a request of these slots wants its record."""
        return bool(self.wanted[slots].any())

    def wants_top(self, slots: np.ndarray) -> bool:
        """Whether a request of these slots wants the likeliest tokens of its rows."""
        return bool(self.top_k[slots].any())

    def write(
        self,
        token_ids: torch.Tensor,
        teacher_logits: torch.Tensor,
        slots: torch.Tensor,
        draft_positions: torch.Tensor,
        with_top: bool,
    ) -> None:
        """Record the log-probabilities of the token drawn in each row, and the likeliest tokens.

        Args:
            token_ids: `[rows]`, negative where a row has no token.
            teacher_logits: `[rows, vocab]` as the teacher gave them, a grammar applied.
            slots: `[rows]`, the request slot of each row.
            draft_positions: `[rows]`, how many drafts are before it.
            with_top: whether a request of these rows has `return_top_k`.
        """
        token_logprobs(
            token_ids,
            teacher_logits,
            self.theta_logits,
            slots,
            draft_positions.to(torch.int32),
            self.record,
        )
        if with_top:
            assert self.top is not None
            self.top.write(teacher_logits, self.theta_logits, slots, draft_positions, self.record)

    def write_verified(
        self,
        sampled: torch.Tensor,
        num_sampled: torch.Tensor,
        cu_num_logits: torch.Tensor,
        teacher_logits: torch.Tensor,
        slots: torch.Tensor,
        draft_positions: torch.Tensor,
        with_top: bool,
    ) -> None:
        """The same after verification.

        Args:
            sampled: `[requests, K + 1]`, the tokens of each request: accepted drafts and the one drawn after them.
            num_sampled: `[requests]`, how many of them count.
            cu_num_logits: `[requests + 1]`, where each request's rows begin.
            teacher_logits: see `write`, as `slots`, `draft_positions` and `with_top`.
        """
        token_ids = drawn_tokens(sampled, num_sampled.to(torch.int32), cu_num_logits, teacher_logits.shape[0])
        self.write(token_ids, teacher_logits, slots, draft_positions, with_top)

    def gather(self, input_batch: Any, num_sampled: torch.Tensor) -> DeviceRecords:
        """What the step leaves to report, on the device still; the next step may overwrite the record.

        Args:
            input_batch: vLLM's batch of the step.
            num_sampled: `[requests]`, the tokens that each request drew; 0 in the middle of a prompt.
        """
        slots = input_batch.idx_mapping
        counts = tally(slots, num_sampled.to(torch.int32), self.first_position, self.edges, self.record)
        wanted = np.flatnonzero(self.wanted[input_batch.idx_mapping_np]).tolist()
        if not wanted:
            return DeviceRecords(None, counts, [])
        record = self.record
        columns = (
            record.alpha,
            record.kl_theta,
            _log_z(record),
            record.logprob,
            record.teacher_logprob,
            record.theta_logprob,
            record.fallback.to(torch.float32),
        )  # as RECORD_FIELDS names them
        rows = torch.stack(columns, dim=-1).index_select(0, slots)
        top_k = self.top_k[input_batch.idx_mapping_np]
        if top_k.any():
            assert self.top is not None
            rows = torch.cat([rows, self.top.columns(slots)], dim=-1)
        return DeviceRecords(rows, counts, [(input_batch.req_ids[index], index, int(top_k[index])) for index in wanted])


def _own_columns(rows: np.ndarray, k: int) -> np.ndarray:
    """A request's rows `[K + 1, ...]` without the likeliest tokens behind the first k: the others' k may be larger."""
    record, top = np.split(rows, [len(RECORD_FIELDS)], axis=-1)
    top = top.reshape(len(rows), len(TOP_FIELDS), -1)[:, :, :k]
    return np.concatenate([record, top.reshape(len(rows), -1)], axis=-1)


def _log_z(record: MixRecord) -> torch.Tensor:
    """`[slots, K + 1]` float32: log Z of the two models' probabilities; nan where the row is no geometric mixture.

    The record's own normaliser is that of the logits, as the mix needs it.
    """
    theirs = record.alpha * record.mixed_teacher_lse + (1 - record.alpha) * record.mixed_theta_lse
    log_z = (record.log_z - theirs).clamp(max=0)
    return torch.where(record.kind == int(Kind.GEOMETRIC), log_z, torch.nan)


def _histogram_edges() -> torch.Tensor:
    """`[2, NUM_EDGES]` float32: the upper bounds of both histograms, filled up with inf."""
    table = torch.full((2, NUM_EDGES), float("inf"))
    table[0, : len(ALPHA_EDGES)] = torch.tensor(ALPHA_EDGES)
    table[1, : len(KL_EDGES)] = torch.tensor(KL_EDGES)
    return table
