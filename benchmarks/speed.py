"""Steps and tokens per second by batch size and number of drafts, and where a step's time goes.

    python benchmarks/speed.py --pair qwen2.5-3b-1.5b --engines teacher optimal:1 optimal:2 optimal:4 --acceptance 0.8 0.9
    python benchmarks/speed.py --engines teacher optimal:2 --batches 2 --max-tokens 8      the example pair, on a CPU

An engine is a method, with its number of drafts where it drafts. All are started side by side, each in a process of its own;
then one batch after the other is run, the teacher's first, and the result is written after each. `heavy_benchmark.py` repeats
its batches and is what ratios are quoted from; this shows how they move.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gate import wait_at
from recording import RESULTS, header, set_cpu_environment, write
from selection import Selection, add_selection, engines_at, select

IS_CPU_BUILD = set_cpu_environment()

from methods import METHODS  # noqa: E402
from methods.process import Batch, MethodProcess  # noqa: E402
from prompts import make_prompts  # noqa: E402

SKIPPED_STEPS = 12
"""Before the profiler: the prompts, and a few steps more."""


def parse_engine(text: str) -> tuple[str, int | None]:
    """A method and its number of drafts: "teacher", "optimal:2"."""
    method, _, drafts = text.partition(":")
    drafting = method in ("optimal", "draft_model")
    if method not in METHODS or drafting != drafts.isdigit():
        raise argparse.ArgumentTypeError(
            f"{text!r} is no engine; give one of {', '.join(METHODS)}, with its drafts where it has some: optimal:2"
        )
    return method, int(drafts) if drafting else None


def name_of(engine: tuple[str, int | None]) -> str:
    method, drafts = engine
    return method if drafts is None else f"{method}, {drafts} drafts"


class Run:
    """The engines of one run, and what was measured of them."""

    def __init__(self, chosen: Selection, given: argparse.Namespace, logs: Path, output: Path, tokenizer: Any) -> None:
        self.chosen, self.given, self.logs, self.output, self.tokenizer = chosen, given, logs, output, tokenizer
        self.result: dict[str, Any] = header("speed") | {
            "pair": chosen.describe(),
            "settings": {
                "max_num_seqs": max(given.batches),
                "temperature": given.temperature,
                "dtype": chosen.dtype,
                "synthetic_acceptance": bool(chosen.acceptance),
            },
            "engines": {},
            "lines": [],
            "profiles": [],
            "failed": {},
        }

    def start(self, stack: ExitStack) -> dict[tuple[str, int | None], MethodProcess]:
        """All engines, started side by side; those that fail are left out, and said to be."""
        starting = {}
        for method, drafts in self.given.engines:
            settings = engines_at(self.chosen, max(self.given.batches), self.given.max_tokens, drafts or 1)
            process = MethodProcess(method, settings, self.logs / f"{method}-{drafts or 0}.log")
            stack.callback(process.close)
            starting[method, drafts] = process
        ready = {}
        for engine, process in starting.items():
            try:
                seconds = process.wait_until_ready()
                sizes = process.call("graph_sizes")
            except RuntimeError as error:
                self.fail(engine, error)
                continue
            ready[engine] = process
            self.result["engines"][name_of(engine)] = {
                "method": engine[0],
                "drafts": engine[1],
                "compilation": self.chosen.compilation,
                "graph_sizes": sizes,
                "start_seconds": seconds,
                "started_together": len(starting),
            }
        return ready

    def fail(self, engine: tuple[str, int | None], error: Exception) -> None:
        self.result["failed"][name_of(engine)] = str(error)
        print(error, flush=True)

    def measure(self, engine: tuple[str, int | None], process: MethodProcess, batch: int, rate: float | None) -> None:
        """One batch of new prompts, after a short one that warms the engine at this size."""
        if rate is not None:
            process.call("set_acceptance", rate)
        process.generate(make_prompts(self.tokenizer, batch, seed=7000 + batch), min(8, self.given.max_tokens), seed=0)
        prompts = make_prompts(self.tokenizer, batch, seed=batch)
        one: Batch = process.generate(prompts, self.given.max_tokens, seed=batch)
        line = {
            "engine": name_of(engine),
            "batch": batch,
            "max_tokens": self.given.max_tokens,
            "set_acceptance": rate,
            "seconds": one.seconds,
            "tokens_per_second": one.tokens_per_second,
            "steps": one.counters.steps,
            "seconds_per_step": one.seconds / one.counters.steps,
        }
        if one.counters.rounds:
            line |= {"rounds": one.counters.rounds, "accepted": one.counters.accepted}
        self.result["lines"].append(line)
        print(
            f"{name_of(engine):<24} batch {batch:>4} {'' if rate is None else f'at {rate:g}':<7}"
            f"{one.tokens_per_second:>10.1f} tokens/s {line['seconds_per_step'] * 1e3:>8.2f} ms a step",
            flush=True,
        )

    def profile(self, engine: tuple[str, int | None], process: MethodProcess, batch: int) -> None:
        """Where the time of some steps goes; enough of them are run at every acceptance."""
        steps = min(10, self.given.max_tokens // 8)
        tokens = (SKIPPED_STEPS + steps + 2) * ((engine[1] or 0) + 1)
        prompts = make_prompts(self.tokenizer, batch, seed=9000 + batch)
        found = process.call("profile", prompts, tokens, SKIPPED_STEPS, steps)
        self.result["profiles"].append({"method": engine[0], "drafts": engine[1], "batch": batch} | found)
        print(
            f"{name_of(engine):<24} batch {batch:>4} profiled: {found['wall_microseconds'] / 1e3:.2f} ms a step, "
            f"device {found['device_microseconds'] / 1e3:.2f}",
            flush=True,
        )

    def run(self) -> None:
        rates: list[float | None] = list(self.chosen.acceptance) or [None]
        with ExitStack() as stack:
            processes = self.start(stack)
            self.keep()
            wait_at(self.given.gate)
            for batch in self.given.batches:
                for engine, process in list(processes.items()):
                    for rate in rates if engine[1] is not None and self.chosen.acceptance else [None]:
                        try:
                            self.measure(engine, process, batch, rate)
                        except RuntimeError as error:
                            self.fail(engine, error)
                            processes.pop(engine)
                            break
                        self.keep()
            for engine, process in processes.items():
                for batch in self.given.profile:
                    try:
                        self.profile(engine, process, batch)
                    except RuntimeError as error:
                        self.fail(engine, error)
                self.result["engines"][name_of(engine)]["memory_gib"] = process.call("memory")
                self.keep()

    def keep(self) -> None:
        write(self.output, self.result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_selection(parser, IS_CPU_BUILD)
    parser.add_argument("--engines", type=parse_engine, nargs="+", required=True, help="such as teacher optimal:2")
    parser.add_argument("--batches", type=int, nargs="+", default=[2] if IS_CPU_BUILD else [8, 32, 128])
    parser.add_argument("--max-tokens", type=int, default=8 if IS_CPU_BUILD else 96)
    parser.add_argument("--profile", type=int, nargs="*", default=[], help="batch sizes to profile some steps of")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        chosen = select(parser, given, Path(folder))
        logs = given.logs or Path(folder) / "logs"
        output = given.output or RESULTS / f"speed-{chosen.slug}.json"
        run = Run(chosen, given, logs, output, AutoTokenizer.from_pretrained(chosen.teacher))
        run.run()
    if run.result["failed"]:
        raise SystemExit(f"failed: {', '.join(run.result['failed'])}")


if __name__ == "__main__":
    main()
