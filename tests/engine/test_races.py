"""What the host may overwrite while theta's round is still to run, and blocks that left a window: neither is ever read."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm import LLM
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec
from vllm.v1.worker.gpu.buffer_utils import UvaBackedTensor

from support.cases import generate, mixed_batch, theta_prompts
from support.engines import find_runner
from support.gpu import ON_GPU
from support.pieces_on_cpu import run_in_pieces
from support.reference_models import Reference
from support.row_audit import AuditError, RowAudit
from vllm_optimal_sampling.worker import model_runner
from vllm_optimal_sampling.worker.theta.block_tables import ThetaBlockTables

DEVICE = torch.device("cuda" if ON_GPU else "cpu")


def test_theta_reads_nothing_that_the_host_may_overwrite(
    engines: Callable[..., LLM], reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a step's tokens are on the host, the host prepares the step after next in the same one of two buffers.

    Here every such buffer is spoilt before theta's round, and is what it was for the next step.
    """
    llm = engines()
    runner = find_runner(llm)
    theta = runner.speculator
    shared = [value for value in vars(theta.requests).values() if isinstance(value, UvaBackedTensor)]
    shared.append(runner.block_tables.num_blocks)
    propose, spoilt = theta.propose, [0]

    def after_the_host_went_on(*args: Any, **kwargs: Any) -> torch.Tensor:
        kept = [values.gpu.clone() for values in shared]
        for values in shared:
            spoilt[0] += int(values.gpu.count_nonzero())
            values.gpu.fill_(1)
        try:
            return propose(*args, **kwargs)
        finally:
            for values, before in zip(shared, kept, strict=True):
                values.gpu.copy_(before)
            if ON_GPU:  # or what is undone late would undo what the host really wrote meanwhile
                torch.cuda.synchronize()

    monkeypatch.setattr(theta, "propose", after_the_host_went_on)
    cases = mixed_batch(seed=19, long=70)
    with RowAudit(llm) as audit:
        outputs = generate(llm, cases, max_tokens=10)
    assert spoilt[0]
    audit.check(reference, theta_prompts(cases, outputs))


@pytest.mark.skipif(ON_GPU, reason="stands in for CUDA graphs; test_gpu.py has real ones")
@pytest.mark.parametrize("is_kept", [True, False])
def test_prompt_passes_in_pieces(
    is_kept: bool, engines: Callable[..., LLM], reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Theta's prompt passes replay graphs over the teacher's hidden states, which by then lie elsewhere."""
    llm = engines()
    _, theta = run_in_pieces(llm, monkeypatch)
    if not is_kept:
        monkeypatch.setattr(model_runner, "outputs_out_of_graphs", lambda state, graphs: state)
    cases = mixed_batch(seed=61, long=70)
    llm.reset_prefix_cache()
    with RowAudit(llm) as audit:
        outputs = generate(llm, cases, max_tokens=6)
    llm.reset_prefix_cache()
    assert theta.replays
    if is_kept:
        audit.check(reference, theta_prompts(cases, outputs))
    else:
        with pytest.raises(AuditError):
            audit.check(reference, theta_prompts(cases, outputs))


@pytest.mark.parametrize("window", [1, 16, 17, 48, 1000])
def test_blocks_before_a_window_are_null(window: int) -> None:
    """Against the definition: a block stays if a query of the request may attend to one of its positions."""
    block_size, width = 16, 12
    ids = torch.arange(1, 1 + 3 * width, dtype=torch.int32, device=DEVICE).reshape(3, width)
    tables = [ids.clone() for _ in range(2)]
    full = FullAttentionSpec(block_size=block_size, num_kv_heads=1, head_size=8, dtype=torch.float32)
    sliding = SlidingWindowSpec(
        block_size=block_size, num_kv_heads=1, head_size=8, dtype=torch.float32, sliding_window=window
    )
    source = SimpleNamespace(
        num_kv_cache_groups=2,
        cp_size=1,
        input_block_tables=tables,
        slot_mappings=torch.zeros(2, 64, dtype=torch.int64, device=DEVICE),
        block_sizes=[block_size, block_size],
    )
    config = SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=spec) for spec in (full, sliding)])
    theta: Any = ThetaBlockTables(source, None, config)  # type: ignore[arg-type]
    for mine, given in zip(theta.input_block_tables, tables, strict=True):
        mine.copy_(given)
    firsts, lengths = [0, 100, 145], [5, 1, 4]
    query_start_loc = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    positions = torch.cat([torch.arange(first, first + length) for first, length in zip(firsts, lengths, strict=True)])
    theta.null_before_windows(query_start_loc.to(DEVICE), positions.to(DEVICE), 3)
    assert torch.equal(theta.input_block_tables[0], tables[0])
    for row, (first, length) in enumerate(zip(firsts, lengths, strict=True)):
        attended = {
            key // block_size
            for query in range(first, first + length)
            for key in range(max(0, query - window + 1), query + 1)
        }
        found = theta.input_block_tables[1][row]
        for column in range(width):
            if column in attended or column * block_size > first:
                assert found[column] == tables[1][row, column]
            else:
                assert found[column] == 0 or column >= min(attended)
        assert (found == 0).sum() == min(attended)
