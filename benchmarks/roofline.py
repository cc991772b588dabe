"""A prediction for a pair and a GPU, from figures of that GPU that are measured (`fit.py`) or read off a data sheet.

    python benchmarks/roofline.py qwen2.5-3b-1.5b --hardware benchmarks/results/fit-h200.json
    python benchmarks/roofline.py qwen2.5-3b-1.5b --bandwidth 3.35e12 --peak 9.89e14 --efficiency 0.84 --layer-floor 37e-6

Nothing is run. A decode forward takes, for each layer, a floor that no batch falls below (its kernels one after the other,
however little they read) and something for each request (attention), and beside that the longer of reading its weights and
of its multiplications; the key-value cache and the logits are read besides. A step of the engine adds --launch.

Bytes over bandwidth alone were wrong by 1.8: they gave theta's decode 1.0 ms where one H200 took 1.85, since its 28 layers
take 62 us each of which reading the weights is 24. While the device works the host prepares
the next step; a step is no shorter than that takes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cost
from pairs import SHAPES, num_parameters
from recording import PREDICTIONS, rounded


@dataclass(frozen=True)
class Hardware:
    bandwidth: float
    """Bytes per second of the memory, by the data sheet."""
    peak: float
    """Operations per second in bfloat16 without sparsity, by the data sheet."""
    efficiency: float
    """The share of the bandwidth that kernels reach, in (0, 1]."""
    launch: float
    """Seconds that a step of the engine takes beside its kernels: scheduler, sampling, launches."""
    graph_launch: float = 0.0
    """Seconds between two forwards of theta."""
    layer_floor: float = 0.0
    """Seconds that a layer takes at least, beside reading its weights."""
    layer_per_request: float = 0.0
    """Seconds that a layer takes more for each request."""
    peak_efficiency: float | None = None
    """The share of the peak that kernels reach, in (0, 1]; None: as that of the bandwidth."""
    host_step: float = 0.0
    """Seconds that the host takes for a step, while the device works: no step is shorter."""
    host_per_request: float = 0.0
    """Seconds that the host takes more for each request."""

    def __post_init__(self) -> None:
        for name in ("efficiency", "peak_efficiency"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name}={value} is outside (0, 1]")
        for name in ("bandwidth", "peak"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} is not positive")

    def reading(self, num_bytes: float) -> float:
        """Seconds to read or write so many bytes."""
        return num_bytes / self.bandwidth / self.efficiency

    def computing(self, operations: float) -> float:
        return operations / self.peak / (self.peak_efficiency or self.efficiency)

    def step(self, device: float, batch: float) -> float:
        """Seconds of a step that keeps the device busy for so long."""
        return max(self.launch + device, self.host_step + self.host_per_request * batch)


WEIGHT_BYTES = 2  # bfloat16
LOGIT_BYTES = 4


def forward_seconds(config: dict[str, Any], hardware: Hardware, batch: float, rows: int, context: float) -> float:
    """A decode forward of `rows` tokens for each of `batch` requests that have `context` tokens."""
    weights = num_parameters(config)
    if not config["tie_word_embeddings"]:
        weights -= (
            config["vocab_size"] * config["hidden_size"]
        )  # of the input embeddings only the tokens' rows are read
    head = config["hidden_size"] // config["num_attention_heads"]
    cache = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head * WEIGHT_BYTES * context * batch
    logits = batch * rows * config["vocab_size"] * LOGIT_BYTES
    operations = 2 * weights * batch * rows
    operations += 4 * config["num_hidden_layers"] * config["hidden_size"] * context * batch * rows
    layers = config["num_hidden_layers"] * (hardware.layer_floor + hardware.layer_per_request * batch)
    longer = max(hardware.reading(weights * WEIGHT_BYTES), hardware.computing(operations))
    return layers + longer + hardware.reading(cache + logits)


def mix_seconds(vocab: int, hardware: Hardware, batch: float, rows: int) -> float:
    """The mix reads both models' rows twice and writes one (see kernels/mix.py); verification reads two of them again."""
    per_token = 2 * (LOGIT_BYTES + WEIGHT_BYTES) + LOGIT_BYTES + 2 * LOGIT_BYTES
    return hardware.reading(batch * rows * vocab * per_token)


def sampling_seconds(vocab: int, hardware: Hardware, batch: float) -> float:
    """Temperature and the draw of the teacher alone: its row is read and written, and read once more."""
    return hardware.reading(batch * vocab * 3 * LOGIT_BYTES)


def round_seconds(pair: str, hardware: Hardware, batch: float, drafts: int, context: float) -> float:
    """A step of optimal sampling: the teacher over K + 1 tokens a request, theta's K + 1 decodes, the mix."""
    teacher, theta = SHAPES[pair]["teacher"], SHAPES[pair]["theta"]
    rows = drafts + 1
    device = forward_seconds(teacher, hardware, batch, rows, context)
    device += rows * (forward_seconds(theta, hardware, batch, 1, context) + hardware.graph_launch)
    return hardware.step(device + mix_seconds(teacher["vocab_size"], hardware, batch, rows), batch)


def scored_seconds(pair: str, hardware: Hardware, batch: float, drafts: int, context: float) -> float:
    """A step in which theta scores K drafts that cost nothing: each model's forward over K + 1 tokens a request, the mix."""
    teacher, theta = SHAPES[pair]["teacher"], SHAPES[pair]["theta"]
    rows = drafts + 1
    device = sum(forward_seconds(config, hardware, batch, rows, context) for config in (teacher, theta))
    return hardware.step(device + mix_seconds(teacher["vocab_size"], hardware, batch, rows), batch)


