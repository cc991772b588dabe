"""The command: which rows stay, how many each rule dropped, and what becomes of the files."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.written_rows import command, row, write
from vllm_optimal_sampling.data.filter import writing
from vllm_optimal_sampling.data.filter.rules import FilterSettings, Rules
from vllm_optimal_sampling.data.rows import settings_path


def kept(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def ids(path: Path) -> list[str]:
    return [one["custom_id"] for one in kept(path)]


def test_each_rule_drops_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        row(0, r"It is \boxed{1,000}.", answer="1000.0", prompt="p"),
        row(1, error="too long", answer="1000", prompt="p"),
        row(2, r"It is \boxed{1,000}.", answer=1000, prompt="p", finish_reason="length"),
        row(3, "It is", answer="1000", prompt="p"),
        row(4, "word " * 60 + r"\boxed{1000}", answer="1000", prompt="p"),
        row(5, "It may be something, but nothing comes.", answer="1000", prompt="p"),
        row(6, r"It must be \boxed{999}, I think.", answer="1000", prompt="p"),
        row(7, r"It  is \boxed{1,000}. ", answer=[7, 1000], prompt="p"),
        row(8, r"So it is \boxed{1000}.", answer=1000.0, prompt="p"),
        row(9, r"And thus \boxed{1000} it is.", answer="1000", prompt="p"),
        row(10, r"It is \boxed{1,000}.", answer="1000", prompt="q"),
    ]
    path, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "kept.jsonl"
    options = ["--boxed", "--answer-column", "answer", "--numeric", "--drop-truncated", "--min-tokens", 4]
    options += ["--max-tokens", 60, "--deduplicate", "prompt+completion", "--max-per-prompt", 2]
    assert command("filter", path, "--output", out, *options) == 0
    assert ids(out) == ["row-0", "row-8", "row-10"]
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [[" ".join(words[:-2]), *words[-2:]] for words in table[2:]] == [
        ["error", "1", "10"],
        ["truncated", "1", "9"],
        ["under 4 tokens", "1", "8"],
        ["over 60 tokens", "1", "7"],
        ["no answer", "1", "6"],
        ["wrong answer", "1", "5"],
        ["duplicate", "1", "4"],
        ["over 2 of a prompt", "1", "3"],
    ]
    assert table[1] == ["read", "11"]


def test_answers_of_chats(tmp_path: Path) -> None:
    rows = [
        row(number, completion=[{"role": "assistant", "content": rf"It is \boxed{{{number}}}"}], answer=str(answer))
        for number, answer in ((1, 1), (2, 3))
    ]
    path, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "kept.jsonl"
    assert command("filter", path, "--output", out, "--boxed", "--answer-column", "answer") == 0
    assert ids(out) == ["row-1"]
    assert command("filter", path, "--output", out, "--overwrite", "--answer-regex", r"\\boxed\{2\}$") == 0
    assert ids(out) == ["row-2"]


def test_lines_are_copied_as_they_are(tmp_path: Path) -> None:
    path, out = tmp_path / "rows.jsonl", tmp_path / "kept.jsonl"
    lines = [b'{"custom_id":"a",  "x": 1.0000000000000000001, "error": null}\n', b'{"custom_id": "b", "u": "\\u00e9"}']
    path.write_bytes(b"".join([lines[0], b"broken\n", b"\n", lines[1]]))
    assert command("filter", path, "--output", out) == 0
    assert out.read_bytes() == lines[0] + lines[1] + b"\n"


def test_errors_may_stay_and_torn_lines_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write(tmp_path / "rows.jsonl", [row(1), row(2, error="x")]), tmp_path / "kept.jsonl"
    with path.open("a") as file:
        file.write('{"custom_id": "row-3", "comp')
    assert command("filter", path, "--output", out, "--no-drop-errors") == 0
    assert ids(out) == ["row-1", "row-2"]
    assert "unreadable" in capsys.readouterr().out


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    completions=st.lists(
        st.tuples(st.sampled_from("pqr"), st.sampled_from(["a", "a ", "b", " b\n", "c"])), max_size=30
    ),
    most=st.integers(1, 4),
)
def test_no_repetition_stays_and_nothing_else_goes(
    tmp_path: Path, completions: list[tuple[str, str]], most: int
) -> None:
    rules = Rules(FilterSettings(deduplicate="prompt+completion", max_per_prompt=most))
    stayed = [pair for pair in completions if rules.keeps({"prompt": pair[0], "completion": pair[1]})]
    expected: list[tuple[str, str]] = []
    for prompt, completion in completions:
        told = [(p, c.strip()) for p, c in expected]
        if (prompt, completion.strip()) not in told and [p for p, _ in told].count(prompt) < most:
            expected.append((prompt, completion))
    assert stayed == expected
    assert rules.num_read - sum(rules.dropped.values()) == len(stayed)


def test_reference_answers_may_be_read_by_a_pattern(tmp_path: Path) -> None:
    rows = [
        row(1, "The answer is 72.", answer="48 and half of it.\n#### 72"),
        row(2, "The answer is 48.", answer="#### 72"),
    ]
    path, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "kept.jsonl"
    options = ["--answer-column", "answer", "--answer-regex", r"answer is (\d+)", "--reference-regex", "#### (.*)"]
    assert command("filter", path, "--output", out, *options) == 0
    assert ids(out) == ["row-1"]


def test_the_settings_go_along(tmp_path: Path) -> None:
    path, out = write(tmp_path / "rows.jsonl", [row(1), row(2, error="x")]), tmp_path / "kept.jsonl"
    settings_path(path).write_text('{"teacher": "big", "temperature": 0.5}')
    assert command("filter", path, "--output", out, "--max-tokens", 100) == 0
    assert json.loads(settings_path(out).read_text()) == {
        "teacher": "big",
        "temperature": 0.5,
        "filter": {
            "input": "rows.jsonl",
            "drop_errors": True,
            "max_tokens": 100,
            "rows_read": 2,
            "rows_dropped": {"error": 1},
        },
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--min-tokens", "-1"], "--min-tokens is -1"),
        (["--max-per-prompt", "0"], "--max-per-prompt is 0"),
        (["--min-tokens", "9", "--max-tokens", "8"], "nothing would stay"),
        (["--boxed", "--answer-regex", "x"], "give one of them"),
        (["--answer-column", "answer"], "needs --boxed, --answer-regex or --contains-answer"),
        (["--boxed", "--numeric"], "give --answer-column too"),
        (["--answer-regex", "("], "is not a regular expression"),
        (["--answer-regex", "answer", "--answer-column", "anwser"], "no row has a column 'anwser'"),
        (["--contains-answer", "--answer-column", "anwser"], "no row has a column 'anwser'"),
        (["--contains-answer"], "--contains-answer is about the right answer; give --answer-column too"),
        (["--contains-answer", "--answer-column", "answer", "--boxed"], "--boxed and --contains-answer both say"),
        (["--contains-answer", "--answer-column", "answer", "--numeric"], "and --contains-answer reads none"),
        (["--boxed", "--ignore-case"], "--ignore-case is about the right answer"),
    ],
)
def test_wrong_options_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    path = write(tmp_path / "rows.jsonl", [row(1)])
    assert command("filter", path, "--output", tmp_path / "kept.jsonl", *options) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert list(tmp_path.iterdir()) == [path]


def test_the_input_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    path = write(shards / "rows.jsonl", [row(1), row(2, error="x")])
    before = path.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(path)
    (tmp_path / "hard.jsonl").hardlink_to(path)
    for source, out, said in (
        (path, path, "is the input"),
        (path, tmp_path / "link.jsonl", "is the input"),
        (path, tmp_path / "hard.jsonl", "is the input"),
        (shards, path, "is the input"),
        (shards, shards / "new.jsonl", "a part of it"),
        (path, tmp_path / "no" / "kept.jsonl", "not there"),
        (path, tmp_path / "kept.csv", "has to end in"),
    ):
        assert command("filter", source, "--output", out, "--overwrite") == 1
        assert said in capsys.readouterr().err
        assert path.read_bytes() == before


def test_an_output_is_kept_unless_said_and_until_the_new_one_is_complete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = write(tmp_path / "rows.jsonl", [row(1)]), tmp_path / "kept.jsonl"
    out.write_text("old\n")
    assert command("filter", path, "--output", out) == 1
    assert "--overwrite" in capsys.readouterr().err

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(writing.os, "fsync", full)
        assert command("filter", path, "--output", out, "--overwrite") == 1
    assert "No space left" in capsys.readouterr().err
    assert out.read_text() == "old\n"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["kept.jsonl", "rows.jsonl"]
    assert command("filter", path, "--output", out, "--overwrite") == 0
    assert ids(out) == ["row-1"]


def test_parquet_in_and_out(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet as pq

    rows = [row(i, error="x" if i % 5 == 0 else None, extra=None if i < 300 else {"note": i}) for i in range(700)]
    expected = [one for one in rows if one["error"] is None]
    lines = write(tmp_path / "rows.jsonl", rows)
    table, again, back = tmp_path / "a.parquet", tmp_path / "b.parquet", tmp_path / "c.jsonl"
    assert command("filter", lines, "--output", table, "--no-drop-errors") == 0
    assert pq.read_table(table).to_pylist() == rows
    assert command("filter", table, "--output", again) == 0
    assert pq.read_schema(again) == pq.read_schema(table)
    assert pq.read_table(again).to_pylist() == expected
    assert command("filter", table, "--output", back) == 0
    assert kept(back) == expected


def test_shards_of_parquet_need_not_have_the_same_columns(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet as pq

    shards = tmp_path / "shards"
    shards.mkdir()
    pq.write_table(pa.table({"custom_id": ["a"], "error": pa.nulls(1)}), shards / "0.parquet")
    pq.write_table(pa.table({"custom_id": ["b", "c"], "error": [None, "x"], "more": [1, 2]}), shards / "1.parquet")
    out = tmp_path / "kept.parquet"
    assert command("filter", shards, "--output", out) == 0
    assert pq.read_table(out).to_pylist() == [
        {"custom_id": "a", "error": None, "more": None},
        {"custom_id": "b", "error": None, "more": 1},
    ]


def test_rows_without_a_common_schema_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    path = write(tmp_path / "rows.jsonl", [row(1, extra="text"), row(2, extra={"a": 1})])
    assert command("filter", path, "--output", tmp_path / "kept.parquet") == 1
    assert "no common parquet schema" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


def test_shards_without_a_common_schema_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet as pq

    shards = tmp_path / "shards"
    shards.mkdir()
    for name, answer in (("0", 7), ("1", "7")):
        pq.write_table(pa.table({"custom_id": [name], "answer": [answer]}), shards / f"{name}.parquet")
    assert command("filter", shards, "--output", tmp_path / "kept.parquet") == 1
    assert "no common parquet schema (Unable to merge: Field answer has" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [shards]


def test_rows_that_contain_the_right_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["It is Paris.", "it is paris", "In Parisian style", "Comparisons"]
    rows = [row(number) | {"completion": text, "answer": "Paris"} for number, text in enumerate(texts)]
    path, kept = write(tmp_path / "rows.jsonl", rows), tmp_path / "kept.jsonl"
    options = ("filter", path, "--output", kept, "--overwrite", "--contains-answer", "--answer-column", "answer")
    assert command(*options) == 0
    assert [json.loads(line)["completion"] for line in kept.read_text().splitlines()] == texts[:1]
    assert command(*options, "--ignore-case") == 0
    assert [json.loads(line)["completion"] for line in kept.read_text().splitlines()] == texts[:2]
    assert command(*options, "--max-tokens", "0") == 0
    assert f"no row is left; {kept} is empty" in capsys.readouterr().err


def test_an_option_with_two_values_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "rows.jsonl", [row(1)])
    with pytest.raises(SystemExit) as ended:
        command("filter", path, "--output", tmp_path / "kept.jsonl", "--min-tokens", "1", "--min-tokens", "2")
    assert ended.value.code == 2
    assert "--min-tokens is given twice, with 1 and with 2" in capsys.readouterr().err


def test_an_option_is_not_shortened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "rows.jsonl", [row(1)])
    with pytest.raises(SystemExit):
        command("filter", path, "--output", tmp_path / "kept.jsonl", "--drop-trunc")
    assert "unrecognized arguments: --drop-trunc" in capsys.readouterr().err
