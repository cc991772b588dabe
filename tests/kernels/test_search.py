"""A call that launches only the searches that its rows ask for gives what one that launches all of them gives."""

import itertools

import pytest
import torch
from vllm_optimal_sampling.kernels import Method, MixRecord, MixScratch, MixSettings, Search, mix_

VOCAB = 301
SEARCHING = {Method.ESS_BALANCE: Search.ESS_BALANCE, Method.JS_GATE: Search.JS_GATE}


@pytest.mark.parametrize("method", Method)
def test_what_a_request_asks_for(method: Method) -> None:
    own = SEARCHING.get(method, Search(0))
    assert Search.of(method, 0, 1.0) == own
    assert Search.of(method, 1, 1.0) == own | Search.TOP_K
    assert Search.of(method, 0, 0.999) == own | Search.TOP_P
    assert Search.of(method, 50, 0.5) == own | Search.TOP_K | Search.TOP_P


def mixed(searches: Search | None, asked: list[tuple[Method, int, float]]) -> list[torch.Tensor]:
    """The rows and the record of one call, with a slot for each of `asked`; None leaves `searches` out."""
    generator = torch.Generator().manual_seed(4)
    n = len(asked)
    rows = 3 * torch.randn(n, VOCAB, generator=generator)
    theta = (rows + torch.randn(n, VOCAB, generator=generator)).bfloat16()[:, None, :].contiguous()
    settings, record = MixSettings.allocate(n, "cpu"), MixRecord.allocate(n, 1, "cpu")
    settings.first_position.zero_()
    for slot, (method, top_k, top_p) in enumerate(asked):
        settings.method[slot] = method
        settings.support_top_k[slot] = top_k
        settings.support_top_p[slot] = top_p
    scratch = MixScratch.allocate(n, VOCAB, "cpu")
    # What calls before left behind must not matter.
    scratch.plan.fill_(float("nan"))
    slots, zeros = torch.arange(n), torch.zeros(n, dtype=torch.int32)
    mix_(rows, theta, slots, zeros, zeros.long(), settings, record, scratch, *([] if searches is None else [searches]))
    return [rows, *vars(record).values()]


@pytest.mark.parametrize("limits", [(0, 1.0), (20, 1.0), (0, 0.9), (40, 0.8)])
@pytest.mark.parametrize("method", [Method.KL_SYMMETRY, Method.ARITHMETIC, *SEARCHING])
def test_only_what_is_asked_for_is_launched(method: Method, limits: tuple[int, float]) -> None:
    asked = [(method, *limits), (Method.FIXED, 0, 1.0), (Method.KL_SYMMETRY, 0, 1.0)]
    needed = Search.of(method, *limits)
    for tensor, of_all in zip(mixed(needed, asked), mixed(None, asked), strict=True):
        assert torch.equal(tensor, of_all)


def test_all_searches_in_one_call() -> None:
    asked = list(itertools.product([Method.KL_SYMMETRY, *SEARCHING], [0, 20], [1.0, 0.9]))
    found = mixed(Search.ALL, asked)
    for slot, one in enumerate(asked):
        # Its row with the other slots' requests asking for nothing.
        alone = mixed(Search.of(*one), [one if i == slot else (Method.FIXED, 0, 1.0) for i in range(len(asked))])
        assert all(torch.equal(tensor[slot], other[slot]) for tensor, other in zip(found, alone, strict=True))


def test_a_search_that_is_left_out_is_missed() -> None:
    """What the other tests could not see if `searches` did nothing."""
    for method, search in SEARCHING.items():
        asked = [(method, 20, 0.9)]
        rows, alpha, *_ = mixed(Search.of(*asked[0]), asked)
        for left_out in (search, Search.TOP_K | Search.TOP_P):
            other_rows, other_alpha, *_ = mixed(Search.of(*asked[0]) & ~left_out, asked)
            assert not (torch.equal(rows, other_rows) and torch.equal(alpha, other_alpha))