def self_seconds(pair: str, hardware: Hardware, batch: float, drafts: int, context: float) -> float:
    """The same where theta is the teacher itself: one forward of twice the requests, which reads the weights once."""
    teacher, rows = SHAPES[pair]["teacher"], drafts + 1
    device = forward_seconds(teacher, hardware, 2 * batch, rows, context)
    return hardware.step(device + mix_seconds(teacher["vocab_size"], hardware, batch, rows), batch)


def alone_seconds(pair: str, hardware: Hardware, batch: float, context: float, role: str = "teacher") -> float:
    """A step of one model alone."""
    config = SHAPES[pair][role]
    forward = forward_seconds(config, hardware, batch, 1, context)
    return hardware.step(forward + sampling_seconds(config["vocab_size"], hardware, batch), batch)


def predict(
    pair: str, hardware: Hardware, batches: list[int], context: int, acceptances: list[float]
) -> dict[str, Any]:
    """By acceptance: the schedule, and by batch size the steps, break-even acceptance and ratio to the teacher alone."""

    def of_drafts(batch: int, drafts: int) -> float:
        return round_seconds(pair, hardware, batch, drafts, context)

    by_acceptance = []
    for acceptance in acceptances:
        lines, best = [], {}
        for batch in batches:
            drafts = cost.best_drafts(lambda k, batch=batch: of_drafts(batch, k), acceptance)
            best[batch] = drafts
            step = alone_seconds(pair, hardware, batch, context)
            ratios = {
                k: cost.tokens_per_round(acceptance, k) * step / of_drafts(batch, k) for k in range(cost.MAX_DRAFTS + 1)
            }
            lines.append(
                {
                    "batch": batch,
                    "best_drafts": drafts,
                    "of_teacher": ratios[drafts],
                    "of_teacher_by_drafts": ratios,
                    "break_even_acceptance": cost.break_even(of_drafts(batch, drafts), step, drafts),
                    "teacher_step_seconds": step,
                    "round_seconds": of_drafts(batch, drafts),
                }
            )
        by_acceptance.append({"acceptance": acceptance, "schedule": cost.schedule(best), "batches": lines})
    return {"predictions": by_acceptance, "without_drafts": without_drafts(pair, hardware, batches, context)}


def without_drafts(pair: str, hardware: Hardware, batches: list[int], context: int) -> list[dict[str, float]]:
    """Of the teacher alone by batch size, one token a step: theta scores, or is the teacher itself."""
    lines = []
    for batch in batches:
        step = alone_seconds(pair, hardware, batch, context)
        modes = {"scored": scored_seconds, "self": self_seconds}
        lines.append(
            {"batch": batch}
            | {name: step / seconds(pair, hardware, batch, 0, context) for name, seconds in modes.items()}
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", choices=SHAPES)
    parser.add_argument("--hardware", type=Path, help="a file of fit.py, in place of the seven below")
    parser.add_argument("--bandwidth", type=float, help="bytes per second, by the data sheet")
    parser.add_argument("--peak", type=float, help="bfloat16 operations per second, by the data sheet")
    parser.add_argument("--efficiency", type=float, default=0.84, help="share of the bandwidth that kernels reach")
    parser.add_argument("--peak-efficiency", type=float, default=0.5, help="share of the peak that kernels reach")
    parser.add_argument("--launch", type=float, default=2.6e-4, help="seconds of a step beside its kernels")
    parser.add_argument("--layer-floor", type=float, default=3.7e-5, help="seconds a layer takes at least")
    parser.add_argument("--layer-per-request", type=float, default=1e-7, help="and for each request")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--context", type=int, default=512, help="tokens that each request has")
    parser.add_argument("--acceptance", type=float, nargs="+", default=[0.6, 0.7, 0.8, 0.9, 0.95])
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    what = "PREDICTED from the numbers below; nothing of it was measured"
    if given.hardware is not None:
        fitted = json.loads(given.hardware.read_text())
        hardware = Hardware(**fitted["hardware"])
        what = f"PREDICTED from figures fitted to what was measured on one {fitted['device']} ({given.hardware.name})"
    elif given.bandwidth is None or given.peak is None:
        parser.error("give --hardware, or --bandwidth and --peak")
    else:
        hardware = Hardware(
            given.bandwidth,
            given.peak,
            given.efficiency,
            given.launch,
            layer_floor=given.layer_floor,
            layer_per_request=given.layer_per_request,
            peak_efficiency=given.peak_efficiency,
        )
    result = {
        "benchmark": "roofline",
        "what": what,
        "pair": given.pair,
        "hardware": asdict(hardware),
        "context": given.context,
    } | predict(given.pair, hardware, given.batches, given.context, given.acceptance)
    print(result["what"])
    for one in result["predictions"]:
        print(f"\nacceptance {one['acceptance']}: num_speculative_tokens_per_batch_size {json.dumps(one['schedule'])}")
        print(f"{'batch':>7}{'drafts':>8}{'of the teacher':>16}{'break-even':>12}{'teacher ms':>12}{'round ms':>10}")
        for line in one["batches"]:
            even = line["break_even_acceptance"]
            print(
                f"{line['batch']:>7}{line['best_drafts']:>8}{line['of_teacher']:>16.2f}"
                f"{'none' if even is None else f'{even:.2f}':>12}"
                f"{line['teacher_step_seconds'] * 1e3:>12.2f}{line['round_seconds'] * 1e3:>10.2f}"
            )
    print("\nwithout drafts, of the teacher alone: theta scores; theta is the teacher itself")
    for line in result["without_drafts"]:
        print(f"{line['batch']:>7}{line['scored']:>8.2f}{line['self']:>8.2f}")
    output = given.output or PREDICTIONS / f"{given.pair}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(rounded(result), indent=1) + "\n")
    print(f"written to {output}")


if __name__ == "__main__":
    main()
