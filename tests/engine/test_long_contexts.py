"""Prompts and texts of 32k and 128k tokens, without weights: theta's chunks, tokens, positions, slots and hashed tokens.

The kernels and buffers are those of the worker. Block ids are so high that slots do not fit in 32 bits.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.worker.gpu.block_table import BlockTables
from vllm.v1.worker.gpu.states import RequestState

from vllm_optimal_sampling import OptimalSamplingParams
from vllm_optimal_sampling.engine_core.layout import ThetaLayout, split_by_position
from vllm_optimal_sampling.worker.theta.block_tables import ThetaBlockTables
from vllm_optimal_sampling.worker.theta.inputs import round_inputs
from vllm_optimal_sampling.worker.theta.requests import ThetaRequests
from vllm_optimal_sampling.worker.theta.scoring_inputs import scoring_inputs
from vllm_optimal_sampling.worker.verification_memory import GIB, MIB, RowMemory

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MODEL_LEN = 131072
VOCAB_SIZE = 151936
BLOCK_SIZE = 16
CHUNK = 8192
GENERATED = 50
SLOTS, SLOT = 3, 2
FIRST_BLOCK = 2**31 - 1 - MODEL_LEN // BLOCK_SIZE - 2
"""The highest ids that an int32 table holds; slots are 16 times as large."""

LENGTHS = [(32768 - GENERATED, 32700), (131000, 32000), (32000, 131000), (131000, 17), (17, 131000), (130999, 131000)]


if DEVICE.type == "cpu":
    import vllm.v1.worker.cpu.shm  # noqa: F401  what the worker has in place of memory that both sides see


@dataclass
class Layout:
    """One request in its slot, beside empty ones."""

    teacher: list[int]
    theta: list[int]
    states: RequestState
    requests: ThetaRequests
    tables: ThetaBlockTables

    @property
    def delta(self) -> int:
        return len(self.theta) - len(self.teacher)

    def slot_of(self, position: int) -> int:
        """Where theta's key of its position lies, by the definition."""
        offset = self.delta if self.delta >= 0 else self.delta % BLOCK_SIZE
        block, place = divmod(position - self.delta + offset, BLOCK_SIZE)
        return (FIRST_BLOCK + block) * BLOCK_SIZE + place


