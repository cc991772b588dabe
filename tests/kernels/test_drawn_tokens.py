"""`drawn_tokens` against its definition."""

import random

import pytest
import torch
from vllm_optimal_sampling.kernels import drawn_tokens


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("num_requests", "drafts"), [(1, 1), (7, 3), (64, 4), (131, 2)])
def test_tokens_lie_in_the_rows_that_they_were_drawn_from(num_requests: int, drafts: int, dtype: torch.dtype) -> None:
    """Requests have any number of rows, one at least; of their tokens some count, or none in the middle of a prompt."""
    rng = random.Random(num_requests)
    rows = [rng.randint(1, drafts + 1) for _ in range(num_requests)]
    counts = [rng.randint(0, count) for count in rows]
    sampled = torch.randint(0, 2**31 - 1, (num_requests, drafts + 1), generator=torch.Generator().manual_seed(drafts))
    sampled = sampled.to(dtype)
    expected = []
    for tokens, drawn, count in zip(sampled.tolist(), counts, rows, strict=True):
        expected += tokens[:drawn] + [-1] * (count - drawn)
    first_rows = torch.tensor([0, *torch.tensor(rows).cumsum(0)], dtype=torch.int32)
    found = drawn_tokens(sampled, torch.tensor(counts, dtype=torch.int32), first_rows, sum(rows))
    assert found.dtype == dtype
    assert found.tolist() == expected


def test_no_rows() -> None:
    nothing = torch.zeros(0, dtype=torch.int32)
    assert drawn_tokens(nothing.new_zeros(0, 3), nothing, nothing.new_zeros(1), 0).tolist() == []


def test_bad_calls() -> None:
    sampled, counts, first_rows = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2).int(), torch.zeros(3).int()
    with pytest.raises(TypeError, match="num_sampled is int64; it has to be int32"):
        drawn_tokens(sampled, counts.long(), first_rows, 2)
    with pytest.raises(ValueError, match=r"first_rows has shape \[2\]; it has to be \[3\]"):
        drawn_tokens(sampled, counts, first_rows[:2], 2)
