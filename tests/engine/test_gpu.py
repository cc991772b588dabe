"""What only a GPU shows: graphs replayed at every padded size, requests that come and go in between, async scheduling.

Everything else runs in the other files, on a GPU too, eagerly and with graphs (`engines` in conftest.py).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from vllm import LLM, SamplingParams
from vllm.config.compilation import CUDAGraphMode

from support.adapters import save_adapter, save_merged
from support.cases import KL_SYMMETRY, OPTED_OUT, Case, generate, mixed_batch, theta_prompts, token_ids
from support.engines import find_runner, scoring_options, start_engine, stop_engine
from support.gpu import ON_GPU
from support.reference_models import Reference
from support.row_audit import RowAudit
from support.scored_steps import audited
from vllm_optimal_sampling.config.settings import EngineSettings

pytestmark = pytest.mark.skipif(not ON_GPU, reason="CUDA graphs and async scheduling need a GPU; torch sees none here")

MAX_NUM_SEQS = 12
NUM_DRAFTS = 3
GRAPHS = {"enforce_eager": False, "compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}}
MODES: dict[str, dict[str, Any]] = {
    "graphs, bfloat16": {**GRAPHS, "dtype": "bfloat16"},
    "vLLM's defaults": {"enforce_eager": False, "dtype": "bfloat16"},
    "prompts in graphs too": {
        "enforce_eager": False,
        "dtype": "bfloat16",
        "additional_config": {"optimal_sampling": {"theta_prompt_graphs": True}},
    },
    "graphs, float32": {**GRAPHS, "dtype": "float32"},
    "drafts by batch size": {
        **GRAPHS,
        "dtype": "bfloat16",
        "speculative_config": {"num_speculative_tokens_per_batch_size": [(1, 2, 3), (3, 6, 1), (7, MAX_NUM_SEQS, 0)]},
    },
}


@pytest.fixture(scope="module", params=MODES)
def llm(pair: tuple[str, str], request: pytest.FixtureRequest) -> Iterator[LLM]:
    llm = start_engine(
        *pair,
        num_speculative_tokens=NUM_DRAFTS,
        max_num_seqs=MAX_NUM_SEQS,
        enable_prefix_caching=True,
        **MODES[request.param],
    )
    yield llm
    stop_engine(llm)


def cases_of(count: int, seed: int) -> list[Case]:
    """So many requests with prompts of both models of any length, some opted out."""
    rng = random.Random(seed)
    return [
        Case(
            token_ids(rng, rng.randrange(1, 70)),
            token_ids(rng, rng.randrange(1, 70)),
            OPTED_OUT if i % 5 == 4 else KL_SYMMETRY,
        )
        for i in range(count)
    ]


def test_graphs_and_async_scheduling_are_on(llm: LLM) -> None:
    config = llm.llm_engine.vllm_config
    assert config.scheduler_config.async_scheduling
    assert config.compilation_config.cudagraph_mode.decode_mode() == CUDAGraphMode.FULL
    assert find_runner(llm).speculator.has_round_graphs


def test_rows_are_right_at_every_padded_size(llm: LLM, reference: Reference) -> None:
    """Every batch from one request to the most: each is padded to a size that was captured, theta's round to its own."""
    runner = find_runner(llm)
    replayed: set[int] = set()
    replay = runner.speculator.round_graphs.run_fullgraph

    def counted(desc: Any) -> Any:
        replayed.add(desc.num_tokens)
        return replay(desc)

    runner.speculator.round_graphs.run_fullgraph = counted
    try:
        for count in range(1, MAX_NUM_SEQS + 1):
            cases = cases_of(count, seed=count)
            with RowAudit(llm) as audit:
                outputs = generate(llm, cases, max_tokens=9, seed=count)
            report = audit.check(reference, theta_prompts(cases, outputs))
            assert report.mixed
    finally:
        del runner.speculator.round_graphs.run_fullgraph
    captured = {desc.num_tokens for desc in runner.speculator.round_graphs.graphs}
    assert replayed == captured


