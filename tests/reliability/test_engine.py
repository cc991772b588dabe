"""An engine in this process: the distribution audit in short, that each of its judgements fails when what it is there for
is planted, and that nothing is left of requests that ended or were given up."""

from __future__ import annotations

import ctypes
import gc
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from distribution import (
    BINS,
    MAX_TOTAL_VARIATION,
    Ask,
    Outcome,
    audit_batch,
    chi_square_p,
    draw_requests,
    holm,
    start_engine,
    verdict,
)
from rows import Models, closest_drawn, drawn, mixtures, place_in_distribution
from vllm import LLM, SamplingParams
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
from vllm_optimal_sampling.kernels import Method
from vllm_optimal_sampling.kernels.reference import mix

from support.engines import find_runner
from support.row_audit import AuditError
from vllm_optimal_sampling.alpha_methods import ALPHA_METHODS

REQUESTS = 24
MAX_TOKENS = 6


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LLM, Models]]:
    folder: Path = tmp_path_factory.mktemp("pair")
    llm, *paths = start_engine(folder, num_speculative_tokens=3, max_num_batched_tokens=512)
    yield llm, Models(*paths)
    llm.llm_engine.engine_core.shutdown()


def test_random_settings_against_float64(engine: tuple[LLM, Models]) -> None:
    """100,000 rows and 20,000 tokens in full: `make soak`, or distribution.py."""
    outcome = Outcome()
    audit_batch(*engine, draw_requests(1, REQUESTS, MAX_TOKENS), "short", 0, outcome)
    assert outcome.rows > REQUESTS * MAX_TOKENS
    assert outcome.tokens + outcome.greedy_tokens == REQUESTS * MAX_TOKENS
    assert set(outcome.rows_by_draft_position) == {"0", "1", "2", "3"}
    assert verdict(outcome)["failed"] == []


def asks(count: int, max_tokens: int, temperature: float) -> list[Ask]:
    rng = random.Random(5)
    return [
        Ask(
            prompt := [rng.randrange(1, 400) for _ in range(12)],
            theta := [rng.randrange(1, 400) for _ in range(7)],
            {},
            SamplingParams(
                max_tokens=max_tokens,
                temperature=temperature,
                ignore_eos=True,
                seed=len(prompt) + number,
                extra_args={"theta_prompt_token_ids": theta},
            ),
            ("kl_symmetry",),
        )
        for number in range(count)
    ]


def test_a_missing_temperature_is_found_in_the_rows(
    engine: tuple[LLM, Models], monkeypatch: pytest.MonkeyPatch
) -> None:
    states = find_runner(engine[0]).sampler.sampling_states
    monkeypatch.setattr(states, "apply_temperature", lambda *_: None)
    with pytest.raises(AuditError, match="the row drawn from is off"):
        audit_batch(*engine, asks(4, 4, temperature=0.5), "short", 0, Outcome())


