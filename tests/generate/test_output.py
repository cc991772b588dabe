"""The output file: what a killed run leaves, what a resumed one finds, and who may write it."""

from __future__ import annotations

import datetime
import fcntl
import json
import math
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from vllm_optimal_sampling.data.generate.errors import SettingsError
from vllm_optimal_sampling.data.generate.formats import check_available
from vllm_optimal_sampling.data.generate.input_row import InputRow
from vllm_optimal_sampling.data.generate.jobs import Sample, jobs, seed_of
from vllm_optimal_sampling.data.generate.output import FinishedSamples, Output
from vllm_optimal_sampling.data.generate.output_row import line_of
from vllm_optimal_sampling.data.generate.settings_from import settings_from


def opened(folder: Path, *, retry_errors: bool = False, **identity: Any) -> Output:
    sidecar = folder / "rows.jsonl.settings.json"
    return Output(folder / "rows.jsonl", sidecar, identity, {"vllm": "1.0"}, retry_errors=retry_errors)


def row(custom_id: str, sample: int | None = 0, error: str | None = None) -> dict[str, Any]:
    return {"custom_id": custom_id, "sample": sample, "completion": "ü\n" * 40, "error": error}


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_bytes().splitlines()]


def test_a_file_cut_anywhere_is_resumed_from_its_whole_lines(tmp_path: Path) -> None:
    """Kill at any byte: what was finished stays, what is torn is drawn again, and nothing is there twice."""
    output = opened(tmp_path)
    for number in range(6):
        output.write(row(f"p{number}"))
    output.close()
    whole = (tmp_path / "rows.jsonl").read_bytes()
    ends = [position + 1 for position, byte in enumerate(whole) if byte == ord("\n")]
    randomly = random.Random(0)
    for cut in {*ends, *(end - 1 for end in ends), *randomly.sample(range(len(whole)), 40), 0}:
        (tmp_path / "rows.jsonl").write_bytes(whole[:cut])
        output = opened(tmp_path)
        kept = sum(end <= cut for end in ends)
        assert [not output.finished.missing(f"p{number}", 1) for number in range(6)] == [n < kept for n in range(6)]
        for number in range(kept, 6):
            output.write(row(f"p{number}"))
        output.close()
        assert (tmp_path / "rows.jsonl").read_bytes() == whole


@pytest.mark.parametrize("tail", [b"\0" * 5000 + b"\n", b"\0" * 100_000, b'{"custom_id": 1}\n', b"\n"])
def test_what_a_loss_of_power_leaves_is_cut(tmp_path: Path, tail: bytes) -> None:
    """A file system may have the length of the last write without its text."""
    output = opened(tmp_path)
    output.write(row("p0"))
    output.close()
    with (tmp_path / "rows.jsonl").open("ab") as file:
        file.write(tail)
    opened(tmp_path).close()
    assert written(tmp_path) == [row("p0")]


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"mine": 1}\n{"mine": 2}\n')
    with pytest.raises(SettingsError, match=r"has rows, and rows.jsonl.settings.json, .* cannot be read"):
        opened(tmp_path)
    assert path.read_text() == '{"mine": 1}\n{"mine": 2}\n'


@pytest.mark.parametrize("retry_errors", [False, True])
def test_damage_in_the_middle_is_named(tmp_path: Path, retry_errors: bool) -> None:
    output = opened(tmp_path)
    output.write(row("p0"))
    output.close()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"garbage\n" + path.read_bytes())
    with pytest.raises(SettingsError, match=r"rows.jsonl line 1 is not a row that this command wrote"):
        opened(tmp_path, retry_errors=retry_errors)


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    output = opened(tmp_path)
    with pytest.raises(SettingsError, match="another run is writing"):
        opened(tmp_path)
    output.close()
    opened(tmp_path).close()


def test_other_settings_are_refused(tmp_path: Path) -> None:
    output = opened(tmp_path, temperature=1.0)
    output.write(row("p0"))
    output.close()
    opened(tmp_path, temperature=1.0).close()
    with pytest.raises(SettingsError, match=r"temperature is 0.5, and it was 1.0"):
        opened(tmp_path, temperature=0.5)
    assert written(tmp_path) == [row("p0")]


