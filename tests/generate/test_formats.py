"""Rows load where they are meant to: `datasets`, TRL's trainers, and what verl reads, as text and as chats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import THETA

from vllm_optimal_sampling.data.generate.errors import RunError
from vllm_optimal_sampling.data.generate.formats import write
from vllm_optimal_sampling.data.generate.input_row import InputRow
from vllm_optimal_sampling.data.generate.jobs import Sample, jobs
from vllm_optimal_sampling.data.generate.output import FinishedSamples
from vllm_optimal_sampling.data.generate.output_row import line_of
from vllm_optimal_sampling.data.generate.settings import Settings
from vllm_optimal_sampling.data.generate.settings_from import settings_from

pytest.importorskip("pyarrow")
datasets = pytest.importorskip("datasets")

RECORD = {"alpha": [0.5, 0.25], "kl": [0.1, None], "fallback": [False, True]}
NUM_ROWS = 2500  # more than two batches


def rows_written(
    folder: Path, *, chat: bool, name: str = "rows.jsonl", errors: bool = True, **changes: Any
) -> Settings:
    """An output as the command writes it, with errors among the rows."""
    settings = settings_from(
        {
            "input": "i.jsonl",
            "output": str(folder / name),
            "teacher": "t",
            "theta": THETA,
            "theta_template": "{{ problem }}",
            "teacher_template": "{{ problem }} {{ answer }}",
            "chat": chat,
            **changes,
        }
    )
    columns = [{"problem": f"{i} + 1?", "answer": str(i + 1), "data_source": "sums"} for i in range(NUM_ROWS)]
    rows = [InputRow("i.jsonl", line, one) for line, one in enumerate(columns, 1)]
    with settings.rows_path.open("wb") as file:
        for job in jobs(rows, settings, FinishedSamples()):
            if errors and job.row.line % 10 == 1:  # the very first row too, whose columns are null
                file.write(line_of(job.error_row("refused")))
                continue
            sample = Sample(f" It is {job.row.line}.", [5, 1], "stop", RECORD)
            file.write(line_of(job.sample_row(0, sample, [7, 8], settings.messages)))
    return settings


def test_parquet_and_data_set_have_the_good_rows(tmp_path: Path) -> None:
    settings = rows_written(tmp_path, chat=True, name="rows.parquet")
    write(settings)
    table = datasets.Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache"))
    with settings.rows_path.open() as file:
        good = [row for row in map(json.loads, file) if row["error"] is None]
    assert table.to_list() == good
    assert len(good) == NUM_ROWS * 9 // 10

    other = rows_written(tmp_path, chat=True, name="rows", format="hf")
    for _ in range(2):  # the second replaces the first
        write(other)
        assert datasets.load_from_disk(tmp_path / "rows").to_list() == good
    left = {path.name for path in tmp_path.iterdir()} - {"cache"}
    assert left == {"rows.parquet", "rows.parquet.jsonl", "rows", "rows.jsonl"}


def test_jsonl_loads_with_datasets(tmp_path: Path) -> None:
    settings = rows_written(tmp_path, chat=True)
    data = datasets.load_dataset(
        "json", data_files=str(settings.rows_path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(data) == NUM_ROWS
    assert len(data.filter(lambda row: row["error"] is None)) == NUM_ROWS * 9 // 10
    assert data[1]["optimal_sampling"] == RECORD


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"a": 1}, "column 'data_source' has values that no one type holds"),
        (2**70, "column 'data_source' has values that no one type holds"),
        ({}, "Cannot write struct type 'more' with no child field"),
    ],
    ids=["two types", "a large number", "an empty object"],
)
def test_columns_that_no_table_holds_are_named(tmp_path: Path, value: object, reason: str) -> None:
    settings = rows_written(tmp_path, chat=False, name="rows.parquet")
    lines = settings.rows_path.read_text().splitlines()
    row = json.loads(lines[-1])
    lines[-1] = json.dumps(row | ({"more": value} if value == {} else {"data_source": value}))
    settings.rows_path.write_text("\n".join(lines) + "\n")
    with pytest.raises(RunError, match=f"cannot become a table: {reason}"):
        write(settings)
    assert list(tmp_path.iterdir()) == [settings.rows_path]


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_trl_trains_on_the_file_as_it_is(tmp_path: Path, chat: bool) -> None:
    """TRL's own preparation and collator: what is learned is the completion and nothing of the prompt."""
    trl = pytest.importorskip("trl")
    settings = rows_written(tmp_path, chat=chat, name="rows.parquet")
    write(settings)
    data = datasets.load_dataset(
        "parquet", data_files=settings.output, split="train[:8]", cache_dir=str(tmp_path / "cache")
    )
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False, report_to=[], max_length=64, max_steps=1
    )
    trainer = trl.SFTTrainer(model=THETA, args=arguments, train_dataset=data)
    batch = next(iter(trainer.get_train_dataloader()))
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        learned = trainer.processing_class.decode([label for label in labels.tolist() if label != -100])
        read = trainer.processing_class.decode(ids)
        assert "It is" in learned
        assert "+ 1?" in read
        assert "+ 1?" not in learned
        assert "<|end|>" in learned, "the end of the text is learned too"


def test_verl_reads_conversations(tmp_path: Path) -> None:
    """verl's MultiTurnSFTDataset takes `messages` of a parquet file through pandas, its RL data `prompt` and `data_source`."""
    import pandas as pd

    settings = rows_written(tmp_path, chat=True, name="rows.parquet", messages=True)
    write(settings)
    frame = pd.read_parquet(settings.output)
    first = frame.iloc[0]
    assert [(m["role"], m["content"]) for m in first["messages"]] == [("user", "1 + 1?"), ("assistant", " It is 2.")]
    assert [(m["role"], m["content"]) for m in first["prompt"]] == [("user", "1 + 1?")]
    assert first["data_source"] == "sums"


def test_sdft_has_its_columns(tmp_path: Path) -> None:
    """TRL's self-distillation trainer makes the teacher's prompt of `prompt` and `privileged_context`."""
    sdft = pytest.importorskip("trl.experimental.sdft.sdft_trainer")
    settings = rows_written(tmp_path, chat=True, name="rows.parquet")
    write(settings)
    data = datasets.load_dataset(
        "parquet", data_files=settings.output, split="train[:2]", cache_dir=str(tmp_path / "c")
    )
    config = type("Config", (), {"teacher_prompt_template": "{prompt}\n\n{privileged_context}"})
    builder = sdft.DemonstrationTeacherContextBuilder(type("Trainer", (), {"args": config}))
    for row in data:
        (message,) = builder._compose_teacher_prompt(row["prompt"], row["privileged_context"])
        assert message["content"] == f"{row['problem']}\n\n{row['answer']}"
