"""The example pair's held-out problems through the engine: how often theta, the teacher and q* between them are right.

    python benchmarks/example_pair.py                   500 problems
    python benchmarks/example_pair.py --theta teacher   the teacher as its own theta, which shares its weights

On a GPU with vLLM's defaults (Inductor, graphs, async scheduling), so it is also the end-to-end check there: the rates of
examples/pair/figures.json were measured by transformers alone.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from recording import RESULTS, header, set_cpu_environment, write

IS_CPU_BUILD = set_cpu_environment()

import prompts  # noqa: E402  puts examples/pair on the path
from task import is_right, read_rows, teacher_messages, theta_messages  # noqa: E402  examples/pair

MAX_TOKENS = 120
NUM_DRAFTS = 6
"""The cost model's choice for this pair, whose drafts are nearly always accepted."""
SAMPLED = {
    "theta": {"alpha_method": "fixed", "alpha": 0.0},
    "teacher": {"alpha_method": "fixed", "alpha": 1.0},
    "q*": {},
}


def spec_counts(llm: Any) -> tuple[int, int]:
    found = {metric.name: int(metric.value) for metric in llm.get_metrics() if hasattr(metric, "value")}
    return found.get("vllm:spec_decode_num_drafts", 0), found.get("vllm:spec_decode_num_accepted_tokens", 0)


def sample(llm: Any, rows: list[dict[str, Any]], arguments: dict[str, Any]) -> dict[str, Any]:
    """One completion of every problem."""
    from vllm import SamplingParams

    from vllm_optimal_sampling import OptimalSamplingParams

    params = [
        SamplingParams(
            max_tokens=MAX_TOKENS,
            temperature=1.0,
            seed=number,
            extra_args=OptimalSamplingParams(
                theta_messages=theta_messages(row["problem"]), return_alpha=True, **arguments
            ).to_extra_args(),
        )
        for number, row in enumerate(rows)
    ]
    rounds, accepted = spec_counts(llm)
    begin = time.perf_counter()
    outputs = llm.chat([teacher_messages(row["problem"], row["answer"]) for row in rows], params, use_tqdm=False)
    seconds = time.perf_counter() - begin
    rounds, accepted = (after - before for after, before in zip(spec_counts(llm), (rounds, accepted), strict=True))
    answers = [output.outputs[0] for output in outputs]
    tokens = sum(len(answer.token_ids) for answer in answers)
    alphas = [alpha for answer in answers for alpha in answer.optimal_sampling.alpha]
    return {
        "right": sum(is_right(answer.text, row["answer"]) for answer, row in zip(answers, rows, strict=True)),
        "problems": len(rows),
        "mean_alpha": sum(alphas) / len(alphas),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "tokens_per_round": 1 + accepted / max(1, rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--theta", choices=("theta", "teacher"), default="theta")
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    from vllm import LLM

    rows = read_rows(prompts.PAIR / "problems.jsonl")[: given.problems]
    result = header("example-pair") | {"theta": given.theta, "num_speculative_tokens": NUM_DRAFTS, "sampled": {}}
    begin = time.perf_counter()
    llm = LLM(
        str(prompts.PAIR / "teacher"),
        logits_processors=["optimal_sampling"],
        speculative_config={"model": str(prompts.PAIR / given.theta), "num_speculative_tokens": NUM_DRAFTS},
        max_model_len=512,
        max_num_seqs=256,
        gpu_memory_utilization=0.05,
        kv_cache_memory_bytes=1 << 30,
        disable_log_stats=False,
        enforce_eager=IS_CPU_BUILD,
        dtype="float32" if IS_CPU_BUILD else "auto",
    )
    result["start_seconds"] = time.perf_counter() - begin
    name = "example-pair" if given.theta == "theta" else "example-pair-self"
    output = given.output or RESULTS / f"{name}.json"
    for label, arguments in SAMPLED.items():
        one = result["sampled"][label] = sample(llm, rows, arguments)
        print(
            f"{label}: {one['right']} of {one['problems']} right, alpha {one['mean_alpha']:.3f}, "
            f"{one['tokens_per_second']:.0f} tokens/s, {one['tokens_per_round']:.2f} tokens a round",
            flush=True,
        )
        write(output, result)


if __name__ == "__main__":
    main()
