"""Theta that scores: the teacher itself in one forward with it, or another model; with drafts from elsewhere, or none.

Every row is audited, greedy tokens are compared with brute force, and the counter of steps says which way they took. The
batches have theta prompts shorter, equal, longer and twice as long, every alpha, opt-outs and neighbours on the same
prompts; chunks are small, and prefix caching is on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm import LLM
from vllm.config.compilation import CUDAGraphMode
from vllm.lora.request import LoRARequest
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor

from support.adapters import save_adapter, save_merged
from support.cases import KL_SYMMETRY, OPTED_OUT, Case, generate, mixed_batch, theta_prompts, token_ids
from support.engines import RUN_MODES, find_runner, scoring_options, stop_engine
from support.random_models import save_eagle_head, save_model
from support.reference_models import Reference, greedy_tokens
from support.row_audit import Report, RowAudit
from vllm_optimal_sampling.worker.theta import one_model, twin_layers
from vllm_optimal_sampling.worker.theta.scorer import ScorerSteps
from vllm_optimal_sampling.worker.theta.scoring_pass import ScoringPass

# Few tokens to draw from, so that n-grams draft what is then drawn. The audit's rows are those before that.
FEW_TOKENS: dict[str, Any] = {"allowed_token_ids": [5, 6, 7]}
SAMPLER_ARGUMENTS = ("dtype", "enforce_eager", "max_model_len", "max_num_seqs", "kv_cache_memory_bytes", "block_size")


@pytest.fixture(scope="module", params=RUN_MODES)
def scoring_engines(request: pytest.FixtureRequest) -> Iterator[Callable[..., LLM]]:
    """Engines by their options, on a GPU with graphs too; the last one stays up until another is asked for."""
    running: dict[str, LLM] = {}

    def engine(*models: str, **options: Any) -> LLM:
        key = repr((models, sorted(options.items())))
        if key not in running:
            for other in running.values():
                stop_engine(other)
            running.clear()
            chunks = {"max_num_batched_tokens": 128, "enable_prefix_caching": True, **RUN_MODES[request.param]}
            running[key] = LLM(**scoring_options(*models, **{**chunks, **options}))
        return running[key]

    yield engine
    for llm in running.values():
        stop_engine(llm)


@pytest.fixture(scope="session")
def self_reference(pair: tuple[str, str]) -> Reference:
    return Reference(pair[0], pair[0])


def audited(llm: LLM, reference: Reference, cases: list[Case], **options: Any) -> tuple[Report, ScorerSteps]:
    """Generate, check every row, and say how the steps were taken."""
    steps = find_runner(llm).theta.steps
    before = ScorerSteps(**vars(steps))
    with RowAudit(llm) as audit:
        outputs = generate(llm, cases, **options)
    taken = ScorerSteps(**{name: count - getattr(before, name) for name, count in vars(steps).items()})
    return audit.check(reference, theta_prompts(cases, outputs)), taken


def check_greedy(llm: LLM, reference: Reference, cases: list[Case], max_tokens: int = 16, **options: Any) -> None:
    outputs = generate(llm, cases, max_tokens=max_tokens, temperature=0.0, **options)
    for case, output in zip(cases, outputs, strict=True):
        assert list(output.outputs[0].token_ids) == greedy_tokens(reference, case, max_tokens)


def counts(llm: LLM) -> dict[str, float]:
    return {metric.name.removeprefix("vllm:"): getattr(metric, "value", 0) for metric in llm.get_metrics()}


# One model


def test_one_forward_for_teacher_and_theta(
    scoring_engines: Callable[..., LLM], pair: tuple[str, str], self_reference: Reference
) -> None:
    llm = scoring_engines(pair[0])
    theta = find_runner(llm).theta
    # The twins' caches lie behind the teacher's in one buffer: `layers x blocks` further on.
    blocks = find_runner(llm).kv_cache_config.num_blocks
    assert theta.offset == len(theta.twins) * blocks
    cases = mixed_batch(seed=31, long=70)
    report, steps = audited(llm, self_reference, cases, max_tokens=20, samples=[1, 2] * 6)
    assert report.rows == 20 * 18 and report.mixed == report.rows - 2 * 20
    assert steps.fused > 0.85 * (steps.fused + steps.apart) and steps.apart > 0
    check_greedy(llm, self_reference, mixed_batch(seed=40, long=70))
    assert counts(llm)["prefix_cache_hits"] > 0


def test_requests_that_opted_out_cost_nothing(
    scoring_engines: Callable[..., LLM], pair: tuple[str, str], self_reference: Reference
) -> None:
    llm = scoring_engines(pair[0])
    rng = random.Random(5)
    prompt = token_ids(rng, 70)
    opted_out = [Case(prompt, None, OPTED_OUT), Case(token_ids(rng, 33), None, OPTED_OUT)]
    steps = find_runner(llm).theta.steps
    before = ScorerSteps(**vars(steps))
    outputs = generate(llm, opted_out, max_tokens=12, temperature=0.0)
    assert (steps.fused, steps.apart) == (before.fused, before.apart) and steps.without > before.without
    assert [list(o.outputs[0].token_ids) for o in outputs] == [
        greedy_tokens(self_reference, case, 12) for case in opted_out
    ]
    # What they left in the prefix cache has no keys and values of theta: nobody with a theta may find it.
    report, _ = audited(llm, self_reference, [Case(prompt, None, KL_SYMMETRY), *opted_out], max_tokens=6)
    assert report.mixed == 6


def test_records(scoring_engines: Callable[..., LLM], pair: tuple[str, str], self_reference: Reference) -> None:
    """The record of a token has both models' log-probabilities of it."""
    llm = scoring_engines(pair[0])
    rng = random.Random(6)
    prompt, theta_prompt = token_ids(rng, 40), token_ids(rng, 25)
    (output,) = generate(llm, [Case(prompt, theta_prompt, {"return_alpha": True})], max_tokens=8)
    (completion,) = output.outputs
    record, tokens = completion.optimal_sampling, list(completion.token_ids)
    for i, token in enumerate(tokens):
        for found, model, before in (
            (record.teacher_logprob, self_reference.teacher, prompt),
            (record.theta_logprob, self_reference.theta, theta_prompt),
        ):
            logits = self_reference.logits(model, [*before, *tokens[:i]])
            assert found[i] == pytest.approx(logits.log_softmax(-1)[token].item(), abs=5e-4)


