"""`OptimalSampler`: what users of the reference implementation call, on a real engine."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from vllm import SamplingParams
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


def test_variables_of_each_models_template(
    sampler: OptimalSampler, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {
        "teacher_chat_template_kwargs": {"hint": "brown"},
        "theta_chat_template_kwargs": {"hint": 4},
    }
    for name in given:
        with pytest.raises(ArgumentError, match=f"{name} is for a chat template, and these prompts are text"):
            sampler.generate(PROMPTS, **{name: given[name]})
    monkeypatch.setattr(sampler, "enable_chat_template", True)
    for wrong, reason in (("hint", "is not an object"), ({"tokenize": False}, "has tokenize, which is no variable")):
        for name in given:
            with pytest.raises(ArgumentError, match=f"{name}.*{reason}"):
                sampler.generate(PROMPTS, **{name: wrong})
    output = sampler.generate(PROMPTS[:1], max_tokens=8, temperature=0, ignore_eos=True, **given)
    texts = [
        tuple(
            f"hint: {hint}\nsystem: {system}\nuser: {PROMPTS[0]}\nassistant: "
            for hint, system in (("brown", TEACHER_SYSTEM), ("4", THETA_SYSTEM))
        )
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


def test_alpha_may_change_within_a_completion_and_between_calls(sampler: OptimalSampler) -> None:
    given: dict[str, Any] = {"max_tokens": 7, "ignore_eos": True, "seed": 3}
    sampler.set_alpha("fixed", (1.0, 0.2), alpha_steps=4)
    try:
        falling = sampler.generate(PROMPTS, THETA_PROMPTS, **given).alpha_history
        with pytest.raises(ArgumentError, match="needs kl_budget, in nats"):
            sampler.set_alpha("kl_budget")
        assert sampler.generate(PROMPTS, THETA_PROMPTS, **given).alpha_history == falling
    finally:
        sampler.set_alpha()
    assert falling == [pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2])] * 2
    assert sampler.generate(PROMPTS, THETA_PROMPTS, **given).alpha_history != falling


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


def test_one_of_several_candidates_is_returned(sampler: OptimalSampler) -> None:
    """The candidates are those that the same seeds draw one at a time, and the kept one is the best by its own record."""
    given: dict[str, Any] = {"max_tokens": 6, "ignore_eos": True}
    output = sampler.generate(PROMPTS, THETA_PROMPTS, seed=20, best_of=4, **given)
    assert output.candidates is not None
    assert output.kept is not None
    for prompt in range(2):
        scores = [candidate.log_z for candidate in output.candidates[prompt]]
        assert len(set(scores)) == 4
        assert output.kept[prompt] == scores.index(max(scores))
        assert output.alpha_history is not None
        assert len(output.alpha_history[prompt]) == output.num_tokens[prompt] == 6
        for candidate in range(4):
            # Seed 20 + 4 i + j; the second prompt of a call has seed + 1.
            alone = sampler.generate(
                [PROMPTS[prompt]], [THETA_PROMPTS[prompt]], seed=20 + 4 * prompt + candidate, best_of=1, **given
            )
            assert alone.candidates is not None
            assert alone.candidates[0][0].log_z == pytest.approx(scores[candidate], abs=1e-3)
            if candidate == output.kept[prompt]:
                assert alone.generated_ids[0] == output.generated_ids[prompt]
    by_teacher = sampler.generate(PROMPTS, THETA_PROMPTS, seed=20, best_of=4, select="teacher_logprob", **given)
    assert by_teacher.candidates is not None
    assert by_teacher.kept == [
        max(range(4), key=lambda index: one[index].teacher_logprob) for one in by_teacher.candidates
    ]
    first = sampler.generate(PROMPTS, THETA_PROMPTS, seed=20, best_of=4, select="none", **given)
    assert first.kept == [0, 0]
    plain = sampler.generate(PROMPTS[:1], THETA_PROMPTS[:1], seed=20, **given)
    assert plain.generated_ids[0] == first.generated_ids[0]
    assert plain.candidates is None
    assert plain.kept is None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"best_of": 0}, r"best_of=0 is outside \[1, "),
        ({"best_of": "4"}, "best_of='4' is text, not a whole number"),
        ({"select": "log_z"}, "say of how many with best_of"),
        ({"select_by": "mean"}, "say of how many with best_of"),
        ({"best_of": 4, "select": "logz"}, "did you mean log_z"),
        ({"best_of": 4, "select": "resample", "select_by": "mean"}, "select_by='mean' has no effect"),
        ({"best_of": 4, "temperature": 0}, "the same text at temperature 0"),
        ({"best_of": 4, "use_optimal_sampling": False}, "use_optimal_sampling=False draws none"),
        ({"n": 4}, "or best_of to keep one of n"),
    ],
)
def test_selections_that_are_refused(sampler: OptimalSampler, arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ArgumentError, match=reason):
        sampler.generate(PROMPTS, **arguments)


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


class InterruptedSteps:
    """The engine's steps, with Ctrl-C in the middle of one of them."""

    def __init__(self, sampler: OptimalSampler, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.step, self.left = sampler.llm.llm_engine.step, at
        monkeypatch.setattr(sampler.llm.llm_engine, "step", self)

    def __call__(self) -> Any:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.step()


@pytest.mark.parametrize("at", [1, 3])
def test_after_ctrl_c_the_next_call_has_its_own_outputs(
    sampler: OptimalSampler, reference: Reference, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """At c2787b4 it had those of the interrupted call before its own."""
    with monkeypatch.context() as patch:
        InterruptedSteps(sampler, patch, at)
        with pytest.raises(KeyboardInterrupt):
            sampler.generate(PROMPTS * 4, max_tokens=64, temperature=0, ignore_eos=True)
    output = sampler.generate(PROMPTS[:1], THETA_PROMPTS[:1], max_tokens=8, temperature=0, ignore_eos=True)
    texts = [(f"{TEACHER_SYSTEM}\n\n{PROMPTS[0]}", f"{THETA_SYSTEM}\n\n{THETA_PROMPTS[0]}")]
    assert output.generated_ids == expected(sampler, reference, texts)


def test_requests_of_others_are_not_mixed_with_its_own(sampler: OptimalSampler) -> None:
    sampler.llm.enqueue(["theirs"], SamplingParams(max_tokens=2))
    with pytest.raises(RuntimeError, match="at work on 1 requests that are not this sampler's"):
        sampler.generate(PROMPTS)
    assert len(sampler.llm.wait_for_completion()) == 1
    assert sampler.generate(PROMPTS, max_tokens=2).num_tokens == [2, 2]


def test_two_threads_have_their_own_outputs(sampler: OptimalSampler) -> None:
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(sampler.generate, PROMPTS[:1] * number, max_tokens=2) for number in (1, 3, 2)]
        assert [len(call.result().num_tokens) for call in calls] == [1, 3, 2]


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"fixed_alpha": 0.7}, "^fixed_alpha=0.7 has no effect with alpha_method='kl_symmetry'"),
    ({"enable_chat_template": "no"}, "enable_chat_template='no' is text, not true or false"),
    ({"track_alpha_stats": 1}, "track_alpha_stats=1 is an integer"),
    ({"theta_system_prompt": ""}, "theta_system_prompt='' is not text"),
    ({"teacher_system_prompt": 3}, "teacher_system_prompt=3 is not text"),
    ({"model": "another"}, "model_teacher and model name one model"),
    ({"speculative_config": {"model": "another"}}, "speculative_config has another model"),
    ({"num_speculative_tokens": 3, "speculative_config": {"num_speculative_tokens": 2}}, "give one of them"),
    ({"additional_config": {"optimal_sampling": {"alpha_max": 0.5}}}, "additional_config has alpha_max"),
    ({"additional_config": {"optimal_sampling": {"theta_prompt": "x"}}}, "additional_config has theta_prompt"),
    ({"additional_config": {"optimal_sampling": {"theta_system_prompt": "x"}}}, "which has no effect here"),
]


@pytest.mark.parametrize(
    ("arguments", "reason"), CONTRADICTIONS, ids=[str(arguments) for arguments, _ in CONTRADICTIONS]
)
def test_arguments_without_effect_are_refused(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ArgumentError, match=reason):
        OptimalSampler("no teacher", "no theta", **arguments)


def test_a_closed_sampler_says_so(pair: tuple[str, str]) -> None:
    teacher, theta = pair
    with OptimalSampler(teacher, theta, alpha_method="fixed", fixed_alpha=0.5, **SMALL) as sampler:
        assert sampler.generate(PROMPTS[:1], max_tokens=1).num_tokens == [1]
        for arguments, reason in (
            ({"extra_args": {"alpha": 1}}, "extra_args are made of"),
            ({"use_optimal_sampling": "no"}, "use_optimal_sampling='no' is text"),
        ):
            with pytest.raises(ArgumentError, match=reason):
                sampler.generate(PROMPTS, **arguments)
        with pytest.raises(TypeError, match="repetition_penalti"):
            sampler.generate(PROMPTS, repetition_penalti=1.1)
    for _ in range(2):
        sampler.close()
        with pytest.raises(RuntimeError, match="this sampler is closed; make a new one"):
            sampler.generate(PROMPTS)


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
