"""The cost model: what a round costs, which number of drafts is best, and how far the prediction is from the measurement.

    python benchmarks/model.py                                              measures, predicts, chooses
    python benchmarks/model.py --pair qwen2.5-3b-1.5b --acceptance 0.9      on a GPU, without weights

The steps of the teacher alone, of theta alone and of optimal sampling are timed by batch size and number of drafts. Two
numbers of drafts (--fit) give the lines of `cost.py`; with the acceptance measured there they predict the tokens per
second for every number of drafts, beside which stands what a whole batch took in a run where nothing was timed; on a
CPU all times are processor time. The best number of drafts by batch size is printed as vLLM's
`num_speculative_tokens_per_batch_size`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recording import RESULTS, header, set_cpu_environment, write
from selection import Selection, add_selection, engines_at, select

IS_CPU_BUILD = set_cpu_environment()

import cost  # noqa: E402
from methods.process import MethodProcess  # noqa: E402
from methods.steps import PARTS, Step  # noqa: E402
from prompts import make_prompts  # noqa: E402


def decode_steps(steps: Sequence[Step], batch: int) -> list[Step]:
    """The steps in which all requests decode."""
    return [step for step in steps if step.requests == batch and not step.new_requests]


def median_seconds(steps: Sequence[Step], part: str = "step") -> float:
    return statistics.median(step.seconds[part] for step in steps)


def measure(process: MethodProcess, tokenizer: Any, batch: int, max_tokens: int, number: int) -> dict[str, Any]:
    """One batch untimed, then one with its steps timed; both after the process is warm."""
    prompts = make_prompts(tokenizer, batch, seed=number)
    plain = process.generate(prompts, max_tokens, seed=number)
    steps = process.call("timed_steps", make_prompts(tokenizer, batch, seed=number + 1), max_tokens, number + 1)
    full = decode_steps(steps, batch)
    if len(full) < 3:
        raise RuntimeError(f"{process.name}: {len(full)} steps with all {batch} requests; give more --max-tokens")
    result: dict[str, Any] = {
        "tokens_per_second": plain.tokens_per_cpu_second if IS_CPU_BUILD else plain.tokens_per_second,
        "steps": len(full),
        "seconds": {part: median_seconds(full, part) for part in PARTS},
        "prompt_seconds": sum(step.seconds["step"] for step in steps if step.new_requests),
        "theta_forwards": statistics.median(step.theta_forwards for step in full),
    }
    counters = plain.counters
    if counters.rounds and counters.drafted:
        result["tokens_per_round"] = 1 + (counters.accepted or 0) / counters.rounds
    return result


def run(
    chosen: Selection, drafts: Sequence[int], batches: Sequence[int], max_tokens: int, logs: Path
) -> dict[str, Any]:
    """Measurements by method: `teacher` and `theta` by batch size, `optimal` by number of drafts and batch size."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chosen.teacher)
    measured: dict[str, Any] = {"optimal": {}}
    for method, number in [("teacher", 0), ("theta", 0), *(("optimal", number) for number in drafts)]:
        settings = engines_at(chosen, max(batches), max_tokens, number)
        process = MethodProcess(method, settings, logs / f"{method}-{number}.log")
        try:
            process.wait_until_ready()
            if chosen.acceptance and method == "optimal" and number:
                process.call("set_acceptance", chosen.acceptance[0])
            process.generate(make_prompts(tokenizer, 1, seed=99), max_tokens, seed=0)
            by_batch = {batch: measure(process, tokenizer, batch, max_tokens, 2 * batch) for batch in batches}
        finally:
            process.close()
        for batch, one in by_batch.items():
            shown = f"{method}, {number} drafts" if method == "optimal" else method
            print(f"{shown:<20} batch {batch:>4}: {one['seconds']['step'] * 1e3:9.2f} ms a step", flush=True)
        if method == "optimal":
            measured["optimal"][number] = by_batch
        else:
            measured[method] = by_batch
    return measured


def predict(measured: dict[str, Any], fit: Sequence[int], max_tokens: int) -> dict[str, Any]:
    """Acceptance, lines and predictions from `measured`; only the numbers of drafts in `fit` are looked at."""
    optimal = measured["optimal"]
    batches = sorted(optimal[fit[0]])
    accepted = [
        cost.acceptance_for(optimal[drafts][batch]["tokens_per_round"], drafts) or 0.0
        for drafts in fit
        for batch in batches
        if drafts
    ]
    acceptance = statistics.mean(accepted)
    lines = {
        batch: cost.Line.fit({drafts: optimal[drafts][batch]["seconds"]["step"] for drafts in fit}) for batch in batches
    }
    prompt = {batch: cost.Line.fit({k: optimal[k][batch]["prompt_seconds"] for k in fit}) for batch in batches}
    predictions: dict[int, Any] = {}
    best: dict[int, int] = {}
    for batch, line in lines.items():
        teacher = measured["teacher"][batch]
        step = teacher["seconds"]["step"]
        by_drafts = {}
        for drafts in range(cost.MAX_DRAFTS + 1):
            at = cost.between({size: one(drafts) for size, one in lines.items()})
            whole = prompt[batch](drafts) + cost.seconds(at, batch, acceptance, drafts, max_tokens - 1)
            found = optimal.get(drafts, {}).get(batch)
            by_drafts[drafts] = {
                "predicted": batch * max_tokens / whole,
                "measured": found and found["tokens_per_second"],
                "is_fitted": drafts in fit,
                "steady_of_teacher": cost.tokens_per_round(acceptance, drafts) / line(drafts) * step,
                "break_even_acceptance": cost.break_even(line(drafts), step, drafts),
            }
        best[batch] = cost.best_drafts(line, acceptance)
        predictions[batch] = {
            "round_seconds_fixed": line.fixed,
            "round_seconds_per_row": line.per_row,
            "teacher_step_seconds": step,
            "theta_step_seconds": measured["theta"][batch]["seconds"]["step"],
            "drafts": by_drafts,
            "best_drafts": best[batch],
        }
    return {"acceptance": acceptance, "batches": predictions, "schedule": cost.schedule(best)}


