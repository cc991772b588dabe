"""Every kind of input gives the same rows, bad ones in their place, in memory that does not grow with the input."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
import tracemalloc
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from vllm_optimal_sampling.data.generate import input_files, inputs
from vllm_optimal_sampling.data.generate.errors import SettingsError
from vllm_optimal_sampling.data.generate.input_row import InputRow
from vllm_optimal_sampling.data.generate.inputs import count, open_inputs, read

ROWS = [{"problem": f"What is {i} + 1,\n“please”?", "answer": str(i + 1)} for i in range(7)]


def rows_of(path: Path | str, **options: Any) -> list[InputRow]:
    return list(read(open_inputs([str(path)], **options)))


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    name = path.name.removesuffix(".gz")
    if name.endswith((".jsonl", ".ndjson")):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    elif name.endswith(".json"):
        text = json.dumps(rows, ensure_ascii=False, indent=2)
    elif name.endswith((".csv", ".tsv")):
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if name.endswith("tsv") else ",")
            writer.writeheader()
            writer.writerows(rows)
        return path
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz"])
def test_every_format_gives_the_rows(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, ROWS)
    rows = rows_of(path)
    assert [row.columns for row in rows] == ROWS
    assert [row.error for row in rows] == [None] * len(ROWS)
    assert len({row.position for row in rows}) == len(ROWS)
    assert all(row.position.startswith(f"{name}:") for row in rows)
    assert count(open_inputs([str(path)])) == (None if name == "a.json" else len(ROWS))


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    """A quoted cell and an indented object take several lines; blank lines count and are no rows."""
    assert [row.line for row in rows_of(write(tmp_path / "a.csv", ROWS[:3]))] == [2, 4, 6]
    assert [row.line for row in rows_of(write(tmp_path / "a.json", ROWS[:3]))] == [2, 6, 10]
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n  \n{"a": 2}\n')
    assert [row.place for row in rows_of(path)] == ["a.jsonl line 1", "a.jsonl line 4"]


def test_json_lines_under_the_name_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert [row.columns for row in rows_of(path)] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("size", [1, 7, 64])
def test_a_json_array_over_many_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(input_files, "JSON_CHUNK", size)
    rows = [*ROWS, {"nested": [{"a": [1, 2, {"b": "]}"}]}], "number": 12345}]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows, indent=1))
    assert [row.columns for row in rows_of(path)] == rows


def test_folders_are_read_in_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path / "b.jsonl", ROWS[2:4])
    write(tmp_path / "a.csv", ROWS[:2])
    write(tmp_path / "deep" / "c.parquet", ROWS[4:])
    (tmp_path / "README.md").write_text("no data")
    rows = rows_of(tmp_path)
    assert [row.columns for row in rows] == ROWS
    assert [row.source for row in rows] == ["a.csv"] * 2 + ["b.jsonl"] * 2 + ["deep/c.parquet"] * 3


def test_data_sets_on_disk(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    splits = {"train": datasets.Dataset.from_list(ROWS[:3]), "test": datasets.Dataset.from_list(ROWS[3:])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "two")
    assert [row.columns for row in rows_of(tmp_path / "one")] == ROWS
    test = rows_of(tmp_path / "two", split="test")
    assert [row.columns for row in test] == ROWS[3:]
    assert test[0].place == "two row 1"
    assert count(open_inputs([str(tmp_path / "one")])) == len(ROWS)
    with pytest.raises(SettingsError, match="split=None is not one of train, test"):
        rows_of(tmp_path / "two")


def test_data_sets_by_name_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder named owner/name stands for the hub: `datasets.load_dataset` takes either."""
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    write(folder / "train.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    source = inputs.DataSet("owner/name", inputs._load_by_name("owner/name", "train", None), "owner/name:train")
    assert [row.columns for row in source.rows()] == ROWS
    assert source.count() is None


BAD_LINES = [
    (b'{"a": 1', "not JSON: Expecting ',' delimiter at column 8"),
    (b'{"a": "\xff"}', "not UTF-8: byte 0xff at position 7"),
    (b'{"a": NaN}', "not JSON: NaN is not a JSON number"),
    (b'{"a": "\\ud800"}', "not text: half a surrogate pair"),
    (b"[1, 2]", "not an object with columns but list"),
    (b"[" * 100_000, "not JSON"),
]


def test_bad_lines_are_errors_in_their_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + b"".join(line + b"\n" for line, _ in BAD_LINES) + b'{"a": 2}\n')
    first, *bad, last = rows_of(path)
    assert (first.columns, last.columns) == ({"a": 1}, {"a": 2})
    for number, (row, (_, reason)) in enumerate(zip(bad, BAD_LINES, strict=True), 2):
        assert row.columns is None
        assert row.line == number
        assert row.error is not None
        assert row.error.startswith(reason)