def test_errors_are_drawn_again_when_asked_for(tmp_path: Path) -> None:
    output = opened(tmp_path)
    for one in (row("p0"), row("p1", None, "too long"), row("p2")):
        output.write(one)
    output.close()
    output = opened(tmp_path)
    assert output.num_errors == 1
    assert output.finished.missing("p1", 2) == []
    output.close()
    output = opened(tmp_path, retry_errors=True)
    assert output.finished.missing("p1", 2) == [0, 1]
    with pytest.raises(SettingsError, match="another run is writing"):  # the lock is on the file that is there now
        opened(tmp_path)
    output.write(row("p1"))
    output.close()
    assert written(tmp_path) == [row("p0"), row("p2"), row("p1")]


@pytest.mark.parametrize("moment", ["before it is locked", "in its place"])
def test_a_file_that_is_written_again_is_held_all_the_while(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run opens the file just before, or just after, a new one without the errors takes its place."""
    output = opened(tmp_path)
    output.write(row("p1", None, "too long"))
    output.close()
    runs: list[Output] = []
    flock, replace = fcntl.flock, Path.replace

    def first_run(file: Any, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        runs.append(opened(tmp_path, retry_errors=True))
        flock(file, how)

    def second_run(path: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "replace", replace)
        moved = replace(path, target)
        with pytest.raises(SettingsError, match="another run is writing"):
            opened(tmp_path)
        return moved

    if moment == "in its place":
        monkeypatch.setattr(Path, "replace", second_run)
        runs.append(opened(tmp_path, retry_errors=True))
    else:
        monkeypatch.setattr(fcntl, "flock", first_run)
        with pytest.raises(SettingsError, match="another run is writing"):
            opened(tmp_path)
    (run,) = runs
    run.write(row("p1"))
    run.close()
    assert written(tmp_path) == [row("p1")]


def test_a_sample_that_is_there_twice_is_named(tmp_path: Path) -> None:
    output = opened(tmp_path)
    output.write(row("p0", 1))
    output.write(row("p0", 1))
    output.close()
    with pytest.raises(SettingsError, match="has sample 1 of 'p0' twice"):
        opened(tmp_path)


def test_what_json_cannot_say() -> None:
    values = {
        "number": math.inf,
        "list": [1.0, math.nan],
        "date": datetime.date(2026, 1, 2),
        "price": Decimal("1.10"),
        "image": b"\xff",
        "text": "ü\u2028\n",
    }
    line = line_of(values)
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "number": None,
        "list": [1.0, None],
        "date": "2026-01-02",
        "price": "1.10",
        "image": "/w==",
        "text": "ü\u2028\n",
    }


def settings(**changes: Any) -> Any:
    return settings_from(
        {"input": "i.jsonl", "output": "o.jsonl", "teacher": "t", "theta": "s", "theta_template": "{{ a }}"} | changes
    )


def test_only_what_is_missing_is_drawn() -> None:
    finished = FinishedSamples()
    for custom_id, sample in (("i.jsonl:1", 0), ("i.jsonl:1", 1), ("i.jsonl:2", 1), ("i.jsonl:4", None)):
        finished.add(custom_id, sample)
    rows = [InputRow("i.jsonl", line, {"a": "x"} if line < 4 else {}) for line in range(1, 6)]
    skipped: list[int] = []
    left = list(jobs(rows, settings(num_samples=3), finished, lambda: skipped.append(1)))
    assert [(job.custom_id, job.samples) for job in left] == [
        ("i.jsonl:1", [2]),
        ("i.jsonl:2", [0, 2]),
        ("i.jsonl:3", [0, 1, 2]),
        ("i.jsonl:5", [0, 1, 2]),
    ]
    assert [job.error for job in left] == [None, None, None, "theta's template failed: 'a' is undefined"]
    assert len(skipped) == 1


def test_ids_of_a_column() -> None:
    given = ["x", 7, None, "", 1.5, "x"]
    rows = [InputRow("i.jsonl", line, {"a": "b", "id": one}) for line, one in enumerate(given, 1)]
    found = [(job.custom_id, job.error) for job in jobs(rows, settings(id_column="id"), FinishedSamples())]
    no_id = "column 'id' of --id-column has no text or whole number"
    assert found == [
        ("x", None),
        ("7", None),
        *((f"i.jsonl:{line}", no_id) for line in (3, 4, 5)),
        ("i.jsonl:6", "id 'x' is already that of i.jsonl line 1"),
    ]


def test_columns_of_the_input_are_kept_beside_the_outputs() -> None:
    columns = {"a": "b", "prompt": "theirs", "error": 3, "data_source": "d"}
    (job,) = jobs([InputRow("i.jsonl", 1, columns)], settings(), FinishedSamples())
    row = job.error_row("refused", 2)
    assert (row["prompt"], row["error"], row["sample"]) == ("b", "i.jsonl line 1: refused", 2)
    assert (row["input_prompt"], row["input_error"], row["data_source"], row["a"]) == ("theirs", 3, "d", "b")


def test_seeds_belong_to_the_sample() -> None:
    assert seed_of(None, "a", 0) is None
    seeds = {seed_of(seed, custom_id, sample) for seed in (0, 1) for custom_id in ("a", "b") for sample in range(3)}
    assert len(seeds) == 12
    assert all(seed is not None and 0 <= seed < 1 << 63 for seed in seeds)
    assert seed_of(1, "a", 0) == seed_of(1, "a", 0)


def test_a_row_that_failed_keeps_no_more_than_the_beginning_of_its_texts() -> None:
    """A prompt may be too long for the models by megabytes."""
    columns = {"a": "x" * 10_000_000, "deep": [{"b": "y" * 3000}], "short": "z", "n": 1}
    (job,) = jobs([InputRow("i.jsonl", 1, columns)], settings(), FinishedSamples())
    row = job.error_row("too long")
    assert len(json.dumps(row)) < 10_000
    assert row["prompt"].endswith("x... (10000000 characters)")
    assert row["a"].endswith("x... (10000000 characters)")
    assert row["deep"][0]["b"].endswith("y... (3000 characters)")
    assert (row["short"], row["n"], row["error"]) == ("z", 1, "i.jsonl line 1: too long")
    assert job.sample_row(0, Sample("t", [1], "stop"), None, False)["a"] == columns["a"]


def test_settings_may_change_as_long_as_no_sample_is_there(tmp_path: Path) -> None:
    """At c2787b4 an output of errors alone, from a misspelt column, took no other settings."""
    output = opened(tmp_path, theta_template="{{ problm }}")
    for number in range(3):
        output.write(row(f"p{number}", None, "'problm' is undefined"))
    output.close()
    opened(tmp_path, theta_template="{{ problm }}").close()
    assert len(written(tmp_path)) == 3
    output = opened(tmp_path, theta_template="{{ problem }}")
    assert output.finished.missing("p0", 1) == [0]
    assert written(tmp_path) == []
    output.write(row("p0"))
    output.write(row("p1", None, "too long"))
    output.close()
    with pytest.raises(SettingsError, match="was begun with other settings"):
        opened(tmp_path, theta_template="{{ problm }}")
    assert len(written(tmp_path)) == 2


def test_an_output_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "rows.jsonl"
    folder.mkdir()
    (tmp_path / "file").touch()
    for path in (folder, tmp_path / "file" / "rows.jsonl", Path("/proc/rows.jsonl"), Path("/dev/null")):
        with pytest.raises(SettingsError, match=r"output .* cannot be written: .*; give --output the name of a file"):
            Output(path, path.with_name("settings.json"), {}, {})


def test_what_was_not_written_by_a_run_is_not_replaced(tmp_path: Path) -> None:
    """At c2787b4 `--format hf --output FOLDER` deleted whatever the folder held."""
    folder, table = tmp_path / "mine", tmp_path / "mine.parquet"
    folder.mkdir()
    (folder / "thesis.txt").write_text("all of it")
    table.write_text("mine")
    for output, kind in ((folder, "hf"), (table, "parquet")):
        with pytest.raises(SettingsError, match="was not written by this command, which would replace it"):
            check_available(settings(output=str(output), format=kind))
        output.with_name(f"{output.name}.jsonl").touch()
        check_available(settings(output=str(output), format=kind))
