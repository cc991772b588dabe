"""Measure what keeping one of several candidates does to the example pair's held-out problems.

Candidates are drawn token by token from q*, the plain way of ``measure.py``: transformers, float64, no engine. For every
candidate the record has what the engine's has (alpha, log Z, the teacher's log-probability), and one of the first N is kept
by the package's own rules (``vllm_optimal_sampling.selection``). What is counted: right answers, and sound texts, in which
every step is right too (``soundness.py``). Writes ``selection.json``::

    python examples/pair/measure_selection.py
"""

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import measure
import soundness
import task
import torch
import transformers
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from vllm_optimal_sampling.selection import Scores, Selection, effective_sample_size

HERE = Path(__file__).parent
METHODS = ("kl_symmetry", "entropy", "fixed")  # fixed: alpha = 0.5
ROWS_AT_A_TIME = 1000
RULES = {
    "one draw": Selection("none"),
    "log_z": Selection("log_z"),
    "log_z, mean": Selection("log_z", "mean"),
    "teacher_logprob": Selection("teacher_logprob"),
    "teacher_logprob, mean": Selection("teacher_logprob", "mean"),
    "resample": Selection("resample"),
}


@dataclass
class Candidate:
    """A generated text, and at each of its tokens alpha, log Z, the teacher's log-probability and KL(q*||theta)."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    record: dict[str, list[float]] = field(default_factory=dict)
    finish_reason: str = "length"

    @property
    def scores(self) -> Scores:
        return Scores.of(self.record, self.finish_reason)


def weights(method: str, theta: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Alpha for each row of two sets of log-probabilities [rows, vocabulary]."""
    if method == "kl_symmetry":
        return measure.mix(theta, teacher)[1]
    if method == "entropy":
        h_theta, h_teacher = (-(rows.exp() * rows).sum(-1) for rows in (theta, teacher))
        return h_theta / (h_theta + h_teacher)
    return torch.full_like(theta[:, 0], 0.5)


@torch.inference_mode()
def draw(
    tokenizer: PreTrainedTokenizerBase,
    teacher: PreTrainedModel,
    theta: PreTrainedModel,
    rows: Sequence[dict],
    method: str,
    generator: torch.Generator,
) -> list[Candidate]:
    """One candidate for each row, at temperature 1."""
    reader_theta = measure.Reader(theta, tokenizer, [task.theta_messages(row["problem"]) for row in rows])
    privileged = [task.teacher_messages(row["problem"], row["answer"]) for row in rows]
    reader_teacher = measure.Reader(teacher, tokenizer, privileged)
    candidates = [Candidate(record={name: [] for name in ("alpha", "log_z", "teacher_logprob", "kl")}) for _ in rows]
    for _ in range(measure.MAX_TOKENS):
        u, v = reader_theta.logprobs(), reader_teacher.logprobs()
        alpha = weights(method, u, v)
        mixture = u + alpha[:, None] * (v - u)
        log_z = mixture.logsumexp(-1)
        log_q = mixture - log_z[:, None]
        drawn = torch.multinomial(log_q.exp(), 1, generator=generator)[:, 0]
        kl = (log_q.exp() * (log_q - u)).sum(-1)
        columns = {
            "alpha": alpha.tolist(),
            "log_z": log_z.tolist(),
            "teacher_logprob": v.gather(1, drawn[:, None])[:, 0].tolist(),
            "kl": kl.tolist(),
        }
        for reader in (reader_theta, reader_teacher):
            reader.read(drawn)
        for number, token in enumerate(drawn.tolist()):
            candidate = candidates[number]
            if candidate.finish_reason == "stop":
                continue
            candidate.token_ids.append(token)
            for name, values in columns.items():
                candidate.record[name].append(values[number])
            if token == tokenizer.eos_token_id:
                candidate.finish_reason = "stop"
        if all(candidate.finish_reason == "stop" for candidate in candidates):
            break
    for candidate in candidates:
        candidate.text = tokenizer.decode(candidate.token_ids, skip_special_tokens=True)
    return candidates


def share(count: int, total: int) -> dict[str, object]:
    """A count with its share and Wilson's 95 % interval."""
    return {"count": count, "rate": round(count / total, 4), "interval_95": measure.interval(count, total)}


def figures_of(groups: Sequence[Sequence[Candidate]], rows: Sequence[dict], selection: Selection, seed: int) -> dict:
    """Right and sound texts where one of each group is kept."""
    noise = random.Random(seed)
    kept = [group[selection.choose([one.scores for one in group], noise)] for group in groups]
    right = sum(task.is_right(one.text, row["answer"]) for one, row in zip(kept, rows, strict=True))
    sound = sum(soundness.is_sound(one.text, row) for one, row in zip(kept, rows, strict=True))
    return {
        "right": share(right, len(rows)),
        "sound": share(sound, len(rows)),
        "tokens_per_completion": round(statistics.fmean(len(one.token_ids) for one in kept), 2),
    }


def summary(groups: Sequence[Sequence[Candidate]], rows: Sequence[dict], numbers: Sequence[int], seed: int) -> dict:
    """The figures of one way to choose alpha."""
    every = [candidate for group in groups for candidate in group]
    log_weights = [[one.scores.log_z or 0.0 for one in group] for group in groups]
    right = [[task.is_right(one.text, row["answer"]) for one in group] for group, row in zip(groups, rows, strict=True)]
    means = {}
    for word, wanted in (("right", True), ("wrong", False)):
        found = [
            weight
            for weights, marks in zip(log_weights, right, strict=True)
            for weight, mark in zip(weights, marks, strict=True)
            if mark is wanted
        ]
        means[word] = round(statistics.median(found), 3) if found else None
    return {
        "kl_theta_per_token": round(statistics.fmean(kl for one in every for kl in one.record["kl"]), 5),
        "median_log_z": means,
        "effective_sample_size": {
            str(number): round(statistics.fmean(effective_sample_size(group[:number]) for group in log_weights), 3)
            for number in numbers
        },
        "kept": {
            name: {
                str(number): figures_of([group[:number] for group in groups], rows, rule, seed)
                for number in (numbers if name != "one draw" else (1,))
            }
            for name, rule in RULES.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure selection among candidates on held-out problems.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--candidates", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--output", type=Path, default=HERE / "selection.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    teacher, theta = measure.load(HERE / "teacher"), measure.load(HERE / "theta")
    tokenizer = AutoTokenizer.from_pretrained(HERE / "theta")
    rows = task.read_rows(HERE / "problems.jsonl")[: arguments.problems]
    most = max(arguments.candidates)
    figures: dict[str, object] = {
        "settings": {
            "seed": arguments.seed,
            "temperature": 1.0,
            "max_tokens": measure.MAX_TOKENS,
            "problems": len(rows),
            "candidates": most,
            "drawn_by": "transformers, float64",
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    for method in METHODS:
        began = time.monotonic()
        generator = torch.Generator().manual_seed(arguments.seed)
        repeated = [row for row in rows for _ in range(most)]
        candidates: list[Candidate] = []
        for first in range(0, len(repeated), ROWS_AT_A_TIME):
            candidates += draw(tokenizer, teacher, theta, repeated[first : first + ROWS_AT_A_TIME], method, generator)
        groups = [candidates[first : first + most] for first in range(0, len(candidates), most)]
        figures[method] = summary(groups, rows, arguments.candidates, arguments.seed)
        print(method, f"{time.monotonic() - began:.0f} s", json.dumps(figures[method], indent=1), flush=True)
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
