"""What the experiment takes: on a GPU predicted, on a CPU extrapolated from a measured part.

    python examples/real_model/cost.py          measures a training step of SmolLM2 on this machine; results/cost.json

The prediction multiplies the protocol's counts by assumed times of one step, none of which was measured with this model.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from real_model import PROBLEMS, RESULTS, tasks  # first: it finds the modules that follow

# isort: split
import measure
import recording
import smollm2
import torch
from distillation import student
from distillation.protocol import ROWS_PER_STEP

from real_model.protocol import CANDIDATES, DRAWS, EPOCHS, LEARNING_RATES, OF_FAMILY, SOURCES, Sizes

MEAN_TOKENS = 220
"""Of a completion; the worked solutions have 140 to 260."""
ROWS_MEASURED = 2


@dataclass(frozen=True)
class Assumed:
    """Seconds on one H100 or H200, by assumption."""

    read_model: float = 20.0
    """The GGUF file into tensors."""
    start: float = 60.0
    """An engine; they start side by side. 60 s was seen for a first start of a larger pair, most of it Triton's compiler."""
    step: float = 0.008
    """Of an engine with two models of 135M, at few requests."""
    request: float = 0.00003
    """For each request of a step: scheduling, sampling, records."""
    seats: int = 512
    """Requests at a time."""
    training_step: float = 0.12
    """30 rows of 350 tokens, in a process that shares the card."""
    plain_step: float = 0.025
    """A token of transformers' `generate`."""
    stages: int = 11
    """Of theta's and the teacher's training together, of at most 20: 10 and 1 in the pilot on two cores."""
    processes: int = 3


def engine_seconds(requests: int, assumed: Assumed, max_tokens: int) -> float:
    """A batch: the longest text, and before it as many steps as the waiting requests take."""
    at_a_time = min(requests, assumed.seats)
    steps = max_tokens + MEAN_TOKENS * max(0, requests - assumed.seats) / assumed.seats
    return steps * (assumed.step + assumed.request * at_a_time)


def predicted(sizes: Sizes, assumed: Assumed) -> dict[str, float]:
    """Seconds of each part, those of many jobs divided by the processes."""

    def rows(names: Any) -> float:
        return sum(_rows(name, sizes, assumed) for name in names)

    def batch(requests: int) -> float:
        return engine_seconds(requests, assumed, sizes.max_tokens)

    held_out = sizes.held_out * len(tasks.TASKS)
    student_seconds = EPOCHS * -(-sizes.rows // ROWS_PER_STEP) * assumed.training_step + batch(held_out)
    stage = sizes.steps * assumed.training_step + sizes.max_tokens * assumed.plain_step
    pilot_rows = rows({*OF_FAMILY.values(), "fixed_0.5"})
    pilot_students = len(OF_FAMILY) * len(LEARNING_RATES) * student_seconds
    return {
        "read the model, train theta and the teacher": assumed.read_model + assumed.stages * stage,
        "start the engines": assumed.start,
        "the gate": 2 * batch(sizes.gate_problems),
        "the pilot": (pilot_rows + pilot_students) / assumed.processes,
        f"rows of {DRAWS} draws": DRAWS * rows(SOURCES) / assumed.processes,
        f"students of {DRAWS} draws": DRAWS * (len(SOURCES) * student_seconds + batch(held_out)) / assumed.processes,
    }


def _rows(name: str, sizes: Sizes, assumed: Assumed) -> float:
    """A source's rows; for theta's right ones all problems are read, so rarely is theta right in the pilot on two cores."""
    source = SOURCES[name]
    if source.kept == "first":
        return engine_seconds(sizes.rows, assumed, sizes.max_tokens)
    chunks = 1
    if source.kept == "right":
        chunks = math.ceil(sizes.training_problems / sizes.rows)
    return chunks * engine_seconds(CANDIDATES * sizes.rows, assumed, sizes.max_tokens)


def extrapolated(gate: dict[str, Any], cost: dict[str, Any], sizes: Sizes) -> dict[str, float]:
    """Core hours of one draw by transformers: texts at the speed of `gate.py`, training at that of the measured step.

    A mixture reads two models for each token. The teacher's best of four reads theta too.
    """
    theta = gate["ways"]["theta"]
    token = theta["cpu_seconds"] / theta["tokens"] / 3600
    texts = {
        "first": sizes.rows,
        "theta_logprob": CANDIDATES * sizes.rows,
        "right": CANDIDATES * sizes.training_problems,
    }
    models = {"theta": 1, "teacher": 1, "q*": 2}
    drawn = sum(texts[source.kept] * models[source.family] for source in SOURCES.values())
    learnt = len(SOURCES) * EPOCHS * sizes.rows * cost["tokens_a_row"]
    answered = (len(SOURCES) + 1) * sizes.held_out * len(tasks.TASKS)
    return {
        "rows": drawn * MEAN_TOKENS * token,
        "training": learnt * cost["cpu_seconds_a_token"] / 3600,
        "answers": answered * MEAN_TOKENS * token,
    }


def main() -> None:
    file = smollm2.packaged()
    if file is None:
        raise SystemExit(smollm2.MISSING)
    header = recording.header("real-model-cost")
    model, tokenizer = smollm2.load(file, torch.float32)
    examples = [
        student.Example(
            measure.render(tokenizer, tasks.theta_messages(problem)),
            [*tokenizer.encode(tasks.solution(problem)), tokenizer.eos_token_id],
        )
        for problem in tasks.read(PROBLEMS)[:ROWS_MEASURED]
    ]
    tokens = sum(len(one.prompt) + len(one.completion) for one in examples)
    started, cpu = time.monotonic(), time.process_time()
    student.train(model, examples, 1, 1e-5, 0, tokenizer.eos_token_id)
    spent = time.process_time() - cpu
    found = {
        "rows": len(examples),
        "tokens": tokens,
        "seconds": time.monotonic() - started,
        "cpu_seconds": spent,
        "tokens_a_row": tokens / len(examples),
        "cpu_seconds_a_token": spent / tokens,
    }
    recording.write(RESULTS / "cost.json", header | found)


if __name__ == "__main__":
    main()
