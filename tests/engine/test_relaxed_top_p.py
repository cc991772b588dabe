"""`relax_top_p_`: the rows whose nucleus is all that is left, by sorting in float64; and what vLLM's top-p makes of them."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

from support.device_copies import launches_where_kernels_run
from vllm_optimal_sampling.interpreter import gaps
from vllm_optimal_sampling.worker.relaxed_top_p_kernel import relax_top_p_

ROUNDING = 1e-5
"""Of a sum of up to 5,000 float32 probabilities: rows whose mass is this close to top_p may go either way."""


@pytest.fixture(scope="module", autouse=True)
def filled_gaps() -> Iterator[None]:
    gaps.fill()
    with launches_where_kernels_run():
        yield


def rows_of(vocab: int, left: int, seed: int, count: int = 32) -> torch.Tensor:
    """Rows of which `left` tokens are not at -inf, anywhere in the row."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.full((count, vocab), -torch.inf)
    for row in rows:
        tokens = torch.randperm(vocab, generator=generator)[:left]
        row[tokens] = torch.randn(left, generator=generator) * 2
    return rows


def top_ps(rows: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """For each other row one that needs all its tokens, for the rest one that does not; each seventh is 1."""
    mass = likelier_than_least(rows)
    share = 0.02 + 0.96 * torch.rand(len(rows), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    odd = torch.arange(len(rows)) % 2 == 1
    top_p = torch.where(odd, mass + (1 - mass) * share, mass * share).clamp(1e-3, 1).float()
    top_p[::7] = 1.0
    return top_p


def likelier_than_least(rows: torch.Tensor) -> torch.Tensor:
    """Mass of the tokens above the least one that is left, `[rows]` float64."""
    p = rows.double().softmax(-1)
    least = torch.where(rows > -torch.inf, rows, torch.inf).amin(-1, keepdim=True)
    return torch.where(rows > least, p, 0.0).sum(-1)


def nucleus(rows: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """`[rows, vocab]` bool: the likeliest tokens up to the one that crosses top_p."""
    p, order = rows.double().softmax(-1).sort(descending=True, stable=True)
    kept = p.cumsum(-1) - p < top_p.double()[:, None]
    return torch.zeros_like(kept).scatter(-1, order, kept) & (rows > -torch.inf)


@pytest.mark.parametrize(("vocab", "left"), [(512, 1), (512, 2), (512, 11), (777, 60), (5000, 5), (60, 60), (1, 1)])
def test_rows_that_need_all_their_tokens_are_relaxed_and_no_others(vocab: int, left: int) -> None:
    rows = rows_of(vocab, left, seed=left)
    given = top_ps(rows)
    top_p = given.clone()
    relax_top_p_(rows, None, top_p)
    mass = likelier_than_least(rows)
    clear = (mass - given).abs() > ROUNDING
    assert clear.sum() >= len(rows) / 2
    expected = torch.where(mass < given, 1.0, given)
    assert torch.equal(top_p[clear], expected[clear])
    assert (expected != given)[clear].any() or left > 60


def test_a_row_with_more_tokens_than_top_k_is_left() -> None:
    rows = rows_of(512, 5, seed=1)
    given = torch.full((32,), 0.999)
    top_k = torch.tensor([4, 5, 6, 512] * 8, dtype=torch.int32)
    mass = likelier_than_least(rows)
    assert ((mass - 0.999).abs() > ROUNDING).all()
    whole = mass < 0.999
    assert (whole & (top_k < 5)).any() and (whole & (top_k >= 5)).any()
    top_p = given.clone()
    relax_top_p_(rows, top_k, top_p)
    assert torch.equal(top_p, torch.where(whole & (top_k >= 5), 1.0, given))


def test_ties_for_the_least_token_stay_together() -> None:
    rows = torch.full((3, 64), -torch.inf)
    rows[:, 7], rows[:, [3, 40]] = 1.0, 0.5
    top = float(likelier_than_least(rows)[0])
    top_p = torch.tensor([top - 0.01, top + 0.01, 0.999])
    relax_top_p_(rows, None, top_p)
    assert top_p.tolist() == pytest.approx([top - 0.01, 1.0, 1.0])


@pytest.mark.parametrize("row", [[-torch.inf] * 8, [torch.nan] * 8, [0.0, torch.inf, *[0.0] * 6]])
def test_a_row_without_a_distribution_is_left(row: list[float]) -> None:
    top_p = torch.tensor([0.5])
    relax_top_p_(torch.tensor([row]), None, top_p)
    assert top_p.item() == 0.5


def test_large_logits_and_padded_rows() -> None:
    """The same verdicts 80 nats up or down, and on a slice of wider rows."""
    rows = rows_of(500, 6, seed=3)
    given = top_ps(rows)
    verdicts = []
    for shift in (0.0, 80.0, -80.0):
        padded = torch.zeros(32, 512)
        padded[:, :500] = rows + shift
        top_p = given.clone()
        relax_top_p_(padded[:, :500], None, top_p)
        verdicts.append(top_p == 1)
    assert torch.equal(verdicts[0], verdicts[1])
    assert torch.equal(verdicts[0], verdicts[2])


@pytest.mark.parametrize(("left", "with_top_k"), [(2, False), (2, True), (9, False), (9, True)])
def test_vllm_then_keeps_the_nucleus(left: int, with_top_k: bool) -> None:
    """And without it loses a token of some rows that need all: when this fails, vLLM is mended and the kernel can go."""
    rows = rows_of(512, left, seed=left, count=16)
    given = top_ps(rows, seed=left)
    top_k = torch.full((16,), 200, dtype=torch.int32) if with_top_k else None
    expected = nucleus(rows, given)
    clear = (likelier_than_least(rows) - given).abs() > ROUNDING
    needs_all = clear & (given < 1) & (expected == (rows > -torch.inf)).all(-1)
    assert needs_all.sum() >= 4
    alone = apply_top_k_top_p(rows.clone(), top_k, given.clone()) > -torch.inf
    assert (alone.sum(-1) == left - 1)[needs_all].any()
    top_p = given.clone()
    relax_top_p_(rows, top_k, top_p)
    relaxed = apply_top_k_top_p(rows.clone(), top_k, top_p) > -torch.inf
    assert torch.equal(relaxed[clear], expected[clear])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": torch.zeros(4, 8, dtype=torch.float64)}, TypeError, "logits is float64; it has to be float32"),
        ({"logits": torch.zeros(8, 4).T}, ValueError, "last dimension"),
        ({"top_p": torch.ones(3)}, ValueError, r"top_p has shape \[3\]; .* \[4\]"),
        ({"top_k": torch.ones(4)}, TypeError, "top_k is float32; it has to be int32"),
    ],
)
def test_a_bad_call_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"logits": torch.zeros(4, 8), "top_k": None, "top_p": torch.full((4,), 0.5)} | change
    with pytest.raises(error, match=message):
        relax_top_p_(**arguments)
