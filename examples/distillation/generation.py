"""Problems to train and tune on, kept apart from the held-out ones, and the rows that each source gives for them.

Rows are drawn by the product's own command, `optimal-sampling generate`, and filtered by `optimal-sampling filter`:
both go on where they were interrupted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import measure
import task
from transformers import PreTrainedTokenizerBase

from distillation import PAIR, REPOSITORY
from distillation.sources import SOURCES, Source

PRIVILEGED_TEMPLATE = task.teacher_messages("{{ problem }}", "{{ answer }}")[0]["content"]
ANSWER_REGEX = task.SAID_ANSWER.pattern
ENGINE_OPTIONS = (
    "--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "24",
    "--kv-cache-memory-bytes", str(1 << 28), "--num-speculative-tokens", "6",
)  # fmt: skip


def numbers_of(problem: dict) -> tuple[int, ...]:
    """What makes a problem: its numbers in order, whatever its wording."""
    return tuple(map(int, task.NUMBER.findall(problem["problem"]))) + tuple(problem["steps"])


def check_apart(**sets: Sequence[dict]) -> None:
    """Refuse sets of problems that share one.

    Raises:
        ValueError: two sets have a problem with the same numbers, or the same text.

    """
    names = list(sets)
    for i, name in enumerate(names):
        for other in names[i + 1 :]:
            for key in (numbers_of, lambda problem: problem["problem"]):
                shared = set(map(key, sets[name])) & set(map(key, sets[other]))
                if shared:
                    raise ValueError(f"{name} and {other} problems share {len(shared)}, such as {min(shared)!r}")


def draw_problems(split: task.Split, seed: int, count: int) -> list[dict]:
    """Fresh stories of a split, with one of their worked solutions."""
    drawn = task.distinct("story", split, seed, count)
    return [{"id": f"{split}-{seed}-{i}"} | one.row() | {"solution": one.solution} for i, one in enumerate(drawn)]


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """Write rows whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(row) + "\n" for row in rows))
    part.replace(path)


def generate_command(source: Source, problems: Path, output: Path, theta: Path, seed: int) -> list[str]:
    """The command that draws one source's rows: one sample of each problem at temperature 1, unless the source has its own.

    Every source, the models alone too, is drawn by the same engine with both models, so that all rows have the same record.
    """
    return [
        sys.executable, "-m", "vllm_optimal_sampling", "generate",
        "--teacher", str(PAIR / "teacher"), "--theta", str(theta),
        "--input", str(problems), "--output", str(output), "--id-column", "id",
        "--chat", "--theta-template", "{{ problem }}",
        "--teacher-template", PRIVILEGED_TEMPLATE if source.privileged else "{{ problem }}",
        "--privileged", *(["answer"] if source.privileged else []),
        "--max-tokens", str(measure.MAX_TOKENS), "--num-samples", "1", "--seed", str(seed), "--return-alpha",
        *source.options, *ENGINE_OPTIONS,
    ]  # fmt: skip


def filter_command(rows: Path, output: Path) -> list[str]:
    """The command that keeps the rows whose answer is right."""
    return [
        sys.executable, "-m", "vllm_optimal_sampling", "filter", str(rows), "--output", str(output), "--overwrite",
        "--answer-column", "answer", "--answer-regex", ANSWER_REGEX, "--drop-truncated",
    ]  # fmt: skip


def run_command(command: Sequence[str], log: Path) -> None:
    """Run one of the product's commands, its own messages into a file.

    Raises:
        RuntimeError: it ended with an error.

    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        code = subprocess.run(command, cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        raise RuntimeError(f"{' '.join(command[2:4])} ended with code {code}; its messages are in {log}")


def written_row(problem: dict, tokenizer: PreTrainedTokenizerBase) -> dict:
    """A problem with the task's own solution, in the columns that the generator writes and training reads."""
    messages = task.theta_messages(problem["problem"])
    solution = tokenizer.encode(problem["solution"], add_special_tokens=False)
    return problem | {
        "custom_id": problem["id"],
        "prompt": messages,
        "completion": [{"role": "assistant", "content": problem["solution"]}],
        "finish_reason": "stop",
        "prompt_token_ids": measure.render(tokenizer, messages),
        "completion_token_ids": [*solution, tokenizer.eos_token_id],
        "error": None,
    }


def make_rows(
    name: str, problems: Path, folder: Path, theta: Path, seed: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Have all rows of a source in ``folder``/NAME.jsonl. A filtered source needs the other's rows there already."""
    source, output = SOURCES[name], folder / f"{name}.jsonl"
    if source.made == "written":
        write_jsonl(output, [written_row(problem, tokenizer) for problem in task.read_rows(problems)])
    elif source.made == "filtered":
        run_command(filter_command(folder / f"{source.right_of}.jsonl", output), folder / f"{name}.log")
    else:
        run_command(generate_command(source, problems, output, theta, seed), folder / f"{name}.log")


def read_source(folder: Path, name: str) -> list[dict]:
    """A source's rows in the order of their ids.

    Raises:
        ValueError: one of them is an error, or was cut off at the token limit.

    """
    rows = sorted(task.read_rows(folder / f"{name}.jsonl"), key=lambda row: row["custom_id"])
    failed = [row for row in rows if row["error"] is not None]
    if failed:
        raise ValueError(f"{len(failed)} rows of {name} failed, the first because: {failed[0]['error']}")
    return rows
