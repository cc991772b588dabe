"""Theta that scores: the teacher itself in one forward with it, or another model; with drafts from elsewhere, or none.

Every row is audited, greedy tokens are compared with brute force, and the counter of steps says which way they took. The
batches have theta prompts shorter, equal, longer and twice as long, every alpha, opt-outs and neighbours on the same
prompts; chunks are small, and prefix caching is on.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm import LLM
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor

from support.cases import KL_SYMMETRY, OPTED_OUT, Case, generate, mixed_batch, token_ids
from support.engines import find_runner, scoring_options, stop_engine
from support.gpu import ON_GPU
from support.pieces_on_cpu import run_in_pieces
from support.random_models import save_model
from support.reference_models import Reference, greedy_tokens
from support.row_audit import AuditError, RowAudit
from support.scored_steps import FEW_TOKENS, audited, check_greedy, counts
from support.sessions import Part, run_session
from vllm_optimal_sampling.worker import model_runner
from vllm_optimal_sampling.worker.theta import one_model, twin_layers
from vllm_optimal_sampling.worker.theta.scorer import ScorerSteps
from vllm_optimal_sampling.worker.theta.scoring_pass import ScoringPass

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


def test_a_session_that_mixes_now_and_then(
    scoring_engines: Callable[..., LLM], pair: tuple[str, str], self_reference: Reference
) -> None:
    """Theta reads along where a session that streams its input has opted out: what comes next may be mixed."""
    llm = scoring_engines(pair[0])
    rng = random.Random(15)
    parts = [Part(token_ids(rng, 30 + i), OPTED_OUT if i % 2 == 0 else KL_SYMMETRY) for i in range(4)]
    with RowAudit(llm) as audit:
        run_session(llm, "session", parts, max_tokens=5)
    report = audit.check(self_reference)
    assert report.rows == 20 and all(record is None for part in parts for record in part.records)
    drawn_alone = [row for row in audit.rows if row.position < row.settings["first_position"]]
    assert len(drawn_alone) == 10 and all(torch.equal(row.before, row.after) for row in drawn_alone)


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


NO_REAL_GRAPHS = pytest.mark.skipif(ON_GPU, reason="stands in for CUDA graphs; test_gpu.py has real ones")


class EagerGraphs:
    """In place of CUDA graphs, which a CPU has none of: the forward that one would hold, padded as one would be."""

    def __init__(self, scoring: ScoringPass, model: Any, query_len: int) -> None:
        self.scoring, self.model, self.query_len = scoring, model, query_len
        self.replays = 0

    def dispatch(self, num_reqs: int, num_tokens: int, uniform: int | None, num_active_loras: int) -> Any:
        if uniform != self.query_len:
            return BatchExecutionDescriptor(CUDAGraphMode.NONE, num_tokens, num_reqs)
        # Up to three requests more, to a multiple of three, where a forward has room for them.
        padded = min(num_reqs + 3 - (num_reqs + 2) % 3, self.scoring.max_num_reqs)
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


@NO_REAL_GRAPHS
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


@NO_REAL_GRAPHS
def test_one_model_in_pieces(
    scoring_engines: Callable[..., LLM],
    pair: tuple[str, str],
    self_reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Graphs of the teacher's pieces, captured once: they serve theta's passes, and steps of both of unequal lengths."""
    llm = scoring_engines(pair[0], drafts=3)
    teacher, theta = run_in_pieces(llm, monkeypatch)
    assert teacher is theta
    report, steps = audited(llm, self_reference, mixed_batch(seed=62, long=70), max_tokens=12, **FEW_TOKENS)
    assert steps.fused and steps.apart and report.by_draft_position[3]
    assert len(theta.replays) == len(theta.captured)
    llm.reset_prefix_cache()
    monkeypatch.setattr(model_runner, "outputs_out_of_graphs", lambda state, graphs: state)
    with pytest.raises(AuditError):
        audited(llm, self_reference, mixed_batch(seed=63, long=70), max_tokens=6)
    llm.reset_prefix_cache()


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


def test_a_model_of_its_own_is_part_of_vllms_memory_profile(
    scoring_engines: Callable[..., LLM], pair: tuple[str, str]
) -> None:
    """And is compiled there: vLLM captures graphs to throw them away next, and pieces made then would keep their memory."""
    runner = find_runner(scoring_engines(*pair, drafts=3))
    tokens: list[int] = []
    hook = runner.theta.model.register_forward_hook(lambda module, given, output: tokens.append(len(output)))
    try:
        runner.profile_run()
    finally:
        hook.remove()
    assert tokens == [runner.max_num_tokens]


@NO_REAL_GRAPHS
@pytest.mark.parametrize("thetas", ["pieces", "whole forwards"])
def test_two_models_in_pieces(
    thetas: str,
    scoring_engines: Callable[..., LLM],
    pair: tuple[str, str],
    reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The teacher's pieces, and theta's graphs, of either kind: those overwrite what the former put out."""
    llm = scoring_engines(*pair, drafts=3)
    _, theta = run_in_pieces(llm, monkeypatch)
    scoring = find_runner(llm).theta.scoring
    if thetas == "whole forwards":
        monkeypatch.setattr(scoring, "pieces", None)
        monkeypatch.setattr(scoring, "graphs", EagerGraphs(scoring, theta, 4))
    audited(llm, reference, mixed_batch(seed=64, long=70), max_tokens=12, **FEW_TOKENS)
    assert scoring.graphs.replays > 5 if thetas != "pieces" else len(theta.replays) == len(theta.captured)
    llm.reset_prefix_cache()
    monkeypatch.setattr(model_runner, "outputs_out_of_graphs", lambda state, graphs: state)
    with pytest.raises(AuditError):
        audited(llm, reference, mixed_batch(seed=65, long=70), max_tokens=6, **FEW_TOKENS)
    llm.reset_prefix_cache()


@pytest.mark.full
def test_two_models_without_drafts_preempted(
    scoring_engines: Callable[..., LLM], pair: tuple[str, str], reference: Reference
) -> None:
    llm = scoring_engines(*pair, max_model_len=192, num_gpu_blocks_override=2 + (192 + 64) // 32)
    audited(llm, reference, mixed_batch(seed=43, long=70), max_tokens=24)
    assert counts(llm)["num_preemptions"] > 0


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
    far = SimpleNamespace(kv_cache=torch.empty(1, device="meta").as_strided((8, 16), (2**31, 1)))
    assert "are 2147483648 elements apart" in str(offset(**{**right, "a": far, "theta.a": far})[1])
    config.kv_cache_groups = [SimpleNamespace(layer_names=names) for names in (["a", "b"], ["theta.a", "theta.b"])]
    assert "in different groups" in str(offset(**right)[1])


def test_block_tables_reach_behind_the_last_drafts() -> None:
    """Theta may be at the model's length when more drafts come than a block has tokens; vLLM makes what it is told to."""

    class Runner:
        vllm_config = SimpleNamespace(
            cache_config=SimpleNamespace(block_size=16, prefix_match_unit=None),
            parallel_config=SimpleNamespace(decode_context_parallel_size=1),
            num_speculative_tokens=20,
        )
        max_model_len = 496
        warm_up = None

        def initialize_kv_cache(self, config: Any) -> None:
            self.tokens = self.max_model_len

    runner: Any = type("ThetaRunner", (model_runner.ThetaRunnerMixin, Runner), {})()
    runner.initialize_kv_cache(SimpleNamespace(kv_cache_groups=[]))
    last_row, behind_the_teachers = 496 + 20, 496 + 16
    assert runner.tokens >= max(last_row, behind_the_teachers) and runner.max_model_len == 496
