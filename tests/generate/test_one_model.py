"""`generate --theta self`: the student is the teacher with a prompt that shows less, in an engine's own processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import SMALL, TEMPLATES, problems, read_rows, run, write_rows

from support.cases import Case
from support.example_pair import TEACHER
from support.reference_models import Reference, greedy_tokens

ONE_MODEL = ["--teacher", TEACHER, "--theta", "self"]
NGRAM = json.dumps({"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1, "prompt_lookup_max": 3})


def test_rows_of_one_model(tmp_path: Path) -> None:
    """Greedy rows, with drafts of n-grams, token for token; the student's prompt shows no answer."""
    rows = problems(4)
    source = write_rows(tmp_path / "in.jsonl", rows)
    output = tmp_path / "rows.jsonl"
    arguments = [
        "--input",
        str(source),
        *TEMPLATES,
        "--temperature",
        "0",
        "--max-tokens",
        "24",
        "--output",
        str(output),
    ]
    done = run(*ONE_MODEL, *arguments, *SMALL, "--speculative-config", NGRAM)
    assert done.returncode == 0, done.stderr[-4000:]
    reference = Reference(TEACHER, TEACHER)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    answers = {row["problem"]: row["answer"] for row in rows}
    drawn = read_rows(output)
    assert {row["prompt"] for row in drawn} == set(answers) and len(drawn) == len(rows)
    for row in drawn:
        assert row["error"] is None
        teacher_prompt = tokenizer.encode(f"{row['prompt']}\nAnswer: {answers[row['prompt']]}.")
        case = Case(teacher_prompt, row["prompt_token_ids"], {})
        assert row["completion_token_ids"] == greedy_tokens(reference, case, len(row["completion_token_ids"]))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--teacher", TEACHER, "--theta", "other", "--theta-lora", "x"], "give --theta self with it"),
        ([*ONE_MODEL, "--num-speculative-tokens", "2"], "nothing drafts where theta is the teacher itself"),
        ([*ONE_MODEL, "--theta-lora", "/nowhere"], "holds no LoRA adapter"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path: Path, arguments: list[str], reason: str) -> None:
    source = write_rows(tmp_path / "in.jsonl", problems(1))
    done = run(*arguments, "--input", str(source), *TEMPLATES, "--output", str(tmp_path / "rows.jsonl"), *SMALL)
    assert done.returncode == 2 and reason in done.stderr.splitlines()[-1]
