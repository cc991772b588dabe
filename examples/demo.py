"""The demo: word problems for a small trained pair, sampled from theta alone, the teacher alone, and q* between them.

    make demo                                   or, in the environment of the Makefile,
    python examples/demo.py --problems 20 --output results.jsonl

The teacher sees each problem with its answer, theta sees the problem alone, and one engine samples all three: `alpha`
is fixed at 0 for theta, at 1 for the teacher, and chosen for every token for q*. With --self theta is the teacher itself
without the answer (self-distillation): one model, and one forward for both.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

PAIR = Path(__file__).parent / "pair"
sys.path.insert(0, str(PAIR))

from task import is_right, read_rows, teacher_messages, theta_messages  # noqa: E402  examples/pair

SOURCES: dict[str, dict[str, Any]] = {
    "theta alone": {"alpha_method": "fixed", "alpha": 0.0},
    "teacher": {"alpha_method": "fixed", "alpha": 1.0},
    "q*": {"alpha_method": "kl_symmetry"},
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=16, help="how many of the held-out problems (default: 16)")
    parser.add_argument("--input", type=Path, default=PAIR / "problems.jsonl", help="JSONL, as task.py prints")
    parser.add_argument("--output", type=Path, default=Path("demo-results.jsonl"), help="where the results go")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--num-speculative-tokens", type=int, default=4)
    parser.add_argument("--self", action="store_true", dest="one_model", help="theta is the teacher itself")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="show vLLM's log")
    return parser.parse_args()


def be_quiet() -> None:
    """Keep the logs of vLLM and torch to errors, where the environment does not say otherwise. Before vLLM is imported."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Triton's interpreter computes masked-off lanes too; their values are never used.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="triton.runtime.interpreter")


def main() -> None:
    options = arguments()
    if not options.verbose:
        be_quiet()
    from soundness import is_sound  # examples/pair
    from vllm import LLM, SamplingParams

    from vllm_optimal_sampling import OptimalSamplingParams

    rows = read_rows(options.input)[: options.problems]
    print(
        f"{len(rows)} problems, sampled from theta, from the teacher and from q*: about a minute without a GPU",
        flush=True,
    )
    llm = LLM(
        str(PAIR / "teacher"),
        logits_processors=["optimal_sampling"],
        **theta(options),
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=16,
        kv_cache_memory_bytes=1 << 28,
        disable_log_stats=False,
        use_tqdm_on_load=options.verbose,
    )
    tokenizer = llm.get_tokenizer()
    prompts, params, labels = [], [], []
    for source, alpha in SOURCES.items():
        for i, row in enumerate(rows):
            theta_prompt = tokenizer.apply_chat_template(
                theta_messages(row["problem"]), add_generation_prompt=True, tokenize=False
            )
            extra_args = OptimalSamplingParams(theta_prompt=theta_prompt, return_alpha=True, **alpha).to_extra_args()
            prompts.append(teacher_messages(row["problem"], row["answer"]))
            params.append(
                SamplingParams(max_tokens=options.max_tokens, seed=options.seed + i, extra_args=extra_args)
            )  # temperature 1
            labels.append((source, row))

    before = counters(llm)
    start = time.perf_counter()
    outputs = llm.chat(prompts, params, use_tqdm=options.verbose or sys.stderr.isatty())
    seconds = time.perf_counter() - start
    after = counters(llm)

    results = []
    for (source, row), output in zip(labels, outputs, strict=True):
        sample = output.outputs[0]
        record = sample.optimal_sampling
        results.append(
            {
                "source": source,
                "problem": row["problem"],
                "answer": row["answer"],
                "text": sample.text.strip(),
                "right": is_right(sample.text, row["answer"]),
                "sound": is_sound(sample.text, row),
                "mean_alpha": sum(record.alpha) / len(record.alpha),
                "num_tokens": len(sample.token_ids),
                "finish_reason": sample.finish_reason,
            }
        )
    with options.output.open("w") as file:
        file.writelines(json.dumps(result) + "\n" for result in results)

    show(results)
    num_tokens = sum(result["num_tokens"] for result in results)
    if options.one_model:
        print(f"{num_tokens} tokens in {seconds:.0f} s; results in {options.output}")
        return
    rounds = after["vllm:spec_decode_num_drafts"] - before["vllm:spec_decode_num_drafts"]
    drafted, accepted = (
        after[f"vllm:spec_decode_num_{kind}_tokens"] - before[f"vllm:spec_decode_num_{kind}_tokens"]
        for kind in ("draft", "accepted")
    )
    print(
        f"{num_tokens} tokens in {seconds:.0f} s; {(accepted + rounds) / rounds:.2f} tokens per teacher forward of a "
        f"request, {accepted / drafted:.0%} of theta's drafts accepted; results in {options.output}"
    )


def theta(options: argparse.Namespace) -> dict[str, Any]:
    """What the engine is told of theta: that it drafts, or that it is the teacher itself."""
    if options.one_model:
        return {"additional_config": {"optimal_sampling": {"theta": "self"}}}
    drafts = {"model": str(PAIR / "theta"), "num_speculative_tokens": options.num_speculative_tokens}
    return {"speculative_config": drafts}


def counters(llm: Any) -> dict[str, float]:
    """vLLM's own counters, by name."""
    return {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}


def show(results: list[dict[str, Any]]) -> None:
    """The samples from q* one by one, then how often each source was right, and sound: right in every step."""
    width = 96
    for result in results:
        if result["source"] != "q*":
            continue
        mark = "sound" if result["sound"] else "right, but not in every step" if result["right"] else "wrong"
        print(f"\n{result['problem']}")
        text = " ".join(result["text"].split())
        while text:
            cut = len(text) if len(text) <= width else text.rfind(" ", 0, width)
            print(f"    {text[:cut]}")
            text = text[cut:].strip()
        print(f"    [{mark}; mean alpha {result['mean_alpha']:.2f}]")
    print(f"\n{'sampled from':<14}{'right':>10}{'sound':>10}{'mean alpha':>14}{'tokens':>10}")
    for source in SOURCES:
        mine = [result for result in results if result["source"] == source]
        right, sound = (f"{sum(one[word] for one in mine)} of {len(mine)}" for word in ("right", "sound"))
        alpha = sum(result["mean_alpha"] for result in mine) / len(mine)
        print(f"{source:<14}{right:>10}{sound:>10}{alpha:>14.2f}{sum(one['num_tokens'] for one in mine):>10}")
    print()


if __name__ == "__main__":
    main()
