"""What `summarise` says of files whose figures are known, sound and broken ones."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from support.example_pair import TEACHER
from support.written_rows import record, row, write
from vllm_optimal_sampling.data.report import summarise
from vllm_optimal_sampling.data.report.collect import BUFFERED_TOKENS
from vllm_optimal_sampling.data.report.shown import SHOWN_TOKENS
from vllm_optimal_sampling.data.rows import RowsError, settings_path
from vllm_optimal_sampling.wire import RECORD_FIELDS

TEXTS = ("So the answer is 42.", "Then 6 times 7 is 42. The answer is 42.", "The answer is 41.")


def test_figures_are_those_of_all_tokens(tmp_path: Path) -> None:
    rows = [row(i, TEXTS[i % 3], sample=i % 2, custom_id=f"row-{i // 2}") for i in range(100)]
    summary = summarise(write(tmp_path / "rows.jsonl", rows), tokenizer=str(TEACHER))
    columns = {name: np.concatenate([one["optimal_sampling"][name] for one in rows]) for name in RECORD_FIELDS}
    assert (summary.num_samples, summary.num_rows, summary.num_repeated) == (100, 50, 0)
    assert summary.num_tokens == sum(len(one["completion_token_ids"]) for one in rows)
    assert summary.mean_alpha == pytest.approx(columns["alpha"].mean(), abs=1e-12)
    assert summary.mean_kl == pytest.approx(columns["kl"].mean(), abs=1e-12)
    ratio = columns["teacher_logprob"] - columns["theta_logprob"]
    assert summary.ratio.mean == pytest.approx(ratio.mean(), abs=1e-12)
    assert summary.alpha.quantiles[0.5] == pytest.approx(np.median(columns["alpha"]), abs=2e-3)
    assert summary.kl.quantiles[0.5] == pytest.approx(np.median(columns["kl"]), rel=0.06)
    assert summary.finish_reasons == {"stop": 100}
    assert summary.length.max == max(len(one["completion_token_ids"]) for one in rows)
    first = [one["optimal_sampling"]["alpha"][0] for one in rows]
    assert summary.alpha_by_position.width == 1
    assert summary.alpha_by_position.counts[0] == 100
    assert summary.alpha_by_position.median[0] == pytest.approx(
        np.quantile(first, 0.5, method="inverted_cdf"), abs=1 / 200
    )


def test_the_largest_disagreements_one_for_each_row(tmp_path: Path) -> None:
    rows = [row(i, sample=k, custom_id=f"row-{i}") for i in range(30) for k in range(3)]
    for number, one in enumerate(rows):
        one["optimal_sampling"] = record(len(one["completion_token_ids"]), number)
    summary = summarise(write(tmp_path / "rows.jsonl", rows), tokenizer=str(TEACHER), num_disagreements=10)
    best = sorted(
        (max(max(one["optimal_sampling"]["kl"]) for one in rows[3 * i : 3 * i + 3]) for i in range(30)), reverse=True
    )
    assert [spot.kl for spot in summary.disagreements] == best[:10]
    for spot in summary.disagreements:
        one = next(r for r in rows if (r["custom_id"], r["sample"]) == (spot.custom_id, spot.sample))
        assert one["optimal_sampling"]["kl"][spot.position] == spot.kl
        assert one["optimal_sampling"]["theta_logprob"][spot.position] == spot.theta_logprob
        assert spot.before + spot.token + spot.after == one["completion"]


def test_tokens_that_a_model_wants(tmp_path: Path) -> None:
    rows = [row(i) for i in range(5)]
    for one in rows:
        size = len(one["completion_token_ids"])
        one["optimal_sampling"] |= {"teacher_logprob": [-1.0] * size, "theta_logprob": [-1.0] * (size - 1) + [-3.0]}
    summary = summarise(write(tmp_path / "rows.jsonl", rows), tokenizer=str(TEACHER))
    (token,) = summary.teacher_tokens
    assert (token.text, token.count, token.mean_ratio) == (".", 5, 2.0)
    assert summary.theta_tokens == []


def test_broken_and_failed_rows_are_counted_and_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [row(1), row(2, error="prompt of 900 tokens is too long")])
    with path.open("ab") as file:
        file.write(b'not json\n\xff\xfe\n[1, 2]\n{"custom_id": "row-7", "completion": NaN}\n')
        file.write(json.dumps(row(3, error="prompt of 1200 tokens is too long")).encode() + b"\n")
        file.write(json.dumps(row(4)).encode()[:60])
    summary = summarise(path)
    assert (summary.num_samples, summary.num_failed, summary.num_unreadable, summary.num_torn) == (4, 2, 3, 1)
    first, *others = summary.failures
    assert (first.reason, first.count, first.place) == ("prompt of 900 tokens is too long", 2, "rows.jsonl:2")
    assert {failure.place for failure in others} == {"rows.jsonl:3", "rows.jsonl:4", "rows.jsonl:5"}
    assert any("broken off" in notice for notice in summary.notices)


@pytest.mark.parametrize(
    "bad",
    [
        {"alpha": [0.5]},
        {**record(1, 0), "alpha": ["x"]},
        {**record(1, 0), "kl": 7},
        {**record(1, 0), "kl": [[0.1]]},
        record(1, 0),  # of another length
        [1, 2],
    ],
)
def test_a_record_that_does_not_fit_is_left_out(tmp_path: Path, bad: object) -> None:
    summary = summarise(write(tmp_path / "rows.jsonl", [row(1), row(2, optimal_sampling=bad)]))
    assert (summary.num_samples, summary.num_recorded) == (2, 1)
    assert any("does not fit" in notice for notice in summary.notices)


def test_nulls_of_a_record_are_no_numbers(tmp_path: Path) -> None:
    one = row(1)
    one["optimal_sampling"]["kl"][0] = None
    one["optimal_sampling"]["theta_logprob"][1] = None
    one["optimal_sampling"]["fallback"][0] = True
    summary = summarise(write(tmp_path / "rows.jsonl", [one]))
    assert (summary.kl.num_not_finite, summary.ratio.num_not_finite, summary.num_fallback) == (1, 1, 1)
    assert summary.mean_kl == pytest.approx(np.mean(one["optimal_sampling"]["kl"][1:]))


def test_rows_without_records_or_tokens(tmp_path: Path) -> None:
    bare = {"custom_id": "a", "completion": "twelve chars", "finish_reason": "length", "error": None}
    summary = summarise(write(tmp_path / "rows.jsonl", [bare]))
    assert summary.num_tokens is None
    assert summary.length.mean == 12
    assert (summary.num_recorded, summary.alpha.count, summary.disagreements) == (0, 0, [])
    assert summary.finish_reasons == {"length": 1}


def test_without_a_tokenizer_tokens_have_their_ids(tmp_path: Path) -> None:
    one = row(1)
    summary = summarise(write(tmp_path / "rows.jsonl", [one]))
    assert summary.tokenizer is None
    assert "".join(piece.text for piece in summary.samples[0].pieces) == "".join(
        f"⟨{token}⟩" for token in one["completion_token_ids"]
    )


def test_the_settings_name_the_tokenizer(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [row(1)])
    settings_path(path).write_text(json.dumps({"teacher": str(TEACHER), "temperature": 0.8}))
    summary = summarise(path)
    assert summary.settings == {"teacher": str(TEACHER), "temperature": 0.8}
    assert summary.tokenizer == str(TEACHER)
    assert [piece.text for piece in summary.samples[0].pieces][-1] == "."


def test_another_tokenizer_is_noticed(tmp_path: Path) -> None:
    one = row(1, completion="This is not what the tokens say")
    summary = summarise(write(tmp_path / "rows.jsonl", [one]), tokenizer=str(TEACHER))
    assert any("another model's" in notice for notice in summary.notices)


def test_a_long_sample_is_cut(tmp_path: Path) -> None:
    one = row(1, "one two three " * 1000)
    summary = summarise(write(tmp_path / "rows.jsonl", [one]), tokenizer=str(TEACHER))
    (sample,) = summary.samples
    assert sample.pieces[-1].stop == SHOWN_TOKENS < sample.num_tokens == len(one["completion_token_ids"])


def test_buffers_are_counted_once(tmp_path: Path) -> None:
    long = row(1, "one two three " * 2000)
    num = len(long["completion_token_ids"])
    rows = 2 * BUFFERED_TOKENS // num + 1
    summary = summarise(write(tmp_path / "rows.jsonl", [long] * rows))
    assert summary.alpha.count == summary.num_tokens == rows * num > 2 * BUFFERED_TOKENS
    assert summary.alpha_by_position.counts.sum() == rows * num
    assert summary.num_repeated == rows - 1


def test_parquet_and_arrow_and_folders_say_the_same(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow as pa
    import pyarrow.parquet

    rows = [row(i, TEXTS[i % 3]) for i in range(40)]
    plain = summarise(write(tmp_path / "rows.jsonl", rows))
    folder = tmp_path / "shards"
    folder.mkdir()
    write(folder / "0.jsonl", rows[:10])
    pa.parquet.write_table(pa.Table.from_pylist(rows[10:30]), folder / "1.parquet")
    table = pa.Table.from_pylist(rows[30:])
    with pa.OSFile(str(folder / "2.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    shards = summarise(folder)
    for name in ("num_samples", "num_rows", "num_tokens", "finish_reasons", "disagreements", "theta_tokens"):
        left, right = getattr(plain, name), getattr(shards, name)
        if name == "disagreements":
            left, right = [spot.kl for spot in left], [spot.kl for spot in right]
        assert left == right, name
    assert shards.alpha.counts.tolist() == plain.alpha.counts.tolist()
    assert shards.mean_kl == pytest.approx(plain.mean_kl, abs=1e-12)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(RowsError, match="no file"):
        summarise(tmp_path / "missing.jsonl")
    (tmp_path / "rows.csv").write_text("a,b\n")
    with pytest.raises(RowsError, match=r"\.jsonl"):
        summarise(tmp_path / "rows.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RowsError, match="holds no file"):
        summarise(tmp_path / "empty")
    with pytest.raises(ValueError, match="num_samples is -1"):
        summarise(tmp_path / "rows.csv", num_samples=-1)
    path = write(tmp_path / "rows.jsonl", [row(1)])
    with pytest.raises(ValueError, match="tokenizer of '/nowhere/model'"):
        summarise(path, tokenizer="/nowhere/model")


def test_the_commands_import_neither_torch_nor_vllm() -> None:
    program = (
        "import sys, vllm_optimal_sampling.data.report, vllm_optimal_sampling.data.filter\n"
        "print({'torch', 'vllm', 'transformers', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "set()\n", "")


def test_completions_of_chats(tmp_path: Path) -> None:
    text = "So the answer is 42."
    chat = [{"role": "assistant", "content": text}]
    summary = summarise(write(tmp_path / "rows.jsonl", [row(1, text, completion=chat)]), tokenizer=str(TEACHER))
    assert not summary.notices
    assert [sample.completion for sample in summary.samples] == [text]
