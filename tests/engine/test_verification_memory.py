"""Verification works through its rows in chunks of our size: what that takes, and that no row notices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from vllm import LLM
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler

from support.cases import generate, mixed_batch, theta_prompts
from support.engines import find_runner
from support.reference_models import Reference
from support.row_audit import RowAudit
from vllm_optimal_sampling.worker import verification_memory
from vllm_optimal_sampling.worker.verification_memory import GIB, MIB, RowMemory, chunk_rows_in_float32


def test_bytes_by_hand() -> None:
    """Qwen2.5's vocabulary in bfloat16, 256 requests, four drafts: ten rows of 0.29 MiB each, and the chunk."""
    memory = RowMemory(max_num_seqs=256, drafts=4, vocab_size=151_936, row_bytes=2)
    assert memory.per_request == 2 * 5 * 151_936 * 2
    assert 0.24 * GIB < memory.chunk <= 0.25 * GIB
    assert memory.total == 256 * memory.per_request + memory.chunk
    assert f"{memory.per_request / MIB:.1f} MiB a request" in str(memory)
    small = RowMemory(max_num_seqs=8, drafts=1, vocab_size=1000, row_bytes=4)
    assert small.chunk == 4 * 16 * 1000
    assert chunk_rows_in_float32(10**9) == 1


def test_rows_in_chunks_are_right(
    engines: Callable[..., LLM], reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk that holds a request or two: most steps take several.

    vLLM's kernels get what lies at an address that 16 divides, wherever a chunk begins: Triton has compiled them for that.
    """
    llm = engines()
    monkeypatch.setattr(verification_memory, "CHUNK_BYTES", 4 * 6 * find_runner(llm).model_config.get_vocab_size())
    verify, chunks = RejectionSampler._verify, [0]

    def counted(self: RejectionSampler, *args: object) -> object:
        chunks[0] += 1
        assert all(tensor.data_ptr() % 16 == 0 for tensor in args if isinstance(tensor, torch.Tensor))
        return verify(self, *args)

    monkeypatch.setattr(RejectionSampler, "_verify", counted)
    cases = mixed_batch(seed=23, long=70)
    with RowAudit(llm) as audit:
        outputs = generate(llm, cases, max_tokens=8)
    report = audit.check(reference, theta_prompts(cases, outputs))
    assert report.mixed
    assert chunks[0] > 2 * len({row.step for row in audit.rows if row.draft_position}) / 2