def test_requests_that_arrive_and_leave_at_any_step(llm: LLM, reference: Reference) -> None:
    """Arrivals between steps, and aborts of requests whose tokens are in flight: the rows of the others stay right."""
    rng = random.Random(5)
    cases = cases_of(24, seed=77)
    engine = llm.llm_engine
    waiting, finished, aborted = list(enumerate(cases)), {}, set()
    with RowAudit(llm) as audit:
        while waiting or engine.has_unfinished_requests():
            for _ in range(rng.choice((0, 0, 1, 3))):
                if not waiting:
                    break
                number, case = waiting.pop()
                params = SamplingParams(
                    max_tokens=20, temperature=1.0, seed=number, ignore_eos=True, extra_args=case.extra_args()
                )
                engine.add_request(f"staggered-{number}", {"prompt_token_ids": case.prompt}, params)
            for output in engine.step():
                if output.finished:
                    finished[output.request_id] = output
            running = [n for n in range(24) if f"staggered-{n}" not in finished and all(n != w for w, _ in waiting)]
            if running and rng.random() < 0.1 and len(aborted) < 6:
                number = rng.choice(running)
                if number not in aborted:
                    engine.abort_request([f"staggered-{number}"])
                    aborted.add(number)
    assert len(finished) >= 24 - len(aborted) and aborted
    report = audit.check(reference, {f"staggered-{number}-": case.theta_prompt for number, case in enumerate(cases)})
    assert report.mixed > 200
    # The engine is as it was: the next batch is right too.
    again = mixed_batch(seed=9, long=70)
    with RowAudit(llm) as audit:
        outputs = generate(llm, again, max_tokens=6)
    audit.check(reference, theta_prompts(again, outputs))


