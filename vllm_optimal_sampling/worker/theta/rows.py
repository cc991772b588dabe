"""What one forward of theta computes, as the host knows it: rows of running requests, and theta's part of prompt chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
from vllm.v1.worker.gpu.input_batch import InputBatch

from vllm_optimal_sampling.engine_core.layout import split_by_position
from vllm_optimal_sampling.worker.theta.requests import ThetaRequests


@dataclass(frozen=True)
class Rows:
    """What one forward computes, as the host knows it; arrays have one entry for each row, a request of one model."""

    batch_rows: np.ndarray
    """int64: of the request in vLLM's batch."""
    slots: np.ndarray
    """int64: of the request in the model runner."""
    sources: np.ndarray
    """int64: where the row's tokens begin in the batch, -1 for theta's part of a prompt chunk."""
    firsts: np.ndarray
    """int64: theta's first position of a prompt chunk; 0 in other rows."""
    lengths: np.ndarray
    """int64: tokens."""
    seq_lens: np.ndarray
    """int64: an upper bound of the positions that the row's last token sees, itself included."""
    finished: np.ndarray
    """bool: the row ends where the teacher's row does; False in the middle of a prompt, or of a head start."""
    num_teacher_rows: int = 0
    """So many rows, the first, are the teacher's."""

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def is_chunk(self) -> np.ndarray:
        return self.sources < 0

    def sorted(self) -> Rows:
        """Short rows first, as attention backends expect them; empty ones dropped."""
        order = np.argsort(self.lengths, kind="stable")
        order = order[self.lengths[order] > 0]
        arrays = {name: array[order] for name, array in self._arrays().items()}
        return Rows(**arrays, num_teacher_rows=0)

    def _arrays(self) -> dict[str, np.ndarray]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "num_teacher_rows"}


def joined(first: Rows, second: Rows) -> Rows:
    """Both, one after the other; the second has none of the teacher's."""
    later = second._arrays()
    arrays = {name: np.concatenate((array, later[name])) for name, array in first._arrays().items()}
    return Rows(**arrays, num_teacher_rows=first.num_teacher_rows)


def decode_rows(requests: ThetaRequests, batch: InputBatch, batch_rows: np.ndarray, of_teacher: bool = False) -> Rows:
    """Rows of running requests: the batch's own tokens in theta's positions, or the teacher's."""
    slots = batch.idx_mapping_np[batch_rows]
    lengths = batch.num_scheduled_tokens[batch_rows].astype(np.int64)
    # The host counts drafts as computed that may have been rejected.
    bound = batch.num_computed_tokens_np[batch_rows] + lengths
    return Rows(
        batch_rows=batch_rows,
        slots=slots.astype(np.int64),
        sources=batch.query_start_loc_np[batch_rows].astype(np.int64),
        firsts=np.zeros(len(batch_rows), dtype=np.int64),
        lengths=lengths,
        seq_lens=bound if of_teacher else bound + requests.delta.np[slots],
        finished=np.ones(len(batch_rows), dtype=bool),
        num_teacher_rows=len(batch_rows) if of_teacher else 0,
    )


def chunk_rows(requests: ThetaRequests, batch: InputBatch, batch_rows: np.ndarray) -> Rows:
    """Theta's part of prompt chunks, whose positions the host knows: no draft before them could be rejected.

    The requests count them as computed from here on.
    """
    slots = batch.idx_mapping_np[batch_rows]
    prefill_len = batch.prefill_len_np[batch_rows].astype(np.int64)
    begin = batch.num_computed_tokens_np[batch_rows].astype(np.int64)
    # A one-token prompt chunk may come padded with placeholder drafts; they are no part of the prompt.
    end = np.minimum(begin + batch.num_scheduled_tokens[batch_rows], prefill_len)
    starts, ends = requests.next_chunk(slots, begin, end)
    return Rows(
        batch_rows=batch_rows,
        slots=slots.astype(np.int64),
        sources=np.full(len(slots), -1, dtype=np.int64),
        firsts=starts,
        lengths=ends - starts,
        seq_lens=ends,
        finished=end == prefill_len,
    )


def passes(decodes: Rows | None, chunks: Rows, max_num_tokens: int) -> Iterator[Rows]:
    """Forwards of at most `max_num_tokens` tokens, each of some rows; short rows first in each.

    Running requests come first, or along: a block that one of them fills may be hit by a prompt of the same step.
    """
    rows = chunks if decodes is None else joined(decodes, chunks)
    if rows.num_tokens <= max_num_tokens:
        if rows.num_tokens:
            yield rows.sorted()
        return
    if decodes is not None and len(decodes):
        yield decodes.sorted()
    # The head start of a longer theta prompt can exceed the budget: several forwards, none above it.
    starts, ends = chunks.firsts, chunks.firsts + chunks.lengths
    for ranges in split_by_position(starts.tolist(), ends.tolist(), max_num_tokens):
        first, last = (np.array(bounds, dtype=np.int64) for bounds in zip(*ranges, strict=True))
        finished = chunks.finished & (last == ends)
        yield replace(chunks, firsts=first, lengths=last - first, seq_lens=last, finished=finished).sorted()