def laid_out(teacher_len: int, theta_len: int) -> tuple[Layout, list[int]]:
    rng = random.Random(teacher_len)
    teacher, theta, generated = (
        [rng.randrange(VOCAB_SIZE) for _ in range(length)] for length in (teacher_len, theta_len, GENERATED)
    )
    states = RequestState(SLOTS, MODEL_LEN, CHUNK, 4, VOCAB_SIZE, DEVICE)
    states.prompt_len.np[SLOT] = teacher_len
    states.all_token_ids.gpu[SLOT, : teacher_len + GENERATED] = torch.tensor(teacher + generated, dtype=torch.int32)
    states.total_len.gpu[SLOT] = teacher_len + GENERATED
    states.last_sampled_tokens[SLOT] = generated[-1]
    requests = ThetaRequests(states)
    requests.block_size = BLOCK_SIZE
    requests.add(SLOT, OptimalSamplingParams(), theta)
    requests.apply_staged_writes()
    width = MODEL_LEN // BLOCK_SIZE + 1
    blocks = BlockTables([BLOCK_SIZE], SLOTS, CHUNK, [width], DEVICE)
    blocks.block_tables[0].gpu[SLOT] = torch.arange(FIRST_BLOCK, FIRST_BLOCK + width, dtype=torch.int32)
    blocks.num_blocks.gpu[0, SLOT] = width
    spec = FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=1, head_size=32, dtype=torch.float32)
    config = KVCacheConfig(num_blocks=1, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
    return Layout(teacher, theta, states, requests, ThetaBlockTables(blocks, requests, config)), generated


@pytest.mark.parametrize(("teacher_len", "theta_len"), LENGTHS)
def test_chunks_tokens_and_slots(teacher_len: int, theta_len: int) -> None:
    layout, generated = laid_out(teacher_len, theta_len)
    slots = np.array([SLOT])
    reached = 0
    for begin in range(0, teacher_len, CHUNK):
        end = min(begin + CHUNK, teacher_len)
        starts, ends = layout.requests.next_chunk(slots, np.array([begin]), np.array([end]))
        assert starts[0] == reached or starts[0] == ends[0]
        reached = int(ends[0])
        pieces = split_by_position(starts.tolist(), ends.tolist(), CHUNK)
        assert sum(last - first for ((first, last),) in pieces) == ends[0] - starts[0]
    assert reached == theta_len

    # The last tokens of the prompt and those that were generated, as one prompt chunk: a request that was preempted.
    first = max(0, theta_len - 40)
    length = theta_len + GENERATED - first
    slots_gpu = torch.tensor([SLOT], device=DEVICE)
    start_loc = torch.tensor([0, length], dtype=torch.int32, device=DEVICE)
    ids, positions = (torch.zeros(CHUNK, dtype=kind, device=DEVICE) for kind in (torch.int32, torch.int64))
    seq_lens = torch.zeros(SLOTS, dtype=torch.int32, device=DEVICE)
    scoring_inputs(
        slots_gpu,
        torch.tensor([-1], device=DEVICE),
        torch.tensor([first], device=DEVICE),
        start_loc,
        ids.clone(),
        positions.clone(),
        layout.requests.prompts.gpu,
        layout.requests.prompt_len.gpu,
        layout.requests.delta.gpu,
        layout.states.all_token_ids.gpu,
        ids,
        positions,
        seq_lens,
        length,
        0,
        MODEL_LEN + BLOCK_SIZE,
        VOCAB_SIZE,
        None,
    )()
    assert ids[:length].tolist() == [*layout.theta, *generated][first:]
    assert positions[:length].tolist() == list(range(first, first + length))
    assert seq_lens[0] == theta_len + GENERATED
    layout.tables.gather(slots_gpu, 1)
    mapping = layout.tables.compute_slot_mappings(start_loc, positions, 1, length)[0]
    expected = [layout.slot_of(position) for position in range(first, first + length)]
    assert mapping.tolist() == expected and min(expected) > 2**31

    # And the newest token, as theta's round begins with it.
    sample_positions = torch.zeros(SLOTS, dtype=torch.int64, device=DEVICE)
    round_inputs(
        slots_gpu,
        torch.tensor([1], dtype=torch.int32, device=DEVICE),
        layout.states.last_sampled_tokens,
        layout.states.total_len.gpu,
        layout.requests.delta.gpu,
        torch.full((SLOTS,), -1, device=DEVICE),
        ids,
        positions,
        sample_positions,
        torch.zeros(SLOTS + 1, dtype=torch.int32, device=DEVICE),
        seq_lens,
        MODEL_LEN + BLOCK_SIZE,
        VOCAB_SIZE,
        None,
    )()
    newest = theta_len + GENERATED - 1
    assert (ids[0], positions[0], seq_lens[0]) == (generated[-1], newest, newest + 1)
    assert sample_positions[0] == teacher_len + GENERATED - 1
    assert layout.tables.compute_decode_slots(positions, 1)[0].tolist() == [layout.slot_of(newest)]


@pytest.mark.parametrize(("teacher_len", "theta_len"), LENGTHS)
def test_hashed_tokens(teacher_len: int, theta_len: int) -> None:
    """Blocks say every token of theta once, in order, and only those whose slots they are."""
    rng = random.Random(1)
    teacher, theta, generated = (
        [rng.randrange(VOCAB_SIZE) for _ in range(length)] for length in (teacher_len, theta_len, GENERATED)
    )
    layout = ThetaLayout.of_prompts(theta, teacher_len, BLOCK_SIZE)
    end = -(-(teacher_len + GENERATED + layout.offset) // BLOCK_SIZE) * BLOCK_SIZE
    said = [
        layout.tokens_in_slots(start, start + BLOCK_SIZE, teacher + generated, teacher_len)
        for start in range(0, end, BLOCK_SIZE)
    ]
    assert [token for tokens in said for token in tokens] == theta + generated
    first = layout.shift // BLOCK_SIZE
    assert not any(said[:first]) and all(len(tokens) == BLOCK_SIZE for tokens in said[first:-1])


def test_the_memory_table_is_what_the_engine_allocates() -> None:
    """Rows of docs/limits.md: context, requests, vocabulary, and GiB of rows, of a request's rows, and of prompts."""
    page = (Path(__file__).parents[2] / "docs" / "limits.md").read_text()
    rows = re.findall(
        r"^\| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE
    )
    assert len(rows) == 8
    for row in rows:
        context, requests, vocabulary = (int(value.replace(",", "")) for value in row[:3])
        memory = RowMemory(requests, 4, vocabulary, 2)
        assert row[3:] == (
            f"{memory.total / GIB:.2f}",
            f"{memory.per_request / MIB:.1f}",
            f"{4 * requests * context / GIB:.3f}",
        )
    states = RequestState(SLOTS, 4096, 64, 4, VOCAB_SIZE, DEVICE)
    assert ThetaRequests(states).prompts.gpu.nbytes == 4 * SLOTS * 4096