def counted_pieces(passes: Any, monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often graphs of theta's pieces are replayed from here on, by their number of tokens."""
    replayed: Counter[int] = Counter()
    dispatch = passes.pieces.dispatch

    def counted(*shape: int) -> Any:
        desc = dispatch(*shape)
        if desc is not None:
            replayed[desc.num_tokens] += 1
        return desc

    monkeypatch.setattr(passes.pieces, "dispatch", counted)
    return replayed


def test_prompt_passes_in_pieces(llm: LLM, reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts that join a running batch: theta's part replays graphs where the engine asks for it, behind the teacher's own."""
    runner = find_runner(llm)
    passes = runner.speculator.prompt_pass
    if not EngineSettings.from_config(runner.vllm_config).theta_prompt_graphs:
        assert passes.pieces is None
        return
    replayed = counted_pieces(passes, monkeypatch)
    # Four times as many as run at once, so that most join a batch.
    cases = cases_of(4 * MAX_NUM_SEQS, seed=41)
    with RowAudit(llm) as audit:
        outputs = generate(llm, cases, max_tokens=16)
    audit.check(reference, theta_prompts(cases, outputs))
    assert sum(replayed.values()) > 3


@pytest.mark.parametrize(("theta", "drafts"), [("self", NUM_DRAFTS), ("adapter", 0), ("another", 0)])
def test_a_theta_that_scores_in_pieces(
    theta: str,
    drafts: int,
    pair: tuple[str, str],
    reference: Reference,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """vLLM's defaults. Requests that opted out join the others, whose rows theta replays in graphs of decodes.

    An adapter is run in graphs nowhere else: vLLM's LoRA operations of a CPU take no padding.
    """
    models, options = pair if theta == "another" else pair[:1], {}
    if theta == "self":
        reference = Reference(pair[0], pair[0])
    elif theta == "adapter":
        options["theta_lora"] = save_adapter(tmp_path / "adapter", pair[0], seed=1)
        reference = Reference(pair[0], save_merged(tmp_path / "merged", pair[0], options["theta_lora"]))
    # Sizes that prompts of a small engine fit, and all its decodes.
    sizes = sorted({*range(4, 97, 4), 192, 320, 512})
    llm = LLM(
        **scoring_options(
            *models,
            drafts=drafts,
            enforce_eager=False,
            dtype="bfloat16",
            max_num_seqs=MAX_NUM_SEQS,
            theta_prompt_graphs=True,
            compilation_config={"cudagraph_capture_sizes": sizes},
            **options,
        )
    )
    try:
        replayed = counted_pieces(find_runner(llm).theta.scoring, monkeypatch)
        cases = cases_of(4 * MAX_NUM_SEQS, seed=42)
        with nothing_compiles():
            audited(llm, reference, cases, max_tokens=8)
            run_every_kind(llm)
        assert sum(replayed.values()) >= 3  # prompts come at least four times, twelve at once
    finally:
        stop_engine(llm)


def tokens_of(llm: LLM) -> list[list[int]]:
    cases = mixed_batch(seed=31, long=70)
    return [
        list(output.outputs[0].token_ids) for output in generate(llm, cases, max_tokens=24, temperature=0.9, seed=3)
    ]


@pytest.mark.parametrize("mode", ["graphs, bfloat16", "vLLM's defaults"])
def test_async_scheduling_changes_no_token(pair: tuple[str, str], mode: str) -> None:
    """The same seeds and batch: what the host knows later moves nothing.

    But for a request that ends, which is in the batch for a step more, and kernels round otherwise in a batch of another size:
    by enough in bfloat16 to draw other tokens, in float32 not.
    """
    drawn: dict[bool, list[list[int]]] = {}
    for is_async in (True, False):
        llm = start_engine(
            *pair, num_speculative_tokens=NUM_DRAFTS, async_scheduling=is_async, **{**MODES[mode], "dtype": "float32"}
        )
        try:
            assert llm.llm_engine.vllm_config.scheduler_config.async_scheduling is is_async
            drawn[is_async] = tokens_of(llm)
        finally:
            stop_engine(llm)
    assert drawn[True] == drawn[False]


def test_no_step_waits_for_the_device(pair: tuple[str, str]) -> None:
    """By vLLM's own check, which has to be on before vLLM is imported. test_host_sync.py reads what a CPU shows of it."""
    environment = os.environ | {"VLLM_GPU_SYNC_CHECK": "error", "PYTHONPATH": os.pathsep.join(sys.path)}
    script = Path(__file__).with_name("steps_that_do_not_wait.py")
    done = subprocess.run(
        [sys.executable, str(script), *pair], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout.count("no step waited") == 3
    assert "a planted wait was found: GPU<->CPU sync detected" in done.stdout


def test_self_distillation_starts_with_vllms_defaults(pair: tuple[str, str], reference: Reference) -> None:
    """Theta's compiled code is its own: with the teacher's, the first step ended in a KeyError of a layer's name."""
    teacher = pair[0]
    llm = start_engine(teacher, teacher, enforce_eager=False, dtype="bfloat16")
    try:
        assert find_runner(llm).speculator.shares_weights
        cases = mixed_batch(seed=8, long=70)
        with RowAudit(llm) as audit:
            outputs = generate(llm, cases, max_tokens=8)
        audit.check(Reference(teacher, teacher), theta_prompts(cases, outputs))
    finally:
        stop_engine(llm)


@contextmanager
def nothing_compiles() -> Iterator[None]:
    """Triton has compiled every kernel of ours that is launched inside.

    vLLM's own sampler has kernels for other numbers of rows with top-p, which it compiles when they come.
    """
    compiled: list[str] = []
    hook = triton.knobs.runtime.jit_post_compile_hook
    triton.knobs.runtime.jit_post_compile_hook = lambda *args, fn, **kwargs: compiled.append(f"{fn.module}.{fn.name}")
    try:
        yield
        torch.cuda.synchronize()
    finally:
        triton.knobs.runtime.jit_post_compile_hook = hook
    assert [name for name in compiled if name.startswith("vllm_optimal_sampling.")] == []


def run_every_kind(llm: LLM) -> None:
    """Requests with top-p, greedy ones, some that opted out, with records, with searches; many and one."""
    cases = cases_of(MAX_NUM_SEQS, seed=1)
    for options in ({"temperature": 1.0}, {"temperature": 0.0}, {"top_p": 0.9}, {"top_p": 0.9, "top_k": 20}):
        generate(llm, cases, max_tokens=6, **options)
    for asked in (
        {"return_alpha": True},
        {"support_top_k": 9},
        {"support_top_p": 0.9},
        {"alpha_method": "ess_balance"},
    ):
        generate(llm, [Case(case.prompt, case.theta_prompt, asked) for case in cases[:5]], max_tokens=6)
    generate(llm, cases_of(1, seed=2), max_tokens=6)


def test_nothing_compiles_after_start(llm: LLM) -> None:
    with nothing_compiles():
        run_every_kind(llm)
