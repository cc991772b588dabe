"""`OptimalSampler`: what the original implementation's users call, on a real engine."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

import pytest
from vllm.exceptions import VLLMValidationError

from support.cases import KL_SYMMETRY, OPTED_OUT, Case
from support.reference_models import Reference, greedy_tokens
from vllm_optimal_sampling import ArgumentError, OptimalSampler, OptimalSamplingV1

PROMPTS = ["the quick brown fox jumps over two numbers and", "add up the lazy dog"]
THETA_PROMPTS = ["the quick fox and", "the answer to the dog"]
SMALL = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 512,
    "max_num_seqs": 16,
    "kv_cache_memory_bytes": 1 << 26,
    "block_size": 32,
}
TEACHER_SYSTEM, THETA_SYSTEM = "the answer", "more numbers"


@pytest.fixture(scope="module")
def sampler(pair: tuple[str, str]) -> Iterator[OptimalSampler]:
    teacher, theta = pair
    with OptimalSampler(
        teacher,
        theta,
        teacher_system_prompt=TEACHER_SYSTEM,
        theta_system_prompt=THETA_SYSTEM,
        track_alpha_stats=True,
        num_speculative_tokens=3,
        gpu_memory_utilization=0.5,
        **SMALL,
    ) as sampler:
        yield sampler


def expected(sampler: OptimalSampler, reference: Reference, texts: list[tuple[str, str | None]]) -> list[list[int]]:
    """Greedy tokens for each pair of what the teacher and theta read; None for theta where it has no say."""
    encode = sampler.llm.get_tokenizer().encode
    cases = [
        Case(encode(teacher), *((None, OPTED_OUT) if theta is None else (encode(theta), KL_SYMMETRY)))
        for teacher, theta in texts
    ]
    return [greedy_tokens(reference, case, 8) for case in cases]


def test_prompts_with_system_prompts_as_text(sampler: OptimalSampler, reference: Reference) -> None:
    output = sampler.generate(PROMPTS, THETA_PROMPTS, max_tokens=8, temperature=0, ignore_eos=True)
    texts = [
        (f"{TEACHER_SYSTEM}\n\n{teacher}", f"{THETA_SYSTEM}\n\n{theta}")
        for teacher, theta in zip(PROMPTS, THETA_PROMPTS, strict=True)
    ]
    assert output.generated_ids == expected(sampler, reference, texts)
    # vLLM leaves out bytes at the end that are no text yet.
    texts = [sampler.llm.get_tokenizer().decode(ids).rstrip("\ufffd") for ids in output.generated_ids]
    assert [text.rstrip("\ufffd") for text in output.generated_texts] == texts
    assert output.num_tokens == [8, 8]


def test_chat_templates(sampler: OptimalSampler, reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "enable_chat_template", True)
    output = sampler.generate(PROMPTS, max_tokens=8, temperature=0, ignore_eos=True)
    texts = [
        tuple(f"system: {system}\nuser: {prompt}\nassistant: " for system in (TEACHER_SYSTEM, THETA_SYSTEM))
        for prompt in PROMPTS
    ]
    assert output.generated_ids == expected(sampler, reference, texts)


def test_alphas_belong_to_their_tokens(sampler: OptimalSampler) -> None:
    output = sampler.generate(PROMPTS, THETA_PROMPTS, max_tokens=9, seed=1)
    assert output.alpha_history is not None
    assert output.alpha_stats is not None
    for length, alphas, stats in zip(output.num_tokens, output.alpha_history, output.alpha_stats, strict=True):
        assert len(alphas) == length == stats["count"]
        assert all(0 <= alpha <= 1 for alpha in alphas)
        assert stats["mean"] == pytest.approx(sum(alphas) / length)
        assert stats["std"] == pytest.approx(math.sqrt(statistics.pvariance(alphas)))
        assert (stats["min"], stats["max"]) == (min(alphas), max(alphas))


def test_the_teacher_alone(sampler: OptimalSampler, reference: Reference) -> None:
    output = sampler.generate(
        PROMPTS, THETA_PROMPTS, max_tokens=8, temperature=0, use_optimal_sampling=False, ignore_eos=True
    )
    assert output.generated_ids == expected(
        sampler, reference, [(f"{TEACHER_SYSTEM}\n\n{prompt}", None) for prompt in PROMPTS]
    )
    assert output.alpha_stats is None
    assert output.alpha_history is None


def test_seeds_and_the_progress_bar(sampler: OptimalSampler, capfd: pytest.CaptureFixture[str]) -> None:
    prompts = PROMPTS[:1] * 16
    first, second = (sampler.generate(prompts, max_tokens=3, seed=5).generated_ids for _ in range(2))
    assert first == second
    assert len({tuple(ids) for ids in first}) > 8
    assert "Processed prompts" in capfd.readouterr().err
    sampler.generate(PROMPTS, max_tokens=1)
    assert "Processed prompts" not in capfd.readouterr().err


def test_a_refused_call_leaves_the_sampler_usable(sampler: OptimalSampler) -> None:
    with pytest.raises(ArgumentError, match="2 prompts and 1 theta_prompts"):
        sampler.generate(PROMPTS, THETA_PROMPTS[:1])
    with pytest.raises(ArgumentError, match="prompts is not a list of texts"):
        sampler.generate("one prompt")
    with pytest.raises(ArgumentError, match="give the prompt n times"):
        sampler.generate(PROMPTS, n=2)
    with pytest.raises(VLLMValidationError, match="theta reads at most"):
        sampler.generate(PROMPTS, ["the", "the lazy dog " * 600], max_tokens=4)
    assert sampler.generate([]).generated_texts == []
    assert sampler.generate(PROMPTS, max_tokens=2).num_tokens == [2, 2]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"fixed_alpha": 1.5}, "^fixed_alpha=1.5 is outside"),
        ({"alpha_min": 0.9, "alpha_max": 0.1}, "alpha_min=0.9 is above alpha_max=0.1"),
        ({"alpha_method": "kl"}, "alpha_method='kl' is not one of"),
    ],
)
def test_arguments_are_refused_before_a_model_is_loaded(arguments: dict[str, object], reason: str) -> None:
    with pytest.raises(ArgumentError, match=reason):
        OptimalSamplingV1("no teacher", "no theta", **arguments)
    assert OptimalSamplingV1 is OptimalSampler
