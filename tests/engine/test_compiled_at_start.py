"""No request waits for a kernel to be compiled: every variant that steps launch is one that vLLM's warm-up steps launch.

A CPU compiles nothing; which variants a GPU would compile is read off the launches (`support.compiled_variants`). The kernels
of the mix and of vLLM's sampler are left out: the former have a warm-up of their own, and other shapes here than on a GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
from vllm import LLM
from vllm.v1.worker.gpu.warmup import warmup_kernels

from support.cases import OPTED_OUT, Case, generate, mixed_batch
from support.compiled_variants import Variant, launched_variants
from support.engines import engine_options, find_runner, scoring_options, stop_engine
from support.gpu import ON_GPU

pytestmark = pytest.mark.skipif(
    ON_GPU, reason="reads launches off the interpreter; test_gpu.py has what a GPU compiles"
)

OPTIONS: dict[str, Any] = {"max_num_batched_tokens": 128, "enable_prefix_caching": True}
OURS = "vllm_optimal_sampling.worker."


def of_steps(variants: set[Variant]) -> set[Variant]:
    return {(name, what) for name, what in variants if name.startswith(OURS)}


@pytest.mark.parametrize("theta", ["drafts", "scores"])
def test_warm_up_steps_launch_what_requests_launch(theta: str, pair: tuple[str, str]) -> None:
    options = (
        engine_options(*pair, 2, **OPTIONS) if theta == "drafts" else scoring_options(pair[0], drafts=2, **OPTIONS)
    )
    llm = LLM(**options)
    try:
        worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
        with launched_variants() as at_start:
            warmup_kernels(find_runner(llm), worker.execute_model, worker.sample_tokens)
        cases = mixed_batch(seed=3, long=70)
        with launched_variants() as later:
            generate(llm, cases[:7], max_tokens=4)  # odd and even numbers of requests, prompts of every length
            generate(llm, cases[:1], max_tokens=3, temperature=0.0)
            generate(
                llm, [*cases[5:8], Case(cases[0].prompt, None, OPTED_OUT)], max_tokens=3, temperature=0.0, top_p=0.9
            )
    finally:
        stop_engine(llm)
    assert len(of_steps(later)) >= 3, "no step was listened to"
    assert not of_steps(later) - of_steps(at_start)
