"""What a run needs of its input is asked for before a model is loaded, and a resumed run needs the input that it was."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from commands import TEACHER, THETA, problems, run, write_rows

from vllm_optimal_sampling.data.generate.errors import SettingsError
from vllm_optimal_sampling.data.generate.input_check import check_input
from vllm_optimal_sampling.data.generate.inputs import open_inputs, read
from vllm_optimal_sampling.data.generate.jobs import check_unchanged
from vllm_optimal_sampling.data.generate.output import FinishedSamples
from vllm_optimal_sampling.data.generate.output_row import OWN_COLUMNS, input_columns, input_digest
from vllm_optimal_sampling.data.generate.settings import Settings
from vllm_optimal_sampling.data.generate.settings_from import settings_from

MODELS = ["--teacher", TEACHER, "--theta", THETA]
CSV = "problem,answer\n1 + 1?,2\n2 + 2?,4\n"


def settings(source: Path, **changes: Any) -> Settings:
    given = {
        "input": str(source),
        "output": str(source.parent / "rows.jsonl"),
        "teacher": "t",
        "theta": "s",
        "theta_template": "{{ problem }}",
        "teacher_template": "{{ problem }} {{ answer }}",
    }
    return settings_from(given | changes)


def checked(source: Path, **changes: Any) -> Settings:
    asked = settings(source, **changes)
    return check_input(open_inputs(asked.input), asked, lambda text: None)


def test_a_misspelt_privileged_column_does_not_switch_the_protection_off(tmp_path: Path) -> None:
    """At c2787b4 it did: exit 0, and theta's prompt had the answer."""
    source = write_rows(tmp_path / "in.jsonl", problems(2))
    both = ["--theta-template", "{{ problem }} {{ answer }}", "--teacher-template", "{{ problem }} {{ answer }}!"]
    for misspelt in (["anwser"], ["Answer"], ["answer "], ["answer,problem"], ["answer", "soluton"]):
        options = [*both, "--privileged", *misspelt] if len(misspelt) == 1 else ["--privileged", *misspelt]
        if len(misspelt) > 1:
            options += ["--theta-template", "{{ problem }}", "--teacher-template", "{{ problem }} {{ answer }}"]
        done = run(*MODELS, "--input", str(source), "--output", str(tmp_path / "rows.jsonl"), *options, "--dry-run")
        assert done.returncode == 2, (misspelt, done.stdout)
        assert not done.stdout
        assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_the_answer_in_both_templates_is_refused(tmp_path: Path, dry_run: list[str]) -> None:
    source = write_rows(tmp_path / "in.jsonl", problems(2))
    options = [*MODELS, "--input", str(source), "--output", str(tmp_path / "rows.jsonl"), *dry_run]
    done = run(
        *options, "--theta-template", "{{ problem }} {{ answer }}", "--teacher-template", "{{ problem }}: {{ answer }}"
    )
    assert done.returncode == 2
    assert "nothing that the teacher is shown (answer, problem) is hidden from theta" in done.stderr


def test_each_time_privileged_is_given_counts(tmp_path: Path) -> None:
    """The last one alone would leave the first column without protection."""
    source = write_rows(tmp_path / "in.jsonl", [{"problem": "1 + 1?", "answer": "two", "steps": "one and one"}])
    options = [*MODELS, "--input", str(source), "--output", str(tmp_path / "rows.jsonl"), "--dry-run"]
    templates = ["--theta-template", "{{ row }}", "--teacher-template", "{{ problem }} {{ answer }} {{ steps }}"]
    done = run(*options, *templates, "--privileged", "answer", "--privileged", "steps")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert "two" not in shown["theta"]
    assert "one and one" not in shown["theta"]
    assert "theta is not shown: answer, steps" in done.stderr


