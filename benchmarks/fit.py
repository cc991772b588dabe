"""Fits the figures of a GPU that `roofline.py` predicts from to the batches that were measured on it.

    python benchmarks/fit.py h200 --bandwidth 4.8e12 --peak 9.89e14

Reads every `heavy` and `speed` result of the GPU (each model alone, and optimal sampling), changes the shares of bandwidth
and peak, the floor of a layer, what a request adds to it and what a step takes on device and host until the mean relative
error of a batch's seconds is smallest, and writes fit-NAME.json: the figures, and for every batch what they give beside
what was measured. Batches that ran without graphs are left out: another cost rules there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pairs import SHAPES, num_parameters
from recording import RESULTS, rounded
from roofline import Hardware, alone_seconds, round_seconds

START = {
    "efficiency": 0.8,
    "peak_efficiency": 0.5,
    "launch": 3e-4,
    "layer_floor": 3.5e-5,
    "layer_per_request": 1e-7,
    "host_step": 2e-3,
    "host_per_request": 3e-5,
}
"""The figures that are fitted, and where that begins."""
METHODS = ("teacher", "theta", "optimal")
DEFAULT_GRAPH_TOKENS = 512
PROMPT_TOKENS = {"teacher": 100, "theta": 80}
"""About those of the benchmarks' prompts; their forward is a small part of a batch."""


@dataclass(frozen=True)
class MeasuredBatch:
    """One batch, from the first prompt to the last token."""

    file: str
    label: str
    pair: str
    batch: int
    max_tokens: int
    method: str
    """"teacher", "theta" or "optimal"."""
    drafts: int
    steps: float
    requests_per_step: float
    """Fewer than `batch` where some end earlier than others."""
    seconds: float

    def predicted(self, hardware: Hardware) -> float:
        """Seconds of all its steps, and of its prompts."""
        context = PROMPT_TOKENS["teacher"] + self.max_tokens / 2
        roles = ("teacher", "theta") if self.method == "optimal" else (self.method,)
        prompts = sum(2 * num_parameters(SHAPES[self.pair][role]) * self.batch * PROMPT_TOKENS[role] for role in roles)
        if self.method != "optimal":
            step = alone_seconds(self.pair, hardware, self.requests_per_step, context, self.method)
        else:
            step = round_seconds(self.pair, hardware, self.requests_per_step, self.drafts, context)
        return self.steps * step + hardware.computing(prompts)


def batches_of(result: dict[str, Any]) -> Iterator[MeasuredBatch]:
    """What a `heavy` or a `speed` result says of each model alone and of optimal sampling."""
    pair = result["pair"]["name"]
    if result["benchmark"] == "heavy":
        drafts = result["settings"]["num_speculative_tokens"]
        for one in result["configurations"]:
            for label, method in one["methods"].items():
                name = label.partition(" at ")[0]
                if name not in METHODS:
                    continue
                requests = one["batch"]
                if name == "optimal":
                    rounds = one["batch"] * (one["max_tokens"] - 1) / method["tokens_per_round"]
                    requests = rounds / method["steps"]
                yield MeasuredBatch(
                    result["file"],
                    label,
                    pair,
                    one["batch"],
                    one["max_tokens"],
                    name,
                    drafts if name == "optimal" else 0,
                    method["steps"],
                    requests,
                    statistics.median(method["seconds"]),
                )
    if result["benchmark"] == "speed":
        for line in result["lines"]:
            engine = result["engines"][line["engine"]]
            if "kind" in line or engine["method"] not in METHODS:
                continue
            yield MeasuredBatch(
                result["file"],
                line["engine"],
                pair,
                line["batch"],
                line["max_tokens"],
                engine["method"],
                engine["drafts"] or 0,
                line["steps"],
                line["rounds"] / line["steps"] if line.get("rounds") else line["batch"],
                line["seconds"],
            )


def had_graphs(batch: MeasuredBatch, result: dict[str, Any]) -> bool:
    """Whether every decode of the batch could be replayed."""
    sizes: Any = "vLLM's"
    if result["benchmark"] == "speed":
        sizes = result["engines"][batch.label]["graph_sizes"]
    largest = DEFAULT_GRAPH_TOKENS if isinstance(sizes, str) else max(sizes)
    return batch.batch * (batch.drafts + 1) <= largest


def error(batches: Sequence[MeasuredBatch], hardware: Hardware) -> float:
    """Mean of |log(predicted / measured)|."""
    return statistics.fmean(abs(math.log(one.predicted(hardware) / one.seconds)) for one in batches)


def fit(batches: Sequence[MeasuredBatch], bandwidth: float, peak: float) -> Hardware:
    """The figures with the smallest `error`, by steps in one after the other that shrink where they do not help.

    Raises:
        ValueError: fewer batches than figures.
    """
    if len(batches) < len(START):
        raise ValueError(f"{len(batches)} measured batches are too few for {len(START)} figures; measure more")
    hardware = Hardware(bandwidth=bandwidth, peak=peak, **START)
    best = error(batches, hardware)
    factors = dict.fromkeys(START, 1.5)
    while max(factors.values()) > 1.002:
        for name in START:
            old = factors[name]
            factors[name] = old**0.6
            for factor in (old, 1 / old):
                value = getattr(hardware, name) * factor
                if name.endswith("efficiency") and value > 1:
                    continue
                changed = dataclasses.replace(hardware, **{name: value})
                if (found := error(batches, changed)) < best:
                    hardware, best, factors[name] = changed, found, old**1.3
                    break
    return hardware


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the GPU, as a part of the file's name")
    parser.add_argument("--bandwidth", type=float, required=True, help="bytes per second, by the data sheet")
    parser.add_argument("--peak", type=float, required=True, help="bfloat16 operations per second, by the data sheet")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    batches: list[MeasuredBatch] = []
    devices = set()
    for path in sorted(given.results.glob("*.json")):
        result = json.loads(path.read_text()) | {"file": path.name}
        if result["benchmark"] not in ("heavy", "speed") or given.name.upper() not in result["machine"]["device"]:
            continue
        devices.add(result["machine"]["device"])
        batches += [one for one in batches_of(result) if had_graphs(one, result)]
    hardware = fit(batches, given.bandwidth, given.peak)
    lines = [dataclasses.asdict(one) | {"predicted_seconds": one.predicted(hardware)} for one in batches]
    errors = [abs(line["predicted_seconds"] / line["seconds"] - 1) for line in lines]
    result = {
        "benchmark": "fit",
        "what": "FITTED to measured batches; bandwidth and peak are the data sheet's",
        "device": ", ".join(sorted(devices)),
        "hardware": dataclasses.asdict(hardware),
        "median_error": statistics.median(errors),
        "largest_error": max(errors),
        "batches": lines,
    }
    output = given.results / f"fit-{given.name}.json"
    output.write_text(json.dumps(rounded(result), indent=1) + "\n")
    print(f"{hardware}\nerror of a batch: {result['median_error']:.1%} (median), {result['largest_error']:.0%} at most")
    print(f"written to {output}")


if __name__ == "__main__":
    main()