def test_bad_csv_rows_are_errors_in_their_place(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'a,b\n1,2\n3\n"x"y,4\n\xff,5\n6,7,8\n9,10\n')
    rows = rows_of(path)
    assert [(row.line, row.columns, row.error) for row in rows] == [
        (2, {"a": "1", "b": "2"}, None),
        (3, None, "has 1 cells, and the first line names 2 columns"),
        (4, None, "not CSV: ',' expected after '\"'"),
        (5, None, "not UTF-8: byte 0xff"),
        (6, None, "has 3 cells, and the first line names 2 columns"),
        (7, {"a": "9", "b": "10"}, None),
    ]


def test_a_broken_array_says_that_the_rest_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1},\n{"a": }, {"a": 3}]')
    good, bad = rows_of(path)
    assert good.columns == {"a": 1}
    assert bad.line == 2
    assert bad.error is not None
    assert bad.error.startswith("not JSON, and the rest of the file is not read")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("missing.jsonl", "input='missing.jsonl' does not exist"),
        ("./missing", "input='./missing' does not exist"),
        ("a.txt", "input='.*a.txt' is not a kind of file that is read"),
        ("empty", "has no file that ends with one of .jsonl"),
        ("bad.parquet", "input='.*bad.parquet' is not a parquet file"),
        ("owner/name", "input='owner/name' is a data set of the hub, if anything; give its split"),
    ],
)
def test_what_is_no_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, reason: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(SettingsError, match=reason):
        rows_of(given)


def test_shards_divide_the_rows(tmp_path: Path) -> None:
    sources = open_inputs([str(write(tmp_path / "a.jsonl", ROWS))])
    for limit in (None, 5):
        shards = [list(read(sources, (i, 3), limit)) for i in range(3)]
        assert sorted(row.line for shard in shards for row in shard) == list(range(1, (limit or 7) + 1))
        assert [len(shard) for shard in shards] == [count(sources, (i, 3), limit) for i in range(3)]


READ_ALL = """
import re, sys
from pathlib import Path
from vllm_optimal_sampling.data.generate.inputs import open_inputs, read
number = sum(row.error is None for row in read(open_inputs(sys.argv[1:])))
# Not ru_maxrss, which begins with the parent's.
print(number, re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json", "a.parquet"])
def test_memory_does_not_grow_with_the_input(tmp_path: Path, name: str) -> None:
    """Peak memory of a process that reads 2,000 rows, and of one that reads 200,000: 44 MB, some 150 MB as objects."""
    peaks = []
    for number in (2_000, 200_000):
        path = tmp_path / str(number) / name
        path.parent.mkdir()
        write(path, [{"problem": f"What is {i} + {i}? " * 10, "answer": str(2 * i)} for i in range(number)])
        done = subprocess.run([sys.executable, "-c", READ_ALL, path], capture_output=True, text=True, check=True)
        found, kib = map(int, done.stdout.split())
        assert found == number
        peaks.append(kib >> 10)
    # JSON arrays and gigabytes alike are read in pieces of 1 MiB, parquet in pages; the small file is less than one.
    assert peaks[1] <= peaks[0] + (24 if name == "a.parquet" else 6), peaks


def test_the_first_row_comes_at_once(tmp_path: Path) -> None:
    """Of a file of a million rows only the first piece is read."""
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.writelines(b'{"a": %d}\n' % i for i in range(1_000_000))
    reading = read(open_inputs([str(path)]))
    tracemalloc.start()
    try:
        assert [row.columns for row in islice(reading, 2)] == [{"a": 0}, {"a": 1}]
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
