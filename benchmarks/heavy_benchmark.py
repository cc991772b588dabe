"""The reference implementation's five configurations: tokens per second of every way of sampling, and ratios to the teacher.

    python benchmarks/heavy_benchmark.py --teacher Qwen/Qwen2.5-3B-Instruct --theta Qwen/Qwen2.5-1.5B-Instruct
    python benchmarks/heavy_benchmark.py --pair qwen2.5-3b-1.5b --acceptance 0.6 0.7 0.8 0.9 0.95     no weights needed
    python benchmarks/heavy_benchmark.py --pair example --configurations 8x64 --repeats 5             on a CPU

Each method has a process of its own. They wait for one another: a round is one batch of each, in turn, so that whatever
else the machine does falls on all. With --together N at most N of them, the teacher always among them, are held in
memory at once; every ratio is to the teacher's batch of the same round. All methods read the same prompts, go on after
an end of text, and make the same number of tokens. The first batch of a configuration is reported apart.

With a named pair of shapes there are no weights, and with made-up weights acceptance means nothing: --acceptance then
has vLLM accept drafts at the given rates (`rejection_sample_method="synthetic"`). Such rates *set* the ratio.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gate import wait_at
from recording import RESULTS, Spread, header, set_cpu_environment, write
from selection import add_selection, engines_at, select

IS_CPU_BUILD = set_cpu_environment()

from cost import acceptance_for  # noqa: E402
from methods import METHODS, Settings  # noqa: E402
from methods.process import Batch, MethodProcess  # noqa: E402
from prompts import Prompt, make_prompts  # noqa: E402

# (batch, max_tokens): tokens/s that the reference implementation published, its own and the teacher's alone, for one A100 and
# Qwen2.5 3B with 1.5B.
PUBLISHED = {
    (8, 256): (57.70, 1335.26),
    (16, 512): (138.81, 2588.87),
    (32, 512): (152.68, 4715.85),
    (16, 1024): (119.47, 2333.39),
    (8, 2048): (104.31, 1531.12),
}
PUBLISHED_SECONDS = {"first_batch": 37.56, "later_batch": 9.99}
DRAFTING = ("draft_model", "optimal")


@dataclasses.dataclass(frozen=True)
class Configuration:
    batch: int
    max_tokens: int

    @classmethod
    def parse(cls, text: str) -> Configuration:
        match = re.fullmatch(r"(\d+)x(\d+)", text)
        if match is None or not int(match[1]) or not int(match[2]):
            raise argparse.ArgumentTypeError(f"{text!r} is no batch x max_tokens such as 8x256")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.batch}x{self.max_tokens}"


@dataclasses.dataclass
class Measured:
    """All batches of one method (at one acceptance) in one configuration."""

    first: Batch | None = None
    later: list[Batch] = dataclasses.field(default_factory=list)
    anchors: list[Batch] = dataclasses.field(default_factory=list)
    """The teacher's batches of the same rounds."""

    def as_json(self, configuration: Configuration, settings: Settings, set_acceptance: float | None) -> dict[str, Any]:
        result: dict[str, Any] = {
            "tokens_per_second": Spread.of([batch.tokens_per_second for batch in self.later]),
            "of_teacher": Spread.of(
                [ours.tokens_per_second / theirs.tokens_per_second for ours, theirs in self._pairs()]
            ),
            "of_teacher_by_cpu_time": Spread.of(
                [ours.tokens_per_cpu_second / theirs.tokens_per_cpu_second for ours, theirs in self._pairs()]
            ),
            "seconds": [batch.seconds for batch in self.later],
            "cpu_seconds": [batch.cpu_seconds for batch in self.later],
        }
        if self.first is not None:
            result["first_batch_seconds"] = self.first.seconds
            result["first_over_later"] = self.first.seconds / Spread.of(result["seconds"]).median
        steps = [batch.counters.steps for batch in self.later]
        if None not in steps:
            result["steps"] = sum(steps) / len(steps)
            result["seconds_per_step"] = Spread.of(
                [batch.seconds / batch.counters.steps for batch in self.later if batch.counters.steps]
            )
        if any(batch.counters.rounds for batch in self.later):
            result |= self._drafts(settings, set_acceptance)
        return result

    def _pairs(self) -> Iterator[tuple[Batch, Batch]]:
        return zip(self.later, self.anchors, strict=True)

    def _drafts(self, settings: Settings, set_acceptance: float | None) -> dict[str, Any]:
        rounds = sum(batch.counters.rounds or 0 for batch in self.later)
        accepted = sum(batch.counters.accepted or 0 for batch in self.later)
        drafts = settings.num_speculative_tokens
        length = 1 + accepted / rounds
        # A round of ours takes so many of the teacher's steps, and so it has to give as many tokens.
        needed = Spread.of(
            [
                (ours.seconds / ours.counters.steps) / (theirs.seconds / theirs.counters.steps)
                for ours, theirs in self._pairs()
                if ours.counters.steps and theirs.counters.steps
            ]
        )
        return {
            "set_acceptance": set_acceptance,
            "tokens_per_round": length,
            "acceptance": acceptance_for(length, drafts),
            "step_over_teacher_step": needed,
            "break_even_acceptance": acceptance_for(needed.median, drafts),
        }


