"""Steps of engines with theta where vLLM lets none wait for the device: run with VLLM_GPU_SYNC_CHECK=error.

usage: steps_that_do_not_wait.py TEACHER THETA

A step then raises where it synchronises, and where it copies by way of memory that is not pinned. Prints what ran; without a
GPU vLLM checks nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm import LLM

from support.cases import KL_SYMMETRY, OPTED_OUT, Case, generate, mixed_batch
from support.engines import RUN_MODES, engine_options, find_processor, scoring_options, stop_engine

RECORDS = {"return_alpha": True, "return_top_k": 3}
SEARCHED = {"support_top_k": 20, "alpha_method": "ess_balance"}


MODE = {"dtype": "bfloat16", **list(RUN_MODES.values())[-1]}
"""With graphs where there are some."""


@contextmanager
def running(options: dict[str, Any]) -> Iterator[LLM]:
    llm = LLM(**options)
    try:
        yield llm
    finally:
        stop_engine(llm)


def run_requests(llm: LLM) -> None:
    """Requests of all kinds, that end one after the other and are followed by others."""
    batch = mixed_batch(seed=5, long=70)
    cases = [
        Case(case.prompt, case.theta_prompt, (KL_SYMMETRY, RECORDS, SEARCHED)[i % 3]) for i, case in enumerate(batch)
    ]
    cases += [Case(case.prompt, None, OPTED_OUT) for case in batch[:2]]
    for options in ({}, {"temperature": 0.0}, {"top_p": 0.9}):
        generate(llm, cases, max_tokens=9, **options)


def main() -> None:
    teacher, theta = sys.argv[1:]
    engines = {
        "theta drafts": engine_options(teacher, theta, **MODE),
        "theta scores": scoring_options(teacher, theta, **MODE),
        "theta is the teacher": scoring_options(teacher, **MODE),
    }
    for name, options in engines.items():
        with running(options) as llm:
            run_requests(llm)
            sys.stdout.write(f"{name}: no step waited\n")
            if name == "theta is the teacher":
                plant_a_wait(llm)


def plant_a_wait(llm: LLM) -> None:
    processor = find_processor(llm)
    apply = processor.apply
    processor.apply = lambda logits, ctx: apply(logits.add_(logits[0, 0].item() * 0), ctx)  # type: ignore[method-assign]
    try:
        run_requests(llm)
    except RuntimeError as error:
        sys.stdout.write(f"a planted wait was found: {error}\n")


if __name__ == "__main__":
    main()