def test_draws_that_do_not_follow_their_rows_are_found(
    engine: tuple[LLM, Models], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row is right here, and drafts are accepted whatever the rows say: only the places of the tokens can tell."""
    verifier = type(find_runner(engine[0]).rejection_sampler)
    verify = verifier._verify

    def accept_all(self: Any, logits: Any, drafts: Any, input_ids: Any, pos: Any, cu: Any, *rest: Any) -> Any:
        rows, sampled, num_sampled = verify(self, logits, drafts, input_ids, pos, cu, *rest)
        for request in range(len(num_sampled)):
            start, end = int(cu[request]), int(cu[request + 1])
            known = int(num_sampled[request])
            if end - start > 1 and 0 < known < end - start:
                sampled[request, : end - start - 1] = input_ids[start + 1 : end]
                sampled[request, end - start - 1] = rows[end - 1].argmax()
                num_sampled[request] = end - start
        return rows, sampled, num_sampled

    monkeypatch.setattr(verifier, "_verify", accept_all)
    outcome = Outcome()
    audit_batch(*engine, asks(32, 12, temperature=1.0), "short", 0, outcome)
    assert verdict(outcome)["failed"], verdict(outcome)


def test_a_wrong_alpha_is_found_in_the_rows(engine: tuple[LLM, Models]) -> None:
    wrong = [replace(ask, arguments={"alpha_method": "fixed", "alpha": 0.45}) for ask in asks(4, 2, temperature=1.0)]
    with pytest.raises(AuditError, match=r"log q\* is off"):
        audit_batch(*engine, wrong, "short", 0, Outcome())


# Nothing left behind


class MallocInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *(
                "arena",
                "ordblks",
                "smblks",
                "hblks",
                "hblkhd",
                "usmblks",
                "fsmblks",
                "uordblks",
                "fordblks",
                "keepcost",
            ),
        )
    ]


def held(llm: LLM) -> dict[str, int]:
    """What is held in this process: tensors, bytes of memory in use (not what the allocator keeps), slots, blocks."""
    gc.collect()
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = MallocInfo
    info = libc.mallinfo2()
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    return {
        "tensors": sum(1 for one in gc.get_objects() if isinstance(one, torch.Tensor)),
        "bytes": info.uordblks + info.hblkhd,
        "free slots": len(find_runner(llm).req_states.free_indices),
        "free blocks": scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
        "requests": len(scheduler.requests),
    }


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33 or newer")
def test_requests_that_end_or_are_given_up_leave_nothing(engine: tuple[LLM, Models]) -> None:
    llm = engine[0]

    def traffic() -> None:
        given_up = []
        for number, ask in enumerate(asks(12, 6, temperature=1.0)):
            request_id = f"request-{number}"
            # vLLM gives it an id of its own, with a suffix.
            llm.llm_engine.add_request(request_id, {"prompt_token_ids": ask.prompt}, ask.params)
            given_up += [request_id] if number % 3 == 0 else []
        llm.llm_engine.step()
        llm.llm_engine.abort_request(given_up)
        while llm.llm_engine.has_unfinished_requests():
            llm.llm_engine.step()
        llm.llm_engine.step()  # the worker hears of those that ended in the next step

    for _ in range(2):  # what is made with the first use
        traffic()
    before = held(llm)
    for _ in range(3):
        traffic()
    after = held(llm)
    grown = after.pop("bytes") - before.pop("bytes")
    assert after == before
    # oneDNN keeps a program for each new number of tokens in a step (docs/limits.md): this finds leaks of rows, not of bytes.
    assert grown < 8 << 20, f"{grown} bytes more are in use after 36 requests"


# The judges themselves


def test_mixtures_agree_with_the_kernels_reference() -> None:
    """Two definitions of q*, written down apart: whole rows and supports, every method and bound."""
    rng = random.Random(3)
    torch.manual_seed(3)
    teacher, theta = 3 * torch.randn(80, 50, dtype=torch.float64), 3 * torch.randn(80, 50, dtype=torch.float64)
    arguments: list[dict[str, Any]] = []
    for i in range(80):
        low, high = sorted((rng.random(), rng.random()))
        arguments.append(
            {
                "alpha_method": ALPHA_METHODS[i % 8],
                **({"alpha": rng.random()} if ALPHA_METHODS[i % 8] in ("fixed", "arithmetic") else {}),
                **({"kl_budget": rng.random()} if ALPHA_METHODS[i % 8] == "kl_budget" else {}),
                **({"js_sensitivity": 20 * rng.random()} if ALPHA_METHODS[i % 8] == "js_gate" else {}),
                **({"alpha_min": low, "alpha_max": high} if i % 4 == 0 else {}),
                **({"support_top_k": rng.randrange(1, 50)} if i % 5 == 0 else {}),
                **({"support_top_p": rng.uniform(0.3, 1)} if i % 7 == 0 else {}),
                **({"max_js_divergence": rng.uniform(0.1, 0.69)} if i % 3 == 0 else {}),
            }
        )
    found = mixtures(teacher, theta, arguments).softmax(-1)
    for i, given in enumerate(arguments):
        settings = dict(given)
        method = Method[settings.pop("alpha_method").upper()]
        expected = mix(teacher[i], theta[i], method=method, **settings).log_q.softmax(-1)
        assert 0.5 * (found[i] - expected).abs().sum() < 1e-8, given


def test_only_a_tie_may_fall_on_either_side_of_a_threshold() -> None:
    """Tokens 3 and 4 lie across every threshold here: 1e-5 nats apart they may change places, 1e-2 apart they may not."""
    for gap, excused in ((1e-5, True), (1e-2, False)):
        row = torch.tensor([0.0, -0.3, -0.6, -1.0, -1.0 - gap, -1.6, -2.0], dtype=torch.float64)
        p = row.softmax(-1)
        for options in ({"top_k": 4}, {"top_p": float(p[:3].sum() + p[3] / 2)}):
            params = SamplingParams(**options)
            for kept in ([0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 2], [0, 1, 2, 3, 4]):
                found = torch.zeros_like(p)
                found[kept] = p[kept] / p[kept].sum()
                variation = closest_drawn(row, params, found, MAX_TOTAL_VARIATION)[1]
                assert (variation <= MAX_TOTAL_VARIATION) == (excused or kept == [0, 1, 2, 3]), (gap, options, kept)
            for kept in ([0, 1, 2, 3, 4, 5], [0, 1], [0, 2, 3], [0, 1, 2, 5]):
                found = torch.zeros_like(p)
                found[kept] = p[kept] / p[kept].sum()
                assert closest_drawn(row, params, found, MAX_TOTAL_VARIATION)[1] > MAX_TOTAL_VARIATION
        theta = torch.tensor([[0.0, -2.0, 1.0, 2.0, -1.0, 0.5, 0.3]], dtype=torch.float64)
        for arguments in ({"support_top_k": 4}, {"support_top_p": float(p[:3].sum() + p[3] / 2)}):
            for kept in ([0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 5, 2]):
                found = torch.zeros(1, len(p), dtype=torch.bool)
                found[0, kept] = True
                support = mixtures(row[None], theta, [arguments], 0.0, found).isfinite()
                adopted = kept if excused and kept != [0, 1, 5, 2] else [0, 1, 2, *([] if excused else [3])]
                assert support.nonzero()[:, 1].tolist() == adopted, (gap, arguments, kept)


def test_what_vllms_nucleus_keeps_is_excused_only_for_ties(engine: tuple[LLM, Models]) -> None:
    """vLLM's kernel itself, on rows whose nucleus ends between two tokens that are less than its last step apart."""
    torch.manual_seed(4)
    rows = torch.randn(40, 300)
    probabilities, order = rows.double().softmax(-1).sort(descending=True)
    place = 50
    rows.scatter_(
        -1, order[:, place + 1, None], rows.gather(-1, order[:, place, None]) - 2e-6
    )  # float32's step is 1e-7
    top_p = probabilities[:, :place].sum(-1) + probabilities[:, place] / 2
    found = apply_top_k_top_p(rows.clone(), None, top_p.float()).double().softmax(-1)
    strict = excused = 0
    for i in range(len(rows)):
        params = SamplingParams(top_p=float(top_p[i]))
        off = 0.5 * float((found[i] - drawn(rows[i].double(), params)).abs().sum())
        strict += off > MAX_TOTAL_VARIATION
        excused += closest_drawn(rows[i].double(), params, found[i], MAX_TOTAL_VARIATION)[1] > MAX_TOTAL_VARIATION
    assert strict > 0, "vLLM's kernel has become exact: what it is excused for can go"
    assert excused == 0


def test_the_token_that_vllms_kernel_drops_is_excused_and_no_other(engine: tuple[LLM, Models]) -> None:
    """A row whose nucleus ends at its 79th token: the kernel keeps 78 tokens of some neighbours, sorting never does."""
    given = json.loads((Path(__file__).parent / "nucleus_row.json").read_text())
    row, params = torch.tensor(given["logits"], dtype=torch.float64), SamplingParams(temperature=given["temperature"])
    params.top_p = given["top_p"]
    exact = drawn(row, params)
    assert int((exact > 0).sum()) == 79
    order = exact.argsort(descending=True)
    for tokens, excused in (
        (order[:79], True),
        (order[:78], True),
        (order[:77], False),
        (order[[*range(77), 78]], False),
    ):
        found = torch.zeros_like(exact)
        found[tokens] = exact[tokens] / exact[tokens].sum()
        _, variation, moved = closest_drawn(row, params, found, MAX_TOTAL_VARIATION)
        assert (variation <= MAX_TOTAL_VARIATION) == excused
        assert moved == (excused and len(tokens) == 78)


def test_a_row_that_needs_all_its_tokens_may_drop_none(engine: tuple[LLM, Models]) -> None:
    """vLLM's kernel alone drops the least of the tokens that min-p leaves; in an engine with theta that is no excuse."""
    row = torch.full((300,), -20.0, dtype=torch.float64)
    row[:5] = torch.tensor([1.0, 0.3, 0.2, -0.1, -0.4])
    params = SamplingParams(top_p=0.95, min_p=0.05)
    exact = drawn(row, params)
    assert int((exact > 0).sum()) == 5 and exact[4] > 0.05
    found = torch.where(torch.arange(300) < 4, exact, 0.0)
    assert closest_drawn(row, params, exact, MAX_TOTAL_VARIATION)[1] == 0
    assert closest_drawn(row, params, found / found.sum(), MAX_TOTAL_VARIATION)[1] > MAX_TOTAL_VARIATION


def test_padded_batches_are_single_forwards(engine: tuple[LLM, Models]) -> None:
    models = engine[1]
    sequences = [[5, 6, 7, 8, 9, 10], [11], [12, 13, 14]]
    found = Models.last_logits(models.theta, sequences, [2, 1, 3], batch=2)
    expected = torch.cat(
        [models.theta(torch.tensor([one])).logits[0, -count:] for one, count in zip(sequences, [2, 1, 3], strict=True)]
    )
    assert torch.allclose(found, expected, atol=1e-10)


def test_places_are_uniform_for_exact_draws_and_not_for_others() -> None:
    torch.manual_seed(0)
    rng = random.Random(0)
    exact, flat = [0] * BINS, [0] * BINS
    for _ in range(2000):
        p = (2 * torch.randn(30, dtype=torch.float64)).softmax(-1)
        token = int(torch.multinomial(p, 1))
        exact[int(place_in_distribution(p, token, p, rng.random) * BINS)] += 1
        token = int(torch.multinomial(p.pow(0.8) / p.pow(0.8).sum(), 1))
        flat[int(place_in_distribution(p, token, p, rng.random) * BINS)] += 1
    assert chi_square_p(exact) > 0.01
    assert chi_square_p(flat) < 1e-6


def test_holm_fails_what_it_should() -> None:
    assert holm({"a": 0.2, "b": 0.03, "c": 0.5}) == []
    assert holm({"a": 1e-9, "b": 2e-4, "c": 0.5}) == ["a", "b"]
    assert holm({"a": 3e-4, "b": 3e-4}) == []
    assert chi_square_p([100] * BINS) == pytest.approx(1)