def label(method: str, acceptance: float | None) -> str:
    return method if acceptance is None else f"{method} at {acceptance:g}"


class Run:
    """One run over configurations and methods."""

    def __init__(self, settings: Settings, methods: Sequence[str], rates: Sequence[float], logs: Path) -> None:
        from transformers import AutoTokenizer

        self.settings = settings
        self.methods = methods
        self.rates = rates
        self.logs = logs
        self.tokenizer = AutoTokenizer.from_pretrained(settings.teacher)
        self.measured: dict[Configuration, dict[str, Measured]] = {}
        self.starts: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, str] = {}
        self.natural: dict[str, dict[str, Any]] = {}

    def prompts(self, configuration: Configuration, number: int) -> list[Prompt]:
        return make_prompts(self.tokenizer, configuration.batch, seed=1000 * configuration.batch + number)

    def variants(self, method: str) -> Sequence[float | None]:
        """The acceptances a method is measured at."""
        return self.rates if self.rates and method in DRAFTING else (None,)

    def groups(self, together: int) -> list[list[str]]:
        """The methods that are in memory at once, the teacher first."""
        others = [method for method in self.methods if method != "teacher"]
        size = max(1, together - 1)
        return [["teacher", *others[i : i + size]] for i in range(0, len(others), size)] or [["teacher"]]

    def measure(
        self,
        configurations: Sequence[Configuration],
        repeats: int,
        together: int,
        gate: Path | None,
        keep: Callable[[], object],
    ) -> None:
        """Measure every configuration, and call `keep` after each."""
        for group in self.groups(together):
            with ExitStack() as stack:
                starting: dict[str, MethodProcess] = {}
                for method in group:
                    starting[method] = MethodProcess(method, self.settings, self.logs / f"{method}.log")
                    stack.callback(starting[method].close)
                processes: dict[str, MethodProcess] = {}
                for method, process in starting.items():
                    try:
                        seconds = process.wait_until_ready()
                    except RuntimeError as error:
                        if method == "teacher":
                            raise
                        self.failed[method] = str(error)
                        print(error)
                        continue
                    processes[method] = process
                    self.starts.setdefault(method, {"start_seconds": seconds, "started_together": len(group)})
                wait_at(gate)
                for configuration in configurations:
                    self._configuration(configuration, processes, repeats)
                    keep()
                for method, process in processes.items():
                    self.starts[method].setdefault("memory_gib", process.call("memory"))
                if not self.rates and configurations:
                    self._to_the_end(configurations[0], processes, repeats)

    def _to_the_end(self, configuration: Configuration, processes: dict[str, MethodProcess], repeats: int) -> None:
        """Texts that end by themselves, as in use: after an end of text the models drift apart."""
        batches: dict[str, list[Batch]] = {method: [] for method in processes if method in ("teacher", *DRAFTING)}
        for number in range(repeats):
            prompts = self.prompts(configuration, number=500 + number)
            for method, found in batches.items():
                one = processes[method].call("generate_to_the_end", prompts, configuration.max_tokens, number)
                print(
                    f"{configuration!s:>8} {number} {method:<20} {one.tokens_per_second:9.1f} tokens/s to the end",
                    flush=True,
                )
                found.append(one)
        anchors = batches.pop("teacher")
        for method, found in batches.items():
            rounds, accepted = (sum(getattr(one.counters, name) for one in found) for name in ("rounds", "accepted"))
            pairs = list(zip(found, anchors, strict=True))
            self.natural[method] = {
                "tokens": [one.tokens for one in found],
                "of_teacher": Spread.of([ours.tokens_per_second / theirs.tokens_per_second for ours, theirs in pairs]),
                "of_teacher_by_cpu_time": Spread.of(
                    [ours.tokens_per_cpu_second / theirs.tokens_per_cpu_second for ours, theirs in pairs]
                ),
                "tokens_per_round": 1 + accepted / rounds,
                "acceptance": acceptance_for(1 + accepted / rounds, self.settings.num_speculative_tokens),
            }

    def _configuration(self, configuration: Configuration, processes: dict[str, MethodProcess], repeats: int) -> None:
        results = self.measured.setdefault(configuration, {})
        is_anchor_new = "teacher" not in results
        for number in range(repeats + 1):
            prompts = self.prompts(configuration, number)
            anchor: Batch | None = None
            for method, process in list(processes.items()):
                for rate in self.variants(method):
                    name = label(method, rate)
                    if rate is not None and number == 0 and rate != self.rates[0]:
                        continue  # one engine: its first batch was at the first rate
                    if rate is not None:
                        process.call("set_acceptance", rate)
                    try:
                        batch = process.generate(prompts, configuration.max_tokens, seed=100 * number)
                    except RuntimeError as error:
                        if method == "teacher":
                            raise
                        self.failed[method] = str(error)
                        print(error)
                        processes.pop(method)
                        break
                    anchor = batch if method == "teacher" else anchor
                    assert anchor is not None
                    print(
                        f"{configuration!s:>8} {number} {name:<20} {batch.tokens_per_second:9.1f} tokens/s", flush=True
                    )
                    if method == "teacher" and not is_anchor_new:
                        continue  # of a later group: it only anchors
                    mine = results.setdefault(name, Measured())
                    if number == 0:
                        mine.first = batch
                    else:
                        mine.later.append(batch)
                        mine.anchors.append(anchor)

    def as_json(self) -> dict[str, Any]:
        rates = {label(method, rate): rate for method in self.methods for rate in self.variants(method)}
        lines = []
        for configuration, results in self.measured.items():
            line: dict[str, Any] = dataclasses.asdict(configuration)
            ours, alone = PUBLISHED.get((configuration.batch, configuration.max_tokens), (None, None))
            if ours is not None:
                line["published"] = {"original": ours, "teacher": alone, "of_teacher": ours / alone}
            line["methods"] = {
                name: one.as_json(configuration, self.settings, rates[name])
                for name, one in results.items()
                if one.later
            }
            lines.append(line)
        return {"configurations": lines, "starts": self.starts, "to_end_of_text": self.natural, "failed": self.failed}


