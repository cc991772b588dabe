"""A prediction from a data sheet, for hardware that nobody has measured here: bytes over bandwidth, operations over peak.

    python benchmarks/roofline.py qwen2.5-3b-1.5b --bandwidth 3.35e12 --peak 9.89e14 --efficiency 0.7 --launch 1.7e-3

(the data sheet of an H100 SXM; with an A100's 2.04e12 and 3.12e14, this efficiency and these 1.7 ms a step, the teacher alone
makes 8 tokens in 6.1 ms, and the original published 6.0).

Nothing is run. A forward takes the longer of reading its weights and key-value cache and of its multiplications, each
at --efficiency of the data sheet's figure, and --launch for what the host and the launches add to a step of the engine;
--graph-launch is added for each forward of theta. The figures for the teacher alone are predicted the same way, so the
ratio hangs on few of these numbers; it is a prediction all the same, and `model.py` measures.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cost
from pairs import SHAPES, num_parameters
from recording import RESULTS, rounded


@dataclass(frozen=True)
class Hardware:
    bandwidth: float
    """Bytes per second of the memory, by the data sheet."""
    peak: float
    """Operations per second in bfloat16 without sparsity, by the data sheet."""
    efficiency: float
    """The share of both that kernels reach, in (0, 1]."""
    launch: float
    """Seconds that a step of the engine takes beside its kernels: scheduler, sampling, launches."""
    graph_launch: float
    """Seconds between two forwards of theta."""

    def __post_init__(self) -> None:
        if not 0 < self.efficiency <= 1:
            raise ValueError(f"efficiency={self.efficiency} is outside (0, 1]")
        for name in ("bandwidth", "peak"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} is not positive")

    def seconds(self, num_bytes: float, operations: float) -> float:
        return max(num_bytes / self.bandwidth, operations / self.peak) / self.efficiency


WEIGHT_BYTES = 2  # bfloat16
LOGIT_BYTES = 4


def forward_seconds(config: dict[str, Any], hardware: Hardware, batch: int, rows: int, context: int) -> float:
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
    return hardware.seconds(weights * WEIGHT_BYTES + cache + logits, operations)


def mix_seconds(vocab: int, hardware: Hardware, batch: int, rows: int) -> float:
    """The mix reads both models' rows twice and writes one (see kernels/mix.py); verification reads two of them again."""
    per_token = 2 * (LOGIT_BYTES + WEIGHT_BYTES) + LOGIT_BYTES + 2 * LOGIT_BYTES
    return hardware.seconds(batch * rows * vocab * per_token, 0)


def sampling_seconds(vocab: int, hardware: Hardware, batch: int) -> float:
    """Temperature and the draw of the teacher alone: its row is read and written, and read once more."""
    return hardware.seconds(batch * vocab * 3 * LOGIT_BYTES, 0)


def predict(
    pair: str, hardware: Hardware, batches: list[int], context: int, acceptances: list[float]
) -> dict[str, Any]:
    """By acceptance: the schedule, and by batch size the steps, break-even acceptance and ratio to the teacher alone."""
    teacher, theta = SHAPES[pair]["teacher"], SHAPES[pair]["theta"]
    vocab = teacher["vocab_size"]

    def round_seconds(batch: int, drafts: int) -> float:
        rows = drafts + 1
        return (
            hardware.launch
            + forward_seconds(teacher, hardware, batch, rows, context)
            + rows * (forward_seconds(theta, hardware, batch, 1, context) + hardware.graph_launch)
            + mix_seconds(vocab, hardware, batch, rows)
        )

    def teacher_step(batch: int) -> float:
        return (
            hardware.launch
            + forward_seconds(teacher, hardware, batch, 1, context)
            + sampling_seconds(vocab, hardware, batch)
        )

    by_acceptance = []
    for acceptance in acceptances:
        lines, best = [], {}
        for batch in batches:
            drafts = cost.best_drafts(lambda k, batch=batch: round_seconds(batch, k), acceptance)
            best[batch] = drafts
            step = teacher_step(batch)
            ratios = {
                k: cost.tokens_per_round(acceptance, k) * step / round_seconds(batch, k)
                for k in range(cost.MAX_DRAFTS + 1)
            }
            lines.append(
                {
                    "batch": batch,
                    "best_drafts": drafts,
                    "of_teacher": ratios[drafts],
                    "of_teacher_by_drafts": ratios,
                    "break_even_acceptance": cost.break_even(round_seconds(batch, drafts), step, drafts),
                    "teacher_step_seconds": step,
                    "round_seconds": round_seconds(batch, drafts),
                }
            )
        by_acceptance.append({"acceptance": acceptance, "schedule": cost.schedule(best), "batches": lines})
    return {"predictions": by_acceptance}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", choices=SHAPES)
    parser.add_argument("--bandwidth", type=float, required=True, help="bytes per second, by the data sheet")
    parser.add_argument("--peak", type=float, required=True, help="bfloat16 operations per second, by the data sheet")
    parser.add_argument("--efficiency", type=float, required=True, help="share of both that kernels reach")
    parser.add_argument("--launch", type=float, required=True, help="seconds of a step beside its kernels")
    parser.add_argument("--graph-launch", type=float, default=0.0, help="seconds between two forwards of theta")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--context", type=int, default=512, help="tokens that each request has")
    parser.add_argument("--acceptance", type=float, nargs="+", default=[0.6, 0.7, 0.8, 0.9, 0.95])
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    hardware = Hardware(given.bandwidth, given.peak, given.efficiency, given.launch, given.graph_launch)
    result = {
        "benchmark": "roofline",
        "what": "PREDICTED from the numbers below; nothing of it was measured",
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
    output = given.output or RESULTS / f"predicted-{given.pair}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(rounded(result), indent=1) + "\n")
    print(f"written to {output}")


if __name__ == "__main__":
    main()