MISSING: list[tuple[dict[str, Any], str]] = [
    ({"privileged": ["answer", "soluton"]}, "no row has a column 'soluton', which --privileged names. The columns are"),
    ({"privileged": ["answer", "problm"]}, "'problm', which --privileged names: did you mean problem?"),
    ({"id_column": "idd"}, "no row has a column 'idd', which --id-column names"),
    (
        {"theta_template": "{{ problm }}"},
        "no row has a column 'problm', which theta_template names: did you mean problem?",
    ),
    (
        {"teacher_template": "{{ problem }} {{ row.anwser }}"},
        "'anwser', which teacher_template names: did you mean answer?",
    ),
    ({"privileged_template": "{{ anwser }}"}, "'anwser', which privileged_template names"),
    ({"chat": True, "chat_column": "turns"}, "no row has a column 'turns', which --chat-column names"),
    ({"theta_template": "{{ problem.text }}"}, "none of the first 2 rows can be used. in.csv line 2: theta's template"),
    ({"limit": 1, "theta_template": "{{ problem.text }}"}, "none of the first 1 rows can be used"),
]


@pytest.mark.parametrize(("changes", "reason"), MISSING, ids=[reason[:50] for _, reason in MISSING])
def test_a_column_that_no_row_has(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    source = tmp_path / "in.csv"
    source.write_text(CSV)
    with pytest.raises(SettingsError) as caught:
        checked(source, **changes)
    assert reason in str(caught.value)


def test_a_column_that_only_some_rows_have(tmp_path: Path) -> None:
    rows = [{"problem": "1 + 1?"}] * 10 + [{"problem": "1 + 1?", "answer": "2"}]
    checked(write_rows(tmp_path / "in.jsonl", rows))
    with pytest.raises(SettingsError, match="no row has a column 'answer'"):
        checked(tmp_path / "in.jsonl", limit=10)


@pytest.mark.parametrize(
    "template",
    ["{{ hint | default('') }}", "{% if hint is defined %}{{ hint }}{% endif %}", "{{ row.get('hint', '') }}"],
)
def test_a_column_that_a_template_can_do_without(tmp_path: Path, template: str) -> None:
    source = tmp_path / "in.csv"
    source.write_text(CSV)
    checked(source, teacher_template="{{ problem }} {{ answer }}" + template)


UNREADABLE: list[tuple[str, bytes, str]] = [
    ("in.csv", CSV.encode("utf-16"), "is not UTF-8 and looks like UTF-16"),
    ("in.csv", CSV.encode("utf-16-le"), "is not UTF-8 and looks like UTF-16"),
    ("in.csv", CSV.encode("utf-32"), "is not UTF-8 and looks like UTF-32"),
    ("in.jsonl", '{"problem": "x", "answer": "y"}\n'.encode("utf-16"), "is not UTF-8 and looks like UTF-16"),
    ("in.csv", CSV.replace(",", ";").encode(), "is ';' its separator?"),
    ("in.csv", CSV.replace(",", "\t").encode(), r"is '\\t' its separator?"),
    ("in.tsv", CSV.encode(), "is ',' its separator?"),
    ("in.csv", b"problem;answer\n1, 2 and 3?;2\n", "is ';' its separator?"),
    ("in.csv", b"problem,answer\n", "the input has no rows: in.csv has none behind the header"),
    ("in.csv", b"", "the input has no rows"),
    ("in.jsonl", b"\n\n", "the input has no rows: in.jsonl has none"),
    ("in.json", b"[]", "the input has no rows"),
    ("in.csv", b"problem,answer,answer\nx,y,z\n", "names column 'answer' twice"),
    (
        "in.json",
        b'{"data": [{"problem": "x", "answer": "y"}]}',
        "no row has a column 'problem'.*The columns are 'data'",
    ),
    (
        "in.jsonl",
        b'[{"problem": "x", "answer": "y"}]\n',
        "none of the first 1 rows can be used. in.jsonl line 1: not an obj",
    ),
    ("in.jsonl", b'{"problem": "x", "answer": 1, "answer": 2}\n', "'answer' is there twice"),
    ("in.jsonl.gz", b'{"problem": "x", "answer": "y"}\n', "cannot be read: Not a gzipped file"),
    ("in.csv.gz", gzip.compress(CSV.encode("utf-16"), mtime=0), "looks like UTF-16"),
]


@pytest.mark.parametrize(("name", "content", "reason"), UNREADABLE)
def test_an_input_that_is_no_table_of_rows(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    source = tmp_path / name
    source.write_bytes(content)
    with pytest.raises(SettingsError, match=reason):
        checked(source)


def test_a_byte_order_mark_of_utf8_is_no_column(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text(CSV, encoding="utf-8-sig")
    checked(source)


def test_what_is_in_a_json_file_behind_the_array_is_an_error(tmp_path: Path) -> None:
    source = tmp_path / "in.json"
    source.write_text('[{"problem": "x"}]\n[{"problem": "y"}]')
    first, second = read(open_inputs([str(source)]))
    assert first.columns == {"problem": "x"}
    assert second.error == "not JSON: there is something behind the array"


def test_custom_id_is_the_id_by_itself(tmp_path: Path) -> None:
    """OpenAI's batch files have this column."""
    source = write_rows(tmp_path / "in.jsonl", [{"problem": "x", "answer": "y", "custom_id": "a", "id": 7}])
    assert checked(source).id_column == "custom_id"
    assert checked(source, id_column="id").id_column == "id"
    assert checked(write_rows(source, [{"problem": "x", "answer": "y", "id": 7}])).id_column is None


# What this command wrote is not its input


def test_the_output_in_the_inputs_folder_is_not_read(tmp_path: Path) -> None:
    """At c2787b4 the next run drew samples from the rows and from the settings of the first."""
    folder = tmp_path / "data"
    (folder / "saved").mkdir(parents=True)
    (folder / ".cache").mkdir()
    (folder / "in.csv").write_text(CSV)
    for name in (
        "rows.jsonl",
        "rows.jsonl.settings.json",
        "rows.jsonl.report.json",
        "old.jsonl",
        "old.jsonl.settings.json",
    ):
        (folder / name).write_text('{"problem": "mine"}\n')
    for name in ("table.parquet", "table.parquet.jsonl", "table.parquet.jsonl.settings.json"):
        (folder / name).write_text('{"problem": "mine"}\n')
    for name in (".hidden.jsonl", ".cache/in.jsonl", "saved/state.json", "saved/dataset_info.json"):
        (folder / name).write_text('{"problem": "hidden"}\n')
    (folder / "rows2.jsonl").write_text('{"problem": "theirs", "answer": "1"}\n')
    said: list[str] = []
    sources = open_inputs([str(folder)], output=folder / "rows.jsonl", say=said.append)
    assert [source.name for source in sources] == ["in.csv", "rows2.jsonl"]
    assert said == [
        "not read as input (hidden): .cache/in.jsonl, .hidden.jsonl",
        "not read as input (part of a saved data set): saved/dataset_info.json, saved/state.json",
        "not read as input (this run's own output): rows.jsonl, rows.jsonl.report.json, rows.jsonl.settings.json",
        "not read as input (written by this command): old.jsonl, old.jsonl.settings.json, table.parquet and 2 more",
    ]
    assert [source.name for source in open_inputs([str(folder / "old.jsonl")])] == ["old.jsonl"], (
        "named by itself it is"
    )


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.settings.json"])
def test_the_output_itself_is_no_input(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}\n")
    with pytest.raises(SettingsError, match="is this run's output or belongs to it"):
        open_inputs([str(tmp_path / name)], output=tmp_path / "rows.jsonl")


def test_a_file_is_read_once(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text(CSV)
    for twice in (
        [str(source), str(source)],
        [str(tmp_path), str(source)],
        [str(source), f"{tmp_path}/../{tmp_path.name}/in.csv"],
    ):
        with pytest.raises(SettingsError, match="give it once"):
            open_inputs(twice)


def test_a_split_of_a_file_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text(CSV)
    with pytest.raises(SettingsError, match="split='train' is of a Hugging Face data set"):
        open_inputs([str(source)], split="train")
    with pytest.raises(SettingsError, match="config_name='main' is of a Hugging Face data set"):
        open_inputs([str(source)], config="main")


# A resumed run's input


def sampled(source: Path, asked: Settings, number: int = 100) -> FinishedSamples:
    """What an output has after a run over the first rows of the input."""
    finished = FinishedSamples()
    for row in list(read(open_inputs([str(source)])))[:number]:
        if row.columns is not None:
            custom_id = row.columns[asked.id_column] if asked.id_column else row.position
            written = {"custom_id": custom_id, "sample": 0, "error": None, **input_columns(row.columns)}
            finished.add(custom_id, 0, input_digest(json.loads(json.dumps(written))))
    return finished


ROWS: list[Any] = [
    {"id": f"p{i}", "problem": f"{i} + 1?", "answer": str(i + 1), "prompt": 1.5, "x": None} for i in range(9)
]
CHANGES: dict[str, Any] = {
    "a line in front": [{"problem": "new", "answer": "0"}, *ROWS],
    "a row less": ROWS[1:],
    "two rows swapped": [ROWS[1], ROWS[0], *ROWS[2:]],
    "another answer": [*ROWS[:4], ROWS[4] | {"answer": "6"}, *ROWS[5:]],
    "another column": [row | {"level": 1} for row in ROWS],
    "a row that cannot be read": [*ROWS[:4], b"{broken\n", *ROWS[5:]],
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_input_that_changed_is_refused(tmp_path: Path, change: str) -> None:
    """At c2787b4 a line in front of the input made the ids of all other rows those of other problems."""
    source = write_rows(tmp_path / "in.jsonl", ROWS)
    asked = settings(source)
    check_unchanged(read(open_inputs([str(source)])), asked, sampled(source, asked, 6))
    finished = sampled(source, asked, 6)
    write_rows(source, CHANGES[change])
    with pytest.raises(SettingsError, match=r"the input has changed: in.jsonl line \d is not the row.*--id-column"):
        check_unchanged(read(open_inputs([str(source)])), asked, finished)


def test_rows_may_be_added_and_rows_with_ids_may_move(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", ROWS)
    by_place, by_id = settings(source), settings(source, id_column="id")
    finished, finished_by_id, again = sampled(source, by_place), sampled(source, by_id), sampled(source, by_id)
    new = {"id": "new", "problem": "?", "answer": ""}
    write_rows(source, [*ROWS, new])
    check_unchanged(read(open_inputs([str(source)])), by_place, finished)
    write_rows(source, [new, *reversed(ROWS)])
    check_unchanged(read(open_inputs([str(source)])), by_id, finished_by_id)
    write_rows(source, [ROWS[0] | {"answer": "7"}])
    with pytest.raises(SettingsError, match="Its id is the same, its columns are not"):
        check_unchanged(read(open_inputs([str(source)])), by_id, again)


def test_a_second_row_with_an_id_is_an_error_of_its_own(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [*ROWS, ROWS[1] | {"problem": "Again?"}])
    asked = settings(source, id_column="id")
    check_unchanged(read(open_inputs([str(source)])), asked, sampled(write_rows(tmp_path / "b.jsonl", ROWS), asked))


def test_the_input_is_read_no_further_than_the_output_has_rows(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", ROWS)
    asked = settings(source)
    reading = read(open_inputs([str(source)]))
    check_unchanged(reading, asked, sampled(source, asked, 3))
    assert len(list(reading)) == len(ROWS) - 4


def test_no_column_of_the_input_is_lost_under_the_outputs_names() -> None:
    columns = {"prompt": 1, "input_prompt": 2, "input_input_prompt": 3, "input_other": 4, "error": 5}
    found = input_columns(columns)
    assert sorted(found.values()) == [1, 2, 3, 4, 5]
    assert found["input_prompt"] == 2
    assert found["input_other"] == 4
    assert not found.keys() & set(OWN_COLUMNS)


def test_values_that_json_has_no_type_for_are_the_same_rows(tmp_path: Path) -> None:
    import datetime

    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"problem": "x", "answer": float("nan"), "day": datetime.date(2026, 1, 2), "raw": b"\xff", "f": 0.1}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    (row,) = read(open_inputs([str(tmp_path / "in.parquet")]))
    assert row.columns is not None
    from vllm_optimal_sampling.data.generate.output_row import line_of

    part = input_columns(row.columns)
    assert input_digest(json.loads(line_of(part))) == input_digest(part)


def test_a_run_of_which_no_row_succeeded_failed(tmp_path: Path) -> None:
    """At c2787b4 its exit code was 0, and "all rows" were in the output."""
    source = write_rows(tmp_path / "in.jsonl", [*problems(1), {"problem": "Why?"}])
    options = [*MODELS, "--input", str(source), "--output", str(tmp_path / "rows.jsonl"), "--shard", "1/2"]
    templates = ["--theta-template", "{{ problem }}", "--teacher-template", "{{ problem }} {{ answer }}"]
    for _ in range(2):  # the second time it is in the output already
        done = run(*options, *templates)
        assert done.returncode == 1
        assert "1 row failed; the column error of" in done.stderr
        assert done.stderr.endswith("no row succeeded\n")
