"""How the cost of a token grows with the length of the output and with the batch, beside the teacher alone.

    python benchmarks/growth.py                                             writes a PNG and a JSON file
    python benchmarks/growth.py --pair qwen2.5-3b-1.5b --acceptance 0.9 --lengths 64 256 1024 2048 4096

Length: one batch generates the longest output, and each length is read off when the batch has made that many tokens a
request on average, prompts included. Batch: one batch of each size, of --max-tokens tokens. The engines of both methods
are held together and take turns. On a CPU all times are processor time.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from recording import RESULTS, Spread, header, set_cpu_environment, write
from selection import PROMPT_ROOM, Selection, add_selection, engines_at, select

IS_CPU_BUILD = set_cpu_environment()

from methods.process import MethodProcess  # noqa: E402
from methods.steps import Step  # noqa: E402
from prompts import make_prompts  # noqa: E402

METHODS = ("teacher", "optimal")
SHOWN = {"teacher": "the teacher alone", "optimal": "optimal sampling"}


def cost_at(steps: Sequence[Step], batch: int, lengths: Sequence[int]) -> dict[int, float]:
    """Seconds per token, all requests counted, up to each mean length of output."""
    found: dict[int, float] = {}
    seconds, tokens = 0.0, 0
    remaining = sorted(lengths)
    for step in steps:
        seconds += step.seconds["step"]
        tokens += step.tokens
        while remaining and tokens >= batch * remaining[0]:
            found[remaining.pop(0)] = seconds / tokens
    if remaining:
        raise ValueError(f"the output ends at {tokens / batch:g} tokens a request, before the lengths {remaining}")
    return found


def by_length(chosen: Selection, given: argparse.Namespace, tokenizer: Any, logs: Path) -> dict[str, Any]:
    longest, batch = max(given.lengths), given.length_batch
    settings = engines_at(chosen, batch, longest, given.num_speculative_tokens)
    costs: dict[str, dict[int, list[float]]] = {method: {length: [] for length in given.lengths} for method in METHODS}
    with ExitStack() as stack:
        for number, method, process in turns(chosen, settings, given, stack, logs, tokenizer):
            prompts = make_prompts(tokenizer, batch, seed=50 + number)
            steps = process.call("timed_steps", prompts, longest, number)
            for length, seconds in cost_at(steps, batch, given.lengths).items():
                costs[method][length].append(seconds)
            print(f"length, {method}: {len(steps)} steps", flush=True)
    return summary(costs, "length") | {"batch": batch}


def by_batch(chosen: Selection, given: argparse.Namespace, tokenizer: Any, logs: Path) -> dict[str, Any]:
    settings = engines_at(chosen, max(given.batches), given.max_tokens, given.num_speculative_tokens)
    costs: dict[str, dict[int, list[float]]] = {method: {batch: [] for batch in given.batches} for method in METHODS}
    with ExitStack() as stack:
        for number, method, process in turns(chosen, settings, given, stack, logs, tokenizer):
            for batch in given.batches:
                prompts = make_prompts(tokenizer, batch, seed=1000 * batch + number)
                one = process.generate(prompts, given.max_tokens, seed=number)
                costs[method][batch].append((one.cpu_seconds if IS_CPU_BUILD else one.seconds) / one.tokens)
                print(f"batch of {batch}, {method}: {one.tokens_per_second:.1f} tokens/s", flush=True)
    return summary(costs, "batch") | {"max_tokens": given.max_tokens}


def turns(
    chosen: Selection, settings: Any, given: argparse.Namespace, stack: ExitStack, logs: Path, tokenizer: Any
) -> Any:
    """Each method's process in turn, --repeats times, all warm."""
    processes = {}
    for method in METHODS:
        processes[method] = MethodProcess(method, settings, logs / f"growth-{method}.log")
        stack.callback(processes[method].close)
        processes[method].wait_until_ready()
        if chosen.acceptance and method == "optimal":
            processes[method].call("set_acceptance", chosen.acceptance[0])
        processes[method].generate(make_prompts(tokenizer, 1, seed=7), 8, seed=0)
    for number in range(given.repeats):
        for method, process in processes.items():
            yield number, method, process


def summary(costs: dict[str, dict[int, list[float]]], name: str) -> dict[str, Any]:
    """Seconds per token by method, and their ratio, round by round."""
    lines = []
    for at in sorted(costs["teacher"]):
        ratios = [alone / ours for ours, alone in zip(costs["optimal"][at], costs["teacher"][at], strict=True)]
        lines.append(
            {name: at}
            | {method: {"seconds_per_token": Spread.of(costs[method][at])} for method in METHODS}
            | {"of_teacher": Spread.of(ratios)}
        )
    return {"lines": lines}


def plot(result: dict[str, Any], path: Path) -> None:
    """Two panels: seconds per token against length, and against batch."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    panels = {"length": "tokens of output per request", "batch": "requests in the batch"}
    for axis, (name, title) in zip(axes, panels.items(), strict=True):
        lines = result["growth"][name]["lines"]
        for method in METHODS:
            spreads = [line[method]["seconds_per_token"] for line in lines]
            middle = [1e3 * spread.median for spread in spreads]
            below = [m - 1e3 * spread.low for m, spread in zip(middle, spreads, strict=True)]
            above = [1e3 * spread.high - m for m, spread in zip(middle, spreads, strict=True)]
            axis.errorbar(
                [line[name] for line in lines], middle, [below, above], marker="o", capsize=3, label=SHOWN[method]
            )
        axis.set_xscale("log", base=2)
        axis.set_xticks([line[name] for line in lines], [str(line[name]) for line in lines])
        axis.set_ylim(bottom=0)
        axis.set_xlabel(title)
        axis.set_ylabel(f"milliseconds per token ({result['clock']})")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(f"{result['pair']['name']}, {result['machine']['device']}, {result['date']}")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"written to {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_selection(parser, IS_CPU_BUILD)
    lengths, batches = [64, 128, 256, 512, 1024, 2048, 4096], [1, 4, 16, 64, 256]
    if IS_CPU_BUILD:
        lengths = [64, 128, 256, 512, 1024 - PROMPT_ROOM]  # as far as the example pair's positions go
    parser.add_argument("--lengths", type=int, nargs="+", default=lengths)
    parser.add_argument("--length-batch", type=int, default=2 if IS_CPU_BUILD else 8)
    parser.add_argument("--batches", type=int, nargs="+", default=batches)
    parser.add_argument("--max-tokens", type=int, default=16 if IS_CPU_BUILD else 128, help="for each of --batches")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--num-speculative-tokens", type=int, default=4)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    if given.repeats < 1:
        parser.error(f"--repeats {given.repeats} is too few: give at least 1")
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        chosen = select(parser, given, Path(folder))
        logs = given.logs or Path(folder) / "logs"
        names = ("lengths", "length_batch", "batches", "max_tokens", "repeats", "num_speculative_tokens")
        result = header("growth") | {
            "pair": chosen.describe(),
            "clock": "processor time" if IS_CPU_BUILD else "wall",
            "settings": {
                name: getattr(given, name) for name in (*names, "dtype", "eager", "temperature", "acceptance")
            },
        }
        tokenizer = AutoTokenizer.from_pretrained(chosen.teacher)
        result["growth"] = {
            "length": by_length(chosen, given, tokenizer, logs),
            "batch": by_batch(chosen, given, tokenizer, logs),
        }
        output = given.output or RESULTS / f"growth-{chosen.slug}.json"
        plot(result, output.with_suffix(".png"))
        write(output, result)


if __name__ == "__main__":
    main()