@pytest.mark.parametrize("drafts", [0, pytest.param(3, marks=pytest.mark.full)])
def test_preempted(
    drafts: int, scoring_engines: Callable[..., LLM], pair: tuple[str, str], self_reference: Reference
) -> None:
    """A cache for one request of the model's length and little more: those that grow preempt one another."""
    llm = scoring_engines(pair[0], drafts=drafts, max_model_len=192, num_gpu_blocks_override=2 + (192 + 64) // 32)
    audited(llm, self_reference, mixed_batch(seed=33, long=70), max_tokens=24)
    check_greedy(llm, self_reference, mixed_batch(seed=34, long=70)[:6])
    assert counts(llm)["num_preemptions"] > 0


def test_steps_too_large_for_one_forward(
    scoring_engines: Callable[..., LLM], pair: tuple[str, str], self_reference: Reference
) -> None:
    """Ten tokens a step: five requests fit twice, eight do not; and a head start takes several forwards."""
    llm = scoring_engines(pair[0], max_num_batched_tokens=10)
    rng = random.Random(8)
    few = [Case(token_ids(rng, 5), token_ids(rng, 40), KL_SYMMETRY) for _ in range(5)]
    _, steps = audited(llm, self_reference, few, max_tokens=8)
    assert steps.fused > 0
    many = [Case(token_ids(rng, 2), token_ids(rng, 6), KL_SYMMETRY) for _ in range(8)]
    find_runner(llm).theta.steps.fused = 0
    report, steps = audited(llm, self_reference, many, max_tokens=12)
    assert report.rows == 8 * 12 and steps.apart > 5


class EagerGraphs:
    """In place of CUDA graphs, which a CPU has none of: the forward that one would hold, padded as one would be."""

    def __init__(self, scoring: ScoringPass, model: Any, query_len: int) -> None:
        self.scoring, self.model, self.query_len = scoring, model, query_len
        self.replays = 0

    def dispatch(self, num_reqs: int, num_tokens: int, uniform: int | None, num_active_loras: int) -> Any:
        if uniform != self.query_len:
            return BatchExecutionDescriptor(CUDAGraphMode.NONE, num_tokens, num_reqs)
        padded = num_reqs + 3 - (num_reqs + 2) % 3  # three requests more, or fewer, up to a multiple of three
        return BatchExecutionDescriptor(CUDAGraphMode.FULL, padded * uniform, padded, uniform)

    def run_fullgraph(self, desc: Any) -> None:
        """What a graph reads: the buffers' contents, as large as when it was captured."""
        scoring, tables = self.scoring, self.scoring.block_tables
        self.replays += 1
        mappings = tables.slot_mappings[:, : desc.num_tokens]
        metadata = scoring._attn_metadata(
            desc.num_reqs,
            desc.num_tokens,
            scoring.buffers.query_start_loc[: desc.num_reqs + 1].numpy(),
            self.query_len,
            scoring.buffers.seq_lens[: desc.num_reqs],
            scoring.vllm_config.model_config.max_model_len,
            mappings,
            torch.zeros(desc.num_reqs, dtype=torch.bool),
        )
        self.hidden_states = scoring._forward(self.model, desc.num_tokens, metadata, mappings, desc)

    def output(self, num_tokens: int) -> Any:
        return self.hidden_states


@pytest.mark.parametrize("drafts", [0, 3])
def test_rows_padded_as_for_a_cuda_graph(
    drafts: int,
    scoring_engines: Callable[..., LLM],
    pair: tuple[str, str],
    self_reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    llm = scoring_engines(pair[0], drafts=drafts)
    scoring, model = find_runner(llm).theta.scoring, find_runner(llm).model
    graphs = EagerGraphs(scoring, model, drafts + 1)
    monkeypatch.setattr(scoring, "graphs", graphs)
    for table in scoring.block_tables.input_block_tables:
        table.fill_(1)  # what an earlier step may have left in the padding
    audited(llm, self_reference, mixed_batch(seed=46, long=70), max_tokens=10)
    assert graphs.replays > 5


def test_twins_that_lie_elsewhere_take_a_forward_of_their_own(
    pair: tuple[str, str], self_reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_model, "block_offset", lambda *_: (None, "a test says so"))
    llm = LLM(**scoring_options(pair[0], max_num_batched_tokens=128, enable_prefix_caching=True))
    try:
        _, steps = audited(llm, self_reference, mixed_batch(seed=35, long=70), max_tokens=12)
        assert steps.fused == 0 and steps.apart > 0
        check_greedy(llm, self_reference, mixed_batch(seed=36, long=70)[:6], max_tokens=8)
    finally:
        stop_engine(llm)


def test_a_teacher_that_gets_new_weights(
    scoring_engines: Callable[..., LLM], pair: tuple[str, str], tmp_path: Any
) -> None:
    from vllm_optimal_sampling.weights import reload_weights

    old, new = (
        save_model(tmp_path / str(seed), hidden_size=128, num_layers=3, seed=seed, tie_word_embeddings=False)
        for seed in (4, 5)
    )
    llm = scoring_engines(old)
    cases = mixed_batch(seed=51, long=70)[:6]
    audited(llm, Reference(old, old), cases, max_tokens=4)
    with pytest.raises(ValueError, match="theta has no weights of its own here, it is the teacher"):
        reload_weights(llm, new)
    with pytest.raises(ValueError, match="theta has no adapter to replace"):
        llm.collective_rpc("reload_weights", kwargs={"theta_lora": new})
    reload_weights(llm, new, "teacher")
    audited(llm, Reference(new, new), cases, max_tokens=4)


# With drafts of n-grams


def test_one_model_with_drafts(
    scoring_engines: Callable[..., LLM], pair: tuple[str, str], self_reference: Reference
) -> None:
    llm = scoring_engines(pair[0], drafts=3)
    before = counts(llm)
    report, steps = audited(llm, self_reference, mixed_batch(seed=37, long=70), max_tokens=24, **FEW_TOKENS)
    assert min(report.by_draft_position[j] for j in range(4)) > 50
    assert steps.fused > 0.7 * (steps.fused + steps.apart)
    grown = {name: value - before[name] for name, value in counts(llm).items()}
    assert 0 < grown["spec_decode_num_accepted_tokens"] < grown["spec_decode_num_draft_tokens"]
    check_greedy(llm, self_reference, mixed_batch(seed=41, long=70), max_tokens=12)


@pytest.mark.full
def test_numbers_of_drafts_by_batch_size(
    scoring_engines: Callable[..., LLM], pair: tuple[str, str], self_reference: Reference
) -> None:
    schedule = {"num_speculative_tokens": 4, "num_speculative_tokens_per_batch_size": [(1, 2, 4), (3, 5, 1), (6, 8, 0)]}
    ngram = {"method": "ngram", "prompt_lookup_min": 1, "prompt_lookup_max": 3, **schedule}
    llm = scoring_engines(pair[0], speculative_config=ngram)
    report, steps = audited(llm, self_reference, mixed_batch(seed=38, long=70), max_tokens=24, **FEW_TOKENS)
    assert steps.fused and report.by_draft_position[4]


def test_one_model_with_an_eagle_head(scoring_engines: Callable[..., LLM], tmp_path: Path) -> None:
    """Drafts of a head on the teacher's hidden states, with a layer and a cache of its own beside the twins."""
    model = save_model(tmp_path / "llama", architecture="llama", hidden_size=64, seed=7)
    head = save_eagle_head(tmp_path / "head", model, seed=8)
    eagle = {"method": "eagle", "model": head, "num_speculative_tokens": 2, "draft_sample_method": "probabilistic"}
    llm = scoring_engines(model, speculative_config=eagle)
    assert not any(name.startswith("theta.") for name in find_runner(llm).speculator.draft_attn_layer_names)
    reference = Reference(model, model)
    # Hot enough for two random distributions to have much in common; the audit's rows are those before temperature.
    report, steps = audited(llm, reference, mixed_batch(seed=44, long=70), max_tokens=20, temperature=2.0)
    assert steps.fused > 0.5 * (steps.fused + steps.apart)
    assert min(report.by_draft_position[j] for j in range(3)) > 50
    found = counts(llm)
    assert 0 < found["spec_decode_num_accepted_tokens"] < found["spec_decode_num_draft_tokens"]
    check_greedy(llm, reference, mixed_batch(seed=45, long=70)[:6], max_tokens=8)


# Two models


def test_two_models_with_drafts(
    scoring_engines: Callable[..., LLM], pair: tuple[str, str], reference: Reference
) -> None:
    llm = scoring_engines(*pair, drafts=3)
    report, steps = audited(llm, reference, mixed_batch(seed=39, long=70), max_tokens=16, **FEW_TOKENS)
    assert min(report.by_draft_position[j] for j in range(4)) > 30
    assert steps.fused == 0
    check_greedy(llm, reference, mixed_batch(seed=42, long=70)[:8], max_tokens=8)
    assert counts(llm)["spec_decode_num_accepted_tokens"] > 0


@pytest.mark.full
def test_two_models_without_drafts_preempted(
    scoring_engines: Callable[..., LLM], pair: tuple[str, str], reference: Reference
) -> None:
    llm = scoring_engines(*pair, max_model_len=192, num_gpu_blocks_override=2 + (192 + 64) // 32)
    audited(llm, reference, mixed_batch(seed=43, long=70), max_tokens=24)
    assert counts(llm)["num_preemptions"] > 0


# A student that is an adapter of the teacher


@pytest.fixture(scope="module")
def adapters(pair: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two adapters of the teacher, and the teacher with each of them merged."""
    folder = tmp_path_factory.mktemp("adapters")
    made = {name: save_adapter(folder / name, pair[0], seed=seed) for seed, name in enumerate(("first", "second"))}
    return made | {f"{name}_merged": save_merged(folder / f"{name}_m", pair[0], path) for name, path in made.items()}


@pytest.mark.parametrize("drafts", [0, pytest.param(3, marks=pytest.mark.full)])
def test_an_adapter_as_theta_and_another_after_it(
    drafts: int, scoring_engines: Callable[..., LLM], pair: tuple[str, str], adapters: dict[str, str], tmp_path: Path
) -> None:
    llm = scoring_engines(pair[0], drafts=drafts, theta_lora=adapters["first"])
    cases = mixed_batch(seed=61, long=70)
    few = FEW_TOKENS if drafts else {}
    _, steps = audited(llm, Reference(pair[0], adapters["first_merged"]), cases, max_tokens=12, **few)
    assert steps.fused > 0.6 * (steps.fused + steps.apart)
    with pytest.raises(ValueError, match="theta_lora='nowhere' cannot be loaded"):
        llm.collective_rpc("reload_weights", kwargs={"theta_lora": "nowhere"})
    wrong = save_adapter(tmp_path / "wrong", pair[1], seed=3)
    with pytest.raises(ValueError, match="wrong' cannot be loaded"):
        llm.collective_rpc("reload_weights", kwargs={"theta_lora": wrong})
    audited(llm, Reference(pair[0], adapters["first_merged"]), cases[:3], max_tokens=3, **few)
    llm.collective_rpc("reload_weights", kwargs={"theta_lora": adapters["second"]})
    llm.llm_engine.reset_prefix_cache(reset_running_requests=True)
    second = Reference(pair[0], adapters["second_merged"])
    audited(llm, second, cases, max_tokens=12, **few)
    check_greedy(llm, second, mixed_batch(seed=62, long=70)[:6], max_tokens=8)


def test_adapters_of_requests_are_the_teachers(
    scoring_engines: Callable[..., LLM], pair: tuple[str, str], adapters: dict[str, str]
) -> None:
    """The teacher answers through a request's own adapter, theta never does."""
    llm = scoring_engines(pair[0], enable_lora=True, max_lora_rank=8, theta_lora=adapters["second"])
    lora = LoRARequest("first", 1, adapters["first"])
    reference = Reference(adapters["first_merged"], adapters["second_merged"])
    audited(llm, reference, mixed_batch(seed=63, long=70), max_tokens=8, lora_request=lora)
    plain = Reference(pair[0], adapters["second_merged"])
    audited(llm, plain, mixed_batch(seed=63, long=70)[:6], max_tokens=4)


def test_adapters_of_requests_beside_a_theta_without_one(
    scoring_engines: Callable[..., LLM], pair: tuple[str, str], adapters: dict[str, str]
) -> None:
    llm = scoring_engines(pair[0], enable_lora=True, max_lora_rank=8)
    lora = LoRARequest("first", 1, adapters["first"])
    reference = Reference(adapters["first_merged"], pair[0])
    _, steps = audited(llm, reference, mixed_batch(seed=64, long=70), max_tokens=8, lora_request=lora)
    assert steps.fused and steps.apart


def test_an_adapter_of_another_model_is_refused_at_start(pair: tuple[str, str], tmp_path: Path) -> None:
    wrong = save_adapter(tmp_path / "wrong", pair[1], seed=3)
    with pytest.raises(ValueError, match=r"^optimal sampling cannot start: theta_lora=.*is made for \d+ inputs"):
        LLM(**scoring_options(pair[0], theta_lora=wrong))


def test_the_offset_is_refused_where_it_is_none() -> None:
    """Twins a part of a block away, in two buffers, or beyond what block tables hold."""
    buffer = torch.zeros(4096)

    def layer(start: int, shape: tuple[int, ...] = (8, 16), of: torch.Tensor = buffer) -> Any:
        view = of.as_strided(shape, (shape[1], 1), start)
        return SimpleNamespace(kv_cache=view)

    groups = [SimpleNamespace(layer_names=["a", "theta.a", "b", "theta.b"])]
    config = SimpleNamespace(kv_cache_groups=groups, num_blocks=8)
    twins = {"a": "theta.a", "b": "theta.b"}

    def offset(**starts: Any) -> tuple[int | None, str | None]:
        return twin_layers.block_offset(starts, twins, config)  # type: ignore[arg-type]

    right = {"a": layer(0), "b": layer(128), "theta.a": layer(256), "theta.b": layer(384)}
    assert offset(**right) == (16, None)
    assert (
        offset(**{**right, "theta.b": layer(392)})[1]
        == "the cache of b is not a whole number of blocks before its twin's"
    )
    assert "16, 17" in str(offset(**{**right, "theta.b": layer(400)})[1])
    assert "lie in two buffers" in str(offset(**{**right, "theta.a": layer(256, of=buffer.clone())})[1])
    assert "is -16 blocks before" in str(offset(**{**right, "a": layer(256), "theta.a": layer(0)})[1])
    config.kv_cache_groups = [SimpleNamespace(layer_names=names) for names in (["a", "b"], ["theta.a", "theta.b"])]
    assert "in different groups" in str(offset(**right)[1])


# In one object


def test_a_sampler_of_one_model(pair: tuple[str, str], adapters: dict[str, str]) -> None:
    """`OptimalSampler` with a student that is an adapter, and with the next one."""
    from vllm_optimal_sampling import OptimalSampler
    from vllm_optimal_sampling.argument_checks import ArgumentError

    small = {key: value for key, value in scoring_options(pair[0]).items() if key in SAMPLER_ARGUMENTS}
    with OptimalSampler(model=pair[0], theta="self", theta_lora=adapters["first"], **small) as sampler:
        prompt, theta_prompt = "the quick brown fox jumps over the answer", "the quick brown fox"
        tokenizer = sampler.llm.get_tokenizer()
        case = Case(tokenizer.encode(prompt), tokenizer.encode(theta_prompt), KL_SYMMETRY)
        for name in ("first", "second"):
            if name == "second":
                sampler.update_theta(adapter_path=adapters["second"])
            reference = Reference(pair[0], adapters[f"{name}_merged"])
            output = sampler.generate([prompt], [theta_prompt], max_tokens=10, temperature=0.0, ignore_eos=True)
            assert output.generated_ids == [greedy_tokens(reference, case, 10)]
    with pytest.raises(RuntimeError, match="closed"):
        sampler.update_theta(adapter_path=adapters["first"])
    for arguments, message in (
        ({"model": pair[0]}, "model_theta and theta name one model, and neither is given"),
        ({"model_teacher": pair[0], "model": pair[0], "theta": "self"}, "both are given; drop one of them"),
        ({"model_teacher": pair[0], "model_theta": pair[1], "theta_lora": "x"}, 'give theta="self" with it'),
        ({"model": pair[0], "theta": "self", "num_speculative_tokens": 2}, "nothing drafts where theta scores"),
    ):
        with pytest.raises(ArgumentError, match=message):
            OptimalSampler(**arguments)