def theta_round(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """The time of theta's round over K + 1 of theta's own steps."""
    return [
        {
            "drafts": drafts,
            "batch": batch,
            "round_seconds": one["seconds"]["theta_round"],
            "own_step_seconds": measured["theta"][batch]["seconds"]["step"],
            "ratio": one["seconds"]["theta_round"] / (drafts + 1) / measured["theta"][batch]["seconds"]["step"],
        }
        for drafts, by_batch in measured["optimal"].items()
        for batch, one in by_batch.items()
    ]


def interpreter_share(measured: dict[str, Any]) -> dict[str, float]:
    """The share of a step that is spent in interpreted kernels; the smallest and largest over all measurements."""
    shares = {}
    for method in ("teacher", "theta", "optimal"):
        groups = measured["optimal"].values() if method == "optimal" else [measured[method]]
        found = [one["seconds"]["interpreter"] / one["seconds"]["step"] for group in groups for one in group.values()]
        shares[method] = {"low": min(found), "high": max(found)}
    return shares


def show(result: dict[str, Any]) -> None:
    model = result["model"]
    print(
        f"\nacceptance {model['acceptance']:.3f}; tokens/s of a batch, predicted / measured (* the line was fitted here)"
    )
    for batch, one in model["batches"].items():
        print(
            f"\nbatch {batch}: teacher {one['teacher_step_seconds'] * 1e3:.2f} ms a step, best with {one['best_drafts']}"
        )
        print(f"{'drafts':>8}{'predicted':>11}{'measured':>11}{'error':>8}{'of teacher':>12}{'break-even':>12}")
        for drafts, line in one["drafts"].items():
            found = line["measured"]
            error = "" if found is None else f"{line['predicted'] / found - 1:+.0%}"
            measured = "-" if found is None else f"{found:.1f}" + ("*" if line["is_fitted"] else "")
            even = line["break_even_acceptance"]
            print(
                f"{drafts:>8}{line['predicted']:>11.1f}{measured:>11}{error:>8}{line['steady_of_teacher']:>12.2f}"
                f"{'none' if even is None else f'{even:.3f}':>12}"
            )
    print("\ntheta's round over K + 1 of its own steps:")
    for line in result["theta_round"]:
        print(f"  {line['drafts']} drafts, batch {line['batch']}: {line['ratio']:.2f}")
    if result["interpreter_share"] is not None:
        for method, share in result["interpreter_share"].items():
            print(f"in interpreted kernels, {method}: {share['low']:.0%} to {share['high']:.0%} of a step")
    print(f"\nnum_speculative_tokens_per_batch_size: {json.dumps(model['schedule'])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_selection(parser, IS_CPU_BUILD)
    parser.add_argument("--drafts", type=int, nargs="+", default=[0, 1, 2, 4, 6, 8], help="measured numbers of drafts")
    parser.add_argument("--fit", type=int, nargs="+", default=[1, 4], help="those that the prediction looks at")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16] if IS_CPU_BUILD else [1, 8, 32, 128])
    parser.add_argument("--max-tokens", type=int, default=32 if IS_CPU_BUILD else 128)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    if len(set(given.fit)) < 2 or not set(given.fit) <= set(given.drafts) or not any(given.fit):
        parser.error(f"--fit {given.fit} has to name at least two numbers of --drafts {given.drafts}")
    with tempfile.TemporaryDirectory() as folder:
        chosen = select(parser, given, Path(folder))
        result = header("model") | {
            "pair": chosen.describe(),
            "settings": {
                "clock": "processor time" if IS_CPU_BUILD else "wall",
                "drafts": given.drafts,
                "fit": given.fit,
                "batches": given.batches,
                "max_tokens": given.max_tokens,
                "set_acceptance": chosen.acceptance[:1],
                "enforce_eager": given.eager,
                "dtype": given.dtype,
                "temperature": given.temperature,
            },
        }
        measured = run(chosen, given.drafts, given.batches, given.max_tokens, given.logs or Path(folder) / "logs")
        result |= {
            "measured": measured,
            "model": predict(measured, given.fit, given.max_tokens),
            "theta_round": theta_round(measured),
            "interpreter_share": interpreter_share(measured) if IS_CPU_BUILD else None,
        }
        show(result)
        suffix = "-eager" if given.eager and not IS_CPU_BUILD else ""
        write(given.output or RESULTS / f"model-{chosen.slug}{suffix}.json", result)


if __name__ == "__main__":
    main()