def show(result: dict[str, Any]) -> None:
    """The table that ends a run."""
    for line in result["configurations"]:
        print(f"\n{line['batch']} x {line['max_tokens']}")
        print(
            f"  {'':<22}{'tokens/s':>10}  {'of the teacher':>22}{'acceptance':>12}{'break-even':>12}{'first/later':>13}"
        )
        for name, one in line["methods"].items():
            ratio, speed = one["of_teacher"], one["tokens_per_second"]
            shown = [
                "-" if one.get(key) is None else f"{one[key]:.3f}"
                for key in ("acceptance", "break_even_acceptance", "first_over_later")
            ]
            spread = f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
            print(f"  {name:<22}{speed.median:>10.1f}  {spread:>22}{shown[0]:>12}{shown[1]:>12}{shown[2]:>13}")
        if "published" in line:
            old = line["published"]
            print(
                f"  published (A100): the reference implementation {old['original']}, the teacher alone {old['teacher']}, "
                f"ratio {old['of_teacher']:.3f}"
            )


def arguments() -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_selection(parser, IS_CPU_BUILD)
    parser.add_argument(
        "--configurations", type=Configuration.parse, nargs="+", default=[Configuration(*key) for key in PUBLISHED]
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--repeats", type=int, default=2, help="batches after the first")
    parser.add_argument("--together", type=int, default=len(METHODS), help="methods in memory at once")
    parser.add_argument("--num-speculative-tokens", type=int, default=4)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    if given.repeats < 1:
        parser.error(f"--repeats {given.repeats} is too few: give at least 1")
    return given, parser


def main() -> None:
    given, parser = arguments()
    with tempfile.TemporaryDirectory() as folder:
        chosen = select(parser, given, Path(folder))
        batch = max(one.batch for one in given.configurations)
        longest = max(one.max_tokens for one in given.configurations)
        settings = engines_at(chosen, batch, longest, given.num_speculative_tokens)
        methods = ["teacher", *(method for method in given.methods if method != "teacher")]
        left_out = ("teacher", "theta", "schedule")
        result = header("heavy") | {
            "pair": chosen.describe(),
            "settings": {
                "methods": methods,
                "repeats": given.repeats,
                "together": given.together,
                "set_acceptance": given.acceptance,
                "compilation": chosen.compilation,
                **{key: value for key, value in dataclasses.asdict(settings).items() if key not in left_out},
            },
            "published_seconds": PUBLISHED_SECONDS,
        }
        run = Run(settings, methods, given.acceptance, given.logs or Path(folder) / "logs")
        begin = time.perf_counter()
        output = given.output or RESULTS / f"heavy-{chosen.slug}.json"

        def keep() -> dict[str, Any]:
            whole = result | run.as_json() | {"run_seconds": time.perf_counter() - begin}
            write(output, whole)
            return whole

        run.measure(given.configurations, given.repeats, given.together, given.gate, keep)
        show(keep())


if __name__ == "__main__":
    main()
